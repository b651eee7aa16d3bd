"""ModelInfer's messages: a wire format that lies, contents that do not fit. For the model of `testkit.tiny_media.serve_echo`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hostile.attacks import datatypes
from torchmodel_runtime.protos.open_inference_pb2 import InferParameter, ModelInferRequest

Input = ModelInferRequest.InferInputTensor


@dataclass(frozen=True)
class Message:
    """What is sent, gRPC's code for it, and what is said."""

    title: str
    body: bytes
    says: str
    code: str = "INVALID_ARGUMENT"
    metadata: tuple[tuple[str, str], ...] = ()


def request(raw: bool = False) -> ModelInferRequest:
    """A good one. FP16 has no typed form, so only raw contents can be whole."""
    made = ModelInferRequest(model_name="echo", id="1")
    fields = {"ids": "int64_contents", "flags": "bool_contents", "byte": "uint_contents"}
    for name, tensor in datatypes.GOOD.items():
        given = made.inputs.add(name=name, datatype=tensor["datatype"], shape=tensor["shape"])
        if raw:
            made.raw_input_contents.append(datatypes.PACKED[name])
        elif name in fields:
            getattr(given.contents, fields[name]).extend(map(int, tensor["data"]))
    return made


GOOD = request(raw=True).SerializeToString()


def changed(
    title: str, change: Callable[[ModelInferRequest], object], says: str, code: str = "INVALID_ARGUMENT"
) -> Message:
    """A good request with raw contents, but for the change."""
    made = request(raw=True)
    change(made)
    return Message(title, made.SerializeToString(), says, code)


def typed(title: str, change: Callable[[list[Input]], object], says: str, code: str = "INVALID_ARGUMENT") -> Message:
    """A request with typed contents: ids, flags, none of half, byte."""
    made = request()
    change(list(made.inputs))
    return Message(title, made.SerializeToString(), says, code)


def field(number: int, content: bytes, kind: int = 2, length: bytes | None = None) -> bytes:
    """A field as it travels; length: what its length is said to be."""
    return bytes([number << 3 | kind]) + (bytes([len(content)]) if length is None else length) + content


NO_MESSAGE = "message: is no inference.ModelInferRequest"
ENDS = "ends after the"

WIRE = (
    Message("no fields", b"", "no model '' here", "NOT_FOUND"),
    Message("a byte", b"\xff", NO_MESSAGE),
    Message("random bytes", bytes(range(256)), NO_MESSAGE),
    Message("JSON", b'{"model_name": "echo"}', NO_MESSAGE),
    Message("a message that is cut off", GOOD[:-1], ENDS),
    Message("a message that is cut off in a tag", GOOD + b"\x80", NO_MESSAGE),
    Message("a message twice", GOOD * 2, "each name may appear once"),
    Message("a length of 2^63", field(5, b"abc", length=b"\xff" * 8 + b"\x7f"), NO_MESSAGE),
    Message("a length of eleven bytes", field(5, b"abc", length=b"\x80" * 10 + b"\x01"), "longer than 10 bytes"),
    Message("a length of 2^64 - 1", field(7, b"abc", length=b"\xff" * 9 + b"\x01"), NO_MESSAGE),
    Message("a group", b"\x2b\x2c" + GOOD, "begins a field of kind 3"),
    Message("a kind that does not exist", b"\x2f" + GOOD, "begins a field of kind 7"),
    Message("a field of number 0", field(0, b"abc") + GOOD, NO_MESSAGE),
    Message("an input that is a number", field(5, b"", 0, b"\x05") + GOOD, "is a number"),
    Message("raw contents that are a number", field(7, b"12345678", 1, b"") + GOOD, "is a number"),
    Message("a name that is no UTF-8", field(1, b"\xff\xfe"), NO_MESSAGE),
    Message("10,000 fields nobody knows", field(99 & 0x0F, b"") * 10_000 + GOOD, "more than 4096 fields"),
    Message("100,000 inputs", field(5, b"") * 100_000, "more than 4096 fields"),
    Message(
        "inputs in inputs in inputs",
        field(5, field(5, field(5, b"abc"))) + field(1, b"echo"),
        "inputs: missing ['ids', 'flags', 'half', 'byte']",
    ),
    Message(
        "a bad deadline",
        GOOD,
        "got 'soon', must be whole milliseconds",
        metadata=(("x-request-timeout-milliseconds", "soon"),),
    ),
)

NAMES = (
    changed(
        "another model",
        lambda made: setattr(made, "model_name", "other"),
        "no model 'other' here; this server has 'echo'",
        "NOT_FOUND",
    ),
    changed(
        "another version",
        lambda made: setattr(made, "model_version", "2"),
        "has no version '2'; it has '1'",
        "NOT_FOUND",
    ),
    changed(
        "a model's name of 30,000 letters",
        lambda made: setattr(made, "model_name", "m" * 30_000),
        "no model 'mmm",
        "NOT_FOUND",
    ),
    changed(
        "an id of a megabyte",
        lambda made: setattr(made, "id", "i" * 1_000_000),
        "bytes beside the tensors' contents, at most 65536 are taken",
        "RESOURCE_EXHAUSTED",
    ),
    changed(
        "33 inputs",
        lambda made: [made.inputs.add(name="a") for _ in range(29)],
        "33 tensors, at most 32 are taken (serving.limits.maxTensors)",
    ),
    changed(
        "an unknown input", lambda made: setattr(made.inputs[0], "name", "z"), "inputs: missing ['ids'], unknown ['z']"
    ),
    changed("an input twice", lambda made: setattr(made.inputs[0], "name", "byte"), "each name may appear once"),
    changed(
        "an unknown output", lambda made: made.outputs.add(name="z"), "outputs: 'z' is not an output of this model"
    ),
    changed(
        "an output asked for 1,000 times",
        lambda made: [made.outputs.add(name="ids") for _ in range(1000)],
        "outputs: 1000 are asked for, this model has 4",
    ),
    changed(
        "a sequence",
        lambda made: made.parameters["sequence_id"].MergeFrom(InferParameter(int64_param=7)),
        "sequence_id asks for state between requests",
    ),
    changed(
        "a negative timeout",
        lambda made: made.parameters["timeout"].MergeFrom(InferParameter(int64_param=-1)),
        "parameters.timeout: got",
    ),
    changed(
        "shared memory",
        lambda made: made.inputs[0].parameters["shared_memory_region"].MergeFrom(InferParameter(int64_param=1)),
        "input 'ids': shared_memory_region is for shared memory",
    ),
    changed(
        "a parameter without value",
        lambda made: made.parameters["binary_data_output"].Clear(),
        "binary_data_output None, must be true or false",
    ),
)


CONTENTS = (
    changed(
        "another datatype",
        lambda made: setattr(made.inputs[0], "datatype", "INT32"),
        "input 'ids': datatype 'INT32', must be INT64",
    ),
    changed("no shape", lambda made: made.inputs[0].ClearField("shape"), "input 'ids': shape [], must be [-1, -1]"),
    changed(
        "a negative shape",
        lambda made: made.inputs[0].shape.__setitem__(0, -1),
        "input 'ids': shape [-1, 2], must be [-1, -1]",
    ),
    changed(
        "a shape of 2^63 - 1",
        lambda made: made.inputs[0].shape.__setitem__(1, 2**63 - 1),
        "serving.limits.maxElements",
        "RESOURCE_EXHAUSTED",
    ),
    changed(
        "a shape of 1,000 dimensions",
        lambda made: made.inputs[0].shape.extend([2] * 1000),
        "1002 dimensions, at most 9 are taken (serving.limits.maxRank)",
    ),
    changed(
        "raw contents that are cut off",
        lambda made: made.raw_input_contents.__setitem__(0, bytes(15)),
        "input 'ids': 15 bytes, but shape [1, 2] of INT64 takes 16",
    ),
    changed(
        "raw contents too few", lambda made: made.raw_input_contents.pop(), "raw_input_contents: 3 of them for 4 inputs"
    ),
    changed(
        "raw contents too many",
        lambda made: made.raw_input_contents.append(b""),
        "raw_input_contents: 5 of them for 4 inputs",
    ),
    changed(
        "raw contents and typed ones",
        lambda made: made.inputs[0].contents.int64_contents.append(1),
        "input 'ids': has contents beside raw_input_contents",
    ),
    changed(
        "a flag that is 2",
        lambda made: made.raw_input_contents.__setitem__(1, b"\2\0\0"),
        "input 'flags': a BOOL is one byte, 0 or 1",
    ),
    typed(
        "typed contents of a datatype that has none",
        lambda inputs: inputs[2].contents.fp32_contents.extend([1, 2]),
        "input 'half': FP16 has no typed contents in this protocol",
    ),
    typed(
        "no contents",
        lambda inputs: inputs[0].ClearField("contents"),
        "input 'ids': has no data; send raw_input_contents, or contents",
    ),
    typed(
        "contents of another datatype",
        lambda inputs: (inputs[0].ClearField("contents"), inputs[0].contents.fp64_contents.extend([1, 2])),
        "input 'ids': has fp64_contents, INT64 is sent in int64_contents",
    ),
    typed(
        "contents too few",
        lambda inputs: inputs[0].contents.int64_contents.pop(),
        "input 'ids': shape [1, 2] means 2 elements, contents have 1",
    ),
    typed(
        "contents far too many",
        lambda inputs: inputs[0].contents.int64_contents.extend(range(100_000)),
        "input 'ids': shape [1, 2] means 2 elements, contents have 100002",
    ),
)
"""Inputs are read in the signature's order, so what is wrong with the first is said first."""

ATTACKS = WIRE + NAMES + CONTENTS
