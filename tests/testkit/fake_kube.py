"""An API server in memory for unit tests of the operator: KubeApi's calls, and failures on any of them.

It keeps what the operator relies on: uids, resourceVersions that move only when something changed, generations that move
with the spec, status apart from the rest, preconditions. It has no schema, no defaults and no field ownership: those need
the real API server (tests/api).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

from torchmodel_operator.errors import KubeError
from torchmodel_operator.kube import EVENTS, Body, Page, Resource

Address = tuple[str, str, str]
WRITES = ("apply", "apply-status", "delete", "create", "replace")


class FakeKube:
    """Implements KubeApi. `calls` are (verb, kind, name) in their order."""

    def __init__(self) -> None:
        self.objects: dict[Address, Body] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.managers: set[str] = set()
        self.events: list[Body] = []
        self.pod_events: list[Body] = []
        self._failures: list[tuple[str, str, Callable[[], KubeError], list[int]]] = []
        self._versions = itertools.count(100)
        self._uids = itertools.count(1)

    @property
    def writes(self) -> list[tuple[str, str, str]]:
        """The calls that change something, Events left out."""
        return [call for call in self.calls if call[0] in WRITES and call[1] != "Event"]

    def fail(self, verb: str, kind: str, status: int, message: str = "induced", times: int = 1_000_000) -> None:
        """Let the next calls of that verb on that kind fail ("*" is any)."""
        self._failures.append((verb, kind, lambda: KubeError(message, status), [times]))

    def heal(self) -> None:
        """No call fails any more."""
        self._failures.clear()

    def add(self, body: Body) -> Body:
        """Put an object there as somebody else would; the object as stored."""
        stored = copy.deepcopy(body)
        metadata = stored["metadata"]
        metadata.setdefault("uid", f"uid-{next(self._uids)}")
        metadata.setdefault("generation", 1)
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects[stored["kind"], metadata["namespace"], metadata["name"]] = stored
        return copy.deepcopy(stored)

    def set_status(self, kind: str, namespace: str, name: str, status: Body) -> Body:
        """Give an object a status, as a controller would; the object as stored."""
        stored = self.objects[kind, namespace, name]
        stored["status"] = copy.deepcopy(status)
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        return copy.deepcopy(stored)

    def remove(self, kind: str, namespace: str, name: str) -> Body:
        """Take an object away, as somebody else would."""
        return self.objects.pop((kind, namespace, name))

    async def get(self, resource: Resource, namespace: str, name: str) -> Body | None:
        self._note("get", resource.kind, name)
        found = self.objects.get((resource.kind, namespace, name))
        return copy.deepcopy(found) if found else None

    async def list_page(
        self, resource: Resource, namespace: str | None, *, labels: str = "", fields: str = "", page: str = ""
    ) -> Page:
        if page:
            raise KubeError(f"no page {page!r}: all objects are on the first one", 410)
        self._note("list", resource.kind, fields)
        if resource is EVENTS:
            return Page(
                [event for event in self.pod_events if event["regarding"]["uid"] in fields], next(self._versions), ""
            )
        wanted = dict(part.split("=") for part in labels.split(",") if part)
        items = [
            copy.deepcopy(body)
            for (kind, where, _), body in sorted(self.objects.items())
            if kind == resource.kind
            and namespace in (None, where)
            and wanted.items() <= body["metadata"].get("labels", {}).items()
        ]
        return Page(items, next(self._versions), "")

    async def apply(self, body: Body, manager: str, subresource: str = "") -> Body:
        self.managers.add(manager)
        metadata = body["metadata"]
        address = (body["kind"], metadata["namespace"], metadata["name"])
        self._note(f"apply-{subresource}" if subresource else "apply", body["kind"], metadata["name"])
        stored = self.objects.get(address)
        if stored is None:
            if subresource:
                raise KubeError("not found", 404)
            return self.add(body)
        if metadata.get("uid", stored["metadata"]["uid"]) != stored["metadata"]["uid"]:
            raise KubeError("uid mismatch", 409)
        before = copy.deepcopy(stored)
        parts = ("status",) if subresource else tuple(key for key in body if key not in ("metadata", "status"))
        for part in parts:
            stored[part] = copy.deepcopy(body[part])
        if not subresource:
            stored["metadata"] |= {key: copy.deepcopy(value) for key, value in metadata.items()}
            if stored.get("spec") != before.get("spec"):
                stored["metadata"]["generation"] += 1
        if stored != before:
            stored["metadata"]["resourceVersion"] = str(next(self._versions))
        return copy.deepcopy(stored)

    async def delete(self, resource: Resource, namespace: str, name: str, uid: str) -> None:
        self._note("delete", resource.kind, name)
        stored = self.objects.get((resource.kind, namespace, name))
        if stored is not None and stored["metadata"]["uid"] == uid:
            del self.objects[resource.kind, namespace, name]

    async def create(self, resource: Resource, body: Body) -> Body:
        self._note("create", resource.kind, body["metadata"]["name"])
        if resource is EVENTS:
            self.events.append(body)
            return body
        if (resource.kind, body["metadata"]["namespace"], body["metadata"]["name"]) in self.objects:
            raise KubeError("already exists", 409)
        return self.add(body)

    async def replace(self, resource: Resource, body: Body) -> Body:
        metadata = body["metadata"]
        self._note("replace", resource.kind, metadata["name"])
        stored = self.objects.get((resource.kind, metadata["namespace"], metadata["name"]))
        if stored is None:
            raise KubeError("not found", 404)
        if stored["metadata"]["resourceVersion"] != metadata["resourceVersion"]:
            raise KubeError("conflict", 409)
        return self.add({**body, "metadata": {**stored["metadata"], **metadata}})

    def _note(self, verb: str, kind: str, name: str) -> None:
        self.calls.append((verb, kind, name))
        for wanted_verb, wanted_kind, make_error, times in self._failures:
            if wanted_verb in ("*", verb) and wanted_kind in ("*", kind) and times[0] > 0:
                times[0] -= 1
                raise make_error()
