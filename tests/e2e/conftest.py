"""One real cluster for the whole run: images from the Dockerfile, the operator by Helm, an S3 server, the examples' files.

The cluster stays up after the run (it is quick to reuse); `make cluster-down` ends it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from cluster import images
from cluster.cluster import Background, Cluster, up
from testkit.scenario import NAMESPACE, apply_example, image_values, prepare_examples, start_store, wait_ready


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        reason = "the end-to-end tests need root on Linux: they make a cluster in namespaces of their own"
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def built() -> dict[str, str]:
    """The images, built from the Dockerfile and pushed to the cluster's registry."""
    return images.build_all()


@pytest.fixture(scope="session")
def cluster(built: dict[str, str]) -> Cluster:
    """The cluster with a freshly installed operator and an empty namespace that enforces Pod Security `restricted`."""
    cluster = up()
    cluster.advertise_gpus(0)
    cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    cluster.install_operator(image_values(built) | {"allowCodeExecution": True})
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})
    return cluster


@pytest.fixture(scope="session")
def s3(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Background]:
    """The examples' checkpoints in a real S3 server, and its Secret s3-read."""
    prepare_examples()
    with start_store(cluster, tmp_path_factory.mktemp("s3"), NAMESPACE) as server:
        yield server


@pytest.fixture(scope="session")
def linear(cluster: Cluster, s3: Background) -> str:
    """The linear example, served for the whole run: the neighbour that nothing may disturb. Gives its name."""
    apply_example(cluster, "linear", "linear")
    wait_ready(cluster, "linear")
    return "linear"
