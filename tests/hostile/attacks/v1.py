"""KServe V1's rows and columns."""

from __future__ import annotations

from hostile.attack import ROW, V1, Attack, dump, on, ten

ONE_OF = "give exactly one of instances (a list of rows) and inputs (a tensor, or an object of tensors by name)"


def rows(text: str) -> bytes:
    """`instances` as this text, which may be no JSON."""
    return f'{{"instances": {text}}}'.encode()


ATTACKS = on(
    V1,
    (
        Attack("there is no body", b"", "body: is empty, must be a JSON document"),
        Attack("the document is cut off", b'{"instances": [[', "body: Input data was truncated"),
        Attack("the document is a bare list of rows", dump([ROW]), "Expected `object`, got `array`"),
        Attack("there are neither rows nor columns", b"{}", ONE_OF),
        Attack("there are rows and columns", dump({"instances": [ROW], "inputs": [ROW]}), ONE_OF),
        Attack("a field is unknown", dump({"instance": [ROW]}), "unknown field `instance`"),
        Attack("a field of V2 is given", dump({"instances": [ROW], "outputs": []}), "unknown field `outputs`"),
        Attack("instances are null", b'{"instances": null}', "instances: must be a list of rows"),
        Attack("instances are a number", b'{"instances": 3}', "instances: must be a list of rows"),
        Attack("instances are a text", b'{"instances": "abc"}', "instances: must be a list of rows"),
        Attack("instances are an object", dump({"instances": {"x": [ROW]}}), "instances: must be a list of rows"),
        Attack("instances are empty", b'{"instances": []}', "instances: must hold at least one row"),
        Attack("instances are empty but for blanks", b'{"instances": [ \n ]}', "instances: must hold at least one row"),
        Attack("a row is empty", b'{"instances": [[]]}', "instances: shape [1, 0], must be [-1, 10]"),
        Attack("a row is too short", dump({"instances": [ROW[:9]]}), "instances: shape [1, 9], must be [-1, 10]"),
        Attack("a row is too long", dump({"instances": [[*ROW, 1]]}), "instances: shape [1, 11], must be [-1, 10]"),
        Attack("a row is no list", dump({"instances": ROW}), ("instances: shape [10], must be [-1, 10]", "one row")),
        Attack(
            "rows are nested too deep", dump({"instances": [[ROW]]}), "instances: shape [1, 1, 10], must be [-1, 10]"
        ),
        Attack("rows are nested ten deep", rows("[" * 10 + "]" * 10), "at most 9 levels"),
        Attack("rows are nested 100,000 deep", rows("[" * 100_000 + "]" * 100_000), "nested too deep"),
        Attack("rows are ragged", dump({"instances": [ROW, ROW[:3]]}), "instances: data is ragged"),
        Attack("a row is null", dump({"instances": [ROW, None]}), "Expected `array`, got `null`"),
        Attack("a row is a text", dump({"instances": [ROW, "row"]}), "Expected `array`, got `str`"),
        Attack("a text is among the numbers", rows("[" + ten('"1"') + "]"), "Expected `float`, got `str`"),
        Attack("NaN is among the numbers", rows("[" + ten("NaN") + "]"), "JSON has no NaN and no Infinity"),
        Attack("a number is over FP32", rows("[" + ten("1e39") + "]"), "a value is out of the range of FP32"),
        Attack(
            "a row by name has another name",
            dump({"instances": [{"z": ROW}]}),
            "instances[0]: missing ['x'], unknown ['z']; this model has ['x']",
        ),
        Attack(
            "a row by name has a name too many",
            dump({"instances": [{"x": ROW, "z": ROW}]}),
            "instances[0]: missing [], unknown ['z']",
        ),
        Attack("a row by name has no names", b'{"instances": [{}]}', "instances[0]: missing ['x']"),
        Attack("50,000 rows by name have no names", rows("[" + "{}," * 50_000 + "{}]"), "instances[0]: missing ['x']"),
        Attack(
            "a row by name has 50,000 names",
            rows("[{" + ",".join(f'"{n}":0' for n in range(50_000)) + "}]"),
            "instances[0]: missing ['x'], unknown ['0', '1'",
        ),
        Attack(
            "a row by name has a name of a megabyte",
            dump({"instances": [{"z" * 1_000_000: ROW}]}),
            "instances[0]: missing ['x'], unknown ['zzz",
        ),
        Attack(
            "only some rows are by name",
            dump({"instances": [{"x": ROW}, ROW]}),
            "instances[1]: Expected `object`, got `array`",
        ),
        Attack(
            "rows by name differ in length",
            dump({"instances": [{"x": ROW}, {"x": ROW[:3]}]}),
            "instances, input 'x': data is ragged",
        ),
        Attack(
            "rows by name are whole tensors",
            dump({"instances": [{"x": [ROW]}]}),
            "instances, input 'x': shape [1, 1, 10], must be [-1, 10]",
        ),
        Attack(
            "rows are in base64", dump({"instances": [{"b64": "AAAA"}]}), "instances[0]: missing ['x'], unknown ['b64']"
        ),
        Attack("columns are null", b'{"inputs": null}', "inputs: data must be a JSON array"),
        Attack("columns are empty", b'{"inputs": []}', "inputs: shape [0], must be [-1, 10]"),
        Attack("columns hold no rows", b'{"inputs": {"x": []}}', "input 'x': shape [0], must be [-1, 10]"),
        Attack(
            "columns have another name",
            dump({"inputs": {"z": [ROW]}}),
            "inputs: missing ['x'], unknown ['z']; this model has ['x']",
        ),
        Attack(
            "a column is one row", dump({"inputs": {"x": ROW}}), ("input 'x': shape [10], must be [-1, 10]", "one row")
        ),
        Attack("a column is an object", dump({"inputs": {"x": {"0": ROW}}}), "input 'x': data must be a JSON array"),
        Attack(
            "the signature's name is a number",
            dump({"instances": [ROW], "signature_name": 1}),
            "Expected `str | null`, got `int` - at `$.signature_name`",
        ),
        Attack(
            "the timeout is a word",
            dump({"instances": [ROW], "parameters": {"timeout": "soon"}}),
            "parameters.timeout: got 'soon', must be whole microseconds",
        ),
        Attack(
            "there are more rows than the queue takes",
            dump({"instances": [ROW] * 1025}),
            "1025 rows, the queue takes at most 1024 (serving.queue.maxRows)",
            413,
        ),
        Attack(
            "there are more values than are parsed",
            rows("[" + "0," * 2_100_000 + "0]"),
            "serving.limits.maxJsonElements",
            413,
        ),
        Attack(
            "the body is a picture",
            b"\x89PNG\r\n\x1a\n" + bytes(100),
            "body: looks like a PNG image; this model takes tensors ['x']",
        ),
        Attack("the body is a form's", b"instances=%5B%5D", "body:", content_type="application/x-www-form-urlencoded"),
        Attack(
            "the body is an npy file", b"\x93NUMPY", "must be application/json", 415, content_type="application/x-npy"
        ),
        Attack(
            "the body is multipart",
            b"--a--",
            "must be application/json",
            415,
            content_type="multipart/form-data; boundary=a",
        ),
    ),
)
