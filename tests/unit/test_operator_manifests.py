"""The children of a model: whole manifests against golden files, and what must hold for every spec."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from testkit.manifests import DIGEST, REMOVED, a_parsed_model
from torchmodel_operator import names
from torchmodel_operator.manifests import (
    applied_hash_of,
    desired_objects,
    make_fetch_config,
    make_server_config,
    revision_of,
)
from torchmodel_operator.rules import MAX_NAME_LENGTH
from torchmodel_operator.spec import Model

GOLDEN = Path(__file__).parent / "golden"
IMAGE = "registry/torchmodel-runtime:1"

CANONICAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "checkpoint": {"sha256": DIGEST, "credentials": {"secretName": "s3-read"}, "key": "state_dict"},
        "architecture": {
            "source": {"configMap": {"name": "flowers-code-v2", "key": "net.py"}},
            "entrypoint": "net:Net",
        },
        "image": {"name": "registry/own:2", "pullPolicy": "Always", "pullSecrets": ["registry"]},
        "replicas": 3,
        "resources": {
            "requests": {"cpu": 2, "memory": "4Gi"},
            "limits": {"memory": "4Gi", "ephemeral-storage": "10Gi"},
            "gpu": {"count": 2, "resource": "amd.com/gpu"},
        },
        "scheduling": {
            "nodeSelector": {"zone": "a"},
            "tolerations": [{"key": "team", "value": "ml", "effect": "NoExecute", "tolerationSeconds": 60}],
        },
        "serving": {"startupTimeoutSeconds": 601, "drainTimeoutSeconds": 90},
        "security": {"allowCodeExecution": True},
    },
    "grpc": {"serving": {"grpc": {"enabled": True, "maxMessageBytes": 1048576}}},
    "image-classification-inline-code": {
        "signature": REMOVED,
        "task": {"type": "image-classification", "imageClassification": {"labels": ["rose", "tulip"]}},
        "architecture": {"source": {"inline": "cost = '$(HOME) $$'\n"}, "entrypoint": "model:Net"},
        "security": {"allowCodeExecution": True},
    },
}


@pytest.mark.parametrize("case", CANONICAL)
def test_manifests_are_as_the_golden_file_says(case: str) -> None:
    """UPDATE_GOLDEN=1 writes the files anew; the diff is then for the reviewer."""
    text = yaml.safe_dump_all(desired_objects(a_parsed_model(**CANONICAL[case]), IMAGE), sort_keys=True, width=120)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(text)
    assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(file.read_text()))


def children_of(model: Model) -> dict[str, Any]:
    return {child["kind"]: child for child in desired_objects(model, IMAGE)}


def pod_of(model: Model) -> Any:
    return children_of(model)["Deployment"]["spec"]["template"]["spec"]


model_names = st.from_regex(r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$", fullmatch=True).filter(
    lambda n: len(n) <= MAX_NAME_LENGTH
)
models = st.builds(
    lambda name, replicas, gpus, credentials, drain: a_parsed_model(
        name,
        replicas=replicas,
        resources={"gpu": {"count": gpus}},
        checkpoint={"credentials": {"secretName": "s3"}} if credentials else {},
        serving={"drainTimeoutSeconds": drain},
    ),
    model_names,
    st.integers(0, 5),
    st.integers(0, 2),
    st.booleans(),
    st.integers(1, 3600),
)


@settings(max_examples=60, deadline=None)
@given(models)
def test_what_holds_for_every_model(model: Model) -> None:
    children = children_of(model)
    deployment, template = children["Deployment"], children["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    for selector in (deployment["spec"]["selector"]["matchLabels"], children["Service"]["spec"]["selector"]):
        assert selector.items() <= labels.items()
    for child in children.values():
        assert len(child["metadata"]["name"]) <= 63
        assert child["metadata"]["labels"].items() <= labels.items()
        (owner,) = child["metadata"]["ownerReferences"]
        assert owner["uid"] == model.uid
        assert owner["controller"]
        assert owner["blockOwnerDeletion"]
    assert all(len(value) <= 63 for value in labels.values())
    assert ("PodDisruptionBudget" in children) == (model.spec.replicas > 1)
    assert template["spec"]["terminationGracePeriodSeconds"] > model.spec.serving.drain_timeout_seconds + 5
    assert desired_objects(model, IMAGE) == desired_objects(model, IMAGE)


@settings(max_examples=30, deadline=None)
@given(models)
def test_pods_keep_to_pod_security_restricted(model: Model) -> None:
    pod = pod_of(model)
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod["automountServiceAccountToken"]
    for container in pod["initContainers"] + pod["containers"]:
        security = container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
    assert all(next(iter(volume.keys() - {"name"})) in ("emptyDir", "secret", "configMap") for volume in pod["volumes"])


def test_only_the_fetcher_sees_credentials() -> None:
    pod = pod_of(a_parsed_model(checkpoint={"credentials": {"secretName": "s3"}}))
    mounts = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in pod["initContainers"] + pod["containers"]}
    assert names.VOLUME_CREDENTIALS in mounts["fetcher"]
    assert names.VOLUME_CREDENTIALS not in mounts["server"]


def test_the_server_cannot_write_the_checkpoint() -> None:
    (server,) = pod_of(a_parsed_model())["containers"]
    assert {"name": "checkpoint", "mountPath": "/models", "readOnly": True} in server["volumeMounts"]


def test_only_the_server_gets_the_gpu_and_the_pod_tolerates_its_taint() -> None:
    pod = pod_of(a_parsed_model(resources={"gpu": {"count": 2}}))
    gpu = {"nvidia.com/gpu": "2"}
    assert pod["containers"][0]["resources"] == {"requests": gpu, "limits": gpu}
    assert pod["initContainers"][0]["resources"] == {}
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


@pytest.mark.parametrize("enabled", [True, False])
def test_grpc_has_its_port_on_pod_and_service_only_where_it_is_enabled(enabled: bool) -> None:
    children = children_of(a_parsed_model(serving={"grpc": {"enabled": enabled}}))
    (server,) = children["Deployment"]["spec"]["template"]["spec"]["containers"]
    container_ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    service_ports = {port["name"]: port["port"] for port in children["Service"]["spec"]["ports"]}
    assert container_ports == {"http": 8080} | ({"grpc": 8081} if enabled else {})
    assert service_ports == {"http": 80} | ({"grpc": 8081} if enabled else {})


def test_both_containers_can_write_their_tmp_and_nothing_else_of_the_image() -> None:
    """Sibling processes of the server have their sockets there."""
    pod = pod_of(a_parsed_model())
    assert {"name": "tmp", "emptyDir": {}} in pod["volumes"]
    for container in pod["initContainers"] + pod["containers"]:
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert {"name": "HOME", "value": "/tmp"} in container["env"]


def test_the_kubelet_finds_nothing_to_expand_in_the_documents() -> None:
    code = "price = '$(HOME) $$ $'"
    model = a_parsed_model(
        architecture={"source": {"inline": code}, "entrypoint": "model:Net"}, security={"allowCodeExecution": True}
    )
    (server,) = pod_of(model)["containers"]
    text = next(variable["value"] for variable in server["env"] if variable["name"] == "TORCHMODEL_SERVER_CONFIG")
    assert "$" not in text
    assert json.loads(text)["code"]["inline"] == code


def test_documents_are_what_the_runtime_reads() -> None:
    model = a_parsed_model(**CANONICAL["everything"])
    server, fetch = make_server_config(model), make_fetch_config(model.spec)
    assert server.checkpoint_folder == fetch.destination == "/models"
    assert server.code is not None
    assert server.code.path == "/var/run/torchmodel/code/net.py"
    assert fetch.credentials == "/var/run/torchmodel/credentials"


@pytest.mark.parametrize(
    ("changes", "is_new_revision"),
    [
        pytest.param({"replicas": 2}, False, id="scaling starts no new revision"),
        pytest.param({"checkpoint": {"sha256": DIGEST}}, True, id="another digest does"),
        pytest.param({"serving": {"batching": {"maxSize": 8}}}, True, id="another batch size does"),
        pytest.param({"serving": {"grpc": {"enabled": True}}}, True, id="gRPC does"),
    ],
)
def test_revisions(changes: dict[str, Any], is_new_revision: bool) -> None:
    before, after = (children_of(model)["Deployment"] for model in (a_parsed_model(), a_parsed_model(**changes)))
    assert (revision_of(before) != revision_of(after)) is is_new_revision
    assert applied_hash_of(before) != applied_hash_of(after)
