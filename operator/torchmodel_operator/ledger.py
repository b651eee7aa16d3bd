"""What the operator knows of the cluster: one slim record for each watched object, found by the TorchModel it belongs to.

Fed by `handlers` (watch events), by `reconcile` and `children` (answers to their own calls) and by `resync` (lists); read by
`reconcile` and `children`.
States of one object may arrive in any order, so an older one never replaces a newer one. kopf never reports what was
deleted while its watch was down; such ghosts are found by `sweep`, given a fresh list.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torchmodel_operator.observed import ChildRecord, Key, ModelRecord, PodFacts, Record

R = TypeVar("R", ModelRecord, ChildRecord, PodFacts)
Address = tuple[str, str, str]  # kind, namespace, name


class Ledger:
    """Records by kind, namespace and name; no I/O, no clock."""

    def __init__(self) -> None:
        self._records: dict[Address, Record] = {}
        self._owned: dict[Key, set[Address]] = {}
        self._applied: dict[Address, str] = {}

    def __len__(self) -> int:
        return len(self._records)

    def put(self, record: Record) -> Key | None:
        """Keep a record unless a newer state is known; returns the key whose model it concerns, None if nothing changed."""
        address = _address(record)
        known = self._records.get(address)
        if known is not None and known.identity.uid == record.identity.uid:
            if known.identity.version >= record.identity.version:
                return None
            if known.owner != record.owner:
                self._drop(address)
        self._records[address] = record
        if record.owner is not None:
            self._owned.setdefault(record.owner, set()).add(address)
        return record.owner

    def remove(self, record: Record) -> Key | None:
        """Forget an object that was deleted; a successor of the same name stays. Returns its key."""
        known = self._records.get(_address(record))
        if known is None or known.identity.uid != record.identity.uid:
            return record.owner
        self._drop(_address(record))
        return known.owner

    def sweep(self, kind: str, seen: Iterable[tuple[str, str]], version: int) -> set[Key]:
        """Forget what a complete list of `kind` (namespace and name) at `version` lacks; returns the keys concerned."""
        present = set(seen)
        ghosts = [
            address
            for address, record in self._records.items()
            if address[0] == kind and address[1:] not in present and record.identity.version <= version
        ]
        owners = {self._records[address].owner for address in ghosts}
        for address in ghosts:
            self._drop(address)
        return {owner for owner in owners if owner is not None}

    def get_model(self, key: Key) -> ModelRecord | None:
        """The TorchModel itself."""
        record = self._records.get(("TorchModel", *key))
        return record if isinstance(record, ModelRecord) else None

    def get_child(self, kind: str, namespace: str, name: str) -> ChildRecord | None:
        """A child by its name, whoever owns it."""
        record = self._records.get((kind, namespace, name))
        return record if isinstance(record, ChildRecord) else None

    def list_children(self, key: Key) -> list[ChildRecord]:
        """The children of a model, by kind and name."""
        return self._list(key, ChildRecord)

    def list_pods(self, key: Key) -> list[PodFacts]:
        """The replicas of a model, by name."""
        return self._list(key, PodFacts)

    def is_drifted(self, record: ChildRecord) -> bool:
        """True when the child's content is not what it was after the operator last applied it, as far as that is known."""
        return self._applied.setdefault(_address(record), record.content_hash) != record.content_hash

    def note_applied(self, record: ChildRecord) -> None:
        """Keep what the API server answered to an apply: from here on a change of the content is somebody else's."""
        self._applied[_address(record)] = record.content_hash
        self.put(record)

    def _list(self, key: Key, kind: type[R]) -> list[R]:
        records = [self._records[address] for address in sorted(self._owned.get(key, ()))]
        return [record for record in records if isinstance(record, kind)]

    def _drop(self, address: Address) -> None:
        record = self._records.pop(address)
        self._applied.pop(address, None)
        if record.owner is not None and record.owner in self._owned:
            self._owned[record.owner].discard(address)
            if not self._owned[record.owner]:
                del self._owned[record.owner]


def _address(record: Record) -> Address:
    return record.identity.kind, record.identity.namespace, record.identity.name
