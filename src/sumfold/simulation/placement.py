"""From a federation and a cohort to the arrays that a compiled round takes.

Data is placed on a device once and found again by identity; each round sends row numbers only. Where it does not fit
there, or is a large mapped file that would have to be copied, each round sends the rows of its cohort. Every shape is
rounded up so that a cohort of another raggedness meets the same executable. Nothing here loops over clients.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.aligned import aligned
from sumfold.core.batching import Batching, Plan, plan, plan_ready
from sumfold.core.cohort import ClientData, Cohort, room, widths
from sumfold.data.room import rows_for
from sumfold.errors import DataError
from sumfold.simulation import memory
from sumfold.simulation.borrowed import borrowed
from sumfold.simulation.drawn import drawn, row_bytes
from sumfold.simulation.lanes import Course, course
from sumfold.simulation.packing import cut, spread
from sumfold.simulation.stream import Clients
from sumfold.tree import Leaf, Tree

__all__ = ["Placement", "Plans", "Room", "Seats", "shortened"]

_SMALL = 64 << 20
"""Bytes of examples below which spare rows are cheap."""

_FEW = 1 << 18
"""Row numbers that may always be reserved: one megabyte."""

_ALL = 1 << 10
"""Clients of a cohort of which each stream may have all."""

_SPARE = 4
"""How many times the needed places a cohort may have; those to spare cost memory, not time."""

_LARGE_MAP = 64 << 20
"""Bytes of a mapped file above which it is not copied whole."""

_NO_LIMIT = 1 << 62
"""Bytes of a device that does not tell its memory."""

_log = logging.getLogger("sumfold")

_GENEROUS = 8
"""How many times the needed steps may be reserved, four bytes a row."""


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
    """Arrays on a device, which may be the host's own memory; kept as long as a federation uses them."""

    owners: tuple[weakref.ref[Any], ...]
    users: weakref.WeakSet[Any]
    arrays: Tree


class _Away(NamedTuple):
    """Whether a federation's examples stay with the host: why, and what its cohorts got so far.

    Attributes:
        owner: the federation.
        stays, too_large: whether, and whether for want of room.
        budget: bytes that a cohort's rows may reserve.
        rows: by size of a cohort, those that it reserved.
    """

    owner: weakref.ref[Any]
    stays: bool
    too_large: bool
    budget: int
    rows: dict[int, int]


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
        self._placing = threading.Lock()
        self._away: dict[int, _Away] = {}
        self._latest: tuple[Cohort, Cohort] | None = None
        self._layouts: dict[tuple[int, Batching], _Layout] = {}
        self._codes: dict[int, tuple[weakref.ref[Any], NDArray[np.uint32]]] = {}

    def within_reach(self, cohort: Cohort, device: Any) -> Cohort:
        """The cohort, or a copy of its rows where the federation's examples stay with the host.

        Raises:
            DataError: for rows of one round that are more than the device has free, where it tells.
        """
        if cohort.drawn_from is not None or not jax.tree.leaves(cohort.data.examples):
            return cohort
        away = self._where(cohort.data, device)
        if not away.stays:
            return cohort
        data, positions, _ = cohort
        needed, whole = int(np.asarray(data.counts)[positions].sum()), len(jax.tree.leaves(data.examples)[0])
        if 2 * needed > whole and not away.too_large:
            return cohort  # a map that fits: nothing is gained by a copy of the larger part
        if self._latest is not None:
            (before, among, _), near = self._latest
            if before is data and np.array_equal(among, positions):
                return near
            del near
        self._latest = None  # so that no more than one round's rows lie there
        with self._placing:
            self._forget()
        size, width = self.total(cohort), row_bytes(data.examples)
        known = away.rows.get(size, 0)
        spare = room(rows_for(np.asarray(data.counts), size, needed, width, known))
        away.rows[size] = max(min(spare, away.budget // width), needed)
        left = memory.free(device)
        if device.platform != "cpu" and left is not None and needed * width > left:
            raise DataError(
                "SF-DATA-058",
                f"{needed:,} rows of {len(positions)} clients in one round, {memory.told(needed * width)}",
                f"rows that fit into what the device has free, {memory.told(left)}",
                "take fewer clients a round, smaller dtypes (uint8 and int32 are decoded in the step), or more devices",
            )
        near = drawn(cohort, away.rows[size])
        self._code(near.data, self._coded(data)[positions])
        self._latest = cohort, near
        return near

    def _where(self, data: ClientData, device: Any) -> _Away:
        """Whether a federation's examples stay with the host; decided once."""
        known = self._away.get(id(data))
        if known is not None and known.owner() is data:
            return known
        leaves = jax.tree.leaves(data.examples)
        placed = any(ids == [id(leaf) for leaf in leaves] for _, *ids in self._placed)
        budget, needed = memory.for_data(memory.free(device)), memory.wanted(leaves, device.platform)
        files = [leaf for leaf in leaves if memory.mapped(leaf)[0] is not None]
        on_disk = sum(leaf.nbytes for leaf in files if memory.wanted([leaf], device.platform))
        too_large = budget is not None and needed > budget and not placed
        stays = too_large or on_disk >= _LARGE_MAP
        if too_large:
            _log.warning(
                "the examples take %s, more than the device has room for (%s): each round sends its own rows",
                memory.told(needed),
                memory.told(budget or 0),
            )
        elif stays:
            _log.info(
                "%s of examples stay in their file: each round reads and sends its own rows",
                memory.told(on_disk),
            )
        self._away = {k: v for k, v in self._away.items() if v.owner() is not None}
        self._away[id(data)] = _Away(weakref.ref(data), stays, too_large, _NO_LIMIT if budget is None else budget, {})
        return self._away[id(data)]

    def examples(self, data: ClientData, device: Any = None, sent: Callable[[int], None] = lambda number: None) -> Tree:
        """The flat examples on a device, in JAX's dtypes; small ones with spare rows, so that shapes repeat.

        Args:
            data: of the clients.
            device: None for the only one.
            sent: called with the bytes of an array that was not there yet.
        """
        leaves = jax.tree.leaves(data.examples)
        if not leaves or not len(leaves[0]):
            return None
        at = (device, *(id(leaf) for leaf in leaves))
        small = sum(leaf.nbytes for leaf in leaves) < _SMALL
        lent = (device or jax.devices()[0]).platform == "cpu"

        def place(leaf: Any) -> Leaf:
            array = tree.canonical(leaf)
            if small:  # in memory of its own, so that where the user's begins makes no other program
                filled = aligned((room(len(array)), *array.shape[1:]), array.dtype)
                filled[: len(array)] = array
                array = filled
            sent(array.nbytes)
            return borrowed(array, device) if lent else jax.device_put(array, device)

        with self._placing:  # streams on one device share what the first of them places
            known = self._placed.get(at)
            if known and all(owner() is leaf for owner, leaf in zip(known.owners, leaves, strict=True)):
                known.users.add(data)
                return known.arrays
            self._forget()
            arrays = jax.tree.map(place, data.examples)
            self._placed[at] = _Placed(tuple(weakref.ref(leaf) for leaf in leaves), weakref.WeakSet([data]), arrays)
            return arrays

    def _forget(self) -> None:
        """Let go of arrays whose examples nobody has any more, before others are placed."""
        self._placed = {k: v for k, v in self._placed.items() if v.users}

    def seats(
        self,
        cohort: Cohort,
        batchings: Sequence[Batching],
        streams: int,
        *,
        runs: bool = False,
        remembering: bool = False,
    ) -> Seats:
        """Pack the cohort into streams, by the steps of all phases together.

        Args:
            runs: neighbours stay together.
            remembering: a slot holds what a client remembers, or keeps for a later phase: as much as a model, maybe.
                Else a slot is a few numbers, and a small cohort has one for each client in every stream, so that a
                single huge client beside all others needs no other executable.
        """
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
        usual = total if total <= _ALL and not remembering else room(-(-total * 5 // (4 * streams)) + 1)
        at_once = self._slots.get((total, streams)) or min(total, usual)
        self._slots[total, streams] = max(at_once, min(total, room(needed)))
        return Seats(places, self._slots[total, streams], total)

    def work(self, cohort: Cohort, batching: Batching, parameters: int, lanes: int) -> float:
        """Microseconds that one core may need for the cohort: what decides whether streams are worth it.

        A step costs some dispatch, in lanes and alone in its client next to none, and six operations for each
        parameter and row at 50 GFLOP/s; convolutions cost more, but a model that has them is large enough anyway.
        """
        whole, among = cohort.drawn_from or (cohort.data, cohort.positions)
        layout = self._layout(whole, batching)
        wide, dispatch = layout.chosen[-1], 0.1 if lanes and layout.longest <= 1 else 3.0
        return float((layout.steps[among].sum() + len(among)) * (dispatch + 6 * parameters * wide / 5e4))

    def evenness(self, cohort: Cohort, batchings: Sequence[Batching]) -> float:
        """The mean client's steps over the longest's, in the federation: the same for all cohorts."""
        whole, _ = cohort.drawn_from or (cohort.data, cohort.positions)
        layouts = [self._layout(whole, batching) for batching in batchings]
        return min(
            (float(some.steps.mean()) / max(some.longest, 1) for some in layouts if len(some.steps)), default=1.0
        )

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

    def plans(
        self,
        cohort: Cohort,
        batching: Batching,
        seed: NDArray[np.uint32],
        round: int,
        seats: Seats,
        streams: Sequence[int],
        rooms: Sequence[Room],
        lanes: int,
    ) -> list[Plans]:
        """The plans of some streams, one entry for each width; with its course where the stream has lanes.

        What is planned together is planned in one pass over all of it: a hundred calls of NumPy, whatever the streams.
        """
        data, positions, drawn_from = cohort
        whole, among = drawn_from or (data, positions)
        layout, codes = self._layout(whole, batching), self._coded(data)
        entries: list[list[tuple[Clients, Course | None]]] = [[] for _ in streams]
        for width, steps in rooms:
            slots = [np.flatnonzero(layout.widths[among[seats.places[s]]] == width) for s in streams]
            places = np.concatenate([seats.places[s][some] for s, some in zip(streams, slots, strict=True)])
            at = positions[places]
            counts, code = np.asarray(data.counts)[at], codes[at]
            if data.batch_sizes is None:
                made = plan(counts, code, batching, seed, round)
            else:
                made = plan_ready([data.batch_sizes[p] for p in at])
            rows = made.rows + np.repeat(np.asarray(data.starts)[at], made.drawn)
            if data.order is not None and len(data.order):
                rows = np.asarray(data.order)[rows]
            made = made._replace(rows=rows)
            end = 0
            for mine, entry in zip(slots, entries, strict=True):
                first, end = end, end + len(mine)
                part = made if len(streams) == 1 else made.part(first, end)
                clients = Clients(
                    rows=_padded(part.rows, (steps + 1) * width),
                    begin=_padded(part.begin, steps),
                    size=_padded(part.size, steps),
                    start=_padded(part.start, seats.slots),
                    steps=_padded(part.steps, seats.slots),
                    held=_padded(counts[first:end], seats.slots),
                    place=_padded(places[first:end], seats.slots),
                    slot=_padded(mine, seats.slots),
                    code=_padded(code[first:end], seats.slots, np.uint32),
                    number=np.int32(len(mine)),
                )
                entry.append((clients, self._course(part, layout, steps, seats.slots, lanes) if lanes else None))
        return [tuple(entry) for entry in entries]

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
        return self._code(data, keys.codes(data.ids))

    def _code(self, data: ClientData, codes: NDArray[np.uint32]) -> NDArray[np.uint32]:
        with self._placing:  # another thread may plan the next round
            self._codes = {k: v for k, v in self._codes.items() if v[0]() is not None}
            self._codes[id(data)] = weakref.ref(data), codes
        return codes

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


def shortened(plans: Plans, steps: int) -> tuple[Plans, int]:
    """The beginning of a plan, in the same shapes, and how many client steps it has."""
    short: list[tuple[Clients, Course | None]] = []
    taken = 0
    for clients, laid in plans:
        if laid is None:
            number = int(np.searchsorted(np.cumsum(clients.steps), steps)) + 1
            number = min(number, int(clients.number))
            taken += int(clients.steps[:number].sum())
            short.append((clients._replace(number=np.int32(number)), None))
        else:
            length = min(int(laid.length), -(-steps // laid.client.shape[1]))
            taken += int((laid.batch[:length] >= 0).sum())
            short.append((clients, laid._replace(length=np.int32(length))))
    return tuple(short), taken


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
