"""Σ over clients whose work is a Python function: their functions run elsewhere, their results enter one by one.

Which machine or process runs a client is a `Host`'s business. Results are taken in the cohort's order, whatever the
order in which they come, so the sums do not depend on the number of workers; only a few results wait at a time.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, Memory, client_half, client_key
from sumfold.core.cohort import Cohort
from sumfold.core.driver import Notes, State, Totals
from sumfold.core.host import Failure, all_failed, carry_shapes, conformed, held, report_failure, shaped
from sumfold.core.round import HostWork, Phase
from sumfold.core.rows import Rows, individual, with_rows
from sumfold.keys import HostKey
from sumfold.simulation.spill import Stacks
from sumfold.simulation.stream import Table, begun, nobody, one_row, settle, table_of
from sumfold.tree import Tree

__all__ = ["Asked", "Ended", "Host", "Hosted", "Pool"]

_AHEAD = 4
"""Clients for each worker that may be finished before an earlier one is."""


class Asked(NamedTuple):
    """One client's work to do: its place in the cohort, what it holds, its key and its memory."""

    place: int
    data: Tree
    key: HostKey
    memory: Tree


class Ended(NamedTuple):
    """What came of it; `retried` says why it had to be asked twice."""

    place: int
    carry: Tree | Failure
    retried: str | None = None


@runtime_checkable
class Pool(Protocol):
    """Workers that are running."""

    @property
    def size(self) -> int:
        """How many clients it works on at once."""

    def load(self, run: Callable[..., Any], message: Tree) -> None:
        """Give every worker the function and the message of the clients that follow."""

    def submit(self, asked: Asked) -> None:
        """Start one client; at most `size` may be unfinished."""

    def ended(self) -> list[Ended]:
        """Wait until one client or more has ended."""

    def abandon(self) -> None:
        """Give up what is unfinished."""


@runtime_checkable
class Host(Protocol):
    """Where clients' Python functions run; `Workers` on this machine, `Ray` on a cluster."""

    def open(self) -> Pool:
        """Its running workers, started at first need and kept."""


class Hosted:
    """One phase of host work: asks the clients, and takes their results in by compiled programs."""

    def __init__(self, i: int, phase: Phase, stacks: Stacks) -> None:
        assert isinstance(phase.work, HostWork)
        self.i, self.phase, self.work, self.stacks = i, phase, phase.work, stacks
        self.fresh = jax.jit(client_half(phase).fresh)
        self.told = False  # whether a failure's traceback was shown
        self.programs: dict[tuple[Any, ...], tuple[Phase, Callable[..., tuple[Totals, Table]]]] = {}

    def __call__(
        self,
        pool: Pool,
        state: State,
        cohort: Cohort,
        briefing: Briefing,
        kept_before: Tree,
        memory: Memory,
        seen: Any,
        present: Any,
    ) -> tuple[Totals, Table, Notes]:
        """Σ of this phase.

        Args:
            pool: runs the clients' functions.
            state, cohort, briefing: of the round.
            kept_before, memory: what each client has, one row a place.
            seen, present: bool[P], whether it has a memory, and is still in the round.

        Raises:
            WorkError: when every client that was asked failed, or one returned something unusable.
        """
        rows = np.asarray(cohort.data.counts)[cohort.positions]
        inside = np.asarray(present)[: len(rows)]
        places = np.flatnonzero(inside & (rows > 0)).tolist()
        kept_one = one_row(kept_before)
        expected = carry_shapes(self.phase, briefing, kept_one)
        failed: dict[int, Failure] = {}
        retried: dict[int, str] = {}
        sum_up: _Sum | None = None

        pool.load(self.work.run, jax.tree.map(np.asarray, briefing.message))
        template = jax.eval_shape(self.fresh, briefing, kept_one)
        unseen: Memory = template
        if jax.tree.leaves(template.work):
            unseen = jax.tree.map(np.asarray, self.fresh(briefing, tree.zeros_like(kept_one)))
        asked = (self._asked(state, cohort, place, unseen) for place in places)
        for place, carry, why in _in_order(pool, asked):
            if why:
                retried[place] = why
            if isinstance(carry, Failure):
                failed[place] = carry
                report_failure(cohort.client(place), carry, first=not self.told)
                self.told = True
                continue
            arrays = conformed(self.work, expected, carry, self.phase, briefing.message)
            if expected is None:
                expected = tree.shapes(arrays)
            if sum_up is None:
                sum_up = self._sum(expected, state, briefing, kept_before, memory, seen, present)
            sum_up.take(place, arrays, int(rows[place]), keys.code(cohort.client(place)))
        if failed and len(failed) == len(places):
            raise all_failed(cohort.client(places[0]), failed[places[0]], len(places))
        if sum_up is None:
            sum_up = self._sum(expected, state, briefing, kept_before, memory, seen, present)
        for place in np.flatnonzero(inside & (rows == 0)).tolist():
            sum_up.take(place, None, 0, keys.code(cohort.client(place)))
        table = sum_up.table
        if failed:
            table = table._replace(present=table.present.at[np.array(list(failed))].set(False))
        notes = Notes(
            {cohort.client(place): failure.reason for place, failure in failed.items()},
            {cohort.client(place): why for place, why in retried.items()},
        )
        return with_rows(self.phase, sum_up.totals, sum_up.rows), table, notes

    def _asked(self, state: State, cohort: Cohort, place: int, unseen: Memory) -> Asked:
        client, memory = cohort.client(place), unseen
        if client in state.clients:
            memory = tree.unflatten(tree.structure(unseen), jax.tree.leaves(state.clients[client][self.i]))
        seed = (int(state.seed[0]) << 32) | int(state.seed[1])
        key = HostKey(seed, int(state.round), self.i, keys.code(client))
        return Asked(place, held(cohort.data, int(cohort.positions[place])), key, memory.work)

    def _sum(
        self,
        carry: Tree | None,
        state: State,
        briefing: Briefing,
        kept_before: Tree,
        memory: Memory,
        seen: Any,
        present: Any,
    ) -> _Sum:
        """The sum of nobody yet, over carries of these shapes."""
        at = tree.specs(carry)
        if at not in self.programs:
            phase = shaped(self.phase, carry)
            self.programs[at] = phase, jax.jit(_entered(self.i, phase), donate_argnames=("totals", "table"))
        phase, program = self.programs[at]
        half = client_half(phase)
        table = jax.tree.map(jnp.array, table_of(half, briefing, kept_before, memory, seen, present))
        totals = jax.tree.map(jnp.array, nobody(phase, briefing, kept_before, 1))
        constants = (briefing, kept_before, state.seed, np.int32(state.round))
        rows = self.stacks(individual(phase), totals, len(seen))
        return _Sum(functools.partial(program, *constants), totals, table, rows)


@dataclass
class _Sum:
    """Totals and table while results come in; each result replaces both, in place where the device can.

    Where the value of every client is needed, a result is a block of its own, see `sumfold.simulation.block`.
    """

    program: Callable[..., tuple[Totals, Table]]
    totals: Totals
    table: Table
    rows: dict[str, Rows]

    def take(self, place: int, carry: Tree | None, rows: int, code: int) -> None:
        """Let one client's result enter; None is a client without rows."""
        self.totals, self.table = self.program(
            carry, np.int32(place), np.int32(rows), np.uint32(code), totals=self.totals, table=self.table
        )
        for part, stacked in self.rows.items():
            stacked.put([place], self.totals.parts[part].values, self.totals.parts[part].present)


def _entered(i: int, phase: Phase) -> Callable[..., tuple[Totals, Table]]:
    """One client's result into totals and table: what the stream does after a client's last step."""
    half = client_half(phase)

    def enter(
        briefing: Briefing,
        kept_before: Tree,
        seed: Any,
        number: Any,
        carry: Tree | None,
        place: Any,
        rows: Any,
        code: Any,
        totals: Totals,
        table: Table,
    ) -> tuple[Totals, Table]:
        start = begun(half, briefing, table, kept_before, place, rows)
        key = client_key(keys.typed(seed), i, number, code)
        carry = half.init(start, key) if carry is None else carry
        upload, keeping = half.finish(start, carry, key)
        return settle(phase, place, place, jnp.int32(0), upload, keeping, totals, table)

    return enter


def _in_order(pool: Pool, clients: Iterator[Asked]) -> Iterator[Ended]:
    """Every client's end, in the order of `clients`; at most a few wait for an earlier one."""
    order: deque[int] = deque()
    waiting: dict[int, Ended] = {}
    working = 0
    try:
        while True:
            while working < pool.size and len(order) < _AHEAD * pool.size:
                asked = next(clients, None)
                if asked is None:
                    break
                pool.submit(asked)
                order.append(asked.place)
                working += 1
            if not order:
                return
            if order[0] not in waiting:
                for ended in pool.ended():
                    waiting[ended.place] = ended
                    working -= 1
            while order and order[0] in waiting:
                yield waiting.pop(order.popleft())
    finally:
        if working:
            pool.abandon()
