"""Whose row each row is: client ids or offsets as a user gives them, checked; and ids found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.entries import ClientId, Ids
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
    no_truths(client_ids)
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


def no_truths(ids: Any) -> None:
    """Refuse True and False in a list of ids: NumPy reads them as 1 and 0 beside numbers.

    Raises:
        DataError: naming the first (SF-DATA-020).

    Example:
        >>> no_truths([0, 1])
    """
    truth = next((key for key in ids if isinstance(key, bool)), None) if isinstance(ids, list | tuple) else None
    if truth is not None:
        raise DataError(
            "SF-DATA-020", f"the client id {truth}", "str or int for every row", "number the clients, or name them"
        )


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


def distinct(ids: Ids) -> None:
    """Refuse two clients with one id.

    Raises:
        DataError: naming the id (SF-DATA-080).

    Example:
        >>> distinct(("a", "b"))
    """
    if isinstance(ids, tuple) and len(set(ids)) < len(ids):
        seen: set[ClientId] = set()
        twice = next(key for key in ids if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(
            "SF-DATA-080",
            f"two clients with the id {twice!r}",
            "an id of its own for every client",
            "rename one of them, or put their rows together",
        )


def places_in_range(own: range, ids: Any) -> Int64:
    """Where in a range of ids the ids asked for are: int64[len(ids)].

    Raises:
        DataError: an unknown id (SF-DATA-011).

    Example:
        >>> places_in_range(range(10, 20), [12, 10])
        array([2, 0])
    """
    if isinstance(ids, range):
        wanted = np.arange(ids.start, ids.stop, ids.step)
    elif hasattr(ids, "__array__"):
        wanted = np.asarray(ids)
    else:
        listed = list(ids)
        if any(isinstance(key, bool) for key in listed):  # among numbers NumPy would read it as one
            raise unknown_id(next(key for key in listed if isinstance(key, bool)), own)
        wanted = np.asarray(listed)
    if wanted.size == 0:
        return np.zeros(0, np.int64)
    if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
        raise unknown_id(
            next((k for k in wanted.tolist() if not isinstance(k, int) or isinstance(k, bool)), wanted), own
        )
    distance = wanted.astype(np.int64) - own.start
    found, off = distance // own.step, distance % own.step
    wrong = (off != 0) | (found < 0) | (found >= len(own))
    if wrong.any():
        raise unknown_id(int(wanted[wrong][0]), own)
    return found


def unknown_id(key: object, ids: Ids) -> DataError:
    """The error for an id that no client has."""
    known = ", ".join(map(repr, ids[:5])) + (", …" if len(ids) > 5 else "")
    do = "look at fed.ids"
    if isinstance(key, bool | np.bool_):
        do = "ids are str or int; for a mask pass [id for id, there in zip(fed.ids, mask) if there]"
    return DataError("SF-DATA-011", f"no client {key!r}", f"one of the {len(ids)} ids ({known})", do)
