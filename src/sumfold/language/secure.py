"""Secure sums: what leaves a client is an integer that a secure aggregation can mask, and only its sum is seen.

In every runtime they are computed in the modular integers of that protocol, uint32 words whose sum wraps at 2**32
(or at a modulus of the caller's). A value outside the stated range, at either end, is an error that names the client,
since it would come out as a wrong sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold.core.group import modular
from sumfold.errors import DataError, TypeMismatchError, user_facing, user_line
from sumfold.language import primitives, types
from sumfold.language.containers import open_container
from sumfold.language.placed import placed
from sumfold.language.placements import CLIENTS, SERVER
from sumfold.language.placing import federated_select
from sumfold.language.primitives import Check
from sumfold.language.types import FederatedType, TensorType
from sumfold.language.value import Pending, Value, flat
from sumfold.tree import Leaf

__all__ = [
    "federated_secure_modular_sum",
    "federated_secure_select",
    "federated_secure_sum",
    "federated_secure_sum_bitwidth",
]

_WORD, _HALF = 2**32, 2**16


@user_facing
def federated_secure_sum(value: Any, max_input: Any) -> Value:
    """The sum of integers between 0 and a largest input, as a secure aggregation computes it.

    Args:
        value: {T}@CLIENTS of integers, or structures of them, each in 0 … max_input.
        max_input: the largest value of any client: a whole number, or a structure of them like the value's.

    Returns:
        {T}@CLIENTS → T@SERVER.

    Raises:
        PlacementError, TypeMismatchError: at the user's line. After the call, DataError for a value out of range, and
            for a sum that leaves the dtype's range.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_secure_sum(x, 10))([10, 1]).item()
        11
    """
    given = _integers(value, "federated_secure_sum")
    limits = _bounds(max_input, given, "max_input of federated_secure_sum", 1, _WORD - 1)
    return _secure_sum(given, limits, "federated_secure_sum")


@user_facing
def federated_secure_sum_bitwidth(value: Any, bitwidth: Any) -> Value:
    """`federated_secure_sum` of integers of so many bits: each in 0 … 2**bitwidth − 1.

    Args:
        value: {T}@CLIENTS of integers, or structures of them.
        bitwidth: 1 … 62; a whole number, or a structure of them.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_secure_sum_bitwidth(x, 4))([1, 2, 15]).item()
        18
    """
    given = _integers(value, "federated_secure_sum_bitwidth")
    bits = _bounds(bitwidth, given, "bitwidth of federated_secure_sum_bitwidth", 1, 62)
    return _secure_sum(given, [min(2**b, _WORD) - 1 for b in bits], "federated_secure_sum_bitwidth")


@user_facing
def federated_secure_modular_sum(value: Any, modulus: Any) -> Value:
    """The sum of integers modulo an integer.

    Args:
        value: {T}@CLIENTS of integers, or structures of them; taken modulo `modulus`, negative ones too.
        modulus: 2 … 2**32; a whole number, or a structure of them.

    Returns:
        {T}@CLIENTS → T@SERVER, in 0 … modulus − 1.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_secure_modular_sum(x, 8))([1, 2, 3, 4]).item()
        2
    """
    name = "federated_secure_modular_sum"
    given = _integers(value, name)
    moduli = _bounds(modulus, given, f"modulus of {name}", 2, _WORD)
    line, results = user_line(), []
    for leaf, m in zip(flat(given.leaves), moduli, strict=True):
        if m - 1 > np.iinfo(leaf.dtype).max:
            raise TypeMismatchError(
                "SF-TYPE-060",
                f"{name} of {leaf.dtype} modulo {m}",
                f"results that fit {leaf.dtype}",
                "choose a smaller modulus, or cast the values to uint32",
            )
        (total,), _ = primitives.sum_over_clients([_residue(leaf, m)], modular(m), name, line)
        results.append(total.astype(leaf.dtype))
    return Value(FederatedType(given.member, SERVER), tuple(results))


@user_facing
def federated_secure_select(
    client_keys: Any, max_key: Any, server_val: Any, select_fn: Callable[[Any, Any], Any]
) -> Value:
    """`federated_select`, which never shows a client's keys: the whole value is broadcast.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation
        ... def look_up(keys, table):
        ...     return sf.federated_secure_select(keys, sf.federated_value(2, sf.SERVER), table, lambda t, key: t[key])
        >>> look_up(np.array([[2]]), np.array([5.0, 6.0, 7.0]))
        [[np.float32(7.0)]]
    """
    return federated_select(client_keys, max_key, server_val, select_fn)


def _secure_sum(given: Value, limits: list[int], name: str) -> Value:
    """Each leaf as one word, or as two halves where the sum of a few clients could wrap."""
    line, words, halves = user_line(), [], []
    for leaf, limit in zip(flat(given.leaves), limits, strict=True):
        largest = min(limit, int(np.iinfo(leaf.dtype).max))
        outside = (leaf < 0) | (leaf > jnp.asarray(largest, leaf.dtype))
        came = f"a value outside of 0 … {limit} in a {name} at {{who}}"
        do = "clip the values, or state the largest that may occur; shift negative values"
        needed = f"integers from 0 to {limit}"
        primitives.check(outside.any(), Check(DataError, "SF-DATA-064", came, needed, do, line))
        word = jnp.where(outside, jnp.zeros_like(leaf), leaf).astype(jnp.uint32)
        halves.append(largest >= _HALF)
        words.append([word & (_HALF - 1), word >> 16] if halves[-1] else [word])
    totals, count = primitives.sum_over_clients([w for pair in words for w in pair], modular(_WORD), name, line)

    rest, results = list(totals), []
    for leaf, limit, two in zip(flat(given.leaves), limits, halves, strict=True):
        # A sum of so many clients cannot have wrapped.
        most = (_WORD - 1) // (_HALF - 1 if two else limit)
        many = f"a {name} over more than {most} clients"
        primitives.check(
            count > min(most, 2**31 - 1),
            Check(DataError, "SF-DATA-065", many, "a sum below 2**32", "use fewer clients at a time", line),
        )
        total, high = rest.pop(0), jnp.zeros(leaf.shape, jnp.uint32)
        if two:
            high = rest.pop(0) + (total >> 16)
            total = (total & (_HALF - 1)) | (high << 16)
        over = ((high >= _HALF) | (total > jnp.asarray(np.iinfo(leaf.dtype).max, jnp.uint32))).any()
        came = f"a {name} of {given.type} that leaves the dtype's range"
        do = "use fewer clients at a time, or unsigned integers"
        primitives.check(over, Check(DataError, "SF-DATA-062", came, "a sum that fits", do, line))
        results.append(total.astype(leaf.dtype))
    return Value(FederatedType(given.member, SERVER), tuple(results))


def _residue(leaf: Leaf, modulus: int) -> Leaf:
    """uint32[…] in 0 … modulus − 1, congruent to integers of either sign."""
    size = jnp.abs(leaf.astype(jnp.int32)).astype(jnp.uint32) if leaf.dtype.kind == "i" else leaf.astype(jnp.uint32)
    size = size if modulus == _WORD else size % jnp.uint32(modulus)
    opposite = jnp.where(size == 0, size, jnp.asarray(modulus % _WORD, jnp.uint32) - size)
    return jnp.where(leaf < 0, opposite, size)


def _integers(value: Any, name: str) -> Value:
    given = placed(value, f"value of {name}", CLIENTS)
    for t in types.leaves(given.member):
        if not isinstance(t, TensorType) or not jnp.issubdtype(t.dtype, jnp.integer) or not t.is_fully_defined:
            raise TypeMismatchError(
                "SF-TYPE-061",
                f"{name} of {given.type}",
                "integers of a known shape",
                "scale and round first: federated_map(lambda x: jnp.round(x * 1000).astype(jnp.int32), value)",
            )
    return given


def _bounds(bound: Any, given: Value, what: str, low: int, high: int) -> list[int]:
    """One whole number for each leaf: the same for all, or from a structure like the value's."""
    opened = None if isinstance(bound, Value | Pending) else open_container(bound)
    numbers = jax.tree.leaves(bound) if opened else [bound]
    number = len(types.leaves(given.member))
    if not opened:
        numbers = numbers * number
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and low <= n <= high for n in numbers)
    if not whole or len(numbers) != number:
        raise TypeMismatchError(
            "SF-TYPE-062",
            f"{what} as {'a value of the computation' if isinstance(bound, Value | Pending) else repr(bound)}",
            f"a whole number from {low} to {high}" + (f", or a structure of {number} of them" if number > 1 else ""),
            "it is a constant of the computation, not a value of it",
        )
    return [int(n) for n in numbers]
