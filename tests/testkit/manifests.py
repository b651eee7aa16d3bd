"""Builders for the operator's tests: a TorchModel that is as it should be, changed by what a test is about."""

from __future__ import annotations

import copy
from typing import Any

from torchmodel_operator import names
from torchmodel_operator.spec import API_VERSION, KIND, Model, parse_model

Body = dict[str, Any]
REMOVED = object()
"""As the value of a change: the field is not there."""

DIGEST = "5793" + "0" * 60
CREATED = "2026-01-01T00:00:00Z"
CREATED_S = 1767225600.0

SPEC: Body = {
    "checkpoint": {"uri": "s3://models/flowers.pth"},
    "architecture": {"entrypoint": "torch.nn:Linear", "kwargs": {"in_features": 10, "out_features": 1}},
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, 1]}],
    },
}


def a_model(name: str = "flowers", namespace: str = "default", **spec: Any) -> Body:
    """A TorchModel manifest; `spec` fields are merged into a spec that is valid."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": merged(SPEC, spec),
    }


def a_stored_model(name: str = "flowers", namespace: str = "default", uid: str = "uid-model", **spec: Any) -> Body:
    """The same as the API server gives it back."""
    body = a_model(name, namespace, **spec)
    body["metadata"] |= {"uid": uid, "generation": 1, "resourceVersion": "1", "creationTimestamp": CREATED}
    return body


def a_parsed_model(name: str = "flowers", **spec: Any) -> Model:
    """The same, parsed."""
    return parse_model(a_stored_model(name, **spec))


def a_pod(
    name: str = "flowers-1",
    *,
    model: str = "flowers",
    revision: str = "r1",
    created: str = CREATED,
    phase: str = "Pending",
    is_ready: bool = False,
    is_scheduled: bool = True,
    unschedulable: str = "",
    fetcher: Body | None = None,
    server: Body | None = None,
    **status: Any,
) -> Body:
    """A replica as the API server gives it; `fetcher` and `server` are states, or whole container statuses."""
    conditions = [{"type": "Ready", "status": str(is_ready)}]
    if unschedulable:
        conditions.append(
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        )
    elif is_scheduled:
        conditions.append({"type": "PodScheduled", "status": "True"})
    given = {"phase": phase, "podIP": "10.0.0.1", "conditions": conditions, **status}
    if fetcher is not None:
        given["initContainerStatuses"] = [_container(names.CONTAINER_FETCHER, fetcher, is_ready=False)]
    if server is not None:
        given["containerStatuses"] = [_container(names.CONTAINER_SERVER, server, is_ready=is_ready)]
    labels = {**names.owner_labels(model), names.LABEL_REVISION: revision}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": f"uid-{name}",
            "resourceVersion": "5",
            "creationTimestamp": created,
            "labels": labels,
        },
        "spec": {"containers": [{"name": names.CONTAINER_SERVER, "image": "registry/runtime:1"}]},
        "status": given,
    }


def ended(exit_code: int, message: str = "", reason: str = "Error", ran_s: int = 1) -> Body:
    """The state of a container that ended."""
    finished = f"2026-01-01T{ran_s // 3600:02d}:{ran_s // 60 % 60:02d}:{ran_s % 60:02d}Z"
    terminated = {
        "exitCode": exit_code,
        "reason": reason,
        "message": message,
        "startedAt": CREATED,
        "finishedAt": finished,
    }
    return {"terminated": terminated}


def backing_off(last: Body) -> Body:
    """The status of a container that is restarted after it ended as `last` says."""
    return {"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}, "lastState": last}


def waiting(reason: str, message: str = "") -> Body:
    """The state of a container that waits."""
    return {"waiting": {"reason": reason, "message": message}}


DONE = ended(0, '{"uri": "..."}', "Completed")
RUNNING: Body = {"running": {"startedAt": CREATED}}


def merged(base: Body, changes: Body) -> Body:
    """`base` with `changes`, dicts within merged likewise."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        if value is REMOVED:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _container(name: str, given: Body, *, is_ready: bool) -> Body:
    status = given if "state" in given else {"state": given}
    return {"name": name, "ready": is_ready, "restartCount": 0, "image": "registry/runtime:1", **status}
