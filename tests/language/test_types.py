import contextlib
import copy
import doctest
import pickle
import re
import types as python
from collections import Counter, OrderedDict, namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import settings
from hypothesis import strategies as st

from sumfold.errors import CompositionError, TypeMismatchError
from sumfold.language.containers import container_of, default_container, open_container
from sumfold.language.placements import CLIENTS, SERVER, Placement
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
    paths,
    to_type,
    type_at_clients,
    type_at_server,
)

# Annotations are checked at random places of a container, which is no matter for what a strategy generates.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")


def given(*strategies: Any) -> Any:
    """Half of Hypothesis's usual number of examples: these are many properties of the same types."""
    return lambda test: settings(max_examples=50)(hypothesis_given(*strategies)(test))


# ---- generated types

dtypes = st.sampled_from(["int32", "float32", "bool", "str", "bfloat16", "float8_e4m3fn", "complex64", "uint8"])
shapes = st.none() | st.lists(st.none() | st.integers(0, 3), max_size=2).map(tuple)
tensors = st.builds(TensorType, dtypes, shapes)
names = st.none() | st.sampled_from("abc") | st.text(max_size=3)


@st.composite
def structs(draw: Any, elements: st.SearchStrategy[Type]) -> StructType:
    """Structs of such elements: built by hand with names or without, or from a container of Python's."""
    kinds = draw(st.lists(elements, max_size=3))
    match draw(st.sampled_from(["pairs", "list", "tuple", "dict", "OrderedDict"])):
        case "list":
            return to_type(kinds)
        case "tuple":
            return StructType(kinds, open_container(tuple(kinds))[0])
        case "pairs":
            said = draw(st.lists(names, min_size=len(kinds), max_size=len(kinds)))
            said = [None if name in said[:i] else name for i, name in enumerate(said)]
            return StructType(list(zip(said, kinds, strict=True)))
        case kind:
            said = draw(st.lists(st.text(max_size=2), min_size=len(kinds), max_size=len(kinds), unique=True))
            return to_type((dict if kind == "dict" else OrderedDict)(zip(said, kinds, strict=True)))


elements = st.recursive(tensors, structs, max_leaves=4)
sequences = st.builds(SequenceType, elements)
members = st.recursive(tensors | sequences, structs, max_leaves=4)
federated = st.builds(FederatedType, members, st.sampled_from(Placement), st.booleans())
well_formed = st.recursive(
    members | federated | st.just(PlacementType()),
    lambda inner: structs(inner) | st.builds(FunctionType, st.none() | inner, inner),
    max_leaves=6,
)
"""Every kind of well-formed type."""


def blurred(draw: Any, t: Type) -> Type:
    """A type that `t` is assignable to: sizes forgotten, names added, values allowed to differ."""
    match t:
        case TensorType(dtype=dtype, shape=shape):
            if shape is None or draw(st.booleans()):
                return TensorType(dtype, None)
            return TensorType(dtype, [draw(st.sampled_from([size, None])) for size in shape])
        case StructType(elements=pairs):
            said = [
                draw(st.sampled_from([name, f"new{i}" if name is None else name])) for i, (name, _) in enumerate(pairs)
            ]
            return StructType([(name, blurred(draw, e)) for name, (_, e) in zip(said, pairs, strict=True)])
        case SequenceType(element=element):
            return SequenceType(blurred(draw, element))
        case FederatedType(member=member, placement=placement, all_equal=all_equal):
            return FederatedType(blurred(draw, member), placement, all_equal and draw(st.booleans()))
        case FunctionType(parameter=parameter, result=result):
            return FunctionType(parameter, blurred(draw, result))
        case _:
            return t


@given(well_formed, well_formed)
def test_types_are_equal_exactly_if_their_strings_are(a: Type, b: Type) -> None:
    assert (a == b) == (str(a) == str(b)) == (repr(a) == repr(b)) == a.is_identical_to(b)
    assert a != b or hash(a) == hash(b)
    assert (a == b) == (a.formatted_representation() == b.formatted_representation())


@given(st.data())
def test_strings_differ_even_for_close_types(data: st.DataObject) -> None:
    a = data.draw(well_formed)
    b = blurred(data.draw, a)
    assert (a == b) == (str(a) == str(b))


@given(well_formed)
def test_a_repr_evaluates_to_the_type(t: Type) -> None:
    assert eval(repr(t)) == t


@given(well_formed)
def test_types_survive_copy_and_pickle(t: Type) -> None:
    for twin in (copy.copy(t), copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert twin == t
        assert hash(twin) == hash(t)


@given(well_formed)
def test_every_relation_is_reflexive(t: Type) -> None:
    assert t.is_assignable_from(t)
    assert t.is_equivalent_to(t)
    assert t.is_identical_to(t)
    t.check_assignable_from(t)
    t.check_equivalent_to(t)
    t.check_identical_to(t)


@given(st.data())
def test_assignability_is_transitive(data: st.DataObject) -> None:
    a = data.draw(well_formed)
    b = blurred(data.draw, a)
    c = blurred(data.draw, b)
    assert b.is_assignable_from(a)
    assert c.is_assignable_from(b)
    assert c.is_assignable_from(a)


def test_assignability_is_transitive_for_close_types() -> None:
    """All triples of types that differ in one thing; generated ones are hardly ever assignable to each other."""
    tensors = [TensorType(np.int32, s) for s in (None, (None,), (3,), (4,), (None, None), (3, None), (3, 4), ())]
    some = [*tensors[:3], TensorType(np.float32, (3,))]
    close: list[Type] = [*tensors, *map(SequenceType, some)]
    close += [StructType([(name, t)]) for name in (None, "a", "b") for t in some]
    close += [FederatedType(t, p, same) for t in some[:3] for p in Placement for same in (True, False)]
    close += [FunctionType(None, t) for t in some]
    after = {i: [j for j, b in enumerate(close) if b.is_assignable_from(a)] for i, a in enumerate(close)}
    chains = [(i, j, k) for i in after for j in after[i] for k in after[j] if len({i, j, k}) == 3]
    assert len(chains) > 40
    assert [c for c in chains if c[2] not in after[c[0]]] == []


@given(st.data())
def test_equivalence_is_symmetric_and_lies_between_the_others(data: st.DataObject) -> None:
    a = data.draw(well_formed)
    b = data.draw(st.one_of(well_formed, st.just(a), st.builds(blurred, st.just(data.draw), st.just(a))))
    assert a.is_equivalent_to(b) == b.is_equivalent_to(a)
    assert a.is_equivalent_to(b) == (a.is_assignable_from(b) and b.is_assignable_from(a))
    assert not a.is_identical_to(b) or a.is_equivalent_to(b)


@given(well_formed, well_formed)
def test_checks_raise_exactly_where_the_relation_fails(a: Type, b: Type) -> None:
    for relation in ("assignable_from", "equivalent_to", "identical_to"):
        holds = getattr(a, f"is_{relation}")(b)
        with contextlib.nullcontext() if holds else pytest.raises(TypeMismatchError) as caught:
            getattr(a, f"check_{relation}")(b)
        assert holds or caught.value.came.startswith(str(b))
        assert holds or str(a) in caught.value.needed


@given(members)
def test_join_reverses_leaves(t: Type) -> None:
    places = list(range(len(leaves(t))))
    assert jax.tree.leaves(join(t, places)) == places
    assert len(places) == len(paths(t)) == len(set(paths(t)))


# ---- strings


def test_a6() -> None:
    parameter = [
        FederatedType(np.int32, SERVER),
        FederatedType(SequenceType([("x", (np.float32, [None, 784])), ("y", (np.int32, [None, 1]))]), CLIENTS),
    ]
    t = FunctionType(parameter, FederatedType(np.int32, SERVER))
    assert str(t) == "(<int32@SERVER,{<x=float32[?,784],y=int32[?,1]>*}@CLIENTS> -> int32@SERVER)"


@pytest.mark.parametrize(
    ("t", "text"),
    [
        (TensorType(np.int32), "int32"),
        (TensorType(np.float32, (None, 3)), "float32[?,3]"),
        (TensorType(np.float32, [0]), "float32[0]"),
        (TensorType(np.int32, None), "'int32'(shape=None)"),
        (TensorType(str), "str"),
        (StructType([]), "<>"),
        (StructType([("a", np.int32), ("b", [np.bool_])]), "<a=int32,b=<bool>>"),
        (StructType([np.int32, ("b", bool)]), "<int32,b=bool>"),
        (StructType([("dense/kernel", np.int32)]), "<dense/kernel=int32>"),
        (StructType([("a=int32,b", np.int32)]), '<"a=int32,b"=int32>'),
        (StructType([("", np.int32)]), '<""=int32>'),
        (SequenceType(np.int32), "int32*"),
        (FunctionType(type_at_clients(np.int32), type_at_server(np.int32)), "({int32}@CLIENTS -> int32@SERVER)"),
        (FunctionType(None, np.int32), "( -> int32)"),
        (FunctionType((), np.int32), "(<> -> int32)"),
        (type_at_clients(np.int32, all_equal=True), "int32@CLIENTS"),
        (type_at_server(np.int32, all_equal=False), "{int32}@SERVER"),
        (PlacementType(), "placement"),
    ],
)
def test_strings(t: Type, text: str) -> None:
    assert str(t) == text
    assert eval(repr(t)) == t


def test_formatted() -> None:
    t = FunctionType([("x", type_at_clients({"a": np.int32, "b": [bool]})), ("y", ())], np.int32)
    assert t.formatted_representation() == (
        "(<\n  x={<\n    a=int32,\n    b=<\n      bool\n    >\n  >}@CLIENTS,\n  y=<>\n> -> int32)"
    )


# ---- what stands for a type

FP8 = [getattr(ml_dtypes, name) for name in dir(ml_dtypes) if name.startswith("float8_")]
Point = namedtuple("Point", "x y")


class Attribute:
    def __init__(self, name: str) -> None:
        self.name = name


class AttrsLike:
    """What attrs makes of a class, as far as it matters here."""

    __attrs_attrs__ = (Attribute("loss"), Attribute("_count"))

    def __init__(self, loss: Any, count: Any) -> None:
        if not (isinstance(loss, Type | type) or loss == "checked"):
            raise ValueError("a validator that a tracer would fail")
        self.loss, self._count = loss, count


@jax.tree_util.register_dataclass
@dataclass
class Registered:
    w: Any
    b: Any


@jax.tree_util.register_pytree_node_class
class Keyless:
    def __init__(self, *parts: Any) -> None:
        self.parts = parts

    def tree_flatten(self) -> Any:
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _: Any, parts: Any) -> Any:
        return cls(*parts)


def like(**attributes: Any) -> Any:
    """An object of a foreign library's with these attributes."""
    return python.SimpleNamespace(**attributes)


TensorFlowString = like(as_numpy_dtype=object)
TorchFloat = type("dtype", (), {"__module__": "torch", "__repr__": lambda self: "torch.float32"})()


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.int32, "int32"),
        (np.dtype("float64"), "float64"),
        (np.dtype(">f4"), "float32"),
        (np.longlong, "int64"),
        (jnp.float32, "float32"),
        (jnp.bfloat16, "bfloat16"),
        (np.bool_, "bool"),
        ("int32", "int32"),
        ("bfloat16", "bfloat16"),
        (bool, "bool"),
        (int, "int32"),
        (float, "float32"),
        ("float", "float32"),
        (complex, "complex64"),
        (str, "str"),
        (bytes, "str"),
        (np.str_, "str"),
        (np.bytes_, "str"),
        (np.dtype("U7"), "str"),
        (np.dtypes.StringDType(), "str"),
        (like(as_numpy_dtype=np.float32), "float32"),
        (TensorFlowString, "str"),
        (TorchFloat, "float32"),
        (jax.dtypes.canonicalize_dtype(float), "float32"),
        *((kind, kind.__name__) for kind in FP8),
    ],
)
def test_dtypes(given: Any, text: str) -> None:
    assert str(TensorType(given)) == str(to_type(given)) == text
    assert str(to_type((given, (2, None)))) == f"{text}[2,?]"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((np.float32, [3]), "float32[3]"),
        ((np.float32, ()), "float32"),
        ((np.float32, None), "'float32'(shape=None)"),
        (("float32", [np.int64(3)]), "float32[3]"),
        ((np.float32, like(rank=2, as_list=lambda: [None, 3])), "float32[?,3]"),
        ((np.float32, like(rank=None, as_list=None)), "'float32'(shape=None)"),
        ([np.int32, bool], "<int32,bool>"),
        ((np.int32, bool), "<int32,bool>"),
        (["float32", "int32"], "<float32,int32>"),
        (("float32", "int32"), "<float32,int32>"),
        ((np.int32, (np.float32, bool)), "<int32,<float32,bool>>"),
        ([("a", np.int32), ("b", bool)], "<a=int32,b=bool>"),
        (("a", np.int32), "<a=int32>"),
        ((np.int32, (("x", np.float32), bool)), "<int32,<x=float32,bool>>"),
        (((np.int32, [1]), (("x", (np.float32, [2])), (bool, [3]))), "<int32[1],<x=float32[2],bool[3]>>"),
        ([("b", ()), ("S", np.int32)], "<b=<>,S=int32>"),
        ({"b": np.int32, "a": bool}, "<a=bool,b=int32>"),
        (OrderedDict(b=np.int32, a=bool), "<b=int32,a=bool>"),
        ({1: np.int32, 0: bool}, "<0=bool,1=int32>"),
        (Point(np.int32, [bool]), "<x=int32,y=<bool>>"),
        (AttrsLike(np.int32, (bool, [2])), "<loss=int32,_count=bool[2]>"),
        (Registered(np.int32, bool), "<w=int32,b=bool>"),
        (Keyless(np.int32, bool), "<int32,bool>"),
        (Counter({"a": np.int32}), "<a=int32>"),
        (type("Own", (list,), {})([np.int32]), "<int32>"),
        ([], "<>"),
        (jax.ShapeDtypeStruct((2,), jnp.bfloat16), "bfloat16[2]"),
        (np.zeros((2, 3)), "float64[2,3]"),
        (np.float32(1), "float32"),
        (np.array(["a", "bc"]), "str[2]"),
        (jnp.zeros(3, jnp.int32), "int32[3]"),
        (like(shape=(None, 4), dtype="float16"), "float16[?,4]"),
        (like(shape=None, dtype=None, ndim=2), "float32[?,?]"),
        (like(shape=None, dtype=None, ndim=None), "'float32'(shape=None)"),
        (like(shape=(2,), dtype=TorchFloat), "float32[2]"),
        (like(element_spec=(np.int32, {"x": bool})), "<int32,<x=bool>>*"),
        (SequenceType(np.int32), "int32*"),
    ],
)
def test_to_type(given: Any, text: str) -> None:
    assert str(to_type(given)) == text


def test_keras_specifications() -> None:
    keras = pytest.importorskip("keras")
    assert str(to_type(keras.Input((3,), dtype="int32"))) == "int32[?,3]"
    assert str(to_type(keras.layers.InputSpec(shape=(None, 3), dtype="float16"))) == "float16[?,3]"
    assert str(to_type(keras.layers.InputSpec(ndim=2))) == "float32[?,?]"


def test_attrs_classes() -> None:
    attrs = pytest.importorskip("attrs")
    Pair = attrs.make_class("Pair", ["x", "y"], frozen=True)
    made = join(to_type(Pair(np.int32, bool)), [1, True])
    assert made == Pair(1, True)


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (None, "None"),
        ([np.int32, None], "None"),
        (3, "the value 3"),
        (3.0, "the value 3.0"),
        (True, "the value True"),
        (b"x", "the value b'x'"),
        ([1, 2], "the value 1"),
        ("f", "the string 'f'"),
        ("float7", "the string 'float7'"),
        ("int32 ", "the string 'int32 '"),
        (list, "<class 'list'>"),
        (np.ndarray, "<class 'numpy.ndarray'>"),
        (np.floating, "<class 'numpy.floating'>"),
        (np.character, "<class 'numpy.character'>"),
        (np.dtype("M8[s]"), "dtype('<M8[s]')"),
        (np.dtype("m8[s]"), "dtype('<m8[s]')"),
        (np.dtype(object), "dtype('O')"),
        (np.dtype([("a", np.int32)]), "dtype([('a'"),
        (jax.dtypes.float0, "dtype([('float0'"),
        (ml_dtypes.complex32, "<class"),
        (object(), "<object object"),
        (CLIENTS, "CLIENTS, a Placement"),
    ],
)
def test_to_type_refuses_what_describes_no_type(given: Any, came: str) -> None:
    with pytest.raises(TypeMismatchError, match="SF-TYPE-013") as caught:
        to_type(given)
    assert isinstance(caught.value, TypeError)
    assert caught.value.came.startswith(came)
    assert "needed: a type, dtype, pair (dtype, shape)" in str(caught.value)


def test_advice_of_to_type() -> None:
    with pytest.raises(TypeMismatchError, match="pass its dtype: float"):
        to_type(3.0)
    with pytest.raises(TypeMismatchError, match="FunctionType"):
        FederatedType(None, CLIENTS)


@pytest.mark.parametrize("dtype", [None, 3, "float7", object, np.dtype("M8[s]"), jax.random.key(0).dtype])
def test_no_dtype(dtype: Any) -> None:
    with pytest.raises(TypeMismatchError, match=r"as a dtype; needed: one of numbers, .* \[SF-TYPE-014\]"):
        TensorType(dtype)


@pytest.mark.parametrize("shape", [3, [-1], ["a"], [True], [1.0], {}, object()])
def test_no_shape(shape: Any) -> None:
    with pytest.raises(TypeMismatchError, match=r"as a shape; needed: a list or tuple .* \[SF-TYPE-015\]"):
        TensorType(np.int32, shape)


def test_tensor_types_normalise() -> None:
    t = TensorType("float32", [np.int64(2), None])
    assert t.dtype == np.dtype(np.float32)
    assert t.shape == (2, None)
    assert type(t.shape[0]) is int
    assert not t.is_fully_defined
    assert not TensorType(np.int32, None).is_fully_defined
    assert TensorType(np.int32).is_fully_defined


def test_tuples_that_hold_sizes_and_dtypes_keep_their_meaning() -> None:
    Layer = namedtuple("Layer", "shape dtype")
    assert str(to_type(Layer(np.int32, bool))) == "<shape=int32,dtype=bool>"


# ---- structs


def test_structs_are_read_by_name_position_and_iteration() -> None:
    t = StructType([("a", np.int32), bool])
    assert len(t) == 2
    assert t.names == ("a", None)
    assert t["a"] == t[0] == TensorType(np.int32)
    assert [str(element) for element in t] == ["int32", "bool"]
    assert StructType(t.elements) == t
    with pytest.raises(IndexError):
        t[2]
    with pytest.raises(TypeMismatchError, match=r"the name 'b'; needed: .* <a=int32,bool>; use .* \[SF-TYPE-018\]"):
        t["b"]


def test_a_mapping_keeps_its_order_in_a_struct_type() -> None:
    assert str(StructType({"b": np.int32, "a": bool})) == "<b=int32,a=bool>"


def test_a_name_is_used_once() -> None:
    with pytest.raises(CompositionError, match=r"2 elements named 'a'; needed: names that differ; .* \[SF-COMP-042\]"):
        StructType([("a", np.int32), ("b", bool), ("a", bool)])


def test_elements_must_be_several() -> None:
    with pytest.raises(TypeMismatchError, match="SF-TYPE-013"):
        StructType(3)


def test_a_container_has_the_elements_names() -> None:
    container, _ = open_container({"a": 1})
    assert StructType([("a", np.int32)], container).container is container
    with pytest.raises(CompositionError, match=r"children named \('a',\); needed: .* \('b',\); .* \[SF-COMP-043\]"):
        StructType([("b", np.int32)], container)


def test_containers_are_no_part_of_a_type() -> None:
    types = [to_type([np.int32]), to_type((np.int32,)), StructType([np.int32])]
    assert len(set(types)) == 1
    assert len({t.container for t in types[:2]}) == 2


@pytest.mark.parametrize(
    "tree",
    [
        {"b": 1, "a": (2, [3])},
        OrderedDict(b=1, a=2),
        {2: "x", 1: "y"},
        Point(1, [2, ()]),
        [],
        ({},),
        Registered(1, {"x": 2}),
    ],
)
def test_join_gives_back_containers_with_leaves_in_the_order_of_jax(tree: Any) -> None:
    t = to_type(jax.tree.map(lambda _: np.int32, tree))
    assert join(t, jax.tree.leaves(tree)) == tree
    assert len(leaves(t)) == len(jax.tree.leaves(tree))


def test_join_of_attrs_classes_runs_no_validator() -> None:
    made = join(to_type(AttrsLike(np.int32, bool)), [1, 2])
    assert type(made) is AttrsLike
    assert (made.loss, made._count) == (1, 2)


def test_join_without_a_container() -> None:
    assert join(StructType([("b", np.int32), ("a", bool)]), [1, 2]) == OrderedDict(b=1, a=2)
    assert join(StructType([("b", np.int32), bool]), [1, 2]) == (1, 2)
    assert join(StructType([]), []) == ()
    assert join(SequenceType([np.int32]), ["all"]) == "all"


def test_paths() -> None:
    t = StructType([("a", [np.int32, {"b": bool}]), SequenceType([float]), ("a b", [float]), ("a.b", [int])])
    assert paths(t) == ("a[0]", "a[1].b", "[1]", '"a b"[0]', '"a.b"[0]')
    assert paths(TensorType(float)) == ("",)


def test_leaves_are_values() -> None:
    assert leaves(StructType([SequenceType(int), (bool, [2])])) == (SequenceType(int), TensorType(bool, [2]))
    with pytest.raises(TypeMismatchError, match=r"in which \[0\] is a FederatedType; .* \[SF-TYPE-016\]"):
        leaves(StructType([type_at_server(int)]))
    with pytest.raises(TypeMismatchError, match="the whole is a PlacementType"):
        leaves(PlacementType())


def test_join_counts() -> None:
    with pytest.raises(TypeMismatchError, match=r"3 values for <int32,bool>; needed: 2, .* \[SF-TYPE-016\]"):
        join(to_type([int, bool]), [1, 2, 3])


# ---- containers


def test_leaves_and_none_are_no_containers() -> None:
    assert [open_container(leaf) for leaf in (None, 1, "a", np.zeros(2), np.int32, TensorType(int))] == [None] * 6
    assert open_container([None, 1])[1] == [None, 1]


def test_containers_are_compared_by_class_and_names() -> None:
    assert open_container([1])[0] == open_container([2])[0] == container_of(list, [None])
    assert open_container([1])[0] != open_container((1,))[0]
    assert open_container({"a": 1})[0] != open_container({"b": 1})[0]
    assert hash(open_container(Point(1, 2))[0]) == hash(open_container(Point(3, 4))[0])
    assert default_container([]).join([]) == ()


def test_keys_must_have_an_order() -> None:
    with pytest.raises(TypeMismatchError, match=r"a dict that JAX cannot take apart .* \[SF-TYPE-017\]"):
        to_type({"a": np.int32, 1: np.int32})


# ---- well-formedness

FUNCTION = FunctionType(None, np.int32)


@pytest.mark.parametrize(
    "member",
    [
        type_at_server(np.int32),
        [type_at_server(np.int32)],
        FUNCTION,
        {"a": [FUNCTION]},
        PlacementType(),
        (np.int32, PlacementType()),
    ],
)
def test_a8_members(member: Any) -> None:
    with pytest.raises(CompositionError, match=r"as a member of a federated type.* \[SF-COMP-040\]") as caught:
        FederatedType(member, CLIENTS)
    assert isinstance(caught.value, ValueError)
    assert str(to_type(member)) in caught.value.came


@pytest.mark.parametrize(
    "element",
    [
        type_at_server(np.int32),
        FUNCTION,
        SequenceType(np.int32),
        {"a": [SequenceType(np.int32)]},
        [PlacementType()],
    ],
)
def test_a8_elements(element: Any) -> None:
    with pytest.raises(CompositionError, match=r"as an element of a sequence.* \[SF-COMP-041\]") as caught:
        SequenceType(element)
    assert str(to_type(element)) in caught.value.came


def test_the_offending_part_is_named() -> None:
    with pytest.raises(CompositionError, match=r"<a=<int32\*>> as an element .*, in which int32\* is a SequenceType"):
        SequenceType({"a": [SequenceType(np.int32)]})


def test_sequences_may_be_members() -> None:
    assert str(type_at_clients([SequenceType(np.int32), bool])) == "{<int32*,bool>}@CLIENTS"


@pytest.mark.parametrize("placement", ["CLIENTS", None, PlacementType()])
def test_no_placement(placement: Any) -> None:
    with pytest.raises(TypeMismatchError, match=r"as a placement; needed: CLIENTS or SERVER; .* \[SF-TYPE-019\]"):
        FederatedType(np.int32, placement)


def test_placements() -> None:
    assert [str(p) for p in Placement] == [repr(p) for p in Placement] == [p.name for p in Placement]
    assert (CLIENTS.default_all_equal, SERVER.default_all_equal) == (False, True)
    assert len({CLIENTS, SERVER, copy.deepcopy(CLIENTS), copy.copy(SERVER), pickle.loads(pickle.dumps(SERVER))}) == 2
    assert (CLIENTS, SERVER) == (Placement.CLIENTS, Placement.SERVER)


# ---- relations

a7 = [
    ((np.int32, [None]), (np.int32, [3])),
    ((np.int32, None), (np.int32, [3])),
    ((np.int32, None), (np.int32, [None])),
    (type_at_clients(np.int32), type_at_clients(np.int32, all_equal=True)),
    ({"a": np.int32}, [np.int32]),
    (SequenceType((np.int32, [None])), SequenceType((np.int32, [3]))),
    (FunctionType((np.int32, [3]), np.int32), FunctionType((np.int32, [None]), np.int32)),
    (FunctionType(None, (np.int32, [None])), FunctionType(None, (np.int32, [3]))),
]


@pytest.mark.parametrize(("target", "source"), a7)
def test_a7_one_way(target: Any, source: Any) -> None:
    target, source = to_type(target), to_type(source)
    assert target.is_assignable_from(source)
    assert not source.is_assignable_from(target)
    assert not target.is_equivalent_to(source)


@pytest.mark.parametrize(
    ("target", "source"),
    [
        ({"a": np.int32}, {"b": np.int32}),
        (np.int32, np.int64),
        ((np.int32, [2]), (np.int32, [3])),
        ((np.int32, [2]), (np.int32, [2, 2])),
        ([np.int32], [np.int32, np.int32]),
        ([np.int32], np.int32),
        (type_at_clients(np.int32), type_at_server(np.int32)),
        (type_at_clients(np.int32), np.int32),
        (FunctionType(None, np.int32), FunctionType(np.int32, np.int32)),
        (FunctionType(None, np.int32), FunctionType([], np.int32)),
        (PlacementType(), np.int32),
    ],
)
def test_neither_way(target: Any, source: Any) -> None:
    target, source = to_type(target), to_type(source)
    assert not target.is_assignable_from(source)
    assert not source.is_assignable_from(target)


@pytest.mark.parametrize(
    ("target", "source", "came", "needed"),
    [
        (np.int32, float, "float32", "a type assignable to int32"),
        ({"a": [int, bool]}, {"a": [int, int]}, ", whose a[1] is int32", ", whose a[1] is bool"),
        ({"a": int}, {"b": int}, ", whose [0] is named b", ", whose [0] is named a"),
        ([int], {"b": int}, ", whose [0] is named b", ", whose [0] is without a name"),
        ([[int, int]], [[int]], ", whose [0] is <int32>", ", whose [0] is <int32,int32>"),
        (SequenceType([int]), SequenceType([bool]), ", whose *[0] is bool", ", whose *[0] is int32"),
        (
            FunctionType([int], int),
            FunctionType([bool], int),
            ", whose (parameter)[0] is bool",
            ", whose (parameter)[0] is int32",
        ),
        (FunctionType(int, int), FunctionType(int, bool), ", whose (result) is bool", ", whose (result) is int32"),
        (type_at_clients([int]), type_at_clients([bool]), ", whose [0] is bool", ", whose [0] is int32"),
    ],
)
def test_messages_name_source_and_target_in_their_roles(target: Any, source: Any, came: str, needed: str) -> None:
    target, source = to_type(target), to_type(source)
    with pytest.raises(TypeMismatchError) as caught:
        target.check_assignable_from(source)
    assert caught.value.code == "SF-TYPE-010"
    assert caught.value.came.startswith(str(source))
    assert caught.value.came.endswith(came)
    assert caught.value.needed.startswith(f"a type assignable to {target}")
    assert caught.value.needed.endswith(needed)


def test_messages_of_the_other_checks() -> None:
    wide, narrow = TensorType(int, [None]), TensorType(int, [3])
    with pytest.raises(TypeMismatchError, match=r"^int32\[3\]; needed: a type equivalent to int32\[\?\]; .*TYPE-011\]"):
        wide.check_equivalent_to(narrow)
    with pytest.raises(TypeMismatchError, match=r"^int32\[\?\]; needed: a type equivalent to int32\[3\]; .*TYPE-011\]"):
        narrow.check_equivalent_to(wide)
    with pytest.raises(
        TypeMismatchError, match=r"^<int32>, whose \[0\] is without .* identical to <a=int32>.*TYPE-012"
    ):
        to_type({"a": int}).check_identical_to([int])


def test_relations_take_whatever_stands_for_a_type() -> None:
    assert to_type(np.int32).is_identical_to(int)
    with pytest.raises(TypeMismatchError, match="SF-TYPE-013"):
        to_type(np.int32).is_assignable_from(3)


# ---- documentation


def test_the_reference_page_runs() -> None:
    page = Path(__file__).parents[2] / "docs/reference/types.md"
    examples = re.sub("^```.*", "", page.read_text("utf-8"), flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    assert test.examples
    assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0
