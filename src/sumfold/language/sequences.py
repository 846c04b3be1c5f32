"""Sequences: a client's readings, rows or batches, read one element at a time.

A sequence has no length that a program could know, so what is computed of it is a fold. Split into the phases of a
round, a fold over a client's sequence is the fold over its batches that every client's work is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sumfold import tree
from sumfold.errors import DataError, TypeMismatchError, user_facing, user_line
from sumfold.language import primitives, types
from sumfold.language.mapping import close, spread
from sumfold.language.primitives import Check
from sumfold.language.types import FederatedType, SequenceType, StructType, TensorType, Type
from sumfold.language.value import Elements, Part, Pending, Value, check_alive, flat, local, typed, with_flat
from sumfold.tree import Leaf

__all__ = ["sequence_map", "sequence_reduce", "sequence_sum"]


@user_facing
def sequence_map(fn: Callable[..., Any], seq: Any) -> Any:
    """The sequence of fn of each element.

    Args:
        fn: a function of one element; it may take the fields of a structure as parameters.
        seq: a sequence: an argument of a mapped function, or a placed value whose member is a sequence.

    Raises:
        TypeMismatchError: for something that is no sequence, or a function that cannot be traced.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(sf.SequenceType(np.float32)))
        ... def squares(readings):
        ...     return sf.federated_sum(sf.sequence_sum(sf.sequence_map(lambda r: r * r, readings)))
        >>> squares([[1.0, 2.0], [3.0]]).item()
        14.0
    """
    value, elements = _elements(seq, "sequence_map")
    what = "the function of sequence_map"
    closed = [close(fn, spread(fn, elements.element, shapes), what, of_elements=True) for shapes in elements.shapes]
    member = _common([m for _, m, _ in closed])
    handle = primitives.sequence_map(elements.handle, [program for program, _, _ in closed])
    shapes = tuple(tuple(_shapes(parts)) for _, _, parts in closed)
    return _again(value, SequenceType(member), Elements(handle, member, shapes))


@user_facing
def sequence_reduce(seq: Any, zero: Any, op: Callable[..., Any]) -> Any:
    """The fold of op over the elements: op(… op(op(zero, first), second) …).

    Args:
        seq: a sequence, as for `sequence_map`.
        zero: where the fold starts: arrays, numbers, or structures of them.
        op: (total, element) -> total, of the same structure, shapes and dtypes as zero.

    Raises:
        TypeMismatchError: for something that is no sequence, or an op that changes the total's type.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(sf.SequenceType(np.float32)))
        ... def longest(readings):
        ...     return sf.federated_max(sf.sequence_reduce(readings, 0, lambda n, _: n + 1))
        >>> longest([[1.0, 2.0], [3.0], []]).item()
        2
    """
    value, elements = _elements(seq, "sequence_reduce")
    if isinstance(zero, Value) and isinstance(zero.type, FederatedType):
        raise TypeMismatchError(
            "SF-TYPE-040",
            f"zero of sequence_reduce with the type {zero.type}",
            "a value without a placement",
            "fold inside a mapped function: federated_map(lambda s, z: sequence_reduce(s, z, op), (seq, zero))",
        )
    total, zeros = typed(zero, "zero of sequence_reduce")
    programs = []
    for shapes in elements.shapes:
        arguments = [(total, zeros), (elements.element, shapes)]
        program, result, _ = close(op, arguments, "the op of sequence_reduce", of_elements=True)
        if result != total:
            raise TypeMismatchError(
                "SF-TYPE-041",
                f"an op of sequence_reduce that makes {result} of a total of type {total}",
                f"{total} again",
                "start with a zero of the result's dtype, such as 0.0 in place of 0, or cast with astype",
            )
        programs.append(program)
    results = primitives.sequence_reduce(elements.handle, programs, flat(zeros))
    leaves = with_flat(zeros, results)
    return Value(FederatedType(total, value.placement), leaves) if value.placement else local(total, leaves)


@user_facing
def sequence_sum(seq: Any) -> Any:
    """The sum of the elements, leaf by leaf; zeros for an empty sequence.

    An integer sum that leaves its dtype's range is an error after the call.

    Args:
        seq: a sequence of numbers, or of structures of them, with known shapes.

    Raises:
        TypeMismatchError: for something that is no sequence, or elements of unknown shape.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(sf.SequenceType(np.int32)))
        ... def total(counts):
        ...     return sf.federated_sum(sf.sequence_sum(counts))
        >>> total([[1, 2], [3]]).item()
        6
    """
    _, elements = _elements(seq, "sequence_sum")
    for t in types.leaves(elements.element):
        known = isinstance(t, TensorType) and t.is_fully_defined and jnp.issubdtype(t.dtype, jnp.number)
        if not known or len({tuple(s.shape for s in shapes) for shapes in elements.shapes}) > 1:
            raise TypeMismatchError(
                "SF-TYPE-042",
                f"sequence_sum of elements of type {elements.element}",
                "numbers of one known shape",
                "make them so with sequence_map, or fold with sequence_reduce",
            )
    first = elements.shapes[0]
    zeros = types.join(elements.element, [jnp.zeros(s.shape, s.dtype) for s in first])

    def add(total: Any, element: Any) -> Any:
        (sums, wrapped) = total
        leaves, structure = jax.tree.flatten(sums)
        pairs = [(a, b, a + b) for a, b in zip(leaves, jax.tree.leaves(element), strict=True)]
        for a, b, c in pairs:
            if jnp.issubdtype(c.dtype, jnp.integer):
                wrapped = wrapped | ((b >= 0) != (c >= a)).any()
        return jax.tree.unflatten(structure, [c for _, _, c in pairs]), wrapped

    result = sequence_reduce(seq, (zeros, jnp.zeros((), bool)), add)
    if not any(jnp.issubdtype(s.dtype, jnp.integer) for s in first):
        return result[0]
    wrapped = result[1].leaves[0] if isinstance(result, Value) else result[1]
    what = Check(
        DataError,
        "SF-DATA-067",
        f"a sequence_sum of {elements.element} that leaves the dtype's range at {{who}}",
        "a sum that fits",
        "widen the elements first: sequence_map(lambda x: x.astype(jnp.float32), seq)",
        user_line(),
    )
    primitives.check(wrapped, what)
    return result[0]


def _elements(seq: Any, name: str) -> tuple[Value, Elements]:
    if isinstance(seq, Pending):
        seq.guess()
    if isinstance(seq, Value):
        check_alive(seq)
    if isinstance(seq, Value) and len(seq.leaves) == 1 and isinstance(seq.leaves[0], Elements):
        return seq, seq.leaves[0]
    listed = isinstance(seq, list | tuple) and all(isinstance(x, jax.core.Tracer) for x in seq)
    if listed and len({(x.shape, x.dtype) for x in seq}) == 1:
        seq = jnp.stack(list(seq))  # a client's plain list of numbers
    if isinstance(seq, jax.core.Tracer) and seq.ndim:
        element = TensorType(seq.dtype, seq.shape[1:])
        shapes = ((tree.shape(seq.shape[1:], seq.dtype),),)
        elements = Elements(primitives.sequence_of([seq]), element, shapes)
        return Value(SequenceType(element), (elements,)), elements
    came = f"a value of type {seq.type}" if isinstance(seq, Value) else f"a {type(seq).__name__}"
    raise TypeMismatchError(
        "SF-TYPE-039",
        f"{name} of {came}",
        "a sequence: of a value placed at the clients, or an argument of a mapped function",
        "declare the argument as type_at_clients(SequenceType(…)), which empty lists need too",
    )


def _shapes(parts: tuple[Part, ...]) -> list[Leaf]:
    for part in parts:
        if isinstance(part, Elements):
            raise TypeMismatchError(
                "SF-TYPE-044", "a sequence of sequences", "a sequence of arrays", "fold the inner one"
            )
    return [tree.shape(part.shape, part.dtype) for part in parts]


def _common(members: list[Type]) -> Type:
    """One type for the results of all shapes of element: a size that differs is unknown."""
    first = members[0]
    if all(m == first for m in members):
        return first
    if isinstance(first, StructType):
        structs = [m for m in members if isinstance(m, StructType)]
        children = [_common([m[i] for m in structs]) for i in range(len(first))]
        return StructType(list(zip(first.names, children, strict=True)), first.container)
    assert isinstance(first, TensorType)
    sizes = zip(*[m.shape or () for m in members if isinstance(m, TensorType)], strict=True)
    return TensorType(first.dtype, tuple(s[0] if len(set(s)) == 1 else None for s in sizes))


def _again(value: Value, member: SequenceType, elements: Elements) -> Value:
    placed = FederatedType(member, value.placement) if value.placement else member
    return Value(placed, (elements,))
