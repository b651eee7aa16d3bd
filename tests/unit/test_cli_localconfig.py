"""`torchmodel run` before anything runs: the documents for this machine, the recipe, the line about what has no effect."""

from pathlib import Path

import pytest
from torchmodel_cli.documents import LocatedDocument, parse_documents
from torchmodel_cli.localconfig import (
    LocalError,
    LocalOptions,
    absolute_uri,
    fields_without_effect,
    find_code,
    local_module,
    make_local_fetch_config,
    make_local_server_config,
    parse_local_model,
    select_model,
)
from torchmodel_cli.recipes import make_recipe

DIGEST = "0" * 64

LINEAR = """\
apiVersion: serving.torchmodel.dev/v1alpha1
kind: TorchModel
metadata: {name: linear}
spec:
  checkpoint: {uri: "file:model.pth"}
  architecture: {entrypoint: "torch.nn:Linear", kwargs: {in_features: 3, out_features: 1}}
  signature:
    inputs: [{name: x, datatype: FP32, shape: [-1, 3]}]
    outputs: [{name: z, datatype: FP32, shape: [-1, 1]}]
"""

WITH_CODE = LINEAR.replace("  signature", "  security: {allowCodeExecution: true}\n  signature").replace(
    "out_features: 1}}", "out_features: 1}, source: {configMap: {name: code, key: net.py}}}"
)

CODE = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: code}\ndata: {net.py: 'x = 1'}\n"


def options(**changes: object) -> LocalOptions:
    values: dict[str, object] = {"folder": Path("/m"), "state": Path("/s"), "cache": Path("/c")}
    return LocalOptions(**(values | changes))  # type: ignore[arg-type]


def only(text: str) -> LocatedDocument:
    (document,) = parse_documents(text)
    return document


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("file:model.pth", "file:///m/model.pth"),
        ("file:model/", "file:///m/model/"),
        ("file:../a b.pth", "file:///a%20b.pth"),
        ("file:///models/a.pth", "file:///models/a.pth"),
        ("s3://models/a.pth", "s3://models/a.pth"),
        ("/models/a.pth", "file:///models/a.pth"),
    ],
)
def test_a_relative_file_starts_at_the_manifest(uri: str, expected: str) -> None:
    assert absolute_uri(uri, options()) == expected


def test_the_documents_are_those_of_a_cluster_but_for_places() -> None:
    model = parse_local_model(only(LINEAR))
    fetch = make_local_fetch_config(model, options(port=9000, grpc_port=9001))
    server = make_local_server_config(model, options(port=9000, grpc_port=9001), None)
    assert fetch.uri == "file:///m/model.pth"
    assert fetch.cache is None, "what is on this disk is verified in place"
    assert fetch.destination == server.checkpoint_folder == "/s/checkpoint"
    assert (server.name, server.host, server.port, server.grpc_port) == ("linear", "127.0.0.1", 9000, 9001)
    assert server.signature == model.spec.signature
    assert server.drain_delay_seconds == 0


def test_a_download_goes_to_the_cache_and_keeps_its_digest() -> None:
    text = LINEAR.replace('"file:model.pth"', f"s3://b/k, sha256: '{DIGEST}'")
    fetch = make_local_fetch_config(parse_local_model(only(text)), options(credentials=Path("/k")))
    assert (fetch.uri, fetch.cache, fetch.sha256, fetch.credentials) == ("s3://b/k", "/c", DIGEST, "/k")


def test_another_checkpoint_keeps_the_digest_of_the_manifest() -> None:
    text = LINEAR.replace('"file:model.pth"', f"s3://b/k, sha256: '{DIGEST}'")
    fetch = make_local_fetch_config(parse_local_model(only(text)), options(checkpoint="/tmp/mine.pth"))
    assert (fetch.uri, fetch.sha256) == ("file:///tmp/mine.pth", DIGEST)


def test_code_comes_from_the_config_map_in_the_file() -> None:
    documents = parse_documents(WITH_CODE + CODE)
    spec = parse_local_model(documents[0]).spec
    code = find_code(spec, documents)
    assert code is not None
    assert code.inline == "x = 1"


def test_a_config_map_that_is_not_in_the_file_is_asked_for() -> None:
    documents = parse_documents(WITH_CODE)
    with pytest.raises(LocalError, match="names code, which is not in this file"):
        find_code(parse_local_model(documents[0]).spec, documents)


def test_a_key_that_is_not_in_the_config_map_is_named() -> None:
    documents = parse_documents(WITH_CODE + CODE.replace("net.py", "other.py"))
    with pytest.raises(LocalError, match=r"has no key 'net.py'"):
        find_code(parse_local_model(documents[0]).spec, documents)


def test_of_several_models_one_must_be_named() -> None:
    models = [only(LINEAR), only(LINEAR.replace("name: linear", "name: other"))]
    assert select_model(models, "other").name == "other"
    with pytest.raises(LocalError, match="several models: linear, other"):
        select_model(models, None)
    with pytest.raises(LocalError, match="no TorchModel named 'third'"):
        select_model(models, "third")


def test_fields_that_only_a_cluster_reads_are_listed() -> None:
    text = LINEAR + "  replicas: 3\n  resources: {limits: {cpu: 1}, gpu: {count: 1}}\n  image: {name: a}\n"
    assert fields_without_effect(only(text)) == ["replicas", "image.name", "resources.limits", "resources.gpu"]
    assert fields_without_effect(only(LINEAR)) == []


def test_a_class_beside_the_manifest_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("")
    assert local_module("net:Net", tmp_path) == "net.py"
    assert local_module("torch.nn:Linear", tmp_path) is None


def test_the_recipe_holds_one_row_of_the_signature() -> None:
    server = make_local_server_config(parse_local_model(only(LINEAR)), options(), None)
    curl, predict = make_recipe(server, "http://h:1")
    body = '{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 1.0, 1.0]}]}'
    assert curl == f"curl -s http://h:1/v2/models/linear/infer -H 'Content-Type: application/json' -d '{body}'"
    assert predict == f"torchmodel predict linear '{body}'"


def test_a_row_that_is_too_long_to_paste_comes_from_a_file() -> None:
    text = LINEAR.replace("in_features: 3", "in_features: 150528").replace("shape: [-1, 3]", "shape: [-1, 150528]")
    server = make_local_server_config(parse_local_model(only(text)), options(), None)
    recipe = make_recipe(server, "http://h:1")
    assert max(len(line) for line in recipe) < 200
    assert recipe[-1] == "torchmodel predict linear request.json"


@pytest.mark.parametrize(
    ("task", "sample", "expected"),
    [
        ("image-classification", None, "-H 'Content-Type: image/jpeg' --data-binary @photo.jpg"),
        ("image-classification", "a b.png", "-H 'Content-Type: image/png' --data-binary @'a b.png'"),
        ("text-embedding", None, "-H 'Content-Type: text/plain' -d 'A sentence.'"),
    ],
)
def test_the_recipe_of_a_medium(task: str, sample: str | None, expected: str) -> None:
    text = LINEAR[: LINEAR.index("  signature")] + f"  task: {{type: {task}}}\n"
    server = make_local_server_config(parse_local_model(only(text)), options(), None)
    curl, _ = make_recipe(server, "http://h:1", sample)
    assert curl == f"curl -s http://h:1/predictions/linear {expected}"


def test_dates_stay_text_as_kubernetes_reads_them() -> None:
    assert (
        only("kind: A\nmetadata: {annotations: {day: 2026-01-01}}").data["metadata"]["annotations"]["day"]
        == "2026-01-01"
    )
