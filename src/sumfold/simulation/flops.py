"""Floating-point operations of a program, and how many this machine can do.

Only what hardware is rated by is counted: matrix products and convolutions, two operations for each multiplication with
an addition. A product of m×k and k×n has 2·m·k·n; a convolution has two for each output number, input channel, and
place of the window that lies on an input number, not on padding or between dilated ones. Loops with a fixed number of
turns count that often, others once, and of branches the dearest counts. The program is read as it was written, before
any rewriting: a convolution done in fewer operations has the same count, and may exceed the peak.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["flops", "gemm_peak"]

Shape: TypeAlias = tuple[int, ...]


def flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Operations of one call; arguments may be shapes and dtypes, since nothing runs.

    Example:
        >>> flops(lambda a, b: jnp.tanh(a @ b), jnp.ones((2, 3)), jnp.ones((3, 5)))
        60
    """
    return _counted(jax.make_jaxpr(function)(*arguments).jaxpr)


def _counted(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        kind, about = equation.primitive.name, equation.params
        shapes = [getattr(each.aval, "shape", ()) for each in (*equation.invars, *equation.outvars)]
        inner = [_counted(part) for part in _inner(about)]
        if kind == "dot_general":
            (contracted, _), _ = about["dimension_numbers"]
            total += 2 * math.prod(shapes[-1]) * math.prod(shapes[0][axis] for axis in contracted)
        elif kind == "conv_general_dilated":
            total += _convolved(shapes[0], shapes[1], shapes[2], about)
        elif kind == "cond":
            total += max(inner, default=0)
        else:
            total += sum(inner) * (about["length"] if kind == "scan" else 1)
    return total


def _convolved(left: Shape, right: Shape, output: Shape, about: dict[str, Any]) -> int:
    numbers = about["dimension_numbers"]
    (batch, channel, *places), (_, inputs, *windows) = numbers.out_spec, numbers.rhs_spec
    total: int = 2 * output[batch] * output[channel] * right[inputs]
    for i, (space, window, place) in enumerate(zip(numbers.lhs_spec[2:], windows, places, strict=True)):
        begins = np.arange(output[place])[:, None] * about["window_strides"][i] - about["padding"][i][0]
        at = begins + np.arange(right[window]) * about["rhs_dilation"][i]
        apart = about["lhs_dilation"][i]
        total *= int(((at >= 0) & (at % apart == 0) & (at // apart < left[space])).sum())
    return total


def _inner(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


@functools.cache
def gemm_peak() -> float:
    """Operations a second of a large float32 matrix product on the first device; measured once, in a quarter second."""
    side = 1024 if jax.default_backend() == "cpu" else 4096
    square = jnp.full((side, side), 1 / side, jnp.float32)
    product = jax.jit(lambda a, b: a @ b)
    product(square, square).block_until_ready()
    best, spent = math.inf, 0.0
    while spent < 0.25:
        begin = time.perf_counter()
        product(square, square).block_until_ready()
        took = time.perf_counter() - begin
        best, spent = min(best, took), spent + took
    return float(2 * side**3 / best)
