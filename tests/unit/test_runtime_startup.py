"""The start in this process: every checkpoint, architecture and signature that cannot work says why and what next."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from testkit.models import (
    linear_config,
    make_linear,
    mlp_config,
    save_linear,
    save_mlp,
    vector_signature,
    write_receipt,
)
from torchmodel_runtime.config import (
    Architecture,
    Batching,
    CodeFile,
    ImageClassification,
    Security,
    ServerConfig,
    Serving,
    Signature,
    Task,
    TensorSpec,
)
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.startup import LoadedModel, Room, start_model


def start(config: ServerConfig) -> LoadedModel:
    """In a thread of its own, as the server does: torch's denormal setting stays there."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(start_model, config, Room(1), [].append).result()


def linear(folder: Path, saved: Any = None, name: str = "w.pth", **changes: Any) -> ServerConfig:
    """A Linear(10, 1) whose checkpoint is `saved` by torch.save, bytes as they are, or a dict by name for safetensors."""
    if isinstance(saved, bytes):
        (folder / name).write_bytes(saved)
    elif name.endswith(".safetensors"):
        save_file(saved, folder / name)
    elif saved is not None:
        torch.save(saved, folder / name)
    write_receipt(folder, name)
    return linear_config(folder, **changes)


def state() -> dict[str, torch.Tensor]:
    return dict(make_linear().state_dict())


def zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved_bytes(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def deflated() -> bytes:
    with zipfile.ZipFile(io.BytesIO(saved_bytes(state()))) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def scripted() -> bytes:
    return zipped({"m/constants.pkl": b"x", "m/data.pkl": b"x", "m/code/a.py": b"x"})


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("evil",))


INVALID: dict[str, tuple[Callable[[], Any], str, str]] = {
    "empty file": (lambda: b"", "is empty", "Upload"),
    "random bytes": (lambda: b"\x01\x02\x03" * 30, "neither safetensors nor a file of torch.save", "save_file"),
    "an error page": (lambda: b"<html>404</html>" * 3, "error page", "checkpoint.uri"),
    "a Git LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer", "git lfs pull"),
    "a tar.gz": (lambda: b"\x1f\x8b" + b"0" * 50, "is an archive", "inside"),
    "an evil file of before 1.6": (
        lambda: saved_bytes({"w": Evil()}, _use_new_zipfile_serialization=False),
        "pickle",
        "torch.save(model.state_dict()",
    ),
    "a cut file of before 1.6": (
        lambda: saved_bytes(state(), _use_new_zipfile_serialization=False)[:-8],
        "cannot be read",
        "upload it again",
    ),
    "a plain pickle": (lambda: pickle.dumps({"a": 1}), "is a pickle", "torch.save(model.state_dict()"),
    "a cut zip": (lambda: saved_bytes(state())[:-30], "cannot be read", "upload it again"),
    "a deflated zip": (deflated, "is compressed", "torch.save"),
    "a zip that climbs": (lambda: zipped({"../data.pkl": b"x"}), "points outside", "torch.save"),
    "a TorchScript program": (scripted, "TorchScript program", "state_dict()"),
    "an exported program": (lambda: zipped({"m/models/model.json": b"{}"}), "exported program", "state_dict"),
    "some other zip": (lambda: zipped({"a/b.txt": b"x"}), "zip without data.pkl", "Upload"),
    "a whole module": (lambda: saved_bytes(make_linear()), "torch.nn.modules.linear.Linear", "model.state_dict()"),
    "an evil pickle": (lambda: saved_bytes({"w": Evil()}), "builtins.print", "trusted"),
    "a nested state_dict": (
        lambda: saved_bytes({"epoch": 1, "model": {"net": state()}}),
        "epoch, model are none",
        "Add spec.checkpoint.key: model.net:",
    ),
    "several nested": (
        lambda: saved_bytes({"ema": state(), "model": state()}),
        "nests more than tensors",
        "one of ema, model",
    ),
    "a list": (lambda: saved_bytes([torch.zeros(1)]), "is list", "model.state_dict()"),
    "a tensor of stride 0": (
        lambda: saved_bytes({"weight": torch.zeros(1).expand(1 << 20, 1 << 20), "bias": torch.zeros(1)}),
        "more than the whole file",
        "contiguous",
    ),
    "a sparse tensor": (lambda: saved_bytes({"weight": torch.eye(2).to_sparse()}), "only dense", "dense"),
    "a cut safetensors": (lambda: (10**6).to_bytes(8, "little") + b'{"a": 1}', "claims 1000000 bytes", "cut short"),
    "a damaged safetensors": (lambda: (8).to_bytes(8, "little") + b'{"a": 1}', "cannot be read", "upload it again"),
}


@pytest.mark.parametrize(("make", "words", "advice"), INVALID.values(), ids=INVALID)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_file_that_is_no_state_dict_says_what_it_is(
    tmp_path: Path, make: Callable[[], bytes], words: str, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, make()))
    failure = caught.value.failure
    assert failure.reason == "CheckpointInvalid"
    assert words in failure.message
    assert advice in failure.next_step
    assert "evil" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("make", "words", "advice"),
    [
        (lambda: {"weight": state()["weight"]}, "1 missing in the checkpoint: bias", "another class"),
        (lambda: {**state(), "extra": torch.zeros(1)}, "1 unexpected in the checkpoint: extra", "another class"),
        (lambda: {**state(), "weight": torch.zeros(1, 12)}, "weight: expected [1, 10], found [1, 12]", "kwargs"),
        (
            lambda: {**state(), "weight": torch.zeros(1, 10, dtype=torch.int64)},
            "weight: expected float32, found int64",
            "",
        ),
        (lambda: {f"module.{key}": value for key, value in state().items()}, "module.bias", "DistributedDataParallel"),
        (lambda: {f"net.{key}": value for key, value in state().items()}, "net.bias", "begin with 'net.'"),
        (lambda: {**{f"l{i}": torch.zeros(1) for i in range(30)}, **state()}, "30 unexpected", ""),
    ],
    ids=["missing", "unexpected", "shape", "dtype", "DDP prefix", "other prefix", "many are shortened"],
)
def test_a_state_dict_that_does_not_fit_is_compared_name_by_name(
    tmp_path: Path, make: Callable[[], Any], words: str, advice: str
) -> None:
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, make()))
    failure = caught.value.failure
    assert failure.reason == "StateDictMismatch"
    assert words in failure.message
    assert advice in failure.next_step
    assert len(failure.message) < 1000


def answer(model: LoadedModel, *rows: list[float]) -> np.ndarray:
    (outputs,) = model.runners[0].run([[np.array(rows, np.float32)]])
    assert isinstance(outputs, list)
    return outputs[0]


ROW = [float(value) for value in range(10)]


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors", "no-extension"])
def test_formats_are_told_by_content(tmp_path: Path, name: str) -> None:
    model = start(linear(tmp_path, state(), name))
    with torch.inference_mode():
        np.testing.assert_allclose(answer(model, ROW), make_linear()(torch.tensor([ROW])), rtol=1e-6)
    assert model.report.format == ("safetensors" if "safetensors" in name else "state-dict")
    assert model.report.load_safety == "weights-only"


def test_a_file_from_before_torch_1_6_is_loaded(tmp_path: Path) -> None:
    model = start(linear(tmp_path, saved_bytes(state(), _use_new_zipfile_serialization=False)))
    with torch.inference_mode():
        np.testing.assert_allclose(answer(model, ROW), make_linear()(torch.tensor([ROW])), rtol=1e-6)
    assert model.report.load_safety == "weights-only"


def test_a_nested_state_dict_is_found_by_its_key(tmp_path: Path) -> None:
    nested = {"epoch": 3, "model": {"net": state()}}
    assert answer(start(linear(tmp_path, nested, checkpoint_key="model.net")), ROW).shape == (1, 1)
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, nested, checkpoint_key="model.nett"))
    assert "model has no 'nett'; it has net" in caught.value.failure.message
    with pytest.raises(StartError, match="safetensors file nests nothing"):
        start(linear(tmp_path, state(), "w.safetensors", checkpoint_key="model"))


def test_the_declared_format_must_be_the_real_one(tmp_path: Path) -> None:
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, state(), checkpoint_format="safetensors"))
    assert "spec.checkpoint.format: state-dict" in caught.value.failure.next_step


def save_shards(folder: Path, **index: str) -> ServerConfig:
    (folder / "model").mkdir()
    save_file({"weight": state()["weight"]}, folder / "model" / "1.safetensors")
    save_file({"bias": state()["bias"]}, folder / "model" / "2.safetensors")
    shards = {"weight": "1.safetensors", "bias": "2.safetensors", **index}
    (folder / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    write_receipt(folder, "model")
    return linear_config(folder)


def test_shards_are_put_together(tmp_path: Path) -> None:
    assert answer(start(save_shards(tmp_path)), ROW).shape == (1, 1)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"bias": "../2.safetensors"}, "bare name"),
        ({"bias": "3.safetensors"}, "not in the folder"),
        ({"bias": "1.safetensors"}, "index names tensors that no shard holds: bias"),
        ({"other": "1.safetensors"}, "no shard holds: other"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, index: dict[str, str], words: str) -> None:
    with pytest.raises(StartError, match=words):
        start(save_shards(tmp_path, **index))


def test_a_folder_without_one_clear_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "readme.txt").write_text("hello")
    write_receipt(tmp_path, "model")
    with pytest.raises(StartError, match=r"no checkpoint: \['readme.txt'\]"):
        start(linear_config(tmp_path))
    for name in ("a.pth", "b.pth"):
        torch.save(state(), folder / name)
    with pytest.raises(StartError, match=r"several checkpoints: \['a.pth', 'b.pth'\]"):
        start(linear_config(tmp_path))


def architecture(entrypoint: str, **kwargs: Any) -> Architecture:
    return Architecture(entrypoint=entrypoint, kwargs=kwargs)


@pytest.mark.parametrize(
    ("wanted", "reason", "words", "advice"),
    [
        (architecture("no_such_package:Net"), "ArchitectureInvalid", "no module 'no_such_package'", "source"),
        (
            architecture("torchvison.models:resnet18"),
            "ArchitectureInvalid",
            "'torchvison' is installed",
            "Install it where",
        ),
        (architecture("colorsys.py:Net"), "ArchitectureInvalid", "no module 'colorsys.py'", "`import colorsys`"),
        (architecture("torch.nn:Linnear"), "ArchitectureInvalid", "has no 'Linnear'", "Linear"),
        (architecture("torch:nn.Linear"), "ArchitectureInvalid", "leads through the module torch.nn", "torch.nn:"),
        (architecture("torch:float32"), "ArchitectureInvalid", "not callable", "class"),
        (
            architecture("torch.nn:Linear", in_feature=1, out_features=1),
            "ArchitectureInvalid",
            "in_feature",
            "in_features",
        ),
        (architecture("torch.nn:Linear", in_features=1), "ArchitectureInvalid", "out_features", "signature"),
        (
            architecture("torch.nn:Linear", in_features="a", out_features=1),
            "ArchitectureInvalid",
            "TypeError",
            "kwargs",
        ),
        (architecture("os:system", command="true"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("builtins:exec"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("subprocess:Popen", args="true"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("torch:load", f="x"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("torch.jit:load", f="x"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("torch.hub:load", repo_or_dir="x", model="y"), "CodeExecutionNotAllowed", "neither", "class"),
        (architecture("transformers:BertModel.from_pretrained"), "CodeExecutionNotAllowed", "fetch or run", "class"),
    ],
)
def test_an_entrypoint_that_cannot_work_is_refused_before_it_is_called(
    tmp_path: Path, wanted: Architecture, reason: str, words: str, advice: str
) -> None:
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, state(), architecture=wanted))
    failure = caught.value.failure
    assert failure.reason == reason
    assert words in failure.message
    assert advice in failure.next_step


def test_a_package_that_the_class_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_net.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, state(), architecture=architecture("needy_net:Net")))
    assert (
        caught.value.failure.message == "importing needy_net failed: it needs 'no_such_package', which is not installed"
    )
    assert caught.value.failure.next_step.startswith("Install 'no_such_package' where the server runs")


def test_code_runs_only_when_it_is_allowed(tmp_path: Path) -> None:
    save_mlp(tmp_path)
    model = start(mlp_config(tmp_path))
    assert model.report.load_safety == "code"
    source = tmp_path / "source.py"
    source.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(StartError) as caught:
        start(mlp_config(tmp_path, code=CodeFile(path=str(source)), security=Security()))
    assert caught.value.failure.reason == "CodeExecutionNotAllowed"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("class Mlp(:", "line 1: SyntaxError"),
        ("import torch\n\n1 / 0", "line 3: ZeroDivisionError"),
        ("import no_such_thing", "line 1: ModuleNotFoundError"),
        ("def Mlp():\n    return 3", "gave int, must give a torch.nn.Module"),
        ("x = 1", "has no 'Mlp'"),
    ],
)
def test_an_error_in_the_source_names_its_line(tmp_path: Path, source: str, words: str) -> None:
    save_mlp(tmp_path)
    with pytest.raises(StartError) as caught:
        start(mlp_config(tmp_path, code=CodeFile(inline=source)))
    assert caught.value.failure.reason == "ArchitectureInvalid"
    assert words in caught.value.failure.message


ODD_MODULES = """
import torch

class Buffers(torch.nn.Linear):
    '''A non-persistent buffer that no checkpoint holds, and a tied parameter.'''
    def __init__(self):
        super().__init__(10, 1)
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)
        self.twin = self.weight
    def forward(self, x):
        return super().forward(x) * self.scale

class Mixing(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x - x.mean(0))

class Random(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x) + torch.rand(1)

class Single(torch.nn.Linear):
    def forward(self, x):
        assert len(x) == 1
        return super().forward(x)

class Pooled(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).mean(0, keepdim=True)

class Named(torch.nn.Linear):
    def forward(self, x):
        return {"z": x, "y": super().forward(x)}

class Pair(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x), x

class Wide(torch.nn.Linear):
    def forward(self, x):
        return super().forward(x).double()

class Text(torch.nn.Linear):
    def forward(self, x):
        return "no tensor"

class Broken(torch.nn.Linear):
    def forward(self, x):
        raise KeyError("missing thing")
"""


def odd(folder: Path, name: str, saved: Any = None, **changes: Any) -> ServerConfig:
    own = name == "Buffers"
    settings = {
        "architecture": Architecture(
            entrypoint=f"odd:{name}", kwargs={} if own else {"in_features": 10, "out_features": 1}
        ),
        "code": CodeFile(inline=ODD_MODULES),
        "security": Security(allow_code_execution=True),
        **changes,
    }
    return linear(folder, saved or state(), **settings)


def test_what_no_checkpoint_holds_is_built_and_tied_weights_are_filled(tmp_path: Path) -> None:
    model = start(odd(tmp_path, "Buffers"))
    with torch.inference_mode():
        np.testing.assert_allclose(answer(model, ROW), 2 * make_linear()(torch.tensor([ROW])), rtol=1e-6)


def test_a_checkpoint_may_hold_a_buffer_that_is_not_persistent(tmp_path: Path) -> None:
    model = start(odd(tmp_path, "Buffers", {**state(), "scale": torch.full((1,), 3.0)}))
    with torch.inference_mode():
        np.testing.assert_allclose(answer(model, ROW), 3 * make_linear()(torch.tensor([ROW])), rtol=1e-6)


def test_the_dtype_follows_the_file(tmp_path: Path) -> None:
    half = {name: tensor.to(torch.bfloat16) for name, tensor in state().items()}
    assert answer(start(linear(tmp_path, half)), ROW).dtype == np.float32
    double = {name: tensor.double() for name, tensor in state().items()}
    with pytest.raises(StartError, match="declared FP32, the module returned float64"):
        start(linear(tmp_path, double))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Mixing", "rows influence each other: output 'y' of a row, alone and among 2"),
        ("Random", "not deterministic"),
        ("Single", "takes one row at a time"),
        ("Pooled", "takes one row at a time: 2 rows gave OutputError: output 'y': 2 rows went in, 1 came out"),
    ],
)
def test_a_model_whose_rows_are_not_independent_is_served_row_by_row(tmp_path: Path, name: str, words: str) -> None:
    model = start(odd(tmp_path, name))
    assert not model.report.batching.enabled
    assert model.report.batching.max_size == model.rules.max_rows == 1
    assert words in model.report.batching.reason
    assert answer(model, ROW, ROW).shape == (2, 1)


def test_batching_may_be_switched_off(tmp_path: Path) -> None:
    report = start(linear(tmp_path, state(), serving=Serving(batching=Batching(max_size=1)))).report.batching
    assert (report.enabled, report.max_size) == (False, 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Pair", "returned 2 outputs, 1 are declared"),
        ("Wide", "declared FP32, the module returned float64"),
        ("Text", "returned str"),
        ("Broken", "KeyError: 'missing thing'"),
    ],
)
def test_outputs_that_are_not_the_declared_ones_fail_the_warm_up(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(StartError) as caught:
        start(odd(tmp_path, name))
    assert caught.value.failure.reason == "WarmUpFailed"
    assert words in caught.value.failure.message


def test_outputs_of_a_mapping_are_taken_by_name(tmp_path: Path) -> None:
    assert answer(start(odd(tmp_path, "Named")), ROW).shape == (1, 1)


def spec(datatype: str, shape: list[int]) -> TensorSpec:
    return TensorSpec(name="x", datatype=datatype, shape=shape)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"signature": None}, "signature: missing"),
        ({"signature": Signature(inputs=[spec("BYTES", [-1])], outputs=[spec("FP32", [-1])])}, "BYTES"),
        ({"signature": Signature(inputs=[spec("FP32", [10])], outputs=[spec("FP32", [-1])])}, "must be -1"),
        ({"task": Task(type="speech"), "signature": vector_signature()}, "signature of its own"),
        (
            {
                "task": Task(
                    type="image-classification",
                    image_classification=ImageClassification(labels=["a"], label_set="imagenet-1k"),
                ),
                "signature": None,
            },
            "both labels",
        ),
        ({"task": Task(type="text-embedding"), "signature": None}, "tokenizer.json"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(StartError, match=words):
        start(linear(tmp_path, state(), **changes))


def test_a_gpu_that_is_not_there_is_missed(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(StartError) as caught:
        start(linear(tmp_path, state(), serving=Serving(device="cuda")))
    assert caught.value.failure.reason == "DeviceUnavailable"


def test_one_poisoned_request_of_a_batch_fails_alone(tmp_path: Path) -> None:
    save_mlp(tmp_path)
    runner = start(mlp_config(tmp_path)).runners[0]
    rows = [np.full((1, 10), 666.0 if index == 5 else 1.0, np.float32) for index in range(16)]
    answers = runner.run([[row] for row in rows])
    assert [isinstance(each, Exception) for each in answers] == [index == 5 for index in range(16)]


def test_the_receipt_is_believed_and_reported(tmp_path: Path) -> None:
    save_linear(tmp_path)
    write_receipt(tmp_path, "linear.safetensors", sha256="ab" * 32, uri="s3://bucket/linear", fetch_seconds=1.5)
    report = start(linear_config(tmp_path)).report
    assert (report.sha256, report.uri, report.cold_start.fetch_seconds) == ("ab" * 32, "s3://bucket/linear", 1.5)
