"""Plays the nodes of a ControlPlane: binds pods to a fake node and moves their status as a kubelet would, told by the test.

What becomes of a pod is a `Fate`, chosen by the callback `fate_of` (from the whole pod) or, without one, by annotations on
the pod (see `fate_from_annotations`). Terminating pods are deleted. Nothing runs, so a pod's address answers nobody.
"""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import threading
import time
from collections.abc import Callable, Mapping
from http.client import HTTPException
from typing import Any

from testkit.control_plane import Api, ApiError

Pod = Mapping[str, Any]
PREFIX = "fake-kubelet.test/"


@dataclasses.dataclass(frozen=True)
class Fate:
    """What becomes of a pod. Without any of the failures all its containers run and are ready after `ready_after_s`."""

    ready_after_s: float | None = 0.0  # None: runs, but is never ready
    unschedulable: str = ""  # the scheduler's message, e.g. "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    image_pull_error: str = (
        ""  # the kubelet's message; the reason is ErrImagePull first, ImagePullBackOff after a second
    )
    init_exit_code: int = 0  # of the init container named below: it fails and is restarted for ever
    init_message: str = ""  # its termination message, also when it succeeds
    init_container: str = "fetcher"
    crash_exit_code: int | None = None  # of the container named below: it crashes and is in CrashLoopBackOff
    crash_reason: str = "Error"  # or OOMKilled
    crash_message: str = ""  # its termination message
    crash_container: str = "server"


def fate_from_annotations(pod: Pod) -> Fate:
    """Read `fake-kubelet.test/FIELD` annotations, with the field names of Fate; "never" is None for ready_after_s."""
    given = {
        key.removeprefix(PREFIX): value
        for key, value in pod["metadata"].get("annotations", {}).items()
        if key.startswith(PREFIX)
    }
    unknown = given.keys() - {field.name for field in dataclasses.fields(Fate)}
    if unknown:
        raise ValueError(f"pod {pod['metadata']['name']}: no such field of Fate: {', '.join(sorted(unknown))}")
    values: dict[str, Any] = dict(given)
    for name in ("init_exit_code", "crash_exit_code"):
        if name in values:
            values[name] = int(values[name])
    if "ready_after_s" in values:
        values["ready_after_s"] = None if values["ready_after_s"] == "never" else float(values["ready_after_s"])
    return Fate(**values)


class FakeKubelet:
    """A thread that polls all pods from `with` (or `start()`) to `stop()`; an error in it is raised by `stop()`.

    `fate_of` may be replaced at any time: pods that run follow it. Outages of the API server are waited out.
    """

    def __init__(
        self,
        api: Api,
        fate_of: Callable[[Pod], Fate] = fate_from_annotations,
        *,
        node: str = "node0",
        gpus: int = 0,
        period_s: float = 0.1,
    ) -> None:
        self.fate_of = fate_of
        self._api = api
        self._node = node
        self._gpus = gpus
        self._period_s = period_s
        self._addresses = (f"10.244.{n // 250}.{n % 250 + 2}" for n in itertools.count())
        self._address_of: dict[str, str] = {}
        self._bound: dict[str, tuple[float, str]] = {}  # by uid: the monotonic clock and the time of day
        self._written: dict[str, Any] = {}
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fake-kubelet", daemon=True)

    def __enter__(self) -> FakeKubelet:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._make_node()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _make_node(self) -> None:
        """Create the node, Ready and without the taint that admission gives to new nodes."""
        try:
            self._api.request("POST", "/api/v1/nodes", {"metadata": {"name": self._node}})
        except ApiError as error:
            if error.status != 409:
                raise
        path = f"/api/v1/nodes/{self._node}"
        self._api.request("PATCH", path, {"spec": {"taints": None}})
        capacity = {"cpu": "64", "memory": "256Gi", "pods": "10000", "ephemeral-storage": "1Ti"}
        if self._gpus:
            capacity["nvidia.com/gpu"] = str(self._gpus)
        now = _timestamp()
        condition = {"type": "Ready", "status": "True", "reason": "KubeletReady"}
        status = {
            "capacity": capacity,
            "allocatable": capacity,
            "addresses": [{"type": "InternalIP", "address": "172.30.0.2"}, {"type": "Hostname", "address": self._node}],
            "conditions": [condition | {"lastHeartbeatTime": now, "lastTransitionTime": now}],
        }
        self._api.request("PATCH", f"{path}/status", {"status": status})

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            try:
                self._round()
            except (OSError, HTTPException):
                continue
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    self._error = error
                    return
            except ValueError as error:
                self._error = error
                return

    def _round(self) -> None:
        pods = self._api.request("GET", "/api/v1/pods")["items"]
        for pod in pods:
            self._advance(pod)
        living = {pod["metadata"]["uid"] for pod in pods}
        for memory in (self._bound, self._written, self._address_of):
            for uid in memory.keys() - living:
                del memory[uid]

    def _advance(self, pod: Pod) -> None:
        """Take a pod one step further; a pod that went away or changed meanwhile is taken again in the next round."""
        metadata, spec = pod["metadata"], pod["spec"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        fate = self.fate_of(pod)
        try:
            if "deletionTimestamp" in metadata:
                options = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
                self._api.request("DELETE", path, options)
            elif fate.unschedulable and not spec.get("nodeName"):
                self._write(path, pod, unschedulable_status(fate))
            elif not spec.get("nodeName"):
                target = {"apiVersion": "v1", "kind": "Node", "name": self._node}
                self._api.request("POST", f"{path}/binding", {"metadata": {"name": metadata["name"]}, "target": target})
            else:
                uid = metadata["uid"]
                bound_s, bound_at = self._bound.setdefault(uid, (time.monotonic(), _timestamp()))
                if uid not in self._address_of:
                    self._address_of[uid] = next(self._addresses)
                age_s = time.monotonic() - bound_s
                self._write(path, pod, pod_status(pod, fate, age_s, bound_at, self._address_of[uid]))
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    def _write(self, path: str, pod: Pod, status: dict[str, Any]) -> None:
        """Patch the status when it is not what was last written; times are given only to what changed."""
        uid = pod["metadata"]["uid"]
        if self._written.get(uid) == status:
            return
        now = _timestamp()
        known = {condition["type"]: condition for condition in pod.get("status", {}).get("conditions", [])}
        conditions = []
        for condition in status["conditions"]:
            last = known.get(condition["type"], {})
            is_same = last.get("status") == condition["status"] and last.get("lastTransitionTime")
            conditions.append(condition | {"lastTransitionTime": last["lastTransitionTime"] if is_same else now})
        self._api.request("PATCH", f"{path}/status", {"status": status | {"conditions": conditions}})
        self._written[uid] = status


def unschedulable_status(fate: Fate) -> dict[str, Any]:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": fate.unschedulable}
    return {"phase": "Pending", "conditions": [condition]}


def pod_status(pod: Pod, fate: Fate, age_s: float, bound_at: str, address: str) -> dict[str, Any]:
    """The status of a bound pod `age_s` after its binding; pure, without times of transition of conditions."""
    spec = pod["spec"]
    inits, containers = spec.get("initContainers", []), spec["containers"]
    init_names = {container["name"] for container in inits}
    waits_for_image = bool(fate.image_pull_error)
    init_fails = fate.init_exit_code != 0 and fate.init_container in init_names
    is_initialized = not init_fails and not (waits_for_image and bool(inits))
    is_running = is_initialized and not waits_for_image
    is_ready = (
        is_running and fate.crash_exit_code is None and fate.ready_after_s is not None and age_s >= fate.ready_after_s
    )
    gates = [gate["conditionType"] for gate in spec.get("readinessGates", [])]
    return {
        "phase": "Running" if is_running else "Pending",
        "hostIP": "172.30.0.2",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": pod["metadata"]["creationTimestamp"],
        "conditions": [
            {"type": "PodScheduled", "status": "True"},
            {"type": "Initialized", "status": str(is_initialized)},
            {"type": "ContainersReady", "status": str(is_ready)},
            {"type": "Ready", "status": str(is_ready)},
            *({"type": gate, "status": "True"} for gate in gates),
        ],
        "initContainerStatuses": [_init_status(container, fate, age_s, bound_at) for container in inits],
        "containerStatuses": [
            _container_status(container, fate, age_s, bound_at, is_initialized, is_ready) for container in containers
        ],
    }


def _init_status(container: Mapping[str, Any], fate: Fate, age_s: float, bound_at: str) -> dict[str, Any]:
    """An init container's: a sidecar (restartPolicy Always) runs on, the others end at once."""
    if fate.image_pull_error:
        return _status(container, state=_pull_failure(fate, age_s))
    if container.get("restartPolicy") == "Always":
        return _status(container, state={"running": {"startedAt": bound_at}}, is_ready=True)
    is_named = container["name"] == fate.init_container
    message = fate.init_message if is_named else ""
    if is_named and fate.init_exit_code != 0:
        ended = _terminated(fate.init_exit_code, "Error", message, bound_at)
        return _status(container, state=_back_off("CrashLoopBackOff"), last=ended, restarts=1)
    return _status(container, state=_terminated(0, "Completed", message, bound_at), is_ready=True)


def _container_status(
    container: Mapping[str, Any], fate: Fate, age_s: float, bound_at: str, is_initialized: bool, is_ready: bool
) -> dict[str, Any]:
    if not is_initialized:
        return _status(container, state={"waiting": {"reason": "PodInitializing"}})
    if fate.image_pull_error:
        return _status(container, state=_pull_failure(fate, age_s))
    if fate.crash_exit_code is not None and container["name"] == fate.crash_container:
        ended = _terminated(fate.crash_exit_code, fate.crash_reason, fate.crash_message, bound_at)
        return _status(container, state=_back_off("CrashLoopBackOff"), last=ended, restarts=3)
    return _status(container, state={"running": {"startedAt": bound_at}}, is_ready=is_ready)


def _status(
    container: Mapping[str, Any],
    state: Mapping[str, Any],
    *,
    last: Mapping[str, Any] | None = None,
    restarts: int = 0,
    is_ready: bool = False,
) -> dict[str, Any]:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": is_ready,
        "started": "running" in state,
        "restartCount": restarts,
        "state": dict(state),
        "lastState": dict(last or {}),
    }


def _pull_failure(fate: Fate, age_s: float) -> dict[str, Any]:
    reason = "ErrImagePull" if age_s < 1 else "ImagePullBackOff"
    return {"waiting": {"reason": reason, "message": fate.image_pull_error}}


def _back_off(reason: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": "back-off 10s restarting failed container"}}


def _terminated(exit_code: int, reason: str, message: str, at: str) -> dict[str, Any]:
    ended = {"exitCode": exit_code, "reason": reason, "message": message, "startedAt": at, "finishedAt": at}
    return {"terminated": ended}


def _timestamp() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
