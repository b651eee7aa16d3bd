"""What is written when: the plan of a model's children from what is desired and what is there, without an API server."""

from __future__ import annotations

from typing import Any

import pytest
from testkit.manifests import a_parsed_model
from torchmodel_operator.childplan import Apply, Conflict, Delete, Found, Plan, Wait, Why, plan_child, plan_children
from torchmodel_operator.manifests import desired_objects
from torchmodel_operator.observed import ChildRecord, Key, observe_child

MODEL = a_parsed_model()
DESIRED = desired_objects(MODEL, "runtime:1")
SERVICE = next(manifest for manifest in DESIRED if manifest["kind"] == "Service")


def as_applied(manifest: dict[str, Any], **changes: Any) -> ChildRecord:
    """The child as the API server would give it right after it was applied, but for `changes`."""
    metadata = {**manifest["metadata"], "uid": f"uid-{manifest['kind']}", "resourceVersion": "7"}
    return observe_child({**manifest, "metadata": metadata})._replace(**changes)


@pytest.mark.parametrize(
    ("found", "why"),
    [
        pytest.param(None, Why.MISSING, id="what is not there is written"),
        pytest.param(
            Found(as_applied(SERVICE, is_watched=False), False), Why.UNLABELLED, id="what lost our label gets it back"
        ),
        pytest.param(
            Found(as_applied(SERVICE, applied_hash="old"), False), Why.CHANGED, id="what is wished otherwise is written"
        ),
        pytest.param(
            Found(as_applied(SERVICE, applied_hash=""), False), Why.CHANGED, id="what lost our hash is written"
        ),
        pytest.param(Found(as_applied(SERVICE), True), Why.EDITED, id="what somebody edited is written again"),
    ],
)
def test_a_child_is_applied(found: Found | None, why: Why) -> None:
    assert plan_child(MODEL, SERVICE, found) == Apply(SERVICE, why)


def test_a_child_that_is_as_applied_is_left_alone() -> None:
    assert plan_child(MODEL, SERVICE, Found(as_applied(SERVICE), False)) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({"is_deleting": True}, "Service flowers is still being deleted", id="one that is on its way out"),
        pytest.param(
            {"is_deleting": True, "owner_uid": "", "owner": None}, "still being deleted", id="somebody's on its way out"
        ),
        pytest.param(
            {"owner_uid": "uid-before"}, "Service flowers of a deleted namesake is still there", id="a namesake's"
        ),
    ],
)
def test_an_object_that_will_go_is_waited_for(changes: dict[str, Any], words: str) -> None:
    step = plan_child(MODEL, SERVICE, Found(as_applied(SERVICE, **changes), False))
    assert isinstance(step, Wait)
    assert words in step.message


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"owner_uid": "", "owner": None}, id="nobody's"),
        pytest.param({"owner_uid": "", "owner": Key("default", "flowers")}, id="nobody's that bears our labels"),
        pytest.param({"owner_uid": "uid-other", "owner": Key("default", "other")}, id="another model's"),
        pytest.param({"owner_uid": "uid-other", "owner": None, "is_watched": False}, id="another controller's"),
    ],
)
def test_an_object_of_somebody_else_is_a_conflict(changes: dict[str, Any]) -> None:
    step = plan_child(MODEL, SERVICE, Found(as_applied(SERVICE, **changes), False))
    assert isinstance(step, Conflict)
    assert step.problem.reason == "NameTaken"
    assert "kubectl delete service flowers -n default" in step.problem.next_step


def test_a_new_model_gets_all_in_the_order_of_desired_objects() -> None:
    plan = plan_children(MODEL, DESIRED, [None] * len(DESIRED), [])
    assert plan == Plan(tuple(Apply(manifest, Why.MISSING) for manifest in DESIRED))


def test_when_all_is_as_applied_there_is_nothing_to_do() -> None:
    children = [as_applied(manifest) for manifest in DESIRED]
    assert plan_children(MODEL, DESIRED, [Found(child, False) for child in children], children) == Plan(())


def test_what_comes_before_a_conflict_is_written_and_nothing_after_it() -> None:
    theirs = Found(as_applied(SERVICE, owner_uid="", owner=None), False)
    plan = plan_children(MODEL, DESIRED, [None if manifest != SERVICE else theirs for manifest in DESIRED], [])
    assert [step.manifest["kind"] for step in plan.steps if isinstance(step, Apply)] == ["ServiceAccount"]
    assert isinstance(plan.obstacle, Conflict)


@pytest.mark.parametrize(
    ("changes", "is_deleted"),
    [
        pytest.param({}, True, id="ours is deleted"),
        pytest.param({"is_deleting": True}, False, id="one on its way out is not deleted again"),
        pytest.param({"owner_uid": "uid-other"}, False, id="a namesake's is left to the garbage collector"),
    ],
)
def test_a_budget_that_is_no_longer_wished(changes: dict[str, Any], is_deleted: bool) -> None:
    two = desired_objects(a_parsed_model(replicas=2), "runtime:1")
    budget = as_applied(next(manifest for manifest in two if manifest["kind"] == "PodDisruptionBudget"), **changes)
    children = [as_applied(manifest) for manifest in DESIRED]
    plan = plan_children(MODEL, DESIRED, [Found(child, False) for child in children], [*children, budget])
    assert plan == Plan((Delete(budget, Why.UNWISHED),) if is_deleted else ())
