"""What this process may use of the machine: cores and memory, a container's limits included."""

import math
import os
from pathlib import Path


def read_numbers(path: str) -> list[float]:
    """The numbers in a file of the system; infinity where it says "max"; [] without the file."""
    try:
        words = Path(path).read_text().split()
        return [math.inf if word == "max" else float(word) for word in words]
    except (OSError, ValueError):
        return []


def cores() -> int:
    """The least of OMP_NUM_THREADS, the cores of the affinity mask and a container's CPU quota."""
    here = hasattr(os, "sched_getaffinity")
    counts = [len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1]
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal():
        counts.append(int(given))
    quota = read_numbers("/sys/fs/cgroup/cpu.max")  # control groups, version 2: quota and period
    if not quota:  # version 1 has them in two files
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        quota = [n for name in names for n in read_numbers(f"/sys/fs/cgroup/cpu/{name}")]
    if len(quota) == 2 and 0 < quota[0] < math.inf and quota[1] > 0:
        counts.append(math.ceil(quota[0] / quota[1]))
    return max(1, min(counts))


def available_memory() -> float:
    """Bytes that can still be used; all of the machine's where only that is known; or infinity."""
    left = [math.inf, container_memory()]
    try:
        rows = Path("/proc/meminfo").read_text().splitlines()  # Linux
        left += [int(row.split()[1]) * 1024 for row in rows if row.startswith("MemAvailable")]
    except OSError:
        if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):  # macOS
            left.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(0.0, min(left))


def container_memory() -> float:
    """Bytes left below a container's limit, in either version of control groups, or infinity."""
    for start, limit, used in (
        ("/sys/fs/cgroup/memory.", "max", "current"),
        ("/sys/fs/cgroup/memory/memory.", "limit_in_bytes", "usage_in_bytes"),
    ):
        numbers = read_numbers(start + limit) + read_numbers(start + used)
        if len(numbers) == 2:
            try:  # files that were read are counted as used, though they make room when asked
                rows = Path(start + "stat").read_text().splitlines()
                files = [int(row.split()[1]) for row in rows if row.startswith("inactive_file")]
            except (OSError, ValueError, IndexError):
                files = []
            return numbers[0] - numbers[1] + sum(files)
    return math.inf
