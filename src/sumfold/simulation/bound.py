"""One algorithm's rounds on this machine: plan, Σ, server half, and what clients remember.

A round is planned first: who runs in which stream, in lanes or one after the other, by rule alone (`packing`).
Then Σ is computed in one of three ways, which share the driver's order of a round and the streams' code:

- *whole*: one stream, nothing stacked, and the round is one program;
- *side by side*: a program for each stream at a time, in threads that wait for them; the server's programs between;
  where a part is stacked, in blocks (`sumfold.simulation.block`);
- *pinned*: clients by exported programs, summed in a fixed order, where bits must not depend on packing.

Why threads and not processes: XLA computes outside of Python's lock, so threads with a program each use all cores,
share the data, and need no collective. Two virtual devices in one process are slower, since their programs wait for
one another's threads.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Memory, client_half
from sumfold.core.cohort import Cohort, batch_shapes
from sumfold.core.compiled import compiled
from sumfold.core.driver import (
    NOBODY,
    Notes,
    Outcome,
    Server,
    State,
    Totals,
    merge,
    play,
    server_of,
)
from sumfold.core.exported import each_half, traced
from sumfold.core.pure import check_calls, check_repeatable
from sumfold.core.round import HostWork, Round
from sumfold.core.rows import Rows, individual, with_rows, without
from sumfold.core.store import ClientStore
from sumfold.errors import CompositionError
from sumfold.simulation.ahead import Ahead, Begun
from sumfold.simulation.block import Blocks
from sumfold.simulation.canonical import fast
from sumfold.simulation.choice import GIVEN, Choice, fitting, model_size
from sumfold.simulation.choosing import adopted, chosen, streams_of
from sumfold.simulation.closing import Closing
from sumfold.simulation.exchange import exchanged, spread_rows
from sumfold.simulation.fused import Fused
from sumfold.simulation.gang import Gang
from sumfold.simulation.host import Hosted
from sumfold.simulation.lanes import lanes
from sumfold.simulation.meter import Meter
from sumfold.simulation.packed import Packed, packed
from sumfold.simulation.pinned import Pinned
from sumfold.simulation.placement import Placement, Plans, Room
from sumfold.simulation.recall import Recall, commit
from sumfold.simulation.spare import Spare
from sumfold.simulation.spill import Stacks
from sumfold.simulation.stream import Table, nobody, one_row, stream, table_of
from sumfold.simulation.trusting import finite_sum, trusting
from sumfold.simulation.workers import Workers
from sumfold.tree import Tree

if TYPE_CHECKING:
    from sumfold.simulation.engine import Simulation

__all__ = ["Bound"]

_FEW = 5000
"""Clients whose plan takes a few milliseconds."""


class Bound:
    """An algorithm's compiled rounds.

    Args:
        round: the algorithm.
        options: as the user gave them.
        gang: the processes that share the work.
    """

    def __init__(self, round: Round, options: Simulation, gang: Gang) -> None:
        self.round, self.options, self.gang = round, options, gang
        halves = [client_half(phase) for phase in round.phases]
        self.halves = [fast(half) for half in halves] if jax.default_backend() == "cpu" else halves
        self.stacks, phases = Stacks(), dict(enumerate(round.phases))
        self.hosted = {i: Hosted(i, p, self.stacks) for i, p in phases.items() if isinstance(p.work, HostWork)}
        stacked = [i for i, phase in phases.items() if individual(phase) and i not in self.hosted]
        self.blocks = {i: Blocks(i, phases[i], self.halves[i], self.stacks) for i in stacked}
        self.host = options.host or Workers()
        self.devices = _devices(options.devices)
        self.meter = Meter()
        self.closing = Closing(round, options.deterministic)
        self.server, self.spending = map(self._metered, (self.closing.server, self.closing.spending))
        self.placement = Placement()
        self.packs = jax.default_backend() != "cpu"  # whose arrays need no copy
        self.compiled, self.unpacking = compiled(self._play), compiled(self._unpacking)
        self.phase = compiled(self._phase, static_argnums=(0, 1), donate_argnums=2, keep_unused=True)
        self.spare = Spare()
        self.trusted = compiled(self._trusted, static_argnums=(0, 1), donate_argnums=2, keep_unused=True)
        self.trusting: dict[int, ClientHalf | None] = {}
        self.merged = compiled(self._merged, static_argnums=0)
        self.pinned = [
            Pinned(i, phase, half) for i, (phase, half) in enumerate(zip(round.phases, self.halves, strict=True))
        ]
        self.choice: Choice | None = None
        self.parameters = -1  # of the message; known from the first round on
        self.recall = Recall(round, self.halves)
        self.looked = False
        self.ahead, self.fused = Ahead(self), Fused(self)

    def __call__(self, state: State, cohort: Cohort, spend: bool = False) -> Outcome:
        """One round; see `sumfold.core.driver.Runtime`.

        Args:
            state, cohort: who takes part, and from where.
            spend: nobody needs `state` any more, and each of its arrays has a buffer of its own: where it is large, the
                next state may be written over it.
        """
        if not self.hosted:
            with self.meter.span("data"):
                cohort = self.placement.within_reach(cohort, self.devices[0])
        with self.meter.span("plan"):
            begun = self.ahead(state, cohort)
        self.ahead.go()
        if self.options.deterministic and not self.hosted:
            return self._in_order(begun)
        if self.hosted or self.blocks or len(begun.seats.places) > 1:
            return self._side_by_side(begun, spend)
        return self._whole(begun)

    # -- the choice

    def chosen(self) -> dict[str, Any]:
        """What a checkpoint stores, since it fixes the order of sums; empty before the first round."""
        if self.choice is None or self.options.deterministic:
            return {}
        return {**self.choice._asdict(), "platform": self.devices[0].platform, "devices": len(self.devices)}

    def adopt(self, chosen: Mapping[str, Any]) -> list[str]:
        """Go on with what an interrupted run chose; what the user asks for now comes first.

        Returns:
            What a person should know.
        """
        return adopted(self, chosen)

    # -- the plan

    def _begun(self, state: State, cohort: Cohort) -> Begun:
        batchings = [phase.work.batching for i, phase in enumerate(self.round.phases) if i not in self.hosted]
        if self.parameters < 0:
            self.parameters = model_size(self.round, state)
        if not self.looked and not self.hosted:
            self._look(state, cohort)
        if self.choice is None:
            self.choice = chosen(self, state, cohort, batchings)
        streams = streams_of(self, state, cohort, batchings, self.choice)
        seats = self.placement.seats(
            cohort,
            batchings,
            streams * self.gang.size,
            runs=self.options.deterministic,
            remembering=len(self.round.phases) > 1 or self.recall(state),
        )
        mine = range(self.gang.rank * streams, (self.gang.rank + 1) * streams)
        ids = [[cohort.client(int(p)) for p in seats.places[s]] if self.recall(state) else [] for s in mine]
        wanted = self.choice.lanes
        if not self.choice.why.startswith(GIVEN):
            evenness = self.placement.evenness(cohort, batchings) if self.devices[0].platform != "cpu" else None
            wanted = fitting(wanted, seats.total // len(seats.places), evenness)
        return Begun(state, cohort, seats, wanted, mine, ids)

    def _look(self, state: State, cohort: Cohort) -> None:
        """Refuse client work that no program can stand for, before the first round."""
        batch = batch_shapes(cohort.data, 2)
        for half, made in each_half(self.round, [client_half(phase) for phase in self.round.phases], state, batch):
            programs = traced(half, made)
            check_calls(programs, prints=not self.options.deterministic)
            if self.options.deterministic:
                check_repeatable(programs, traced(half, made), "deterministic=True")
        self.looked = batch is not None

    # -- Σ, in three ways

    def _whole(self, begun: Begun) -> Outcome:
        """One stream, one program."""
        state, cohort = begun.state, begun.cohort
        plans = tuple(self._plans(i, begun, [0], self._rooms(i, begun))[0] for i in range(len(self.round.phases)))
        examples = self._examples(cohort, 0)
        with self.meter.span("memory"):
            memories, seen = self.recall.rows(state, begun.ids[0], begun.seats.slots)
        with self.meter.span("clients"):
            given = state.algorithm, state.stages, state.seed, np.int32(state.round)
            if self.packs:
                sent = packed((plans, seen))
                algorithm, stages, told, remembered = _finished(self.unpacking(*given, sent, examples, memories))
                metrics, invalid = jax.device_get(told).opened()
            else:
                algorithm, stages, metrics, invalid, remembered = _finished(
                    self.compiled(*given, plans, examples, memories, seen)
                )
        with self.meter.span("memory"):
            clients = commit(state.clients, [begun.ids], [[remembered]])
        return Outcome(algorithm, stages, clients, metrics, invalid)

    def _play(
        self,
        algorithm: Tree,
        stages: Tree,
        seed: Any,
        number: Any,
        plans: tuple[Plans, ...],
        examples: Tree,
        memories: tuple[Memory, ...],
        seen: Any,
    ) -> Any:
        after: list[Memory] = []

        def sigma(i: int, briefing: Briefing, carried: Tree) -> tuple[list[Totals], Tree]:
            kept, present = carried
            totals, table = self._phase(
                i, len(seen), (), briefing, kept, present, plans[i], examples, memories[i], seen, seed, number
            )
            after.append(table.memory)
            return [totals], (table.kept, table.present)

        carried = ((), jnp.ones(len(seen), bool))
        *played, (_, counted) = play(self.round, server_of(self.round), algorithm, stages, seed, number, sigma, carried)
        return *played, (tuple(after), counted)

    def _unpacking(
        self,
        algorithm: Tree,
        stages: Tree,
        seed: Any,
        number: Any,
        sent: Packed,
        examples: Tree,
        memories: tuple[Memory, ...],
    ) -> Any:
        """`_play`, where what goes and comes takes long for each array."""
        plans, seen = sent.opened()
        *standing, metrics, invalid, remembered = self._play(
            algorithm, stages, seed, number, plans, examples, memories, seen
        )
        return *standing, packed((metrics, invalid)), remembered

    def _side_by_side(self, begun: Begun, spend: bool) -> Outcome:
        """A program for each stream, or Python functions; the server's programs in between."""
        state, cohort, seats = begun.state, begun.cohort, begun.seats
        streams = range(len(begun.mine))
        with self.meter.span("memory"):
            memories, seen = zip(*(self.recall.rows(state, some, seats.slots) for some in begun.ids), strict=True)
        after: list[list[Memory]] = [[] for _ in streams]
        summed: dict[tuple[int, int], Totals] = {}
        failed: dict[Any, str] = {}
        retried: dict[Any, str] = {}

        def sigma(i: int, briefing: Briefing, carried: list[Tree]) -> tuple[list[Totals], list[Tree]]:
            rows: dict[str, Rows] = {}
            if i in self.hosted:
                kept, present = carried[0]
                with self.meter.span("clients"):
                    totals, table, notes = self.hosted[i](
                        self.host.open(), state, cohort, briefing, kept, memories[0][i], seen[0], present
                    )
                failed.update(notes.failed)
                retried.update(notes.retried)
                results = [(totals, table)]
            else:
                rooms = self._rooms(i, begun)
                rows = self._rows(i, briefing, carried[0][0], seats.total)

                def one(s: int, plan: Plans | None) -> tuple[Totals, Table]:
                    device, (kept, present) = self._device(s), carried[s]
                    told = briefing if device is None else jax.device_put(briefing, device)
                    plan = self._plans(i, begun, begun.mine[s : s + 1], rooms)[0] if plan is None else plan
                    examples = self._examples(cohort, s)
                    given = (plan, examples, memories[s][i], seen[s], state.seed, np.int32(state.round))
                    with self.meter.span("clients"), jax.default_device(device):
                        return self._summed(i, s, rows, seats.total, told, kept, present, *given)

                if i == 0 and self.options.devices is None and self.gang.size == 1:
                    self.closing.prepare(state, briefing, 1 if rows else len(streams), seats.total, spend)
                # Planning few clients is Python's work, which threads cannot share: it is done here, all at once.
                few = len(cohort.positions) <= _FEW
                plans = self._plans(i, begun, begun.mine, rooms) if few else [None for _ in streams]
                running = [_threads(len(streams)).submit(one, s, plan) for s, plan in zip(streams, plans, strict=True)]
                results = [stream.result() for stream in running]
            for s, (totals, table) in zip(streams, results, strict=True):
                after[s].append(table.memory)
                if len(streams) > 1 and not rows:  # of one stream, the state itself may be what was summed
                    summed[i, s] = totals
            home = self.devices[0]
            sums = [t if self._device(s) is None else jax.device_put(t, home) for s, (t, _) in enumerate(results)]
            if self.gang.size > 1 and i not in self.hosted:
                with self.meter.span("exchange"):
                    sums = [exchanged(self.gang, without(self.round.phases[i]), self.merged(i, sums))]
                    spread_rows(self.gang, rows, seats.places)
            if rows:
                sums = [with_rows(self.round.phases[i], self.merged(i, sums), rows, self._device(0))]
            return sums, [(table.kept, table.present) for _, table in results]

        carried: list[Tree] = [((), np.ones(seats.slots, bool)) for _ in streams]
        algorithm, stages, metrics, invalid, ended = play(
            self.round,
            self.spending if spend else self.server,
            state.algorithm,
            state.stages,
            state.seed,
            np.int32(state.round),
            sigma,
            carried,
        )
        for (i, s), totals in summed.items():
            self.spare.put(i, s, totals)
        with self.meter.span("memory"):
            clients = self._committed(begun, [(tuple(after[s]), ended[s][1]) for s in streams])
        return Outcome(algorithm, stages, clients, metrics, invalid, Notes(failed, retried))

    def _in_order(self, begun: Begun) -> Outcome:
        """Client by client, in runs of places; see `sumfold.simulation.pinned`."""
        cohort, seats, home = begun.cohort, begun.seats, self.devices[0]
        # Exported programs return arrays that are bound to a device; so bound from the start, nothing compiles twice.
        state = begun.state._replace(
            algorithm=jax.device_put(begun.state.algorithm, home), stages=jax.device_put(begun.state.stages, home)
        )
        streams = range(len(begun.mine))
        clients = len(cohort.positions)
        places = [[int(p) for p in seats.places[s]] for s in begun.mine]
        after: list[list[dict[int, Tree]]] = [[] for _ in streams]

        def memories(s: int, i: int) -> Mapping[int, Tree]:
            known = zip(places[s], begun.ids[s], strict=False)
            return {place: state.clients[client][i] for place, client in known if client in state.clients}

        def sigma(i: int, briefing: Briefing, carried: Any) -> tuple[list[Totals], Any]:
            kept_before, kept = carried
            rooms, pinned = self._rooms(i, begun), self.pinned[i]
            zero = pinned.ordered.nobody(briefing, kept_before)
            rows = self.stacks(pinned.parts, zero, clients)

            def one(s: int) -> Any:
                device = self._device(s)
                told = briefing if device is None else jax.device_put(briefing, device)
                with jax.default_device(device):
                    plan = self._plans(i, begun, begun.mine[s : s + 1], rooms)[0]
                    with self.meter.span("clients"):
                        return pinned(state, told, kept_before, kept[s], memories(s, i), cohort.data, plan, rows)

            results = list(_threads(len(streams)).map(one, streams))
            for s, (_, news, _, _) in zip(streams, results, strict=True):
                after[s].append(news)
            sums = [some if self._device(s) is None else some.at(home) for s, (some, *_) in enumerate(results)]
            if self.gang.size > 1:
                with self.meter.span("exchange"):
                    sums = self._exchanged(pinned, zero, sums, begun)
                    spread_rows(self.gang, rows, seats.places)
            kept_after = results[0][3]
            return [pinned.ordered.total(zero, sums)], (kept_after, [keeps for _, _, keeps, _ in results])

        carried: Any = ((), [{place: [] for place in some} for some in places])
        algorithm, stages, metrics, invalid, (_, ended) = play(
            self.round, self.server, state.algorithm, state.stages, state.seed, np.int32(state.round), sigma, carried
        )
        news = {
            client: jax.tree.map(np.asarray, tuple(phase[place] for phase in after[s]))
            for s in streams
            for place, client in zip(places[s], begun.ids[s], strict=False)
            if place in ended[s]
        }
        if self.gang.size > 1 and any(begun.ids):
            news = self._all_news(begun, news)
        return Outcome(algorithm, stages, state.clients.commit(news), metrics, invalid)

    # -- the processes of a gang

    def _merged(self, i: int, sums: Sequence[Totals]) -> Totals:
        """The sums of all streams as one; what is stacked is in no stream's totals."""
        return functools.reduce(functools.partial(merge, without(self.round.phases[i])), sums)

    def _exchanged(self, pinned: Pinned, zero: Totals, sums: list[Any], begun: Begun) -> list[Any]:
        """The sums of every process's streams, in the order of places."""
        clients = len(begun.cohort.positions)
        nodes = 2 * max(clients, 1).bit_length() + 2
        of_all = self.gang.gathered([some.sent(nodes) for some in sums])
        arrays = [one for of_one in of_all for one in of_one]
        ends = np.cumsum([len(places) for places in begun.seats.places]).tolist()
        ranges = [range(end - len(places), end) for end, places in zip(ends, begun.seats.places, strict=True)]
        rows = sums[0].rows
        return [pinned.ordered.received(zero, some, one, rows) for some, one in zip(ranges, arrays, strict=True)]

    def _committed(self, begun: Begun, remembered: list[Any]) -> ClientStore:
        """The store with the memories of the clients of all processes."""
        if not self.recall(begun.state):
            return begun.state.clients
        if self.gang.size == 1:
            return commit(begun.state.clients, [begun.ids], [remembered])
        streams, cohort = len(begun.mine), begun.cohort
        everyone = [[cohort.client(int(p)) for p in places] for places in begun.seats.places]
        ids = [everyone[r * streams : (r + 1) * streams] for r in range(self.gang.size)]
        return commit(begun.state.clients, ids, self.gang.gathered(remembered))

    def _all_news(self, begun: Begun, news: dict[Any, Tree]) -> dict[Any, Tree]:
        """The memories of the clients of all processes, each by its place in the cohort."""
        cohort, seats = begun.cohort, begun.seats
        ids = [cohort.client(place) for place in range(len(cohort.positions))]
        mine = [int(p) for s in begun.mine for p in seats.places[s]]
        template = self.recall.templates(begun.state)
        room = seats.slots * len(begun.mine)
        table = jax.tree.map(lambda a: np.zeros((room, *a.shape), a.dtype), template)
        place, filled = np.zeros(room, np.int32), np.zeros(room, bool)
        for row, p in enumerate(mine):
            if ids[p] in news:
                place[row], filled[row] = p, True
                for a, value in zip(jax.tree.leaves(table), jax.tree.leaves(news[ids[p]]), strict=True):
                    a[row] = value
        every: dict[Any, Tree] = {}
        for theirs, at, taken in self.gang.gathered((table, place, filled)):
            for row in np.flatnonzero(taken).tolist():
                every[ids[int(at[row])]] = jax.tree.map(lambda a, row=row: np.asarray(a[row]).copy(), theirs)
        return every

    # -- what the ways share

    def _device(self, stream: int) -> Any:
        """Where a stream runs; None where there is no choice."""
        return None if self.options.devices is None else self.devices[stream % len(self.devices)]

    def _rooms(self, i: int, begun: Begun) -> tuple[Room, ...]:
        batching = self.round.phases[i].work.batching
        return () if begun.plans else self.placement.rooms(begun.cohort, batching, begun.seats)

    def _examples(self, cohort: Cohort, stream: int) -> Tree:
        with self.meter.span("data"):
            sent = (lambda number: self.meter.count("bytes", number)) if cohort.drawn_from else (lambda number: None)
            return self.placement.examples(cohort.data, self._device(stream), sent)

    def _plans(self, i: int, begun: Begun, streams: Sequence[int], rooms: tuple[Room, ...]) -> list[Plans]:
        """The plans of some streams in one phase."""
        with self.meter.span("plan"):
            made = [begun.plans[i, s] for s in streams] if begun.plans else self._arrays(i, begun, streams, rooms)
        for clients, course in (entry for plans in made for entry in plans):
            steps = int(clients.steps.sum())
            self.meter.count(f"steps {i}", steps)
            self.meter.count("lane steps", steps if course is None else int(course.length) * course.client.shape[1])
            self.meter.count("bytes", sum(np.asarray(a).nbytes for a in jax.tree.leaves((clients, course))))
        return made

    def _arrays(self, i: int, begun: Begun, streams: Sequence[int], rooms: tuple[Room, ...]) -> list[Plans]:
        state, batching = begun.state, self.round.phases[i].work.batching
        number = int(state.round)
        return self.placement.plans(
            begun.cohort, batching, state.seed, number, begun.seats, streams, rooms, begun.lanes
        )

    def _planned(self, begun: Begun) -> Begun:
        """The round with the plans of all its phases and of this process's streams."""
        plans: dict[tuple[int, int], Plans] = {}
        for i in (i for i in range(len(self.round.phases)) if i not in self.hosted):
            made = self._arrays(i, begun, begun.mine, self._rooms(i, begun))
            plans |= {(i, s): one for s, one in zip(begun.mine, made, strict=True)}
        return begun._replace(plans=plans)

    def _metered(self, server: Server) -> Server:
        """The server's programs, with their time."""

        def timed(function: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                with self.meter.span("aggregation"):
                    return _finished(function(*args))

            return run

        return Server(timed(server.brief), timed(server.close))

    def _rows(self, i: int, briefing: Briefing, kept_before: Tree, places: int) -> dict[str, Rows]:
        """Room for what is stacked in a phase."""
        return self.blocks[i].rows(briefing, kept_before, places) if i in self.blocks else {}

    def _summed(
        self, i: int, s: int, rows: dict[str, Rows], places: int, briefing: Briefing, kept: Tree, *given: Any
    ) -> tuple[Totals, Table]:
        """Σ of one phase over stream `s`'s clients, computed; `given` is what `_phase` takes from `present` on."""
        ended: tuple[Totals, Table]
        if rows:
            ended = self.blocks[i](rows, briefing, kept, *given)
        else:
            phase, device = self.round.phases[i], self._device(s)
            like = functools.partial(jax.eval_shape, lambda b, k: nobody(phase, b, k, places), briefing, kept)
            spare = self.spare.take(i, s, like, device, briefing)
            if spare and self._trusts(i, briefing, kept, given[1]):
                *ended, finite = self.trusted(i, places, spare, briefing, kept, *given)
                if finite:
                    return tuple(_finished(ended))
                spare = ended[0].parts
            ended = self.phase(i, places, spare, briefing, kept, *given)
        _finished(ended)
        return ended

    def _trusts(self, i: int, briefing: Briefing, kept: Tree, plans: Plans) -> bool:
        """Whether the totals of a phase, one client after the other, tell of values that are not finite."""
        if i not in self.trusting:
            half = trusting(self.round.phases[i], tree.shapes(briefing), one_row(kept))
            self.trusting.setdefault(i, fast(half) if half and jax.default_backend() == "cpu" else half)
        return self.trusting[i] is not None and all(course is None for _, course in plans)

    def _trusted(self, i: int, places: int, *given: Any) -> tuple[Totals, Table, Any]:
        """As `_phase`, with clients that are not asked for what their totals tell, and whether that was right."""
        totals, table = self._phase(i, places, *given, trusted=True)
        # A client whose weight is invalid is no error if its report is not finite; nothing of it is in the totals.
        return totals, table, finite_sum(totals.parts) & (totals.invalid == NOBODY)

    def _phase(
        self,
        i: int,
        places: int,
        spare: Tree,
        briefing: Briefing,
        kept_before: Tree,
        present: Any,
        plans: Plans,
        examples: Tree,
        memory: Memory,
        seen: Any,
        seed: Any,
        number: Any,
        *,
        trusted: bool = False,
    ) -> tuple[Totals, Table]:
        """Σ of one phase over one stream's clients; the buffers of `spare` become those of the totals."""
        phase, half, run = self.round.phases[i], self.trusting[i] if trusted else self.halves[i], keys.typed(seed)
        assert half is not None
        table = table_of(half, briefing, kept_before, memory, seen, present)
        totals = nobody(phase, briefing, kept_before, places)
        for clients, course in plans:
            if course is None:
                totals, table = stream(
                    i, phase, half, briefing, clients, examples, table, kept_before, totals, run, number
                )
            else:
                totals, table, _ = lanes(
                    i, phase, half, briefing, clients, course, examples, table, kept_before, totals, run, number
                )
        return totals, table


@functools.cache
def _threads(streams: int) -> ThreadPoolExecutor:
    """Threads that each wait for one running program."""
    return ThreadPoolExecutor(streams, thread_name_prefix="sumfold-stream")


def _finished(arrays: Tree) -> Tree:
    """The same arrays, computed."""
    for leaf in jax.tree.leaves(arrays):
        leaf.block_until_ready()
    return arrays


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
