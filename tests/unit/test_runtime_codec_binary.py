"""Open Inference Protocol V2's binary tensor data, both ways: what may be sent, what is refused and how it is told."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_codec import NUMERIC, arrays, plan, signature
from torchmodel_runtime import codec
from torchmodel_runtime.codec.rawtensors import decode_raw, encode_raw
from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tasks.tensor import TensorTask
from torchmodel_runtime.tensors import NUMPY_DTYPES, bytes_tensor

LENGTH = "Inference-Header-Content-Length"
X = signature(("x", "FP32", [-1, 2]))
PAIR = signature(("a", "FP32", [-1]), ("b", "INT64", [-1]))
TEXT = signature(("x", "BYTES", [-1]))


def binary_call(document: Any, *pieces: bytes, length: str | None = None) -> Call:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    headers = {LENGTH: str(len(text)) if length is None else length}
    return Call("v2", "m", text + b"".join(pieces), headers, "application/octet-stream")


def binary_tensor(data: bytes, name: str = "x", datatype: str = "FP32", shape: Any = (1, 2), **more: Any) -> Any:
    return {
        "name": name,
        "datatype": datatype,
        "shape": list(shape),
        "parameters": {"binary_data_size": len(data), **more},
    }


def decode(call: Call, tensors: Signature, **limits: int) -> codec.Decoded:
    return codec.decode_request(call, plan(tensors, **limits))


def encode(decoded: codec.Decoded, tensors: Signature, outputs: list[np.ndarray]) -> Answer:
    return codec.encode_response(binary_call({}), decoded, plan(tensors), TensorTask(tensors), outputs)


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_tensors_survive_the_binary_way(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, finite=False))
    spec = TensorSpec(name="x", datatype=datatype, shape=[-1] * array.ndim)  # type: ignore[arg-type]
    raw = encode_raw(array, datatype)
    assert len(raw) == array.size * NUMPY_DTYPES[datatype].itemsize
    again = decode_raw("x", raw, spec, list(array.shape))
    assert again.dtype == array.dtype
    assert again.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=8))
def test_bytes_survive_the_binary_way(elements: list[bytes]) -> None:
    spec = TensorSpec(name="x", datatype="BYTES", shape=[-1])
    raw = encode_raw(bytes_tensor(elements), "BYTES")
    assert len(raw) == sum(4 + len(element) for element in elements)
    assert decode_raw("x", raw, spec, [len(elements)]).tolist() == elements


def test_text_becomes_utf8() -> None:
    assert encode_raw(bytes_tensor(["ä"]), "BYTES") == b"\x02\x00\x00\x00\xc3\xa4"


def test_a_binary_tensor_is_not_copied() -> None:
    call = binary_call({"inputs": [binary_tensor(bytes(8))]}, struct.pack("<2f", 1, 2))
    array = decode(call, X).inputs[0]
    assert array.tolist() == [[1, 2]]
    assert not array.flags.owndata


def test_pieces_come_in_the_order_of_the_request_and_mix_with_json() -> None:
    a, b = struct.pack("<2f", 1, 2), struct.pack("<2q", 3, 4)
    tensors = [binary_tensor(b, "b", "INT64", [2]), binary_tensor(a, "a", "FP32", [2])]
    assert [array.tolist() for array in decode(binary_call({"inputs": tensors}, b, a), PAIR).inputs] == [[1, 2], [3, 4]]
    mixed = [{"name": "a", "datatype": "FP32", "shape": [2], "data": [5, 6]}, tensors[0]]
    assert [array.tolist() for array in decode(binary_call({"inputs": mixed}, b), PAIR).inputs] == [[5, 6], [3, 4]]


def test_non_finite_floats_travel_in_binary() -> None:
    data = struct.pack("<2f", float("nan"), float("inf"))
    array = decode(binary_call({"inputs": [binary_tensor(data)]}, data), X).inputs[0]
    assert np.isnan(array[0, 0])
    assert np.isinf(array[0, 1])


@pytest.mark.parametrize(
    ("parameters", "outputs", "binary"),
    [
        ({}, None, []),
        ({"binary_data_output": True}, None, ["a", "b"]),
        ({"binary_data_output": True}, [{"name": "b"}], ["b"]),
        ({"binary_data_output": True}, [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}], ["b"]),
        ({}, [{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}], ["a"]),
        ({"binary_data_output": False}, [{"name": "b", "parameters": {"binary_data": True}}], ["b"]),
    ],
    ids=["json by default", "all binary", "the chosen one", "all but one", "only one", "the output's own word wins"],
)
def test_outputs_are_binary_as_asked(parameters: Any, outputs: Any, binary: list[str]) -> None:
    a, b = struct.pack("<f", 1), struct.pack("<q", 3)
    document = {"inputs": [binary_tensor(a, "a", shape=[1]), binary_tensor(b, "b", "INT64", [1])], "id": "7"}
    if outputs is not None:
        document["outputs"] = outputs
    decoded = decode(binary_call({**document, "parameters": parameters}, a, b), PAIR)
    answer = encode(decoded, PAIR, [np.float32([1.5]), np.int64([7])])
    size = int(answer.headers.get(LENGTH, len(answer.body)))
    reply = json.loads(answer.body[:size])
    assert (reply["id"], reply["model_name"], reply["model_version"]) == ("7", "m", "1")
    assert answer.content_type == ("application/octet-stream" if binary else "application/json")
    assert [tensor["name"] for tensor in reply["outputs"] if "data" not in tensor] == binary
    rest = b"".join({"a": struct.pack("<f", 1.5), "b": struct.pack("<q", 7)}[name] for name in binary)
    assert answer.body[size:] == rest
    for tensor in reply["outputs"]:
        if tensor["name"] in binary:
            assert tensor["parameters"] == {"binary_data_size": {"a": 4, "b": 8}[tensor["name"]]}


@pytest.mark.parametrize(
    ("tensors", "body", "shape"),
    [
        (X, struct.pack("<4f", 1, 2, 3, 4), (2, 2)),
        (signature(("x", "INT8", [-1, -1])), b"\x01\x02\x03", (1, 3)),
        (signature(("x", "UINT8", [-1, 2, -1])), bytes(6), (1, 2, 3)),
        (TEXT, b"any bytes", (1,)),
    ],
    ids=["whole rows", "one row of any length", "the inner dimension is known", "one element"],
)
def test_raw_mode_is_one_tensor_and_answers_in_binary(tensors: Signature, body: bytes, shape: tuple[int, ...]) -> None:
    decoded = decode(binary_call(b"", body), tensors)
    assert decoded.inputs[0].shape == shape
    assert decoded.form == "binary"


BAD: list[tuple[str, Signature, Call, str]] = [
    ("length no number", X, binary_call({}, length="ten"), "must be a number of bytes"),
    ("length negative", X, binary_call({}, length="-1"), "must be a number of bytes"),
    ("length of other digits", X, binary_call({}, length="\u00b2"), "must be a number of bytes"),
    ("length beyond the body", X, binary_call(b"{}", length="3"), "the body has 2"),
    ("length huge", X, binary_call(b"{}", length="9" * 18), "the body has 2"),
    ("length inside the JSON", X, binary_call({"inputs": []}, length="3"), "body:"),
    ("too few bytes", X, binary_call({"inputs": [binary_tensor(bytes(8))]}, bytes(7)), "7 bytes are left"),
    ("too many bytes", X, binary_call({"inputs": [binary_tensor(bytes(8))]}, bytes(9)), "9 bytes follow the JSON"),
    ("size against shape", X, binary_call({"inputs": [binary_tensor(bytes(7))]}, bytes(7)), "takes 8"),
    (
        "shape against signature",
        X,
        binary_call({"inputs": [binary_tensor(bytes(8), shape=[2, 1])]}, bytes(8)),
        "must be [-1, 2]",
    ),
    ("size negative", X, binary_call({"inputs": [binary_tensor(b"", binary_data_size=-8)]}), "a number of bytes"),
    ("size text", X, binary_call({"inputs": [binary_tensor(b"", binary_data_size="8")]}), "a number of bytes"),
    ("size true", X, binary_call({"inputs": [binary_tensor(b"", binary_data_size=True)]}), "a number of bytes"),
    ("data and size", X, binary_call({"inputs": [{**binary_tensor(bytes(8)), "data": [1, 2]}]}, bytes(8)), "both data"),
    (
        "unknown datatype",
        X,
        binary_call({"inputs": [binary_tensor(bytes(8), datatype="FP8")]}, bytes(8)),
        "must be FP32",
    ),
    (
        "shared memory",
        X,
        binary_call({"inputs": [binary_tensor(bytes(8), shared_memory_region="r")]}, bytes(8)),
        "shared",
    ),
    (
        "a bool of 2",
        signature(("x", "BOOL", [-1])),
        binary_call({"inputs": [binary_tensor(b"\x02", datatype="BOOL", shape=[1])]}, b"\x02"),
        "0 or 1",
    ),
    (
        "an element too long",
        TEXT,
        binary_call({"inputs": [binary_tensor(bytes(5), datatype="BYTES", shape=[1])]}, b"\x02\0\0\0a"),
        "2 bytes are announced, 1 are left",
    ),
    (
        "a cut length",
        TEXT,
        binary_call({"inputs": [binary_tensor(bytes(9), datatype="BYTES", shape=[2])]}, b"\x02\0\0\0ab\0\0\0"),
        "ends inside the length",
    ),
    (
        "bytes left over",
        TEXT,
        binary_call({"inputs": [binary_tensor(bytes(6), datatype="BYTES", shape=[1])]}, b"\x01\0\0\0ab"),
        "1 bytes are left",
    ),
    (
        "elements that no body could hold",
        TEXT,
        binary_call({"inputs": [binary_tensor(bytes(4), datatype="BYTES", shape=[1000])]}, bytes(4)),
        "hold no 1000 elements",
    ),
    ("raw for two inputs", PAIR, binary_call(b"", bytes(8)), "for models of one input"),
    ("raw and empty", X, binary_call(b""), "the body is empty"),
    ("raw, part of a row", X, binary_call(b"", bytes(7)), "multiple of 8"),
    ("raw, two unknown dimensions", signature(("x", "FP32", [-1, -1, -1])), binary_call(b"", bytes(8)), "one variable"),
    ("raw, no elements possible", signature(("x", "FP32", [-1, 0])), binary_call(b"", bytes(8)), "multiple of 0"),
    (
        "a sequence",
        X,
        binary_call({"inputs": [binary_tensor(bytes(8))], "parameters": {"sequence_id": 3}}, bytes(8)),
        "state between requests",
    ),
    (
        "an output's flag that is none",
        X,
        binary_call(
            {"inputs": [binary_tensor(bytes(8))], "outputs": [{"name": "x", "parameters": {"binary_data": 1}}]},
            bytes(8),
        ),
        "must be true or false",
    ),
    (
        "classification",
        X,
        binary_call(
            {"inputs": [binary_tensor(bytes(8))], "outputs": [{"name": "x", "parameters": {"classification": 3}}]},
            bytes(8),
        ),
        "classification is not offered",
    ),
]


@pytest.mark.parametrize(("tensors", "call", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_bad_binary_request_is_told_what_is_wrong(tensors: Signature, call: Call, words: str) -> None:
    with pytest.raises(RequestError) as caught:
        decode(call, tensors)
    assert caught.value.status == 400
    assert words in caught.value.message


def test_parameters_that_change_no_answer_pass() -> None:
    given = {"priority": 1, "timeout": 1000, "headers": "x", "sequence_id": 0, "sequence_start": False, "mine": 1.5}
    call = binary_call({"inputs": [binary_tensor(bytes(8))], "parameters": given}, bytes(8))
    assert decode(call, X).parameters == given


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        ({"max_tensors": 1}, 400, "serving.limits.maxTensors"),
        ({"max_elements": 3}, 413, "serving.limits.maxElements"),
        ({"max_rank": 1}, 400, "serving.limits.maxRank"),
    ],
    ids=["tensors", "elements", "rank"],
)
def test_a_request_over_a_limit_is_told_which(limits: dict[str, int], status: int, words: str) -> None:
    tensors = signature(("a", "INT8", [-1, -1]), ("b", "INT8", [-1, -1]))
    pieces = [binary_tensor(b"12", "a", "INT8"), binary_tensor(b"12", "b", "INT8")]
    with pytest.raises(RequestError) as caught:
        decode(binary_call({"inputs": pieces}, b"1212"), tensors, **limits)
    assert caught.value.status == status
    assert words in caught.value.message


def test_a_shape_beyond_all_numbers_is_refused_before_anything_is_allocated() -> None:
    tensors = signature(("x", "INT8", [-1, -1, -1]))
    huge = binary_tensor(b"", datatype="INT8", shape=[2**62, 2**62, 2**62])
    with pytest.raises(RequestError, match="maxElements"):
        decode(binary_call({"inputs": [huge]}), tensors)


@given(st.binary(max_size=120), st.integers(0, 130))
def test_whatever_bytes_come_the_answer_is_tensors_or_a_4xx(body: bytes, length: int) -> None:
    for tensors in (X, TEXT, PAIR):
        try:
            decoded = decode(Call("v2", "m", body, {LENGTH: str(length)}, "application/octet-stream"), tensors)
        except RequestError as error:
            assert 400 <= error.status < 500  # noqa: PT017 - most draws are refused, some are not
        else:
            assert length == 0
            assert len(decoded.inputs) == 1


def test_more_bytes_elements_than_the_queue_has_rows_are_not_read_one_by_one() -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [4_000_000], "parameters": {"binary_data_size": 16_000_000}}
    head = json.dumps({"inputs": [tensor]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    with pytest.raises(RequestError, match="4000000 rows, the queue takes at most 1024") as error:
        codec.decode_request(Call("v2", "m", head + bytes(16_000_000), headers), plan(signature(("x", "BYTES", [-1]))))
    assert error.value.status == 413
