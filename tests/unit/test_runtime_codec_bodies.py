"""Bodies that are no JSON: files of arrays, forms, compressed ones; and in what form the answer goes out."""

from __future__ import annotations

import gzip
import io
import json
import time
import zlib
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from test_runtime_codec import NUMERIC, arrays, plan, signature
from torchmodel_runtime import codec
from torchmodel_runtime.codec.inflate import inflate_body
from torchmodel_runtime.config import Signature, TensorSpec
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.exchange import Answer, Call
from torchmodel_runtime.tasks.tensor import TensorTask
from torchmodel_runtime.tensors import NUMPY_DTYPES

X = signature(("x", "FP32", [-1, 2]))
PAIR = signature(("a", "FP32", [-1]), ("b", "INT64", [-1]))
IMAGE = Signature(
    inputs=[TensorSpec(name="image", datatype="BYTES", shape=[-1])],
    outputs=[TensorSpec(name="labels", datatype="BYTES", shape=[-1, 5])],
)
NPY, SAFETENSORS, JSON = "application/x-npy", "application/vnd.safetensors", "application/json"
ROW = np.float32([[1, 2]])
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}).encode()


def request(body: bytes, content_type: str = JSON, dialect: str = "v2", **headers: str) -> Call:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    short = content_type.partition(";")[0]
    return Call(dialect, "m", body, {"Content-Type": content_type, **named}, short)  # type: ignore[arg-type]


def decode(call: Call, tensors: Signature = X, media: tuple[str, ...] = (), **limits: int) -> codec.Decoded:
    return codec.decode_request(call, plan(tensors, media, **limits))


def refuse(call: Call, tensors: Signature = X, media: tuple[str, ...] = (), **limits: int) -> RequestError:
    with pytest.raises(RequestError) as caught:
        decode(call, tensors, media, **limits)
    return caught.value


def encode(decoded: codec.Decoded, tensors: Signature, outputs: list[np.ndarray], dialect: str = "v2") -> Answer:
    call = request(b"", dialect=dialect)
    return codec.encode_response(call, decoded, plan(tensors), TensorTask(tensors), outputs)


def npy(array: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


# --- npy ---


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_tensors_survive_the_way_through_npy(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, finite=False))
    tensors = signature(("x", datatype, [-1] * array.ndim))
    decoded = decode(request(npy(array), NPY), tensors)
    assert decoded.inputs[0].dtype == NUMPY_DTYPES[datatype]
    assert decoded.inputs[0].tobytes() == array.tobytes()
    answer = encode(decoded, tensors, [array])
    assert answer.content_type == NPY
    again = np.load(io.BytesIO(answer.body))
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


def test_npy_of_other_layouts_is_converted() -> None:
    wide = np.arange(6, dtype=np.float32).reshape(3, 2)
    for array in (np.asfortranarray(wide), wide.astype(">f4"), wide[::-1]):
        np.testing.assert_array_equal(decode(request(npy(array), NPY)).inputs[0], array)


NPY_HEAD = b"\x93NUMPY\x01\x00"


@pytest.mark.parametrize(
    ("body", "tensors", "words"),
    [
        (npy(np.array([object()]), allow_pickle=True), X, "pickled"),
        (npy(np.float64([[1, 2]])), X, "dtype float64, must be float32"),
        (npy(ROW)[:-1], X, "7 bytes follow"),
        (npy(ROW) + b"x", X, "9 bytes follow"),
        (npy(ROW[0]), X, "one more list"),
        (npy(np.float32([[1, 2, 3]])), X, "must be [-1, 2]"),
        (npy(np.zeros((0, 2), np.float32)), X, "at least 1"),
        (b"", X, "not an npy file"),
        (b"{}", X, "not an npy file"),
        (b"\x93NUMPY\x09\x00\x00\x00", X, "npy format 9.0"),
        (NPY_HEAD + b"\xff\xff" + b" " * 65535, X, "at most 4096"),
        (NPY_HEAD + b"\x10\x00" + b"(" * 16, X, "not an npy file"),
        (NPY_HEAD + b"\xe8\x03" + b"-" * 1000, X, "not an npy file"),
        (
            NPY_HEAD + b"\x40\x00" + b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}".ljust(64),
            X,
            "must give descr, fortran_order and shape",
        ),
        (npy(ROW), PAIR, "holds one tensor"),
        (npy(np.array([True]))[:-1] + b"\x02", signature(("x", "BOOL", [-1])), "0 or 1"),
        (npy(ROW), IMAGE, "BYTES"),
    ],
    ids=[
        "pickled objects",
        "another dtype",
        "too short",
        "too long",
        "a row without a batch",
        "another tail",
        "no rows",
        "empty",
        "JSON",
        "a format of the future",
        "a header over the cap",
        "brackets",
        "signs",
        "a negative dimension",
        "two inputs",
        "a bool of 2",
        "for an image",
    ],
)
def test_a_bad_npy_file_is_told_what_is_wrong(body: bytes, tensors: Signature, words: str) -> None:
    error = refuse(request(body, NPY), tensors)
    assert error.status == 400
    assert words in error.message


def test_an_npy_file_over_the_limits_is_refused() -> None:
    assert "maxElements" in refuse(request(npy(ROW), NPY), max_elements=1).message


# --- safetensors ---


@pytest.mark.parametrize("datatype", NUMERIC)
@given(data=st.data())
def test_tensors_survive_the_way_through_safetensors(datatype: str, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype, finite=False))
    tensors = signature(("x", datatype, [-1] * array.ndim), ("one", "INT8", [-1]))
    one = np.ones(len(array), np.int8)
    if datatype == "BF16":  # the library has no name for it in numpy; torch's file is tested over HTTP
        decoded = codec.Decoded([array, one], form="safetensors")
    else:
        decoded = decode(request(safetensors.numpy.save({"x": array, "one": one}), SAFETENSORS), tensors)
        assert [given.tobytes() for given in decoded.inputs] == [array.tobytes(), one.tobytes()]
    answer = encode(decoded, tensors, [array, one])
    assert answer.content_type == SAFETENSORS
    again = dict(safetensors.deserialize(answer.body))
    assert bytes(again["x"]["data"]) == array.tobytes()
    assert again["x"]["shape"] == list(array.shape)


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start: int = 0, end: int = 8, dtype: str = "F32", shape: Any = (1, 2)) -> Any:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no safetensors file"),
        (b"\xff" * 8 + b"{}", "no safetensors file"),
        (tensor_file(b"{"), "safetensors header"),
        (tensor_file([1]), "safetensors header"),
        (tensor_file({"x": 3}), "tensor 'x'"),
        (tensor_file({}), "missing ['x']"),
        (tensor_file({"z": entry()}, bytes(8)), "unknown ['z']"),
        (tensor_file({"x": entry(dtype="F64", end=16)}, bytes(16)), "must be F32"),
        (tensor_file({"x": entry(shape=[2, 1])}, bytes(8)), "must be [-1, 2]"),
        (tensor_file({"x": entry(end=4)}, bytes(4)), "takes 8"),
        (tensor_file({"x": entry(end=16)}, bytes(8)), "pass the end"),
        (tensor_file({"x": entry(start=4, end=12)}, bytes(12)), "leave a gap"),
        (tensor_file({"x": entry(start=8, end=0)}, bytes(8)), "leave a gap"),
        (tensor_file({"x": entry(start=-8, end=0)}, bytes(8)), "leave a gap"),
        (tensor_file({"x": entry()}, bytes(9)), "its tensors take 8"),
        (tensor_file({"x": entry(), "z": entry()}, bytes(8)), "overlap"),
        (tensor_file({"x": entry(shape=[2**70, 2])}, bytes(8)), ""),
    ],
    ids=[
        "empty",
        "a header without end",
        "damaged JSON",
        "no object",
        "no entry",
        "no tensor",
        "an unknown tensor",
        "another dtype",
        "another shape",
        "size against shape",
        "past the end",
        "a gap",
        "backwards",
        "negative",
        "bytes left over",
        "overlap",
        "a shape beyond all numbers",
    ],
)
def test_a_bad_safetensors_file_is_told_what_is_wrong(body: bytes, words: str) -> None:
    error = refuse(request(body, SAFETENSORS))
    assert error.status in (400, 413)
    assert words in error.message


@given(st.binary(max_size=100), st.sampled_from([NPY, SAFETENSORS, "multipart/form-data; boundary=b"]))
def test_whatever_bytes_come_the_answer_is_a_4xx(body: bytes, content_type: str) -> None:
    for prefix in (b"", NPY_HEAD, b"\x08\0\0\0\0\0\0\0", b'--b\r\nContent-Disposition: form-data; name="data"\r\n\r\n'):
        assert 400 <= refuse(request(prefix + body, content_type, "torchserve")).status < 500


# --- forms ---


def form(*fields: tuple[str, bytes, str], boundary: str = "XyZ", end: str = "--") -> bytes:
    pieces = []
    for name, content, content_type in fields:
        kind = f"Content-Type: {content_type}\r\n" if content_type else ""
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n{kind}\r\n'
        pieces.append(head.encode() + content + b"\r\n")
    return b"".join(pieces) + f"--{boundary}{end}\r\n".encode()


def post_form(body: bytes, boundary: str = "XyZ") -> Call:
    return request(body, f"multipart/form-data; boundary={boundary}", "torchserve")


@pytest.mark.parametrize(
    ("fields", "tensors"),
    [
        ([("data", b"[[1, 2]]", "")], X),
        ([("data", b"[[1, 2]]", "text/plain")], X),
        ([("data", b'{"instances": [[1, 2]]}', JSON)], X),
        ([("data", npy(ROW), NPY)], X),
        ([("data", safetensors.numpy.save({"x": ROW}), SAFETENSORS)], X),
        ([("x", b"[[1, 2]]", "")], X),
        ([("x", npy(ROW), NPY)], X),
        ([("data", b"[[1, 2]]", "")], signature(("data", "FP32", [-1, 2]))),
    ],
    ids=[
        "rows",
        "a text file",
        "a document",
        "npy",
        "safetensors",
        "an input",
        "an input as npy",
        "an input called data",
    ],
)
def test_a_form_gives_the_body_or_the_inputs(fields: Any, tensors: Signature) -> None:
    assert decode(post_form(form(*fields)), tensors).inputs[0].tolist() == [[1, 2]]


def test_a_form_gives_a_picture_as_it_is() -> None:
    picture = bytes(range(256)) + b"\r\n--XyZ-\r\n\n\r"
    decoded = decode(post_form(form(("data", picture, "image/png"))), IMAGE, ("image/",))
    assert decoded.inputs[0].tolist() == [picture]
    assert decoded.is_medium
    assert decode(post_form(form(("image", picture, ""))), IMAGE, ("image/",)).inputs[0].tolist() == [picture]


def test_several_pictures_in_a_form_are_a_row_each() -> None:
    pictures = form(("data", b"one", "image/png"), ("data", b"two", ""), ("data", b"three", "image/jpeg"))
    decoded = decode(post_form(pictures), IMAGE, ("image/",))
    assert decoded.inputs[0].tolist() == [b"one", b"two", b"three"]
    assert not decoded.is_medium, "the answer is a list"
    mixed = form(("data", b"one", "image/png"), ("data", b'["dHdv"]', "application/json"))
    with pytest.raises(RequestError, match="field 'data': may appear once; several are for media"):
        decode(post_form(mixed), IMAGE, ("image/",))


@pytest.mark.parametrize(
    ("body", "boundary", "words"),
    [
        (b"", "XyZ", "ends before"),
        (form(("data", b"[[1, 2]]", ""))[:-6], "XyZ", "ends before"),
        (form(("data", b"[[1, 2]]", "")), "other", "not a multipart form"),
        (form(("data", b"[[1, 2]]", "")), "", "no boundary"),
        (form(("data", b"[[1, 2]]", ""), ("data", b"[[1, 2]]", "")), "XyZ", "'data': may appear once"),
        (form(("data", b"[[1, 2]]", ""), ("top_k", b"3", "")), "XyZ", "fields ['top_k'] beside 'data'"),
        (form(("file", b"[[1, 2]]", "")), "XyZ", "missing ['x'], unknown ['file']"),
        (form(("data", b"x", "multipart/form-data")), "XyZ", "a form in a form"),
        (form(("data", b"\xff\xd8\xff", "")), "XyZ", "looks like a JPEG image"),
        (form(("data", b"\xff\xd8\xff", "image/jpeg")), "XyZ", "Content-Type image/jpeg"),
        (b"--XyZ\r\n\r\nx\r\n--XyZ--\r\n", "XyZ", "needs Content-Disposition"),
        (form(*((f"f{index}", b"", "") for index in range(33))), "XyZ", "serving.limits.maxTensors"),
        (form(*[("data", b"", "")] * 33), "XyZ", "serving.limits.maxTensors"),
        (b"--XyZ\r\n" + b"a: b\r\n" * 20 + b"\r\nx\r\n--XyZ--\r\n", "XyZ", "not a multipart form"),
        (b"--XyZ\r\na: " + b"b" * 9000 + b"\r\n\r\nx\r\n--XyZ--\r\n", "XyZ", "not a multipart form"),
    ],
    ids=[
        "empty",
        "cut",
        "another boundary",
        "no boundary",
        "a field twice",
        "a field too many",
        "an unknown field",
        "a form in a form",
        "a picture without a type",
        "a picture for tensors",
        "a part without a name",
        "too many parts",
        "too many of one name",
        "too many headers",
        "a header too long",
    ],
)
def test_a_bad_form_is_told_what_is_wrong(body: bytes, boundary: str, words: str) -> None:
    error = refuse(post_form(body, boundary))
    assert error.status in (400, 415)
    assert words in error.message


# --- compressed ---


def raw_deflate(body: bytes) -> bytes:
    machine = zlib.compressobj(wbits=-15)
    return machine.compress(body) + machine.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", gzip.compress(BODY)),
        ("x-gzip", gzip.compress(BODY)),
        ("GZIP", gzip.compress(BODY)),
        ("gzip", gzip.compress(BODY[:9]) + gzip.compress(b"") + gzip.compress(BODY[9:])),
        ("deflate", zlib.compress(BODY)),
        ("deflate", raw_deflate(BODY)),
        ("identity", BODY),
    ],
    ids=["gzip", "x-gzip", "upper case", "many members", "deflate", "deflate without its header", "identity"],
)
def test_compressed_bodies_are_inflated(encoding: str, body: bytes) -> None:
    assert decode(request(body, Content_Encoding=encoding)).inputs[0].tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("encoding", "body", "status", "words"),
    [
        ("br", b"", 415, "must be one of gzip, deflate, identity"),
        ("gzip, gzip", b"", 415, "must be one of"),
        ("gzip", b"no", 400, "Content-Encoding is gzip, but"),
        ("gzip", gzip.compress(BODY)[:-1], 400, "ends in the middle"),
        ("gzip", gzip.compress(BODY) + b"x", 400, "1 bytes follow"),
        ("gzip", gzip.compress(BODY) + gzip.compress(b" ")[:-1], 400, "ends in the middle"),
        ("gzip", gzip.compress(b"") * 20_000, 400, "more than 16384 members"),
        ("gzip", gzip.compress(bytes(1 << 24)) * 5, 413, "serving.maxRequestBytes"),
        ("deflate", zlib.compress(BODY) * 2, 400, "bytes follow the deflate data"),
        ("deflate", b"", 400, "ends in the middle"),
        ("deflate", b"\xff", 400, "Content-Encoding is deflate, but"),
        ("gzip", gzip.compress(bytes(1 << 27), 9), 413, "serving.maxRequestBytes"),
    ],
    ids=[
        "brotli",
        "twice",
        "not gzip",
        "cut",
        "with a tail",
        "a cut second member",
        "too many members",
        "members of a bomb",
        "deflate twice",
        "nothing",
        "not deflate",
        "a bomb",
    ],
)
def test_a_bad_encoding_is_told_what_is_wrong(encoding: str, body: bytes, status: int, words: str) -> None:
    error = refuse(request(body, Content_Encoding=encoding))
    assert error.status == status
    assert words in error.message
    assert ("Accept-Encoding" in codec.encode_error("v2", error).headers) == (status == 415)


def test_members_cost_no_more_than_their_number() -> None:
    """zlib copies what follows a member: done carelessly, a body of small ones takes the square of its size."""
    members = gzip.compress(b" " * 4) * 16_000
    began_s = time.process_time()
    assert inflate_body(request(members, Content_Encoding="gzip"), 1 << 20) == b" " * 64_000
    assert time.process_time() - began_s < 5  # 1 s on a slow machine; the square is minutes


# --- the form of the answer ---


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("*/*", "json"),
        ("application/json", "json"),
        ("application/octet-stream", "binary"),
        ("application/x-npy", "npy"),
        ("application/safetensors", "safetensors"),
        ("APPLICATION/X-NPY", "npy"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "json"),
        ("application/json;q=0.5, application/x-npy", "npy"),
        ("application/*, application/json;q=0", "binary"),
        ("application/x-npy;q=oops, application/json;q=0.1", "json"),
    ],
)
def test_the_answer_has_the_form_that_is_accepted(accept: str, form: str) -> None:
    assert decode(request(BODY, Accept=accept)).form == form


@pytest.mark.parametrize("accept", ["text/html", "application/json;q=0", "image/*", "*/*;q=0", "nonsense"])
def test_a_form_that_is_not_there_gets_406(accept: str) -> None:
    error = refuse(request(BODY, Accept=accept))
    assert error.status == 406
    assert "application/json, application/octet-stream, application/x-npy" in error.message


def test_forms_depend_on_route_and_outputs() -> None:
    v1 = request(b'{"instances": [[1, 2]]}', dialect="v1", Accept="application/octet-stream")
    assert refuse(v1).status == 406
    pair = json.dumps(
        {
            "inputs": [
                {"name": "a", "datatype": "FP32", "shape": [1], "data": [1]},
                {"name": "b", "datatype": "INT64", "shape": [1], "data": [1]},
            ],
            "outputs": [{"name": "b"}],
        }
    ).encode()
    decoded = decode(request(pair, Accept=NPY), PAIR)
    answer = encode(decoded, PAIR, [np.float32([1]), np.int64([7])])
    assert np.load(io.BytesIO(answer.body)).tolist() == [7]
    picture = request(b"x", "image/png", Accept=NPY)
    assert refuse(picture, IMAGE, ("image/",)).status == 406


def test_what_the_body_says_of_its_outputs_wins_over_accept() -> None:
    document = {**json.loads(BODY), "parameters": {"binary_data_output": True}}
    assert decode(request(json.dumps(document).encode(), Accept=JSON)).form == "binary"


# --- bodies that are something else ---


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"\xff\xd8\xff\xe0", "looks like a JPEG image; this model takes tensors ['x']"),
        (b"RIFF0000WAVE", "looks like a WAV recording"),
        (npy(ROW), "Content-Type: application/x-npy"),
        (gzip.compress(BODY), "Content-Encoding: gzip"),
        (b"\x80\x04K\x01.", "a pickle, which is never read"),
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"hello", "body:"),
    ],
    ids=["a JPEG", "a WAV", "an npy", "gzip", "a pickle", "nothing", "white space", "text"],
)
def test_a_body_that_is_no_json_is_told_what_it_looks_like(body: bytes, words: str) -> None:
    error = refuse(request(body, "application/octet-stream"))
    assert error.status == 400
    assert words in error.message


def test_a_flat_row_gets_a_hint() -> None:
    for dialect, body in (("v1", b'{"instances": [1, 2]}'), ("v1", b'{"inputs": [1, 2]}'), ("torchserve", b"[1, 2]")):
        assert "put one more list around it" in refuse(request(body, dialect=dialect)).message
    document = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}]}
    assert "[1, 2] where a shape is given" in refuse(request(json.dumps(document).encode())).message


def test_json_values_are_counted_before_they_are_parsed() -> None:
    body = json.dumps({"instances": [[1, 2]] * 50}).encode()
    error = refuse(request(body, dialect="v1"), max_json_elements=40)
    assert (error.status, "serving.limits.maxJsonElements" in error.message) == (413, True)
    text = json.dumps({"instances": [',,"\\,,' * 50]}).encode()
    assert (
        decode(request(text, dialect="v1"), signature(("x", "BYTES", [-1])), max_json_elements=40).inputs[0].size == 1
    )
