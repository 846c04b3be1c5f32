"""The rows of one round's clients, where a federation's examples stay with the host.

Examples that do not fit on a device, or that lie in a large mapped file and would have to be copied, are not placed
there whole. Each round the rows of its cohort are copied together, in JAX's dtypes, and the round sees a small
federation that was `drawn_from` the large one, as it does where data lies in a database. The copy has room for the
largest clients, so that shapes repeat. Pages of a mapped file are given back once they were read: memory holds the
cohort's rows and not the file.
"""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold.aligned import aligned
from sumfold.core.cohort import Cohort
from sumfold.simulation.memory import mapped
from sumfold.tree import Leaf, Tree

__all__ = ["Drawn", "drawn", "row_bytes"]

_PIECE = 8 << 20
"""Bytes of rows that are copied at a time."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Drawn:
    """Some clients of a federation with their rows, one after the other; a `sumfold.core.cohort.ClientData`."""

    ids: Sequence[Any]
    examples: Tree
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    batch_sizes: Sequence[NDArray[np.int64]] | None
    order: None = None

    def take(self, position: int) -> Tree:
        """One client's own rows."""
        start = int(self.starts[position])
        rows = slice(start, start + int(self.counts[position]))
        return jax.tree.map(lambda leaf: leaf[rows], self.examples)


def drawn(cohort: Cohort, rows: int) -> Cohort:
    """The same clients with a copy of their own rows, and room for `rows` if they have fewer."""
    data, positions, _ = cohort
    counts = np.asarray(data.counts)[positions]
    starts = np.cumsum(counts) - counts
    number = int(counts.sum())
    taken: NDArray[np.int64] = np.arange(number, dtype=np.int64)
    taken += np.repeat(np.asarray(data.starts)[positions] - starts, counts)
    if data.order is not None:
        taken = np.asarray(data.order)[taken]
    examples = jax.tree.map(lambda leaf: _copied(leaf, taken, max(rows, number)), data.examples)
    sizes = None if data.batch_sizes is None else _Chosen(data.batch_sizes, positions)
    part = Drawn(_Chosen(data.ids, positions), examples, starts, counts, sizes)
    return Cohort(part, np.arange(len(positions), dtype=np.int64), (data, positions))


def row_bytes(examples: Tree) -> int:
    """Bytes of one row of all arrays, in JAX's dtypes."""
    leaves = jax.tree.leaves(examples)
    return sum(int(np.prod(leaf.shape[1:])) * jax.dtypes.canonicalize_dtype(leaf.dtype).itemsize for leaf in leaves)


def _copied(leaf: Any, taken: NDArray[np.int64], rows: int) -> Leaf:
    """These rows in memory that a CPU device uses without a copy; zeros behind them."""
    dtype: Any = jax.dtypes.canonicalize_dtype(leaf.dtype)
    copy = aligned((rows, *leaf.shape[1:]), dtype)
    step = max(_PIECE * len(copy) // max(copy.nbytes, 1), 1)
    file, whole = mapped(leaf)
    for first in range(0, len(taken), step):
        some = taken[first : first + step]
        copy[first : first + len(some)] = leaf[some]
        if file is not None and whole:  # a private map would lose its changes
            with contextlib.suppress(AttributeError, OSError, ValueError):  # where the system knows no such advice
                file.madvise(mmap.MADV_DONTNEED)
    return copy


class _Chosen(Sequence[Any]):
    """Some places of a sequence, looked up when asked for."""

    def __init__(self, whole: Sequence[Any], places: NDArray[np.int64]) -> None:
        self._whole, self._places = whole, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return tuple([self._whole[p] for p in self._places[at].tolist()])
        return self._whole[int(self._places[at])]
