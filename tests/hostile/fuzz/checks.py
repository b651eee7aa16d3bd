"""The fuzzer's targets: each takes bytes and raises when a promise does not hold. `run` fuzzes them, test_fuzz.py has the seeds.

An input is mostly a message: header fields, an empty line, the body, so that a fuzzer can change either, and a person can read
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hostile.fuzz import bodies, media

Check = Callable[[bytes], None]


def _make(check: Check) -> Callable[[], Check]:
    return lambda: check


CHECKS: Mapping[str, Callable[[], Check]] = {
    "v2": _make(bodies.check_v2),
    "v1": _make(bodies.check_v1),
    "torchserve": _make(bodies.check_torchserve),
    "npy": _make(bodies.check_npy),
    "safetensors": _make(bodies.check_safetensors),
    "inflate": _make(bodies.check_inflate),
    "accept": _make(bodies.check_accept),
    "deadlines": _make(bodies.check_deadlines),
    "tracecontext": _make(bodies.check_tracecontext),
    "grpc": _make(bodies.check_grpc),
    "protowire": _make(bodies.check_protowire),
    "image": _make(media.check_image),
    "audio": _make(media.check_audio),
    "resample": _make(media.check_resample),
    "text": media.make_text_check,
}
"""By target; called once, in the process that fuzzes it."""
