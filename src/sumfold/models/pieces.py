"""How many rows of an evaluation are computed at once.

A piece should be large, since each costs a call, and small, since its intermediate arrays lie in memory together. So
the program is read for one number: the bytes for each row of its largest intermediate array. That is the growth of an
equation's result from two rows to four; what does not grow belongs to no row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr

__all__ = ["at_once", "bytes_per_row"]

_LARGEST = 128 << 20
"""Bytes that the largest intermediate array of a piece may have."""

_FEW = 1024
"""Rows up to which one piece has exactly the rows that there are, if memory allows."""


def bytes_per_row(function: Callable[..., Any], arguments: Callable[[int], Any]) -> int:
    """Bytes for each row of the largest intermediate array; nothing runs.

    Args:
        function: the program.
        arguments: number of rows -> its arguments, as shapes and dtypes.

    Example:
        >>> import jax.numpy as jnp
        >>> w = jnp.ones((3, 5))
        >>> bytes_per_row(lambda x: (x @ w).sum(), lambda rows: (jax.ShapeDtypeStruct((rows, 3), jnp.float32),))
        20
    """
    few, more = (list(_sizes(jax.make_jaxpr(function)(*arguments(rows)).jaxpr)) for rows in (2, 4))
    if len(few) != len(more):  # a program that is another one for more rows: all that it has counts
        return max((sum(more) - sum(few)) // 2, 1)
    return max([(b - a) // 2 for a, b in zip(few, more, strict=True)] + [1])


def at_once(rows: int, largest: int, most: int) -> int:
    """Rows of a piece, so that pieces of one size hold all `rows` with little padding.

    Args:
        rows: how many there are.
        largest: bytes of the largest intermediate array for each row.
        most: rows that a piece may have in any case; a power of two.

    Example:
        >>> at_once(900, 4, most=8192), at_once(20_000, 4, most=8192), at_once(900, 1 << 20, most=8192)
        (900, 7168, 128)
    """
    bound = max(_LARGEST // largest, 1)
    most = min(most, 1 << (bound.bit_length() - 1))
    if rows <= min(most, _FEW):
        return rows
    needed = -(-rows // -(-rows // most))
    unit = 1 << max(needed.bit_length() - 3, 0)  # four sizes an octave, so that shapes repeat
    return min(-(-needed // unit) * unit, most)


def _sizes(jaxpr: Jaxpr) -> Iterator[int]:
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(part, (ClosedJaxpr, Jaxpr)):
                    yield from _sizes(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
        for output in equation.outvars:
            yield getattr(output.aval, "size", 0) * getattr(getattr(output.aval, "dtype", None), "itemsize", 0)
