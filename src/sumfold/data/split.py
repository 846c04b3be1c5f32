"""Which rows of each client go to the first part of a split, for all clients at once.

A generator per client would cost seconds for a million clients. Instead each row draws a number that is a
hash of (seed, client, position), as `sumfold.keys.mix` makes it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold import keys
from sumfold.data.entries import Ids

Int64 = npt.NDArray[np.int64]


def in_first_part(
    ids: Ids, counts: Int64, fraction: float, seed: int, labels: npt.NDArray[Any] | None = None
) -> npt.NDArray[np.bool_]:
    """Which rows go to the first part: bool[M] for the rows of all clients, client after client.

    A client of n rows gives ``round(fraction * n)`` of them, at least 1 and at most n − 1; a single row goes
    to the first part.

    Args:
        ids: the clients' ids; a row's draw depends on its client's id and not on the other clients.
        counts: int64[K], how many rows each client has; they sum to M.
        fraction: between 0 and 1.
        seed: an int.
        labels: [M]; given, every label of a client is shared out in proportion, to within one row.

    Example:
        >>> in_first_part(range(1), np.array([4]), 0.5, 0, np.array([0, 0, 1, 1])).reshape(2, 2).sum(axis=1)
        array([1, 1])
    """
    client = np.repeat(np.arange(len(counts)), counts)
    rank = np.arange(len(client)) - (np.cumsum(counts) - counts)[client]
    lottery = keys.mix(int(seed) % 2**64, keys.codes(ids)[client], rank)
    drawn = np.lexsort((lottery, *(() if labels is None else _rarest_first(labels, client)), client))
    quota = np.clip(np.rint(fraction * counts).astype(np.int64), 1, np.maximum(counts - 1, 1))[client]
    # Systematic sampling: of a client's rows in drawn order, those where the running quota passes a whole
    # number and a half. Every run of rows, so every label, gets its share to within one.
    size = counts[client]
    first = np.empty(len(client), bool)
    half = size // 2
    first[drawn] = ((rank + 1) * quota + half) // size > (rank * quota + half) // size
    return first


def _rarest_first(labels: npt.NDArray[Any], client: Int64) -> tuple[Int64, Int64]:
    """Sort keys per row, the stronger one last: its label, and how often its client has that label."""
    classes, label = np.unique(labels, return_inverse=True)
    _, group, times = np.unique(client * len(classes) + label, return_inverse=True, return_counts=True)
    return label.astype(np.int64), times[group].astype(np.int64)
