"""Exact sums of integers in 32-bit arithmetic.

A client sends an integer as its bytes, each in an int32, the highest one signed. Sums of bytes cannot wrap before
2**23 clients took part; carrying them over on the server gives the exact sum, and shows whether it fits a dtype.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold.language.value import Part, Wide
from sumfold.tree import Leaf

__all__ = ["decode", "digits", "join"]

MOST_CLIENTS = 2**31 // 256 - 1
"""How many clients' bytes add up without wrapping."""


def digits(x: Leaf) -> Leaf:
    """int32[…, bytes]: the bytes of integers, lowest first; the highest one of a signed integer is signed.

    Example:
        >>> digits(jnp.int32(-2)).tolist()
        [254, 255, 255, -1]
    """
    number = x.dtype.itemsize
    if number == 1:
        return x[..., None].astype(jnp.int32)
    shifts = jnp.asarray(8 * np.arange(number), x.dtype)
    shifted = (
        jax.lax.shift_right_arithmetic if jnp.issubdtype(x.dtype, jnp.signedinteger) else jax.lax.shift_right_logical
    )
    moved = shifted(*jnp.broadcast_arrays(x[..., None], shifts))
    low = (moved & jnp.asarray(255, x.dtype)).astype(jnp.int32)
    top = jnp.arange(number) == number - 1
    return jnp.where(top, moved.astype(jnp.int32), low)


def decode(total: Leaf, dtype: Any, count: Leaf) -> tuple[Part, Leaf]:
    """The sum of `digits` as an integer of `dtype`, and bool[]: whether it does not fit.

    The dtype has at least as many bytes as were summed. A 64-bit dtype where JAX has none becomes a `Wide`.

    Example:
        >>> result, overflow = decode(digits(jnp.int32(2**31 - 1)) + digits(jnp.int32(1)), np.int32, jnp.int32(2))
        >>> bool(overflow)
        True
    """
    dtype = np.dtype(dtype)
    kept = _carry([total[..., i] for i in range(total.shape[-1])], dtype.itemsize)
    top = kept[-1]
    low, high = (-128, 127) if dtype.kind == "i" else (0, 255)
    overflow = ((top < low) | (top > high)).any() | (count > MOST_CLIENTS)
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        return Wide(jnp.stack(kept, axis=-1)), overflow
    unsigned: Any = np.dtype(f"u{dtype.itemsize}")
    bits = jnp.zeros(top.shape, unsigned)
    for i, digit in enumerate(kept):
        byte = (digit & 255).astype(unsigned)
        bits = bits | jax.lax.shift_left(byte, jnp.full(byte.shape, 8 * i, unsigned))
    return jax.lax.bitcast_convert_type(bits, dtype), overflow


def _carry(sums: list[Leaf], number: int) -> list[Leaf]:
    """So many bytes, every one but the last in 0 … 255."""
    carried, carry = [], jnp.zeros_like(sums[0])
    for i in range(number):
        here = carry + sums[i] if i < len(sums) else carry
        carried.append(here & 255)
        carry = here >> 8  # keeps the sign
    carried[-1] = here
    return carried


def join(digits: NDArray[Any], dtype: Any) -> NDArray[Any]:
    """The integers behind a `Wide`, on the host."""
    total = np.zeros(digits.shape[:-1], np.uint64)
    for i in range(digits.shape[-1]):
        total |= (digits[..., i].astype(np.int64) & 255).astype(np.uint64) << np.uint64(8 * i)
    return total.view(dtype)
