"""Whose row each row is: client ids or offsets as a user gives them, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.entries import Ids
from sumfold.errors import DataError

Int64 = npt.NDArray[np.int64]


def grouped(client_ids: Any, rows: int) -> tuple[Ids, Int64]:
    """The sorted ids, and for every row the position of its client: int64[rows].

    Raises:
        DataError: not one str or int per row (SF-DATA-020).

    Example:
        >>> grouped(["b", "a", "b"], 3)
        (('a', 'b'), array([1, 0, 1]))
    """
    given = np.asarray(client_ids)
    if given.dtype.kind == "O":
        values = given.tolist()
        if values and all(isinstance(value, str) for value in values):
            given = np.array(values, dtype=str)
        elif values and all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values):
            given = np.array(values, dtype=np.int64)
    if given.shape != (rows,):
        raise DataError(
            "SF-DATA-020",
            f"client_ids of shape {given.shape} for {rows} rows",
            f"one id per row: shape ({rows},)",
            "pass the column that says whose row each row is",
        )
    if given.dtype.kind not in "iuUT" and rows:
        raise DataError(
            "SF-DATA-020",
            f"client ids of dtype {given.dtype}",
            "str or int for every row",
            "convert them with .astype(str), and drop the rows without an id",
        )
    unique, owner = np.unique(given, return_inverse=True)
    names = unique.tolist()
    numbered = unique.dtype.kind in "iu" and names == list(range(len(names)))
    return range(len(names)) if numbered else tuple(names), owner.astype(np.int64)


def checked_offsets(offsets: Any, rows: int) -> Int64:
    """Where each client begins, and the end: int64[K + 1].

    Raises:
        DataError: the offsets do not rise from 0 to `rows` (SF-DATA-021).

    Example:
        >>> checked_offsets([0, 2, 3], rows=3)
        array([0, 2, 3])
    """
    bounds = np.asarray(offsets)
    fits = bounds.ndim == 1 and bounds.size > 0 and bounds.dtype.kind in "iu"
    if fits:
        bounds = bounds.astype(np.int64)
        fits = bounds[0] == 0 and bounds[-1] == rows and not bool(np.any(np.diff(bounds) < 0))
    if not fits:
        shown = bounds.tolist() if bounds.size <= 6 else f"{bounds[:3].tolist()} … {bounds[-3:].tolist()}"
        raise DataError(
            "SF-DATA-021",
            f"offsets {shown} of dtype {bounds.dtype} for {rows} rows",
            f"integers that rise from 0 to {rows}, one more than there are clients",
            "use np.concatenate([[0], np.cumsum(sizes)])",
        )
    return bounds
