"""From a federation and a cohort to the arrays that a compiled round takes.

Data is placed on the device once and found again by identity; each round sends row numbers only. Every shape is
rounded up so that a cohort of another raggedness meets the same executable.
"""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.batching import Batching, Plan, plan, plan_ready
from sumfold.core.cohort import ClientData, Cohort, widths
from sumfold.simulation.stream import Clients
from sumfold.tree import Leaf, Tree

__all__ = ["Placement", "room"]

_SMALL = 64 << 20
"""Bytes of examples below which spare rows are cheap."""

_FEW = 1 << 18
"""Row numbers that may always be reserved: one megabyte."""

_SPARE = 4
"""How many times the needed places a cohort may have; those to spare cost memory, not time."""

_GENEROUS = 8
"""How many times the needed steps may be reserved, four bytes a row."""


def room(needed: int) -> int:
    """`needed` rounded up to one of four sizes an octave (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …).

    Example:
        >>> [room(n) for n in (0, 1, 9, 100)]
        [1, 1, 10, 112]
    """
    needed = max(needed, 1)
    unit = 1 << max(needed.bit_length() - 3, 0)
    return -(-needed // unit) * unit


class _Placed(NamedTuple):
    owners: tuple[weakref.ref[Any], ...]
    arrays: Tree


class _Layout(NamedTuple):
    """What never changes about a federation under one batching, and the room that its cohorts got so far."""

    owner: weakref.ref[Any]
    widths: NDArray[np.int64]
    chosen: tuple[int, ...]
    steps: NDArray[np.int64]
    room: dict[tuple[int, int], int]


class Placement:
    """Remembers what is on the device, and which shapes were used. A cache: it holds nothing that results depend on."""

    def __init__(self) -> None:
        self._places = 0
        self._placed: dict[tuple[int, ...], _Placed] = {}
        self._layouts: dict[tuple[int, Batching], _Layout] = {}
        self._codes: dict[int, tuple[weakref.ref[Any], NDArray[np.uint32]]] = {}

    def examples(self, data: ClientData) -> Tree:
        """The flat examples on the device, in JAX's dtypes; small ones with spare rows, so that shapes repeat."""
        leaves = jax.tree.leaves(data.examples)
        if not leaves or not len(leaves[0]):
            return None
        at = tuple(id(leaf) for leaf in leaves)
        known = self._placed.get(at)
        if known and all(owner() is leaf for owner, leaf in zip(known.owners, leaves, strict=True)):
            return known.arrays
        small = sum(leaf.nbytes for leaf in leaves) < _SMALL

        def place(leaf: Any) -> Leaf:
            array = tree.canonical(leaf)
            spare = room(len(array)) - len(array) if small else 0
            return jax.device_put(np.concatenate([array, np.repeat(array[:1], spare, axis=0)]) if spare else array)

        arrays = jax.tree.map(place, data.examples)
        self._placed = {k: v for k, v in self._placed.items() if all(owner() is not None for owner in v.owners)}
        self._placed[at] = _Placed(tuple(weakref.ref(leaf) for leaf in leaves), arrays)
        return arrays

    def places(self, clients: int) -> int:
        """Places for so many clients: as many as a larger cohort got, if that is not far more than is needed.

        So cohorts whose size changes, such as Poisson samples, soon need no other executable.
        """
        needed = room(clients)
        self._places = max(self._places, needed)
        return self._places if self._places <= _SPARE * needed else needed

    def clients(
        self, cohort: Cohort, batching: Batching, seed: NDArray[np.uint32], round: int, room_for: int
    ) -> tuple[Clients, ...]:
        """The cohort's plan, one entry for each batch width that the federation has, with room for so many clients."""
        data, positions, drawn_from = cohort
        whole, among = drawn_from or (data, positions)
        layout, codes = self._layout(whole, batching), self._coded(data)
        plans = []
        for width in layout.chosen:
            places = np.flatnonzero(layout.widths[among] == width)
            at = positions[places]
            if data.batch_sizes is None:
                made = plan(np.asarray(data.counts)[at], codes[at], batching, seed, round)
            else:
                made = plan_ready([data.batch_sizes[p] for p in at], width)
            steps = _reserve(layout, width, room_for, len(made.rows))
            plans.append(_pack(data, codes, at, places, made, (steps, width), room_for))
        return tuple(plans)

    def _coded(self, data: ClientData) -> NDArray[np.uint32]:
        known = self._codes.get(id(data))
        if known and known[0]() is data:
            return known[1]
        self._codes = {k: v for k, v in self._codes.items() if v[0]() is not None}
        self._codes[id(data)] = weakref.ref(data), keys.codes(data.ids)
        return self._codes[id(data)][1]

    def _layout(self, data: ClientData, batching: Batching) -> _Layout:
        known = self._layouts.get((id(data), batching))
        if known and known.owner() is data:
            return known
        wide = widths(data, batching)
        if data.batch_sizes is not None:
            steps = np.array([len(sizes) for sizes in data.batch_sizes], np.int64)
        else:
            steps = batching.steps(np.asarray(data.counts))
        chosen = tuple(np.unique(wide).tolist()) or (1,)
        layout = _Layout(weakref.ref(data), wide, chosen, steps, {})
        self._layouts = {k: v for k, v in self._layouts.items() if v.owner() is not None}
        self._layouts[id(data), batching] = layout
        return layout


def _pack(
    data: ClientData,
    codes: NDArray[np.uint32],
    at: NDArray[np.int64],
    places: NDArray[np.int64],
    made: Plan,
    batches: tuple[int, int],
    clients: int,
) -> Clients:
    """One width's plan in arrays of fixed room: `batches` steps by width, and `clients` places."""
    rows = made.rows + np.repeat(np.asarray(data.starts)[at], made.steps)[:, None]
    if data.order is not None and len(data.order):
        rows = np.asarray(data.order)[np.where(made.rows >= 0, rows, 0)]
    index = np.full(batches, -1, np.int32)
    if len(rows):
        index[: len(rows), : rows.shape[1]] = np.where(made.rows >= 0, rows, -1)

    def padded(values: NDArray[Any], dtype: Any) -> NDArray[Any]:
        return np.pad(values.astype(dtype), (0, clients - len(at)))

    return Clients(
        index,
        padded(made.start, np.int32),
        padded(made.steps, np.int32),
        padded(np.asarray(data.counts)[at], np.int32),
        padded(places, np.int32),
        padded(codes[at], np.uint32),
        np.int32(len(at)),
    )


def _reserve(layout: _Layout, width: int, cohort: int, needed: int) -> int:
    """Room for the steps of any cohort of this size, so that no later cohort needs another executable.

    Where a few huge clients would make that room many times too large, it grows by doubling instead.
    """
    known, needed = layout.room.get((width, cohort), 0), max(needed, 1)
    if needed > known:
        steps = layout.steps[layout.widths == width]
        most = int(np.sort(steps)[max(len(steps) - cohort, 0) :].sum())
        affordable = most <= _GENEROUS * needed or most * width <= _FEW
        layout.room[width, cohort] = room(most if affordable else max(needed, 2 * known))
    return layout.room[width, cohort]
