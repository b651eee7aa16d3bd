"""Open Inference Protocol V2 in gRPC's messages: raw and typed contents both ways, what is refused, what leaves the loop."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_codec import NUMERIC, arrays, plan, signature
from torchmodel_runtime import codec
from torchmodel_runtime.codec import v2messages
from torchmodel_runtime.codec.protowire import write_field
from torchmodel_runtime.codec.rawtensors import encode_raw
from torchmodel_runtime.codec.v2contents import add_contents
from torchmodel_runtime.config import Signature
from torchmodel_runtime.decodepool import DecodePool
from torchmodel_runtime.errors import RequestError, queue_full
from torchmodel_runtime.exchange import Call
from torchmodel_runtime.protos.open_inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
    ModelInferResponse,
)
from torchmodel_runtime.tasks.tensor import TensorTask
from torchmodel_runtime.tensors import NUMPY_DTYPES, bytes_tensor

X = signature(("x", "FP32", [-1, 2]))
PAIR = signature(("a", "FP32", [-1]), ("b", "INT64", [-1]))
TEXT = signature(("x", "BYTES", [-1]))
TYPED = [datatype for datatype in NUMERIC if datatype not in ("FP16", "BF16")]
RAW_ROW = np.array([1, 2], np.float32).tobytes()

Input = ModelInferRequest.InferInputTensor


def call(message: ModelInferRequest | bytes) -> Call:
    body = message if isinstance(message, bytes) else message.SerializeToString()
    return Call("grpc", "m", body, {}, "application/grpc")


def decode(message: ModelInferRequest | bytes, tensors: Signature, **limits: int) -> codec.Decoded:
    return codec.decode_request(call(message), plan(tensors, **limits))


def encode(decoded: codec.Decoded, tensors: Signature, outputs: list[np.ndarray]) -> ModelInferResponse:
    answer = codec.encode_response(call(b""), decoded, plan(tensors), TensorTask(tensors), outputs)
    assert (answer.status, answer.content_type) == (200, "application/grpc")
    return ModelInferResponse.FromString(answer.body)


def raw_request(*raws: bytes, **more: Any) -> ModelInferRequest:
    """x of one row, raw."""
    inputs = more.pop("inputs", [Input(name="x", datatype="FP32", shape=[1, 2])])
    return ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=raws or [RAW_ROW], **more)


def typed_request(datatype: str, array: np.ndarray) -> ModelInferRequest:
    tensor = Input(name="x", datatype=datatype, shape=array.shape)
    add_contents(tensor.contents, array, datatype)
    return ModelInferRequest(model_name="m", inputs=[tensor])


def contents_request(datatype: str, shape: list[int], contents: bytes) -> bytes:
    """x with contents written by hand."""
    head = Input(name="x", datatype=datatype, shape=shape).SerializeToString()
    tensor = head + b"".join(write_field(5, contents))
    return b"".join(write_field(5, tensor))


def parameter(value: Any) -> InferParameter:
    names = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    return InferParameter(**{names[type(value)]: value})


# --- both ways ---


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_tensors_survive_the_raw_way(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, finite=False))
    tensors = signature(("x", datatype, [-1] * array.ndim))
    request = raw_request(encode_raw(array, datatype), inputs=[Input(name="x", datatype=datatype, shape=array.shape)])
    decoded = decode(request, tensors)
    assert decoded.inputs[0].dtype == array.dtype
    assert decoded.inputs[0].tobytes() == array.tobytes()
    response = encode(decoded, tensors, decoded.inputs)
    assert (response.outputs[0].name, response.outputs[0].datatype) == ("x", datatype)
    assert tuple(response.outputs[0].shape) == array.shape
    assert not response.outputs[0].HasField("contents")
    assert list(response.raw_output_contents) == [array.tobytes()]


@pytest.mark.parametrize("datatype", TYPED)
@given(data=st.data())
def test_tensors_survive_the_typed_way(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, finite=False))
    tensors = signature(("x", datatype, [-1] * array.ndim))
    decoded = decode(typed_request(datatype, array), tensors)
    assert decoded.inputs[0].dtype == array.dtype
    np.testing.assert_array_equal(decoded.inputs[0], array)
    response = encode(decoded, tensors, decoded.inputs)
    assert not response.raw_output_contents
    again = decode(ModelInferRequest(inputs=[Input.FromString(response.outputs[0].SerializeToString())]), tensors)
    np.testing.assert_array_equal(again.inputs[0], array)


@pytest.mark.parametrize("is_raw", [True, False])
def test_bytes_elements_of_any_length_survive_both_ways(is_raw: bool) -> None:
    array = bytes_tensor([b"", b"a", "ä".encode(), b"\xff" * 300])
    request = typed_request("BYTES", array)
    if is_raw:
        request = raw_request(encode_raw(array, "BYTES"), inputs=[Input(name="x", datatype="BYTES", shape=[4])])
    decoded = decode(request, TEXT)
    assert decoded.inputs[0].tolist() == array.tolist()
    response = encode(decoded, TEXT, [bytes_tensor(["ä", b"\xff", ""])])
    if is_raw:
        assert list(response.raw_output_contents) == [b"\x02\0\0\0\xc3\xa4\x01\0\0\0\xff\0\0\0\0"]
    else:
        assert list(response.outputs[0].contents.bytes_contents) == ["ä".encode(), b"\xff", b""]


def test_raw_tensors_are_not_copied() -> None:
    array = np.ones((1 << 20, 2), np.float32)
    message = call(raw_request(array.tobytes(), inputs=[Input(name="x", datatype="FP32", shape=array.shape)]))
    where = plan(X)
    tracemalloc.start()
    decoded = codec.decode_request(message, where)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(decoded.inputs[0], array)
    assert peak_bytes < 1 << 18


def test_inputs_come_in_any_order_and_are_given_in_the_signature_s() -> None:
    inputs = [Input(name="b", datatype="INT64", shape=[1]), Input(name="a", datatype="FP32", shape=[1])]
    raw = [np.int64(7).tobytes(), np.float32(2).tobytes()]
    decoded = decode(raw_request(*raw, inputs=inputs), PAIR)
    assert [array.tolist() for array in decoded.inputs] == [[2.0], [7]]


def test_fields_in_an_odd_order_and_from_a_later_protocol_are_taken() -> None:
    request = raw_request(id="7")
    raw, rest = raw_request().SerializeToString(), ModelInferRequest(id="7").SerializeToString()
    assert decode(b"\x9a\x06\x02hi" + raw + rest, X).id == "7"
    assert ModelInferRequest.FromString(raw + rest) == request


def test_only_the_outputs_asked_for_are_answered_raw_ones_in_their_order() -> None:
    inputs = [Input(name="a", datatype="FP32", shape=[1]), Input(name="b", datatype="INT64", shape=[1])]
    raw = [np.float32(2).tobytes(), np.int64(7).tobytes()]
    wanted = [ModelInferRequest.InferRequestedOutputTensor(name="b")]
    decoded = decode(raw_request(*raw, inputs=inputs, outputs=wanted), PAIR)
    response = encode(decoded, PAIR, decoded.inputs)
    assert [output.name for output in response.outputs] == ["b"]
    assert list(response.raw_output_contents) == raw[1:]
    decoded.outputs = None
    assert list(encode(decoded, PAIR, decoded.inputs).raw_output_contents) == raw


def test_the_answer_says_model_version_and_the_request_s_id() -> None:
    response = encode(decode(raw_request(id="ä7"), X), X, [np.zeros((1, 2), np.float32)])
    assert (response.model_name, response.model_version, response.id) == ("m", "1", "ä7")
    assert encode(decode(raw_request(), X), X, [np.zeros((1, 2), np.float32)]).id == ""


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_all_outputs_are_raw_where_one_of_them_has_no_typed_form(datatype: str) -> None:
    both = signature(("x", "FP32", [-1]), ("y", datatype, [-1]))
    decoded = codec.Decoded([])
    outputs = [np.ones(1, np.float32), np.ones(1, NUMPY_DTYPES[datatype])]
    assert list(encode(decoded, both, outputs).raw_output_contents) == [array.tobytes() for array in outputs]
    decoded.outputs = ["x"]
    assert encode(decoded, both, outputs).outputs[0].contents.fp32_contents == [1.0]


def test_parameters_are_plain_values() -> None:
    given = {"timeout": 5000, "is": True, "name": "n", "number": 0.5}
    request = raw_request(parameters={name: parameter(value) for name, value in given.items()})
    request.parameters["huge"].uint64_param = 2**64 - 1
    request.parameters["nothing"].SetInParent()
    assert decode(request, X).parameters == given | {"huge": 2**64 - 1, "nothing": None}


def test_parameters_that_clients_add_by_themselves_pass() -> None:
    tensor = Input(name="x", datatype="FP32", shape=[1, 2], parameters={"binary_data_size": parameter(8)})
    assert decode(raw_request(inputs=[tensor]), X).inputs[0].tolist() == [[1, 2]]


# --- typed contents as they may be written ---


@pytest.mark.parametrize(
    "contents",
    [
        pytest.param(b"\x35" + RAW_ROW[:4] + b"\x35" + RAW_ROW[4:], id="each by itself"),
        pytest.param(b"\x32\x04" + RAW_ROW[:4] + b"\x35" + RAW_ROW[4:], id="a run, then one by itself"),
        pytest.param(b"\x32\x00\x32\x08" + RAW_ROW, id="an empty run before"),
        pytest.param(b"\x78\x05\x32\x08" + RAW_ROW, id="with a field of a later protocol"),
    ],
)
def test_elements_are_taken_in_runs_and_by_themselves(contents: bytes) -> None:
    assert decode(contents_request("FP32", [1, 2], contents), X).inputs[0].tolist() == [[1, 2]]


def test_contents_that_come_twice_are_joined() -> None:
    """As every parser of protocol buffers joins them."""
    head = Input(name="x", datatype="FP32", shape=[1, 2]).SerializeToString()
    half = b"".join(write_field(5, b"\x32\x04" + RAW_ROW[:4]))
    other = b"".join(write_field(5, b"\x32\x04" + RAW_ROW[4:]))
    assert decode(b"".join(write_field(5, half + head + other)), X).inputs[0].tolist() == [[1, 2]]


def test_a_bool_is_any_number_but_zero() -> None:
    tensors = signature(("x", "BOOL", [-1]))
    assert decode(contents_request("BOOL", [4], b"\x0a\x05\x00\x01\x05\x80\x01"), tensors).inputs[0].tolist() == [
        False,
        True,
        True,
        True,
    ]


# --- what is refused ---


def with_parameter(name: str, value: Any) -> ModelInferRequest:
    return raw_request(parameters={name: parameter(value)})


REFUSED: dict[str, tuple[ModelInferRequest | bytes, Signature, str]] = {
    "no message at all": (b"\xff\xff", X, "message: is no inference.ModelInferRequest: the field at byte 0 ends after"),
    "a message of another kind": (b"\x0a\x02\xff\xfe", X, "message: is no inference.ModelInferRequest: "),
    "an input that is none": (
        b"\x2a\x02\xff\xff",
        X,
        "message: is no inference.ModelInferRequest: the field at byte 0",
    ),
    "an input whose name is no text": (
        b"\x2a\x04\x0a\x02\xff\xfe",
        X,
        "is no inference.ModelInferRequest.InferInputTensor",
    ),
    "more fields than are read": (b"\x2a\x00" * 5000, X, "more than 4096 fields"),
    "no inputs": (ModelInferRequest(), X, "inputs: missing ['x'], unknown []; this model has ['x']"),
    "another input": (raw_request(inputs=[Input(name="y")]), X, "inputs: missing ['x'], unknown ['y']"),
    "an input twice": (
        raw_request(RAW_ROW, RAW_ROW, inputs=[Input(name="x")] * 2),
        X,
        "inputs: each name may appear once, got ['x', 'x']",
    ),
    "another datatype": (
        raw_request(inputs=[Input(name="x", datatype="FP64", shape=[1, 2])]),
        X,
        "input 'x': datatype 'FP64', must be FP32",
    ),
    "another shape, raw": (
        raw_request(inputs=[Input(name="x", datatype="FP32", shape=[2])]),
        X,
        "input 'x': shape [2], must be [-1, 2] (-1 is any)",
    ),
    "another shape, typed": (
        contents_request("FP32", [2], b"\x32\x08" + RAW_ROW),
        X,
        "input 'x': shape [2], must be [-1, 2] (-1 is any)",
    ),
    "a negative shape": (
        raw_request(inputs=[Input(name="x", datatype="FP32", shape=[-1, 2])]),
        X,
        "input 'x': shape [-1, 2], must be [-1, 2]",
    ),
    "no rows": (
        raw_request(b"", inputs=[Input(name="x", datatype="FP32", shape=[0, 2])]),
        X,
        "inputs: all must have the same number of rows, at least 1",
    ),
    "too few bytes": (raw_request(RAW_ROW[:7]), X, "input 'x': 7 bytes, but shape [1, 2] of FP32 takes 8"),
    "more raw contents than inputs": (
        raw_request(RAW_ROW, RAW_ROW),
        X,
        "raw_input_contents: 2 of them for 1 inputs, must be one for each",
    ),
    "raw and typed contents": (
        raw_request(
            inputs=[
                Input(name="x", datatype="FP32", shape=[1, 2], contents=InferTensorContents(fp32_contents=[1.0, 2.0]))
            ]
        ),
        X,
        "input 'x': has contents beside raw_input_contents, must have one of them",
    ),
    "neither": (
        ModelInferRequest(inputs=[Input(name="x", datatype="FP32", shape=[1, 2])]),
        X,
        "input 'x': has no data; send raw_input_contents, or contents",
    ),
    "contents of another datatype": (
        contents_request("FP32", [1, 2], b"\x3a\x10" + bytes(16)),
        X,
        "input 'x': has fp64_contents, FP32 is sent in fp32_contents",
    ),
    "FP16 typed": (
        contents_request("FP16", [1], b"\x32\x04" + bytes(4)),
        signature(("x", "FP16", [-1])),
        "input 'x': FP16 has no typed contents in this protocol; send raw_input_contents",
    ),
    "BF16 typed": (
        contents_request("BF16", [1], b"\x32\x04" + bytes(4)),
        signature(("x", "BF16", [-1])),
        "input 'x': BF16 has no typed contents in this protocol; send raw_input_contents",
    ),
    "fewer floats than the shape means": (
        contents_request("FP32", [1, 2], b"\x32\x04" + bytes(4)),
        X,
        "input 'x': shape [1, 2] means 2 elements, contents have 1",
    ),
    "a part of a float": (
        contents_request("FP32", [1, 2], b"\x32\x07" + bytes(7)),
        X,
        "input 'x': shape [1, 2] means 2 elements, contents have 1 and a part of one",
    ),
    "more integers than the shape means": (
        contents_request("INT64", [2], b"\x1a\x03\x01\x02\x03"),
        signature(("x", "INT64", [-1])),
        "input 'x': shape [2] means 2 elements, contents have 3",
    ),
    "fewer BYTES than the shape means": (
        contents_request("BYTES", [2], b"\x42\x01a"),
        TEXT,
        "input 'x': shape [2] means 2 elements, contents have 1",
    ),
    "contents that are no message": (
        contents_request("FP32", [1, 2], b"\x32\x09"),
        X,
        "input 'x': contents: the field at",
    ),
    "floats of another width": (
        contents_request("FP32", [1, 2], b"\x31" + bytes(8)),
        X,
        "input 'x': contents: fp32_contents at byte 0 is of another kind",
    ),
    "an integer that is not whole": (
        contents_request("INT64", [1], b"\x1a\x03\x01\x80\x80"),
        signature(("x", "INT64", [-1])),
        "input 'x': contents: a number is not whole",
    ),
    "sequences": (with_parameter("sequence_id", 1), X, "parameters: sequence_id asks for state between requests"),
    "shared memory for an input": (
        ModelInferRequest(inputs=[Input(name="x", parameters={"shared_memory_region": parameter("r")})]),
        X,
        "input 'x': shared_memory_region is for shared memory",
    ),
    "an output that there is not": (
        raw_request(outputs=[ModelInferRequest.InferRequestedOutputTensor(name="z")]),
        X,
        "outputs: 'z' is not an output of this model, which has ['x']",
    ),
    "classification": (
        raw_request(
            outputs=[
                ModelInferRequest.InferRequestedOutputTensor(name="x", parameters={"classification": parameter(3)})
            ]
        ),
        X,
        "output 'x': classification is not offered",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_its_place(case: str) -> None:
    message, tensors, words = REFUSED[case]
    with pytest.raises(RequestError) as caught:
        decode(message, tensors)
    assert (caught.value.status, caught.value.code) == (400, "INVALID_ARGUMENT")
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT8", -129), ("INT16", 2**15), ("UINT8", 256), ("UINT16", 2**16)]
)
def test_an_integer_out_of_its_datatype_s_range_is_refused(datatype: str, value: int) -> None:
    field = "int_contents" if datatype.startswith("INT") else "uint_contents"
    tensor = Input(name="x", datatype=datatype, shape=[1], contents=InferTensorContents(**{field: [value]}))
    with pytest.raises(RequestError, match=f"input 'x': a value is out of the range of {datatype}"):
        decode(ModelInferRequest(inputs=[tensor]), signature(("x", datatype, [-1])))


@pytest.mark.parametrize(
    ("limits", "message", "status", "words"),
    [
        ({"max_tensors": 1}, raw_request(inputs=[Input(name="x"), Input(name="y")]), 400, "serving.limits.maxTensors"),
        ({"max_rank": 1}, raw_request(), 400, "serving.limits.maxRank"),
        ({"max_elements": 1}, raw_request(), 413, "serving.limits.maxElements"),
        ({}, raw_request(id="x" * 65536), 413, "bytes beside the tensors' contents, at most 65536"),
        ({}, raw_request(inputs=[Input(name="x", shape=[1] * 60000), Input(name="y" * 9000)]), 413, "at most 65536"),
        (
            {"max_json_elements": 2},
            contents_request("FP32", [1, 2], b"\x35\0\0\0\0" * 3),
            413,
            "input 'x': more than 2 elements in fields of their own (serving.limits.maxJsonElements)",
        ),
    ],
    ids=["tensors", "rank", "elements", "the id", "shapes and names", "elements by themselves"],
)
def test_limits_hold_and_are_named(
    limits: dict[str, int], message: ModelInferRequest | bytes, status: int, words: str
) -> None:
    with pytest.raises(RequestError) as caught:
        decode(message, X, **limits)
    assert caught.value.status == status
    assert words in caught.value.message


def test_an_error_is_its_sentence_alone() -> None:
    answer = codec.encode_error("grpc", queue_full(3, 2, 5))
    assert (answer.status, answer.headers) == (429, {"Retry-After": "5"})
    assert answer.body.decode().startswith("the queue is full: 3 of 2 rows wait already")


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(b"\x2a\x00" * (4 << 20), id="millions of empty inputs"),
        pytest.param(b"\x22\x00" * (4 << 20), id="millions of empty parameters"),
        pytest.param(b"\x2a\x80\x80\x80\x04" + b"\x22\x00" * (4 << 20), id="millions of parameters of one input"),
        pytest.param(contents_request("BYTES", [1], b"\x42\x00" * (4 << 20)), id="millions of empty elements"),
        pytest.param(
            contents_request("INT64", [1], b"\x1a\x80\x80\x80\x04" + bytes(8 << 20)), id="millions of integers"
        ),
        pytest.param(contents_request("INT64", [1], b"\x18\x00" * (4 << 20)), id="millions of integers by themselves"),
    ],
)
def test_small_fields_by_the_million_cost_no_more_than_their_message(message: bytes) -> None:
    """The parser would make some hundreds of megabytes of each of these."""
    tensors = signature(("x", "BYTES" if b"BYTES" in message[:99] else "INT64", [-1]))
    tracemalloc.start()
    began_s = time.perf_counter()
    with pytest.raises(RequestError):
        decode(message, tensors, max_json_elements=1 << 16)
    seconds = time.perf_counter() - began_s
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 << 20
    assert seconds < 5


# --- reading the model's name; leaving the event loop ---


def test_name_and_version_are_read_without_the_tensors() -> None:
    assert v2messages.read_model(raw_request().SerializeToString()) == ("m", None)
    assert v2messages.read_model(ModelInferRequest(model_name="n", model_version="3").SerializeToString()) == ("n", "3")
    with pytest.raises(RequestError, match="message: is no"):
        v2messages.read_model(b"\xff")


FLOATS = np.ones((20000, 2), np.float32)


@pytest.mark.parametrize(
    ("make", "is_heavy"),
    [
        pytest.param(lambda: raw_request(bytes(1 << 20)), False, id="raw contents of any size are not"),
        pytest.param(lambda: typed_request("FP32", FLOATS), False, id="one run of floats is not"),
        pytest.param(lambda: typed_request("INT64", np.ones(8000, np.int64)), False, id="a few integers are not"),
        pytest.param(lambda: typed_request("INT64", np.ones(20000, np.int64)), True, id="many integers are"),
        pytest.param(lambda: typed_request("BYTES", bytes_tensor([b"a"] * 3000)), True, id="many strings are"),
        pytest.param(
            lambda: contents_request("FP32", [1, 5000], b"\x35\0\0\0\0" * 5000), True, id="floats by themselves are"
        ),
        pytest.param(lambda: b"\xff" * 20000, False, id="what is no message is refused on the spot"),
    ],
)
def test_what_takes_long_leaves_the_event_loop(make: Callable[[], ModelInferRequest | bytes], is_heavy: bool) -> None:
    assert codec.is_heavy(call(make()), plan(X)) is is_heavy


@pytest.fixture
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(plan(signature(("x", "INT64", [-1]))))
    yield pool
    pool.close()


async def test_another_process_decodes_the_same(pool: DecodePool) -> None:
    numbers = np.arange(20000) * 12345 - 10**7
    message = call(typed_request("INT64", numbers))
    decoded = await pool.decode(message)
    np.testing.assert_array_equal(decoded.inputs[0], numbers)
    with pytest.raises(RequestError, match="means 20000 elements, contents have 20001"):
        await pool.decode(call(contents_request("INT64", [20000], b"\x1a\xa1\x9c\x01" + bytes(20001))))


@given(
    st.one_of(st.binary(max_size=80), st.binary(max_size=20).map(lambda end: raw_request().SerializeToString() + end))
)
def test_any_bytes_are_decoded_or_refused(body: bytes) -> None:
    refusals = []
    try:
        decode(body, X)
    except RequestError as error:
        refusals.append(error.status)
    assert set(refusals) <= {400, 413}
