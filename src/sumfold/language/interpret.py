"""Running traced programs: JAX's own operations as they are, the few of the language by rules.

While a program runs, a sequence's handle stands for `Rows`: flat arrays that hold the elements of all clients one
after the other, and the place where this client's begin. Elements of several sizes lie padded in them, with a number
that says which of the known sizes each has; an operation was traced for every size, and the number picks the program.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, DropVar, Jaxpr, Literal, jaxpr_as_fun

from sumfold.language.primitives import (
    Body,
    broadcast_p,
    sequence_map_p,
    sequence_of_p,
    sequence_reduce_p,
)
from sumfold.tree import Leaf

__all__ = ["Rows", "Rules", "apply_body", "gathered", "interpret"]

Rules: TypeAlias = Mapping[Any, Callable[[Any, list[Any]], list[Any]]]
"""By primitive: (equation, inputs) -> outputs."""


class Rows(NamedTuple):
    """A sequence while a program runs.

    Attributes:
        arrays: the leaves of all elements, [N, …], padded to the largest size.
        kind: int32[N], which of `shapes` each element has; None when there is one.
        shapes: for each kind, the shapes of the leaves.
        start, count: int32[], where this sequence begins in the arrays, and its length.
        maps: what is applied to each element before it is used: bodies and their constants.
        room: the length where it is known while tracing, or None.
    """

    arrays: tuple[Leaf, ...]
    kind: Leaf | None
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    start: Leaf
    count: Leaf
    maps: tuple[tuple[tuple[Body, ...], tuple[Leaf, ...]], ...] = ()
    room: int | None = None


def interpret(equations: Iterable[Any], env: dict[Any, Any], rules: Rules) -> None:
    """Evaluate equations in order; `env` holds the variables' values and receives the results."""
    for special, run in itertools.groupby(equations, key=lambda e: e.primitive in rules):
        if not special:
            _evaluate(list(run), env)
            continue
        for equation in run:
            outputs = rules[equation.primitive](equation, [read(env, v) for v in equation.invars])
            env.update(zip(equation.outvars, outputs, strict=True))


def _evaluate(equations: list[Any], env: dict[Any, Any]) -> None:
    """JAX's own operations, by JAX: as a program of their own whose results are all of their variables."""
    made = dict.fromkeys(v for e in equations for v in e.outvars if not isinstance(v, DropVar))
    needed = dict.fromkeys(v for e in equations for v in e.invars if not isinstance(v, Literal))
    given = [v for v in needed if v not in made]
    program = ClosedJaxpr(Jaxpr((), given, list(made), equations, debug_info=_UNNAMED), ())
    env.update(zip(made, jaxpr_as_fun(program)(*[env[v] for v in given]), strict=True))


def read(env: dict[Any, Any], variable: Any) -> Any:
    """The value of a variable or literal."""
    if not isinstance(variable, Literal):
        return env[variable]
    aval: Any = variable.aval
    return jnp.asarray(variable.val, aval.dtype)


def apply_body(body: Body, consts: Sequence[Leaf], *operands: Leaf) -> list[Leaf]:
    """Run a local program."""
    own = consts[body.at : body.at + body.number]
    env = dict(zip([*body.jaxpr.constvars, *body.jaxpr.invars], [*own, *operands], strict=True))
    interpret(body.jaxpr.eqns, env, SEQUENCES)
    return [read(env, v) for v in body.jaxpr.outvars]


def element(rows: Rows, kind: int, padded: Sequence[Leaf]) -> list[Leaf]:
    """One element out of its padded leaves, after the sequence's maps."""
    leaves = [a[tuple(slice(d) for d in s)] for a, s in zip(padded, rows.shapes[kind], strict=True)]
    for bodies, consts in rows.maps:
        leaves = apply_body(bodies[kind], consts, *leaves)
    return leaves


def take(
    rows: Rows, kind: Leaf | None, padded: Sequence[Leaf], bodies: Sequence[Body], consts: Sequence[Leaf], totals: Any
) -> list[Leaf]:
    """One step of a fold: (totals, an element of this kind) -> totals."""

    def step(k: int) -> Callable[[list[Leaf], list[Leaf]], list[Leaf]]:
        return lambda totals, padded: apply_body(bodies[k], consts, *totals, *element(rows, k, padded))

    steps = [step(k) for k in range(len(rows.shapes))]
    if kind is None or len(steps) == 1:
        return steps[0](list(totals), list(padded))
    results: list[Leaf] = lax.switch(kind, steps, list(totals), list(padded))
    return results


def gathered(rows: Rows, i: Leaf) -> tuple[Leaf | None, list[Leaf]]:
    """The kind and padded leaves of element number i."""
    at = rows.start + i
    kind = None if rows.kind is None else lax.dynamic_index_in_dim(rows.kind, at, keepdims=False)
    return kind, [lax.dynamic_index_in_dim(a, at, keepdims=False) for a in rows.arrays]


def _fold(equation: Any, inputs: list[Any]) -> list[Any]:
    rows, *operands = inputs
    number = equation.params["number"]
    consts, zeros = operands[: len(operands) - number], operands[len(operands) - number :]

    def step(i: Leaf, totals: list[Leaf]) -> list[Leaf]:
        return take(rows, *gathered(rows, i), equation.params["bodies"], consts, totals)

    results: list[Any] = lax.fori_loop(jnp.int32(0), rows.count, step, list(zeros))
    return results


def _map(equation: Any, inputs: list[Any]) -> list[Any]:
    rows, *consts = inputs
    return [rows._replace(maps=(*rows.maps, (equation.params["bodies"], tuple(consts))))]


def _of(equation: Any, inputs: list[Any]) -> list[Any]:
    shapes = (tuple(a.shape[1:] for a in inputs),)
    return [Rows(tuple(inputs), None, shapes, jnp.int32(0), jnp.int32(len(inputs[0])), room=len(inputs[0]))]


def listed(rows: Rows, capacity: int) -> list[Leaf]:
    """The elements as arrays of fixed room, [capacity, …]."""
    capacity = capacity if rows.room is None else rows.room
    shapes = jax.eval_shape(lambda: element(rows, 0, gathered(rows, jnp.int32(0))[1]))
    buffers = [jnp.zeros((capacity, *s.shape), s.dtype) for s in shapes]

    def step(i: Leaf, buffers: list[Leaf]) -> list[Leaf]:
        leaves = element(rows, 0, gathered(rows, i)[1])
        return [lax.dynamic_update_index_in_dim(b, x, i, 0) for b, x in zip(buffers, leaves, strict=True)]

    results: list[Leaf] = lax.fori_loop(jnp.int32(0), rows.count, step, buffers)
    return results


_UNNAMED = jax.make_jaxpr(lambda: 0)().jaxpr.debug_info

SEQUENCES: Rules = {
    sequence_reduce_p: _fold,
    sequence_map_p: _map,
    sequence_of_p: _of,
    broadcast_p: lambda equation, inputs: inputs,  # of a constant, which is known everywhere
}
"""How sequences are read where all of their elements are at hand."""
