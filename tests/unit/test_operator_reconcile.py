"""One TorchModel against an API server in memory: what is written, what is not, and what a failure of each call leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from testkit.fake_kube import FakeKube
from testkit.manifests import CREATED_S, a_pod, a_stored_model, ended, waiting
from torchmodel_operator import names
from torchmodel_operator.errors import KubeError
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.manifests import revision_of
from torchmodel_operator.observed import Key, PodFacts, observe
from torchmodel_operator.reconcile import World, reconcile
from torchmodel_operator.recorder import Recorder
from torchmodel_operator.report import Reading
from torchmodel_operator.settings import OperatorSettings

KEY = Key("default", "flowers")
CREATED_ALL = ["ServiceAccount", "Service", "Deployment"]


class NoReports:
    async def read(self, model: str, pods: Sequence[PodFacts]) -> Reading:
        return Reading(None, None if not model or not pods else 300.0)


class Cluster:
    """A FakeKube with a model, and an operator that may be restarted."""

    def __init__(self, **spec: Any) -> None:
        self.kube = FakeKube()
        self.now = CREATED_S + 60
        self.kube.add(a_stored_model(**spec))
        self.settings = OperatorSettings(runtime_image="runtime:1", lease_namespace="system", pod_name="operator-0")
        self.restart()

    def restart(self) -> None:
        ledger = Ledger()
        recorder = Recorder(self.kube, "operator-0", lambda: self.now)
        self.world = World(self.kube, ledger, NoReports(), recorder, self.settings, lambda: self.now)
        self.sync()
        self.kube.calls.clear()

    def sync(self) -> None:
        """What the watches bring: only objects that bear our labels."""
        for body in self.kube.objects.values():
            labels = body["metadata"].get("labels", {})
            if body["kind"] == "TorchModel" or labels.get(names.LABEL_MANAGED_BY) == names.OPERATOR:
                self.world.ledger.put(observe(body))

    async def reconcile(self) -> float | None:
        self.sync()
        return await reconcile(KEY, self.world)

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = self.kube.objects["TorchModel", "default", "flowers"].get("status", {})
        return status

    def condition(self, kind: str) -> tuple[str, str, str]:
        (found,) = [condition for condition in self.status()["conditions"] if condition["type"] == kind]
        return found["status"], found["reason"], found["message"]

    def change(self, **spec: Any) -> None:
        stored = self.kube.objects["TorchModel", "default", "flowers"]
        body = a_stored_model(**spec)
        metadata = {**stored["metadata"], "generation": stored["metadata"]["generation"] + 1}
        self.kube.add({**stored, "spec": body["spec"], "metadata": metadata})

    def roll_out(self, replicas: int = 1) -> None:
        """What the Deployment controller and the kubelet would do."""
        deployment = self.kube.objects["Deployment", "default", "flowers"]
        counts = ("replicas", "updatedReplicas", "readyReplicas", "availableReplicas")
        status = {"observedGeneration": deployment["metadata"]["generation"], **dict.fromkeys(counts, replicas)}
        self.kube.set_status("Deployment", "default", "flowers", status)

    def start_pod(self, **changes: Any) -> None:
        revision = revision_of(self.kube.objects["Deployment", "default", "flowers"])
        self.kube.add(a_pod(revision=revision, **changes))


async def test_a_new_model_gets_its_children_and_a_status_and_then_nothing_more() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    assert cluster.kube.writes == [
        *(("apply", kind, "flowers") for kind in CREATED_ALL),
        ("apply-status", "TorchModel", "flowers"),
    ]
    assert cluster.condition("Reconciling")[:2] == ("True", "RolloutInProgress")
    assert cluster.kube.managers == {"torchmodel-operator", "torchmodel-operator-status"}
    cluster.kube.calls.clear()
    for _ in range(3):
        assert await cluster.reconcile()
    assert cluster.kube.calls == []


async def test_ready_when_every_replica_is() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.roll_out()
    await cluster.reconcile()
    assert cluster.condition("Ready") == ("True", "Serving", "1 replica ready")


async def test_a_restarted_operator_makes_no_call() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.roll_out(2)
    await cluster.reconcile()
    cluster.restart()
    await cluster.reconcile()
    assert cluster.kube.calls == []


async def test_a_child_that_the_watch_has_not_shown_yet_is_read_and_not_written() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.restart()
    cluster.world.ledger.sweep("Service", [], 10**9)
    await reconcile(KEY, cluster.world)
    assert cluster.kube.writes == []


async def test_scaling_changes_the_deployment_and_its_budget_only() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.kube.calls.clear()
    cluster.change(replicas=3)
    await cluster.reconcile()
    children = [call[:2] for call in cluster.kube.writes if call[1] != "TorchModel"]
    assert children == [("apply", "Deployment"), ("apply", "PodDisruptionBudget")]
    cluster.change(replicas=1)
    await cluster.reconcile()
    assert ("PodDisruptionBudget", "default", "flowers") not in cluster.kube.objects


@pytest.mark.parametrize("kind", CREATED_ALL)
async def test_a_child_that_somebody_deleted_comes_back(kind: str) -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.world.ledger.remove(observe(cluster.kube.remove(kind, "default", "flowers")))  # type: ignore[arg-type]
    await cluster.reconcile()
    assert (kind, "default", "flowers") in cluster.kube.objects


async def test_an_edit_by_hand_is_undone_once() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    edited = cluster.kube.objects["Deployment", "default", "flowers"]
    cluster.kube.add({**edited, "spec": {**edited["spec"], "replicas": 7}})
    cluster.kube.calls.clear()
    await cluster.reconcile()
    await cluster.reconcile()
    assert cluster.kube.writes == [("apply", "Deployment", "flowers")]
    assert cluster.kube.objects["Deployment", "default", "flowers"]["spec"]["replicas"] == 1


@pytest.mark.parametrize("kind", CREATED_ALL)
async def test_an_object_of_somebody_else_is_never_taken_over(kind: str) -> None:
    cluster = Cluster()
    theirs = {
        "kind": kind,
        "apiVersion": "v1",
        "metadata": {"name": "flowers", "namespace": "default"},
        "spec": {"a": 1},
    }
    before = cluster.kube.add(theirs)
    await cluster.reconcile()
    assert cluster.kube.objects[kind, "default", "flowers"] == before
    status, reason, message = cluster.condition("Stalled")
    assert (status, reason) == ("True", "NameTaken")
    assert f"{kind} flowers exists in namespace default" in message
    assert f"kubectl delete {kind.lower()} flowers -n default" in message


async def test_a_name_that_is_free_again_is_taken() -> None:
    cluster = Cluster()
    cluster.kube.add({"kind": "Service", "apiVersion": "v1", "metadata": {"name": "flowers", "namespace": "default"}})
    again_s = await cluster.reconcile()
    assert again_s is not None
    assert again_s <= 15
    cluster.kube.remove("Service", "default", "flowers")
    await cluster.reconcile()
    assert cluster.condition("Stalled")[0] == "False"


async def test_a_label_that_was_taken_away_comes_back() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    service = cluster.kube.objects["Service", "default", "flowers"]
    del service["metadata"]["labels"][names.LABEL_MANAGED_BY]
    cluster.restart()
    await cluster.reconcile()
    assert cluster.kube.writes == [("apply", "Service", "flowers")]


async def test_children_of_a_deleted_namesake_are_waited_for() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.kube.remove("TorchModel", "default", "flowers")
    cluster.kube.add(a_stored_model(uid="its-successor"))
    cluster.restart()
    with pytest.raises(KubeError, match="deleted namesake"):
        await cluster.reconcile()
    assert cluster.condition("Reconciling")[1] == "KubernetesApiError"


async def test_a_child_that_is_being_deleted_is_waited_for() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    service = cluster.kube.objects["Service", "default", "flowers"]
    service["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    service["metadata"]["resourceVersion"] = "9999"
    with pytest.raises(KubeError, match="still being deleted"):
        await cluster.reconcile()
    assert cluster.condition("Reconciling")[1] == "KubernetesApiError"


INVALID = {
    "unknown field": ({"colour": "red"}, "InvalidSpec", ["spec", "colour"]),
    "a path relative to the manifest": (
        {"checkpoint": {"uri": "file:./flowers.pth"}},
        "InvalidSpec",
        ["spec.checkpoint.uri", "file:./flowers.pth", "s3://"],
    ),
    "code without the operator's consent": (
        {
            "architecture": {"source": {"inline": "pass"}},
            "security": {"allowCodeExecution": True},
        },
        "CodeExecutionNotAllowed",
        ["spec.security.allowCodeExecution", "allowCodeExecution=true"],
    ),
    "consent asked for without code": (
        {"security": {"allowCodeExecution": True}},
        "CodeExecutionNotAllowed",
        ["allowCodeExecution=true"],
    ),
}


@pytest.mark.parametrize("case", INVALID)
async def test_a_spec_that_cannot_work_is_stalled_and_nothing_is_created(case: str) -> None:
    spec, reason, words = INVALID[case]
    cluster = Cluster(**spec)
    await cluster.reconcile()
    assert [call[:2] for call in cluster.kube.writes] == [("apply-status", "TorchModel")]
    assert cluster.condition("Stalled")[:2] == ("True", reason)
    assert cluster.condition("Ready")[:2] == ("False", reason)
    for word in [*words, "Next step: "]:
        assert word in cluster.condition("Stalled")[2]


async def test_an_invalid_change_leaves_the_old_revision_serving() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.roll_out()
    await cluster.reconcile()
    cluster.kube.calls.clear()
    cluster.change(checkpoint={"uri": "file:./x.pth"})
    await cluster.reconcile()
    assert [call[:2] for call in cluster.kube.writes] == [("apply-status", "TorchModel")]
    assert "1 replica of the previous revision still serving" in cluster.condition("Ready")[2]
    assert cluster.status()["observedGeneration"] == 2


async def test_a_replica_of_the_newest_revision_that_fails_is_diagnosed() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.start_pod(
        fetcher=ended(2, '{"reason":"CheckpointNotFound","message":"no such key","nextStep":"upload it."}')
    )
    await cluster.reconcile()
    assert cluster.condition("Stalled") == ("True", "CheckpointNotFound", "no such key. Next step: upload it.")


async def test_a_replica_of_an_old_revision_is_not_held_against_the_new_one() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.kube.add(a_pod(revision="old", fetcher=ended(1)))
    await cluster.reconcile()
    assert cluster.condition("Stalled")[0] == "False"


async def test_a_secret_that_is_not_there_is_read_from_the_events_of_the_pod() -> None:
    cluster = Cluster(checkpoint={"credentials": {"secretName": "s3-read"}})
    await cluster.reconcile()
    cluster.start_pod(fetcher=waiting("PodInitializing"))
    note = 'MountVolume.SetUp failed for volume "credentials" : secret "s3-read" not found'
    cluster.kube.pod_events.append({"reason": "FailedMount", "note": note, "regarding": {"uid": "uid-flowers-1"}})
    again_s = await cluster.reconcile()
    assert again_s is not None
    assert again_s <= 10
    assert "create the Secret s3-read" in cluster.condition("Stalled")[2]


async def test_events_that_cannot_be_read_do_not_stop_the_status() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.start_pod(fetcher=waiting("PodInitializing"))
    cluster.kube.fail("list", "Event", 403)
    await cluster.reconcile()
    assert cluster.condition("Reconciling")[0] == "True"


async def test_replicas_that_the_api_server_refuses_are_told_by_the_deployment() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    message = 'pods "flowers-1" is forbidden: exceeded quota: gpus'
    failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message}
    cluster.kube.set_status("Deployment", "default", "flowers", {"conditions": [failure]})
    await cluster.reconcile()
    assert cluster.condition("Stalled")[1] == "ChildRefused"
    assert "ResourceQuota" in cluster.condition("Stalled")[2]


async def test_a_rollout_without_progress_is_stalled() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    stuck = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    cluster.kube.set_status("Deployment", "default", "flowers", {"conditions": [stuck]})
    await cluster.reconcile()
    assert cluster.condition("Stalled")[1] == "StartTimedOut"


@pytest.mark.parametrize("kind", ["ServiceAccount", "Service", "Deployment"])
@pytest.mark.parametrize("verb", ["get", "apply"])
@pytest.mark.parametrize("status", [0, 409, 429, 500, 503])
async def test_a_call_that_fails_for_now_is_shown_and_tried_again(verb: str, kind: str, status: int) -> None:
    cluster = Cluster()
    cluster.kube.fail(verb, kind, status, "induced failure")
    with pytest.raises(KubeError):
        await cluster.reconcile()
    assert cluster.condition("Reconciling")[:2] == ("True", "KubernetesApiError")
    assert "induced failure" in cluster.condition("Reconciling")[2]
    cluster.kube.heal()
    await cluster.reconcile()
    assert cluster.condition("Reconciling")[:2] == ("True", "RolloutInProgress")


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_a_child_that_is_refused_for_good_is_stalled_and_tried_now_and_then(status: int) -> None:
    cluster = Cluster()
    cluster.kube.fail("apply", "Deployment", status, "denied by policy x")
    again_s = await cluster.reconcile()
    assert cluster.condition("Stalled")[:2] == ("True", "ChildRefused")
    assert "denied by policy x" in cluster.condition("Stalled")[2]
    assert again_s is not None
    assert again_s <= 60


async def test_a_budget_that_cannot_be_deleted_is_tried_again() -> None:
    cluster = Cluster(replicas=2)
    await cluster.reconcile()
    cluster.change(replicas=1)
    cluster.kube.fail("delete", "PodDisruptionBudget", 500)
    with pytest.raises(KubeError):
        await cluster.reconcile()
    cluster.kube.heal()
    await cluster.reconcile()
    assert ("PodDisruptionBudget", "default", "flowers") not in cluster.kube.objects


async def test_a_status_that_cannot_be_written_is_tried_again() -> None:
    cluster = Cluster()
    cluster.kube.fail("apply-status", "TorchModel", 500, times=1)
    with pytest.raises(KubeError):
        await cluster.reconcile()
    await cluster.reconcile()
    assert cluster.condition("Reconciling")[0] == "True"


async def test_a_ghost_is_not_given_children() -> None:
    cluster = Cluster()
    cluster.kube.remove("TorchModel", "default", "flowers")
    assert await reconcile(KEY, cluster.world) is None
    assert cluster.kube.writes == []
    assert cluster.world.ledger.get_model(KEY) is None


async def test_a_ghost_with_a_namesake_is_not_given_children_either() -> None:
    cluster = Cluster()
    cluster.kube.remove("TorchModel", "default", "flowers")
    cluster.kube.add(a_stored_model(uid="another"))
    assert await reconcile(KEY, cluster.world) is None
    assert cluster.kube.writes == []


async def test_a_model_that_is_being_deleted_is_left_to_the_garbage_collector() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    model = cluster.kube.objects["TorchModel", "default", "flowers"]
    cluster.kube.add({**model, "metadata": {**model["metadata"], "deletionTimestamp": "2026-01-01T00:00:00Z"}})
    cluster.kube.calls.clear()
    assert await cluster.reconcile() is None
    assert cluster.kube.calls == []


async def test_events_tell_of_changes_once() -> None:
    cluster = Cluster()
    await cluster.reconcile()
    cluster.start_pod(fetcher=ended(2, '{"reason":"ChecksumMismatch","message":"m","nextStep":"n."}'))
    await cluster.reconcile()
    cluster.kube.set_status(
        "Pod", "default", "flowers-1", cluster.kube.objects["Pod", "default", "flowers-1"]["status"]
    )
    await cluster.reconcile()
    cluster.kube.remove("Pod", "default", "flowers-1")
    cluster.world.ledger.sweep("Pod", [], 10**9)
    cluster.roll_out()
    await cluster.reconcile()
    await _drain()
    assert [(event["type"], event["reason"]) for event in cluster.kube.events] == [
        ("Warning", "ChecksumMismatch"),
        ("Normal", "Serving"),
    ]


async def test_an_event_that_cannot_be_posted_is_no_failure() -> None:
    cluster = Cluster(checkpoint={"uri": "file:./x"})
    cluster.kube.fail("create", "Event", 403)
    await cluster.reconcile()
    await _drain()
    assert cluster.condition("Stalled")[0] == "True"


async def _drain() -> None:
    for _ in range(5):
        await asyncio.sleep(0)
