"""Facts about the machine and the checkout that belong beside every figure."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cores() -> int:
    """Cores this process, and so every server, may use; `taskset` limits them."""
    return len(os.sched_getaffinity(0))


def busy_s() -> float:
    """CPU time since boot that somebody used, the host's share (steal) included: proc_stat(5), without idle and iowait."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, str]:
    """Processor, cores, memory, load before the run, kernel, Python and the commit."""
    model = re.search(r"^(?:model name|Hardware)\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_kib = re.search(r"^MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text())
    return {
        "processor": model.group(1) if model else platform.machine(),
        "cores": f"{cores()} of {os.cpu_count()}",
        "memory": f"{int(memory_kib.group(1)) / 2**20:.0f} GiB" if memory_kib else "unknown",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {platform.release().split('-')[0]}",
        "commit": _commit(),
    }


def _commit() -> str:
    """Short hash, and whether the runtime's files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", HERE.parent, *arguments], capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "runtime", "bench", "constraints.txt")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (", with uncommitted changes" if changed else "")
