"""Messages as bytes: a typed MessagePack header, then arrays in safetensors layout. No pickle.

    4 bytes   magic "SUM1"
    4 bytes   length of the header, little-endian
    header    MessagePack of one `msgspec.Struct`, tagged with its kind
    arrays    safetensors; leaf i is named by its number, so that a peer cannot choose names or an order

Both sides know the types of what they expect: a body is refused unless it holds exactly those shapes and dtypes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from sumfold.core.tensors import load_tensors, save_tensors
from sumfold.errors import WireError
from sumfold.tree import Spec

__all__ = ["Limits", "decode", "encode"]

_MAGIC = b"SUM1"
_H = TypeVar("_H", bound=msgspec.Struct)


class Limits(msgspec.Struct, frozen=True):
    """Caps on what a peer may send.

    Attributes:
        header_bytes: of the header.
        body_bytes: of everything.
        depth: nesting of the header.
    """

    header_bytes: int = 64 << 20
    body_bytes: int = 16 << 30
    depth: int = 16


DEFAULT = Limits()


def encode(header: msgspec.Struct, arrays: Sequence[NDArray[Any]] = ()) -> bytes:
    """One message.

    Args:
        header: a struct of the message's kind.
        arrays: its arrays, in the order that the receiver's specs have.
    """
    packed = msgspec.msgpack.encode(header)
    tensors = {str(i): np.ascontiguousarray(a).reshape(np.shape(a)) for i, a in enumerate(arrays)}
    body = save_tensors(tensors) if tensors else b""
    return b"".join([_MAGIC, len(packed).to_bytes(4, "little"), packed, body])


def decode(
    data: bytes, kind: type[_H], specs: Callable[[_H], Sequence[Spec]], limits: Limits = DEFAULT
) -> tuple[_H, list[NDArray[Any]]]:
    """The header and arrays of one message, checked against what was expected.

    Args:
        data: what came.
        kind: the header's class.
        specs: header -> shape and dtype of every array that must follow it, in order.
        limits: caps.

    Raises:
        WireError: for anything that is not exactly such a message.
    """
    if len(data) > limits.body_bytes:
        raise _refused("SF-WIRE-001", f"a message of {len(data):,} bytes", f"at most {limits.body_bytes:,}")
    if len(data) < 8 or data[:4] != _MAGIC:
        raise _refused(
            "SF-WIRE-002", f"{len(data):,} bytes that begin with {data[:4]!r}", f"a message, {_MAGIC!r} first"
        )
    length = int.from_bytes(data[4:8], "little")
    if length > limits.header_bytes or 8 + length > len(data):
        raise _refused("SF-WIRE-003", f"a header of {length:,} bytes", f"at most {limits.header_bytes:,}, all present")
    packed = data[8 : 8 + length]
    _check_depth(packed, limits.depth)
    try:
        header = msgspec.msgpack.decode(packed, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
        raise _refused("SF-WIRE-004", f"a header that does not decode: {error}", f"a {kind.__name__}") from error
    return header, _arrays(data[8 + length :], specs(header))


def _arrays(body: bytes, specs: Sequence[Spec]) -> list[NDArray[Any]]:
    if not specs:
        if body:
            raise _refused("SF-WIRE-005", f"{len(body):,} bytes of arrays", "no arrays")
        return []
    try:
        tensors = load_tensors(body)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _refused("SF-WIRE-006", f"arrays that do not decode: {error}", "safetensors") from error
    if set(tensors) != {str(i) for i in range(len(specs))}:
        raise _refused("SF-WIRE-007", f"{len(tensors)} arrays", f"{len(specs)}, numbered from 0")
    arrays = [tensors[str(i)] for i in range(len(specs))]
    for spec, array in zip(specs, arrays, strict=True):
        if array.shape != spec.shape or str(array.dtype) != spec.dtype:
            raise _refused(
                "SF-WIRE-008",
                f"{spec.path or 'an array'} as {array.dtype}{list(array.shape)}",
                f"{spec.dtype}{list(spec.shape)}",
            )
    return arrays


def _check_depth(packed: bytes, depth: int) -> None:
    """Refuse nesting before the recursive decoder sees it: a stack of open containers, no recursion."""
    open_items: list[int] = []
    at = 0
    while at < len(packed):
        head = packed[at]
        at, items = _skip(packed, at, head)
        while open_items and open_items[-1] == 0:
            open_items.pop()
        if open_items:
            open_items[-1] -= 1
        if items:
            open_items.append(items)
            if len(open_items) > depth:
                raise _refused("SF-WIRE-009", f"a header nested deeper than {depth}", f"at most {depth} levels")


_PAYLOAD = {
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
}
"""Bytes after the first of MessagePack's elements of fixed size."""

_COUNTED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xC7: 1, 0xC8: 2, 0xC9: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
"""Width of the length of strings, binaries and extensions; those of an extension also have a byte for its type."""

_CONTAINERS = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
"""Width of the length of arrays and maps, and items an entry."""


def _skip(packed: bytes, at: int, head: int) -> tuple[int, int]:
    """(next position, number of items that the element at `at` opens), by the MessagePack format's first byte."""

    def length(width: int) -> int:
        return int.from_bytes(packed[at + 1 : at + 1 + width], "big")

    payload, items = _PAYLOAD.get(head, 0), 0
    if 0x80 <= head <= 0x9F:
        items = (head & 0x0F) * (2 if head <= 0x8F else 1)
    elif 0xA0 <= head <= 0xBF:
        payload = head & 0x1F
    elif head in _COUNTED:
        payload = _COUNTED[head] + length(_COUNTED[head]) + (0xC7 <= head <= 0xC9)
    elif head in _CONTAINERS:
        payload, each = _CONTAINERS[head]
        items = length(payload) * each
    return at + 1 + payload, items


def _refused(code: str, came: str, needed: str) -> WireError:
    return WireError(code, came, needed, "the message is refused; sender and receiver must run the same plan")
