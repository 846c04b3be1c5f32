"""Rules that treat every coordinate by itself, over a stack of clients' values, in pieces and in order.

The median, the trimmed mean and their like read K numbers for each of millions of coordinates. Over the whole stack at
once, each array that such a rule makes on its way is another stack; in pieces of coordinates it stays in a core's
cache.

Sorting many short columns is a network of comparators: which rows are compared does not depend on the numbers, so each
comparison is a minimum and a maximum of long vectors. Batcher 1968, *Sorting networks and their applications*: bitonic
merging sorts K = 2^m rows in m (m + 1) / 2 steps. XLA's own sort on a CPU calls a comparator for each pair instead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from sumfold import tree
from sumfold.core.group import Stacked
from sumfold.errors import user_facing
from sumfold.tree import Tree

__all__ = ["by_coordinate", "sorted_rows"]

_PIECE = 128 << 10
"""Bytes of one piece: a rule may hold a few and stay in a core's cache, and XLA shares no vector of one among threads,
which would wait for one another longer than they compute."""


@user_facing
def by_coordinate(rule: Callable[[Array, Array], Array], stacked: Stacked) -> Tree:
    """Apply a rule to each coordinate's numbers, in pieces, so that it never copies the stack.

    Args:
        rule: (values [K, n], present bool[K]) -> [n], one number for each of n coordinates; rows of places where nobody
            was counted are zeros.
        stacked: what a stage with the group `stack` is given to decode.

    Returns:
        A tree like a client's value.

    Example:
        >>> stacked = Stacked({"w": jnp.arange(6.0).reshape(3, 2)}, jnp.array([True, False, True]))
        >>> largest = lambda values, present: jnp.where(present[:, None], values, -jnp.inf).max(0)
        >>> by_coordinate(largest, stacked)["w"].tolist()
        [4.0, 5.0]
    """

    def over(values: Array) -> Array:
        flat = values.reshape(len(values), -1)
        clients, size = flat.shape
        width = max(min(_PIECE // (clients * flat.dtype.itemsize), size), 1)
        if width >= size:
            return rule(flat, stacked.present).reshape(values.shape[1:])

        def piece(k: Any, result: Array) -> Array:
            at = jnp.minimum(k * width, size - width)  # the last piece covers some coordinates again
            here = rule(lax.dynamic_slice(flat, (0, at), (clients, width)), stacked.present)
            after: Array = lax.dynamic_update_slice(result, here, (at,))
            return after

        one = jax.eval_shape(rule, tree.shape((clients, width), flat.dtype), stacked.present)
        whole: Array = lax.fori_loop(0, -(-size // width), piece, jnp.zeros(size, one.dtype))
        return whole.reshape(values.shape[1:])

    result: Tree = jax.tree.map(over, stacked.values)
    return result


@user_facing
def sorted_rows(values: Array) -> Array:
    """[K, …] sorted along the first axis, what is not a number last: as `jnp.sort(values, axis=0)`.

    Made for rules over pieces of a stack; a CPU sorts the columns of a hundred rows several times faster.

    Args:
        values: floats or integers.

    Source: Batcher 1968, bitonic sorting.

    Example:
        >>> sorted_rows(jnp.array([[3.0, 1.0], [jnp.nan, 2.0], [1.0, 0.0]])).tolist()
        [[1.0, 0.0], [3.0, 1.0], [nan, 2.0]]
    """
    number, rest = len(values), values.shape[1:]
    rows = 1 << max(number - 1, 0).bit_length()
    keys = _keys(values.reshape(number, -1))
    last = np.iinfo(keys.dtype).max
    keys = jnp.concatenate([keys, jnp.full((rows - number, keys.shape[1]), last, keys.dtype)])
    run = 2
    while run <= rows:
        keys = _merged(keys, run)
        run *= 2
    return _values(keys[:number], values.dtype).reshape(number, *rest)


def _merged(keys: Array, run: int) -> Array:
    """Sorted runs of half the length as sorted runs."""
    rows = len(keys)
    # The second run is read backwards: with it the first rises and falls.
    halves = keys.reshape(rows // run, 2, run // 2, -1)
    keys = _compared(halves[:, 0], halves[:, 1, ::-1]).reshape(rows, -1)
    gap = run // 4
    while gap:
        pairs = keys.reshape(rows // (2 * gap), 2, gap, -1)
        keys = _compared(pairs[:, 0], pairs[:, 1]).reshape(rows, -1)
        gap //= 2
    return keys


def _compared(a: Array, b: Array) -> Array:
    """Minima beside maxima. A choice by row instead would be fused from step to step, and double with each."""
    return jnp.stack([jnp.minimum(a, b), jnp.maximum(a, b)], axis=1)


def _keys(values: Array) -> Array:
    """Integers in the order of the values."""
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    values = jnp.where(jnp.isnan(values), jnp.full((), jnp.nan, values.dtype), values)  # none with a sign
    return _flipped(lax.bitcast_convert_type(values, f"int{8 * values.dtype.itemsize}"))


def _values(keys: Array, dtype: Any) -> Array:
    return lax.bitcast_convert_type(_flipped(keys), dtype) if jnp.issubdtype(dtype, jnp.floating) else keys


def _flipped(bits: Array) -> Array:
    """Of negative floats all bits but the sign, so that they are in order as integers; its own inverse."""
    return jnp.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
