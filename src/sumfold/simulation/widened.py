"""Weights whose rows do not fill vectors, with zeros behind each row while a client trains.

XLA:CPU's matrix products are slow at the end of a row that is no multiple of four numbers: a step of logistic
regression with 784 inputs and 62 classes takes 35 microseconds, and 28 with 64 columns of which two are zero. So where
a step multiplies by such a matrix, and does nothing else with it than what a gradient step does,

    y = x · W[:, :62],      W ← f(W, xᵀ · [g, 0], …)    number by number,

the loop over a client's steps carries it, and what an optimizer keeps in its shape, with so many columns more. What
stands there is never read. Everything else is as it was, in the step and outside of the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sumfold import tree
from sumfold.simulation.inlined import BY_ELEMENT, Equation, Variable, inlined, is_literal, read
from sumfold.tree import Leaf, Tree

__all__ = ["repeated"]

_LANES = 16
"""Columns that a widened matrix has a multiple of."""
_LARGE = 1 << 14
"""Numbers of a matrix from which it is widened."""
_WASTE = 1.34
"""By how much more numbers at most."""


class _Plan(NamedTuple):
    """What is widened.

    Attributes:
        states: variables of the carry.
        made: variables that are computed with more columns.
    """

    states: list[Variable]
    made: set[Variable]


def repeated(number: Leaf, step: Callable[[Any, Tree], Tree], state: Tree) -> Tree:
    """The state after `step(t, state)` for t from 0 to before `number`.

    Example:
        >>> repeated(jnp.int32(3), lambda t, s: s + t, jnp.int32(10))
        Array(13, dtype=int32)
    """
    leaves, structure = jax.tree.flatten(state)
    if jax.default_backend() != "cpu" or not any(map(_narrow, leaves)):
        return lax.fori_loop(jnp.int32(0), number, step, state)
    closed = inlined(jax.make_jaxpr(step)(jnp.int32(0), state))
    program = closed.jaxpr
    plan = _planned(program)

    def body(t: Any, held: list[Any]) -> list[Any]:
        return _run(program, closed.consts, plan, [t, *held])

    chosen = [variable in plan.states for variable in program.invars[1:]]
    held = [_wide(leaf) if wide else leaf for wide, leaf in zip(chosen, leaves, strict=True)]
    held = lax.fori_loop(jnp.int32(0), number, body, held)
    ends = zip(chosen, leaves, held, strict=True)
    return tree.unflatten(structure, [after[:, : before.shape[-1]] if wide else after for wide, before, after in ends])


def _narrow(array: Any) -> bool:
    """Whether this could be a matrix to be widened."""
    if np.ndim(array) != 2 or array.dtype != jnp.float32 or array.size < _LARGE:
        return False
    columns = array.shape[-1]
    return bool(columns % 4 and _columns(columns) <= _WASTE * columns)


def _columns(columns: int) -> int:
    return columns + -columns % _LANES


def _wide(array: Any, axis: int = -1) -> Any:
    """With zeros behind along an axis."""
    more = [(0, _columns(n) - n if i == axis % array.ndim else 0, 0) for i, n in enumerate(array.shape)]
    return lax.pad(array, jnp.zeros((), array.dtype), more)


# -- what can be widened


def _planned(program: Any) -> _Plan:
    """The matrices of the carry that nothing is done with but what can be done with more columns."""
    before, after = program.invars[1:], program.outvars
    made = {variable: equation for equation in program.eqns for variable in equation.outvars}
    chosen = {v: end for v, end in zip(before, after, strict=True) if _narrow(v.aval)}
    while True:
        chains = {v: _chain(end, v.aval.shape, made, chosen) for v, end in chosen.items()}
        wide = {*chosen, *(u for chain in chains.values() for u in chain or ())}
        ends = {id(end) for end in chosen.values()}
        read_elsewhere = {
            u
            for equation in program.eqns
            for u in equation.invars
            if not is_literal(u) and u in wide and equation.outvars[0] not in wide and not _multiplies(equation, u)
        } | {u for u in after if not is_literal(u) and u in wide and id(u) not in ends}
        left = {
            v: end
            for v, end in chosen.items()
            if chains[v] is not None and read_elsewhere.isdisjoint({v, *(chains[v] or ())})
        }
        if left == chosen:
            return _Plan(list(chosen), wide - set(chosen))
        chosen = left


def _chain(end: Any, shape: Sequence[int], made: dict[Variable, Equation], states: Any) -> set[Variable] | None:
    """The variables by which the new matrix comes about, number by number; None where it does not."""
    found, waiting = set[Variable](), [end]
    while waiting:
        atom = waiting.pop()
        if is_literal(atom) or atom.aval.shape == () or atom in found or atom in states:
            continue
        if atom.aval.shape != shape:
            return None
        equation = made.get(atom)
        if equation is None:
            continue  # what stays the same in the loop is widened before it
        if equation.primitive.name in BY_ELEMENT:
            waiting += equation.invars
        elif not (_product(equation, made) or _spread(equation)):
            return None
        found.add(atom)
    return found


def _spread(equation: Equation) -> bool:
    """Whether this is one number everywhere."""
    return bool(equation.primitive.name == "broadcast_in_dim" and equation.invars[0].aval.shape == ())


def _product(equation: Equation, made: dict[Variable, Equation]) -> Equation | None:
    """The product of two matrices that this is, or the transposed of."""
    if equation.primitive.name == "transpose":
        equation = made.get(equation.invars[0])
    if equation is None or equation.primitive.name != "dot_general":
        return None
    (over, under), batch = equation.params["dimension_numbers"]
    plain = not any(batch) and len(over) == len(under) == 1 and all(v.aval.ndim == 2 for v in equation.invars)
    return equation if plain else None


def _multiplies(equation: Equation, matrix: Variable) -> bool:
    """Whether a matrix is multiplied by its rows, on the right, and is nothing else here."""
    left, right = equation.invars[0], equation.invars[-1]
    if equation.primitive.name != "dot_general" or right is not matrix or left is matrix:
        return False
    (_, under), batch = equation.params["dimension_numbers"]
    return not any(batch) and under == (0,)


# -- the step


def _run(program: Any, consts: Sequence[Any], plan: _Plan, given: Sequence[Any]) -> list[Any]:
    """The step with wide matrices."""
    known = dict(zip([*program.constvars, *program.invars], [*consts, *given], strict=True))
    wide = {*plan.states, *plan.made}
    made = {variable: equation for equation in program.eqns for variable in equation.outvars}
    for equation in program.eqns:
        values, out = [read(known, atom) for atom in equation.invars], equation.outvars[0]
        params, many = equation.params, equation.primitive.multiple_results
        if out in plan.made:
            known[out] = _widely(equation, made, known, wide)
            continue
        results = equation.primitive.bind(*values, **params)
        if any(not is_literal(v) and v in wide for v in equation.invars):
            results = lax.slice_in_dim(results, 0, out.aval.shape[-1], axis=-1)
        known |= zip(equation.outvars, results if many else [results], strict=True)
    return [read(known, atom) for atom in program.outvars]


def _widely(equation: Equation, made: dict[Variable, Equation], known: dict[Variable, Any], wide: set[Variable]) -> Any:
    """What an equation gives with more columns."""
    product = _product(equation, made)
    if product is not None:
        sides = [read(known, atom) for atom in product.invars]
        turned = equation is not product
        (over, under), _ = product.params["dimension_numbers"]
        side = 0 if turned else 1
        sides[side] = _wide(sides[side], 1 - (over, under)[side][0])
        result = product.primitive.bind(*sides, **product.params)
        return result.T if turned else result
    if _spread(equation):
        rows, columns = equation.outvars[0].aval.shape
        return lax.broadcast(read(known, equation.invars[0]), (rows, _columns(columns)))
    values = [
        read(known, atom) if is_literal(atom) or atom in wide or atom.aval.shape == () else _wide(known[atom])
        for atom in equation.invars
    ]
    return equation.primitive.bind(*values, **equation.params)
