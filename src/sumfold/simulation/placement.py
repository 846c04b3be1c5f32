"""From a federation and a cohort to the arrays that a compiled round takes.

Data is placed on a device once and found again by identity; each round sends row numbers only. Every shape is
rounded up so that a cohort of another raggedness meets the same executable. Nothing here loops over clients.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.batching import Batching, Plan, plan, plan_ready
from sumfold.core.cohort import ClientData, Cohort, widths
from sumfold.simulation.lanes import Course, course
from sumfold.simulation.packing import cut, spread
from sumfold.simulation.stream import Clients
from sumfold.tree import Leaf, Tree

__all__ = ["Placement", "Plans", "Room", "Seats", "room"]

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


class Seats(NamedTuple):
    """Who runs where in a round.

    Attributes:
        places: for each stream, int64[K], its clients' places in the cohort, ascending.
        slots: rows of each stream's table, at least its clients.
        total: places of the whole cohort, rounded up.
    """

    places: tuple[NDArray[np.int64], ...]
    slots: int
    total: int


class Room(NamedTuple):
    """The batches of one width: which clients have such, and how many steps a stream's plan has room for."""

    width: int
    steps: int


Plans: TypeAlias = tuple[tuple[Clients, Course | None], ...]
"""A stream's clients, for each width of batches, with their course where the stream has lanes."""


class _Placed(NamedTuple):
    owners: tuple[weakref.ref[Any], ...]
    arrays: Tree


class _Layout(NamedTuple):
    """What never changes about a federation under one batching, and the room that its cohorts got so far."""

    owner: weakref.ref[Any]
    widths: NDArray[np.int64]
    chosen: tuple[int, ...]
    steps: NDArray[np.int64]
    shortest: int
    longest: int
    room: dict[tuple[int, int, int], int]


class Placement:
    """Remembers what is on the devices, and which shapes were used. A cache: nothing that results depend on."""

    def __init__(self) -> None:
        self._places = 0
        self._slots: dict[tuple[int, int], int] = {}
        self._placed: dict[tuple[Any, ...], _Placed] = {}
        self._layouts: dict[tuple[int, Batching], _Layout] = {}
        self._codes: dict[int, tuple[weakref.ref[Any], NDArray[np.uint32]]] = {}

    def examples(self, data: ClientData, device: Any = None) -> Tree:
        """The flat examples on a device, in JAX's dtypes; small ones with spare rows, so that shapes repeat."""
        leaves = jax.tree.leaves(data.examples)
        if not leaves or not len(leaves[0]):
            return None
        at = (device, *(id(leaf) for leaf in leaves))
        known = self._placed.get(at)
        if known and all(owner() is leaf for owner, leaf in zip(known.owners, leaves, strict=True)):
            return known.arrays
        small = sum(leaf.nbytes for leaf in leaves) < _SMALL

        def place(leaf: Any) -> Leaf:
            array = tree.canonical(leaf)
            spare = room(len(array)) - len(array) if small else 0
            filled = np.concatenate([array, np.repeat(array[:1], spare, axis=0)]) if spare else array
            return jax.device_put(filled, device)

        arrays = jax.tree.map(place, data.examples)
        self._placed = {k: v for k, v in self._placed.items() if all(owner() is not None for owner in v.owners)}
        self._placed[at] = _Placed(tuple(weakref.ref(leaf) for leaf in leaves), arrays)
        return arrays

    def seats(self, cohort: Cohort, batchings: Sequence[Batching], streams: int, *, runs: bool = False) -> Seats:
        """Pack the cohort into streams, by the steps of all phases together; `runs` keeps neighbours together."""
        clients = len(cohort.positions)
        total = self.total(cohort)
        whole, among = cohort.drawn_from or (cohort.data, cohort.positions)
        cost = np.ones(clients, np.int64)
        for batching in batchings:
            cost += self._layout(whole, batching).steps[among]
        stream = cut(cost, streams) if runs else spread(cost, streams)
        places = tuple(np.flatnonzero(stream == s) for s in range(streams))
        if streams == 1:
            return Seats(places, total, total)
        needed = max(map(len, places))
        at_once = self._slots.get((total, streams)) or min(total, room(-(-total * 5 // (4 * streams)) + 1))
        self._slots[total, streams] = max(at_once, min(total, room(needed)))
        return Seats(places, self._slots[total, streams], total)

    def work(self, cohort: Cohort, batching: Batching, parameters: int) -> float:
        """Microseconds that one core may need for the cohort: what decides whether streams are worth it.

        A step costs some dispatch, and six operations for each parameter and row at 50 GFLOP/s; convolutions cost
        more, but a model that has them is large enough anyway.
        """
        whole, among = cohort.drawn_from or (cohort.data, cohort.positions)
        layout = self._layout(whole, batching)
        wide = layout.chosen[-1]
        return float((layout.steps[among].sum() + len(among)) * (3 + 6 * parameters * wide / 5e4))

    def total(self, cohort: Cohort) -> int:
        """Places for the cohort: as many as a larger cohort got, if that is not far more than is needed.

        So cohorts whose size changes, such as Poisson samples, soon need no other executable.
        """
        needed = room(len(cohort.positions))
        self._places = max(self._places, needed)
        return self._places if self._places <= _SPARE * needed else needed

    def rooms(self, cohort: Cohort, batching: Batching, seats: Seats) -> tuple[Room, ...]:
        """For each width of batches in the federation, room for the steps of the stream that has most."""
        whole, among = cohort.drawn_from or (cohort.data, cohort.positions)
        layout = self._layout(whole, batching)
        wide, steps = layout.widths[among], layout.steps[among]

        def most(width: int) -> int:
            return max(int(steps[places][wide[places] == width].sum()) for places in seats.places)

        return tuple(Room(width, _reserve(layout, width, seats, most(width))) for width in layout.chosen)

    def clients(
        self,
        cohort: Cohort,
        batching: Batching,
        seed: NDArray[np.uint32],
        round: int,
        seats: Seats,
        stream: int,
        rooms: Sequence[Room],
        lanes: int,
    ) -> Plans:
        """The plan of one stream, one entry for each width; with its course where the stream has lanes."""
        data, positions, drawn_from = cohort
        whole, among = drawn_from or (data, positions)
        layout, codes = self._layout(whole, batching), self._coded(data)
        wide = layout.widths
        mine = seats.places[stream]
        plans = []
        for width, steps in rooms:
            slots = np.flatnonzero(wide[among[mine]] == width)
            places = mine[slots]
            at = positions[places]
            counts, code = np.asarray(data.counts)[at], codes[at]
            if data.batch_sizes is None:
                made = plan(counts, code, batching, seed, round)
            else:
                made = plan_ready([data.batch_sizes[p] for p in at])
            owner = np.repeat(at, made.drawn)
            rows = made.rows + np.asarray(data.starts)[owner]
            if data.order is not None and len(data.order):
                rows = np.asarray(data.order)[rows]
            clients = Clients(
                rows=_padded(rows, (steps + 1) * width),
                begin=_padded(made.begin, steps),
                size=_padded(made.size, steps),
                start=_padded(made.start, seats.slots),
                steps=_padded(made.steps, seats.slots),
                held=_padded(counts, seats.slots),
                place=_padded(places, seats.slots),
                slot=_padded(slots, seats.slots),
                code=_padded(code, seats.slots, np.uint32),
                number=np.int32(len(at)),
            )
            plans.append((clients, self._course(made, layout, steps, seats.slots, lanes) if lanes else None))
        return tuple(plans)

    @staticmethod
    def _course(made: Plan, layout: _Layout, steps: int, clients: int, lanes: int) -> Course:
        """The clients in lanes, with room for any cohort: no lane is further than one client above the mean."""
        without = clients if layout.shortest == 0 else 0
        length = room(-(-(steps + without) // lanes) + layout.longest)
        return course(made, lanes, length, single=layout.longest <= 1)

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
        extremes = int(steps.min(initial=1)), int(steps.max(initial=1))
        layout = _Layout(weakref.ref(data), wide, chosen, steps, *extremes, {})
        self._layouts = {k: v for k, v in self._layouts.items() if v.owner() is not None}
        self._layouts[id(data), batching] = layout
        return layout


def _padded(values: NDArray[Any], length: int, dtype: Any = np.int32) -> NDArray[Any]:
    padded = np.zeros(length, dtype)
    padded[: len(values)] = values
    return padded


def _reserve(layout: _Layout, width: int, seats: Seats, needed: int) -> int:
    """Room for the steps of one stream of any cohort of this size, so that no later cohort needs another executable.

    Where a few huge clients would make that room many times too large, it grows by doubling instead.
    """
    streams, at = len(seats.places), (width, seats.total, len(seats.places))
    known, needed = layout.room.get(at, 0), max(needed, 1)
    if needed > known:
        steps = np.sort(layout.steps[layout.widths == width])[-seats.total :]
        most = int(steps.sum())
        if streams > 1 and len(layout.chosen) == 1:  # packing leaves no stream further than one client above the mean
            most = min(most, (most + len(steps)) // streams + int(steps[-1]) + 1)
        affordable = most <= _GENEROUS * needed or most * width <= _FEW
        layout.room[at] = max(room(most if affordable else max(needed, 2 * known)), room(needed))
    return layout.room[at]
