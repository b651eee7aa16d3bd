"""V2's JSON documents."""

from __future__ import annotations

import json

from hostile.attack import ROW, Attack, dump, ten, v2, v2_text

TENSOR = json.loads(v2())["inputs"][0]
MALFORMED = "JSON is malformed"

DOCUMENTS = (
    Attack("there is no body", b"", "body: is empty, must be a JSON document"),
    Attack("the body is blank", b" \r\n\t" * 10, "body: is empty, must be a JSON document"),
    Attack("the document is cut off", v2()[:-1], "body: Input data was truncated"),
    Attack("the document is cut off inside a string", v2()[:14], "body: Input data was truncated"),
    Attack("the document is cut off inside a number", v2()[:-5], "body: Input data was truncated"),
    Attack("the document is a list", b"[]", "Expected `object`, got `array`"),
    Attack("the document is a text", b'"inputs"', "Expected `object`, got `str`"),
    Attack("the document is a number", b"1e400", "body:"),
    Attack("the document is null", b"null", "Expected `object`, got `null`"),
    Attack("there are two documents", v2() * 2, "trailing characters"),
    Attack("there is something after the document", v2() + b";", "trailing characters"),
    Attack("there is a byte order mark", b"\xef\xbb\xbf" + v2(), f"body: {MALFORMED}: invalid character (byte 0)"),
    Attack("the document is UTF-16", v2().decode().encode("utf-16"), f"body: {MALFORMED}"),
    Attack("there are comments", b"/* inputs */" + v2(), f"body: {MALFORMED}: invalid character (byte 0)"),
    Attack(
        "the document is a Python literal", v2().replace(b'"', b"'"), f"body: {MALFORMED}: object keys must be strings"
    ),
    Attack("the document is YAML", b"inputs:\n- name: x\n", f"body: {MALFORMED}"),
    Attack("there is a comma too many", v2()[:-1] + b",}", f"body: {MALFORMED}: trailing comma in object"),
    Attack("a key is no text", b"{1: []}", f"body: {MALFORMED}: object keys must be strings"),
    Attack("the id is no UTF-8", v2(more={"id": "?"}).replace(b"?", b"\xff\xfe"), "body:"),
    Attack("the id has overlong UTF-8", v2(more={"id": "?"}).replace(b"?", b"\xc0\x80"), "body:"),
    Attack(
        "the id has half a surrogate pair",
        v2(more={"id": "?"}).replace(b"?", b"\\ud800 and so on"),
        "body: JSON is malformed",
    ),
    Attack("the id has a surrogate in bytes", v2(more={"id": "?"}).replace(b"?", b"\xed\xa0\x80"), "body:"),
    Attack("the id has a bare control character", v2(more={"id": "?"}).replace(b"?", b"\n"), "invalid character"),
    Attack("the id is a number", v2(more={"id": 7}), "Expected `str | null`, got `int` - at `$.id`"),
    Attack(
        "inputs are nested 50,000 deep",
        b'{"inputs": ' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        "Expected `object`, got `array`",
    ),
    Attack("parameters are nested 100,000 deep", b'{"parameters": {"a": ' + b"[" * 100_000, "body:"),
    Attack("unknown fields are nested 100,000 deep", b'{"a": ' + b'{"a":' * 100_000, "unknown field `a`"),
)

FIELDS = (
    Attack("there are no inputs", b"{}", "missing required field `inputs`"),
    Attack("inputs are empty", b'{"inputs": []}', "missing ['x']"),
    Attack("inputs are null", b'{"inputs": null}', "Expected `array`, got `null` - at `$.inputs`"),
    Attack("inputs are an object", b'{"inputs": {"x": [1]}}', "Expected `array`, got `object` - at `$.inputs`"),
    Attack("an input is null", b'{"inputs": [null]}', "Expected `object`, got `null` - at `$.inputs[0]`"),
    Attack("an input is a list", dump({"inputs": [ROW]}), "Expected `object`, got `array` - at `$.inputs[0]`"),
    Attack("a field is unknown", v2(more={"model": "x"}), "unknown field `model`"),
    Attack("a field of an input is unknown", v2(dtype="FP32"), "unknown field `dtype` - at `$.inputs[0]`"),
    Attack("a field is in capitals", v2(more={"Outputs": []}), "unknown field `Outputs`"),
    Attack("an input has no name", v2(without="name"), "missing required field `name` - at `$.inputs[0]`"),
    Attack("a name is unknown", v2(name="z"), "missing ['x'], unknown ['z']; this model has ['x']"),
    Attack("a name is a number", v2(name=1), "Expected `str`, got `int` - at `$.inputs[0].name`"),
    Attack("a name is empty", v2(name=""), "unknown ['']"),
    Attack("a name has a NUL", v2(name="x\0"), r"unknown ['x\x00']"),
    Attack("a name has a megabyte", v2(name="x" * 1_000_000), "missing ['x'], unknown ['xxx"),
    Attack("a name looks like the right one", v2(name="х"), "missing ['x']"),  # noqa: RUF001 - Cyrillic
    Attack("a name comes twice", dump({"inputs": [TENSOR, TENSOR]}), "each name may appear once"),
    Attack(
        "a long name comes 32 times",
        dump({"inputs": [{**TENSOR, "name": "x" * 30_000}] * 32}),
        "each name may appear once",
    ),
    Attack("there are two inputs for one", dump({"inputs": [TENSOR, {**TENSOR, "name": "z"}]}), "unknown ['z']"),
    Attack(
        "there are 33 inputs",
        dump({"inputs": [TENSOR] * 33}),
        "33 tensors, at most 32 are taken (serving.limits.maxTensors)",
    ),
    Attack("there are 100,000 empty inputs", b'{"inputs": [' + b"{}," * 100_000 + b"{}]}", "missing required field"),
    Attack("a datatype is missing", v2(without="datatype"), "missing required field `datatype`"),
    Attack("a datatype is unknown", v2(datatype="FP31"), "datatype 'FP31', must be FP32"),
    Attack("a datatype is another", v2(datatype="FP64"), "datatype 'FP64', must be FP32"),
    Attack("a datatype is BYTES", v2(datatype="BYTES", data=["a"] * 10), "datatype 'BYTES', must be FP32"),
    Attack("a datatype is in small letters", v2(datatype="fp32"), "datatype 'fp32', must be FP32"),
    Attack("a datatype is null", v2(datatype=None), "Expected `str`, got `null` - at `$.inputs[0].datatype`"),
    Attack("a datatype has a megabyte", v2(datatype="F" * 1_000_000), "must be FP32"),
)

SHAPES = (
    Attack("there is no shape", v2(without="shape"), "missing required field `shape`"),
    Attack("a shape is null", v2(shape=None), "Expected `array`, got `null` - at `$.inputs[0].shape`"),
    Attack("a shape is a number", v2(shape=10), "Expected `array`, got `int` - at `$.inputs[0].shape`"),
    Attack("a shape is a text", v2(shape="1x10"), "Expected `array`, got `str` - at `$.inputs[0].shape`"),
    Attack("a shape has a fraction", v2(shape=[1, 10.5]), "Expected `int`, got `float` - at `$.inputs[0].shape[1]`"),
    Attack("a shape has a flag", v2(shape=[True, 10]), "Expected `int`, got `bool`"),
    Attack("a shape has a text", v2(shape=["1", 10]), "Expected `int`, got `str`"),
    Attack("a shape is nested", v2(shape=[[1], [10]]), "Expected `int`, got `array`"),
    Attack("a shape is empty", v2(shape=[]), "shape [], must be [-1, 10]"),
    Attack("a shape has one dimension too few", v2(shape=[10]), ("shape [10], must be [-1, 10]", "one row")),
    Attack("a shape has one dimension too many", v2(shape=[1, 1, 10]), "shape [1, 1, 10], must be [-1, 10]"),
    Attack(
        "a shape has ten dimensions", v2(shape=[1] * 10), "10 dimensions, at most 9 are taken (serving.limits.maxRank)"
    ),
    Attack(
        "a shape has 100,000 dimensions", v2(shape=[2**62] * 100_000), ("100000 dimensions", "serving.limits.maxRank")
    ),
    Attack("a shape has other columns", v2(shape=[1, 11], data=[0.5] * 11), "shape [1, 11], must be [-1, 10]"),
    Attack("a shape is transposed", v2(shape=[10, 1]), "shape [10, 1], must be [-1, 10]"),
    Attack("a shape is not the data's", v2(shape=[2, 10]), "shape [2, 10] means 20 elements, data has 10"),
    Attack("a shape is negative", v2(shape=[-1, 10]), "shape [-1, 10], must be [-1, 10]"),
    Attack("a shape is twice negative", v2(shape=[-1, -10]), "shape [-1, -10], must be [-1, 10]"),
    Attack("a shape has no rows", v2(shape=[0, 10], data=[]), "at least 1"),
    Attack("a shape has no columns", v2(shape=[1, 0], data=[]), "shape [1, 0], must be [-1, 10]"),
    Attack(
        "a shape is beyond all memory",
        v2(shape=[2**40, 10]),
        ("10995116277760 elements", "serving.limits.maxElements"),
        413,
    ),
    Attack("a shape is 2^63", v2(shape=[2**63, 10]), "serving.limits.maxElements", 413),
    Attack(
        "a shape is 2^64 and comes out as none",
        v2(shape=[2**32, 2**32]),
        ("18446744073709551616", "serving.limits.maxElements"),
        413,
    ),
    Attack("a shape is beyond 64 bits", v2(shape=[2**64, 10]), "serving.limits.maxElements", 413),
    Attack(
        "a shape has numbers of 4,000 digits",
        v2_text(ten("0"), f"[{'9' * 4000}, {'9' * 4000}]"),
        "serving.limits.maxElements",
        413,
    ),
    Attack("a shape has 100,000 digits", v2_text(ten("0"), f"[{'9' * 100_000}, 10]"), "body:"),
    Attack("a shape is -2^63", v2(shape=[-(2**63), 10]), "must be [-1, 10]"),
    Attack("a shape is written with an exponent", v2_text(ten("0"), "[1e0, 10]"), "Expected `int`, got `float`"),
)

DATA = (
    Attack(
        "there is no data",
        v2(without="data"),
        "input 'x': has no data; send a JSON array as data, or bytes and binary_data_size",
    ),
    Attack("data is null", v2(data=None), "data must be a JSON array"),
    Attack("data is a text", v2(data="AAAA"), "data must be a JSON array"),
    Attack("data is a number", v2(data=0.5), "data must be a JSON array"),
    Attack("data is an object", v2(data={"0": 1}), "data must be a JSON array"),
    Attack("data is empty", v2(data=[]), "means 10 elements, data has 0"),
    Attack("data holds empty lists", v2(data=[[]] * 10), "means 10 elements, data has 0"),
    Attack("data is too short", v2(data=ROW[:9]), "means 10 elements, data has 9"),
    Attack("data is too long", v2(data=[*ROW, 1]), "means 10 elements, data has 11"),
    Attack("data is much too long", v2(data=[0.5] * 200_000), "means 10 elements, data has 200000"),
    Attack("data is nested otherwise", v2(data=[[v] for v in ROW]), "data is nested as [10, 1], shape says [1, 10]"),
    Attack("data is ragged", v2(shape=[2, 10], data=[ROW, ROW[:5]]), "data is ragged"),
    Attack("data is ragged in depth", v2(data=[ROW, 1.0]), "Expected `array`, got `float`"),
    Attack("data is nested ten deep", v2_text("[" * 10 + "1" + "]" * 10), "at most 9 levels"),
    Attack(
        "data is nested 100,000 deep",
        v2_text("[" * 100_000 + "]" * 100_000),
        "body: lists and objects are nested too deep",
    ),
    Attack(
        "data is nested deep inside",
        v2_text("[1, " + "[" * 100_000 + "]" * 100_000 + "]"),
        "body: lists and objects are nested too deep",
    ),
    Attack("texts are among the numbers", v2(data=["a"] * 10), "Expected `float`, got `str`"),
    Attack("numbers are written as texts", v2(data=["0.5"] * 10), "Expected `float`, got `str`"),
    Attack("flags are among the numbers", v2(data=[True] * 10), "Expected `float`, got `bool`"),
    Attack("null is among the numbers", v2(data=[None] * 10), "Expected `float`, got `null`"),
    Attack("objects are among the numbers", v2(data=[{}] * 10), "Expected `float`, got `object`"),
    Attack("NaN is among the numbers", v2_text(ten("NaN")), "JSON has no NaN and no Infinity"),
    Attack("Infinity is among the numbers", v2_text(ten("Infinity")), "JSON has no NaN and no Infinity"),
    Attack("-Infinity is among the numbers", v2_text(ten("-Infinity")), "JSON has no NaN and no Infinity"),
    Attack(
        "NaN is deep inside a large body", v2_text("[" + "0," * 200_000 + "NaN]"), "JSON has no NaN and no Infinity"
    ),
    Attack("a number is over FP32", v2_text(ten("1e39")), "a value is out of the range of FP32"),
    Attack(
        "a number is far over FP32 in several rows",
        v2(shape=[2, 10], data=[ROW, [-1e300] * 10]),
        "a value is out of the range of FP32",
    ),
    Attack("a number is over FP64", v2_text(ten("1e400")), "out of range"),
    Attack("an exponent has nine digits", v2_text(ten("1e999999999")), "out of range"),
    Attack("an exponent is beyond 64 bits", v2_text(ten("1e99999999999999999999999")), "input 'x'"),
    Attack("a number has 100,000 digits", v2_text(ten("9" * 100_000)), "out of range"),
    Attack("a number has leading zeros", v2_text(ten("007")), MALFORMED),
    Attack("a number has a plus sign", v2_text(ten("+1")), MALFORMED),
    Attack("a number is hexadecimal", v2_text(ten("0x10")), MALFORMED),
    Attack("a number ends with its point", v2_text(ten("1.")), MALFORMED),
    Attack("a number begins with its point", v2_text(ten(".5")), MALFORMED),
    Attack("numbers have underscores", v2_text(ten("1_000")), MALFORMED),
    Attack(
        "there are more values than are parsed",
        v2_text("[" + "0," * 2_100_000 + "0]"),
        "more than 2097152 JSON values (serving.limits.maxJsonElements)",
        413,
    ),
    Attack(
        "there are more rows than the queue takes",
        v2(shape=[1025, 10], data=[0.5] * 10_250),
        "has 1025 rows, the queue takes at most 1024 (serving.queue.maxRows)",
        413,
    ),
)

PARAMETERS = (
    Attack(
        "parameters are a list",
        v2(more={"parameters": []}),
        "Expected `object | null`, got `array` - at `$.parameters`",
    ),
    Attack("an input's parameters are a text", v2(parameters="a"), "Expected `object | null`, got `str`"),
    Attack(
        "a sequence is asked for",
        v2(more={"parameters": {"sequence_id": 7}}),
        "parameters: sequence_id asks for state between requests",
    ),
    Attack(
        "a sequence is asked for by name", v2(more={"parameters": {"sequence_id": "a"}}), "sequence_id asks for state"
    ),
    Attack("a sequence begins", v2(more={"parameters": {"sequence_start": True}}), "sequence_start asks for state"),
    Attack("a sequence ends", v2(more={"parameters": {"sequence_end": True}}), "sequence_end asks for state"),
    Attack(
        "binary_data_output is a text",
        v2(more={"parameters": {"binary_data_output": "yes"}}),
        "binary_data_output 'yes', must be true or false",
    ),
    Attack(
        "binary_data_output is a megabyte",
        v2(more={"parameters": {"binary_data_output": "y" * 1_000_000}}),
        "must be true or false",
    ),
    Attack(
        "binary_data_output is an object",
        v2(more={"parameters": {"binary_data_output": {"a": [1] * 1000}}}),
        "must be true or false",
    ),
    Attack(
        "the timeout is negative",
        v2(more={"parameters": {"timeout": -1}}),
        ("parameters.timeout: got", "0 (none) to 2^63 - 1"),
    ),
    Attack(
        "the timeout is a fraction",
        v2(more={"parameters": {"timeout": 1.5}}),
        "parameters.timeout: got 1.5, must be whole microseconds",
    ),
    Attack("the timeout is a word", v2(more={"parameters": {"timeout": "soon"}}), "parameters.timeout: got 'soon'"),
    Attack("the timeout is 2^63", v2(more={"parameters": {"timeout": 2**63}}), "parameters.timeout: got"),
    Attack("the timeout is beyond 64 bits", v2(more={"parameters": {"timeout": 10**30}}), "parameters.timeout: got"),
    Attack("the timeout is a flag", v2(more={"parameters": {"timeout": True}}), "parameters.timeout: got True"),
    Attack(
        "the timeout is a list",
        v2(more={"parameters": {"timeout": [1] * 1000}}),
        "parameters.timeout: got a value of type list",
    ),
    Attack(
        "the timeout has a megabyte of digits",
        v2(more={"parameters": {"timeout": "9" * 1_000_000}}),
        "parameters.timeout: got '999",
    ),
    Attack("a microsecond is no time", v2(more={"parameters": {"timeout": 1}}), "no answer within", 504),
    Attack(
        "an input is in shared memory",
        v2(parameters={"shared_memory_region": "a", "shared_memory_byte_size": 40}),
        "input 'x': shared_memory_region is for shared memory, which this server does not read; send the data",
    ),
    Attack(
        "an output goes to shared memory",
        v2(more={"outputs": [{"name": "y", "parameters": {"shared_memory_region": "a"}}]}),
        "output 'y': shared_memory_region",
    ),
    Attack(
        "a classification is asked for",
        v2(more={"outputs": [{"name": "y", "parameters": {"classification": 3}}]}),
        "output 'y': classification is not offered",
    ),
    Attack(
        "binary_data is a number",
        v2(more={"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]}),
        "output 'y': binary_data 1, must be true or false",
    ),
    Attack(
        "an output is unknown",
        v2(more={"outputs": [{"name": "z"}]}),
        "outputs: 'z' is not an output of this model, which has ['y']",
    ),
    Attack(
        "an output's name has a megabyte",
        v2(more={"outputs": [{"name": "z" * 1_000_000}]}),
        "is not an output of this model",
    ),
    Attack("an output has no name", v2(more={"outputs": [{}]}), "missing required field `name` - at `$.outputs[0]`"),
    Attack("outputs are names alone", v2(more={"outputs": ["y"]}), "Expected `object`, got `str` - at `$.outputs[0]`"),
    Attack(
        "outputs are an object",
        v2(more={"outputs": {"y": {}}}),
        "Expected `array | null`, got `object` - at `$.outputs`",
    ),
    Attack(
        "an output is asked for 100,000 times",
        v2(more={"outputs": [{"name": "y"}] * 100_000}),
        "outputs: 100000 are asked for, this model has 1: ['y']",
    ),
)

ATTACKS = DOCUMENTS + FIELDS + SHAPES + DATA + PARAMETERS
