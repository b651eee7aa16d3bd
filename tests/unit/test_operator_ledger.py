"""What the operator remembers: newest states win, ghosts are found, edits are noticed."""

from __future__ import annotations

from typing import Any

import pytest
from testkit.manifests import a_model, a_parsed_model, a_pod, a_stored_model
from torchmodel_operator.ledger import Ledger
from torchmodel_operator.manifests import desired_objects
from torchmodel_operator.observed import ChildRecord, Key, observe, observe_child

KEY = Key("default", "flowers")


def a_child(version: int = 10, uid: str = "uid-child", kind: str = "Service", **content: Any) -> ChildRecord:
    manifest = next(child for child in desired_objects(a_parsed_model(), "image") if child["kind"] == kind)
    metadata = {**manifest["metadata"], "uid": uid, "resourceVersion": str(version)}
    return observe_child({**manifest, **content, "metadata": metadata})


def test_children_are_found_by_their_owner() -> None:
    ledger = Ledger()
    ledger.put(observe(a_stored_model()))
    ledger.put(a_child())
    ledger.put(observe(a_pod()))
    assert [child.identity.kind for child in ledger.list_children(KEY)] == ["Service"]
    assert [pod.identity.name for pod in ledger.list_pods(KEY)] == ["flowers-1"]
    assert ledger.get_model(KEY) is not None
    assert ledger.list_children(Key("default", "other")) == []


@pytest.mark.parametrize(("version", "is_news"), [(9, False), (10, False), (11, True)])
def test_an_older_state_never_replaces_a_newer_one(version: int, is_news: bool) -> None:
    ledger = Ledger()
    assert ledger.put(a_child(10)) == KEY
    assert (ledger.put(a_child(version)) == KEY) is is_news


def test_a_new_object_of_the_same_name_replaces_the_old_one_and_survives_its_deletion() -> None:
    ledger = Ledger()
    old, new = a_child(10, "old"), a_child(5, "new")
    ledger.put(old)
    ledger.put(new)
    ledger.remove(old)
    found = ledger.get_child("Service", "default", "flowers")
    assert found is not None
    assert found.identity.uid == "new"


def test_a_sweep_forgets_what_the_list_lacks_but_not_what_is_newer() -> None:
    ledger = Ledger()
    ledger.put(a_child(10))
    ledger.put(observe({**a_pod(), "metadata": {**a_pod()["metadata"], "resourceVersion": "30"}}))
    assert ledger.sweep("Service", [], version=20) == {KEY}
    assert ledger.sweep("Pod", [], version=20) == set()
    assert ledger.list_children(KEY) == []
    assert len(ledger.list_pods(KEY)) == 1


def test_a_sweep_keeps_what_is_listed() -> None:
    ledger = Ledger()
    ledger.put(a_child(10))
    assert ledger.sweep("Service", [("default", "flowers")], version=20) == set()


def test_an_edit_by_hand_is_drift_but_our_own_apply_is_not() -> None:
    ledger = Ledger()
    ledger.note_applied(a_child(10))
    assert not ledger.is_drifted(a_child(11))
    assert ledger.is_drifted(a_child(12, spec={"ports": []}))


def test_after_a_restart_what_is_there_is_trusted() -> None:
    assert not Ledger().is_drifted(a_child(10, spec={"ports": []}))


def test_status_is_no_drift() -> None:
    ledger = Ledger()
    ledger.note_applied(a_child(10, kind="Deployment"))
    assert not ledger.is_drifted(a_child(11, kind="Deployment", status={"replicas": 1}))


def test_a_model_is_kept_without_managed_fields() -> None:
    body = a_model()
    body["metadata"] |= {"uid": "u", "resourceVersion": "1", "managedFields": [{"manager": "kubectl"}]}
    record = observe(body)
    assert b"managedFields" not in record.body  # type: ignore[union-attr]
