"""Each example, applied as its page says, answers through its Service with the numbers of torch in process (1e-5)."""

import sys

import pytest
from cluster.cluster import Cluster
from testkit.scenario import EXAMPLES, NAMESPACE, ROOT, apply_example, status, url, wait_ready


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_answers_like_torch(cluster: Cluster, s3: object, built: dict[str, str], name: str) -> None:
    def with_its_image(model: dict) -> None:
        if name == "image":  # the class is in an image built from the runtime's, as the example's page says
            model["spec"]["image"] = {"name": built["efficientnet"]}

    apply_example(cluster, name, name, with_its_image)
    wait_ready(cluster, name)
    done = cluster.run(
        [sys.executable, ROOT / "examples" / name / "compare.py", "--url", url(cluster, name)], check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)


@pytest.mark.parametrize("name", EXAMPLES)
def test_status_tells_what_serves(cluster: Cluster, s3: object, name: str) -> None:
    seen = status(cluster, name)
    assert seen["url"] == f"http://{name}.{NAMESPACE}.svc"
    assert len(seen["checkpoint"]["sha256"]) == 64
    assert seen["checkpoint"]["shortSha256"] == seen["checkpoint"]["sha256"][:12]
    assert seen["loadSafety"] == ("code" if name == "speech" else "weights-only")
    assert seen["readyReplicas"] == 1
    assert seen["coldStart"]["importSeconds"] > 0
    columns = cluster.kubectl("get", "tm", name, "-n", NAMESPACE)
    assert "True" in columns
    assert seen["checkpoint"]["shortSha256"] in columns
