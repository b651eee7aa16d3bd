"""The engine in this thread: datatypes through torch and back, who is to blame when a batch fails, memory that runs out."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmodel_runtime.config import TensorSpec
from torchmodel_runtime.engine.failures import LOG_INTERVAL_S, FailureLog, halving_budget, isolate
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.engine.memory import Bounds, max_batch_bytes
from torchmodel_runtime.engine.pulse import Pulse
from torchmodel_runtime.errors import RequestError
from torchmodel_runtime.tasks import ModuleCall
from torchmodel_runtime.tensors import NUMPY_DTYPES, Arrays

CPU = torch.device("cpu")


def spec(name: str = "y", datatype: str = "FP32", shape: Sequence[int] = (-1, -1)) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=list(shape))  # type: ignore[arg-type]


def make_engine(module: torch.nn.Module, *outputs: TensorSpec, max_rows: int = 32) -> Engine:
    return Engine(module.eval(), CPU, ModuleCall(outputs=outputs or (spec(),)), max_rows)


def rows_of(*values: float) -> Arrays:
    """One request: a row of two for each value."""
    return [np.array([[value, 1.0] for value in values], np.float32)]


class Double(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


class Poisoned(torch.nn.Module):
    """Raises on rows that begin with 666; counts its calls."""

    def __init__(self, error: BaseException | None = None) -> None:
        super().__init__()
        self.calls = 0
        self.error = error or ValueError("poison")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if (x[:, 0] == 666).any():
            raise self.error
        return x


class Narrow(torch.nn.Module):
    """Has memory for so many elements a call; how a real allocator fails, without the risk of making it."""

    def __init__(self, elements: int, error: Exception) -> None:
        super().__init__()
        self.elements, self.error, self.calls = elements, error, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if x.numel() > self.elements:
            raise self.error
        return x + 1


GPU_ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)


# --- datatypes ---


@pytest.mark.parametrize("datatype", [name for name in NUMPY_DTYPES if name != "BYTES"])
def test_every_datatype_passes_through_torch_unchanged(datatype: str) -> None:
    dtype = NUMPY_DTYPES[datatype]
    raw = np.random.default_rng(0).integers(0, 256, (6, 4 * dtype.itemsize), np.uint8)
    values = (raw % 2 if datatype == "BOOL" else raw).view(dtype)
    values.flags.writeable = False  # as a binary body's own bytes are
    engine = make_engine(torch.nn.Identity(), spec("y", datatype))
    for requests in ([[values]], [[values[:2]], [values[2:]]]):
        answers = engine.run(requests)
        joined = np.concatenate([answer[0] for answer in answers])  # type: ignore[index]
        assert joined.dtype == dtype
        assert joined.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "array",
    [
        np.frombuffer(b"\0" + np.arange(6, dtype=np.float32).tobytes(), np.float32, offset=1).reshape(3, 2),
        np.asfortranarray(np.arange(6, dtype=np.float32).reshape(3, 2)),
        np.arange(6, dtype=np.float32)[::-1].reshape(3, 2),
    ],
    ids=["read-only and not aligned", "in Fortran's order", "backwards"],
)
def test_however_an_array_lies_in_memory_the_module_gets_its_values(array: np.ndarray) -> None:
    expected = np.array(array) * 2
    np.testing.assert_array_equal(make_engine(Double()).forward([array])[0], expected)


class Overwriting(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


def test_a_module_that_writes_into_its_inputs_gets_copies() -> None:
    engine, request = make_engine(Overwriting()), rows_of(1, 2)
    before = request[0].copy()
    engine.watch(request)
    engine.forward(request)
    np.testing.assert_array_equal(request[0], before)


class Reusing(torch.nn.Module):
    """Writes its answer to the same memory each time."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.zeros(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mul(x, 2, out=self.answer)


def test_the_answer_of_a_module_that_reuses_its_memory_stays_as_it_was() -> None:
    engine = make_engine(Reusing())
    engine.watch(rows_of(1))
    first = engine.forward(rows_of(1))[0]
    engine.forward(rows_of(5))
    assert first[0, 0] == 2


# --- who is to blame ---


def poisoned(count: int, *bad: int) -> list[Arrays]:
    return [rows_of(666 if index in bad else index) for index in range(count)]


def test_a_model_that_calls_sys_exit_fails_like_any_other() -> None:
    module = Poisoned(SystemExit(7))
    answers = make_engine(module).run(poisoned(4, 2))
    assert [isinstance(answer, RequestError) for answer in answers] == [False, False, True, False]


@pytest.mark.parametrize("bad", [0, 1, 15, 16, 30, 31])
def test_one_poisoned_request_is_found_in_two_calls_a_halving(bad: int) -> None:
    module = Poisoned()
    answers = make_engine(module).run(poisoned(32, bad))
    assert [isinstance(answer, RequestError) for answer in answers] == [index == bad for index in range(32)]
    assert module.calls <= 1 + 2 * math.log2(32)
    error = answers[bad]
    assert isinstance(error, RequestError)
    assert (error.status, error.code) == (500, "MODEL_FAILED")
    assert "poison" not in error.message


@given(st.integers(2, 70), st.data())
@settings(max_examples=200, deadline=None)
def test_however_many_are_poisoned_neighbours_are_answered_and_calls_are_bounded(
    count: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    calls = []

    def compute(requests: Sequence[Arrays]) -> list[Arrays] | None:
        calls.append(len(requests))
        return None if any(request[0][0, 0] == 666 for request in requests) else list(requests)

    def compute_one(request: Arrays) -> Arrays | Exception:
        return request if compute([request]) else ValueError()

    requests = poisoned(count, *bad)
    answers = isolate(requests, compute, compute_one)
    for index, answer in enumerate(answers):
        assert isinstance(answer, ValueError) if index in bad else answer is requests[index]
    assert len(calls) <= halving_budget(count) + count
    if len(bad) == 1:
        assert len(calls) <= 2 * math.ceil(math.log2(count))


def test_a_batch_that_fails_only_as_a_batch_is_answered_and_said(caplog: pytest.LogCaptureFixture) -> None:
    class Lonely(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 1:
                raise ValueError("one at a time")
            return x

    answers = make_engine(Lonely()).run([rows_of(1), rows_of(2)])
    assert [answer[0][0, 0] for answer in answers] == [1, 2]  # type: ignore[index]
    assert "a batch failed, its requests apart did not" in caplog.text


class Mortal(torch.nn.Module):
    """666 is poison; 777 is the end, as a device-side assert is on a GPU."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.is_dead = error, False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.is_dead = self.is_dead or bool((x[:, 0] == 777).any())
        if self.is_dead or (x[:, 0] == 666).any():
            raise self.error
        return x


@pytest.mark.parametrize(
    ("error", "first", "is_broken"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), 777, True),
        (RuntimeError("CUDA error: device-side assert triggered"), 666, False),
        (GPU_ERROR, 777, False),
    ],
    ids=["for good", "on this request", "memory that ran out is no end"],
)
def test_a_module_that_fails_on_what_it_answered_at_warm_up_is_broken(
    error: Exception, first: float, is_broken: bool
) -> None:
    engine = make_engine(Mortal(error))
    engine.watch(rows_of(1))
    answers = engine.run([rows_of(1), rows_of(first), rows_of(2)])
    assert isinstance(answers[1], RequestError)
    assert engine.is_broken is is_broken


@pytest.mark.parametrize(
    ("takes_s", "failures_s", "checks_s"),
    [(0.0, [100, 100.5, 100.9, 101, 101.1], [100, 101]), (2.0, [100, 141.9, 142], [100, 142])],
    ids=["once a second", "less often where that takes long"],
)
def test_failures_cost_few_checks_of_the_pulse(takes_s: float, failures_s: list[float], checks_s: list[float]) -> None:
    now_s, checked_s = [0.0], list[float]()

    def compute(_: Arrays) -> None:
        checked_s.append(now_s[0])
        now_s[0] += takes_s

    pulse = Pulse(lambda: now_s[0])
    pulse.row = rows_of(1)
    for failure_s in failures_s:
        now_s[0] = failure_s
        pulse.feel(ValueError(), compute)
    assert checked_s == checks_s


def test_ten_thousand_failures_are_one_traceback_and_a_number(caplog: pytest.LogCaptureFixture) -> None:
    log = FailureLog()
    for index in range(10_000):
        log.record(ValueError("secret"), now_s=index * LOG_INTERVAL_S / 20_000)
    assert len(caplog.records) == 1
    log.record(ValueError("secret"), now_s=LOG_INTERVAL_S)
    assert len(caplog.records) == 2
    assert caplog.records[1].exc_info is not None
    assert vars(caplog.records[1])["fields"] == {"not_logged_before": 9_999}


# --- memory ---


@pytest.mark.parametrize("error", [GPU_ERROR, CPU_ERROR, MemoryError()], ids=["GPU", "CPU", "numpy"])
def test_a_batch_that_does_not_fit_is_halved_and_the_bound_lowered(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    module = Narrow(10, error)
    engine = make_engine(module)
    engine.bounds.usual_row_bytes = 8
    requests = [rows_of(index) for index in range(32)]
    answers = engine.run(requests)
    assert [answer[0][0, 0] for answer in answers] == [index + 1 for index in range(32)]  # type: ignore[index]
    assert engine.max_rows == 4  # 32, 16 and 8 rows of two did not fit ten elements
    assert "out of memory" in caplog.text
    module.calls = 0
    engine.run(requests)
    assert module.calls == 8  # at the lowered bound, with nothing tried in vain


def test_a_row_that_does_not_fit_alone_is_refused_and_the_bound_stays() -> None:
    engine = make_engine(Narrow(10, GPU_ERROR))
    (answer,) = engine.run([[np.zeros((1, 11), np.float32)]])
    assert isinstance(answer, RequestError)
    assert (answer.status, answer.code) == (507, "MODEL_OUT_OF_MEMORY")
    (answer,) = engine.run([[np.zeros((3, 11), np.float32)]])
    assert isinstance(answer, RequestError)
    assert engine.max_rows == 32
    assert not engine.bounds.max_bytes


def test_rows_larger_than_usual_lower_the_bytes_and_not_everybodys_rows() -> None:
    engine = make_engine(Narrow(100, CPU_ERROR))
    engine.bounds.usual_row_bytes = 8
    (answer,) = engine.run([[np.ones((4, 50), np.float32)]])
    assert not isinstance(answer, Exception)
    assert answer[0].shape == (4, 50)
    assert (engine.max_rows, engine.bounds.max_bytes) == (32, 400)
    assert engine.bounds.rows_of(8) == 32
    assert engine.bounds.rows_of(200) == 2
    assert engine.bounds.rows_of(4000) == 1


def test_a_request_larger_than_the_bound_is_computed_in_slices() -> None:
    engine = make_engine(Double(), max_rows=3)
    np.testing.assert_array_equal(engine.forward(rows_of(*range(8)))[0][:, 0], np.arange(8) * 2)


def test_engines_over_the_same_weights_share_the_bound() -> None:
    engine = make_engine(torch.nn.Linear(2, 2))
    twin = engine.replicate()
    twin.bounds.lower(2, 0)
    assert engine.max_rows == 2


@pytest.mark.parametrize(
    ("room", "growth", "batches", "bound"),
    [
        (1000, 5.0, 1, 100),
        (1000, 5.0, 2, 50),
        (1000, 0.0, 1, 0),
        (0, 5.0, 1, 0),
        (10, 500.0, 1, 1),
    ],
    ids=["half of the room", "two at the same time", "nothing measured", "no room known", "never nothing"],
)
def test_bytes_of_a_batch_follow_from_room_and_growth(room: int, growth: float, batches: int, bound: int) -> None:
    assert max_batch_bytes(room, growth, batches) == bound


def test_bounds_fall_and_never_rise() -> None:
    bounds = Bounds(max_rows=8, usual_row_bytes=10)
    bounds.lower(16, 10)
    assert bounds.max_rows == 8
    bounds.lower(2, 100)
    bounds.lower(4, 100)
    assert bounds.max_bytes == 200


# --- several threads ---


class Chatty(torch.nn.Module):
    """Keeps an intermediate on itself, as hand-written modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> Any:
        self.kept = self.layer(x)
        return self.kept * self.scale


def test_a_replica_has_its_own_attributes_and_the_same_weights() -> None:
    module = Chatty()
    engine = make_engine(module)
    twin = engine.replicate()._module
    assert twin is not module
    assert twin.layer.weight is module.layer.weight
    assert twin.scale is module.scale
    engine.forward(rows_of(1))
    assert not hasattr(twin, "kept")


# --- a GPU's turn ---


class FakeEvent:
    def synchronize(self) -> None:
        """Reached already."""


class FakeLane:
    """Stands for `CudaLane` where there is no GPU: the same order of steps, noted, on the CPU."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.turns = threading.Lock()
        self.both_sent = threading.Event()

    def send(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], FakeEvent]:
        self.steps.append("send")
        if self.steps.count("send") == 2:
            self.both_sent.set()
        return [tensor.clone() for tensor in tensors], FakeEvent()

    @contextmanager
    def turn(self, sent: Sequence[torch.Tensor], ready: FakeEvent) -> Iterator[None]:  # noqa: ARG002
        with self.turns:
            self.steps.append("begin")
            yield
            self.steps.append("end")

    def fetch(self, tensors: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], FakeEvent]:
        self.steps.append("fetch")
        return list(tensors), FakeEvent()


def test_a_second_batch_is_sent_while_one_has_its_turn() -> None:
    lane = FakeLane()

    class Patient(torch.nn.Module):
        """Its turn lasts until both batches are on their way."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert lane.both_sent.wait(timeout=10)
            return x * 2

    engine = make_engine(Patient())
    engine._lane = lane  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(engine.run, [[rows_of(1), rows_of(2)], [rows_of(5), rows_of(6)]]))
    values = [[answer[0][0, 0] for answer in batch] for batch in answers]  # type: ignore[index]
    assert values == [[2, 4], [10, 12]]
    assert [step for step in lane.steps if step != "send"] == ["begin", "fetch", "end"] * 2
