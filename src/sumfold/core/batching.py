"""How a client's examples become batches: part of the algorithm, planned on the host in NumPy.

A plan is a matrix of row numbers, one batch a row, -1 where a batch is short. The simulator plans a whole
cohort in one call, a client in a deployment plans itself; both call `plan`, so both see the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sumfold import keys
from sumfold.errors import CompositionError, user_facing

__all__ = ["Batching", "Plan"]


class Plan(NamedTuple):
    """The batches of some clients, one after the other.

    Attributes:
        rows: int64[T, B], the row of every place in every batch, -1 for padding (always at the end).
        start: int64[K], the first batch of each client.
        steps: int64[K], how many batches each client takes.
    """

    rows: NDArray[np.int64]
    start: NDArray[np.int64]
    steps: NDArray[np.int64]


class _Batching(NamedTuple):
    size: int | None = 32
    epochs: int = 1
    shuffle: bool = True
    max_steps: int | None = None
    drop_remainder: bool = False


class Batching(_Batching):
    """Batch size, local epochs, order and length of a client's work.

    Args:
        size: rows a batch; None is one full batch, padded to the next power of two and masked.
        epochs: passes over the client's rows.
        shuffle: draw a new order each epoch, from (seed, round, client, epoch) alone.
        max_steps: bound of the whole local run, over all epochs.
        drop_remainder: leave out a last short batch; a client with fewer rows takes no step.

    Raises:
        CompositionError: for a size, epochs or max_steps below one.

    Example:
        >>> Batching(size=2, epochs=1, shuffle=False).batches(3)
        array([[ 0,  1],
               [ 2, -1]])
    """

    __slots__ = ()

    @user_facing
    def __new__(
        cls,
        size: Any = 32,
        epochs: Any = 1,
        shuffle: bool = True,
        max_steps: Any = None,
        drop_remainder: bool = False,
    ) -> Batching:
        """Check the numbers; see the class."""
        for field, value in (("size", size), ("epochs", epochs), ("max_steps", max_steps)):
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
            if not whole and (value is not None or field == "epochs"):
                raise CompositionError(
                    "SF-COMP-001",
                    f"Batching({field}={value!r})",
                    f"{field} as a whole number of at least 1" + ("" if field == "epochs" else ", or None"),
                    "a full batch is size=None; to train nothing, leave the client out",
                )
        size, max_steps = (None if value is None else int(value) for value in (size, max_steps))
        return super().__new__(cls, size, int(epochs), bool(shuffle), max_steps, bool(drop_remainder))

    def width(self, rows: int) -> int:
        """Places in a batch of a client with so many rows: the size, or the next power of two."""
        return self.size or 1 << max(int(rows) - 1, 0).bit_length()

    def steps(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Batches that clients with these row counts take, int64[K]."""
        if self.size is None:
            per_epoch = (counts > 0).astype(np.int64)
        else:
            per_epoch = (counts if self.drop_remainder else counts + self.size - 1) // self.size
        total = per_epoch * self.epochs
        return total if self.max_steps is None else np.minimum(total, self.max_steps)

    def batches(self, rows: int, *, seed: int = 0, round: int = 0, client: int | str = 0) -> NDArray[np.int64]:
        """The batches of one client as row numbers, int64[steps, size], -1 for padding.

        Args:
            rows: how many rows the client holds.
            seed: the run's seed, as given to ``initialize``.
            round: the round, from 0.
            client: the client's id.
        """
        one = np.array([rows], np.int64)
        return plan(one, keys.codes([client]), self, keys.root(seed), round).rows


def plan(
    counts: NDArray[np.int64],
    codes: NDArray[np.uint32],
    batching: Batching,
    seed: NDArray[np.uint32],
    round: int,
) -> Plan:
    """The batches of clients that share a width, in rows counted from each client's own first.

    No Python loop over clients: every (client, epoch) is a segment, the rows of all segments are sorted at
    once by (segment, hash), and their places in the segment say which batch they belong to.
    """
    width = batching.width(int(counts.max(initial=0)))
    steps = batching.steps(counts)
    start = np.cumsum(steps) - steps
    index = np.full((int(steps.sum()), width), -1, np.int64)
    per_epoch = np.maximum(batching._replace(epochs=1, max_steps=None).steps(counts), 1)
    epochs = np.minimum(-(-steps // per_epoch), batching.epochs)  # epochs begun before max_steps

    client = np.repeat(np.arange(len(counts)), epochs)  # one entry a segment
    epoch = np.arange(len(client)) - np.repeat(np.cumsum(epochs) - epochs, epochs)
    lengths = counts[client]
    segment = np.repeat(np.arange(len(client)), lengths)  # one entry a row
    place = np.arange(len(segment)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    row = place
    if batching.shuffle:
        drawn = keys.mix(seed[0], seed[1], round, codes[client], epoch)[segment]
        drawn = keys.mix(drawn, place)
        row = place[np.lexsort((drawn, segment))]
    step = epoch[segment] * per_epoch[client[segment]] + place // width
    taken = (step < steps[client[segment]]) & (place // width < per_epoch[client[segment]])
    index[(start[client[segment]] + step)[taken], (place % width)[taken]] = row[taken]
    return Plan(index, start, steps)


def plan_ready(batch_sizes: Sequence[NDArray[np.int64]], width: int) -> Plan:
    """The plan of ready-made batches: used as they are, in order, in one pass."""
    steps = np.array([len(sizes) for sizes in batch_sizes], np.int64)
    index = np.full((int(steps.sum()), width), -1, np.int64)
    t = 0
    for sizes in batch_sizes:
        first = np.cumsum(sizes) - sizes
        for begin, length in zip(first, sizes, strict=True):
            index[t, :length] = np.arange(begin, begin + length)
            t += 1
    return Plan(index, np.cumsum(steps) - steps, steps)
