"""How many processor cores this process may use, and how many streams its memory holds."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["affordable", "cores", "siblings"]

_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def cores() -> int:
    """Physical cores: hardware threads of one core share its arithmetic, and a container may own fewer.

    Example:
        >>> cores() >= 1
        True
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    physical = {siblings(cpu) for cpu in allowed}
    return max(min(len(physical), _quota()), 1)


def siblings(cpu: int) -> str:
    """A name of the physical core that a processor is a hardware thread of."""
    try:
        return Path(_TOPOLOGY.format(cpu)).read_text().strip()
    except OSError:  # no such account of the machine: every processor counts for itself
        return str(cpu)


def affordable(streams: int, parameters: int) -> int:
    """So many streams, or as many as fit half of the memory: each holds some four copies of the model.

    Example:
        >>> affordable(2, 1_000), affordable(64, 1 << 50)
        (2, 1)
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return streams
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(min(streams, memory // (2 * 4 * 4 * max(parameters, 1))), 1)


def _quota() -> int:
    """What a Linux control group allows, rounded up; many where there is no limit."""
    try:
        limit, period = _QUOTA.read_text().split()
        return math.ceil(int(limit) / int(period))
    except (OSError, ValueError):
        return 1 << 16
