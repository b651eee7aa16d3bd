"""What the API server takes and refuses: the CRD's schema and CEL rules say the same as the operator's own parsing."""

from __future__ import annotations

from typing import Any

import pytest
from testkit.control_plane import ApiError
from testkit.manifests import DIGEST, REMOVED, a_model
from testkit.operator_cluster import MODELS, Cluster
from torchmodel_operator.errors import SpecError
from torchmodel_operator.rules import RULES
from torchmodel_operator.spec import parse_spec

CODE = {"allowCodeExecution": True}
IMAGES: dict[str, Any] = {"signature": REMOVED}
TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1, 10]}
SEQUENCE = {"inputs": [{**TENSOR, "shape": [-1, -1, 80]}]}
PADDING = {"batching": {"padding": {"mask": "mask"}}}

ACCEPTED: dict[str, dict[str, Any]] = {
    "the least": {},
    "a digest and credentials": {"checkpoint": {"sha256": DIGEST, "credentials": {"secretName": "s3"}}},
    "a path in the image": {"checkpoint": {"uri": "file:///srv/x.pth"}},
    "images": {**IMAGES, "task": {"type": "image-classification"}},
    "images with labels": {
        **IMAGES,
        "task": {"type": "image-classification", "imageClassification": {"labels": ["a"], "cropPixels": 256}},
    },
    "text": {**IMAGES, "task": {"type": "text-embedding", "textEmbedding": {"pooling": "cls"}}},
    "speech": {**IMAGES, "task": {"type": "speech"}},
    "inline code": {"architecture": {"source": {"inline": "x = 1"}}, "security": CODE},
    "code in a ConfigMap": {"architecture": {"source": {"configMap": {"name": "code"}}}, "security": CODE},
    "quantities as numbers and words": {"resources": {"requests": {"cpu": 1, "memory": "1Gi"}}},
    "any keyword argument": {"architecture": {"kwargs": {"a": [1, {"b": None}], "c": 1.5}}},
    "no replicas": {"replicas": 0},
    "padded sequences": {"signature": SEQUENCE, "serving": PADDING},
    "one input padded, another of fixed size": {
        "signature": {
            "inputs": [{**TENSOR, "shape": [-1, -1]}, {**TENSOR, "name": "c"}, {**TENSOR, "name": "d", "shape": [-1]}]
        },
        "serving": {"batching": {"padding": {"mask": "mask", "value": -1}}},
    },
    "gRPC with a size of its own": {"serving": {"grpc": {"enabled": True, "maxMessageBytes": 1024}}},
    "traces": {"serving": {"telemetry": {"otlpEndpoint": "http://collector:4318", "traceRatio": 1}}},
    "fewer elements in all than the default of JSON": {"serving": {"limits": {"maxElements": 1000}}},
    "as many bytes in flight as one request may bring": {
        "serving": {"maxRequestBytes": 4096, "limits": {"maxBytesInFlight": 4096}}
    },
    "bytes in flight for the largest message": {
        "serving": {
            "maxRequestBytes": 4096,
            "limits": {"maxBytesInFlight": 8192},
            "grpc": {"enabled": True, "maxMessageBytes": 8192},
        }
    },
    "brain floats": {"signature": {"inputs": [{**TENSOR, "datatype": "BF16"}]}},
    "as many threads as the limit begins": {
        "serving": {"threads": 2, "workers": 1, "processes": 1},
        "resources": {"limits": {"cpu": "1500m"}},
    },
    "workers that fill the limit": {
        "serving": {"workers": 2, "processes": 2, "threads": 0},
        "resources": {"limits": {"cpu": 4}},
    },
    "one thread of a small limit": {"serving": {"threads": 1}, "resources": {"limits": {"cpu": "100m"}}},
    "threads without a limit": {"serving": {"threads": 64, "workers": 2}},
    "one worker on a GPU": {"serving": {"workers": 1, "processes": 1}, "resources": {"gpu": {"count": 1}}},
}

BROKEN_RULES: dict[str, dict[str, Any]] = {
    "image options without the task": {"task": {"type": "tensor", "imageClassification": {}}},
    "text options without the task": {"task": {"type": "tensor", "textEmbedding": {}}},
    "speech options without the task": {"task": {"type": "tensor", "speech": {}}},
    "no signature": {"signature": REMOVED},
    "a signature the task does not need": {"task": {"type": "speech"}},
    "a first dimension that is not the batch": {"signature": {"inputs": [{**TENSOR, "shape": [1, 10]}]}},
    "two inputs of one name": {"signature": {"inputs": [TENSOR, TENSOR]}},
    "a scheme nobody knows": {"checkpoint": {"uri": "ftp://host/x"}},
    "credentials for a file": {"checkpoint": {"uri": "file:///x", "credentials": {"secretName": "s"}}},
    "a key in safetensors": {"checkpoint": {"format": "safetensors", "key": "model"}},
    "a delay without batches": {"serving": {"batching": {"maxSize": 1, "maxDelayMilliseconds": 5}}},
    "padding without batches": {
        "signature": SEQUENCE,
        "serving": {"batching": {"maxSize": 1, "padding": {"mask": "mask"}}},
    },
    "padding for a task that knows its own": {**IMAGES, "task": {"type": "text-embedding"}, "serving": PADDING},
    "padding without a length": {"serving": PADDING},
    "padding of rows of rank one": {"signature": {"inputs": [{**TENSOR, "shape": [-1]}]}, "serving": PADDING},
    "padding in two dimensions": {"signature": {"inputs": [{**TENSOR, "shape": [-1, -1, -1]}]}, "serving": PADDING},
    "text for a module": {"signature": {"inputs": [{**TENSOR, "datatype": "BYTES"}]}},
    "text from a module": {"signature": {"outputs": [{**TENSOR, "datatype": "BYTES"}]}},
    "more elements in JSON than in all": {"serving": {"limits": {"maxElements": 1000, "maxJsonElements": 1001}}},
    "a rank that the limits refuse": {"serving": {"limits": {"maxRank": 1}}},
    "more inputs than the limits take": {
        "signature": {"inputs": [TENSOR, {**TENSOR, "name": "z"}]},
        "serving": {"limits": {"maxTensors": 1}},
    },
    "fewer bytes in flight than one request may bring": {"serving": {"limits": {"maxBytesInFlight": 1 << 20}}},
    "fewer bytes in flight than one message may bring": {
        "serving": {
            "maxRequestBytes": 4096,
            "limits": {"maxBytesInFlight": 8191},
            "grpc": {"enabled": True, "maxMessageBytes": 8192},
        }
    },
    "a message size without gRPC": {"serving": {"grpc": {"maxMessageBytes": 1024}}},
    "a share of traces that go nowhere": {"serving": {"telemetry": {"traceRatio": 0.5}}},
    "two workers on a GPU": {"serving": {"workers": 2}, "resources": {"gpu": {"count": 1}}},
    "two processes on a GPU that is only named": {"serving": {"processes": 2, "device": "cuda"}},
    "more threads than the limit": {"serving": {"threads": 3}, "resources": {"limits": {"cpu": "2"}}},
    "more workers than the limit": {
        "serving": {"threads": 2, "workers": 2, "processes": 1},
        "resources": {"limits": {"cpu": "2500m"}},
    },
    "a GPU for the CPU": {"serving": {"device": "cpu"}, "resources": {"gpu": {"count": 1}}},
    "code from two places": {
        "architecture": {"source": {"inline": "x", "configMap": {"name": "c"}}},
        "security": CODE,
    },
    "code from nowhere": {"architecture": {"source": {}}, "security": CODE},
    "code without consent": {"architecture": {"source": {"inline": "x"}}},
    "labels twice": {
        **IMAGES,
        "task": {"type": "image-classification", "imageClassification": {"labels": ["a"], "labelSet": "imagenet-1k"}},
    },
    "a crop larger than the image": {
        **IMAGES,
        "task": {"type": "image-classification", "imageClassification": {"cropPixels": 300}},
    },
}

BROKEN_SCHEMA: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown field": ({"colour": "red"}, "colour"),
    "an unknown inner field": ({"serving": {"bacthing": {}}}, "bacthing"),
    "no batch size": ({"serving": {"batching": {"maxSize": 0}}}, "spec.serving.batching.maxSize"),
    "a digest too short": ({"checkpoint": {"sha256": "abc"}}, "spec.checkpoint.sha256"),
    "no class": ({"architecture": {"entrypoint": "torch.nn.Linear"}}, "spec.architecture.entrypoint"),
    "an unknown format": ({"checkpoint": {"format": "onnx"}}, "spec.checkpoint.format"),
    "an unknown datatype": ({"signature": {"inputs": [{**TENSOR, "datatype": "FLOAT"}]}}, "datatype"),
    "a mask that is no name": (
        {"signature": SEQUENCE, "serving": {"batching": {"padding": {"mask": "a b"}}}},
        "spec.serving.batching.padding.mask",
    ),
    "padding without a mask": ({"signature": SEQUENCE, "serving": {"batching": {"padding": {}}}}, "mask"),
    "a collector without a scheme": (
        {"serving": {"telemetry": {"otlpEndpoint": "collector:4318"}}},
        "spec.serving.telemetry.otlpEndpoint",
    ),
    "a share above one": ({"serving": {"telemetry": {"accessLogRatio": 2}}}, "spec.serving.telemetry.accessLogRatio"),
    "no pixels": (
        {**IMAGES, "task": {"type": "image-classification", "imageClassification": {"maxPixels": 1}}},
        "spec.task.imageClassification.maxPixels",
    ),
    "fewer bytes in flight than none": (
        {"serving": {"limits": {"maxBytesInFlight": -1}}},
        "spec.serving.limits.maxBytesInFlight",
    ),
    "an unknown limit": ({"serving": {"limits": {"maxDepth": 3}}}, "maxDepth"),
    "negative replicas": ({"replicas": -1}, "spec.replicas"),
    "a GPU resource without a domain": ({"resources": {"gpu": {"resource": "gpu"}}}, "spec.resources.gpu.resource"),
}


def submit(cluster: Cluster, body: dict[str, Any]) -> None:
    """As kubectl does it, but nothing is kept."""
    cluster.api.request("POST", MODELS.format("default"), body, dryRun="All", fieldValidation="Strict")


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted_by_both(cluster: Cluster, case: str) -> None:
    body = a_model(**ACCEPTED[case])
    submit(cluster, body)
    parse_spec(body["spec"])


@pytest.mark.parametrize("case", BROKEN_RULES)
def test_refused_by_both_for_the_same_reason(cluster: Cluster, case: str) -> None:
    body = a_model(**BROKEN_RULES[case])
    with pytest.raises(SpecError) as ours:
        parse_spec(body["spec"])
    with pytest.raises(ApiError) as theirs:
        submit(cluster, body)
    assert theirs.value.status == 422
    (rule,) = [rule for rule in RULES if rule.message in ours.value.message]
    assert rule.message in str(theirs.value)


def test_every_rule_is_broken_by_a_case() -> None:
    said = []
    for spec in BROKEN_RULES.values():
        with pytest.raises(SpecError) as raised:
            parse_spec(a_model(**spec)["spec"])
        said.append(raised.value.message)
    assert [rule.message for rule in RULES if not any(rule.message in message for message in said)] == []


@pytest.mark.parametrize("case", BROKEN_SCHEMA)
def test_refused_by_the_schema_and_by_parsing(cluster: Cluster, case: str) -> None:
    spec, word = BROKEN_SCHEMA[case]
    body = a_model(**spec)
    with pytest.raises(ApiError, match=word.replace(".", r"\.")) as theirs:
        submit(cluster, body)
    assert theirs.value.status in (400, 422)
    with pytest.raises(SpecError, match=word.rpartition(".")[2]):
        parse_spec(body["spec"])


@pytest.mark.parametrize("name", ["1model", "a.b", "x" * 41])
def test_names_that_no_service_can_have(cluster: Cluster, name: str) -> None:
    with pytest.raises(ApiError, match=r"metadata\.name"):
        submit(cluster, a_model(name))


def test_a_new_model_is_in_progress_to_tools_that_read_conditions(cluster: Cluster) -> None:
    """Without a condition kstatus would take it for done."""
    status = cluster.create("pending")["status"]
    assert [(condition["type"], condition["status"]) for condition in status["conditions"]] == [("Ready", "Unknown")]
