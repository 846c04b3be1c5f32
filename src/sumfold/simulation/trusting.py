"""Large reports that are asked as a sum whether they are finite, not one by one.

A client whose report is not finite counts for nothing, so each report is asked, which reads all of it once more before
it is added: a third of what a sum of large reports costs. But numbers that are not finite stay so when they are
multiplied, scaled or added to: inf + x is infinite or NaN, inf · 0 is NaN, NaN stays NaN (IEEE 754-2019, 6.1 and 6.2).
So a stream may trust its clients and ask their total once. If that is finite, so was every value that went into it;
if it is not, the stream computes its clients again and asks each, as always.

This holds for parts whose stage hands on every number of a value at its place, through such operations alone, to a
group that adds: a mean does, clipped or not; a stage that rounds to integers does not, and its part is asked as before.
So are metrics, what a client remembers and what it keeps, which no total shows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, client_half, is_finite, report_shapes
from sumfold.core.group import add
from sumfold.core.round import Phase, Report
from sumfold.core.stage import Contribution, Stage
from sumfold.simulation.inlined import Variable, inlined, is_literal
from sumfold.tree import Leaf, Tree

__all__ = ["carries", "finite_sum", "trusting"]

_ONE_TO_ONE = frozenset({"convert_element_type", "copy", "copy_p", "neg", "reduce_precision", "reshape", "transpose"})
"""Operations with every number of what they take in what they give, not finite if it was not."""
_EITHER = frozenset({"add", "add_any", "sub", "mul"})
"""Operations of two arrays whose result is not finite where one of them is not."""


def trusting(phase: Phase, briefing: Briefing, kept: Tree) -> ClientHalf | None:
    """The phase's client half, asking only what its totals do not show; None where they show no part.

    Args:
        briefing: or its shapes.
        kept: shapes of what one client kept of the phase before.
    """
    report = report_shapes(phase, briefing.message, kept)
    shown = {
        part
        for part, stage in phase.aggregate.items()
        if (stage.group or add).kind == add.kind and carries(stage, briefing.public[part], report.parts[part])
    }

    def rest(report: Report) -> Leaf:
        parts = {part: given for part, given in report.parts.items() if part not in shown}
        return is_finite(report._replace(parts=parts))

    return client_half(phase, rest) if shown else None


def carries(stage: Stage, public: Tree, given: Contribution) -> bool:
    """Whether every number of a value is in what the stage sends, and not finite there if it was not.

    Args:
        public, given: what the stage's encoder takes, or the shapes.
    """

    def encoded(value: Tree, public: Tree, memory: Tree, weight: Leaf) -> Tree:
        key = keys.typed(jnp.zeros(2, jnp.uint32))
        return stage.encode(public, memory, type(given)(value, weight), key)[0]

    leaves = jax.tree.leaves(given.value)
    if not all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves):
        return False
    memory = jax.eval_shape(stage.memory, given.value)
    shapes = (*tree.shapes((given.value, public, memory)), tree.shape((), "float32"))
    program = inlined(jax.make_jaxpr(encoded)(*shapes)).jaxpr
    return all(_arrives(program, variable) for variable in program.invars[: len(leaves)])


def finite_sum(parts: Tree) -> Leaf:
    """Whether totals are finite, at the speed of memory; if the sum of their squares is not, they count as infinite.

    Example:
        >>> [bool(finite_sum({"w": jnp.float32([1, x])})) for x in (2, jnp.nan, jnp.inf, 1e30)]
        [True, False, False, False]
    """
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(parts) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    wide = [jnp.promote_types(leaf.dtype, jnp.float32) for leaf in leaves]
    return tree.all_finite([jnp.dot(a, a, preferred_element_type=b) for a, b in zip(leaves, wide, strict=True)])


def _knows_infinity(dtype: Any) -> bool:
    """Whether a dtype has infinity and NaN; those of a byte and less have not all."""
    return jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 1


def _arrives(program: Variable, variable: Variable) -> bool:
    """Whether all of an input of a program without calls comes out in one of its results."""
    found = {variable}
    for equation in program.eqns:
        name, given = equation.primitive.name, [a for a in equation.invars if not is_literal(a)]
        if name in _ONE_TO_ONE:
            carried = given[:1]
        elif name in _EITHER and not any(is_literal(a) and not np.all(a.val) for a in equation.invars):
            carried = given
        else:
            carried = given[:1] if name == "div" and not is_literal(equation.invars[0]) else []
        result = equation.outvars[0]
        if any(a in found for a in carried) and _knows_infinity(result.aval.dtype):
            found.add(result)
    return any(not is_literal(a) and a in found for a in program.outvars)
