"""Types → CustomResourceDefinition. `python -m torchmodel_operator.crd FILE…` writes it; nobody edits generated YAML.

msgspec gives a JSON Schema with references; Kubernetes wants a structural one: inlined, without null, every default spelled
out, so that `kubectl explain` reads well and the API server fills defaults. `rules.RULES` become x-kubernetes-validations.
Source of the form: Kubernetes "CustomResourceDefinition", structural schemas and validation rules.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from torchmodel_operator.rules import NAME_RULES, RULES
from torchmodel_operator.spec import GROUP, KIND, PLURAL, VERSION, TorchModelSpec, TorchModelStatus

Json = dict[str, Any]

UNSTRUCTURED = {"kwargs"}
"""Properties whose content is free: JSON values as they come."""

MAX_UNBOUNDED_STRING = 4096
"""CEL's cost is estimated from the largest possible value, so a string without a bound gets this one (our choice)."""

PENDING_STATUS: Json = {
    "conditions": [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "Pending",
            "message": "Waiting for the operator; if this stays, see that it runs: kubectl get pods -A -l "
            "app.kubernetes.io/name=torchmodel-operator",
            "lastTransitionTime": "1970-01-01T00:00:00Z",
            "observedGeneration": 0,
        }
    ]
}
"""Without a condition a new object would read as current to kstatus; Gateway API's GatewayClass does the same."""


def openapi_schema() -> Json:
    """The resource's structural openAPIV3Schema, validation rules included."""
    spec = _with_rules(_structural(TorchModelSpec))
    status = _without_defaults(_structural(TorchModelStatus))
    conditions = status["properties"]["conditions"]
    conditions |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    status["default"] = PENDING_STATUS
    return {
        "type": "object",
        "description": "TorchModel serves one PyTorch checkpoint over HTTP.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": spec,
            "status": status,
        },
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in NAME_RULES],
    }


def custom_resource_definition() -> Json:
    """The whole CustomResourceDefinition of TorchModel."""
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": openapi_schema()},
        "subresources": {
            "status": {},
            "scale": {
                "specReplicasPath": ".spec.replicas",
                "statusReplicasPath": ".status.replicas",
                "labelSelectorPath": ".status.selector",
            },
        },
        "additionalPrinterColumns": [
            _column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status", "Whether it serves."),
            _column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason", "Why it is or is not ready."),
            _column("URL", "string", ".status.url", "Address inside the cluster."),
            _column("Replicas", "integer", ".status.readyReplicas", "Replicas that serve."),
            _column("Digest", "string", ".status.checkpoint.shortSha256", "Start of the loaded checkpoint's SHA-256."),
            _column("Age", "date", ".metadata.creationTimestamp", ""),
            _column("Safety", "string", ".status.loadSafety", "weights-only or code.", priority=1),
            _column("Device", "string", ".status.device", "Where it runs.", priority=1),
        ],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tm"],
                "categories": ["torchmodel"],
            },
            "scope": "Namespaced",
            "versions": [version],
        },
    }


def _column(name: str, kind: str, path: str, description: str, priority: int = 0) -> Json:
    column: Json = {"name": name, "type": kind, "jsonPath": path}
    if description:
        column["description"] = description
    if priority:
        column["priority"] = priority
    return column


def _structural(root: type[msgspec.Struct]) -> Json:
    """The schema of a struct: references inlined, null dropped, titles dropped."""
    (reference,), definitions = msgspec.json.schema_components([root], ref_template="{name}")

    def inline(node: Json) -> Json:
        node = dict(node)
        if "$ref" in node:
            base = inline(definitions[node.pop("$ref")])
            return base | {key: value for key, value in node.items() if key != "default"} | _default_of(node, base)
        if "anyOf" in node:
            return _merged(node, [inline(part) for part in node.pop("anyOf") if part != {"type": "null"}])
        node.pop("title", None)
        if "properties" in node:
            node["properties"] = {name: _property(name, inline(child)) for name, child in node["properties"].items()}
            if not node.get("required"):
                node.pop("required", None)
            node.pop("additionalProperties", None)  # structural: what is not listed is pruned, or refused by kubectl
        elif isinstance(node.get("additionalProperties"), dict):
            node["additionalProperties"] = inline(node["additionalProperties"])
            node.pop("propertyNames", None)
        if "items" in node:
            node["items"] = inline(node["items"])
            node.setdefault("maxItems", 64)
        if "enum" in node:
            node["type"] = "string"
        elif node.get("type") == "string":
            node.setdefault("maxLength", MAX_UNBOUNDED_STRING)
        if node.get("type") == "integer":
            node["format"] = "int64"
        if node.get("default", "") is None:
            del node["default"]
        return _draft4_bounds(node)

    return inline(reference)


def _merged(node: Json, parts: list[Json]) -> Json:
    """A union without null: the one part that is left, or Kubernetes' own form for integer-or-string."""
    if node.get("default", "") is None:
        del node["default"]
    if len(parts) == 1:
        return parts[0] | node
    if {part["type"] for part in parts} == {"string", "integer"}:
        return {"x-kubernetes-int-or-string": True, **node}
    raise TypeError(f"a structural schema has no form for the union of {parts}")


def _default_of(node: Json, base: Json) -> Json:
    """A nested struct with a default gets {}, so that the API server fills the inner defaults."""
    if "default" not in node or node["default"] is None or base.get("required"):
        return {}
    return {"default": {}}


def _property(name: str, node: Json) -> Json:
    if name in UNSTRUCTURED:
        node.pop("additionalProperties", None)
        node["x-kubernetes-preserve-unknown-fields"] = True
        node["maxProperties"] = 64
    return node


def _draft4_bounds(node: Json) -> Json:
    """OpenAPI 3.0 has exclusiveMinimum as a flag beside minimum."""
    if "exclusiveMinimum" in node:
        node["minimum"] = node["exclusiveMinimum"]
        node["exclusiveMinimum"] = True
    return node


def _with_rules(schema: Json) -> Json:
    """Attach rules.RULES at their paths."""
    for rule in RULES:
        node = schema
        for step in rule.path[1:]:
            node = node["properties"][step]
        node.setdefault("x-kubernetes-validations", []).append({"rule": rule.cel, "message": rule.message})
    return schema


def _without_defaults(node: Json) -> Json:
    """A status says only what was seen, so its fields are absent until the operator writes them."""
    children = {name: _without_defaults(child) for name, child in node.get("properties", {}).items()}
    if "items" in node:
        node["items"] = _without_defaults(node["items"])
    node.pop("default", None)
    return node | ({"properties": children} if children else {})


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors, which readers of a CRD do not expect."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002  the base class passes it
        """Never alias. See PyYAML's Representer.ignore_aliases."""
        return True


def as_yaml(document: Json) -> str:
    """The document as YAML, with a line that says where it comes from."""
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=120)
    return f"# Generated from torchmodel_operator.spec by `make crds`. Do not edit.\n{text}"


CHART_HEAD = """{{- if .Values.crds.install }}
"""
CHART_ANNOTATIONS = """  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""
CHART_TAIL = "{{- end }}\n"


def as_chart_template(text: str) -> str:
    """The same CRD as a Helm template behind the switches crds.install and crds.keep."""
    name = f"  name: {PLURAL}.{GROUP}\n"
    escaped = text.replace("{{", '{{ "{{" }}')
    return CHART_HEAD + escaped.replace(name, name + CHART_ANNOTATIONS) + CHART_TAIL


def main(crd_file: str, chart_file: str) -> None:
    """Write the plain CRD and the chart's copy."""
    text = as_yaml(custom_resource_definition())
    Path(crd_file).write_text(text)
    Path(chart_file).write_text(as_chart_template(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
