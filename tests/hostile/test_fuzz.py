"""The fuzzer's targets over their seeds, and some thousand inputs that atheris makes of them. `make fuzz` goes on for longer."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile.fuzz.checks import CHECKS
from hostile.fuzz.run import fuzz, summary, write_corpus
from hostile.fuzz.seeds import SEEDS, make_seeds

RUNS = {"torchserve": 3000, "resample": 1000}
"""Of the slow ones; others have MOST_RUNS."""
MOST_RUNS = 10_000


def test_every_target_has_a_check_and_seeds() -> None:
    assert set(CHECKS) == set(SEEDS)


# the runtime has its process ignore it, pytest has each test heed it
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.filterwarnings("ignore:Tag data larger than file:UserWarning:PIL")
@pytest.mark.parametrize("target", CHECKS)
def test_every_promise_holds_for_the_seeds(target: str) -> None:
    check = CHECKS[target]()
    seeds = make_seeds(target)
    assert len(seeds) >= 4
    for seed in seeds:
        check(seed)


@pytest.mark.parametrize("target", CHECKS)
def test_every_promise_holds_for_what_a_fuzzer_makes_of_them(target: str, tmp_path: Path) -> None:
    runs = RUNS.get(target, MOST_RUNS)
    done = fuzz(target, write_corpus(target, tmp_path), f"-runs={runs}", "-max_total_time=60", "-timeout=20")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "INITED" in done.stderr
    assert "executions" in summary(done)
