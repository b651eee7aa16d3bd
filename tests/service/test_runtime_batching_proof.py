"""A real process serves modules that pad, mix rows, fail or run out of memory: each client gets the answer it would get alone."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import save_file
from testkit.models import write_receipt
from testkit.runtime_process import RuntimeProcess
from tokenizers import Tokenizer, models, pre_tokenizers
from torchmodel_runtime.config import (
    Architecture,
    Batching,
    CodeFile,
    Padding,
    Security,
    ServerConfig,
    Serving,
    Signature,
    Task,
    TensorSpec,
    TextEmbedding,
)

CODE = '''
import time

import torch


class Sequences(torch.nn.Module):
    """Positions plus the mean over their row; slow enough for requests to meet in the queue."""

    heeds_mask = True
    mixes_rows = False

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x, mask=None):
        time.sleep(0.02)
        x = self.layer(x)
        real = x.new_ones(x.shape[:2]) if mask is None or not self.heeds_mask else mask.to(x.dtype)
        mean = (x * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)
        return x + (mean.mean(0, keepdim=True) if self.mixes_rows else mean)[:, None]


class IgnoresMask(Sequences):
    heeds_mask = False


class MixesRows(Sequences):
    mixes_rows = True


class Hungry(Sequences):
    """777 at the front of a row: memory for two of them; 778: for none; 666: an error."""

    def forward(self, x, mask=None):
        first = x[:, 0, 0]
        if (first == 778).any() or (first == 777).sum() > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if (first == 666).any():
            raise ValueError("secret detail")
        return super().forward(x, mask)
'''


def sequence_config(folder: Path, entrypoint: str) -> ServerConfig:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 4)
    torch.save({f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}, folder / "w.pth")
    write_receipt(folder, "w.pth")
    shape = [-1, -1, 4]
    return ServerConfig(
        name="m",
        checkpoint_folder=str(folder),
        architecture=Architecture(entrypoint=f"nets:{entrypoint}"),
        code=CodeFile(inline=CODE),
        security=Security(allow_code_execution=True),
        signature=Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=shape)],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=shape)],
        ),
        serving=Serving(
            batching=Batching(max_size=16, padding=Padding(mask="mask", value=3.0)), processes=1, workers=1, threads=1
        ),
    )


def ask(server: RuntimeProcess, length: int, first: float = 0.0) -> tuple[int, Any]:
    """One row of that length; its first number may be chosen."""
    values = [first] + [((7 * index) % 13 - 6) / 6 for index in range(1, length * 4)]
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, length, 4], "data": values}
    return server.post("/v2/models/m/infer", {"inputs": [tensor]})


def ask_together(server: RuntimeProcess, *requests: tuple[int, float]) -> list[tuple[int, Any]]:
    with ThreadPoolExecutor(len(requests)) as pool:
        return list(pool.map(lambda request: ask(server, *request), requests))


def numbers(answer: tuple[int, Any]) -> list[float]:
    status, body = answer
    assert status == 200, body
    values: list[float] = body["outputs"][0]["data"]
    return values


def metric(server: RuntimeProcess, name: str) -> float:
    """The sum over its series."""
    text = server.get("/metrics")[1].decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE))


def batching_report(server: RuntimeProcess) -> dict[str, Any]:
    report: dict[str, Any] = server.get("/v2/models/m")[1]["parameters"]["batching"]
    return report


LENGTHS = [(1 + 9 * (index % 6), 0.01 * index) for index in range(24)]


@pytest.mark.parametrize(
    ("entrypoint", "batching", "padding", "words"),
    [
        ("Sequences", True, True, "so did rows padded to the longest"),
        ("IgnoresMask", True, False, "padding is off: a row's answer depends on its padding or its company"),
        ("MixesRows", False, False, "rows influence each other"),
    ],
    ids=["independent rows are padded", "a mask that is ignored", "rows that mix"],
)
def test_rows_of_any_length_at_once_get_the_answers_they_get_alone(
    tmp_path: Path, entrypoint: str, batching: bool, padding: bool, words: str
) -> None:
    with RuntimeProcess(sequence_config(tmp_path, entrypoint)) as server:
        server.wait_ready()
        report = batching_report(server)
        assert (report["enabled"], report["padding"]) == (batching, padding)
        assert words in report["reason"]
        assert {each["padded"] for each in report["proofs"]} == ({False, True} if batching else {False})
        alone = [numbers(ask(server, *request)) for request in LENGTHS]
        batches_before = metric(server, "torchmodel_batch_rows_count")
        together = ask_together(server, *LENGTHS)
        for reference, answer in zip(alone, together, strict=True):
            assert numbers(answer) == pytest.approx(reference, abs=1e-5)
        batches = metric(server, "torchmodel_batch_rows_count") - batches_before
        assert (batches < len(LENGTHS)) is batching


def text_config(folder: Path) -> ServerConfig:
    """A module of token ids that does not heed its mask: each token sees the mean of all of its row."""
    code = """
import torch

class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(8, 4)
    def forward(self, input_ids, attention_mask):
        tokens = self.table(input_ids)
        return tokens + tokens.mean(1, keepdim=True)
"""
    model = folder / "model"
    model.mkdir()
    torch.manual_seed(0)
    save_file({"table.weight": torch.randn(8, 4)}, model / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(model / "tokenizer.json"))
    write_receipt(folder, "model")
    return ServerConfig(
        name="m",
        checkpoint_folder=str(folder),
        architecture=Architecture(entrypoint="nets:Words"),
        code=CodeFile(inline=code),
        security=Security(allow_code_execution=True),
        task=Task(type="text-embedding", text_embedding=TextEmbedding(normalize=False)),
        serving=Serving(processes=1),
    )


def test_texts_of_one_request_are_not_padded_together_either_where_padding_is_off(tmp_path: Path) -> None:
    texts = ["a b", "a b c a b c a b", "c", "b a"]
    with RuntimeProcess(text_config(tmp_path)) as server:
        server.wait_ready()
        report = batching_report(server)
        assert (report["enabled"], report["padding"]) == (True, False)
        alone = [server.post("/v1/models/m:predict", {"instances": [text]})[1]["predictions"][0] for text in texts]
        together = server.post("/v1/models/m:predict", {"instances": texts})[1]["predictions"]
    for reference, answer in zip(alone, together, strict=True):
        assert answer == pytest.approx(reference, abs=1e-6)


def test_a_row_far_longer_than_those_of_warm_up_does_not_hold_up_the_port(tmp_path: Path) -> None:
    code = """
import time
import torch

class Sums(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        if x.shape[1] > 1000:
            time.sleep(2)
        return x.sum(1, keepdim=True) * self.weight
"""
    config = msgspec.structs.replace(
        sequence_config(tmp_path, "Sums"),
        code=CodeFile(inline=code),
        signature=Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=[-1, -1])],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=[-1, 1])],
        ),
        serving=Serving(processes=1),
    )
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    write_receipt(tmp_path, "w.pth")
    write = {
        length: [{"name": "x", "datatype": "FP32", "shape": [1, length], "data": [1] * length}] for length in (8, 2000)
    }
    with RuntimeProcess(config) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready()
        assert server.post("/v2/models/m/infer", {"inputs": write[8]})[0] == 200
        for _ in range(2):
            long = pool.submit(server.post, "/v2/models/m/infer", {"inputs": write[2000]})
            answered_meanwhile = 0
            while not long.done():
                server.get("/v2/health/live")
                answered_meanwhile += not long.done()
                time.sleep(0.05)
            assert long.result()[0] == 200
            assert answered_meanwhile > 5


@pytest.fixture(scope="module")
def hungry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RuntimeProcess]:
    with RuntimeProcess(sequence_config(tmp_path_factory.mktemp("hungry"), "Hungry")) as server:
        yield server.wait_ready()


def test_memory_that_runs_out_costs_the_batch_its_size_and_nobody_an_answer(hungry: RuntimeProcess) -> None:
    assert metric(hungry, "torchmodel_batch_rows_limit") == 16
    requests = [(2, 777.0)] * 12
    alone = numbers(ask(hungry, *requests[0]))
    for answer in ask_together(hungry, *requests):
        assert numbers(answer) == pytest.approx(alone, abs=1e-4)
    assert metric(hungry, "torchmodel_batch_rows_limit") < 16
    assert "out of memory in a batch" in hungry.log


def test_a_request_that_does_not_fit_alone_is_told_so_and_its_neighbours_are_answered(hungry: RuntimeProcess) -> None:
    requests = [(2, 0.5), (2, 778.0), (2, 0.5), (2, 0.5)]
    limit = metric(hungry, "torchmodel_batch_rows_limit")
    statuses = [status for status, _ in ask_together(hungry, *requests)]
    assert statuses == [200, 507, 200, 200]
    assert "ran out of memory on this request" in str(ask(hungry, 2, 778.0)[1])
    assert metric(hungry, "torchmodel_batch_rows_limit") == limit


def test_many_failing_requests_are_few_tracebacks(hungry: RuntimeProcess) -> None:
    for _ in range(10):
        answers = ask_together(hungry, *[(3, 666.0)] * 15, (3, 0.5))
        assert [status for status, _ in answers] == [500] * 15 + [200]
        assert "secret" not in str(answers)
    assert 1 <= hungry.log.count("the model failed on a request") <= 5
