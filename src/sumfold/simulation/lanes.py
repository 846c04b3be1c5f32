"""The lane stream: many clients abreast, each lane a sequence of whole clients, in one program.

A step of a tiny model costs more in its loop than in its arithmetic; on an accelerator so does a step of any model.
Here one step of the loop is a step of L clients, vectorised over the lanes. A lane goes on to its next client where
the last one ended: the client's beginning is selected in the same fused operation as the step, and what it uploads
is folded into the totals in those steps only in which some lane ends a client. Waste is bounded by the last client
of each lane.

Beside `sumfold.simulation.stream` this is the same sum in another order. Where every client takes one step at most,
nothing has to be selected: all lanes begin from the same model, and what the step multiplies with it is one matrix
product for all of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32

from sumfold import keys, tree
from sumfold.core.batching import Plan
from sumfold.core.client import Briefing, ClientHalf, Keeping, Start, Upload, client_key
from sumfold.core.driver import Totals
from sumfold.core.group import Group, Stacked, add, stack
from sumfold.core.round import Phase
from sumfold.keys import Key
from sumfold.simulation.packing import spread
from sumfold.simulation.postponed import Postponed, abreast, taken
from sumfold.simulation.stream import Clients, Span, Table, begun, gather
from sumfold.tree import Leaf, Tree

__all__ = ["Course", "course", "lanes"]


class Course(NamedTuple):
    """Which client's which batch each lane takes in each step.

    Attributes:
        client, batch, step: int32[T, L], the client's number in the plan, the batch's, and the step's within the
            client; -1 for a batch where a client has none, and for a client where the lane has ended. `step` is None
            where no client takes more than one.
        last: bool[T, L], whether the client ends with this step.
        length: int32[], steps in which some lane is not at its end.
    """

    client: Leaf
    batch: Leaf
    step: Leaf
    last: Leaf
    length: Leaf


def course(made: Plan, width: int, length: int, *, single: bool) -> Course:
    """Lay clients into lanes, longest first; NumPy, without a loop over clients.

    Args:
        made: the clients' batches.
        width: lanes.
        length: steps that there is room for.
        single: whether no client ever takes more than one step.
    """
    taken = np.maximum(made.steps, 1)  # a client without batches still begins and ends
    lane = spread(taken, width)
    by_lane = np.argsort(lane, kind="stable")
    ends = np.cumsum(taken[by_lane])
    load = np.bincount(lane, taken, width).astype(np.int64)
    offset = np.empty(len(taken), np.int64)
    offset[by_lane] = ends - taken[by_lane] - np.repeat(np.cumsum(load) - load, np.bincount(lane, minlength=width))

    client = np.repeat(np.arange(len(taken)), taken)  # one entry a step
    step = np.arange(len(client)) - np.repeat(np.cumsum(taken) - taken, taken)
    at = (offset[client] + step, lane[client])
    shape = length, width
    whose, batch, number = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32), np.zeros(shape, np.int32)
    last = np.zeros(shape, bool)
    whose[at], number[at], last[at] = client, step, step == taken[client] - 1
    batch[at] = np.where(made.steps[client] > 0, made.start[client] + step, -1)
    return Course(whose, batch, None if single else number, last, np.int32(load.max(initial=0)))


def lanes(
    i: int,
    phase: Phase,
    half: ClientHalf,
    briefing: Briefing,
    clients: Clients,
    course: Course,
    examples: Tree,
    table: Table,
    kept_before: Tree,
    totals: Totals,
    run: Key,
    number: Int32[Array, ""],
    span: Span | None = None,
    before: Tree = None,
) -> tuple[Totals, Table, Tree]:
    """Run these clients' half of phase number `i` in lanes and fold what they upload into `totals`.

    Args:
        kept_before: the previous phase's `kept`, one row a slot.
        span: which steps of the course; all by default.
        before: the lanes as the steps before `span` left them; None at the beginning.

    Returns:
        (totals, table, the lanes after these steps).
    """
    single = course.step is None
    span = span or Span(jnp.int32(0), course.length, clients.place)
    width = len(clients.rows) // (len(clients.begin) + 1)

    def begin(k: Int32[Array, ""]) -> tuple[Start, Key]:
        start = begun(half, briefing, table, kept_before, clients.slot[k], clients.held[k])
        return start, client_key(run, i, number, clients.code[k])

    def moved(state: Tree, k: Int32[Array, ""], batch: Int32[Array, ""], step: Int32[Array, ""] | None) -> Tree:
        """One lane's step."""
        start, key = begin(k)
        fresh = half.init(start, key)
        state = fresh if step is None else tree.where(step == 0, fresh, state)
        if examples is None or half.step is None:
            return state
        here = gather(examples, clients, jnp.maximum(batch, 0), width)
        after = half.step(start, state, here, keys.at_step(key, 0 if step is None else step))
        return tree.where(batch >= 0, after, state)

    def ended(state: Tree, k: Int32[Array, ""]) -> tuple[Upload, Keeping]:
        start, key = begin(k)
        return half.finish(start, state, key)

    def body(t: Int32[Array, ""], carry: tuple[Tree, Totals, Table]) -> tuple[Tree, Totals, Table]:
        state, totals, table = carry
        whose, last = course.client[t], course.last[t]
        k = jnp.maximum(whose, 0)
        state = jax.vmap(moved)(state, k, course.batch[t], course.step[t])

        def fold(totals: Totals, table: Table) -> tuple[Totals, Table]:
            upload, keeping = jax.vmap(ended)(state, k)
            at = clients.place[k], clients.slot[k], span.row[k]
            return _settle_all(phase, last, *at, upload, keeping, totals, table)

        return state, *lax.cond(last.any(), fold, lambda *same: same, totals, table)

    def whole(t: Int32[Array, ""], carry: tuple[Tree, Totals, Table]) -> tuple[Tree, Totals, Table]:
        """A step in which every lane begins a client and ends it."""
        _, totals, table = carry
        k, batch = jnp.maximum(course.client[t], 0), course.batch[t]

        def client(k: Int32[Array, ""], batch: Int32[Array, ""]) -> tuple[Upload, Keeping]:
            return ended(moved((), k, batch, None), k)

        def fold(made: tuple[Upload, Keeping]) -> tuple[Totals, Table]:
            at = clients.place[k], clients.slot[k], span.row[k]
            return _settle_all(phase, course.last[t], *at, *made, totals, table)

        made, known = abreast(client, k, batch)
        if known is None:
            return (), *fold(made)
        return (), *lax.cond(known, lambda: fold(made), lambda: fold(jax.vmap(client)(k, batch)))

    if before is None:
        one: Any = () if single else jax.eval_shape(jax.vmap(lambda k: half.init(*begin(k))), course.client[0])
        before = tree.zeros_like(one)
    carry = lax.fori_loop(span.first, span.end, whole if single else body, (before, totals, table))
    after, totals, table = carry
    return totals, table, after


def _settle_all(
    phase: Phase,
    ended: Bool[Array, " l"],
    place: Int32[Array, " l"],
    slot: Int32[Array, " l"],
    row: Int32[Array, " l"],
    upload: Upload,
    keeping: Keeping,
    totals: Totals,
    table: Table,
) -> tuple[Totals, Table]:
    """What `sumfold.simulation.stream.settle` does, for the lanes that end a client; the others change nothing."""
    present = table.present[slot] & ended
    counted = present & upload.finite & upload.weights_valid

    def summed(total: Leaf, values: Any) -> Leaf:
        if isinstance(values, Postponed):
            return total + values.total(counted)
        chosen = jnp.where(counted.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.zeros((), values.dtype))
        if values.ndim == 1 or not jnp.issubdtype(values.dtype, jnp.floating):
            return total + chosen.sum(0, dtype=total.dtype)
        # A matrix product: XLA's sums over the first axis go through memory in columns, twice as slow as all the rest.
        ones, flat = jnp.ones(len(values), values.dtype), chosen.reshape(len(values), -1)
        product = jnp.dot(ones, flat, precision=lax.Precision.HIGHEST, preferred_element_type=total.dtype)
        return total + product.reshape(total.shape)

    def one_by_one(group: Group, total: Tree, values: Tree) -> Tree:
        def enter(lane: Int32[Array, ""], total: Tree) -> Tree:
            value = jax.tree.map(lambda a: a[lane], values)
            return lax.cond(counted[lane], lambda t: group.accumulate(t, value, place[lane]), lambda t: t, total)

        return lax.fori_loop(0, len(counted), enter, total)

    def written(total: Leaf, values: Leaf) -> Leaf:
        chosen = jnp.where(counted.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.zeros((), values.dtype))
        return total.at[jnp.where(ended, row, len(total))].set(chosen, mode="drop")

    parts = {}
    for part, stage in phase.aggregate.items():
        group = stage.group or add
        if group.kind == add.kind:
            parts[part] = jax.tree.map(summed, totals.parts[part], upload.parts[part])
        elif group.kind == stack.kind:
            parts[part] = jax.tree.map(written, totals.parts[part], Stacked(taken(upload.parts[part]), counted))
        else:
            parts[part] = one_by_one(group, totals.parts[part], taken(upload.parts[part]))
    invalid = present & upload.finite & ~upload.weights_valid
    totals = Totals(
        parts,
        jax.tree.map(summed, totals.metrics, upload.metrics),
        totals.num_clients + counted.sum(dtype=jnp.int32),
        totals.num_non_finite_clients + (present & ~upload.finite).sum(dtype=jnp.int32),
        jnp.minimum(totals.invalid, jnp.where(invalid, place, totals.invalid).min()),
    )
    return totals, _keep_all(table, ended, slot, keeping, counted)


def _keep_all(
    table: Table, ended: Bool[Array, " l"], slot: Int32[Array, " l"], keeping: Keeping, counted: Bool[Array, " l"]
) -> Table:
    """Commit what the ended clients keep; a client that was not counted keeps the memory that it had."""

    def rows(held: Tree, news: Tree, which: Bool[Array, " l"]) -> Tree:
        at = jax.tree.map(lambda a: jnp.where(which, slot, len(a)), held)
        return jax.tree.map(lambda a, i, new: a.at[i].set(new, mode="drop"), held, at, taken(news))

    return Table(
        rows(table.memory, keeping.memory, counted),
        table.seen,
        rows(table.kept, keeping.kept, ended),
        table.present.at[jnp.where(ended, slot, len(table.present))].set(counted, mode="drop"),
    )
