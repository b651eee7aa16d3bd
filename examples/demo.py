"""`make demo`: serve the image example from its manifest with the local command, classify a photograph, say where to go next.

For a person at a terminal the model stays up until Ctrl-C; with --once, in CI, or without a terminal the demo ends by itself.
Exits 1 when the answer is not the right label.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
MANIFEST = HERE / "image" / "torchmodel.yaml"
PHOTOGRAPH = HERE / "image" / "china.jpg"
EXPECTED = "palace"
"""What EfficientNet-Lite0 says to china.jpg, the Summer Palace in Beijing, in this process too (image/compare.py)."""

TORCHMODEL = [sys.executable, "-m", "torchmodel_cli"]
START_LIMIT_S = 240

NEXT = """
Where to go next
  your own model         docs/tutorials/first-model.md
  text and speech        examples/text, examples/speech
  on a cluster           docs/how-to/serve-on-a-cluster.md
  every field            docs/reference/torchmodel.md
"""


def main() -> int:
    """Prepare, serve, ask, and stay or end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the answer")
    stays = not parser.parse_args().once and sys.stdin.isatty() and not os.environ.get("CI")
    tell(f"$ python {shown(HERE / 'image' / 'prepare.py')}")
    subprocess.run([sys.executable, HERE / "image" / "prepare.py"], check=True)
    port = free_port()
    tell(f"\n$ torchmodel run {shown(MANIFEST)} --port {port}")
    server = subprocess.Popen([*TORCHMODEL, "run", shown(MANIFEST), "--port", str(port)], start_new_session=True)
    try:
        wait_ready(server, port)
        is_right = ask(port)
        tell(NEXT)
        if stays:
            tell("The model stays up. Ctrl-C ends it.")
            server.wait()
        return 0 if is_right else 1
    except KeyboardInterrupt:
        return 0
    finally:
        end(server)


def tell(text: str) -> None:
    """Print at once: the server's lines come from another process."""
    print(text, flush=True)


def shown(path: Path) -> str:
    """The path from here, as a person would type it."""
    return os.path.relpath(path)


def free_port() -> int:
    """8080 as in the manuals, or any other if it is taken."""
    for port in (8080, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return probe.getsockname()[1]
    raise SystemExit("no free port on 127.0.0.1")


def wait_ready(server: subprocess.Popen, port: int) -> None:
    """Return when `torchmodel predict` could ask."""
    from torchmodel_cli.client import is_ready

    limit_s = time.monotonic() + START_LIMIT_S
    while not is_ready(f"http://127.0.0.1:{port}"):
        if server.poll() is not None:
            raise SystemExit(server.returncode or 1)
        if time.monotonic() > limit_s:
            raise SystemExit(f"not ready after {START_LIMIT_S} s")
        time.sleep(0.2)
    time.sleep(0.5)  # let the server's command print its lines before ours


def ask(port: int) -> bool:
    """Classify the photograph by the same command a person would use; True when the best label is right."""
    url = f"http://127.0.0.1:{port}"
    tell(f"\n$ torchmodel predict {url} {shown(PHOTOGRAPH)}")
    command = [*TORCHMODEL, "predict", url, shown(PHOTOGRAPH)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    tell(answer)
    is_right = answer.startswith(EXPECTED)
    tell(f"Right: the photograph shows a {EXPECTED}." if is_right else f"Wrong: the best label should be {EXPECTED}.")
    return is_right


def end(server: subprocess.Popen) -> None:
    """Drain the server as Ctrl-C would, and wait for it."""
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(timeout=40)
        except subprocess.TimeoutExpired:
            server.kill()


if __name__ == "__main__":
    sys.exit(main())
