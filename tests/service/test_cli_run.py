"""`torchmodel run` and `predict` as processes: what works, and that each way to fail says what to do and exits as promised."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
import torch
from testkit.local_run import LocalRun, command_environment
from testkit.s3_server import S3Server

MANIFEST = """\
apiVersion: serving.torchmodel.dev/v1alpha1
kind: TorchModel
metadata: {{name: linear}}
spec:
  checkpoint: {{uri: "file:model.pth"{checkpoint}}}
  architecture: {{entrypoint: "{entrypoint}"{architecture}}}
  signature:
    inputs: [{{name: x, datatype: FP32, shape: [-1, 3]}}]
    outputs: [{{name: z, datatype: FP32, shape: [-1, 1]}}]
{rest}"""

SLOW_NET = """\
import time
import torch

class Net(torch.nn.Linear):
    def forward(self, x):
        time.sleep(2 * float(x.max() > 5))
        return super().forward(x)
"""


def write_manifest(
    folder: Path,
    *,
    entrypoint: str = "torch.nn:Linear",
    architecture: str = ", kwargs: {in_features: 3, out_features: 1}",
    checkpoint: str = "",
    rest: str = "",
) -> Path:
    torch.manual_seed(0)
    torch.save(torch.nn.Linear(3, 1).state_dict(), folder / "model.pth")
    manifest = folder / "torchmodel.yaml"
    manifest.write_text(
        MANIFEST.format(entrypoint=entrypoint, architecture=architecture, checkpoint=checkpoint, rest=rest)
    )
    return manifest


def run(tmp_path: Path, *arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        ["torchmodel", *arguments],
        env=command_environment(tmp_path),
        input=text,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def answer_in_process(folder: Path, rows: list[list[float]]) -> list[float]:
    model = torch.nn.Linear(3, 1)
    model.load_state_dict(torch.load(folder / "model.pth", weights_only=True))
    with torch.inference_mode():
        return [float(value) for value in model(torch.tensor(rows)).flatten()]


def test_once_answers_on_standard_output_alone(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    done = run(tmp_path, "run", manifest, "--port", "0", "--once", '{"instances": [[1, 2, 3]]}')
    assert done.returncode == 0, done.stderr
    (expected,) = answer_in_process(tmp_path, [[1.0, 2.0, 3.0]])
    assert float(done.stdout.strip("[]\n")) == pytest.approx(expected, abs=1e-5)
    assert "weights-only" in done.stderr


def test_the_recipe_can_be_pasted_and_predict_finds_the_model_by_its_name(tmp_path: Path) -> None:
    with LocalRun(write_manifest(tmp_path), tmp_path) as served:
        url = served.wait_url()
        expected = answer_in_process(tmp_path, [[1.0, 1.0, 1.0]])
        recipe = re.search(r"^  (curl .*)$", served.output, re.MULTILINE)
        assert recipe is not None
        pasted = subprocess.run(["bash", "-c", recipe[1]], capture_output=True, check=True).stdout
        assert json.loads(pasted)["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)
        for target in ("linear", url, f"{url}/v2/models/linear"):
            done = run(tmp_path, "predict", target, "-", "--json", text='{"instances": [[1, 1, 1]]}')
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["predictions"][0] == pytest.approx(expected, abs=1e-5)
        wrong = run(tmp_path, "predict", "linear", '{"instances": [[1, 1]]}')
        assert wrong.returncode == 1
        assert "400" in wrong.stderr
        assert "shape [1, 2], must be [-1, 3]" in wrong.stderr
        other = run(tmp_path, "predict", f"{url}/v2/models/other", '{"instances": [[1, 1, 1]]}')
        assert other.returncode == 1
        assert "no model 'other' here" in other.stderr
        assert served.interrupt() == 0
    gone = run(tmp_path, "predict", "linear", "[]")
    assert gone.returncode == 2
    assert "none runs here" in gone.stderr


def test_ctrl_c_finishes_what_is_in_flight(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SLOW_NET)
    answers: list[object] = []
    with LocalRun(write_manifest(tmp_path, entrypoint="net:Net"), tmp_path) as served:
        url = served.wait_url()
        assert "using net.py beside the manifest" in served.output
        body = json.dumps({"instances": [[9, 9, 9]]}).encode()
        request = Request(f"{url}/v1/models/linear:predict", body, {"Content-Type": "application/json"})
        asking = threading.Thread(target=lambda: answers.append(json.load(urlopen(request, timeout=30))))
        asking.start()
        time.sleep(0.7)
        assert served.interrupt() == 0
        asking.join()
    assert "predictions" in str(answers)
    assert "requests in flight are finished first" in served.output


def test_a_server_that_is_killed_is_reported(tmp_path: Path) -> None:
    with LocalRun(write_manifest(tmp_path), tmp_path) as served:
        served.wait_url()
        (child,) = Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        assert served.wait_end() == 1
    assert "the server ended with SIGKILL (out of memory is the usual cause)" in served.output


def test_no_server_is_left_behind_when_the_command_is_killed(tmp_path: Path) -> None:
    with LocalRun(write_manifest(tmp_path), tmp_path) as served:
        url = served.wait_url()
        served.process.kill()
        served.wait_end()
    limit_s = time.monotonic() + 20
    while time.monotonic() < limit_s:
        try:
            urlopen(f"{url}/v2/health/live", timeout=1).close()
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the server still answers")


def test_code_comes_from_a_config_map_in_the_same_file(tmp_path: Path) -> None:
    manifest = write_manifest(
        tmp_path,
        entrypoint="net:Net",
        architecture=", kwargs: {in_features: 3, out_features: 1}, source: {configMap: {name: code, key: net.py}}",
        rest="  security: {allowCodeExecution: true}\n",
    )
    source = "".join(f"    {line}\n" for line in SLOW_NET.splitlines())
    with manifest.open("a") as file:
        file.write(f"---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: code}}\ndata:\n  net.py: |\n{source}")
    done = run(tmp_path, "run", manifest, "--port", "0", "--once", "[[1, 2, 3]]")
    assert done.returncode == 0, done.stderr
    assert re.search(r"safety +code", done.stderr)


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        pytest.param(
            {"checkpoint": f", sha256: '{'0' * 64}'"},
            2,
            ("ChecksumMismatch: ", "expected sha256 0000", "next step: If the checkpoint was changed on purpose"),
            id="bytes that are not those of the digest",
        ),
        pytest.param(
            {"architecture": ", kwargs: {in_features: 3, out_features: 1, bias: false}"},
            2,
            ("StateDictMismatch: ", "bias", "next step: "),
            id="a class without the checkpoint's keys",
        ),
        pytest.param(
            {"architecture": ", kwargs: {in_features: 4, out_features: 1}"},
            2,
            ("StateDictMismatch: ", "weight", "next step: "),
            id="a class of another shape",
        ),
        pytest.param(
            {"entrypoint": "torch.nn:Lineer"},
            2,
            ("ArchitectureInvalid: ", "Lineer", "next step: "),
            id="a class that does not exist",
        ),
        pytest.param(
            {"checkpoint": ", key: model_state"},
            2,
            ("model_state", "next step: "),
            id="a key that is not in the file",
        ),
    ],
)
def test_a_start_that_fails_says_why_and_what_next(
    changes: dict[str, str], code: int, said: tuple[str, ...], tmp_path: Path
) -> None:
    done = run(tmp_path, "run", write_manifest(tmp_path, **changes), "--port", "0", "--once", "[[1, 2, 3]]")
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    for text in said:
        assert text in done.stderr


def test_a_checkpoint_that_is_not_there(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    (tmp_path / "model.pth").unlink()
    done = run(tmp_path, "run", manifest, "--port", "0")
    assert done.returncode == 2
    assert "CheckpointNotFound: " in done.stderr
    assert "next step: " in done.stderr


def test_a_source_that_is_away_can_be_tried_again_later(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    text = manifest.read_text().replace("file:model.pth", "http://127.0.0.1:1/model.pth")
    manifest.write_text(text)
    done = run(tmp_path, "run", manifest, "--port", "0")
    assert done.returncode == 3, done.stderr
    assert "FetchFailed: " in done.stderr


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        started_s = time.monotonic()
        done = run(tmp_path, "run", write_manifest(tmp_path), "--port", port)
    assert done.returncode == 2
    assert f"cannot serve on 127.0.0.1:{port}: Address already in use; choose another with --port" in done.stderr
    assert time.monotonic() - started_s < 5


GRPC = "  serving: {grpc: {enabled: true}}\n"


@pytest.mark.parametrize(
    ("rest", "options", "said"),
    [
        pytest.param("", ("--grpc-port", "0"), "--grpc-port has no effect without", id="gRPC is not enabled"),
        pytest.param(
            GRPC, ("--grpc-port", "TAKEN"), "already in use; choose another with --grpc-port", id="it is taken"
        ),
        pytest.param(
            GRPC, ("--port", "FREE", "--grpc-port", "FREE"), "--port and --grpc-port are both", id="it is HTTP's"
        ),
    ],
)
def test_a_grpc_port_that_cannot_be_is_said_before_anything_is_loaded(
    rest: str, options: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    with socket.socket() as taken, socket.socket() as free:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        free.bind(("127.0.0.1", 0))
        ports = {"TAKEN": str(taken.getsockname()[1]), "FREE": str(free.getsockname()[1])}
        free.close()
        manifest = write_manifest(tmp_path, rest=rest)
        given = [ports.get(option, option) for option in options]
        done = run(tmp_path, "run", manifest, *(given if "--port" in given else ["--port", "0", *given]))
    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_manifest_with_mistakes_is_not_run(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, rest="  replicas: -1\n  gpu: 1\n")
    done = run(tmp_path, "run", manifest)
    assert done.returncode == 2
    assert f"{manifest}:10: spec.replicas: got -1, must be 0 to 1000" in done.stderr
    assert f"{manifest}:11: spec.gpu: unknown field" in done.stderr


def test_what_has_no_effect_here_is_said_in_one_line(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path, rest="  replicas: 3\n  resources: {gpu: {count: 1}}\n")
    done = run(tmp_path, "run", manifest, "--port", "0", "--once", "{broken")
    assert "no effect on this machine: replicas, resources.gpu\n" in done.stderr
    assert done.returncode == 2
    assert "the argument is not JSON" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("run",), 2), (("run", "a.yaml", "--port", "x"), 2), (("--help",), 0), (("version",), 0)],
)
def test_bad_use_exits_with_2(arguments: tuple[str, ...], code: int, tmp_path: Path) -> None:
    done = run(tmp_path, *arguments)
    assert done.returncode == code
    assert (done.stdout + done.stderr).strip()


@pytest.mark.parametrize("command", ["run", "predict", "validate"])
def test_help_has_examples_and_needs_neither_torch_nor_kopf(command: str, tmp_path: Path) -> None:
    assert "examples:\n  torchmodel " in run(tmp_path, command, "--help").stdout
    code = (
        "import sys, contextlib, io\nfrom torchmodel_cli.__main__ import main\n"
        f"with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(['{command}', '--help'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'kopf', 'aiohttp', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_validate_needs_no_torch(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path)
    code = (
        "import sys\nfrom torchmodel_cli.__main__ import main\n"
        f"code = main(['validate', {str(manifest)!r}])\n"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'kopf', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_bucket_is_read_with_the_environments_credentials_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(tmp_path)
    content = (tmp_path / "model.pth").read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    text = manifest.read_text().replace('"file:model.pth"', f'"s3://models/linear.pth", sha256: "{digest}"')
    with S3Server(tmp_path / "s3") as s3:
        s3.upload("models", "linear.pth", content)
        manifest.write_text(text)
        monkeypatch.setenv("AWS_ENDPOINT_URL", s3.endpoint)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        refused = run(tmp_path, "run", manifest, "--port", "0")
        assert refused.returncode == 2, refused.stderr
        assert "next step: " in refused.stderr
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3.secret_key)
        first = run(tmp_path, "run", manifest, "--port", "0", "--once", "[[1, 2, 3]]")
        assert first.returncode == 0, first.stderr
        assert f"sha256 {digest} (verified)" in first.stderr
    again = run(tmp_path, "run", manifest, "--port", "0", "--once", "[[1, 2, 3]]")
    assert again.returncode == 0, again.stderr
    assert "from the cache" in again.stderr, "the server is gone, the cache has the bytes"
    assert again.stdout == first.stdout
