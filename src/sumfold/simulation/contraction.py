"""Matrix products over several axes as products over one.

The gradient of a layer of N sequences of T places is a product over both, Σ_n Σ_t x[n, t]ᵀ g[n, t]. XLA:CPU brings such
a product into the form of a matrix product by transposing an operand, a copy of all activations or logits. Where the
axes lie side by side in both operands, in the same order, they are one axis of N·T places, and nothing is moved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from jax import lax

__all__ = ["joined", "product"]


def product(left: Any, right: Any, dimension_numbers: Any, **how: Any) -> Any:
    """`lax.dot_general`, over one axis where it would be over several that lie side by side.

    Example:
        >>> import jax.numpy as jnp
        >>> x, g = jnp.ones((4, 5, 2)), jnp.ones((4, 5, 3))
        >>> product(x, g, (((0, 1), (0, 1)), ((), ()))).shape
        (2, 3)
    """
    if not joined(dimension_numbers):
        return lax.dot_general(left, right, dimension_numbers, **how)
    (over, under), _ = dimension_numbers
    numbers = (((min(over),), (min(under),)), ((), ()))
    return lax.dot_general(_one(left, over), _one(right, under), numbers, **how)


def joined(dimension_numbers: Any) -> bool:
    """Whether a product is over several axes that lie side by side, in the same order, and has no batch."""
    (over, under), batch = dimension_numbers
    pairs = sorted(zip(over, under, strict=True))
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(pairs)]
    return bool(steps) and not any(batch) and set(steps) == {(1, 1)}


def _one(x: Any, axes: Sequence[int]) -> Any:
    first, last = min(axes), max(axes) + 1
    return x.reshape(*x.shape[:first], math.prod(x.shape[first:last]), *x.shape[last:])
