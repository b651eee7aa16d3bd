"""`torchmodel validate`: each kind of mistake is found, on its own line, in words that say what is allowed."""

from decimal import Decimal
from pathlib import Path

import pytest
from torchmodel_cli.documents import parse_documents
from torchmodel_cli.validation import check_file, check_model, format_problem, notes_of, parse_quantity
from torchmodel_operator.spec import parse_spec

GOOD = """\
apiVersion: serving.torchmodel.dev/v1alpha1
kind: TorchModel
metadata:
  name: linear
spec:
  checkpoint:
    uri: s3://models/linear.pth
  architecture:
    entrypoint: torch.nn:Linear
    kwargs: {in_features: 10, out_features: 1}
  signature:
    inputs:
      - {name: x, datatype: FP32, shape: [-1, 10]}
    outputs:
      - {name: z, datatype: FP32, shape: [-1, 1]}
"""

SOURCE = """\
    source:
      inline: |
        import torch

        class Net(torch.nn.Module
            pass
  security: {allowCodeExecution: true}
"""


def problems_of(text: str, tmp_path: Path) -> list[str]:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    return [format_problem(Path("m.yaml"), problem) for problem in check_file(file).problems]


def added(text: str) -> str:
    return GOOD + text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            added("  serving:\n    batching:\n      maxSize: 0\n"),
            "m.yaml:18: spec.serving.batching.maxSize: got 0, must be 1 to 4096",
            id="a number out of range",
        ),
        pytest.param(
            added("  serving: {device: gpu}\n"),
            "m.yaml:16: spec.serving.device: got 'gpu', must be one of auto, cpu, cuda",
            id="a word that is not in the enum",
        ),
        pytest.param(
            added("  serving:\n    batching: {maxsize: 4}\n"),
            "m.yaml:17: spec.serving.batching.maxsize: unknown field; did you mean maxSize?",
            id="a misspelt field",
        ),
        pytest.param(
            added("  replicas: many\n"),
            "m.yaml:16: spec.replicas: got 'many', must be a whole number",
            id="a string where a number belongs",
        ),
        pytest.param(
            added("  replicas: true\n"),
            "m.yaml:16: spec.replicas: got true, must be a whole number",
            id="a boolean is no number",
        ),
        pytest.param(
            added("  replicas:\n"),
            "m.yaml:16: spec.replicas: got null, must be a whole number",
            id="a field without a value",
        ),
        pytest.param(
            GOOD.replace("    uri: s3://models/linear.pth\n", "    format: auto\n"),
            "m.yaml:6: spec.checkpoint.uri: is missing; where the checkpoint lies",
            id="a missing field, on the line of its parent",
        ),
        pytest.param(
            GOOD.replace("shape: [-1, 10]", "shape: []"),
            "m.yaml:13: spec.signature.inputs[0].shape: got a list of 0, must have 1 to 8 entries, has 0",
            id="an empty list",
        ),
        pytest.param(
            GOOD.replace("shape: [-1, 10]", "shape: [8, 10]"),
            "m.yaml:11: spec.signature: the first dimension of every input and output is the batch and must be -1",
            id="a rule across fields",
        ),
        pytest.param(
            added("  serving:\n    grpc: {maxMessageBytes: 1024}\n"),
            "m.yaml:17: spec.serving.grpc: maxMessageBytes has an effect only with enabled: true",
            id="a field that another switches off",
        ),
        pytest.param(
            added("  serving: {batching: {padding: {mask: mask}}}\n"),
            "m.yaml:5: spec: serving.batching.padding needs an input whose second dimension, the length, is -1, such as shape: ",
            id="padding of what has no length",
        ),
        pytest.param(
            added("  serving: {threads: 3}\n  resources: {limits: {cpu: 2}}\n"),
            "m.yaml:5: spec: serving: threads x workers x processes must be at most resources.limits.cpu, rounded up",
            id="more threads than the CPU limit feeds",
        ),
        pytest.param(
            added("  serving: {telemetry: {otlpEndpoint: collector}}\n"),
            "m.yaml:16: spec.serving.telemetry.otlpEndpoint: got 'collector', must match ^(https?://.+)?$; openTelemetry",
            id="a collector that is no URL",
        ),
        pytest.param(
            GOOD.replace("  signature", SOURCE + "  signature", 1),
            "m.yaml:15: spec.architecture.source.inline: line 3 is not Python: ",
            id="Python in the manifest that does not parse, on its own line",
        ),
        pytest.param(
            added("  replicas: 1\n  replicas: 2\n"),
            "m.yaml:17: spec.replicas: given twice; first on line 16",
            id="a key given twice",
        ),
        pytest.param(
            added("  resources: {requests: {cpu: 4x}}\n"),
            "m.yaml:16: spec.resources.requests.cpu: got '4x', must be a Kubernetes quantity such as 500m, 2 or 4Gi",
            id="a quantity that is none",
        ),
        pytest.param(
            added("  resources:\n    requests: {memory: 2Gi}\n    limits: {memory: 1500Mi}\n"),
            "m.yaml:17: spec.resources.requests.memory: got 2Gi, must be at most limits.memory, 1500Mi",
            id="a request above its limit",
        ),
        pytest.param(
            GOOD.replace("name: linear", "name: My.Model"),
            "m.yaml:4: metadata.name: must be lower-case letters, digits and -",
            id="a name that no Service can have",
        ),
        pytest.param(
            GOOD.replace("v1alpha1", "v1"),
            "m.yaml:1: apiVersion: got 'serving.torchmodel.dev/v1', must be serving.torchmodel.dev/v1alpha1",
            id="another version",
        ),
        pytest.param(
            GOOD.replace("metadata:\n", "metadata:\n  label: {a: b}\n"),
            "m.yaml:4: metadata.label: unknown field; did you mean labels?",
            id="a misspelt field of metadata",
        ),
        pytest.param(
            GOOD.replace("name: linear", "name: y"),
            "m.yaml:4: metadata.name: got true, must be a string; an unquoted y is a boolean in YAML, write 'y'",
            id="a name that kubectl reads as a boolean",
        ),
        pytest.param(
            GOOD.replace("{name: z,", "{name: No,"),
            "m.yaml:15: spec.signature.outputs[0].name: got false, must be a string; an unquoted No is a boolean",
            id="a tensor's name that is a boolean",
        ),
        pytest.param(
            GOOD.replace("{in_features: 10,", "{n: 10,"),
            "m.yaml:10: spec.architecture.kwargs.n: kubectl reads this name as false; quote it: 'n'",
            id="an argument's name that kubectl reads as a boolean",
        ),
        pytest.param(
            GOOD.replace("s3://models/linear.pth", "models/linear.pth"),
            "m.yaml:7: spec.checkpoint.uri: got 'models/linear.pth', must be s3://bucket/key, https://host/path or, beside this "
            "manifest, file:models/linear.pth",
            id="a path without file:",
        ),
        pytest.param(
            GOOD.replace("s3://models/linear.pth", "file:~/linear.pth"),
            "m.yaml:7: spec.checkpoint.uri: got 'file:~/linear.pth', ~ is not expanded; write the whole path",
            id="a path from the home folder",
        ),
        pytest.param(
            GOOD.replace("s3://models/linear.pth", "file:/models/linear.pth"),
            "m.yaml:7: spec.checkpoint.uri: got 'file:/models/linear.pth', an absolute path has three slashes: "
            "file:///models/linear.pth",
            id="an absolute path with one slash",
        ),
        pytest.param(
            GOOD.replace("uri: s3", f"sha256: {'A' * 64}\n    uri: s3"),
            f"m.yaml:7: spec.checkpoint.sha256: got '{'A' * 59}…, must match ^[0-9a-f]{{64}}$; write it in lower case",
            id="a digest in upper case",
        ),
        pytest.param("kind: ConfigMap\n", "m.yaml:1: no TorchModel in this file, found ConfigMap", id="another kind"),
        pytest.param("", "m.yaml:1: no TorchModel in this file, found nothing", id="an empty file"),
        pytest.param("a: 1\nb: [1\nc: 2\n", "m.yaml:3: not YAML: ", id="a bracket that is not closed"),
        pytest.param(
            "kind: TorchModel\nspec: text\n", "m.yaml:2: spec: got 'text', must be a mapping", id="no mapping"
        ),
    ],
)
def test_says_where_and_what(text: str, expected: str, tmp_path: Path) -> None:
    found = problems_of(text, tmp_path)
    assert any(problem.startswith(expected) for problem in found), found


def test_finds_all_mistakes_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = (
        GOOD.replace("torch.nn:Linear", "torch.nn.Linear") + "  replicas: -1\n  task: {type: vision}\n  device: cpu\n"
    )
    found = problems_of(text, tmp_path)
    assert [problem.split(": ")[1] for problem in found] == [
        "spec.architecture.entrypoint",
        "spec.replicas",
        "spec.task.type",
        "spec.device",
    ]


def test_a_wrong_field_does_not_set_off_the_rules_that_read_it(tmp_path: Path) -> None:
    text = GOOD[: GOOD.index("  signature")] + "  task: {type: image-clasification}\n"
    (found,) = problems_of(text, tmp_path)
    assert "did you mean image-classification?" in found


def test_checks_every_document_of_a_file(tmp_path: Path) -> None:
    text = GOOD + "---\nkind: ConfigMap\n---\n" + GOOD + "  replicas: -1\n"
    assert problems_of(text, tmp_path) == ["m.yaml:34: spec.replicas: got -1, must be 0 to 1000"]


def test_a_good_manifest_has_no_problems_and_the_operator_agrees(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(GOOD)
    checked = check_file(file)
    assert checked.problems == []
    parse_spec(checked.models[0].data["spec"])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    (problem,) = check_file(tmp_path / "none.yaml").problems
    assert problem.message == "cannot be read: No such file or directory"


def test_a_resource_as_the_api_server_prints_it_is_good(tmp_path: Path) -> None:
    printed = GOOD.replace(
        "  name: linear\n",
        "  name: linear\n  uid: a\n  generation: 1\n  creationTimestamp: 2026-11-23T10:00:00Z\n  managedFields: []\n",
    )
    assert problems_of(printed, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("500m", "0.5"), ("2", "2"), (2, "2"), ("1.5Gi", "1610612736"), ("2e3", "2000"), ("1k", "1000"), (".5", "0.5")],
)
def test_quantities_are_read_as_kubernetes_does(text: object, expected: str) -> None:
    assert parse_quantity(text) == Decimal(expected)


@pytest.mark.parametrize("text", ["", "4x", "-1", "1 Gi", "Gi", "1e", True, None, "0x10"])
def test_other_texts_are_no_quantities(text: object) -> None:
    assert parse_quantity(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("y", True), ("N", False), ("Yes", True), ("yEs", "yEs"), ("off", False), ("'y'", "y"), ("~", None),
        ("1e-5", 1e-5), ("1e5", 100000), ("5.", 5), ("+.5", 0.5), ("1e400", "1e400"), ("1e", "1e"),
        ("017", 15), ("0o17", 15), ("08", 8), ("0x_1", 1), ("0b11", 3), ("1_000", 1000), ("0", 0), ("-12", -12), ("._", "._"),
        ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("=", "="),
    ],
)  # fmt: skip
def test_values_are_read_as_kubectl_reads_them(text: str, expected: object) -> None:
    """Each as `kubectl annotate --local -f FILE a=b -o json` of kubectl 1.37.1 prints it."""
    (document,) = parse_documents(f"a: {text}\n")
    assert repr(document.data["a"]) == repr(expected)


def test_names_of_fields_are_text_as_in_json() -> None:
    (document,) = parse_documents("{on: 1, 3: 2, no: 3}")
    assert document.data == {"true": 1, "3": 2, "false": 3}


def test_a_boolean_where_anything_is_allowed_is_worth_a_note() -> None:
    (document,) = parse_documents(GOOD.replace("{in_features: 10,", "{mode: n, bias: true,"))
    assert check_model(document) == []
    (note, *_) = notes_of(document)
    assert note == (
        "line 10: spec.architecture.kwargs.mode: an unquoted n is the boolean false; if text is meant, write 'n'"
    )


def test_all_examples_are_valid() -> None:
    for manifest in Path("examples").glob("*/torchmodel.yaml"):
        checked = check_file(manifest)
        assert checked.problems == [], manifest
        assert [check_model(model) for model in checked.models] == [[]]
