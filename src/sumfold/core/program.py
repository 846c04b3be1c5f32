"""What an algorithm computes, as a text that is the same in every process, and short marks of it.

A round is traced with one client that takes one step. Names of functions and variables do not count, nor where a
function lies in memory; every operation, shape and constant does: another learning rate or loss is another program.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Mapping
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jaxprs

from sumfold import keys, tree
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.driver import Standing, State, Totals, nothing, opened, play, server_of
from sumfold.core.exported import each_half, traced
from sumfold.core.group import add
from sumfold.core.round import Batch, HostWork, Phase, Round
from sumfold.tree import Tree

__all__ = ["canonical", "marks", "one_client"]

_CLIENT = {
    "fresh": "the client's first memory",
    "init": "the client's beginning",
    "step": "the client's step",
    "finish": "the client's result",
}


def one_client(round: Round, algorithm: Tree, stages: Tree, batch: Batch | None) -> jaxprs.ClosedJaxpr:
    """A whole round with one client that takes one step, traced.

    Args:
        round: the algorithm.
        algorithm, stages: of a state of it; only shapes are used.
        batch: the shapes of a batch; None where no client has examples.

    Raises:
        Exception: of any kind, for client work that is no array program.
    """

    def whole(algorithm: Tree, stages: Tree, batch: Batch | None, seed: Any, number: Any, rows: Any) -> Tree:
        def sigma(i: int, briefing: Briefing, kept: Tree) -> tuple[list[Totals], Tree]:
            key = keys.typed(seed)
            phase, half = round.phases[i], client_half(round.phases[i])
            start = Start(briefing, half.fresh(briefing, kept), kept, rows)
            carry = half.init(start, key)
            if batch is not None and half.step is not None:
                carry = half.step(start, carry, batch, key)
            upload, keeping = half.finish(start, carry, key)
            totals = nothing(phase, briefing, kept, 1)
            parts = _accumulated(phase, totals.parts, upload.parts)
            metrics = tree.add(totals.metrics, upload.metrics)
            return [totals._replace(parts=parts, metrics=metrics)], keeping.kept

        return play(round, server_of(round), algorithm, stages, seed, number, sigma, ())

    seed, number = tree.shape((2,), np.uint32), jax.eval_shape(lambda: jnp.int32(0))
    shapes = tree.shapes((algorithm, stages))
    return jax.make_jaxpr(whole)(*shapes, batch, seed, number, number)


def marks(round: Round, state: State, batch: Batch | None) -> dict[str, str]:
    """By what each part of the algorithm does, in words, a mark of its program: 16 hex digits.

    Args:
        round: the algorithm; of one whose clients run Python functions there are no marks.
        state: arrays or shapes.
        batch: the shapes of a batch; None where no client has examples.

    Raises:
        CompositionError: for client work that no program can stand for.
    """
    if any(isinstance(phase.work, HostWork) for phase in round.phases):
        return {}
    found = {"the batches": _mark(canonical([tuple(phase.work.batching) for phase in round.phases]))}
    seed, number = tree.shape((2,), np.uint32), tree.shape((), np.int32)
    server, before = server_of(round), tree.shapes(state.stages)
    standing = tree.shapes(opened(tree.shapes(state.algorithm), before))
    halves = [client_half(phase) for phase in round.phases]
    for i, (half, forms) in enumerate(each_half(round, halves, state, batch)):
        of_phase = f" in phase {i}" if len(round.phases) > 1 else ""
        for part, program in traced(half, forms).items():
            found[_CLIENT[part] + of_phase] = _mark(canonical(program))

        def close(standing: Standing, kept: Tree, upload: Any, seed: Any, number: Any, i: int = i, forms: Any = forms):  # type: ignore[no-untyped-def]
            phase = round.phases[i]
            totals = nothing(phase, Briefing(*forms.briefing), kept, 1)
            one = totals._replace(
                parts=_accumulated(phase, totals.parts, upload.parts), metrics=tree.add(totals.metrics, upload.metrics)
            )
            return server.close(i, standing, [one, totals], seed, number)

        briefed = jax.make_jaxpr(functools.partial(server.brief, i))(standing, seed, number)
        found[f"what the server sends{of_phase}"] = _mark(canonical(briefed))
        given = (standing, forms.kept, forms.upload, seed, number)
        closed, standing = jax.make_jaxpr(close, return_shape=True)(*given)
        found[f"the server's step{of_phase}"] = _mark(canonical(closed))
    return found


def _accumulated(phase: Phase, totals: Mapping[str, Tree], parts: Mapping[str, Tree]) -> dict[str, Tree]:
    return {
        part: (stage.group or add).accumulate(totals[part], parts[part], jnp.int32(0))
        for part, stage in phase.aggregate.items()
    }


def _mark(text: str) -> str:
    return _hash(text.encode())[:16]


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def canonical(value: Any) -> str:
    """A parameter of a traced program as text without addresses; of what is only an object, its type."""
    if isinstance(value, jaxprs.ClosedJaxpr):
        return _hash("\n".join([_equations(value.jaxpr), *map(canonical, value.consts)]).encode())
    if isinstance(value, jaxprs.Jaxpr):
        return _hash(_equations(value).encode())
    if isinstance(value, (jax.Array, np.ndarray)):
        data = jax.random.key_data(value) if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) else value
        array = np.ascontiguousarray(data)
        return f"{array.dtype}{array.shape}{_hash(array.tobytes())}"
    if value is None or isinstance(value, (str, int, float, complex, np.generic, np.dtype, Enum)):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return f"({','.join(map(canonical, value))})"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{name}:{canonical(value[name])}' for name in sorted(value, key=str))}}}"
    return type(value).__name__


def _equations(jaxpr: Any) -> str:
    """A jaxpr as text, its variables numbered in the order in which they appear."""
    numbers: dict[Any, int] = {}
    count = itertools.count()

    def named(variable: Any) -> str:
        if isinstance(variable, jaxprs.Literal):
            return f"{canonical(variable.val)}:{variable.aval}"
        if variable not in numbers:
            numbers[variable] = next(count)
        return f"{numbers[variable]}:{variable.aval}"

    def line(equation: Any) -> str:
        params = {name: value for name, value in equation.params.items() if name != "name"}
        inputs, outputs = (" ".join(map(named, ends)) for ends in (equation.invars, equation.outvars))
        return f"{outputs} = {equation.primitive.name}{canonical(params)} {inputs}"

    inputs = " ".join(map(named, (*jaxpr.constvars, *jaxpr.invars)))
    body = [line(equation) for equation in jaxpr.eqns]
    return "\n".join([inputs, *body, " ".join(map(named, jaxpr.outvars))])
