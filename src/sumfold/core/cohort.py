"""The clients of a round and their data, as runtimes see them; and the shapes of the batches that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch
from sumfold.tree import Tree

__all__ = ["ClientData", "Cohort", "batch_shapes", "cohort_widths", "room", "widths"]


@runtime_checkable
class ClientData(Protocol):
    """What a runtime needs to know of a federation; `sumfold.data.Federation` is one."""

    @property
    def ids(self) -> Sequence[Any]:
        """The clients' ids."""

    @property
    def examples(self) -> Tree:
        """All rows of all clients: a tree of arrays with one leading axis; None when there are none."""

    @property
    def starts(self) -> NDArray[np.int64]:
        """int64[K], where each client's rows begin."""

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64[K], how many rows each client holds."""

    @property
    def order(self) -> NDArray[np.int64] | None:
        """Row numbers that `starts` point into, or None when they point into the rows themselves."""

    @property
    def batch_sizes(self) -> Sequence[NDArray[np.int64]] | None:
        """For ready-made batches, each client's batch lengths; None for examples."""

    def take(self, position: int) -> Tree:
        """One client's own rows."""


class Cohort(NamedTuple):
    """The clients of one round.

    Attributes:
        data: a federation in memory.
        positions: int64[K], the clients in it.
        drawn_from: where `data` was read for this round alone, the federation that it was read from and the clients'
            positions there; its sizes say what later cohorts may need. None where cohorts share `data`.
    """

    data: ClientData
    positions: NDArray[np.int64]
    drawn_from: tuple[ClientData, NDArray[np.int64]] | None = None

    def client(self, place: int) -> Any:
        """The id of the client at one place of the cohort."""
        return self.data.ids[int(self.positions[place])]


def room(needed: int) -> int:
    """`needed` rounded up to one of four sizes an octave (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …).

    Shapes are rounded so that other data soon meets a program that is compiled already.

    Example:
        >>> [room(n) for n in (0, 1, 9, 100)]
        [1, 1, 10, 112]
    """
    needed = max(needed, 1)
    unit = 1 << max(needed.bit_length() - 3, 0)
    return -(-needed // unit) * unit


_FEWEST = 8
"""Places that a batch has at least, if its size is not smaller: a model that squeezes single rows keeps its axes."""


def widths(data: ClientData, batching: Batching) -> NDArray[np.int64]:
    """Places in each client's batches, int64[K].

    The batching's size, or where every client has fewer rows the power of two that holds them, down to eight; for full
    batches, the power of two that holds the client's rows; for ready-made batches, the longest of all clients.
    """
    if data.batch_sizes is not None:
        longest = max((int(sizes.max(initial=1)) for sizes in data.batch_sizes), default=1)
        return np.full(len(data.counts), longest, np.int64)
    if batching.size is not None:
        longest = int(np.max(data.counts, initial=1))
        whole = batching._replace(size=None).width(longest)
        return np.full(len(data.counts), min(batching.size, max(whole, _FEWEST)), np.int64)
    counts, which = np.unique(data.counts, return_inverse=True)
    return np.array([batching.width(int(n)) for n in counts], np.int64)[which]


def cohort_widths(cohort: Cohort, batching: Batching) -> NDArray[np.int64]:
    """`widths` by position in the cohort's data; those of the federation that it was drawn from, where it was."""
    if cohort.drawn_from is None:
        return widths(cohort.data, batching)
    whole, among = cohort.drawn_from
    found = np.ones(len(cohort.data.counts), np.int64)
    found[cohort.positions] = widths(whole, batching)[among]
    return found


def batch_shapes(data: ClientData, width: int) -> Batch | None:
    """The shapes of a batch of so many places, as a client's step sees it; None when no client has a row."""
    if not int(np.sum(data.counts)):
        return None
    examples = jax.tree.map(
        lambda a: tree.shape((width, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), data.examples
    )
    return Batch(examples, tree.shape((width,), bool))
