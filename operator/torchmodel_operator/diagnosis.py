"""Why a replica does not serve: pod facts → cause and next step. Pure; called by `reconcile`, shown by `status`.

All facts are gathered first. Then each check looks at one pod for one cause and knows nothing of the others; a pod can
show only one of them at a time, because the kubelet takes its steps one after another: schedule, mount, pull, fetch, load.
What a check says must not change while nothing changes, or every retry of the kubelet would be a write: no counts, no
times, no pod names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
from torchmodel_runtime.config import Failure

from torchmodel_operator import names
from torchmodel_operator.observed import ContainerFacts, DeploymentFacts, Ended, PodFacts
from torchmodel_operator.spec import TorchModelSpec

UNSCHEDULABLE_GRACE_S = 10.0
"""A pod may find no node for a moment, while another one leaves; a node that an autoscaler adds takes longer than this and
clears the condition by itself."""
MOUNT_GRACE_S = 8.0
"""A pod this old whose containers were not even created is looked up in the Events: only they tell of a failed mount."""
RECHECK_S = 10.0
"""How often the Events of such a pod are read again."""
MAX_MESSAGE_CHARACTERS = 1024


class Problem(NamedTuple):
    """What is wrong and what to do about it."""

    reason: str
    message: str
    next_step: str
    is_retried: bool = False
    """The operator tries again by itself, so it is Reconciling, not Stalled."""

    @property
    def text(self) -> str:
        """Cause and next step, as `kubectl describe` shows them."""
        return f"{self.message.rstrip('. ')}. Next step: {self.next_step}"


class PodEvent(NamedTuple):
    """A warning that the kubelet or a controller gave about a pod."""

    reason: str
    message: str


class Replica(NamedTuple):
    """All facts about one pod that the checks may use."""

    pod: PodFacts
    spec: TorchModelSpec
    age_s: float
    events: tuple[PodEvent, ...]
    """Warnings, newest first; read only for pods that `needs_events`."""


class Diagnosis(NamedTuple):
    """What was found, and when to look again because time alone may change it."""

    problem: Problem | None
    recheck_s: float | None


Check = Callable[[Replica], Problem | None]


def diagnose(
    pods: Sequence[PodFacts], spec: TorchModelSpec, events: dict[str, list[PodEvent]], now_s: float
) -> Diagnosis:
    """Find the first problem of the oldest replica that has one. `events` are by pod uid, `now_s` seconds since 1970."""
    problem = None
    waits: list[float] = []
    for pod in sorted(pods, key=lambda pod: (pod.phase == "Failed", pod.created_s, pod.identity.name)):
        if pod.is_ready or pod.is_deleting:
            continue
        age_s = max(0.0, now_s - pod.created_s)
        replica = Replica(pod, spec, age_s, tuple(events.get(pod.identity.uid, ())))
        problem = problem or next((found for check in CHECKS if (found := check(replica))), None)
        if pod.unschedulable_message and age_s < UNSCHEDULABLE_GRACE_S:
            waits.append(UNSCHEDULABLE_GRACE_S - age_s + 0.5)
        if _is_not_created(pod):
            waits.append(RECHECK_S if age_s >= MOUNT_GRACE_S else MOUNT_GRACE_S - age_s + 0.5)
    return Diagnosis(problem, min(waits, default=None))


def needs_events(pod: PodFacts, now_s: float) -> bool:
    """True when the pod has a node and none of its containers was created for a while."""
    return _is_not_created(pod) and now_s - pod.created_s >= MOUNT_GRACE_S


def _is_not_created(pod: PodFacts) -> bool:
    containers = [container for container in (pod.fetcher, pod.server) if container]
    return (
        pod.is_scheduled
        and not pod.is_ready
        and not pod.is_deleting
        and pod.phase in ("", "Pending")
        and all(
            not container.is_running
            and container.ended is None
            and container.waiting_reason in ("", "ContainerCreating", "PodInitializing")
            for container in containers
        )
    )


def check_scheduling(replica: Replica) -> Problem | None:
    """No node takes the pod."""
    offered = replica.pod.unschedulable_message
    if not offered or replica.age_s < UNSCHEDULABLE_GRACE_S:
        return None
    spec = replica.spec
    gpu, selector = spec.resources.gpu, spec.scheduling.node_selector
    wishes = [f"{gpu.count} x {gpu.resource}"] if gpu.count else []
    requests = msgspec.to_builtins(spec.resources.requests)
    wishes += [f"{name} {quantity}" for name, quantity in requests.items() if quantity is not None]
    wishes += [f"a node with the label {name}={value}" for name, value in selector.items()]
    wanted = f", which needs {', '.join(wishes)}" if wishes else ""
    if gpu.count and gpu.resource in offered:
        step = (
            f"add a node that offers {gpu.resource} (is its device plugin running? `kubectl describe nodes` lists it under "
            "Allocatable), lower spec.resources.gpu.count or correct spec.resources.gpu.resource."
        )
    elif selector and "node affinity/selector" in offered:
        step = "label a node accordingly, or correct spec.scheduling.nodeSelector."
    elif "taint" in offered:
        step = "add the taint to spec.scheduling.tolerations, or remove it from a node."
    else:
        step = "add a node, or lower spec.resources.requests or spec.replicas."
    return Problem(names.REASON_UNSCHEDULABLE, f"No node takes the replica{wanted}: {_shortened(offered)}", step)


_PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable")
_PULL_PREFIX = re.compile(r'^Back-off pulling image "[^"]*"(: ErrImagePull: )?')


def check_image(replica: Replica) -> Problem | None:
    """The image cannot be had."""
    for container in _containers(replica.pod):
        if container.waiting_reason not in _PULL_REASONS:
            continue
        cause = _PULL_PREFIX.sub("", container.waiting_message) or "the registry gave no reason"
        name = replica.pod.image
        if container.waiting_reason == "InvalidImageName":
            step = "correct spec.image.name; it must be of the form registry/repository:tag."
        elif container.waiting_reason == "ErrImageNeverPull":
            step = "load the image onto the node, or set spec.image.pullPolicy to IfNotPresent."
        else:
            secrets = ", ".join(replica.spec.image.pull_secrets) or "none is set"
            step = (
                "see that spec.image.name exists and is spelt right (empty: the operator's TORCHMODEL_RUNTIME_IMAGE), and "
                f"for a private registry name a Secret in spec.image.pullSecrets ({secrets})."
            )
        return Problem(names.REASON_IMAGE_PULL, f"Image {name} cannot be pulled: {_shortened(cause)}", step)
    return None


_CONFIG_REASONS = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def check_container_config(replica: Replica) -> Problem | None:
    """A container cannot be created from what its specification names."""
    for container in _containers(replica.pod):
        if container.waiting_reason in _CONFIG_REASONS:
            message = f"Container {container.name} cannot be created: {_shortened(container.waiting_message)}"
            return Problem(names.REASON_CONTAINER_CONFIG, message, _step_for_missing(container.waiting_message))
    return None


_MOUNT_EVENTS = ("FailedMount", "FailedAttachVolume")


def check_mounts(replica: Replica) -> Problem | None:
    """A volume cannot be mounted, or the pod cannot be set up; only Events tell of it."""
    if not replica.events or not _is_not_created(replica.pod):
        return None
    mounts = [event for event in replica.events if event.reason in _MOUNT_EVENTS]
    event = mounts[0] if mounts else replica.events[0]
    message = f"The node cannot set the replica up ({event.reason}): {_shortened(event.message)}"
    return Problem(names.REASON_CONTAINER_CONFIG, message, _step_for_missing(event.message))


def check_fetcher(replica: Replica) -> Problem | None:
    """The fetcher ended without the checkpoint."""
    container = replica.pod.fetcher
    if container is None or container.is_done or container.ended is None or container.ended.exit_code == 0:
        return None
    return _end_of("fetcher", container.ended, replica)


def check_server(replica: Replica) -> Problem | None:
    """The server ended before it was ready, or while it served."""
    container = replica.pod.server
    if container is None or container.is_ready or container.ended is None:
        return None
    ended = container.ended
    failure = parse_failure(ended.message)
    limit_s = replica.spec.serving.startup_timeout_seconds
    if failure is None and ended.ran_s >= limit_s and ended.reason != "OOMKilled":
        message = f"The server was not ready {limit_s} s after its start and was stopped: {_last_lines(ended)}"
        step = "raise spec.serving.startupTimeoutSeconds, or give the replica more CPU in spec.resources."
        return Problem(names.REASON_START_TIMEOUT, message, step)
    return _end_of("server", ended, replica)


def check_eviction(replica: Replica) -> Problem | None:
    """The node put the whole pod out."""
    pod = replica.pod
    if pod.phase != "Failed" or not pod.phase_reason:
        return None
    message = f"The node ended the replica ({pod.phase_reason}): {_shortened(pod.phase_message)}"
    step = "raise the resource it names in spec.resources.requests, so that the replica gets a node with enough of it."
    return Problem(names.REASON_CRASHED, message, step)


CHECKS: tuple[Check, ...] = (
    check_scheduling,
    check_mounts,
    check_image,
    check_container_config,
    check_fetcher,
    check_server,
    check_eviction,
)


def choose_problem(
    applied: Problem | None, deployment: DeploymentFacts | None, replicas: Problem | None, spec: TorchModelSpec | None
) -> Problem | None:
    """The one problem that status shows, of those of the children, the Deployment and its replicas.

    It is the first on the way from spec to serving, because what comes later only follows from it: what was not applied makes
    no pods, a Deployment whose pods are refused has no replica, and the deadline says less than a replica that shows why.
    """
    if applied is not None:
        return applied
    if deployment is not None and deployment.refusal:
        return diagnose_refusal(deployment.refusal)
    if replicas is not None:
        return replicas
    if deployment is not None and deployment.is_stuck and spec is not None:
        return diagnose_stuck(spec)
    return None


def diagnose_refusal(message: str) -> Problem:
    """The API server does not take the pods that the Deployment asks for."""
    if "exceeded quota" in message:
        step = "raise the ResourceQuota of the namespace, or lower spec.resources or spec.replicas."
    elif "violates PodSecurity" in message:
        step = "relax the namespace's Pod Security level, or use an image and settings that keep to it."
    else:
        step = "see what refused it: a ResourceQuota, a LimitRange or an admission policy of the namespace."
    return Problem(names.REASON_REFUSED, f"Kubernetes refuses the replicas: {_shortened(message)}", step)


def diagnose_stuck(spec: TorchModelSpec) -> Problem:
    """The Deployment made no progress for its deadline, and no replica shows why."""
    limit_s = spec.serving.startup_timeout_seconds
    message = f"No replica of the newest revision became ready within spec.serving.startupTimeoutSeconds ({limit_s} s)"
    step = (
        "raise spec.serving.startupTimeoutSeconds if the checkpoint is large; else read the logs of fetcher and server."
    )
    return Problem(names.REASON_START_TIMEOUT, message, step)


def parse_failure(message: str) -> Failure | None:
    """The Failure that a fetcher or server left as its termination message; None when it left something else."""
    try:
        return msgspec.json.decode(message, type=Failure)
    except msgspec.DecodeError:
        return None


def _end_of(container: str, ended: Ended, replica: Replica) -> Problem:
    failure = parse_failure(ended.message)
    if failure is not None:
        return Problem(failure.reason, _shortened(failure.message), failure.next_step)
    if ended.reason == "OOMKilled":
        limit = replica.spec.resources.limits.memory
        given = f"its limit of {limit}" if limit is not None else "the node's memory"
        step = "raise spec.resources.limits.memory, or lower spec.serving.batching.maxSize."
        return Problem(
            names.REASON_OUT_OF_MEMORY, f"The {container} used more memory than {given} and was killed", step
        )
    signal = f", signal {ended.exit_code - 128}" if ended.exit_code > 128 else ""
    message = f"The {container} ended with exit code {ended.exit_code}{signal}: {_last_lines(ended)}"
    selector = names.model_selector(replica.pod.owner.name) if replica.pod.owner else ""
    step = f"read its log: kubectl logs -l {selector} -c {container} --previous"
    return Problem(names.REASON_CRASHED, message, step)


def _containers(pod: PodFacts) -> list[ContainerFacts]:
    return [container for container in (pod.fetcher, pod.server) if container]


def _step_for_missing(message: str) -> str:
    missing = re.search(r'(secret|configmap) "([^"]+)" not found', message, re.IGNORECASE)
    if missing:
        kind, name = missing.groups()
        kind, field = (
            ("Secret", "spec.checkpoint.credentials.secretName")
            if kind.lower() == "secret"
            else ("ConfigMap", "spec.architecture.source.configMap.name")
        )
        return f"create the {kind} {name} in the model's namespace, or correct {field}."
    if "non-existent config key" in message:
        return "add the key to the ConfigMap, or correct spec.architecture.source.configMap.key."
    return "correct what the message names; it is tried again by itself."


def _last_lines(ended: Ended) -> str:
    lines = ended.message.strip()
    return _shortened(lines, keep_end=True) if lines else "it said nothing"


def _shortened(text: str, *, keep_end: bool = False) -> str:
    text = text.strip()
    if len(text) <= MAX_MESSAGE_CHARACTERS:
        return text
    return f"… {text[-MAX_MESSAGE_CHARACTERS:]}" if keep_end else f"{text[:MAX_MESSAGE_CHARACTERS]} …"
