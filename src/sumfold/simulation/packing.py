"""Which stream, or which lane, a client runs in: longest processing time first.

The cost of a client is its number of steps plus one for its beginning and end, never a measured time: packing fixes
the order of floating-point sums, and a run that is resumed must pack as the one that was interrupted.

Graham 1969, *Bounds on multiprocessing timing anomalies*: giving each job, longest first, to the bin with the least
load ends within 4/3 of the shortest possible time. The few longest are given so one by one; the many short ones that
remain fill the bins up to one level, each bin a run of the sorted order, without a loop over clients.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

__all__ = ["cut", "spread"]

_ONE_BY_ONE = 256
"""Clients that are packed one by one; they carry what imbalance there is, and cost about a microsecond each."""


def spread(cost: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """The bin of each job, int64[K], 0 … bins-1; a function of the costs and their order alone.

    Args:
        cost: int64[K], at least 1 each.
        bins: how many there are.

    Example:
        >>> spread(np.array([1, 5, 2, 2]), 2)
        array([1, 0, 1, 1])
    """
    if bins == 1 or not len(cost):
        return np.zeros(len(cost), np.int64)
    chosen = np.empty(len(cost), np.int64)
    if cost.min() == cost.max():
        return np.arange(len(cost)) % bins
    order = np.argsort(-cost, kind="stable")
    long, short = order[:_ONE_BY_ONE], order[_ONE_BY_ONE:]
    loads = [(0, b) for b in range(bins)]
    for job, size in zip(long.tolist(), cost[long].tolist(), strict=True):
        least, emptiest = loads[0]
        chosen[job] = emptiest
        heapq.heapreplace(loads, (least + size, emptiest))
    if len(short):
        load = np.array([full for full, _ in sorted(loads, key=lambda pair: pair[1])])
        ends = np.cumsum(cost[short])
        room = _level(load, int(ends[-1])) - load
        middles = ends - cost[short] / 2
        chosen[short] = np.minimum(np.searchsorted(np.cumsum(np.maximum(room, 0)), middles), bins - 1)
    return chosen


def cut(cost: NDArray[np.int64], bins: int) -> NDArray[np.int64]:
    """The bin of each job where jobs must stay in their order: as even as one pass can make it.

    Example:
        >>> cut(np.array([1, 1, 1, 3]), 2)
        array([0, 0, 0, 1])
    """
    if not len(cost):
        return np.zeros(0, np.int64)
    ends = np.cumsum(cost)
    chosen: NDArray[np.int64] = ((2 * ends - cost) * bins) // (2 * int(ends[-1]))
    return np.minimum(chosen, bins - 1)


def _level(load: NDArray[np.int64], more: int) -> float:
    """The common level to which `more` fills bins that are loaded so."""
    low_first = np.sort(load)
    for bins in range(len(load), 0, -1):
        level = (float(low_first[:bins].sum()) + more) / bins
        if level >= low_first[bins - 1]:
            return level
    return level
