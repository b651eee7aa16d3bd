"""Bytes to tensors and back. Every way in which a body can be wrong is asked over HTTP in tests/service."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np
from torchmodel_runtime import codec
from torchmodel_runtime.config import Limits, Serving, Signature, TensorSpec
from torchmodel_runtime.errors import RequestError, queue_full
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tasks.tensor import TensorTask
from torchmodel_runtime.tensors import FLOATS, NUMPY_DTYPES


def signature(*specs: tuple[str, str, list[int]]) -> Signature:
    tensors = [TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in specs]  # type: ignore[arg-type]
    return Signature(inputs=tensors, outputs=tensors)


def call(dialect: str, body: bytes = b"") -> Call:
    return Call(dialect=dialect, model="m", body=body, headers={}, content_type="application/json")  # type: ignore[arg-type]


def plan(tensors: Signature, media: tuple[str, ...] = (), **limits: int) -> codec.Plan:
    return codec.make_plan("m", "1", tensors, media, Serving(limits=Limits(**limits)))


def decode(dialect: str, body: bytes, tensors: Signature) -> codec.Decoded:
    return codec.decode_request(call(dialect, body), plan(tensors))


def encode(decoded: codec.Decoded, tensors: Signature, outputs: list[np.ndarray]) -> Answer:
    return codec.encode_response(call("v2"), decoded, plan(tensors), TensorTask(tensors), outputs)


def encode_v2(decoded: codec.Decoded, tensors: Signature, outputs: list[np.ndarray]) -> Any:
    return json.loads(encode(decoded, tensors, outputs).body)


def decode_v2(tensor: dict[str, Any], datatype: str, shape: list[int]) -> np.ndarray:
    body = json.dumps({"inputs": [{"name": "x", "datatype": datatype, **tensor}]}).encode()
    return decode("v2", body, signature(("x", datatype, shape))).inputs[0]


NUMERIC = sorted(name for name, dtype in NUMPY_DTYPES.items() if dtype.kind != "O")


def arrays(datatype: str, *, finite: bool) -> st.SearchStrategy[np.ndarray]:
    """Arrays of up to three axes; those of BF16 are made of FP16's, since hypothesis does not know bfloat16."""
    shapes = st_np.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)
    elements = {"allow_nan": False, "allow_infinity": False} if finite and datatype in FLOATS else None
    if datatype == "BF16":
        return st_np.arrays(np.float16, shapes, elements=elements).map(lambda array: array.astype(NUMPY_DTYPES["BF16"]))
    return st_np.arrays(NUMPY_DTYPES[datatype], shapes, elements=elements)


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_tensors_survive_the_way_through_json(datatype: str, data: st.DataObject) -> None:
    dtype = NUMPY_DTYPES[datatype]
    array = data.draw(arrays(datatype, finite=True))
    shape = [-1] * array.ndim
    answer = encode_v2(codec.Decoded([], "id"), signature(("x", datatype, shape)), [array])
    output = answer["outputs"][0]
    for values in (output["data"], array.tolist()):
        again = decode_v2({"shape": output["shape"], "data": values}, datatype, shape)
        assert again.dtype == dtype
        np.testing.assert_array_equal(again, array)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("UINT8", [256]),
        ("UINT8", [-1]),
        ("INT8", [128]),
        ("INT64", [2**63]),
        ("UINT64", [2**64]),
        ("FP16", [70000]),
        ("FP32", [1e39]),
        ("FP64", [10**400]),
        ("INT32", [1.5]),
        ("INT32", ["1"]),
        ("INT32", [True]),
        ("BOOL", [1]),
        ("FP32", ["1"]),
        ("BYTES", [1]),
    ],
)
def test_a_value_that_the_datatype_cannot_hold_is_refused(datatype: str, values: list[Any]) -> None:
    with pytest.raises(RequestError) as caught:
        decode_v2({"shape": [1], "data": values}, datatype, [-1])
    assert caught.value.status == 400


def test_non_finite_answers_become_null() -> None:
    array = np.array([1.0, np.nan, np.inf, -np.inf], np.float32)
    answer = encode_v2(codec.Decoded([]), signature(("x", "FP32", [-1])), [array])
    assert answer["outputs"][0]["data"] == [1.0, None, None, None]


def test_only_the_outputs_asked_for_are_answered() -> None:
    both = signature(("a", "FP32", [-1]), ("b", "FP32", [-1]))
    decoded = codec.Decoded([], outputs=["b"])
    arrays = [np.zeros(1, np.float32), np.ones(1, np.float32)]
    answer = encode_v2(decoded, both, arrays)
    assert [output["name"] for output in answer["outputs"]] == ["b"]
    assert "id" not in answer


def test_the_model_name_that_kserves_client_adds_is_taken_and_the_route_decides() -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    body = json.dumps({"id": "7", "model_name": "elsewhere", "inputs": [tensor]}).encode()
    decoded = decode("v2", body, signature(("x", "FP32", [-1])))
    assert (decoded.id, decoded.inputs[0].tolist()) == ("7", [1.0])


def test_inputs_come_in_the_order_of_the_signature() -> None:
    both = signature(("a", "FP32", [-1]), ("b", "INT64", [-1]))
    body = {
        "inputs": [
            {"name": "b", "datatype": "INT64", "shape": [1], "data": [7]},
            {"name": "a", "datatype": "FP32", "shape": [1], "data": [0.5]},
        ]
    }
    decoded = decode("v2", json.dumps(body).encode(), both)
    assert [array.tolist() for array in decoded.inputs] == [[0.5], [7]]


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        ("v1", {"instances": [[["no number"]]]}),
        ("torchserve", [[["no number"]]]),
        ("v2", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[["no number"]]]}]}),
    ],
    ids=["v1", "torchserve", "v2"],
)
def test_data_nested_deeper_than_the_limit_is_refused_before_it_is_parsed(dialect: str, body: Any) -> None:
    limited = plan(signature(("x", "FP32", [-1, 2])), max_rank=2)
    with pytest.raises(RequestError, match=r"at most 2 levels \(serving.limits.maxRank\)"):
        codec.decode_request(call(dialect, json.dumps(body).encode()), limited)


def test_several_inputs_must_have_equal_rows() -> None:
    both = signature(("a", "FP32", [-1]), ("b", "FP32", [-1]))
    with pytest.raises(RequestError, match="same number of rows"):
        decode("v1", b'{"inputs": {"a": [1], "b": [1, 2]}}', both)
    decoded = decode("v1", b'{"instances": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}', both)
    assert [array.tolist() for array in decoded.inputs] == [[1, 3], [2, 4]]
    for body in (b'{"instances": [1, 2]}', b'{"inputs": [1, 2]}'):
        with pytest.raises(RequestError, match="several"):
            decode("v1", body, both)


@pytest.mark.parametrize(
    ("body", "elements"),
    [
        (b'{"instances": ["aGk=", "eW8="]}', ["aGk=", "eW8="]),
        (b'{"instances": [{"b64": "aGk="}, "eW8="]}', ["aGk=", "eW8="]),
        (b'{"instances": [{"x": {"b64": "aGk="}}, {"x": "eW8="}]}', ["aGk=", "eW8="]),
        (b'{"instances": [{"data": "aGk="}, {"data": {"b64": "eW8="}}]}', ["aGk=", "eW8="]),
        (b'{"inputs": {"x": ["aGk="]}}', ["aGk="]),
    ],
)
def test_bytes_come_as_text_in_all_forms_of_v1(body: bytes, elements: list[str]) -> None:
    assert decode("v1", body, signature(("x", "BYTES", [-1]))).inputs[0].tolist() == elements


def decode_or_400(dialect: str, body: bytes) -> codec.Decoded | None:
    """None for a request that is refused with 400; anything else that goes wrong is raised."""
    try:
        return decode(dialect, body, signature(("x", "FP32", [-1, 2])))
    except RequestError as error:
        if error.status != 400:
            raise
        return None


@given(st.binary(max_size=200))
def test_whatever_bytes_come_the_answer_is_a_400(body: bytes) -> None:
    for dialect in ("v2", "v1", "torchserve"):
        assert decode_or_400(dialect, body) is None


keys = st.sampled_from(["inputs", "instances", "x", "data", "b64"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=12,
)


@given(json_values)
def test_whatever_json_comes_the_answer_is_tensors_or_a_400(value: Any) -> None:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": value}
    for body in (value, {"instances": value}, {"inputs": value}, {"inputs": [tensor]}):
        for dialect in ("v2", "v1", "torchserve"):
            decoded = decode_or_400(dialect, json.dumps(body).encode())
            if decoded is not None:
                assert decoded.inputs[0].shape[1:] == (2,)
                assert np.isfinite(decoded.inputs[0]).all()


def test_errors_have_the_form_of_their_dialect() -> None:
    error = queue_full(3, 4, 2)
    assert json.loads(codec.encode_error("v2", error).body) == {"error": error.message}
    assert json.loads(codec.encode_error("torchserve", error).body) == {
        "code": 429,
        "type": "ServiceUnavailableException",
        "message": error.message,
    }
