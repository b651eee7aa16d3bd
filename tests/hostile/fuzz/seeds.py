"""Where a fuzzer begins: good requests, and the hand-made attacks. Nothing is stored, all of it is made."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import safetensors.numpy
from hostile.attack import ROW, Attack, v2
from hostile.attacks import (
    arrayfiles,
    compression,
    datatypes,
    images,
    recordings,
    routes,
    texts,
    torchserve,
    v1,
    v2_binary,
    v2_json,
)
from testkit.media_files import picture, recording
from torchmodel_runtime.protos.open_inference_pb2 import ModelInferRequest

MAX_BYTES = 4096
"""Larger seeds teach a fuzzer nothing that smaller ones do not."""


def message(body: bytes, *fields: tuple[str, str]) -> bytes:
    """As `promises.read_message` reads it."""
    head = "\n".join(f"{name}: {value}" for name, value in fields)
    return head.encode("utf-8", "surrogateescape") + b"\n\n" + body


def messages(attacks: Iterable[Attack], route: str) -> list[bytes]:
    """The attacks on one route, headers and all."""
    return [message(attack.body, *attack.fields()) for attack in attacks if attack.path.startswith(route)]


def bodies(attacks: Iterable[Attack], content_type: str = "") -> list[bytes]:
    """The bodies alone."""
    return [attack.body for attack in attacks if not content_type or attack.content_type == content_type]


def _v2() -> list[bytes]:
    good = [
        message(v2(), ("Content-Type", "application/json")),
        message(datatypes.document(), ("Content-Type", "application/json")),
    ]
    tables = (v2_json, v2_binary, datatypes, images, texts)
    return good + [seed for table in tables for seed in messages(table.ATTACKS, "/v2/models")]


def _v1() -> list[bytes]:
    good = [
        message(json.dumps(document).encode(), ("Content-Type", "application/json"))
        for document in (
            {"instances": [ROW, ROW]},
            {"instances": [{"x": ROW}]},
            {"inputs": {"x": [ROW]}},
            {"instances": [datatypes.ROW]},
            {"instances": [{"b64": "AAAA"}, "AAAA"]},
        )
    ]
    return good + [seed for table in (v1, datatypes, images, texts) for seed in messages(table.ATTACKS, "/v1")]


def _torchserve() -> list[bytes]:
    rows = json.dumps([ROW]).encode()
    good = [
        message(rows, ("Content-Type", "application/json")),
        message(torchserve.part("data", rows) + b"--line--\r\n", ("Content-Type", torchserve.FORM)),
        message(torchserve.part("x", rows) + b"--line--\r\n", ("Content-Type", torchserve.FORM)),
        message(
            torchserve.part("x", _npy(), "Content-Type: application/x-npy") + b"--line--\r\n",
            ("Content-Type", torchserve.FORM),
        ),
        message(picture(), ("Content-Type", "image/png")),
    ]
    return good + messages(torchserve.ATTACKS, "/predictions")


def _npy(array: np.ndarray | None = None) -> bytes:
    file = io.BytesIO()
    np.save(file, np.float32([ROW]) if array is None else array)
    return file.getvalue()


def _npys() -> list[bytes]:
    arrays = (
        None,
        np.zeros((2, 10), ">f4"),
        np.asfortranarray(np.zeros((2, 10), np.float32)),
        np.zeros((1, 2, 3), "V2"),
    )
    return [_npy(array) for array in arrays] + bodies(arrayfiles.NPY_FILES)


def _safetensors() -> list[bytes]:
    many = {
        "ids": np.int64([[1, 2]]),
        "flags": np.array([[True, False, True]]),
        "half": np.float16([[1, 2]]),
        "byte": np.uint8([[0, 255]]),
    }
    good = [safetensors.numpy.save({"x": np.float32([ROW])}), safetensors.numpy.save(many)]
    return good + bodies(arrayfiles.SAFETENSORS_FILES)


def _inflate() -> list[bytes]:
    good = [
        gzip.compress(v2()),
        gzip.compress(v2()) * 3,
        zlib.compress(v2()),
        compression.raw(v2()),
        gzip.compress(bytes(5000)),
    ]
    return good + bodies(compression.ATTACKS)


def _accept() -> list[bytes]:
    ranges = ("*/*", "application/json", "application/x-npy;q=0.5, application/octet-stream", "text/*, */*;q=0.1")
    return [message(b"", ("Accept", accept)) for accept in ranges] + [
        message(b"", *attack.headers) for attack in routes.HEADERS
    ]


def _deadlines() -> list[bytes]:
    fields = ("X-Request-Timeout-Milliseconds", "x-envoy-expected-rq-timeout-ms")
    good = [message(b"1000", (name, value)) for name in fields for value in ("1", "1000", "999999999999")]
    words = ("0", "5000000", '"5000000"', "true", "1.5", "[1]", "null", str(2**63), '"\u0661"')
    return (
        good
        + [message(word.encode()) for word in words]
        + [message(b"1", *attack.headers) for attack in routes.HEADERS]
    )


def _traces() -> list[bytes]:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    parents = (
        parent,
        parent.upper(),
        parent + "-x",
        "cc" + parent[2:] + "-more",
        "ff" + parent[2:],
        "0" * 55,
        parent + "\n",
        "",
    )
    states = (
        "a=1,b=2",
        "a@b=1",
        "=,=",
        "a=" + "x" * 256,
        ",".join(f"k{n}=v" for n in range(40)),
        "a=1,a=2",
        " ,\t,",
        "a=\xe9",
    )
    return [message(b"", ("traceparent", each)) for each in parents] + [
        message(b"", ("traceparent", parent), ("tracestate", each), ("tracestate", "z=1")) for each in states
    ]


def grpc_request(raw: bool = False) -> ModelInferRequest:
    """A good request to the model of `datatypes.GOOD`."""
    request = ModelInferRequest(model_name="m", id="1")
    fields = {"ids": "int64_contents", "flags": "bool_contents", "byte": "uint_contents"}
    for name, tensor in datatypes.GOOD.items():
        given = request.inputs.add(name=name, datatype=tensor["datatype"], shape=tensor["shape"])
        if raw:
            request.raw_input_contents.append(datatypes.PACKED[name])
        elif name in fields:
            getattr(given.contents, fields[name]).extend(map(int, tensor["data"]))
    return request


def _grpc() -> list[bytes]:
    row = ModelInferRequest(model_name="m")
    row.inputs.add(name="x", datatype="FP32", shape=[1, 10]).contents.fp32_contents.extend(ROW)
    asked = grpc_request(raw=True)
    asked.outputs.add(name="ids").parameters["binary_data"].bool_param = True
    asked.parameters["timeout"].int64_param = 1000
    medium = ModelInferRequest(model_name="m")
    medium.inputs.add(name="image", datatype="BYTES", shape=[2]).contents.bytes_contents.extend([b"a", b"bc"])
    return [each.SerializeToString() for each in (row, grpc_request(), asked, medium, ModelInferRequest())]


def _varints() -> list[bytes]:
    return [
        b"\x01\x02\x7f",
        b"\x80\x01" * 3,
        b"\xff" * 9 + b"\x01",
        b"\x80" * 20,
        b"\x0a\x03abc\x12\x00\x18\x05",
        *_grpc(),
    ]


def _images() -> list[bytes]:
    kinds = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    return [picture(kind, (8, 8)) for kind in kinds] + bodies(images.ATTACKS)


def _recordings() -> list[bytes]:
    kinds = ("WAV", "FLAC", "OGG", "MP3", "AIFF")
    return [recording(kind, seconds=0.05, rate_hertz=8000) for kind in kinds] + bodies(recordings.ATTACKS)


def _waves() -> list[bytes]:
    rates = ((44100, 16000), (8000, 16000), (48000, 16000), (11025, 16000))
    return [struct.pack("<III", source - 1000, target - 4000, 0) + bytes(range(256)) for source, target in rates]


SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "v2": _v2,
    "v1": _v1,
    "torchserve": _torchserve,
    "npy": _npys,
    "safetensors": _safetensors,
    "inflate": _inflate,
    "accept": _accept,
    "deadlines": _deadlines,
    "tracecontext": _traces,
    "grpc": _grpc,
    "protowire": _varints,
    "image": _images,
    "audio": _recordings,
    "resample": _waves,
    "text": lambda: [
        b"the dog",
        b"",
        b" ",
        b"\xff",
        "d\u00f6g \U0001f415".encode(),
        *bodies(texts.ATTACKS, "text/plain"),
    ],
}
"""By target, as `checks.CHECKS`."""


def make_seeds(target: str) -> list[bytes]:
    """The seeds of one target, large ones left out, each once."""
    return list(dict.fromkeys(seed for seed in SEEDS[target]() if len(seed) <= MAX_BYTES))


_JSON_WORDS = (
    *(
        f'"{word}"'
        for word in ("inputs", "outputs", "name", "datatype", "shape", "data", "parameters", "id", "instances")
    ),
    *(
        f'"{word}"'
        for word in ("binary_data_size", "binary_data", "binary_data_output", "timeout", "x", "ids", "image", "b64")
    ),
    *(
        f'"{word}"'
        for word in ("FP32", "INT64", "BOOL", "FP16", "UINT8", "BF16", "BYTES", "sequence_id", "classification")
    ),
    *("NaN", "Infinity", "null", "true", "1e39", "-0.0", "9223372036854775808", "[[", "]]", "{}", "\\ud800"),
)
_FIELDS = (
    *(
        "Content-Type: ",
        "Content-Encoding: ",
        "Inference-Header-Content-Length: ",
        "Accept: ",
        "\n\n",
        "application/json",
    ),
    *(
        "application/x-npy",
        "application/vnd.safetensors",
        "application/octet-stream",
        "image/png",
        "text/plain",
        "gzip",
    ),
    *("multipart/form-data; boundary=line", "--line\r\n", "--line--\r\n", "\r\n\r\n", ";q=0"),
    *('Content-Disposition: form-data; name="data"', 'filename="f"', "Content-Transfer-Encoding: "),
    *("X-Request-Timeout-Milliseconds: ", "x-envoy-expected-rq-timeout-ms: ", "traceparent: ", "tracestate: "),
)
_FILES = (
    "'descr'",
    "'fortran_order'",
    "'shape'",
    "'<f4'",
    "'|O'",
    "True",
    "data_offsets",
    "__metadata__",
    "IDAT",
    "RIFF",
)


def dictionary() -> str:
    """Words of all formats, as libFuzzer reads them: it cannot guess those that compiled parsers compare."""
    words = (*_JSON_WORDS, *_FIELDS, *_FILES)
    return "".join('"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"\n' for word in words)
