"""The Simulation runtime: Σ as a compiled stream of clients on the local device, a whole round in one program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Keeping, Memory, Start, client_half
from sumfold.core.cohort import Cohort
from sumfold.core.driver import Notes, Outcome, State, Totals, check_groups, compiled_server, nothing, play
from sumfold.core.group import KINDS
from sumfold.core.round import HostWork, Round
from sumfold.core.store import ClientStore
from sumfold.errors import CompositionError, user_facing
from sumfold.simulation.canonical import canonical
from sumfold.simulation.host import Host, Hosted
from sumfold.simulation.placement import Placement
from sumfold.simulation.stream import Clients, Table, stream, table_of
from sumfold.simulation.workers import Workers
from sumfold.tree import Tree

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation:
    """All clients on this machine, as fast as it can: the default runtime.

    Clients run one after the other in one compiled program; data is placed on the device once and each round sends
    row numbers only. Clients whose work is a Python function (PyTorch, scikit-learn) run in worker processes instead.
    Offers every kind of sum.

    Args:
        host: where clients' Python functions run: `Workers` of this machine by default, or `Ray`.

    Example:
        >>> sorted(Simulation().groups)
        ['add', 'fold', 'max', 'min', 'modular', 'stack']
    """

    host: Host | Any = None

    @user_facing
    def __post_init__(self) -> None:
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
        return _Bound(round, self.host or Workers())


class _Bound:
    """One algorithm's compiled rounds."""

    def __init__(self, round: Round, host: Host) -> None:
        self.round, self.host = round, host
        self.halves = [_fast(client_half(phase)) for phase in round.phases]
        self.hosted = {i: Hosted(i, phase) for i, phase in enumerate(round.phases) if isinstance(phase.work, HostWork)}
        self.server = compiled_server(round) if self.hosted else round
        self.placement = Placement()
        self.compiled = jax.jit(self._play)
        self.phase = jax.jit(self._phase, static_argnums=0)
        self._memory: tuple[Memory, ...] | None = None

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        number = int(state.round)
        places = self.placement.places(len(cohort.positions))
        plans = tuple(
            () if i in self.hosted else self.placement.clients(cohort, phase.work.batching, state.seed, number, places)
            for i, phase in enumerate(self.round.phases)
        )
        examples = self.placement.examples(cohort.data) if len(self.hosted) < len(self.round.phases) else None
        ids = [cohort.client(p) for p in range(len(cohort.positions))] if self._remembers(state) else []
        memory, seen = self._recall(state, ids, places)
        if self.hosted:
            return self._by_phase(state, cohort, plans, examples, memory, seen, ids)
        algorithm, stages, metrics, invalid, remembered = self.compiled(
            state.algorithm, state.stages, state.seed, np.int32(number), plans, examples, memory, seen
        )
        clients = _commit(state.clients, ids, remembered)
        return Outcome(algorithm, stages, clients, metrics, invalid)

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

        def sigma(i: int, briefing: Briefing, carried: Tree) -> tuple[Totals, Tree]:
            kept, present = carried
            totals, table = self._phase(i, briefing, kept, present, plans[i], examples, memories[i], seen, seed, number)
            after.append(table.memory)
            return totals, (table.kept, table.present)

        carried = ((), jnp.ones(len(seen), bool))
        algorithm, stages, metrics, invalid, (_, counted) = play(
            self.round, algorithm, stages, keys.typed(seed), number, sigma, carried
        )
        return algorithm, stages, metrics, invalid, (tuple(after), counted)

    def _by_phase(
        self,
        state: State,
        cohort: Cohort,
        plans: tuple[tuple[Clients, ...], ...],
        examples: Tree,
        memories: tuple[Memory, ...],
        seen: Any,
        ids: list[Any],
    ) -> Outcome:
        """One round of which some phases are Python functions: the server's programs and the other phases' in turn."""
        after: list[Memory] = []
        failed: dict[Any, str] = {}
        retried: dict[Any, str] = {}
        number = np.int32(state.round)

        def sigma(i: int, briefing: Briefing, carried: Tree) -> tuple[Totals, Tree]:
            kept, present = carried
            if i in self.hosted:
                totals, table, notes = self.hosted[i](
                    self.host.open(), state, cohort, briefing, kept, memories[i], seen, present
                )
                failed.update(notes.failed)
                retried.update(notes.retried)
            else:
                totals, table = self.phase(
                    i, briefing, kept, present, plans[i], examples, memories[i], seen, state.seed, number
                )
            after.append(table.memory)
            return totals, (table.kept, table.present)

        carried = ((), np.ones(len(seen), bool))
        run = keys.typed(state.seed)
        algorithm, stages, metrics, invalid, (_, counted) = play(
            self.server, state.algorithm, state.stages, run, number, sigma, carried
        )
        clients = _commit(state.clients, ids, (tuple(after), counted))
        return Outcome(algorithm, stages, clients, metrics, invalid, Notes(failed, retried))

    def _phase(
        self,
        i: int,
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
        """Σ of one phase as a stream."""
        phase, half, run = self.round.phases[i], self.halves[i], keys.typed(seed)
        table = table_of(half, briefing, kept_before, memory, seen, present)
        kept_one = jax.tree.map(lambda a: tree.shape(a.shape[1:], a.dtype), kept_before)
        totals = nothing(phase, briefing, kept_one, len(seen))
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

    def _recall(self, state: State, ids: list[Any], places: int) -> tuple[tuple[Memory, ...], Any]:
        """The cohort's memories, stacked by place; clients never seen are told apart by `seen`."""
        templates = self._templates(state)
        seen = np.zeros(places, bool)
        stacked = jax.tree.map(lambda a: np.zeros((places, *a.shape), a.dtype), templates)
        for place, client in enumerate(ids):
            if client in state.clients:
                seen[place] = True
                held = jax.tree.leaves(state.clients[client])
                for row, value in zip(jax.tree.leaves(stacked), held, strict=True):
                    row[place] = value
        return stacked, seen


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


def _commit(store: ClientStore, ids: list[Any], remembered: Any) -> ClientStore:
    """A new version of the store with the memories of the clients that were counted in every phase."""
    if not ids:
        return store
    memories, counted = jax.device_get(remembered)
    return store.commit(
        {
            client: jax.tree.map(lambda a, place=place: a[place].copy(), memories)
            for place, client in enumerate(ids)
            if counted[place]
        }
    )
