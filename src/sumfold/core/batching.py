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
        rows: int64[R], rows in the order in which they are taken, each counted from its client's first.
        begin, size: int64[T], where in `rows` each batch begins and how many it takes.
        start, steps: int64[K], the first batch of each client, and how many it takes.
        drawn: int64[K], how many entries of `rows` are each client's.
    """

    rows: NDArray[np.int64]
    begin: NDArray[np.int64]
    size: NDArray[np.int64]
    start: NDArray[np.int64]
    steps: NDArray[np.int64]
    drawn: NDArray[np.int64]

    def batches(self, width: int) -> NDArray[np.int64]:
        """The row of every place in every batch, int64[T, width], -1 for padding, which stands at the end."""
        place = np.arange(width)
        padded = np.concatenate([self.rows, np.full(width, -1)])
        return np.where(place < self.size[:, None], padded[self.begin[:, None] + place], -1)

    def part(self, first: int, end: int) -> Plan:
        """The plan of some neighbouring clients, from number `first` to before `end`."""
        batches = slice(*(int(self.steps[:k].sum()) for k in (first, end)))
        rows = slice(*(int(self.drawn[:k].sum()) for k in (first, end)))
        return Plan(
            self.rows[rows],
            self.begin[batches] - rows.start,
            self.size[batches],
            self.start[first:end] - batches.start,
            self.steps[first:end],
            self.drawn[first:end],
        )


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
        return plan(one, keys.codes([client]), self, keys.root(seed), round).batches(self.width(rows))


def plan(
    counts: NDArray[np.int64],
    codes: NDArray[np.uint32],
    batching: Batching,
    seed: NDArray[np.uint32],
    round: int,
) -> Plan:
    """The batches of clients that share a width.

    No Python loop over clients: every (client, epoch) is a segment of `rows`, in the order of a hash, and batch b of
    an epoch is the b-th slice of its segment. Without shuffling all epochs share one segment.
    """
    counts = np.asarray(counts, np.int64)
    width = batching.width(int(counts.max(initial=0)))
    steps = batching.steps(counts)
    start = np.cumsum(steps) - steps
    per_epoch = np.maximum(batching._replace(epochs=1, max_steps=None).steps(counts), 1)
    client = np.repeat(np.arange(len(counts)), steps)  # one entry a batch
    epoch, batch = np.divmod(np.arange(len(client)) - start[client], per_epoch[client])

    begun = -(-steps // per_epoch) if batching.shuffle else np.minimum(steps, 1)  # segments of each client
    first = np.cumsum(begun) - begun
    owner = np.repeat(np.arange(len(counts)), begun)  # one entry a segment
    number = np.arange(len(owner)) - first[owner]
    segment = first[client]
    if batching.shuffle:
        segment += epoch
        hashes = keys.mix(seed[0], seed[1], round, codes[owner], number)
        rows = _shuffled(counts[owner], hashes)
    else:
        rows = _within(counts[owner])
    lengths = np.minimum(counts[owner], np.minimum(steps[owner] - number * per_epoch[owner], per_epoch[owner]) * width)
    if lengths.sum() < len(rows):  # max_steps and drop_remainder leave the end of a segment out
        rows = rows[_within(counts[owner]) < np.repeat(lengths, counts[owner])]
    begin = (np.cumsum(lengths) - lengths)[segment] + batch * width
    size = np.minimum(counts[client] - batch * width, width)
    return Plan(rows, begin, size, start, steps, np.bincount(owner, lengths, len(counts)).astype(np.int64))


def _within(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0 … n-1 for each length, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


_HASH = 32
"""Bits of the hash that orders a segment's rows; rows whose hashes agree in them keep their order."""


def _shuffled(lengths: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The places 0 … n-1 of every segment in the order of their hashes.

    Segment, hash and place share a 64-bit word, so that one plain sort orders everything; as many segments at a time
    as there are bits for.
    """
    bits = int(lengths.max(initial=1)).bit_length()
    at_once = 1 << (64 - _HASH - bits)
    if len(lengths) > at_once:
        cuts = range(0, len(lengths), at_once)
        return np.concatenate([_shuffled(lengths[c : c + at_once], hashes[c : c + at_once]) for c in cuts])
    place = _within(lengths)
    words = keys.stir(np.repeat(keys.mix(hashes), lengths), place)
    words >>= np.uint64(64 - _HASH)
    words <<= np.uint64(bits)
    words |= place.view(np.uint64)
    words |= np.repeat(np.arange(len(lengths), dtype=np.uint64) << np.uint64(_HASH + bits), lengths)
    words.sort()
    words &= np.uint64((1 << bits) - 1)
    return words.view(np.int64)


def plan_ready(batch_sizes: Sequence[NDArray[np.int64]]) -> Plan:
    """The plan of ready-made batches: used as they are, in order, in one pass."""
    steps = np.array([len(sizes) for sizes in batch_sizes], np.int64)
    size = np.concatenate([np.zeros(0, np.int64), *batch_sizes])
    rows = np.concatenate([np.zeros(0, np.int64), *(np.arange(sizes.sum()) for sizes in batch_sizes)])
    drawn = np.array([sizes.sum() for sizes in batch_sizes], np.int64)
    return Plan(rows, np.cumsum(size) - size, size, np.cumsum(steps) - steps, steps, drawn)
