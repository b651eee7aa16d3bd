"""What warm-up proves before requests share a batch: rows, padding, threads; every kind of module that must be caught."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchmodel_runtime.config import BatchingReport, Padding, Signature, TensorSpec
from torchmodel_runtime.engine import proof, trials
from torchmodel_runtime.engine.comparison import allow, compare
from torchmodel_runtime.engine.forward import Engine
from torchmodel_runtime.engine.replicas import find_interference, make_replicas
from torchmodel_runtime.errors import StartError
from torchmodel_runtime.tasks.tensor import TensorTask
from torchmodel_runtime.tensors import Arrays

CPU = torch.device("cpu")
FEATURES = 6


def tensor_task(inputs: list[int], outputs: list[int], padding: Padding | None = None) -> TensorTask:
    return TensorTask(
        Signature(
            inputs=[TensorSpec(name="x", datatype="FP32", shape=inputs)],
            outputs=[TensorSpec(name="y", datatype="FP32", shape=outputs)],
        ),
        padding,
    )


def prove(module: torch.nn.Module, task: TensorTask, max_size: int = 16) -> tuple[Engine, BatchingReport]:
    torch.manual_seed(0)
    engine = Engine(module.eval(), CPU, task.call, max_size)
    proof.check_answers(engine, task)
    return engine, proof.prove_batches(engine, task, max_size, "")


VECTORS = tensor_task([-1, FEATURES], [-1, FEATURES])


# --- rows of equal shape ---


@pytest.mark.parametrize(
    ("max_size", "sizes"),
    [
        (2, [2]),
        (3, [2, 3]),
        (8, [2, 3, 4, 6, 8]),
        (20, [2, 3, 4, 6, 8, 12, 16, 20]),
        (4096, [2, *(size for power in range(1, 12) for size in (3 * 2 ** (power - 1), 2 ** (power + 1)))]),
    ],
)
def test_first_are_tried_powers_of_two_half_as_much_again_and_the_largest(max_size: int, sizes: list[int]) -> None:
    assert trials.batch_sizes(max_size) == sizes


def test_independent_rows_are_proven_for_every_size_with_figures() -> None:
    engine, report = prove(torch.nn.Linear(FEATURES, FEATURES), VECTORS)
    assert (report.enabled, report.max_size, report.padding) == (True, 16, False)
    assert [each.rows for each in report.proofs] == [2, 3, 4, 6, 8, 12, 16]
    assert all(each.max_difference <= each.tolerance < 1e-4 for each in report.proofs)
    assert report.reason == "rows alone and in batches of 2 to 16 agreed within tolerance"
    assert (engine.max_rows, engine.bounds.sizes) == (16, ())


class MixesFrom(torch.nn.Module):
    """Subtracts the batch's mean, in batches of at least so many rows."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - x.mean(0) if len(x) >= self.rows else x


class Scaled(torch.nn.Module):
    """One scale for the whole batch, as dynamic int8 quantisation has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().max() / 127
        return torch.round(x / scale) * scale


class OnlyAt(torch.nn.Module):
    """Mixes rows at one odd size only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(0) if len(x) == 13 else x


@pytest.mark.parametrize(
    ("module", "rows"),
    [(MixesFrom(2), 2), (MixesFrom(8), 8), (MixesFrom(16), 16), (Scaled(), 2), (OnlyAt(), 13)],
    ids=["at once", "from eight on", "in the largest only", "one scale for all rows", "between the powers of two"],
)
def test_rows_that_influence_each_other_are_caught_at_the_size_where_they_do(
    module: torch.nn.Module, rows: int
) -> None:
    engine, report = prove(module, VECTORS)
    assert (report.enabled, report.max_size, engine.max_rows) == (False, 1, 1)
    assert f"rows influence each other: output 'y' of a row, alone and among {rows}, differs by up to" in report.reason
    assert report.proofs[-1].rows == rows
    assert report.proofs[-1].max_difference > report.proofs[-1].tolerance


class Slow(torch.nn.Module):
    """Takes so long that not every size can be tried, and mixes rows at one of those that are not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return x.flip(0) if len(x) == 23 else x


def test_a_size_that_was_not_proven_is_not_computed() -> None:
    engine, report = prove(Slow(), VECTORS, 32)
    assert (report.enabled, report.max_size) == (True, 32)
    assert set(trials.batch_sizes(32)) < set(engine.bounds.sizes) < set(range(1, 33)) - {23}
    assert "in batches of 2 to " in report.reason
    rows = VECTORS.synthetic(23, np.random.default_rng(0))
    np.testing.assert_array_equal(engine.forward(rows)[0], rows[0])
    answers = engine.run([[rows[0][row : row + 1]] for row in range(23)])
    np.testing.assert_array_equal(np.concatenate([answer[0] for answer in answers]), rows[0])  # type: ignore[index]


class NotAt(torch.nn.Module):
    """Raises at one size."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.rows = rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) == self.rows:
            raise RuntimeError("so many rows do not please me")
        return x * 2


@pytest.mark.parametrize(("rows", "largest"), [(3, 2), (13, 12), (16, 12)], ids=["early", "in between", "the largest"])
def test_a_size_that_raises_is_the_end_of_larger_ones_and_not_of_the_start(rows: int, largest: int) -> None:
    engine, report = prove(NotAt(rows), VECTORS)
    assert (report.enabled, report.max_size, engine.max_rows) == (True, largest, largest)
    assert f"larger ones are not used: {rows} rows gave RuntimeError: so many rows" in report.reason
    assert max(each.rows for each in report.proofs) <= largest
    x = VECTORS.synthetic(16, np.random.default_rng(0))
    np.testing.assert_array_equal(engine.forward(x)[0], x[0] * 2)


class AtMost(torch.nn.Module):
    def __init__(self, rows: int, error: Exception) -> None:
        super().__init__()
        self.rows, self.error = rows, error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) > self.rows:
            raise self.error
        return x * 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("too many"), "12 rows gave ValueError: too many"),
        (torch.OutOfMemoryError("CUDA out of memory"), "a batch of 12 did not fit the memory"),
    ],
    ids=["the module refuses", "memory runs out"],
)
def test_the_largest_proven_size_is_the_bound(error: Exception, words: str) -> None:
    engine, report = prove(AtMost(8, error), VECTORS)
    assert (report.enabled, report.max_size, engine.max_rows) == (True, 8, 8)
    assert [each.rows for each in report.proofs] == [2, 3, 4, 6, 8]
    assert words in report.reason


GIB = 1 << 30


@pytest.mark.parametrize(
    ("seconds", "spent_s", "grown_bytes", "room_bytes", "words"),
    [
        (1.0, 2.0, 0, GIB, ""),
        (6.0, 0.5, 0, GIB, "a batch of 8 took 6.0 s"),
        (1.0, 10.5, 0, GIB, "a batch of 8 took 1.0 s"),
        (1.0, 2.0, GIB, 3 * GIB, ""),
        (1.0, 2.0, GIB, GIB, "a batch of 8 took 1024 MiB of memory"),
    ],
    ids=[
        "time and room",
        "twice the time is too long",
        "the time is spent",
        "as much again fits",
        "as much again does not fit",
    ],
)
def test_sizes_that_would_take_too_much_are_not_tried(
    seconds: float, spent_s: float, grown_bytes: int, room_bytes: int, words: str
) -> None:
    assert trials.why_not(16, 8, seconds, spent_s, grown_bytes, room_bytes) == words


# --- rows of different length ---

PADDING = Padding(mask="mask", value=0.5)
SEQUENCES = tensor_task([-1, -1, FEATURES], [-1, -1, FEATURES], PADDING)
POOLED = tensor_task([-1, -1, FEATURES], [-1, FEATURES], PADDING)


class Pooling(torch.nn.Module):
    """A recurrence-free sequence model: mean over the real positions, which every position then sees."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.layer, self.pooled = torch.nn.Linear(FEATURES, FEATURES), pooled

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = self.layer(x)
        weights = x.new_ones(x.shape[:2]) if mask is None else mask.to(x.dtype)
        mean = (x * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        return mean if self.pooled else x + mean[:, None]


class NeedsMask(Pooling):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(x, mask)


class IgnoresMask(Pooling):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        return super().forward(x)


class MixesWhenMasked(Pooling):
    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        answer = super().forward(x, mask)
        return answer if mask is None else answer + 0.01 * answer.mean(0)


class Halving(Pooling):
    """Gives one vector for two positions: what lies behind a row's end cannot be told from its size."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, mask)[:, ::2]


class Positions(Pooling):
    """Knows sixteen positions."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[1] > 16:
            raise IndexError("too long")
        return super().forward(x, mask)


@pytest.mark.parametrize(
    ("module", "task"),
    [
        (Pooling(pooled=True), POOLED),
        (Pooling(pooled=False), SEQUENCES),
        (NeedsMask(pooled=True), POOLED),
        (NeedsMask(pooled=False), SEQUENCES),
        (Positions(pooled=False), SEQUENCES),
    ],
    ids=[
        "one vector a row",
        "one vector a position",
        "mask required",
        "mask required, by position",
        "sixteen positions",
    ],
)
def test_padded_rows_have_the_answers_they_have_alone(module: torch.nn.Module, task: TensorTask) -> None:
    engine, report = prove(module, task)
    assert (report.enabled, report.padding, report.max_size) == (True, True, 16)
    assert [each.rows for each in report.proofs if each.padded] == [2, 3, 4, 6, 8, 12, 16]
    assert all(each.max_difference <= each.tolerance for each in report.proofs)
    generator = np.random.default_rng(7)
    requests = [task.synthetic(rows, generator, length) for rows, length in ((1, 3), (2, 16), (1, 1), (3, 9))]
    for request, answer in zip(requests, engine.run(requests), strict=True):
        assert not isinstance(answer, Exception)
        alone = engine.forward(request)[0]
        assert answer[0].shape == alone.shape
        np.testing.assert_allclose(answer[0], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "task", "words"),
    [
        (IgnoresMask(pooled=True), POOLED, "a row's answer depends on its padding or its company"),
        (IgnoresMask(pooled=False), SEQUENCES, "a row's answer depends on its padding or its company"),
        (MixesWhenMasked(pooled=True), POOLED, "a row's answer depends on its padding or its company"),
        (Halving(pooled=False), SEQUENCES, "has shape"),
    ],
    ids=["ignores its mask", "ignores its mask, by position", "mixes rows when masked", "half as many positions"],
)
def test_padding_that_changes_an_answer_is_off_and_equal_lengths_still_share(
    module: torch.nn.Module, task: TensorTask, words: str
) -> None:
    engine, report = prove(module, task)
    assert (report.enabled, report.padding, report.max_size) == (True, False, 16)
    assert "; padding is off: " in report.reason
    assert words in report.reason
    assert not engine.pads
    assert report.proofs[-1].padded


def test_an_output_whose_size_only_happens_to_be_the_length_is_not_cut() -> None:
    class Classes(Pooling):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            return super().forward(x, mask).repeat(1, 2)

    task = tensor_task([-1, -1, FEATURES], [-1, -1], PADDING)
    engine, report = prove(Classes(pooled=True), task)
    assert report.padding
    generator = np.random.default_rng(7)
    requests = [task.synthetic(1, generator, length) for length in (3, 2 * FEATURES)]
    assert [answer[0].shape for answer in engine.run(requests)] == [(1, 2 * FEATURES)] * 2  # type: ignore[index]


def test_a_mask_that_forward_does_not_take_is_said_at_the_start() -> None:
    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with pytest.raises(
        StartError, match=r"padding.mask: got 'mask', but forward\(x.*unexpected keyword argument 'mask'"
    ):
        prove(Plain(), SEQUENCES)


def test_lengths_that_the_module_does_not_take_leave_nothing_to_compare() -> None:
    class Fixed(Pooling):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            if x.shape[1] != 8:
                raise ValueError("eight positions")
            return super().forward(x, mask)

    _, report = prove(Fixed(pooled=True), POOLED)
    assert (report.enabled, report.padding) == (True, False)
    assert "nothing can be compared" in report.reason


# --- how much is too much ---


@pytest.mark.parametrize(
    ("reference", "answer", "agrees"),
    [
        ([1.0], [1.000009], True),
        ([1.0], [1.00002], False),
        ([np.nan, np.inf], [np.nan, np.inf], True),
        ([np.inf], [-np.inf], False),
        ([1.0], [np.nan], False),
        ([1.0, 2.0], [1.0], False),
    ],
    ids=["close", "apart", "the same NaN", "another infinity", "NaN for a number", "shapes"],
)
def test_answers_agree_within_their_tolerance(reference: list[float], answer: list[float], agrees: bool) -> None:
    verdict = compare(np.array(reference, np.float32), np.array(answer, np.float32), 1e-5)
    assert (verdict.words == "") is agrees


@pytest.mark.parametrize(
    ("answers", "moved", "tolerance"),
    [
        ([[1.0, -3.0], [0.5, 0.25]], [], 3e-5),
        ([[1e-7], [3e-9]], [], 1e-12),
        ([[2.0, np.inf], [np.nan, 1.0]], [], 2e-5),
        ([[0.0]], [], 1.1754943508222875e-38),
        ([[1.0]], [[1.0 + 5 * 2**-23]], 1e-5),
        ([[1.0]], [[1.0 + 32 * 2**-23]], 4e-5),
        ([[1.0]], [[2.0]], 1e-4),
    ],
    ids=[
        "by the output's greatest value",
        "small outputs have small tolerances, even a row that is nearly zero beside others",
        "what is no number does not count",
        "zeros are zeros",
        "a module that passes roundings on is held to the figure",
        "one that makes more of them gets as much more",
        "but tenfold at most",
    ],
)
def test_the_tolerance_is_of_the_outputs_own_scale(
    answers: list[list[float]], moved: list[list[float]], tolerance: float
) -> None:
    arrays = [[np.array(values, np.float32) for values in rows] for rows in (answers, moved)]
    assert allow(arrays[0], torch.float32, arrays[1]) == pytest.approx(tolerance, rel=1e-6)


class Small(torch.nn.Module):
    """Answers of a millionth, rows mixed completely or not at all."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.layer, self.mixes = torch.nn.Linear(FEATURES, FEATURES), mixes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e-6 * self.layer(x - x.mean(0) if self.mixes else x)


class Distribution(torch.nn.Module):
    """Probabilities over many classes, all of them small."""

    def __init__(self, mixes: bool) -> None:
        super().__init__()
        self.layer, self.mixes = torch.nn.Linear(FEATURES, 20000), mixes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x)
        return torch.softmax(logits - logits.mean(0) if self.mixes else logits, -1)


class Net(torch.nn.Module):
    """A few wide layers, whose roundings its head makes much or little of."""

    def __init__(self, head: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        sizes = [FEATURES, 256, 256, 256, FEATURES]
        self.layers = torch.nn.ModuleList(map(torch.nn.Linear, sizes, sizes[1:]))
        self.head = head
        with torch.no_grad():
            for layer in self.layers:
                layer.weight.mul_(2.4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers[:-1]:
            x = torch.nn.functional.gelu(layer(x))
        return self.head(self.layers[-1](x))


MODULES: list[tuple[str, Callable[[], torch.nn.Module], bool]] = [
    ("small answers", lambda: Small(mixes=False), True),
    ("small answers of rows that mix", lambda: Small(mixes=True), False),
    ("many classes", lambda: Distribution(mixes=False), True),
    ("many classes of rows that mix", lambda: Distribution(mixes=True), False),
    ("plain", lambda: Net(lambda y: y), True),
    ("sharp softmax", lambda: Net(lambda y: torch.softmax(20 * y, -1)), True),
    ("sigmoid far below zero", lambda: Net(lambda y: torch.sigmoid(y - 60)), True),
    ("exponential", lambda: Net(lambda y: torch.exp(20 * y - 40)), True),
    ("sums that cancel now and then", lambda: Net(lambda y: y - y.sort(-1).values.mean(-1, keepdim=True)), True),
    ("mixing by a thousandth", lambda: Net(lambda y: y + 1e-3 * y.mean(0)), False),
]


@pytest.mark.parametrize(("make", "agrees"), [each[1:] for each in MODULES], ids=[each[0] for each in MODULES])
def test_roundings_are_forgiven_and_mixed_rows_are_not_however_small_the_answers(
    make: Callable[[], torch.nn.Module], agrees: bool
) -> None:
    torch.manual_seed(0)
    module = make()
    width = 20000 if isinstance(module, Distribution) else FEATURES
    _, report = prove(module, tensor_task([-1, FEATURES], [-1, width]), 32)
    assert report.enabled is agrees, report.reason
    if agrees:
        assert all(each.max_difference < each.tolerance / 2 for each in report.proofs), report.proofs


def test_integers_must_be_equal() -> None:
    assert "differs in 1 of 2 values" in compare(np.array([1, 2]), np.array([1, 3]), 1e-5).words


# --- several threads ---


class Noted(torch.nn.Module):
    """Puts its input down and picks it up later, on an object of your choice."""

    def __init__(self, place: object | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(FEATURES, FEATURES)
        self.take_place = lambda: place  # deepcopy leaves functions, and what they hold, as they are

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        place = self.take_place() or self
        place.noted = x  # type: ignore[attr-defined]
        answer = self.layer(x)
        return answer + place.noted  # type: ignore[attr-defined,no-any-return]


class Place:
    noted: torch.Tensor


def test_replicas_of_a_module_that_notes_things_on_itself_do_not_disturb_each_other() -> None:
    engine, _ = prove(Noted(), VECTORS)
    engines, reason = make_replicas(engine, 3, VECTORS, threads=1)
    assert (len(engines), reason) == (3, "")


class Caching(torch.nn.Module):
    """Makes a table on first use, as rotary embeddings do, and keeps its last answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.register_buffer("table", torch.arange(FEATURES) + x.new_zeros(1), persistent=False)
        self.last = self.layer(x) + self.table
        return self.last


def test_what_forward_made_is_copied_for_each_replica() -> None:
    engine, _ = prove(Caching(), VECTORS)
    engines, reason = make_replicas(engine, 2, VECTORS, threads=1)
    assert (len(engines), reason) == (2, "")


def test_one_module_in_two_threads_is_caught_where_replicas_are_not() -> None:
    engine, _ = prove(Noted(), VECTORS)
    assert "computed at the same time as others" in find_interference([engine, engine], VECTORS, threads=1)


class Counting(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return x * 2


class Locked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (Noted(Place()), "computed at the same time as others"),
        (Counting(), "forward writes to its own calls"),
        (Locked(), "cannot be copied: TypeError"),
    ],
    ids=["a place that copies share", "a buffer written in forward", "a lock"],
)
def test_a_module_that_cannot_work_in_two_threads_keeps_to_one(module: torch.nn.Module, words: str) -> None:
    engine, _ = prove(module, VECTORS)
    engines, reason = make_replicas(engine, 2, VECTORS, threads=1)
    assert engines == [engine]
    assert words in reason


def test_one_engine_needs_no_proof() -> None:
    engine, _ = prove(Locked(), VECTORS)
    assert make_replicas(engine, 1, VECTORS, threads=1) == ([engine], "")


# --- what may be declared ---


def declare(*shapes: list[int], datatype: str = "FP32", value: float = 0.0) -> TensorTask:
    inputs = [TensorSpec(name=f"x{index}", datatype=datatype, shape=shape) for index, shape in enumerate(shapes)]  # type: ignore[arg-type]
    outputs = [TensorSpec(name="y", datatype="FP32", shape=[-1, -1])]
    return TensorTask(Signature(inputs=inputs, outputs=outputs), Padding(mask="mask", value=value))


@pytest.mark.parametrize(
    ("shapes", "datatype", "value", "words"),
    [
        ([[-1, 10]], "FP32", 0.0, "nothing to pad"),
        ([[-1]], "FP32", 0.0, "nothing to pad"),
        ([[-1, -1, -1]], "FP32", 0.0, r"x0\) has shape \[-1, -1, -1\]"),
        ([[-1, -1], [-1, 3, -1]], "FP32", 0.0, r"signature.inputs\[1\]"),
        ([[-1, -1]], "INT64", 0.5, "cannot hold"),
        ([[-1, -1]], "UINT8", 256.0, "cannot hold"),
        ([[-1, -1]], "BOOL", 2.0, "cannot hold"),
        ([[-1, -1]], "FP16", 1e6, "cannot hold"),
    ],
)
def test_padding_that_cannot_work_is_refused(shapes: list[list[int]], datatype: str, value: float, words: str) -> None:
    with pytest.raises(StartError, match=words) as caught:
        declare(*shapes, datatype=datatype, value=value)
    assert caught.value.failure.reason == "ConfigInvalid"


def test_inputs_with_a_length_are_padded_and_others_are_not() -> None:
    rule = declare([-1, -1, 3], [-1, 4], [-1], [-1, -1], value=1.0).call.padding
    assert rule is not None
    assert (rule.values, rule.mask, rule.inputs, rule.first) == ((1.0, None, None, 1.0), "mask", (0, 3), 0)


def test_inputs_of_one_request_must_be_equally_long() -> None:
    task = declare([-1, -1], [-1, -1])
    inputs: Arrays = [np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)]
    with pytest.raises(Exception, match="equally long in their second dimension, got 'x0' 3, 'x1' 4"):
        task.prepare(inputs)
