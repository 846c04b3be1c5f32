"""Types as bytes: MessagePack of one tagged struct a node. No pickle, and no class of a peer's choosing.

Of the Python containers a list, tuple, dict or OrderedDict travels along; any other becomes none.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal, TypeAlias

import msgspec

from sumfold.errors import SumfoldError, WireError
from sumfold.language.containers import Container, container_of
from sumfold.language.placements import Placement
from sumfold.language.types import (
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    StructType,
    TensorType,
    Type,
)

__all__ = ["MAX_BYTES", "MAX_DEPTH", "decode_type", "encode_type"]

MAX_BYTES = 4 << 20
"""Bytes of one type."""

MAX_DEPTH = 64
"""Levels of one type."""

_Kind: TypeAlias = Literal["list", "tuple", "dict", "OrderedDict"]
_KINDS: dict[_Kind, type] = {"list": list, "tuple": tuple, "dict": dict, "OrderedDict": OrderedDict}


class _Tensor(msgspec.Struct, frozen=True, tag="tensor", forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int | None, ...] | None


class _Struct(msgspec.Struct, frozen=True, tag="struct", forbid_unknown_fields=True):
    elements: tuple[tuple[str | None, _Node], ...]
    kind: _Kind | None


class _Sequence(msgspec.Struct, frozen=True, tag="sequence", forbid_unknown_fields=True):
    element: _Node


class _Function(msgspec.Struct, frozen=True, tag="function", forbid_unknown_fields=True):
    parameter: _Node | None
    result: _Node


class _Federated(msgspec.Struct, frozen=True, tag="federated", forbid_unknown_fields=True):
    member: _Node
    placement: Placement
    all_equal: bool


class _Placement(msgspec.Struct, frozen=True, tag="placement", forbid_unknown_fields=True):
    pass


_Node: TypeAlias = _Tensor | _Struct | _Sequence | _Function | _Federated | _Placement


def encode_type(t: Type) -> bytes:
    """A type as bytes.

    Raises:
        WireError: for a type that `decode_type` would refuse as too large or too deep.

    Example:
        >>> decode_type(encode_type(SequenceType(float)))
        SequenceType(element=TensorType('float32'))
    """
    try:
        packed = msgspec.msgpack.encode(_to_node(t, MAX_DEPTH))
    except UnicodeEncodeError as error:
        raise _refused(f"a name that is no text: {error}", "names in Unicode") from error
    return _within_limits(packed)


def decode_type(data: bytes) -> Type:
    """The type that some bytes are.

    Raises:
        WireError: for anything that is not exactly one type within `MAX_BYTES` and `MAX_DEPTH`.

    Example:
        >>> decode_type(b"no type")
        Traceback (most recent call last):
        ...
        sumfold.errors.WireError: a type that does not decode: ...
    """
    try:
        node = msgspec.msgpack.decode(_within_limits(data), type=_Node)
        return _to_type(node, MAX_DEPTH)
    except WireError:
        raise
    except (msgspec.DecodeError, ValueError, RecursionError, SumfoldError) as error:
        raise _refused(f"a type that does not decode: {error}", "the bytes of encode_type") from error


def _within_limits(data: bytes) -> bytes:
    if len(data) > MAX_BYTES:
        raise _refused(f"a type of {len(data):,} bytes", f"at most {MAX_BYTES:,}")
    return data


def _deeper(levels: int) -> int:
    """The levels that are left below one of `levels`."""
    if levels == 0:
        raise _refused(f"a type of more than {MAX_DEPTH} levels", f"at most {MAX_DEPTH}")
    return levels - 1


def _to_node(t: Type, levels: int) -> _Node:
    below = _deeper(levels)
    match t:
        case TensorType(dtype=dtype, shape=shape):
            return _Tensor(dtype.name, shape)
        case StructType(elements=elements, container=container):
            return _Struct(tuple((name, _to_node(e, below)) for name, e in elements), _kind(container))
        case SequenceType(element=element):
            return _Sequence(_to_node(element, below))
        case FunctionType(parameter=parameter, result=result):
            return _Function(None if parameter is None else _to_node(parameter, below), _to_node(result, below))
        case FederatedType(member=member, placement=placement, all_equal=all_equal):
            return _Federated(_to_node(member, below), placement, all_equal)
        case _:
            return _Placement()


def _to_type(node: Any, levels: int) -> Type:
    below = _deeper(levels)
    match node:
        case _Tensor(dtype=dtype, shape=shape):
            return TensorType(dtype, shape)
        case _Struct(elements=elements, kind=kind):
            named = [(name, _to_type(element, below)) for name, element in elements]
            container = None if kind is None else container_of(_KINDS[kind], [name for name, _ in named])
            return StructType(named, container)
        case _Sequence(element=element):
            return SequenceType(_to_type(element, below))
        case _Function(parameter=parameter, result=result):
            return FunctionType(None if parameter is None else _to_type(parameter, below), _to_type(result, below))
        case _Federated(member=member, placement=placement, all_equal=all_equal):
            return FederatedType(_to_type(member, below), placement, all_equal)
        case _:
            return PlacementType()


def _kind(container: Container) -> _Kind | None:
    """The word for a container of one of the four kinds whose names are all that it holds."""
    for word, kind in _KINDS.items():
        if container.kind is kind and container == container_of(kind, container.names):
            return word
    return None


def _refused(came: str, needed: str) -> WireError:
    return WireError("SF-WIRE-014", came, needed, "the type is refused; sender and receiver must run the same version")
