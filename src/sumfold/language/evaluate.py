"""Direct evaluation: a program over the values of all clients at once, compiled; what a call without a runtime does.

The clients' pieces are mapped over an axis of clients, or over clients one after the other where a sequence is
folded; sums are taken over that axis. It is the meaning that runtimes must agree with, and the only way to programs
that return clients' values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Literal

from sumfold import tree
from sumfold.language.interpret import SEQUENCES, Rows, interpret, listed, read
from sumfold.language.plan import Client, Plan
from sumfold.tree import Leaf

__all__ = ["Columns", "Result", "Sequenced", "evaluate"]


class Sequenced(NamedTuple):
    """One sequence argument of all clients.

    Attributes:
        arrays: the leaves of all elements, [N, …], padded to the largest size.
        kind: int32[N], which combination of sizes each element has, or None.
        start, count: int32[K]; int32[] for a sequence without a placement.
    """

    arrays: tuple[Leaf, ...]
    kind: Leaf | None
    start: Leaf
    count: Leaf


class Columns(NamedTuple):
    """The arguments of a call, by variable of the program.

    Attributes:
        server: arrays, one for each variable of the server.
        single: arrays [K, …], one for each variable of a client.
        sequences: one for each handle of a client.
        unplaced: one for each handle without a placement.
        present: bool[K], False for spare places.
    """

    server: list[Leaf]
    single: list[Leaf]
    sequences: list[Sequenced]
    unplaced: list[Sequenced]
    present: Leaf


class Result(NamedTuple):
    """What a call computed.

    Attributes:
        outputs: by output of the program; clients' have a leading axis, and sequences are (arrays, counts).
        violated: for each check of the plan, int32[]: the first place that violated it, or -1; 0 at the server.
        left_out: int32[], clients that were left out because a number of theirs was not finite.
    """

    outputs: list[Any]
    violated: list[Leaf]
    left_out: Leaf


class Sources(NamedTuple):
    """Which variable of the program each argument is."""

    server: list[Any]
    single: list[Any]
    sequences: list[Any]
    unplaced: list[Any]
    shapes: dict[Any, tuple[tuple[tuple[int, ...], ...], ...]]


def evaluate(closed: ClosedJaxpr, plan: Plan, sources: Sources, columns: Columns, capacity: int) -> Result:
    """Run a program; to be traced by `jax.jit`.

    Args:
        closed, plan: the program, sorted into exchanges.
        sources: which variables the arguments are.
        columns: the arguments.
        capacity: room for the elements of a returned sequence.
    """
    constants = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    env: dict[Any, Any] = {**constants, **dict(zip(sources.server, columns.server, strict=True))}
    for variable, s in zip(sources.unplaced, columns.unplaced, strict=True):
        env[variable] = Rows(s.arrays, s.kind, sources.shapes[variable], s.start, s.count)
    at_clients: dict[Any, Any] = dict(zip(sources.single, columns.single, strict=True))
    present, violated = columns.present, []

    def conditions(stated: list[Any]) -> None:
        for variable, _ in stated:
            violated.append(jnp.where(read(env, variable), 0, -1).astype(jnp.int32))

    returned = [v for v in closed.jaxpr.outvars if not isinstance(v, Literal) and v not in plan.broadcasts]
    interpret(plan.servers[0].equations, env, SEQUENCES)
    conditions(plan.servers[0].checks)
    for number, piece in enumerate(plan.clients):
        here = [v for v in returned if v in plan.places and plan.places[v] == (True, number)]
        kept = plan.clients[number - 1].kept if number else []
        message = {variable: read(env, given) for given, variable in piece.received}
        run = _one_client(piece, sources, constants, message, kept, here, columns, capacity)
        given = (
            [at_clients[v] for v in kept],
            columns.single,
            [(s.start, s.count) for s in columns.sequences],
        )
        if piece.folds:
            sums, keeping, flags, outputs = lax.map(run, given)
        else:
            sums, keeping, flags, outputs = jax.vmap(run, axis_size=len(present))(given)
        counted = present & jax.vmap(tree.all_finite, axis_size=len(present))((sums, keeping))
        violated += [jnp.where((counted & f).any(), jnp.argmax(counted & f), -1).astype(jnp.int32) for f in flags]
        for equation, values in zip(piece.sums, sums, strict=True):
            totals = _total(equation.params["group"], values, counted)
            env.update(zip(equation.outvars, [*totals, counted.sum(dtype=jnp.int32)], strict=True))
        at_clients.update(zip(piece.kept, keeping, strict=True))
        at_clients.update(zip(here, outputs, strict=True))
        present = counted
        after = plan.servers[number + 1]
        interpret(after.equations, env, SEQUENCES)
        conditions(after.checks)

    def shown(output: Any) -> Any:
        variable = output if isinstance(output, Literal) else plan.broadcasts.get(output, output)
        if not isinstance(variable, Literal) and variable in at_clients:
            return at_clients[variable]
        value = read(env, variable)
        return (listed(value, capacity), value.count) if isinstance(value, Rows) else value

    results = [shown(output) for output in closed.jaxpr.outvars]
    return Result(results, violated, (columns.present & ~present).sum(dtype=jnp.int32))


def _one_client(
    piece: Client,
    sources: Sources,
    constants: dict[Any, Any],
    message: dict[Any, Any],
    kept: list[Any],
    outputs: list[Any],
    columns: Columns,
    capacity: int,
) -> Any:
    """One client's piece as a function of what it keeps and holds."""

    def run(given: Any) -> Any:
        keeping, single, spans = given
        env = {**constants, **message, **dict(zip(kept, keeping, strict=True))}
        env.update(zip(sources.single, single, strict=True))
        for variable, s, (start, count) in zip(sources.sequences, columns.sequences, spans, strict=True):
            env[variable] = Rows(s.arrays, s.kind, sources.shapes[variable], start, count)
        interpret(piece.equations, env, SEQUENCES)
        shown = [read(env, v) for v in outputs]
        return (
            [[read(env, v) for v in e.invars] for e in piece.sums],
            [read(env, v) for v in piece.kept],
            [read(env, v) for v, _ in piece.checks],
            [(listed(v, capacity), v.count) if isinstance(v, Rows) else v for v in shown],
        )

    return run


def _total(group: Any, values: list[Leaf], counted: Leaf) -> list[Leaf]:
    """Σ over the leading axis, of the counted clients."""
    if group.kind == "add":
        masks = [counted.reshape(-1, *[1] * (v.ndim - 1)) for v in values]
        return [
            jnp.where(m, v, jnp.zeros_like(v)).sum(axis=0, dtype=v.dtype) for m, v in zip(masks, values, strict=True)
        ]
    one = [tree.shape(v.shape[1:], v.dtype) for v in values]

    def add(place: Leaf, total: Any) -> Any:
        row = [lax.dynamic_index_in_dim(v, place, keepdims=False) for v in values]
        more = group.accumulate(total, row, place)
        return jax.tree.map(lambda a, b: jnp.where(counted[place], a, b), more, total)

    totals: list[Leaf] = lax.fori_loop(0, len(counted), add, tree.strong(group.zero(one, len(counted))))
    return totals
