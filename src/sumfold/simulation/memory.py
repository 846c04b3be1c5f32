"""What a device has room for: bytes that are free, bytes that a placed array takes, and lanes that fit.

The model of memory is simple, and on purpose on the safe side. Data may take three quarters of what is free, since
weights, sums and a step's own arrays need the rest. A lane takes its carry twice, as it is before and after a step,
and a gradient as large as the message; lanes may take half of what is free, since what a step computes in between
grows with them too and is not counted.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sumfold.simulation.borrowed import copied

__all__ = ["for_data", "for_lanes", "for_stacks", "free", "lanes_within", "mapped", "told", "wanted"]

_GROUPS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where a Linux control group says what it allows and uses, in its second and its first version."""


def free(device: Any) -> int | None:
    """Bytes that a device has left; of a CPU, what the system and the control group have left. None where unknown."""
    stats = device.memory_stats()
    if stats and stats.get("bytes_limit"):
        return max(int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0)), 0)
    if device.platform != "cpu":
        return None
    found = [left for left in (_system(), *(_group(*files) for files in _GROUPS)) if left is not None]
    return min(found, default=None)


def for_data(free: int | None) -> int | None:
    """What the examples of a federation may take."""
    return None if free is None else free * 3 // 4


def for_lanes(free: int | None) -> int | None:
    """What the lanes of all streams of a device may take."""
    return None if free is None else free // 2


def for_stacks(free: int | None) -> int | None:
    """What the stacks of a round may take; their rule needs memory beside them."""
    return None if free is None else free * 3 // 4


def lanes_within(lanes: int, bytes_each: int, budget: int | None) -> int:
    """So many lanes, or halved until they fit; 0 where two do not.

    Args:
        lanes: wanted.
        bytes_each: of one lane, over all streams of the device.
        budget: bytes for all of them; None where it is unknown.

    Example:
        >>> lanes_within(32, 10, None), lanes_within(32, 10, 100), lanes_within(32, 10, 19)
        (32, 8, 0)
    """
    if budget is None or lanes <= 1:
        return lanes
    while lanes > 1 and lanes * bytes_each > budget:
        lanes //= 2
    return lanes if lanes > 1 else 0


def wanted(leaves: Sequence[Any], platform: str) -> int:
    """Bytes that arrays take beside what they take already, once they are placed.

    A CPU uses an array of the host as it lies there, if it is of a dtype that JAX keeps.

    Example:
        >>> wanted([np.zeros(100, np.float64)], "cpu"), wanted([np.zeros(100, np.float32)], "gpu")
        (400, 400)
    """
    total = 0
    for leaf in leaves:
        dtype: Any = jax.dtypes.canonicalize_dtype(leaf.dtype)
        if platform != "cpu" or not isinstance(leaf, np.ndarray) or leaf.dtype != dtype or copied(leaf):
            total += int(np.prod(leaf.shape)) * dtype.itemsize
    return total


def mapped(leaf: Any) -> tuple[mmap.mmap | None, bool]:
    """The map of a file that an array looks into, if it does, and whether all that it holds is in the file."""
    mode = None
    while leaf is not None and not isinstance(leaf, mmap.mmap):
        mode = getattr(leaf, "mode", mode)
        leaf = getattr(leaf, "base", None)
    return leaf, mode in {"r", "r+", "w+"}


def told(count: int) -> str:
    """Bytes for people.

    Example:
        >>> told(900), told(3 << 20), told(5 << 30)
        ('900 bytes', '3 MiB', '5.0 GiB')
    """
    if count < 1 << 20:
        return f"{count:,} bytes"
    return f"{count >> 20} MiB" if count < 1 << 30 else f"{count / (1 << 30):.1f} GiB"


def _system() -> int | None:
    """Bytes that programs may still take without swapping."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    if hasattr(os, "sysconf") and "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _group(folder: str, limit: str, used: str) -> int | None:
    """Bytes that a control group leaves; None where it sets no limit. Files that it keeps in memory can go."""
    try:
        told = [line.split() for line in Path(folder, "memory.stat").read_text().splitlines()]
        cached = sum(int(value) for name, value in told if name in {"inactive_file", "active_file"})
        return max(int(Path(folder, limit).read_text()) - int(Path(folder, used).read_text()) + cached, 0)
    except (OSError, ValueError):  # no such group, or "max"
        return None
