"""Fuzzes the decoders with atheris, guided by coverage; one process a target.

  .venv/bin/python tests/hostile/fuzz/run.py --seconds 60                 all targets, a minute each
  .venv/bin/python tests/hostile/fuzz/run.py v2 image --seconds 600       only these
  .venv/bin/python tests/hostile/fuzz/run.py v2 --input FILE              what one input does

Corpora are kept under ~/.cache/torchmodel/fuzz (or --corpus) and begin with the seeds of seeds.py; an input that breaks a
promise of checks.py, takes longer than --limit-seconds or too much memory is kept beside them as crash-*, timeout-* or oom-*.
Ends with 1 when there was one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import resource
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))  # as pytest's `pythonpath`; this file is also the program of each fuzzing process

from hostile.fuzz.seeds import SEEDS, dictionary, make_seeds  # noqa: E402

CACHE = Path.home() / ".cache" / "torchmodel" / "fuzz"
RSS_LIMIT_MIB = 1024
"""Above the most this process ever took: a child begins with that as its own most (getrusage(2)), which libFuzzer reads."""
MAX_INPUT_BYTES = 8192
"""Of an input that the fuzzer makes; what larger ones do, the tables and the limits' own tests say."""

FUZZ_ONE = """
import sys
import atheris
sys.path.insert(0, sys.argv.pop(1))
with atheris.instrument_imports(include=["torchmodel_runtime", "python_multipart", "PIL"]):
    from hostile.fuzz.checks import CHECKS
import logging
logging.disable(logging.CRITICAL)
atheris.Setup([sys.argv[0], *sys.argv[2:]], CHECKS[sys.argv[1]]())
atheris.Fuzz()
"""


def main() -> int:
    """Fuzz the targets in turn; 1 when an input broke a promise."""
    options = _parse_options()
    if options.input:
        sys.path.insert(0, str(TESTS))
        from hostile.fuzz.checks import CHECKS

        CHECKS[options.targets[0]]()(options.input.read_bytes())
        print("every promise holds")
        return 0
    failed = []
    for target in options.targets:
        corpus = write_corpus(target, options.corpus)
        stop = [f"-max_total_time={options.seconds}"] if options.runs is None else [f"-runs={options.runs}"]
        done = fuzz(target, corpus, *stop, f"-timeout={options.limit_seconds}")
        print(f"{target:12} {summary(done)}", flush=True)
        if done.returncode:
            failed.append(target)
            print(done.stdout[-3000:])
    if failed:
        print(f"inputs that broke a promise are under {options.corpus}: {', '.join(failed)}")
    return 1 if failed else 0


def write_corpus(target: str, folder: Path) -> Path:
    """The folder of a target's corpus, with its seeds in it."""
    corpus = folder / target
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in make_seeds(target):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)  # as libFuzzer names them
    return corpus


def fuzz(target: str, corpus: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """One fuzzing process, until it has had its time or found something; what it found lies beside the corpus."""
    words = corpus.parent / "words"
    words.write_text(dictionary())
    command = [sys.executable, "-c", FUZZ_ONE, str(TESTS), target]
    limit_mib = RSS_LIMIT_MIB + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    fixed = ["-print_final_stats=1", f"-rss_limit_mb={limit_mib}", f"-max_len={MAX_INPUT_BYTES}", f"-dict={words}"]
    return subprocess.run(
        [*command, *fixed, *flags, f"-artifact_prefix={corpus.parent / target}-", corpus],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )


def summary(done: subprocess.CompletedProcess[str]) -> str:
    """What libFuzzer says in the end, in a line."""
    figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", done.stderr))
    coverage = re.findall(r"cov: (\d+)", done.stderr)
    runs = int(figures.get("number_of_executed_units", 0))
    verdict = "well" if done.returncode == 0 else f"FAILED with {done.returncode}"
    return (
        f"{verdict}: {runs:,} executions, {figures.get('average_exec_per_sec', '?')}/s, "
        f"{coverage[-1] if coverage else '?'} edges, {figures.get('new_units_added', '?')} inputs kept, "
        f"{figures.get('peak_rss_mb', '?')} MiB at most"
    )


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(SEEDS)}; default: all")
    parser.add_argument("--seconds", type=int, default=60, help="for each target; default: %(default)s")
    parser.add_argument("--runs", type=int, help="so many executions instead")
    parser.add_argument(
        "--limit-seconds", type=int, default=5, help="an input must not take longer; default: %(default)s"
    )
    parser.add_argument("--corpus", type=Path, default=CACHE, help="default: %(default)s")
    parser.add_argument("--input", type=Path, metavar="FILE", help="run the one target on this input, without fuzzing")
    options = parser.parse_args()
    if unknown := [target for target in options.targets if target not in SEEDS]:
        parser.error(f"got {', '.join(unknown)}, must be among {', '.join(SEEDS)}")
    options.targets = options.targets or list(SEEDS)
    return options


if __name__ == "__main__":
    sys.exit(main())
