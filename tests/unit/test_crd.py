"""The CRD comes from the typed spec, and the rules across fields say the same in CEL and in Python (api tests ask CEL)."""

from pathlib import Path

import pytest
from torchmodel_operator import crd
from torchmodel_operator.errors import SpecError
from torchmodel_operator.rules import RULES
from torchmodel_operator.spec import parse_model, parse_spec

ROOT = Path(__file__).parents[2]


def test_the_committed_files_are_what_the_types_give():
    text = crd.as_yaml(crd.custom_resource_definition())
    assert (ROOT / "crds/torchmodels.yaml").read_text() == text, "run `make crds`"
    chart = ROOT / "charts/torchmodel-operator/templates/crds/torchmodels.yaml"
    assert chart.read_text() == crd.as_chart_template(text), "run `make crds`"


def nodes(node, path=""):
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")


SCHEMA = crd.openapi_schema()["properties"]


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_is_described(part):
    missing = [path for path, node in nodes(SCHEMA[part]) if not path.endswith("[]") and "description" not in node]
    assert not [path for path in missing if path]


def test_every_string_and_list_is_bounded_so_that_cel_costs_little():
    for path, node in nodes(SCHEMA["spec"]):
        if node.get("type") == "string" and "enum" not in node:
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path


def test_the_schema_is_structural():
    for path, node in nodes(SCHEMA["spec"]):
        assert not {"$ref", "anyOf", "title", "additionalProperties"} & set(node) or path.endswith("nodeSelector"), path
        assert "type" in node or "x-kubernetes-int-or-string" in node, path


def test_every_rule_is_in_the_schema():
    placed = [rule for _, node in nodes(SCHEMA["spec"]) for rule in node.get("x-kubernetes-validations", [])]
    assert len(placed) == len(RULES)


MINIMAL = {
    "checkpoint": {"uri": "s3://models/linear.pth"},
    "architecture": {"entrypoint": "torch.nn:Linear"},
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 10]}],
        "outputs": [{"name": "score", "datatype": "FP32", "shape": [-1, 1]}],
    },
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(
            {"serving": {"batching": {"maxSize": 0}}},
            "spec.serving.batching.maxSize: got '0', expected int >= 1",
            id="range",
        ),
        pytest.param(
            {"serving": {"bacthing": {}}}, "spec.serving: object contains unknown field bacthing", id="unknown field"
        ),
        pytest.param(
            {"checkpoint": {"uri": "s3://m/x", "sha256": "abc"}}, "spec.checkpoint.sha256: got 'abc'", id="pattern"
        ),
        pytest.param({"task": {"type": "vision"}}, "spec.task.type: got 'vision', invalid enum value", id="enum"),
        pytest.param({"checkpoint": {}}, "spec.checkpoint: object missing required field uri", id="required"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_given(change, message):
    with pytest.raises(SpecError) as raised:
        parse_spec(MINIMAL | change)
    assert message in raised.value.message


@pytest.mark.parametrize("name", ["1model", "a.b", "x" * 41, "Model"])
def test_names_that_no_service_can_have_are_refused(name):
    with pytest.raises(SpecError, match=r"^metadata\.name: "):
        parse_model({"metadata": {"name": name, "namespace": "n", "uid": "u"}, "spec": MINIMAL})


def test_the_folder_called_operator_does_not_hide_the_standard_module():
    import operator

    assert operator.attrgetter.__module__ == "operator"
