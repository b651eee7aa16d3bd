"""The children of a TorchModel as manifests: pure builders; `reconcile` gets them through `desired_objects`.

`revision_of` and `applied_hash_of` stand beside it and read back what it wrote. Nothing here reads the cluster. The same
model and image always give the same bytes, so that the hash on each child tells whether there is anything to write, across
restarts of the operator as well.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import msgspec
from torchmodel_runtime.config import (
    FETCH_CONFIG_VARIABLE,
    GRPC_PORT,
    HTTP_PORT,
    SERVER_CONFIG_VARIABLE,
    CodeFile,
    Document,
    FetchConfig,
    ServerConfig,
)
from torchmodel_runtime.config import Architecture as RuntimeArchitecture

from torchmodel_operator import names
from torchmodel_operator.spec import API_VERSION, KIND, ComputeResources, Model, TorchModelSpec

Manifest = dict[str, Any]

USER_ID = 65532
"""The image's unprivileged user: `nonroot` of the distroless images. Any number that is not 0 would do."""
STARTUP_PROBE_PERIOD_S = 2
"""A model is ready at most this long after it could be; less would only fill the node's logs."""
ENDPOINT_REMOVAL_S = 5
"""How long a stopping replica still takes requests, so that every proxy has stopped sending them. A guess with margin:
endpoint changes reach kube-proxy in about a second."""
TERMINATION_MARGIN_S = 10
"""Beyond the drain timeout, for the server to close and exit by itself."""
PROGRESS_MARGIN_S = 60
"""Beyond the startup timeout, for scheduling and pulling the image, before a rollout counts as stuck."""
GRPC_APP_PROTOCOL = "kubernetes.io/h2c"
"""HTTP/2 in clear text, for proxies that would otherwise guess. Source: Kubernetes, Service, "Application protocol"."""
REVISIONS_KEPT = 2
"""Old ReplicaSets kept for `kubectl rollout undo`; each is an object in etcd."""


def desired_objects(model: Model, runtime_image: str) -> tuple[Manifest, ...]:
    """Every child the model should have, in the order they are applied: what pods refer to comes first."""
    children = [make_service_account(model), make_service(model), make_deployment(model, runtime_image)]
    if model.spec.replicas > 1:
        children.append(make_pod_disruption_budget(model))
    return tuple(_sealed(child) for child in children)


def make_service_account(model: Model) -> Manifest:
    """The identity of the model's pods; it has no rights and its token is mounted nowhere."""
    return {**_head(model, "v1", "ServiceAccount"), "automountServiceAccountToken": False}


def make_service(model: Model) -> Manifest:
    """The address of the model inside the cluster, status.url; gRPC beside it where it is enabled."""
    ports = [{"name": names.PORT_NAME, "port": 80, "protocol": "TCP", "targetPort": names.PORT_NAME}]
    if model.spec.serving.grpc.enabled:
        ports.append(
            {
                "name": names.GRPC_PORT_NAME,
                "port": GRPC_PORT,
                "protocol": "TCP",
                "targetPort": names.GRPC_PORT_NAME,
                "appProtocol": GRPC_APP_PROTOCOL,
            }
        )
    spec = {"type": "ClusterIP", "selector": names.selector_labels(model.name), "ports": ports}
    return {**_head(model, "v1", "Service"), "spec": spec}


def make_pod_disruption_budget(model: Model) -> Manifest:
    """Lets a node drain take one replica at a time; replicas that are not ready never block a drain."""
    spec = {
        "maxUnavailable": 1,
        "selector": {"matchLabels": names.selector_labels(model.name)},
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
    }
    return {**_head(model, "policy/v1", "PodDisruptionBudget"), "spec": spec}


def make_deployment(model: Model, runtime_image: str) -> Manifest:
    """The replicas. A new revision replaces an old replica only once its own is ready."""
    template = make_pod_template(model, runtime_image)
    spec = {
        "replicas": model.spec.replicas,
        "selector": {"matchLabels": names.selector_labels(model.name)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "progressDeadlineSeconds": model.spec.serving.startup_timeout_seconds + PROGRESS_MARGIN_S,
        "revisionHistoryLimit": REVISIONS_KEPT,
        "template": template,
    }
    return {**_head(model, "apps/v1", "Deployment"), "spec": spec}


def make_pod_template(model: Model, runtime_image: str) -> Manifest:
    """One replica: the fetcher brings the checkpoint, then the server loads it. Passes Pod Security "restricted"."""
    spec = model.spec
    image = {"image": spec.image.name or runtime_image, "imagePullPolicy": spec.image.pull_policy}
    pod = {
        "serviceAccountName": names.workload_name(model.name),
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": (
            ENDPOINT_REMOVAL_S + spec.serving.drain_timeout_seconds + TERMINATION_MARGIN_S
        ),
        "initContainers": [_make_fetcher(spec, image)],
        "containers": [_make_server(model, image)],
        "volumes": _make_volumes(spec),
        "tolerations": _make_tolerations(spec),
    }
    if spec.scheduling.node_selector:
        pod["nodeSelector"] = dict(spec.scheduling.node_selector)
    if spec.image.pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in spec.image.pull_secrets]
    labels = names.owner_labels(model.name)
    revision = _digest({"metadata": {"labels": labels}, "spec": pod})[:10]
    return {"metadata": {"labels": {**labels, names.LABEL_REVISION: revision}}, "spec": pod}


def revision_of(deployment: Manifest) -> str:
    """The revision that a Deployment of `make_deployment` wants its pods to be."""
    return str(deployment["spec"]["template"]["metadata"]["labels"][names.LABEL_REVISION])


def applied_hash_of(manifest: Manifest) -> str:
    """The hash that `desired_objects` put on a manifest, or the API server gave back with an object; empty without."""
    return str(manifest["metadata"].get("annotations", {}).get(names.ANNOTATION_APPLIED_HASH, ""))


def make_server_config(model: Model) -> ServerConfig:
    """What the server is told."""
    spec = model.spec
    return ServerConfig(
        name=model.name,
        checkpoint_folder=names.PATH_CHECKPOINT,
        checkpoint_format=spec.checkpoint.format,
        checkpoint_key=spec.checkpoint.key,
        architecture=RuntimeArchitecture(entrypoint=spec.architecture.entrypoint, kwargs=spec.architecture.kwargs),
        code=_make_code_file(spec),
        task=spec.task,
        signature=spec.signature,
        serving=spec.serving,
        security=spec.security,
        port=HTTP_PORT,
        grpc_port=GRPC_PORT,
        drain_delay_seconds=ENDPOINT_REMOVAL_S,
    )


def make_fetch_config(spec: TorchModelSpec) -> FetchConfig:
    """What the fetcher is told."""
    return FetchConfig(
        uri=spec.checkpoint.uri,
        sha256=spec.checkpoint.sha256,
        destination=names.PATH_CHECKPOINT,
        credentials=names.PATH_CREDENTIALS if spec.checkpoint.credentials else None,
    )


def _head(model: Model, api_version: str, kind: str) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": names.workload_name(model.name),
            "namespace": model.namespace,
            "labels": names.owner_labels(model.name),
            "annotations": {},
            "ownerReferences": [
                {
                    "apiVersion": API_VERSION,
                    "kind": KIND,
                    "name": model.name,
                    "uid": model.uid,
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ],
        },
    }


def _make_fetcher(spec: TorchModelSpec, image: Manifest) -> Manifest:
    mounts: list[Manifest] = [
        {"name": names.VOLUME_CHECKPOINT, "mountPath": names.PATH_CHECKPOINT},
        {"name": names.VOLUME_TMP, "mountPath": "/tmp"},  # noqa: S108  the pod's own
    ]
    if spec.checkpoint.credentials:
        mounts.append({"name": names.VOLUME_CREDENTIALS, "mountPath": names.PATH_CREDENTIALS, "readOnly": True})
    return {
        "name": names.CONTAINER_FETCHER,
        **image,
        "command": ["python", "-m", "torchmodel_runtime.fetch"],
        "env": [_make_variable(FETCH_CONFIG_VARIABLE, make_fetch_config(spec)), _HOME],
        "resources": _make_resources(spec, has_gpu=False),
        "securityContext": _CONTAINER_SECURITY,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _make_server(model: Model, image: Manifest) -> Manifest:
    spec = model.spec
    mounts: list[Manifest] = [
        {"name": names.VOLUME_CHECKPOINT, "mountPath": names.PATH_CHECKPOINT, "readOnly": True},
        {"name": names.VOLUME_TMP, "mountPath": "/tmp"},  # noqa: S108  the pod's own
    ]
    if spec.architecture.source and spec.architecture.source.config_map:
        mounts.append({"name": names.VOLUME_CODE, "mountPath": names.PATH_CODE, "readOnly": True})
    ready = {"path": "/v2/health/ready", "port": names.PORT_NAME}
    return {
        "name": names.CONTAINER_SERVER,
        **image,
        "command": ["python", "-m", "torchmodel_runtime"],
        "env": [_make_variable(SERVER_CONFIG_VARIABLE, make_server_config(model)), _HOME],
        "ports": _make_container_ports(spec),
        "resources": _make_resources(spec, has_gpu=True),
        "securityContext": _CONTAINER_SECURITY,
        "startupProbe": {
            "httpGet": ready,
            "periodSeconds": STARTUP_PROBE_PERIOD_S,
            "timeoutSeconds": STARTUP_PROBE_PERIOD_S,
            "failureThreshold": math.ceil(spec.serving.startup_timeout_seconds / STARTUP_PROBE_PERIOD_S),
        },
        "readinessProbe": {"httpGet": ready, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 2},
        "livenessProbe": {
            "httpGet": {"path": "/v2/health/live", "port": names.PORT_NAME},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        # The server writes why it ended; a hard crash cannot, and then the last log lines are shown instead.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _make_container_ports(spec: TorchModelSpec) -> list[Manifest]:
    ports: list[Manifest] = [{"name": names.PORT_NAME, "containerPort": HTTP_PORT, "protocol": "TCP"}]
    if spec.serving.grpc.enabled:
        ports.append({"name": names.GRPC_PORT_NAME, "containerPort": GRPC_PORT, "protocol": "TCP"})
    return ports


_HOME = {"name": "HOME", "value": "/tmp"}  # noqa: S108
"""The image may not know our user id, and torch's caches ask for a home that can be written."""

_CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _make_variable(name: str, document: Document) -> Manifest:
    """A document as JSON in a variable, written so that the kubelet finds no `$(NAME)` and no `$$` to replace in it.

    Source: Kubernetes, "Define dependent environment variables"; a `$` stands only inside JSON strings.
    """
    text = msgspec.json.encode(document, order="deterministic").decode()
    return {"name": name, "value": text.replace("$", "\\u0024")}


def _make_code_file(spec: TorchModelSpec) -> CodeFile | None:
    source = spec.architecture.source
    if source is None:
        return None
    if source.config_map:
        return CodeFile(path=f"{names.PATH_CODE}/{source.config_map.key}")
    return CodeFile(inline=source.inline)


def _make_volumes(spec: TorchModelSpec) -> list[Manifest]:
    volumes: list[Manifest] = [
        {"name": names.VOLUME_CHECKPOINT, "emptyDir": {}},
        {"name": names.VOLUME_TMP, "emptyDir": {}},
    ]
    if spec.checkpoint.credentials:
        secret = {"secretName": spec.checkpoint.credentials.secret_name, "defaultMode": 0o440}
        volumes.append({"name": names.VOLUME_CREDENTIALS, "secret": secret})
    source = spec.architecture.source
    if source and source.config_map:
        key = source.config_map.key
        items = [{"key": key, "path": key}]  # named, so that a missing key is an error instead of an empty folder
        volumes.append({"name": names.VOLUME_CODE, "configMap": {"name": source.config_map.name, "items": items}})
    return volumes


def _make_resources(spec: TorchModelSpec, *, has_gpu: bool) -> Manifest:
    gpu = {spec.resources.gpu.resource: str(spec.resources.gpu.count)} if has_gpu and spec.resources.gpu.count else {}
    parts = {
        "requests": {**_quantities(spec.resources.requests), **gpu},
        "limits": {**_quantities(spec.resources.limits), **gpu},
    }
    return {name: part for name, part in parts.items() if part}


def _quantities(resources: ComputeResources) -> Manifest:
    quantities = {
        "cpu": resources.cpu,
        "memory": resources.memory,
        "ephemeral-storage": resources.ephemeral_storage,
    }
    return {name: str(quantity) for name, quantity in quantities.items() if quantity is not None}


def _make_tolerations(spec: TorchModelSpec) -> list[Manifest]:
    given = [
        {name: value for name, value in msgspec.to_builtins(toleration).items() if value not in ("", None)}
        for toleration in spec.scheduling.tolerations
    ]
    if not spec.resources.gpu.count:
        return given
    return [*given, {"key": spec.resources.gpu.resource, "operator": "Exists", "effect": "NoSchedule"}]


def _sealed(manifest: Manifest) -> Manifest:
    annotations = {names.ANNOTATION_APPLIED_HASH: _digest(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(manifest, order="sorted")).hexdigest()[:32]
