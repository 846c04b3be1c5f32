"""The arguments of a call as the rows that runtimes know, and as the columns of direct evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sumfold.language.arguments import Run
from sumfold.tree import Tree

__all__ = ["Held", "held"]


@dataclass(frozen=True, eq=False)
class Held:
    """What clients hold, as `sumfold.core.cohort.ClientData`.

    Every client has one row at least. The leaves are, in order: each argument that is no sequence, in the client's
    first row; of each sequence the element's leaves, its kind when there are several, and, unless all rows are
    taken, whether this row has an element.

    Attributes:
        ids: the clients' ids.
        examples: the leaves, each [N, …].
        starts, counts: int64[K], each client's rows.
        dense: whether every row holds an element of every sequence.
    """

    ids: Sequence[Any]
    examples: Tree
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    dense: bool
    order: None = None
    batch_sizes: None = None

    def take(self, position: int) -> Tree:
        """One client's own rows."""
        first = int(self.starts[position])
        return [a[first : first + int(self.counts[position])] for a in self.examples]


def held(ids: Sequence[Any], single: list[NDArray[Any]], sequences: list[Run]) -> Held:
    """The rows of clients.

    Args:
        ids: of the K clients.
        single: arrays [K, …].
        sequences: runs with K counts.
    """
    number = len(ids)
    counts = np.ones(number, np.int64)
    for run in sequences:
        counts = np.maximum(counts, run.counts)
    starts = np.cumsum(counts) - counts
    total = int(counts.sum())
    dense = bool(sequences) and all(np.array_equal(run.counts, counts) for run in sequences)
    leaves = []
    for column in single:
        if total == number:
            leaves.append(column)
            continue
        spread = np.zeros((total, *column.shape[1:]), column.dtype)
        spread[starts] = column
        leaves.append(spread)
    for run in sequences:
        own = [*run.arrays, *([] if run.kind is None else [run.kind])]
        if dense:
            leaves += own
            continue
        first = np.cumsum(run.counts) - run.counts
        at = np.repeat(starts - first, run.counts) + np.arange(int(run.counts.sum()))
        for array in own:
            spread = np.zeros((total, *array.shape[1:]), array.dtype)
            spread[at] = array
            leaves.append(spread)
        present = np.zeros(total, bool)
        present[at] = True
        leaves.append(present)
    return Held(ids, leaves, starts, counts, dense)
