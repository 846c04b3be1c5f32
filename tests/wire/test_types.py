import importlib.util
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumfold.errors import WireError
from sumfold.language.placements import CLIENTS
from sumfold.language.types import (
    FederatedType,
    FunctionType,
    PlacementType,
    SequenceType,
    StructType,
    TensorType,
    Type,
    join,
    leaves,
    to_type,
)
from sumfold.wire import types as wire
from sumfold.wire.types import MAX_BYTES, MAX_DEPTH, decode_type, encode_type

_spec = importlib.util.spec_from_file_location("language_types", Path(__file__).parents[1] / "language/test_types.py")
generated = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(generated)


pytestmark = generated.pytestmark


@given(generated.well_formed)
def test_round_trip(t: Type) -> None:
    again = decode_type(encode_type(t))
    assert again == t
    assert (str(again), hash(again)) == (str(t), hash(t))
    assert encode_type(again) == encode_type(t)


@given(generated.members)
def test_containers_of_python_travel(t: Type) -> None:
    flat = list(range(len(leaves(t))))
    there, here = join(decode_type(encode_type(t)), flat), join(t, flat)
    assert there == here
    assert type(there) is type(here)


def test_other_containers_become_none() -> None:
    Point = namedtuple("Point", "x y")
    for container in (Point(int, bool), {1: int, 0: bool}, {10: int, 9: bool}):
        again = decode_type(encode_type(to_type(container)))
        assert again == to_type(container)
        assert type(join(again, [1, 2])) is OrderedDict


def is_type_or_refused(data: bytes) -> bool:
    try:
        return isinstance(decode_type(data), Type)
    except WireError as error:
        return error.code == "SF-WIRE-014"


@given(st.binary(max_size=64))
def test_bytes_are_a_type_or_refused(data: bytes) -> None:
    assert is_type_or_refused(data)


@given(st.data())
def test_damaged_types_are_types_or_refused(data: st.DataObject) -> None:
    packed = bytearray(encode_type(data.draw(generated.well_formed)))
    packed[data.draw(st.integers(0, len(packed) - 1))] = data.draw(st.integers(0, 255))
    assert is_type_or_refused(bytes(packed))


def packed(node: Any) -> bytes:
    return msgspec.msgpack.encode(node)


TENSOR = {"type": "tensor", "dtype": "int32", "shape": []}
SEQUENCE = {"type": "sequence", "element": TENSOR}


@pytest.mark.parametrize(
    "node",
    [
        {"type": "tensor", "dtype": "object", "shape": []},
        {"type": "tensor", "dtype": "float7", "shape": []},
        {"type": "tensor", "dtype": "int32", "shape": [-1]},
        {"type": "tensor", "dtype": "int32", "shape": [1.5]},
        {"type": "tensor", "dtype": "int32"},
        {**TENSOR, "more": 1},
        {"type": "sequence", "element": SEQUENCE},
        {"type": "sequence", "element": None},
        {"type": "federated", "member": SEQUENCE, "placement": "mars", "all_equal": True},
        {"type": "federated", "member": {"type": "placement"}, "placement": "clients", "all_equal": True},
        {"type": "struct", "elements": [["a", TENSOR], ["a", TENSOR]], "kind": None},
        {"type": "struct", "elements": [["a", TENSOR]], "kind": "list"},
        {"type": "struct", "elements": [[None, TENSOR]], "kind": "dict"},
        {"type": "struct", "elements": [[None, TENSOR], ["a", TENSOR]], "kind": "dict"},
        {"type": "struct", "elements": [["b", TENSOR], ["a", TENSOR]], "kind": "dict"},
        {"type": "struct", "elements": [[None, TENSOR]], "kind": "set"},
        {"type": "other"},
        [],
        3,
        None,
    ],
)
def test_malformed_types_are_refused(node: Any) -> None:
    with pytest.raises(WireError, match=r"a type that does not decode: .*; needed: .* \[SF-WIRE-014\]"):
        decode_type(packed(node))


def test_nothing_follows_a_type() -> None:
    with pytest.raises(WireError, match="SF-WIRE-014"):
        decode_type(encode_type(TensorType(int)) + b"\0")
    with pytest.raises(WireError, match="SF-WIRE-014"):
        decode_type(encode_type(TensorType(int))[:-1])


def nested(levels: int) -> Type:
    t: Type = TensorType(int)
    for _ in range(levels - 1):
        t = FunctionType(None, t)
    return t


def test_depth_is_capped_both_ways() -> None:
    assert decode_type(encode_type(nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    with pytest.raises(WireError, match=f"more than {MAX_DEPTH} levels"):
        encode_type(nested(MAX_DEPTH + 1))
    node = packed(TENSOR)
    opening = packed({"type": "function", "parameter": None, "result": 0})[:-1]
    with pytest.raises(WireError, match=f"more than {MAX_DEPTH} levels"):
        decode_type(opening * MAX_DEPTH + node)
    with pytest.raises(WireError, match="SF-WIRE-014"):
        decode_type(opening * 20_000 + node)


def test_size_is_capped_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WireError, match=f"at most {MAX_BYTES:,}"):
        decode_type(bytes(MAX_BYTES + 1))
    monkeypatch.setattr(wire, "MAX_BYTES", 20)
    with pytest.raises(WireError, match="at most 20"):
        encode_type(StructType([TensorType(np.int32)] * 5))


def test_names_are_text() -> None:
    with pytest.raises(WireError, match="a name that is no text"):
        encode_type(StructType([("\ud800", int)]))


def test_every_kind_of_type_crosses() -> None:
    t = FunctionType(
        [FederatedType(SequenceType({"x": (np.float32, [None, 2])}), CLIENTS), PlacementType()], (int, None)
    )
    assert decode_type(encode_type(t)) == t
