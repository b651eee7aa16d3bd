"""What the container leaves this process: CPUs of its quota, and memory below its limit.

OpenMP, OpenBLAS and torch look at the machine's cores and ignore the CFS quota, and threads over the quota are throttled
together: 8 threads on a 4-CPU quota cost one engine 45x (ollama#17916). Called once by `__main__`, before torch is imported.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
MEMINFO = Path("/proc/meminfo")


def read_cpu_quota(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUP) -> float | None:
    """CPUs that the tightest cgroup above this process may use; None without a limit.

    cgroup v2 `cpu.max` holds `<quota|max> <period>`; v1 has `cpu.cfs_quota_us` (-1: none) and `cpu.cfs_period_us`
    (kernel docs: admin-guide/cgroup-v2.rst, scheduler/sched-bwc.rst).
    """
    v2_path, v1_path = _own_paths(own)
    quotas = [_quota_v2(folder) for folder in _upwards(root, v2_path)]
    for controller in ("cpu", "cpu,cpuacct"):
        quotas += [_quota_v1(folder) for folder in _upwards(root / controller, v1_path)]
    known = [quota for quota in quotas if quota is not None]
    return min(known) if known else None


def whole_cpus(quota: float | None, cpus: int) -> int:
    """CPUs that may be kept busy: the quota rounded down (vllm#34462), at least 1."""
    return max(1, math.floor(min(quota, cpus) if quota is not None else cpus))


def read_memory_room(root: Path = CGROUP_ROOT, own: Path = OWN_CGROUP, meminfo: Path = MEMINFO) -> int:
    """Bytes that may still be allocated: below the tightest cgroup limit (v2 `memory.max` less `memory.current`, without the
    files' pages in it that the kernel takes back first, such as a checkpoint's), at most what the machine has available."""
    v2_path, _ = _own_paths(own)
    rooms = [_memory_room(folder) for folder in _upwards(root, v2_path)]
    available = re.search(r"^MemAvailable:\s+(\d+) kB", _read(meminfo), re.MULTILINE)
    rooms.append(int(available[1]) * 1024 if available else None)
    return max(0, min((room for room in rooms if room is not None), default=0))


def read_resident_bytes() -> int:
    """What this process holds in memory now (VmRSS)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _memory_room(folder: Path) -> int | None:
    limit, used = _read(folder / "memory.max").strip(), _read(folder / "memory.current").strip()
    if not (limit.isdigit() and used.isdigit()):
        return None
    idle = re.search(r"^inactive_file (\d+)", _read(folder / "memory.stat"), re.MULTILINE)
    return int(limit) - int(used) + (int(idle[1]) if idle else 0)


def _own_paths(own: Path) -> tuple[str, str]:
    """This process's cgroup below the v2 root and below the v1 cpu controller."""
    v2_path = v1_path = "/"
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            v2_path = path
        elif "cpu" in controllers.split(","):
            v1_path = path
    return v2_path, v1_path


def _upwards(root: Path, path: str) -> list[Path]:
    """The cgroup's folder and all above it up to root; a container often sees its own cgroup as the root."""
    folder = root.joinpath(*(part for part in path.split("/") if part not in ("", "..")))
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(root))]


def _quota_v2(folder: Path) -> float | None:
    fields = _read(folder / "cpu.max").split()
    if len(fields) != 2 or fields[0] == "max":
        return None
    return _ratio(fields[0], fields[1])


def _quota_v1(folder: Path) -> float | None:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _ratio(quota: str, period: str) -> float | None:
    """quota / period where both are positive numbers; the kernel writes -1 for no quota."""
    try:
        quota_us, period_us = int(quota), int(period)
    except ValueError:
        return None
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
