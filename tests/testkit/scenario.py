"""What the end-to-end tests do again and again: apply a model, wait for what its status says, ask it, probe it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from cluster.cluster import NODE_ADDRESS, Background, Cluster

ROOT = Path(__file__).parents[2]
NAMESPACE = "models"
EXAMPLES = ("linear", "image", "text", "speech")
S3_PORT = 8333
Json = dict[str, Any]


def image_values(built: dict[str, str]) -> Json:
    """The chart's values for images as the cluster's registry names them."""

    def reference(image: str) -> Json:
        repository, _, tag = image.rpartition(":")
        return {"repository": repository, "tag": tag}

    return {"image": reference(built["operator"]), "runtimeImage": reference(built["runtime"])}


def prepare_examples() -> None:
    """Run the examples' own prepare scripts."""
    for name in EXAMPLES:
        subprocess.run([sys.executable, ROOT / "examples" / name / "prepare.py"], check=True, cwd=ROOT)


def start_store(cluster: Cluster, folder: Path, namespace: str) -> Background:
    """A real S3 server that checks signatures, at the node's address, with the examples' checkpoints in it, and the Secret
    s3-read in the namespace. The server runs until it is stopped or the cluster ends.
    """
    keys = {"access": "reader", "secret": "secret-of-the-reader"}
    uploads = [f"--upload={ROOT}/examples/{name}/{file}={name}/{file}" for name, file in CHECKPOINTS.items()]
    argv = [sys.executable, "-m", "testkit.s3_server", "--host", NODE_ADDRESS, "--port", str(S3_PORT)]
    argv += ["--data", str(folder), f"--access-key={keys['access']}", f"--secret-key={keys['secret']}", *uploads]
    log = folder / "server.log"
    server = cluster.start(argv, log=log, env={"PYTHONPATH": str(ROOT / "tests")})
    wait_for(lambda: "endpoint" in log.read_text() or not server.is_running(), 90, f"the S3 server is ready, see {log}")
    if not server.is_running():
        raise AssertionError(log.read_text())
    values = {
        "AWS_ACCESS_KEY_ID": keys["access"],
        "AWS_SECRET_ACCESS_KEY": keys["secret"],
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{NODE_ADDRESS}:{S3_PORT}",
    }
    secret = {"metadata": {"name": "s3-read", "namespace": namespace}, "stringData": values}
    cluster.apply({"apiVersion": "v1", "kind": "Secret", **secret})
    return server


CHECKPOINTS = {"linear": "model.pth", "image": "model.pth", "text": "model/", "speech": "model.safetensors"}


def example(name: str) -> Json:
    """The example's own manifest with the one change its page tells for a cluster: the checkpoint's address."""
    text = (ROOT / "examples" / name / "torchmodel.yaml").read_text()
    model: Json = yaml.safe_load(text.replace("uri: file:", f"uri: s3://models/{name}/"))
    model["metadata"]["namespace"] = NAMESPACE
    model["spec"]["checkpoint"]["credentials"] = {"secretName": "s3-read"}
    return model


def apply_example(cluster: Cluster, name: str, as_name: str, change: Callable[[Json], None] = lambda _: None) -> None:
    """kubectl apply of an example under a name of its own, changed by `change`. Raises ClusterError when it is refused."""
    model = example(name)
    model["metadata"]["name"] = as_name
    change(model)
    cluster.kubectl("apply", "-f", "-", input=json.dumps(model))


def status(cluster: Cluster, name: str) -> Json:
    """The model's status."""
    found: Json = cluster.get("torchmodel", name, "-n", NAMESPACE).get("status", {})
    return found


def condition(cluster: Cluster, name: str, kind: str) -> Json:
    """One condition of the model, with the status's observedGeneration; {} while it is absent."""
    return next((item for item in status(cluster, name).get("conditions", []) if item["type"] == kind), {})


def wait_ready(cluster: Cluster, name: str, timeout_s: float = 300) -> None:
    """As a user waits; on a time-out the error holds what kubectl describe shows."""
    options = ["--for=condition=Ready", f"torchmodel/{name}", "-n", NAMESPACE, f"--timeout={timeout_s:.0f}s"]
    done = cluster.run(["kubectl", "wait", *options], check=False, timeout_s=timeout_s + 30)
    if done.returncode != 0:
        described = cluster.kubectl("describe", "torchmodel", name, "-n", NAMESPACE, check=False)
        pods = cluster.kubectl(
            "describe", "pods", "-n", NAMESPACE, "-l", f"serving.torchmodel.dev/model={name}", check=False
        )
        raise AssertionError(f"{name} did not become Ready: {done.stderr}\n{described}\n{pods}")


def wait_for(check: Callable[[], object], timeout_s: float, what: str) -> Any:
    """Ask until the answer is truthy, and return it; AssertionError with the last answer after timeout_s."""
    deadline = time.monotonic() + timeout_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {timeout_s:.0f} s still not so: {what}; last answer: {answer!r}")
        time.sleep(0.5)
    return answer


def url(cluster: Cluster, name: str) -> str:
    """Address of the model's Service, by number: the node itself does not use the cluster's DNS."""
    return f"http://{cluster.get('service', name, '-n', NAMESPACE)['spec']['clusterIP']}"


LINEAR_REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 10], "data": [0.1 * i for i in range(10)]}]}


@contextlib.contextmanager
def probing(cluster: Cluster, name: str, rate: float = 50, seconds: float = 240) -> Iterator[Json]:
    """Ask the model at a steady rate for as long as the block runs; afterwards the yielded dict holds the prober's result."""
    result: Json = {}
    with tempfile.TemporaryDirectory() as folder:
        body, out = Path(folder) / "body.json", Path(folder) / "out.json"
        body.write_text(json.dumps(LINEAR_REQUEST))
        target = f"{url(cluster, name)}/v2/models/{name}/infer"
        argv = [sys.executable, ROOT / "tests/testkit/prober.py", "--url", target, "--body", body, "--out", out]
        with cluster.start([*argv, "--rate", str(rate), "--seconds", str(seconds)]) as prober:
            time.sleep(1)  # some answers before the change begins
            yield result
            time.sleep(1)
            os.killpg(prober.process.pid, signal.SIGTERM)  # the group: nsenter passes no signal on
            wait_for(out.exists, 60, "the prober has written its result")
            result |= json.loads(out.read_text())
