"""Whatever stands in a manifest, validate never raises, and what it calls good the operator's parser takes."""

import copy
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmodel_cli.documents import parse_documents
from torchmodel_cli.validation import check_model
from torchmodel_operator.spec import parse_spec

GOOD: dict[str, Any] = {
    "apiVersion": "serving.torchmodel.dev/v1alpha1",
    "kind": "TorchModel",
    "metadata": {"name": "m", "labels": {"a": "b"}},
    "spec": {
        "checkpoint": {"uri": "s3://b/k", "credentials": {"secretName": "s"}},
        "architecture": {"entrypoint": "a:B", "kwargs": {"size": 1}, "source": {"inline": "x = 1"}},
        "task": {"type": "image-classification", "imageClassification": {"mean": [0.5, 0.5, 0.5], "labels": ["a"]}},
        "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        "scheduling": {"tolerations": [{"key": "k", "operator": "Exists"}]},
        "serving": {"batching": {"maxSize": 8}},
        "security": {"allowCodeExecution": True},
    },
}

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def paths_of(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document but its root and its kind."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [(*here, key) for key, _ in children if (*here, key) != ("kind",)]
    return found + [path for key, child in children for path in paths_of(child, (*here, key))]


def changed(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """GOOD with one place replaced."""
    document = copy.deepcopy(GOOD)
    node: Any = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return document


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(paths_of(GOOD)), VALUES)
def test_one_wrong_value_anywhere_is_a_problem_or_harmless(path: tuple[Any, ...], value: Any) -> None:
    (document,) = parse_documents(yaml.safe_dump(changed(path, value)))
    problems = check_model(document)
    assert all(problem.line >= 1 and problem.message for problem in problems)
    if not problems:
        parse_spec(document.data["spec"])


def test_the_document_that_is_changed_is_good() -> None:
    (document,) = parse_documents(yaml.safe_dump(GOOD))
    assert check_model(document) == []
