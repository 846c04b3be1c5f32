"""Matrix products that need not stand inside a loop over time, taken out of it.

Differentiating a recurrent network gives a loop that adds, at every place of a sequence, a product of two thin
matrices to the gradient of the weights: with H hidden units, B sequences and T places, T times a matrix of H × 4H is
read and written to add a product over B terms. The sum of the products is one product, over T·B terms,

    G = Σ_t A_tᵀ D_t = [A_1; …; A_T]ᵀ [D_1; …; D_T],

so the loop gives its operands out, and the product is taken once, behind it. (Libraries for recurrent networks do the
same in kernels of their own: Appleyard, Kočiský and Blunsom 2016, *Optimizing performance of recurrent neural networks
on GPUs*, section 3.2. Here it is done to any `scan` of any framework.) In the same way what comes into the loop is
multiplied with weights that stay the same before it, for all places at once, and what leaves it behind it. Weights that
are multiplied by their last axis at each of many places, as in the gradient by what comes in, are turned round once.

The order of summation changes, and nothing else: the results agree to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jaxprs

from sumfold.simulation.contraction import product

__all__ = ["Program", "multiplies", "operand_counts", "scanned"]

Equation: TypeAlias = Any
Variable: TypeAlias = Any

_SHAPES = frozenset({"transpose", "reshape", "split", "slice", "squeeze", "broadcast_in_dim"})
"""What only moves numbers: applied to a sum, it is the sum of what it gives applied to each term."""
_THIN = 256
"""Rows of an operand up to which one product for all places is faster than one at each."""
_TURN = 32
"""Places from which a matrix is turned round once rather than at each."""


class Program(NamedTuple):
    """A part of a program; what an evaluator reads of it."""

    constvars: Sequence[Variable]
    invars: Sequence[Variable]
    outvars: Sequence[Variable]
    eqns: Sequence[Equation]


class _Sum(NamedTuple):
    """A carry to which every place adds what `moves` make of a product, or of a sum over axes."""

    carry: int
    source: Equation
    moves: tuple[Equation, ...]
    term: Variable


class _Turned(NamedTuple):
    """A constant matrix of a loop with its axes exchanged; it stands where its variable would."""

    variable: Variable


class _Apart(NamedTuple):
    """What is taken out of a loop.

    Attributes:
        before: products of what comes in with something constant.
        sums: see `_Sum`.
        after: by the number of a result of each place, the product with something constant that it is.
    """

    before: list[Equation]
    sums: list[_Sum]
    after: dict[int, Equation]


def multiplies(jaxpr: Any) -> bool:
    """Whether a program or one called in it has a matrix product."""
    return any(
        equation.primitive.name == "dot_general"
        or any(
            multiplies(getattr(one, "jaxpr", one))
            for value in equation.params.values()
            for one in (value if isinstance(value, tuple) else (value,))
            if isinstance(one, jaxprs.ClosedJaxpr | jaxprs.Jaxpr)
        )
        for equation in jaxpr.eqns
    )


def operand_counts(params: dict[str, Any]) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many the first values of carries."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(constants), len(carry)


def scanned(
    values: Sequence[Any],
    params: dict[str, Any],
    evaluate: Callable[[Program, Sequence[Any], Sequence[Any]], list[Any]],
) -> list[Any] | None:
    """What a scan gives, with products taken out of it; None where there are none.

    Args:
        values: its operands.
        params: of the equation; calls inside its program are inlined already.
        evaluate: runs a program with its constants and arguments.
    """
    body, constants = params["jaxpr"].jaxpr, params["jaxpr"].consts
    number, carried = operand_counts(params)
    apart = _apart(body, number, carried)
    equations, turned = _turned(body, number, params["length"])
    if not any(apart) and not turned:
        return None
    fixed, first, slices = values[:number], list(values[number : number + carried]), list(values[number + carried :])
    variables = body.invars[number + carried :]
    known = dict(zip([*body.constvars, *body.invars[:number]], [*constants, *fixed], strict=True))
    stacks = dict(zip(variables, slices, strict=True))

    def value(atom: Any) -> Any:
        return atom.val if isinstance(atom, jaxprs.Literal) else known[atom]

    for equation in apart.before:
        stacks[equation.outvars[0]] = _for_all_places(equation, stacks, value)

    gone = {found.carry for found in apart.sums}
    kept = [j for j in range(carried) if j not in gone]
    results = list(body.outvars[carried:])
    for i, equation in apart.after.items():
        results[i] = next(v for v in equation.invars if not _still(v, known))
    wanted = list(dict.fromkeys(v for found in apart.sums for v in found.source.invars if v not in stacks))
    outvars = [*(body.outvars[j] for j in kept), *results, *wanted]
    invars = [*body.invars[:number], *turned, *(body.invars[number + j] for j in kept), *stacks]
    program = Program(body.constvars, invars, outvars, _live(equations, outvars, set(invars)))
    fixed = [*fixed, *(known[weights.variable].T for weights in turned)]

    def place(carry: list[Any], here: list[Any]) -> tuple[list[Any], list[Any]]:
        out = list(map(_strong, evaluate(program, constants, [*fixed, *carry, *here])))
        return out[: len(kept)], out[len(kept) :]

    last, stacked = lax.scan(
        place,
        [_strong(first[j]) for j in kept],
        list(stacks.values()),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    given = list(stacked[: len(results)])
    stacks |= dict(zip(wanted, stacked[len(results) :], strict=True))
    stacks |= {results[i]: given[i] for i in apart.after}
    ends = dict(zip(kept, last, strict=True))
    for found in apart.sums:
        ends[found.carry] = first[found.carry] + _total(found, stacks, evaluate)
    for i, equation in apart.after.items():
        given[i] = _for_all_places(equation, stacks, value)
    return [*(ends[j] for j in range(carried)), *given]


def _turned(body: Any, number: int, places: int) -> tuple[list[Equation], list[_Turned]]:
    """The equations of a loop's program, and which constant matrices they take turned round, as [columns, rows].

    A product with the last axis of a matrix, as in the gradient by a layer's input, has the matrix packed each time.
    """
    still, found, equations = set(body.invars[:number]), dict[_Turned, None](), list(body.eqns)
    for i, equation in enumerate(equations if places >= _TURN else []):
        weights = equation.invars[-1]
        if equation.primitive.name != "dot_general" or isinstance(weights, jaxprs.Literal) or weights not in still:
            continue
        (over, under), batch = equation.params["dimension_numbers"]
        if weights.aval.ndim == 2 and under == (1,) and not any(batch):
            operands, numbers = [equation.invars[0], _Turned(weights)], ((over, (0,)), batch)
            equations[i] = equation.replace(invars=operands, params={**equation.params, "dimension_numbers": numbers})
            found[operands[1]] = None
    return equations, list(found)


def _apart(body: Any, number: int, carried: int) -> _Apart:
    """What can be taken out, and is worth it."""
    made = {variable: equation for equation in body.eqns for variable in equation.outvars}
    uses: dict[Variable, int] = {}
    for atom in [*(atom for equation in body.eqns for atom in equation.invars), *body.outvars]:
        if not isinstance(atom, jaxprs.Literal):
            uses[atom] = uses.get(atom, 0) + 1
    still = {*body.constvars, *body.invars[:number]}
    slices = set(body.invars[number + carried :])

    before = [e for e in body.eqns if _thin(e, still) and any(not _still(v, still) and v in slices for v in e.invars)]
    sums = []
    carries = zip(body.invars[number : number + carried], body.outvars[:carried], strict=True)
    for j, (begun, ended) in enumerate(carries):
        if isinstance(ended, jaxprs.Literal) or uses[ended] > 1 or uses.get(begun) != 1:
            continue
        found = _summed(j, begun, made.get(ended), made, still)
        if found is not None:
            sums.append(found)
    # A sum over axes leaves the loop where what it adds up has to leave it anyway.
    leaving = {v for found in sums if found.source.primitive.name == "dot_general" for v in found.source.invars}
    sums = [found for found in sums if leaving.issuperset(found.source.invars)]
    after = {}
    for i, result in enumerate(body.outvars[carried:]):
        equation = None if isinstance(result, jaxprs.Literal) else made.get(result)
        if equation is not None and uses[result] == 1 and _thin(equation, still) and equation not in before:
            after[i] = equation
    return _Apart(before, sums, after)


def _summed(
    carry: int, begun: Variable, adding: Equation | None, made: dict[Variable, Equation], still: set[Variable]
) -> _Sum | None:
    """The sum that a carry is, if every place does nothing but add a product's numbers, or a sum's, to it."""
    if adding is None or adding.primitive.name not in ("add", "add_any") or begun not in adding.invars:
        return None
    term = next((v for v in adding.invars if v is not begun), None)
    moves: list[Equation] = []
    source = None if term is None or isinstance(term, jaxprs.Literal) else made.get(term)
    while source is not None and source.primitive.name in _SHAPES:
        moves.insert(0, source)
        source = None if isinstance(source.invars[0], jaxprs.Literal) else made.get(source.invars[0])
    if source is None or any(_still(v, still) for v in source.invars):
        return None
    if source.primitive.name == "dot_general":
        whole, parts = source.outvars[0].aval, [v.aval for v in source.invars]
        worth = math.prod(whole.shape) >= sum(math.prod(part.shape) for part in parts)
        worth = worth and not any(source.params["dimension_numbers"][1])
    else:
        worth = source.primitive.name == "reduce_sum"
    floating = jnp.issubdtype(source.outvars[0].aval.dtype, jnp.floating)
    return _Sum(carry, source, tuple(moves), term) if worth and floating else None


def _still(atom: Any, still: Any) -> bool:
    """Whether an operand is the same at all places."""
    return isinstance(atom, jaxprs.Literal) or bool(atom in still)


def _thin(equation: Equation, still: set[Variable]) -> bool:
    """Whether this is a product of a thin matrix with one that is the same at all places."""
    if equation.primitive.name != "dot_general" or any(equation.params["dimension_numbers"][1]):
        return False
    moving = [i for i, v in enumerate(equation.invars) if not _still(v, still)]
    if len(moving) != 1:
        return False
    (i,) = moving
    over = equation.params["dimension_numbers"][0][i]
    shape = equation.invars[i].aval.shape
    return bool(math.prod(n for axis, n in enumerate(shape) if axis not in over) <= _THIN)


def _for_all_places(equation: Equation, stacks: dict[Variable, Any], value: Callable[[Any], Any]) -> Any:
    """A product with something constant, of all places at once: [T, …]."""
    left, right = equation.invars
    (over, under), _ = equation.params["dimension_numbers"]
    how = {name: equation.params[name] for name in ("precision", "preferred_element_type")}
    if left in stacks:
        dimensions = (tuple(axis + 1 for axis in over), under), ((), ())
        return lax.dot_general(stacks[left], value(right), dimensions, **how)
    dimensions = (over, tuple(axis + 1 for axis in under)), ((), ())
    products = lax.dot_general(value(left), stacks[right], dimensions, **how)
    return jnp.moveaxis(products, left.aval.ndim - len(over), 0)


def _total(found: _Sum, stacks: dict[Variable, Any], evaluate: Callable[..., list[Any]]) -> Any:
    """The sum of all places' terms."""
    source = found.source
    if source.primitive.name == "dot_general":
        (over, under), _ = source.params["dimension_numbers"]
        dimensions = ((0, *(axis + 1 for axis in over)), (0, *(axis + 1 for axis in under))), ((), ())
        how = {name: source.params[name] for name in ("precision", "preferred_element_type")}
        whole = product(stacks[source.invars[0]], stacks[source.invars[1]], dimensions, **how)
    else:
        whole = stacks[source.invars[0]].sum((0, *(axis + 1 for axis in source.params["axes"])))
    if not found.moves:
        return whole
    return evaluate(Program((), source.outvars, [found.term], found.moves), [], [whole])[0]


def _live(equations: Sequence[Equation], outvars: Sequence[Any], given: set[Variable]) -> list[Equation]:
    """The equations that the results need, where some variables are given."""
    needed, kept = {v for v in outvars if not isinstance(v, jaxprs.Literal)} - given, []
    for equation in reversed(equations):
        if equation.effects or not needed.isdisjoint(equation.outvars):
            needed -= set(equation.outvars)
            needed |= {v for v in equation.invars if not isinstance(v, jaxprs.Literal)} - given
            kept.append(equation)
    return kept[::-1]


def _strong(value: Any) -> Any:
    """The same value without a weak type, so that the loop's carry keeps its type."""
    return lax.convert_element_type(value, value.dtype) if getattr(jax.typeof(value), "weak_type", False) else value
