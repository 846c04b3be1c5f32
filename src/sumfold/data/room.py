"""How many rows a cohort's own copy of its data gets, so that the next cohort has the same shapes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["rows_for"]

_GENEROUS = 4
"""How many times the rows of a cohort may be reserved."""

_FEW = 16 << 20
"""Bytes of rows that may always be reserved."""


def rows_for(counts: NDArray[np.int64], clients: int, needed: int, width: int, known: int) -> int:
    """Rows to give a cohort: as many as any of its size may need, where that is not far too many.

    Args:
        counts: int64[K], of all clients.
        clients: of the cohort.
        needed: rows of this cohort.
        width: bytes of a row.
        known: what cohorts of this size have got so far.

    Example:
        >>> rows_for(np.array([1, 2, 3, 4]), 2, needed=3, width=4, known=0)
        7
    """
    if needed <= known:
        return known
    size = min(clients, len(counts))
    most = int(np.partition(counts, len(counts) - size)[len(counts) - size :].sum()) if size else 0
    if most <= _GENEROUS * needed or most * width <= _FEW:
        return most
    return max(1 << (needed - 1).bit_length(), 2 * known)
