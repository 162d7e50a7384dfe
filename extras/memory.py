"""How much memory the replay buffer may take.

Not a script. See it at work: python train.py --map 27m_vs_30m
"""

import os

SHARE = 0.75  # of the free memory may be replay; learner and everything else need some too


def memory_for_replay() -> float:
    """Bytes."""
    return SHARE * available_memory()


def available_memory() -> float:
    """Bytes that can still be used; all of the machine's where only that is known; or infinity."""
    try:
        with open("/proc/meminfo") as lines:  # Linux
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS
    except (AttributeError, ValueError, OSError):
        return float("inf")
