"""Every name the operator gives: children, labels, annotations, field managers, condition types and reasons.

A reason is one stable word that people may match on; its comment says when it is used. No I/O.
"""

from __future__ import annotations

OPERATOR = "torchmodel-operator"

LABEL_NAME = "app.kubernetes.io/name"
LABEL_INSTANCE = "app.kubernetes.io/instance"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
CHILD_SELECTOR = f"{LABEL_MANAGED_BY}={OPERATOR}"
"""Only the children and pods that it matches are listed and watched; `owner_labels` sees to it that all of ours are."""
LABEL_MODEL = "serving.torchmodel.dev/model"
LABEL_REVISION = "serving.torchmodel.dev/revision"
"""Hash of the pod template, on its pods: tells the newest revision's pods without watching ReplicaSets."""
ANNOTATION_APPLIED_HASH = "serving.torchmodel.dev/applied-hash"
"""Hash of the manifest as the operator last applied it: equal means there is nothing to write."""

MANAGER_CHILDREN = OPERATOR
MANAGER_STATUS = f"{OPERATOR}-status"
"""Field managers of server-side apply; one for each document the operator owns a part of."""

LEASE = OPERATOR
"""Name of the Lease that the leading operator replica holds, in the operator's own namespace."""

CONTAINER_SERVER = "server"
CONTAINER_FETCHER = "fetcher"
PORT_NAME = "http"
GRPC_PORT_NAME = "grpc"
VOLUME_CHECKPOINT = "checkpoint"
VOLUME_TMP = "tmp"
VOLUME_CREDENTIALS = "credentials"
VOLUME_CODE = "code"
PATH_CHECKPOINT = "/models"
PATH_CREDENTIALS = "/var/run/torchmodel/credentials"
PATH_CODE = "/var/run/torchmodel/code"

CONDITION_READY = "Ready"
CONDITION_RECONCILING = "Reconciling"
CONDITION_STALLED = "Stalled"

# Ready=True
REASON_SERVING = "Serving"  # every replica of the newest revision answers
# Reconciling=True: on its way, or retried by itself
REASON_ROLLOUT = "RolloutInProgress"  # replicas are starting, or an old revision is being replaced
REASON_SCHEDULING = "Scheduling"  # a pod waits for a node, for less than the grace time
REASON_KUBE_API = "KubernetesApiError"  # the API server refused or did not answer; tried again
# Ready=False, settled
REASON_SCALED_TO_ZERO = "ScaledToZero"  # spec.replicas is 0
REASON_SETTLED = "Settled"  # Reconciling and Stalled are False
# Stalled=True: nothing will change until somebody does something; the message says what
REASON_INVALID_SPEC = "InvalidSpec"
REASON_UNSCHEDULABLE = "Unschedulable"
REASON_IMAGE_PULL = "ImagePullFailed"
REASON_CONTAINER_CONFIG = "ContainerConfigInvalid"  # a Secret or ConfigMap that the pod names is not there
REASON_CRASHED = "RuntimeCrashed"  # the container ended without saying why
REASON_OUT_OF_MEMORY = "OutOfMemory"
REASON_REFUSED = "ChildRefused"  # the API server does not take an object: quota, Pod Security, an admission policy
REASON_NAME_TAKEN = "NameTaken"  # an object of the child's name exists and belongs to somebody else
REASON_START_TIMEOUT = "StartTimedOut"
# A fetcher's or server's own Failure.reason (torchmodel_runtime.config) is used as it is.


def workload_name(model: str) -> str:
    """Name of the model's Deployment, Service, PodDisruptionBudget and ServiceAccount."""
    return model


def owner_labels(model: str) -> dict[str, str]:
    """Labels of every child; the operator watches nothing that lacks them."""
    return {LABEL_NAME: "torchmodel", LABEL_INSTANCE: model, LABEL_MANAGED_BY: OPERATOR, LABEL_MODEL: model}


def selector_labels(model: str) -> dict[str, str]:
    """Labels that select the replicas; immutable in a Deployment, so never more than this."""
    return {LABEL_MODEL: model}


def model_selector(model: str) -> str:
    """`selector_labels` as kubectl and the scale subresource write it."""
    return ",".join(f"{key}={value}" for key, value in selector_labels(model).items())


def model_url(model: str, namespace: str) -> str:
    """Address inside the cluster."""
    return f"http://{workload_name(model)}.{namespace}.svc"
