"""The sequential stream: clients one after the other, each a loop over its own batches, inside one program.

The trip counts are data, so ragged clients need no padding steps and one executable serves every cohort. A client's
result is folded into the running totals as soon as it ends: memory is a constant number of copies of the model,
whatever the number of clients. A batch is gathered in the step from the flat rows of all clients, by row numbers
that the host planned; a short batch repeats its first row and masks it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int32

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Keeping, Memory, Start, Upload, client_key
from sumfold.core.driver import Totals, nothing
from sumfold.core.group import Group, Stacked, add, stack
from sumfold.core.round import Batch, Phase
from sumfold.keys import Key
from sumfold.simulation.borrowed import rows_at
from sumfold.simulation.widened import repeated
from sumfold.tree import Leaf, Tree

__all__ = ["Clients", "Span", "Table", "begun", "gather", "nobody", "one_row", "settle", "stream", "table_of"]


class Clients(NamedTuple):
    """The plan of one stream's clients whose batches have one width, as the host sends it.

    Attributes:
        rows: int32[R], rows of the flat examples in the order in which they are taken; R has a batch to spare.
        begin, size: int32[T], where in `rows` each batch begins and how many it takes; T is at least all steps.
        start, steps, held: int32[K], first batch, number of batches, examples held.
        place, slot: int32[K], place in the cohort, and row in the stream's table.
        code: uint32[K], see `sumfold.keys.code`.
        number: int32[], how many of the K are clients; the rest is spare room, so that shapes stay.
    """

    rows: Leaf
    begin: Leaf
    size: Leaf
    start: Leaf
    steps: Leaf
    held: Leaf
    place: Leaf
    slot: Leaf
    code: Leaf
    number: Leaf


class Span(NamedTuple):
    """A part of a stream's plan; see `sumfold.simulation.block`.

    Attributes:
        first, end: int32[], clients (in lanes: steps of the course) from the first until before the end.
        row: int32[K], for each client, which row of a stack gets its value.
    """

    first: Leaf
    end: Leaf
    row: Leaf


class Table(NamedTuple):
    """What stays with the clients of a stream while a round runs, one row a slot; empty for most algorithms.

    Attributes:
        memory: `Memory` with a leading axis of slots.
        seen: bool[S], whether the client has a memory from an earlier round.
        kept: the work's `kept` with a leading axis of slots.
        present: bool[S], False once the client was left out of a phase.
    """

    memory: Memory
    seen: Bool[Array, " s"]
    kept: Tree
    present: Bool[Array, " s"]


def gather(examples: Tree, clients: Clients, t: Int32[Array, ""], width: int) -> Batch:
    """Batch number `t` out of the flat examples; padded places repeat its first row."""
    rows = lax.dynamic_slice(clients.rows, (clients.begin[t],), (width,))
    mask = jnp.arange(width, dtype=jnp.int32) < clients.size[t]
    filled = jnp.where(mask, rows, rows[0])
    return Batch(rows_at(examples, filled), mask)


def _row(table: Tree, place: Int32[Array, ""]) -> Tree:
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, place, keepdims=False), table)


def _set_row(table: Tree, place: Int32[Array, ""], row: Tree) -> Tree:
    return jax.tree.map(lambda a, r: lax.dynamic_update_index_in_dim(a, r, place, 0), table, row)


def stream(
    i: int,
    phase: Phase,
    half: ClientHalf,
    briefing: Briefing,
    clients: Clients,
    examples: Tree,
    table: Table,
    kept_before: Tree,
    totals: Totals,
    run: Key,
    number: Int32[Array, ""],
    span: Span | None = None,
) -> tuple[Totals, Table]:
    """Run these clients' half of phase number `i` and fold what they upload into `totals`.

    Args:
        kept_before: the previous phase's `kept`, one row a slot.
        span: which of them; all by default.
    """
    width = len(clients.rows) // (len(clients.begin) + 1)
    span = span or Span(jnp.int32(0), clients.number, clients.place)

    def client(k: Int32[Array, ""], carry: tuple[Totals, Table]) -> tuple[Totals, Table]:
        totals, table = carry
        place, slot = clients.place[k], clients.slot[k]
        start = begun(half, briefing, table, kept_before, slot, clients.held[k])
        key = client_key(run, i, number, clients.code[k])

        def step(t: Int32[Array, ""], state: Tree) -> Tree:
            assert half.step is not None
            batch = gather(examples, clients, clients.start[k] + t, width)
            return half.step(start, state, batch, keys.at_step(key, t))

        state = half.init(start, key)
        if examples is not None:
            state = repeated(clients.steps[k], step, state)
        upload, keeping = half.finish(start, state, key)
        return settle(phase, place, slot, span.row[k], upload, keeping, totals, table)

    totals, table = lax.fori_loop(span.first, span.end, client, (totals, table))
    return totals, table


def one_row(table: Tree) -> Tree:
    """The shapes of what one client has in a table."""
    return jax.tree.map(lambda a: tree.shape(a.shape[1:], a.dtype), table)


def nobody(phase: Phase, briefing: Briefing, kept_before: Tree, places: int) -> Totals:
    """The totals of nobody, from what the phase before kept, one row a slot."""
    return nothing(phase, briefing, one_row(kept_before), places)


def table_of(half: ClientHalf, briefing: Briefing, kept_before: Tree, memory: Memory, seen: Any, present: Any) -> Table:
    """The table with which a phase begins: nothing is kept yet."""

    def keeping(briefing: Briefing, kept: Tree) -> Tree:
        start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
        key = keys.typed(jnp.zeros(2, jnp.uint32))
        return half.finish(start, half.init(start, key), key)[1].kept

    kept = jax.eval_shape(keeping, briefing, one_row(kept_before))
    return Table(memory, seen, jax.tree.map(lambda a: jnp.zeros((len(seen), *a.shape), a.dtype), kept), present)


def begun(
    half: ClientHalf,
    briefing: Briefing,
    table: Table,
    kept_before: Tree,
    slot: Int32[Array, ""],
    rows: Int32[Array, ""],
) -> Start:
    """All that the client of one slot starts from; a client never seen has a fresh memory."""
    kept = _row(kept_before, slot)
    memory = tree.where(table.seen[slot], _row(table.memory, slot), half.fresh(briefing, kept))
    return Start(briefing, memory, kept, rows)


def settle(
    phase: Phase,
    place: Int32[Array, ""],
    slot: Int32[Array, ""],
    row: Int32[Array, ""],
    upload: Upload,
    keeping: Keeping,
    totals: Totals,
    table: Table,
) -> tuple[Totals, Table]:
    """Fold one client's upload into the totals, and keep what it keeps, if it is counted.

    Args:
        row: of the stacks that the client's values get, counted or not.
    """
    present = table.present[slot]
    counted = present & upload.finite & upload.weights_valid
    parts = {
        part: _entered(stage.group or add, place, row, counted, totals.parts[part], upload.parts[part])
        for part, stage in phase.aggregate.items()
    }
    invalid = present & upload.finite & ~upload.weights_valid
    totals = Totals(
        parts,
        tree.where(counted, tree.add(totals.metrics, upload.metrics), totals.metrics),
        totals.num_clients + counted.astype(jnp.int32),
        totals.num_non_finite_clients + (present & ~upload.finite).astype(jnp.int32),
        jnp.minimum(totals.invalid, jnp.where(invalid, place, totals.invalid)),
    )
    return totals, _keep(table, slot, keeping, counted)


def _entered(
    group: Group,
    place: Int32[Array, ""],
    row: Int32[Array, ""],
    counted: Bool[Array, ""],
    total: Tree,
    value: Tree,
) -> Tree:
    """The total with a client's value, if it is counted."""
    if group.kind in (add.kind, stack.kind):
        # One pass with what computes the value; a branch would have it written to memory before.
        chosen = jax.tree.map(lambda a: jnp.where(counted, a, jnp.zeros((), a.dtype)), value)
        if group.kind == add.kind:
            return tree.add(total, chosen)
        return Stacked(_set_row(total.values, row, chosen), total.present.at[row].set(counted))
    return lax.cond(counted, lambda t, v: group.accumulate(t, v, place), lambda t, v: t, total, value)


def _keep(table: Table, slot: Int32[Array, ""], keeping: Keeping, counted: Bool[Array, ""]) -> Table:
    """Commit what the client keeps; a client that was not counted keeps what it had."""
    memory = tree.where(counted, keeping.memory, _row(table.memory, slot))
    return Table(
        _set_row(table.memory, slot, memory),
        table.seen,
        _set_row(table.kept, slot, keeping.kept),
        table.present.at[slot].set(counted),
    )
