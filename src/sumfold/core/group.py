"""What Σ means: the only operations that ever combine values of different clients.

A group says how a total starts, how one client's value enters it, and how two totals merge. It must be
commutative and associative up to rounding, so that packing, order of arrival and trees of servers change
nothing. A runtime declares the kinds that it offers; a stage names the one it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.errors import CompositionError, user_facing
from sumfold.tree import Tree

__all__ = ["Group", "Stacked", "add", "fold", "maximum", "minimum", "modular", "stack"]


class Group(NamedTuple):
    """A commutative sum over clients.

    Attributes:
        kind: ``add``, ``modular``, ``min``, ``max``, ``fold`` or ``stack``; what a runtime offers or refuses.
        zero: (a client's value as shapes, number of places) -> the total of nobody.
        accumulate: (total, a client's value, its place in the cohort int32[]) -> total.
        merge: (total, total) -> total.

    Example:
        >>> total = add.zero(jnp.float32(0), 2)
        >>> float(add.accumulate(total, jnp.float32(3), jnp.int32(0)))
        3.0
    """

    kind: str
    zero: Callable[[Tree, int], Tree]
    accumulate: Callable[[Tree, Tree, Int[Array, ""]], Tree]
    merge: Callable[[Tree, Tree], Tree]


KINDS = frozenset({"add", "modular", "min", "max", "fold", "stack"})
"""Every kind of sum there is."""


class Stacked(NamedTuple):
    """The individual values of a cohort: what `stack` gives a server rule such as the median.

    Attributes:
        values: tree of arrays with a leading axis of places, [K, …].
        present: bool[K], whether the client of that place was counted.

    Example:
        >>> total = stack.accumulate(stack.zero(jnp.float32(0), 3), jnp.float32(5), jnp.int32(1))
        >>> total.values.tolist(), total.present.tolist()
        ([0.0, 5.0, 0.0], [False, True, False])
    """

    values: Tree
    present: Array


add = Group(
    "add",
    zero=lambda value, _: tree.zeros_like(value),
    accumulate=lambda total, value, _: tree.add(total, value),
    merge=tree.add,
)
"""The ordinary sum, each leaf in its own dtype."""


@user_facing
def modular(modulus: int) -> Group:
    """The sum of unsigned integers modulo `modulus`: what secure aggregation can compute.

    Leaves are uint32, values in [0, modulus).

    Raises:
        CompositionError: for a modulus outside 2 … 2**32.

    Example:
        >>> group = modular(8)
        >>> int(group.merge(jnp.uint32(7), jnp.uint32(3)))
        2
    """
    if not 2 <= modulus <= 2**32:
        raise CompositionError("SF-COMP-002", f"modular({modulus})", "a modulus from 2 to 2**32", "choose 2**32")
    full = modulus == 2**32

    def plus(a: Tree, b: Tree) -> Tree:
        # uint32 addition wraps at 2**32 by itself; for a smaller modulus x + y could wrap before it is reduced.
        if full:
            return tree.add(a, b)
        gap = jnp.uint32(modulus)
        return jax.tree.map(lambda x, y: jnp.where(x >= gap - y, x - (gap - y), x + y), a, b)

    return Group("modular", lambda value, _: tree.zeros_like(value), lambda t, v, _: plus(t, v), plus)


def _extreme(kind: str, pick: Callable[[Any, Any], Any], sign: int) -> Group:
    def identity(leaf: Any) -> Any:
        dtype: Any = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating):
            infinite = np.isinf(np.asarray(np.inf).astype(dtype))
            limits: Any = jnp.finfo  # some 8-bit floats have no infinity
            return jnp.full(jnp.shape(leaf), sign * (jnp.inf if infinite else float(limits(dtype).max)), dtype)
        info = np.iinfo(dtype)
        return jnp.full(jnp.shape(leaf), info.max if sign > 0 else info.min, dtype)

    def both(a: Tree, b: Tree) -> Tree:
        return jax.tree.map(pick, a, b)

    return Group(kind, lambda value, _: jax.tree.map(identity, value), lambda t, v, _: both(t, v), both)


minimum = _extreme("min", jnp.minimum, +1)
"""The smallest value of each leaf; of nobody: +inf, or the dtype's largest integer."""

maximum = _extreme("max", jnp.maximum, -1)
"""The largest value of each leaf; of nobody: -inf, or the dtype's smallest integer."""


def fold(zero: Tree, accumulate: Callable[[Tree, Tree], Tree], merge: Callable[[Tree, Tree], Tree]) -> Group:
    """A sum of the caller's own: `zero` is the total of nobody, a tree of arrays.

    Example:
        >>> count = fold(jnp.int32(0), lambda total, value: total + 1, lambda a, b: a + b)
        >>> int(count.accumulate(count.zero(jnp.zeros(3), 1), jnp.zeros(3), jnp.int32(0)))
        1
    """
    return Group("fold", lambda *_: jax.tree.map(jnp.asarray, zero), lambda t, v, _: accumulate(t, v), merge)


stack = Group(
    "stack",
    zero=lambda value, places: Stacked(
        jax.tree.map(lambda a: jnp.zeros((places, *jnp.shape(a)), jnp.result_type(a)), value),
        jnp.zeros(places, bool),
    ),
    accumulate=lambda total, value, place: Stacked(
        jax.tree.map(lambda t, v: t.at[place].set(v), total.values, value), total.present.at[place].set(True)
    ),
    merge=lambda a, b: Stacked(
        jax.tree.map(lambda x, y: jnp.where(b.present.reshape(-1, *[1] * (x.ndim - 1)), y, x), a.values, b.values),
        a.present | b.present,
    ),
)
"""No sum at all: every client's value, for rules that need individuals. No secure runtime offers it."""
