"""Intrinsics that place values, move them from the server to the clients, and map local functions over them.

Names and the order of arguments are those of TensorFlow Federated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.errors import DataError, TypeMismatchError, user_facing, user_line
from sumfold.language import primitives
from sumfold.language.mapping import apply, spread
from sumfold.language.placed import check_placement, check_tracing, placed
from sumfold.language.placements import CLIENTS, SERVER
from sumfold.language.primitives import Check
from sumfold.language.types import FederatedType, SequenceType, TensorType
from sumfold.language.value import Elements, Pending, Value, flat, refill, typed, with_flat

__all__ = [
    "federated_broadcast",
    "federated_eval",
    "federated_map",
    "federated_select",
    "federated_value",
    "federated_zip",
]


@user_facing
def federated_value(value: Any, placement: Any) -> Value:
    """A value at a placement: a constant, or an argument that has no placement yet.

    Args:
        value: arrays, numbers, or structures of them.
        placement: `CLIENTS` or `SERVER`.

    Returns:
        T → T@P, the same for all members.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def count():
        ...     return sf.federated_value(10, sf.SERVER)
        >>> str(count.type_signature)
        '( -> int32@SERVER)'
    """
    check_placement(placement, "federated_value")
    check_tracing("federated_value")
    if isinstance(value, Pending):
        value.decide(None, certain=True)
    member, leaves = typed(value, "the value of federated_value")
    if placement is CLIENTS:
        leaves = tuple(primitives.broadcast(flat(leaves), user_line()))
    return Value(FederatedType(member, placement, True), leaves)


@user_facing
def federated_eval(fn: Callable[[], Any], placement: Any) -> Value:
    """What a function without arguments makes at each member of a placement.

    Args:
        fn: a local function of no argument.
        placement: `CLIENTS` or `SERVER`.

    Returns:
        ( → T) → {T}@CLIENTS or T@SERVER.

    Example:
        >>> import jax.numpy as jnp, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(sf.TensorType(jnp.float32)))
        ... def how_many(readings):
        ...     return sf.federated_sum(sf.federated_eval(lambda: 1, sf.CLIENTS))
        >>> how_many([0.5, 0.5, 0.5]).item()
        3
    """
    check_placement(placement, "federated_eval")
    check_tracing("federated_eval")
    member, leaves = apply(fn, [], placement, "the function of federated_eval")
    return Value(FederatedType(member, placement), leaves)


@user_facing
def federated_map(fn: Callable[..., Any] | Any, arg: Any) -> Value:
    """A local function of each client's value, or of the server's.

    Args:
        fn: any function that JAX can trace; it is given one client's arrays. Of a structure it may take the elements
            as parameters.
        arg: a placed value, or a structure of values of one placement.

    Returns:
        (T → U), {T}@CLIENTS → {U}@CLIENTS, or at the server.

    Raises:
        PlacementError: for a value that is not placed, values of two placements, or a captured one.
        TypeMismatchError: when JAX cannot trace fn on the value's type.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def shifted(x, y):
        ...     return sf.federated_map(lambda a, b: a + b, (x, y))
        >>> [v.item() for v in shifted([1, 2], [10, 20])]
        [11, 22]
    """
    if not callable(fn):
        raise TypeMismatchError(
            "SF-TYPE-045",
            f"federated_map({type(fn).__name__}, …)",
            "a function first",
            "write federated_map(fn, value)",
        )
    value = placed(arg, "value to be mapped")
    at = value.placement
    member, leaves = apply(fn, spread(fn, value.member, value.leaves), at, "the function of federated_map")
    return Value(FederatedType(member, at), leaves)


@user_facing
def federated_zip(value: Any) -> Value:
    """A structure of values of one placement as one value of a structure.

    Args:
        value: a tuple, list, dict or other structure of placed values, nested as you like.

    Returns:
        <{T}@P, {U}@P> → {<T,U>}@P.

    Raises:
        PlacementError: for values of different placements.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def both(x, y):
        ...     return sf.federated_sum(sf.federated_zip({"x": x, "y": y}))
        >>> {name: total.item() for name, total in both([1, 2], [3.0, 4.0]).items()}
        {'x': 3, 'y': 7.0}
    """
    zipped = placed(value, "value to be zipped", wide=True)
    return Value(FederatedType(zipped.member, zipped.placement), zipped.leaves)


@user_facing
def federated_broadcast(value: Any) -> Value:
    """The server's value at every client.

    Returns:
        T@SERVER → T@CLIENTS.

    Raises:
        PlacementError: for a value that is not at the server.

    Example:
        >>> import jax.numpy as jnp, sumfold as sf
        >>> @sf.federated_computation(
        ...     sf.type_at_server(sf.TensorType(jnp.float32)), sf.type_at_clients(sf.TensorType(jnp.float32))
        ... )
        ... def above(threshold, reading):
        ...     both = (reading, sf.federated_broadcast(threshold))
        ...     return sf.federated_sum(sf.federated_map(lambda r, t: (r > t) * 1, both))
        >>> above(1.0, [0.5, 1.5, 2.5]).item()
        2
    """
    given = placed(value, "value to be broadcasted", SERVER, wide=True)
    leaves = with_flat(given.leaves, primitives.broadcast(flat(given.leaves), user_line()))
    return Value(FederatedType(given.member, CLIENTS, True), leaves)


@user_facing
def federated_select(client_keys: Any, max_key: Any, server_val: Any, select_fn: Callable[[Any, Any], Any]) -> Value:
    """Each client's slices of the server's value, in the order of its keys.

    The server's value is broadcast and each client selects for itself, so the server does not learn the keys.

    Args:
        client_keys: {int32[N]}@CLIENTS with a known N; each key in 0 … max_key.
        max_key: int32@SERVER, the largest key.
        server_val: T@SERVER.
        select_fn: (T, int32) → U.

    Returns:
        {U*}@CLIENTS, N elements each.

    Raises:
        TypeMismatchError: for keys of another type. After the call, DataError for a key out of range.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation
        ... def look_up(keys, table):
        ...     max_key = sf.federated_value(4, sf.SERVER)
        ...     return sf.federated_select(keys, max_key, table, lambda rows, key: rows[key])
        >>> slices = look_up(np.array([[0, 1], [4, 0]]), np.array([0.0, 10.0, 20.0, 30.0, 40.0], np.float32))
        >>> [[s.item() for s in of_client] for of_client in slices]
        [[0.0, 10.0], [40.0, 0.0]]
    """
    keys = placed(client_keys, "client_keys", CLIENTS)
    largest = placed(max_key, "max_key", SERVER)
    table = placed(server_val, "server_val", SERVER)
    wanted = keys.member
    is_vector = isinstance(wanted, TensorType) and wanted.shape is not None and len(wanted.shape) == 1
    if not (isinstance(wanted, TensorType) and wanted.shape and is_vector and wanted.dtype == np.int32):
        raise _select_error(
            f"client_keys of type {keys.type}",
            "{int32[N]}@CLIENTS",
            "pass np.array(keys, np.int32), or declare int32[3]",
        )
    if wanted.shape[0] is None:
        raise _select_error(
            f"client_keys of type {keys.type}", "a known number of keys, such as int32[3]", "declare it"
        )
    if not (isinstance(largest.member, TensorType) and largest.member == TensorType(np.int32)):
        raise _select_error(f"max_key of type {largest.type}", "int32@SERVER", "pass federated_value(n, SERVER)")
    line = user_line()
    (limit,) = primitives.broadcast(flat(largest.leaves), line)
    shared = with_flat(table.leaves, primitives.broadcast(flat(table.leaves), line))
    numbers = keys.leaves[0]
    out_of_range = ((numbers < 0) | (numbers > limit)).any()
    came = "a key outside of 0 … max_key at {who}"
    rows = {leaf.shape[0] if leaf.ndim else 0 for leaf in flat(shared)}
    if len(rows) == 1 and rows != {0}:
        # JAX would clamp a key behind the last row to it.
        out_of_range = out_of_range | (numbers >= rows.pop()).any()
        came = "a key outside of 0 … max_key, or behind the last row of server_val, at {who}"
    what = Check(DataError, "SF-DATA-060", came, "keys from 0 to max_key", "check the keys, and max_key", line)
    primitives.check(out_of_range, what)

    def select(table: Any, numbers: Any) -> Any:
        return jax.vmap(lambda key: select_fn(table, key))(jnp.clip(numbers, 0, limit))

    stacked, leaves = apply(
        select, [(table.member, shared), (wanted, keys.leaves)], None, "the select_fn of federated_select"
    )
    kinds = [TensorType(leaf.dtype, leaf.shape[1:]) for leaf in flat(leaves)]
    element = refill(stacked, list(kinds))
    shapes = (tuple(tree.shape(leaf.shape[1:], leaf.dtype) for leaf in flat(leaves)),)
    elements = Elements(primitives.sequence_of(flat(leaves)), element, shapes)
    return Value(FederatedType(SequenceType(element), CLIENTS), (elements,))


def _select_error(came: str, needed: str, do: str) -> TypeMismatchError:
    return TypeMismatchError("SF-TYPE-046", f"federated_select with {came}", needed, do)
