"""The Simulation runtime: Σ as a compiled stream of clients on the local device, a whole round in one program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.batching import Batching
from sumfold.core.client import Briefing, ClientHalf, Keeping, Memory, Start, client_half
from sumfold.core.cohort import Cohort
from sumfold.core.driver import Notes, Outcome, State, Totals, check_groups, compiled_server, nothing, play, server_of
from sumfold.core.group import KINDS
from sumfold.core.round import HostWork, Round
from sumfold.core.store import ClientStore
from sumfold.errors import CompositionError, user_facing
from sumfold.simulation.canonical import canonical
from sumfold.simulation.cores import cores
from sumfold.simulation.host import Host, Hosted
from sumfold.simulation.placement import Placement, Room, Seats
from sumfold.simulation.stream import Clients, Table, stream, table_of
from sumfold.simulation.workers import Workers
from sumfold.tree import Tree

__all__ = ["Simulation"]


_WORTHWHILE = 500.0
"""Microseconds of computation that one more stream should take over."""


@dataclass(frozen=True)
class Simulation:
    """All clients on this machine, as fast as it can: the default runtime.

    Clients run in streams, one on each core, one client after the other; data is placed on a device once and each
    round sends row numbers only. Clients whose work is a Python function (PyTorch, scikit-learn) run in worker
    processes instead. Offers every kind of sum.

    Args:
        devices: how many of JAX's devices to use; one by default.
        streams: streams for each device. By default one for each physical core on a CPU and one on an accelerator,
            and fewer for rounds so short that they are not worth it.
        host: where clients' Python functions run: `Workers` of this machine by default, or `Ray`.

    Raises:
        CompositionError: for options that are none, or more devices than there are.

    Example:
        >>> sorted(Simulation().groups)
        ['add', 'fold', 'max', 'min', 'modular', 'stack']
    """

    devices: int | Any = None
    streams: int | Any = None
    host: Host | Any = None

    @user_facing
    def __post_init__(self) -> None:
        for name in ("devices", "streams"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
            if value is not None and not whole:
                raise CompositionError(
                    "SF-SIM-001",
                    f"Simulation({name}={value!r})",
                    f"{name} as a whole number of at least 1, or None",
                    "leave it out: the engine uses every core",
                )
        if self.host is not None and (not isinstance(self.host, Host) or isinstance(self.host, type)):
            raise CompositionError(
                "SF-HOST-011",
                f"Simulation(host={self.host!r})",
                "where clients' Python functions run: sf.Workers(…) or sf.Ray(…)",
                "for two worker processes write sf.Simulation(host=sf.Workers(2))",
            )

    @property
    def groups(self) -> frozenset[str]:
        """Every kind of sum."""
        return KINDS

    def bind(self, round: Round) -> Callable[[State, Cohort], Outcome]:
        """Prepare an algorithm; see `sumfold.core.driver.Runtime`."""
        check_groups(round, self)
        return _Bound(round, self)


class _Bound:
    """One algorithm's compiled rounds."""

    def __init__(self, round: Round, options: Simulation) -> None:
        self.round, self.options = round, options
        self.halves = [_fast(client_half(phase)) for phase in round.phases]
        self.hosted = {i: Hosted(i, phase) for i, phase in enumerate(round.phases) if isinstance(phase.work, HostWork)}
        self.host = options.host or Workers()
        self.devices = _devices(options.devices)
        self.server = compiled_server(round)
        self.placement = Placement()
        self.compiled = jax.jit(self._play)
        self.phase = jax.jit(self._phase, static_argnums=(0, 1))
        self._memory: tuple[Memory, ...] | None = None

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        batchings = [phase.work.batching for i, phase in enumerate(self.round.phases) if i not in self.hosted]
        seats = self.placement.seats(cohort, batchings, self._streams(state, cohort, batchings))
        ids = [[cohort.client(int(p)) for p in places] if self._remembers(state) else [] for places in seats.places]
        memories, seen = zip(*(self._recall(state, some, seats.slots) for some in ids), strict=True)
        begun = _Begun(state, cohort, seats, memories, seen)
        if self.hosted or len(seats.places) > 1:
            outcome, remembered = self._in_streams(begun)
        else:
            outcome, remembered = self._at_once(begun)
        return outcome._replace(clients=_commit(state.clients, ids, remembered))

    def _streams(self, state: State, cohort: Cohort, batchings: Sequence[Batching]) -> int:
        """How many streams the cohort is worth: a function of what it computes, never of what was measured."""
        if self.hosted:
            return 1
        most = self.options.streams or (cores() if self.devices[0].platform == "cpu" else 1)
        most = min(most * len(self.devices), max(len(cohort.positions), 1))
        if most == 1 or self.options.streams or self.options.devices:
            return most
        parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(state.algorithm))
        work = sum(self.placement.work(cohort, batching, parameters) for batching in batchings)
        return int(min(most, max(work // _WORTHWHILE, 1)))

    def _at_once(self, begun: _Begun) -> tuple[Outcome, list[Any]]:
        """One round in one stream, as one program."""
        state, cohort = begun.state, begun.cohort
        number = np.int32(state.round)
        plans = tuple(self._plan(i, begun, 0, self._rooms(i, begun)) for i in range(len(self.round.phases)))
        examples = self.placement.examples(cohort.data, self._device(0))
        algorithm, stages, metrics, invalid, remembered = self.compiled(
            state.algorithm, state.stages, state.seed, number, plans, examples, begun.memories[0], begun.seen[0]
        )
        return Outcome(algorithm, stages, state.clients, metrics, invalid), [remembered]

    def _play(
        self,
        algorithm: Tree,
        stages: Tree,
        seed: Any,
        number: Any,
        plans: tuple[tuple[Clients, ...], ...],
        examples: Tree,
        memories: tuple[Memory, ...],
        seen: Any,
    ) -> Any:
        """One round as one program: `core.driver.play` with a Σ that is a stream."""
        after: list[Memory] = []

        def sigma(i: int, briefing: Briefing, carried: Tree) -> tuple[list[Totals], Tree]:
            kept, present = carried
            totals, table = self._phase(
                i, len(seen), briefing, kept, present, plans[i], examples, memories[i], seen, seed, number
            )
            after.append(table.memory)
            return [totals], (table.kept, table.present)

        carried = ((), jnp.ones(len(seen), bool))
        *played, (_, counted) = play(self.round, server_of(self.round), algorithm, stages, seed, number, sigma, carried)
        return *played, (tuple(after), counted)

    def _in_streams(self, begun: _Begun) -> tuple[Outcome, list[Any]]:
        """One round whose Σ is several programs at a time, or Python functions; the server's programs in between."""
        state, cohort, seats = begun.state, begun.cohort, begun.seats
        streams = range(len(seats.places))
        after: list[list[Memory]] = [[] for _ in streams]
        failed: dict[Any, str] = {}
        retried: dict[Any, str] = {}
        number = np.int32(state.round)

        def sigma(i: int, briefing: Briefing, carried: list[Tree]) -> tuple[list[Totals], list[Tree]]:
            if i in self.hosted:
                kept, present = carried[0]
                totals, table, notes = self.hosted[i](
                    self.host.open(), state, cohort, briefing, kept, begun.memories[0][i], begun.seen[0], present
                )
                failed.update(notes.failed)
                retried.update(notes.retried)
                results = [(totals, table)]
            else:
                rooms = self._rooms(i, begun)

                def one(s: int) -> tuple[Totals, Table]:
                    device = self._device(s)
                    kept, present = carried[s]
                    arguments = (
                        briefing if device is None else jax.device_put(briefing, device),
                        kept,
                        present,
                        self._plan(i, begun, s, rooms),
                        self.placement.examples(cohort.data, device),
                        begun.memories[s][i],
                        begun.seen[s],
                        state.seed,
                        number,
                    )
                    ended: tuple[Totals, Table] = self.phase(i, seats.total, *arguments)
                    for leaf in jax.tree.leaves(ended):
                        leaf.block_until_ready()
                    return ended

                results = list(_side_by_side(len(seats.places)).map(one, streams))
            for s, (_, table) in zip(streams, results, strict=True):
                after[s].append(table.memory)
            home = self.devices[0]
            sums = [t if self._device(s) is None else jax.device_put(t, home) for s, (t, _) in enumerate(results)]
            return sums, [(table.kept, table.present) for _, table in results]

        carried: list[Tree] = [((), np.ones(seats.slots, bool)) for _ in streams]
        algorithm, stages, metrics, invalid, ended = play(
            self.round, self.server, state.algorithm, state.stages, state.seed, number, sigma, carried
        )
        remembered = [(tuple(after[s]), ended[s][1]) for s in streams]
        return Outcome(algorithm, stages, state.clients, metrics, invalid, Notes(failed, retried)), remembered

    def _device(self, stream: int) -> Any:
        """Where a stream runs; None where there is no choice."""
        return None if self.options.devices is None else self.devices[stream % len(self.devices)]

    def _rooms(self, i: int, begun: _Begun) -> tuple[Room, ...]:
        return self.placement.rooms(begun.cohort, self.round.phases[i].work.batching, begun.seats)

    def _plan(self, i: int, begun: _Begun, stream: int, rooms: tuple[Room, ...]) -> tuple[Clients, ...]:
        state, batching = begun.state, self.round.phases[i].work.batching
        return self.placement.clients(begun.cohort, batching, state.seed, int(state.round), begun.seats, stream, rooms)

    def _phase(
        self,
        i: int,
        places: int,
        briefing: Briefing,
        kept_before: Tree,
        present: Any,
        plans: tuple[Clients, ...],
        examples: Tree,
        memory: Memory,
        seen: Any,
        seed: Any,
        number: Any,
    ) -> tuple[Totals, Table]:
        """Σ of one phase over one stream's clients."""
        phase, half, run = self.round.phases[i], self.halves[i], keys.typed(seed)
        table = table_of(half, briefing, kept_before, memory, seen, present)
        kept_one = jax.tree.map(lambda a: tree.shape(a.shape[1:], a.dtype), kept_before)
        totals = nothing(phase, briefing, kept_one, places)
        for clients in plans:
            totals, table = stream(i, phase, half, briefing, clients, examples, table, kept_before, totals, run, number)
        return totals, table

    def _remembers(self, state: State) -> bool:
        return bool(jax.tree.leaves(self._templates(state)))

    def _templates(self, state: State) -> tuple[Memory, ...]:
        """The shapes of one client's memory, by phase."""
        if self._memory is None:
            self._memory = jax.eval_shape(self._fresh, state.algorithm, state.stages)
        return self._memory

    def _fresh(self, algorithm: Tree, stages: Tree) -> tuple[Memory, ...]:
        memories, kept = [], ()
        for phase, half, held in zip(self.round.phases, self.halves, stages, strict=True):
            public = {part: stage.share(held[part]) for part, stage in phase.aggregate.items()}
            briefing = Briefing(phase.broadcast(algorithm, keys.typed(np.zeros(2, np.uint32))), public)
            memories.append(half.fresh(briefing, kept))
            kept = tree.zeros_like(_keeping(half, briefing, kept).kept)
        return tuple(memories)

    def _recall(self, state: State, ids: list[Any], slots: int) -> tuple[tuple[Memory, ...], Any]:
        """The memories of a stream's clients, stacked by slot; clients never seen are told apart by `seen`."""
        templates = self._templates(state)
        seen = np.zeros(slots, bool)
        stacked = jax.tree.map(lambda a: np.zeros((slots, *a.shape), a.dtype), templates)
        for slot, client in enumerate(ids):
            if client in state.clients:
                seen[slot] = True
                held = jax.tree.leaves(state.clients[client])
                for row, value in zip(jax.tree.leaves(stacked), held, strict=True):
                    row[slot] = value
        return stacked, seen


class _Begun(NamedTuple):
    """A round that is planned: who runs where, and what each stream's clients remember."""

    state: State
    cohort: Cohort
    seats: Seats
    memories: tuple[tuple[Memory, ...], ...]
    seen: tuple[Any, ...]


@functools.cache
def _side_by_side(streams: int) -> ThreadPoolExecutor:
    """Threads that each wait for one running program: XLA computes without Python's lock."""
    return ThreadPoolExecutor(streams, thread_name_prefix="sumfold-stream")


def _devices(number: int | None) -> list[Any]:
    """The devices to use.

    Raises:
        CompositionError: when there are fewer.
    """
    found = jax.local_devices()
    if number is not None and number > len(found):
        raise CompositionError(
            "SF-SIM-002",
            f"Simulation(devices={number})",
            f"at most {len(found)}, the devices that JAX finds here: {found[0].device_kind}",
            "leave devices out to use what there is; on a CPU the streams use its cores without more devices",
        )
    return list(found[: number or 1])


def _keeping(half: ClientHalf, briefing: Briefing, kept: Tree) -> Keeping:
    """What a client without data keeps; only its shapes are used."""
    start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
    key = keys.typed(jnp.zeros(2, jnp.uint32))
    return half.finish(start, half.init(start, key), key)[1]


def _fast(half: ClientHalf) -> ClientHalf:
    """On a CPU, convolutions inside a round's loops need the layout that XLA computes fast."""
    if half.step is None or jax.default_backend() != "cpu":
        return half
    return half._replace(step=canonical(half.step))


def _commit(store: ClientStore, ids: list[list[Any]], remembered: list[Any]) -> ClientStore:
    """A new version of the store with the memories of the clients that were counted in every phase."""
    if not any(ids):
        return store
    news: dict[Any, Tree] = {}
    for some, (memories, counted) in zip(ids, jax.device_get(remembered), strict=True):
        for slot, client in enumerate(some):
            if counted[slot]:
                news[client] = jax.tree.map(lambda a, slot=slot: a[slot].copy(), memories)
    return store.commit(news)
