"""A constant probe: asks one URL at a steady rate until it is told to stop, and counts every answer that is not the right one.

Run inside the cluster's network: `python tests/testkit/prober.py --url URL --body FILE --out FILE [--rate 50] [--seconds 120]`.
SIGTERM ends it early; the result is one JSON object in --out. Bounded by --seconds and by the rate, so it always ends.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from pathlib import Path

import aiohttp


async def ask(
    session: aiohttp.ClientSession, url: str, body: bytes, expected: list[float], failures: list[str]
) -> float:
    """Send one request; a wrong status, a wrong answer or a broken connection becomes a line in failures."""
    started = time.monotonic()
    try:
        async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
            answer = await response.json()
            if response.status != 200:
                failures.append(f"{response.status}: {answer}")
            elif not expected:
                expected.extend(answer["outputs"][0]["data"])
            elif max(abs(a - b) for a, b in zip(expected, answer["outputs"][0]["data"], strict=True)) > 1e-5:
                failures.append(f"wrong answer: {answer}")
    except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
        failures.append(f"{time.strftime('%X')} {type(error).__name__}: {error}")
    return time.monotonic() - started


async def probe(url: str, body: bytes, rate: float, seconds: float) -> dict[str, object]:
    """Ask for `seconds` at `rate` a second, open loop: a slow answer does not slow the questions."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    failures: list[str] = []
    expected: list[float] = []
    tasks: list[asyncio.Task[float]] = []
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        started = time.monotonic()
        while not stop.is_set() and time.monotonic() - started < seconds:
            tasks.append(asyncio.create_task(ask(session, url, body, expected, failures)))
            due = started + len(tasks) / rate
            try:
                await asyncio.wait_for(stop.wait(), max(0.0, due - time.monotonic()))
            except asyncio.TimeoutError:
                continue
        waits = sorted(await asyncio.gather(*tasks))
    return {
        "requests": len(waits),
        "failed": len(failures),
        "failures": failures[:20],
        "p50_ms": round(waits[len(waits) // 2] * 1000, 2) if waits else None,
        "p99_ms": round(waits[int(len(waits) * 0.99)] * 1000, 2) if waits else None,
    }


def main() -> None:
    """Parse the command line, probe, write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--body", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    result = asyncio.run(probe(options.url, options.body.read_bytes(), options.rate, options.seconds))
    unfinished = options.out.with_suffix(".part")
    unfinished.write_text(json.dumps(result))
    unfinished.rename(options.out)


if __name__ == "__main__":
    main()
