"""The block form: clients in blocks, for rules that need the value of every client and not only their sum.

A stack of all clients' values is no total that a loop should carry: a stream would hold one, its merge a second, and
the rule makes more. Here one program runs a bounded number of a stream's clients and returns their values, a row each;
the host writes those rows where the rule will read them (`sumfold.core.rows`), one array for all streams, and runs the
same program on the clients that follow. What is a sum in the same phase, client memory and, in lanes, the clients that
have not ended are handed from block to block, in buffers that each block gives to the next. So

    memory = one stack + streams · one block,

and a block changes the order of nothing: the other parts get the same bytes for any size of blocks. In the sequential
stream a block is a run of clients; in lanes a run of the course's steps in which no more clients end than it has rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Memory
from sumfold.core.compiled import compiled
from sumfold.core.driver import Totals
from sumfold.core.round import Phase
from sumfold.core.rows import Rows, individual
from sumfold.simulation.lanes import Course, lanes
from sumfold.simulation.placement import Plans
from sumfold.simulation.spill import Stacks
from sumfold.simulation.stream import Clients, Span, Table, nobody, stream, table_of
from sumfold.tree import Tree

__all__ = ["Blocks", "rows_of_a_block", "spans"]

_BYTES = 16 << 20
"""Of a block's rows: so small that they are still in a cache when they are copied, or soon written over; so large that
starting a program for each block is nothing beside it."""


class Going(NamedTuple):
    """What a block hands to the next.

    Attributes:
        totals: of the parts that are sums; of the others, a stack of as many rows as a block has.
        table: of the stream.
        lanes: the clients that have begun and not ended; () in the sequential stream.
    """

    totals: Totals
    table: Table
    lanes: Tree


class Blocks:
    """One phase in blocks.

    Args:
        i: the phase's number.
        phase: the phase.
        half: its client half, in the form that this backend computes fast.
        stacks: makes room for the rows.
    """

    def __init__(self, i: int, phase: Phase, half: ClientHalf, stacks: Stacks) -> None:
        self.i, self.phase, self.half, self.stacks = i, phase, half, stacks
        self.parts = individual(phase)
        self.opened = compiled(self._opened, static_argnums=0)
        self.waiting = compiled(self._waiting)
        self.program = compiled(self._block, donate_argnums=0)
        self._like: Totals | None = None

    def rows(self, briefing: Briefing, kept_before: Tree, places: int) -> dict[str, Rows]:
        """Room for the values of all clients, by part.

        Raises:
            DataError: when there is none, neither in memory nor on the disk.
        """
        if self._like is None:
            self._like = jax.eval_shape(lambda b, k: nobody(self.phase, b, k, 1), briefing, kept_before)
        return self.stacks(self.parts, self._like, places)

    def __call__(
        self,
        rows: Mapping[str, Rows],
        briefing: Briefing,
        kept_before: Tree,
        present: Any,
        plans: Plans,
        examples: Tree,
        memory: Memory,
        seen: Any,
        seed: Any,
        number: Any,
    ) -> tuple[Totals, Table]:
        """Σ of the phase over one stream's clients, whose values go to `rows`; the totals are those of the sums."""
        assert self._like is not None
        width = max((1 if course is None else course.client.shape[1] for _, course in plans), default=1)
        values = [self._like.parts[part].values for part in self.parts]
        room = rows_of_a_block(tree.shapes(values), len(seen), width)
        totals, table = self.opened(room, briefing, kept_before, memory, seen, present)
        for clients, course in plans:
            constants = briefing, kept_before, clients, course, examples, seed, number
            before = () if course is None else self.waiting(table, *constants)
            for span, places in spans(clients, course, room):
                totals, table, before = self.program(Going(totals, table, before), span, *constants)
                for part, some in rows.items():
                    # no view of a row may be left when the next block takes the buffer
                    some.put(places, totals.parts[part].values, totals.parts[part].present)
        return totals._replace(parts={p: total for p, total in totals.parts.items() if p not in rows}), table

    def _opened(
        self, room: int, briefing: Briefing, kept_before: Tree, memory: Memory, seen: Any, present: Any
    ) -> tuple[Totals, Table]:
        """What the first block begins with, in buffers of its own."""
        table = table_of(self.half, briefing, kept_before, memory, seen, present)
        return nobody(self.phase, briefing, kept_before, room), jax.tree.map(jnp.copy, table)

    def _waiting(self, table: Table, briefing: Briefing, kept_before: Tree, *constants: Any) -> Tree:
        """The lanes before their first step."""

        def after(table: Table) -> Tree:
            totals = nobody(self.phase, briefing, kept_before, 1)
            return self._block(Going(totals, table, None), None, briefing, kept_before, *constants).lanes

        return tree.zeros_like(jax.eval_shape(after, table))

    def _block(
        self,
        going: Going,
        span: Span | None,
        briefing: Briefing,
        kept_before: Tree,
        clients: Clients,
        course: Course | None,
        examples: Tree,
        seed: Any,
        number: Any,
    ) -> Going:
        totals, table, before = going
        about, run = (self.i, self.phase, self.half, briefing, clients), keys.typed(seed)
        if course is None:
            done = stream(*about, examples, table, kept_before, totals, run, number, span)
            return Going(*done, before)
        return Going(*lanes(*about, course, examples, table, kept_before, totals, run, number, span, before))


def rows_of_a_block(values: Tree, clients: int, width: int) -> int:
    """How many clients' values one block holds: a function of sizes alone.

    Args:
        values: what a client gives, with a leading axis of any length: arrays or shapes.
        clients: that a stream has room for.
        width: lanes, which may all end in one step; 1 for the sequential stream.

    Example:
        >>> rows_of_a_block(np.zeros((1, 1_000_000), np.float32), 100, 1)
        4
        >>> rows_of_a_block(np.zeros((1, 10), np.float32), 100, 1), rows_of_a_block(np.zeros((1, 10**9), "i1"), 100, 8)
        (100, 8)
    """
    leaves = jax.tree.leaves(values)
    row: int = sum(math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)
    return max(min(_BYTES // max(row, 1), clients), width)


def spans(clients: Clients, course: Course | None, room: int) -> Iterator[tuple[Span, NDArray[np.int32]]]:
    """The blocks of a stream's plan, each with the places of the clients that end in it, by row.

    Args:
        clients, course: the plan.
        room: rows of a block, at least as many as there are lanes.
    """
    if course is None:
        order = np.arange(int(clients.number))
        ended = np.arange(len(order) + 1)  # before each client
    else:
        last = np.asarray(course.last)[: int(course.length)]
        order = np.asarray(course.client)[: len(last)][last]
        ended = np.concatenate([[0], np.cumsum(last.sum(1))])  # before each step
    row = np.zeros(len(clients.place), np.int32)
    first = 0
    while first < len(ended) - 1:
        end = int(np.searchsorted(ended, ended[first] + room, side="right")) - 1
        block = order[ended[first] : ended[end]]
        row[block] = np.arange(len(block))
        yield Span(np.int32(first), np.int32(end), row.copy()), np.asarray(clients.place)[block]
        first = end
