"""Intrinsics that sum over clients: sums, means, extremes, and folds of the caller's own.

All are compositions of one primitive, a sum over clients under a group, and of plain arithmetic before and after it;
so a runtime needs to know nothing but groups. The options `empty` and `dtype`, and `federated_weighted_mean`, are
Sumfold's own; the other names and the order of arguments are those of TensorFlow Federated.

Rules for hard cases:
    - a sum of nobody is 0; a mean, minimum or maximum of nobody is an error unless `empty` is given; so is a mean
      whose weights are all 0;
    - a client of weight 0 adds nothing to a mean, whatever its value holds; a negative weight is an error;
    - an integer sum that leaves its dtype's range is an error, never wrapped;
    - a client with a number that is not finite is left out of the exchange, with a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.core.group import add, fold, maximum, minimum
from sumfold.errors import DataError, TypeMismatchError, user_facing, user_line
from sumfold.language import integers, primitives, types
from sumfold.language.mapping import apply, close
from sumfold.language.placed import placed
from sumfold.language.placements import CLIENTS, SERVER
from sumfold.language.primitives import Check
from sumfold.language.types import FederatedType, TensorType, Type
from sumfold.language.value import Part, Pending, Value, flat, local, refill, typed

__all__ = [
    "federated_aggregate",
    "federated_max",
    "federated_mean",
    "federated_min",
    "federated_sum",
    "federated_weighted_mean",
]


@user_facing
def federated_sum(value: Any, dtype: Any = None) -> Value:
    """The sum over clients, leaf by leaf; 0 of nobody.

    Integer sums are exact: one that leaves the dtype's range is an error after the call. Sums of 8- and 16-bit floats
    are kept in float32.

    Args:
        value: {T}@CLIENTS of numbers, or structures of them.
        dtype: of the result, where a wider one is needed, such as ``np.int64`` or ``np.float32``.

    Returns:
        {T}@CLIENTS → T@SERVER.

    Raises:
        PlacementError, TypeMismatchError: at the user's line. After the call, DataError when an integer sum leaves
            the range.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_sum(x))([1, 2, 3]).item()
        6
    """
    given = _numbers(placed(value, "value to be summed", CLIENTS), "federated_sum")
    if dtype is not None:
        given, dtype = _widened(given, dtype)
    return _sum(given, dtype, "federated_sum")


@user_facing
def federated_mean(value: Any, weight: Any = None, *, empty: Any = None) -> Value:
    """The mean over clients, weighted or not: Σ weight · value / Σ weight.

    Args:
        value: {T}@CLIENTS of floating or complex numbers, or structures of them.
        weight: {int or float}@CLIENTS, one number a client, not negative; None weighs all alike.
        empty: the result when nobody has a weight above 0: a number, or a structure like the value's.

    Returns:
        {T}@CLIENTS → T@SERVER.

    Raises:
        PlacementError, TypeMismatchError: at the user's line. After the call, DataError for a negative weight, or
            when nobody has a weight above 0 and `empty` is not given.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def averaging(updates, weights):
        ...     return sf.federated_mean(updates, weights)
        >>> averaging([[1.0], [4.0]], [2, 1])
        [np.float32(2.0)]
    """
    return _mean(value, weight, empty, "federated_mean")


@user_facing
def federated_weighted_mean(value: Any, weight: Any, *, empty: Any = None) -> Value:
    """`federated_mean` whose weight must be given.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x, w: sf.federated_weighted_mean(x, w))([1.0, 2.0], [3, 1]).item()
        1.25
    """
    if weight is None:
        raise TypeMismatchError(
            "SF-TYPE-047", "federated_weighted_mean(value, None)", "a weight", "use federated_mean(value) without one"
        )
    return _mean(value, weight, empty, "federated_weighted_mean")


def _mean(value: Any, weight: Any, empty: Any, name: str) -> Value:
    given = placed(value, "value to be averaged", CLIENTS)
    for t in types.leaves(given.member):
        if not isinstance(t, TensorType) or not jnp.issubdtype(t.dtype, jnp.inexact):
            raise TypeMismatchError(
                "SF-TYPE-048",
                f"{name} of {given.type}",
                "floating or complex numbers",
                "convert first: federated_map(lambda x: x.astype(jnp.float32), value); integers are summed exactly by "
                "federated_sum",
            )
    _known(given, name)
    line = user_line()
    precise = [_precise(leaf.dtype) for leaf in flat(given.leaves)]
    wide = [leaf.astype(d) for leaf, d in zip(flat(given.leaves), precise, strict=True)]
    if weight is None:
        totals, count = primitives.sum_over_clients(wide, add, name, line)
        whole = count.astype(jnp.float32)
        reason = "nobody took part"
    else:
        share = _weight(weight, name, line)
        counts = share != 0
        wide = [jnp.where(counts, leaf * share.astype(leaf.dtype), jnp.zeros_like(leaf)) for leaf in wide]
        (*totals, whole), _ = primitives.sum_over_clients([*wide, share], add, name, line)
        reason = "nobody took part, or all weights are 0"
    nobody = ~(whole > 0)
    divisor = jnp.where(nobody, jnp.ones_like(whole), whole)
    means = [
        (total / divisor.astype(total.dtype)).astype(leaf.dtype)
        for total, leaf in zip(totals, flat(given.leaves), strict=True)
    ]
    return _unless_nobody(given.member, means, nobody, empty, f"{name} where {reason}", line)


def _weight(weight: Any, name: str, line: str) -> Any:
    share = placed(weight, "weight to use in averaging", CLIENTS)
    if not isinstance(share.member, TensorType) or share.member.shape != ():
        raise TypeMismatchError(
            "SF-TYPE-049",
            f"{name} with a weight of type {share.type}",
            "one number at each client",
            "sum or select inside federated_map to get a scalar",
        )
    if not jnp.issubdtype(share.member.dtype, jnp.integer) and not jnp.issubdtype(share.member.dtype, jnp.floating):
        raise TypeMismatchError(
            "SF-TYPE-049",
            f"{name} with a weight of type {share.type}",
            "an integer or floating-point number at each client",
            "convert it: federated_map(lambda w: w.astype(jnp.float32), weight)",
        )
    number = share.leaves[0]
    came = f"a negative weight of {name} at {{who}}"
    do = "look at how the weights are made; 0 leaves a client out"
    primitives.check(number < 0, Check(DataError, "SF-DATA-061", came, "weights of at least 0", do, line))
    return number.astype(_precise(number.dtype) if jnp.issubdtype(number.dtype, jnp.floating) else jnp.float32)


@user_facing
def federated_min(value: Any, *, empty: Any = None) -> Value:
    """The smallest value over clients, leaf by leaf and element by element.

    Args:
        value: {T}@CLIENTS of integers or floats, or structures of them.
        empty: the result when nobody takes part.

    Raises:
        PlacementError, TypeMismatchError: at the user's line. After the call, DataError when nobody takes part and
            `empty` is not given.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_min(x))([3, 1, 2]).item()
        1
    """
    return _extreme(value, empty, minimum, "federated_min")


@user_facing
def federated_max(value: Any, *, empty: Any = None) -> Value:
    """The largest value over clients; see `federated_min`.

    Example:
        >>> import sumfold as sf
        >>> sf.federated_computation(lambda x: sf.federated_max(x))([3.0, 1.0, 2.0]).item()
        3.0
    """
    return _extreme(value, empty, maximum, "federated_max")


def _extreme(value: Any, empty: Any, group: Any, name: str) -> Value:
    given = placed(value, f"value of {name}", CLIENTS)
    for t in types.leaves(given.member):
        kinds = (jnp.integer, jnp.floating)
        if not isinstance(t, TensorType) or not any(jnp.issubdtype(t.dtype, k) for k in kinds):
            raise TypeMismatchError(
                "SF-TYPE-050", f"{name} of {given.type}", "integers or floats", "convert them inside federated_map"
            )
    _known(given, name)
    line = user_line()
    totals, count = primitives.sum_over_clients(flat(given.leaves), group, name, line)
    return _unless_nobody(given.member, totals, count == 0, empty, f"{name} where nobody took part", line)


@user_facing
def federated_aggregate(
    value: Any,
    zero: Any,
    accumulate: Callable[[Any, Any], Any],
    merge: Callable[[Any, Any], Any],
    report: Callable[[Any], Any],
) -> Value:
    """A sum of the caller's own over clients: any commutative, associative fold.

    Args:
        value: {T}@CLIENTS.
        zero: U, a constant: the total of nobody.
        accumulate: (U, T) → U.
        merge: (U, U) → U, of two totals.
        report: U → R, once at the end, on the server.

    Returns:
        {T}@CLIENTS → R@SERVER.

    Raises:
        TypeMismatchError: when accumulate or merge return something else than a U.

    Example:
        The two largest values:

        >>> import jax.numpy as jnp, sumfold as sf
        >>> def keep_two(total, values):
        ...     return jnp.sort(jnp.append(total, values))[-2:]
        >>> @sf.federated_computation
        ... def two_largest(x):
        ...     return sf.federated_aggregate(x, jnp.full(2, -jnp.inf), keep_two, keep_two, lambda total: total)
        >>> two_largest([3.0, 9.0, 5.0]).tolist()
        [5.0, 9.0]
    """
    given = placed(value, "value to be aggregated", CLIENTS)
    _known(given, "federated_aggregate")
    if isinstance(zero, Pending):
        zero.decide(SERVER, certain=True)
    if isinstance(zero, Value):
        zero = local(zero.member, zero.leaves)
    total, zeros = typed(zero, "zero of federated_aggregate")
    shapes = tuple(tree.shape(z.shape, z.dtype) for z in zeros)
    _same(total, accumulate, [(total, shapes), (given.member, given.leaves)], "accumulate")
    _same(total, merge, [(total, shapes), (total, shapes)], "merge")

    def folded(function: Callable[..., Any], second: Type) -> Callable[[Any, Any], Any]:
        def run(a: list[Any], b: list[Any]) -> list[Any]:
            result = apply(function, [(total, tuple(a)), (second, tuple(b))], CLIENTS, "a fold")
            return flat(result[1])

        return run

    group = fold((), folded(accumulate, given.member), folded(merge, total))
    totals, _ = primitives.sum_over_clients(flat(given.leaves), group, "federated_aggregate", user_line(), zeros)
    member, leaves = apply(report, [(total, tuple(totals))], SERVER, "the report of federated_aggregate")
    return Value(FederatedType(member, SERVER), leaves)


def _same(total: Type, function: Callable[..., Any], arguments: Any, name: str) -> None:
    _, result, _ = close(function, arguments, f"{name} of federated_aggregate")
    if result != total:
        raise TypeMismatchError(
            "SF-TYPE-052",
            f"{name} of federated_aggregate makes {result}",
            f"{total}, the type of zero",
            "start with a zero of that dtype and shape, or cast with astype",
        )


def _sum(given: Value, dtype: Any, name: str) -> Value:
    """Sums by kind of leaf: floats in at least float32, integers exactly."""
    line = user_line()
    kinds = [t for t in types.leaves(given.member) if isinstance(t, TensorType)]
    leaves = flat(given.leaves)
    encoded = [
        integers.digits(leaf) if jnp.issubdtype(leaf.dtype, jnp.integer) else leaf.astype(_precise(leaf.dtype))
        for leaf in leaves
    ]
    totals, count = primitives.sum_over_clients(encoded, add, name, line)
    results: list[Part] = []
    for t, leaf, total in zip(kinds, leaves, totals, strict=True):
        if not jnp.issubdtype(leaf.dtype, jnp.integer):
            results.append(total.astype(leaf.dtype))
            continue
        result, overflow = integers.decode(total, dtype or t.dtype, count)
        results.append(result)
        came = f"a {name} of {given.type} that leaves the range of {np.dtype(dtype or t.dtype)}"
        do = f"widen it: {name}(value, dtype=np.int64), or dtype=np.float32 for an approximate sum"
        primitives.check(overflow, Check(DataError, "SF-DATA-062", came, "a sum that fits", do, line))
    member = given.member
    if dtype is not None:
        member = refill(member, [TensorType(dtype, t.shape) for t in kinds if isinstance(t, TensorType)])
    return Value(FederatedType(member, SERVER), tuple(results))


def _widened(given: Value, dtype: Any) -> tuple[Value, Any]:
    """The value as it is summed for a result of `dtype`, and the dtype that integers end in."""
    try:
        wanted = np.dtype(dtype)
    except TypeError as error:
        raise TypeMismatchError(
            "SF-TYPE-053", f"federated_sum with dtype={dtype!r}", "a dtype", "pass dtype=np.int64 or dtype=np.float32"
        ) from error
    kinds = [t.dtype for t in types.leaves(given.member) if isinstance(t, TensorType)]
    whole = all(jnp.issubdtype(k, jnp.integer) and k.itemsize <= wanted.itemsize for k in kinds)
    if jnp.issubdtype(wanted, jnp.integer) and whole:
        return given, wanted
    if jnp.issubdtype(wanted, jnp.inexact) and jax.dtypes.canonicalize_dtype(wanted) == wanted:
        leaves = tuple(leaf.astype(wanted) for leaf in flat(given.leaves))
        member = refill(given.member, [TensorType(wanted, t.shape) for t in types.leaves(given.member)])  # type: ignore[union-attr]
        return Value(FederatedType(member, CLIENTS), leaves), None
    raise TypeMismatchError(
        "SF-TYPE-053",
        f"federated_sum of {given.type} with dtype={wanted}",
        "an integer dtype that is not narrower, or a floating one that JAX has (float64 needs jax_enable_x64)",
        "pass dtype=np.int64 or dtype=np.float32",
    )


def _unless_nobody(member: Type, results: list[Any], nobody: Any, empty: Any, what: str, line: str) -> Value:
    """The results, or `empty` where nobody contributed; without it that is an error."""
    if empty is None:
        do = "give the result for this case: empty=0.0, or call it with clients that contribute"
        primitives.check(nobody, Check(DataError, "SF-DATA-063", what, "a client that contributes", do, line))
    else:
        filled = _like(member, empty, results)
        results = [jnp.where(nobody, e, r) for e, r in zip(filled, results, strict=True)]
    return Value(FederatedType(member, SERVER), tuple(results))


def _like(member: Type, empty: Any, results: list[Any]) -> list[Any]:
    if isinstance(empty, Value):
        given = list(flat(empty.leaves))
    else:
        _, parts = typed(empty, "empty")
        given = list(flat(parts))
    if len(given) == 1:
        given = given * len(results)
    if len(given) != len(results):
        raise TypeMismatchError(
            "SF-TYPE-054",
            f"empty with {len(given)} arrays",
            f"one number, or a structure like {member}",
            "pass empty=0.0",
        )
    for e, r in zip(given, results, strict=True):
        if jnp.issubdtype(r.dtype, jnp.integer) and not jnp.issubdtype(e.dtype, jnp.integer):
            raise TypeMismatchError("SF-TYPE-054", f"empty of {e.dtype}", f"{r.dtype}, as the result", "pass empty=0")
    return [jnp.broadcast_to(e.astype(r.dtype), r.shape) for e, r in zip(given, results, strict=True)]


def _precise(dtype: Any) -> Any:
    """The dtype in which floats of this dtype are added up."""
    return jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4 else dtype


def _numbers(given: Value, name: str) -> Value:
    for t in types.leaves(given.member):
        if not isinstance(t, TensorType) or not jnp.issubdtype(t.dtype, jnp.number):
            raise TypeMismatchError(
                "SF-TYPE-055",
                f"{name} of {given.type}",
                "numbers" + ("; a sequence is no number" if not isinstance(t, TensorType) else ""),
                "sum sequences with sequence_sum; convert bools: federated_map(lambda x: x.astype(jnp.int32), …)",
            )
    return _known(given, name)


def _known(given: Value, name: str) -> Value:
    for t, path in zip(types.leaves(given.member), types.paths(given.member), strict=True):
        if not isinstance(t, TensorType) or not t.is_fully_defined:
            where = f" at {path}" if path else ""
            raise TypeMismatchError(
                "SF-TYPE-056",
                f"{name} of {given.type}, which is not an array of a known shape{where}",
                "arrays of the same known shape at every client",
                "reduce it inside federated_map to a known shape first",
            )
    return given
