"""What clients hold and how it comes: sequences, collections of clients, structures."""

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

F32, I32 = np.float32, np.int32
X = sf.type_at_clients(F32)
N = sf.type_at_clients(I32)
W = sf.type_at_server(F32)
READINGS = sf.type_at_clients(sf.SequenceType(F32))

mean = sf.federated_computation(lambda x: sf.federated_mean(x))
total = sf.federated_computation(lambda x: sf.federated_sum(x))
weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w))
declared_mean = sf.federated_computation(lambda x: sf.federated_mean(x), X)
declared_total = sf.federated_computation(lambda x: sf.federated_sum(x), N)
declared_weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w), X, X)


def typed(function: Any, *types: Any) -> str:
    return str(sf.federated_computation(function, *types).type_signature)


# ---- sequences


def rows(*sizes: int) -> list[np.ndarray]:
    return [np.arange(2 * n, dtype=F32).reshape(n, 2) for n in sizes]


def test_ragged_batches(everywhere):
    @sf.federated_computation(sf.type_at_clients(sf.SequenceType((F32, (None, 2)))))
    def comp(batches):
        return sf.federated_sum(sf.sequence_reduce(batches, jnp.zeros(2), lambda t, b: t + b.sum(0)))

    assert str(comp.type_signature) == "({float32[?,2]*}@CLIENTS -> float32[2]@SERVER)"
    assert everywhere(comp, [rows(2, 3), rows(1), []]).tolist() == [8, 14]
    assert comp([rows(2, 2), rows(2)]).tolist() == [6, 12]
    assert comp([[], []]).tolist() == [0, 0]
    assert comp([]).tolist() == [0, 0]


def test_sequences_of_structures(simulated):
    @sf.federated_computation(sf.type_at_clients(sf.SequenceType({"x": (F32, (2,)), "y": I32})))
    def comp(data):
        return sf.federated_sum(sf.sequence_reduce(data, (0.0, 0), lambda t, e: (t[0] + e["x"].sum(), t[1] + e["y"])))

    by_row = [[{"x": [1.0, 2.0], "y": 1}, {"x": [3.0, 4.0], "y": 2}], [], [{"y": 5, "x": np.zeros(2)}]]
    assert simulated(comp, by_row) == (10.0, 8)
    by_column = [{"x": np.ones((3, 2), F32), "y": np.arange(3)}, {"x": np.zeros((0, 2), F32), "y": np.zeros(0, I32)}]
    assert comp(by_column) == (6.0, 3)


def test_arrays_as_sequences(simulated):
    comp = sf.federated_computation(lambda x: sf.federated_sum(sf.sequence_sum(x)), READINGS)
    assert simulated(comp, [np.array([1, 2, 3], F32), jnp.array([4.0]), [], (5, 6)]) == 21
    assert comp(np.ones((3, 4))) == 12


def test_the_elements_arrive_in_order(simulated):
    comp = sf.federated_computation(
        lambda x: sf.federated_max(sf.sequence_reduce(x, 0.0, lambda t, v: 10 * t + v)), READINGS
    )
    assert simulated(comp, [[1.0, 2.0, 3.0], [3.0, 2.0]]) == 123


def test_the_sums_of_a_sequence_of_maps(simulated):
    @sf.federated_computation(READINGS)
    def comp(x):
        squares = sf.sequence_map(lambda v: {"s": v * v, "n": 1}, x)
        return sf.federated_sum(sf.sequence_sum(squares))

    assert simulated(comp, [[1.0, 2.0], [], [3.0]]) == {"n": 3, "s": 14.0}


def test_sequences_that_are_returned():
    comp = sf.federated_computation(lambda x: sf.sequence_map(lambda v: 2 * v, x), READINGS)
    assert comp([[1.0, 2.0], [], [3.0]]) == [[2.0, 4.0], [], [6.0]]


federation = sf.data.Federation.from_clients(
    {"a": (np.arange(6, dtype=F32).reshape(3, 2), np.array([0, 1, 1])), "b": (np.ones((1, 2), F32), np.array([1]))}
)


@pytest.mark.parametrize(
    "types", [(), (sf.type_at_clients(sf.SequenceType(((F32, (2,)), I32))),)], ids=["inferred", "declared"]
)
def test_a_federation(types, simulated, everywhere):
    def function(data: Any) -> Any:
        fold = sf.sequence_reduce(data, (0.0, 0), lambda t, e: (t[0] + e[0].sum(), t[1] + e[1]))
        return sf.federated_sum(fold)

    comp = sf.federated_computation(function, *types)
    assert (simulated if types else everywhere)(comp, federation) == (17.0, 3)
    assert str(comp.type_signature) == "({<float32[2],int32>*}@CLIENTS -> <float32,int32>@SERVER)"


# ---- how clients come


def test_mappings():
    identity = sf.federated_computation(lambda x: sf.federated_map(lambda v: v, x))
    assert mean({"a": 1.0, "b": 3.0}) == 2
    assert identity({"a": 1.0, "b": 3.0}) == [1, 3]
    assert weighted({"a": 1.0, "b": 3.0}, [1, 0]) == 1
    assert weighted({"a": 1.0, "b": 3.0}, {"a": 0, "b": 2}) == 3


@pytest.mark.parametrize("make", [list, tuple, np.array, jnp.array, lambda v: [np.float32(x) for x in v]])
def test_collections_of_clients(make):
    assert mean(make([1.0, 2.0, 6.0])) == 3
    result = mean(make([[1.0, 2.0], [3.0, 4.0]])) if make is not list else mean(np.array([[1.0, 2.0], [3.0, 4.0]]))
    np.testing.assert_allclose(result, [2, 3])


def test_one_client_and_none(simulated):
    assert simulated(declared_mean, [3.5]) == 3.5
    assert sf.federated_computation(lambda x: sf.federated_map(lambda v: v, x), X)([]) == []
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients({"a": (F32, (2,))}))
    assert comp([])["a"].tolist() == [0, 0]
    assert comp({})["a"].tolist() == [0, 0]


def test_no_rows_of_an_array(everywhere):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients((F32, (2,))))
    assert everywhere(comp, np.zeros((0, 2), F32)).tolist() == [0, 0]


def test_no_client_argument(everywhere):
    assert everywhere(sf.federated_computation(lambda: sf.federated_value(10, sf.SERVER))) == 10
    assert everywhere(sf.federated_computation(lambda s: s + 1, W), 2.0) == 3


# ---- structures

Point = namedtuple("Point", "b a")


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    w: Any
    b: Any


TREES = [
    {"z": 1.0, "a": 2.0},
    OrderedDict(z=1.0, a=2.0),
    [1.0, [2.0, (3.0,)]],
    (1.0, {"k": np.ones((2, 3), F32)}),
    Point(1.0, np.ones(2, F32)),
    Layer(np.ones((2, 2), F32), [1.0]),
    {"deep": OrderedDict(q=Point(1.0, [Layer(2.0, (3.0,))]), a=4.0)},
]


@pytest.mark.parametrize("tree", TREES, ids=lambda t: type(t).__name__)
def test_structure_in_is_structure_out(tree):
    for comp, factor in ((mean, 1), (total, 2)):
        result = comp([tree, tree])
        assert jax.tree.structure(result) == jax.tree.structure(tree)
        for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(tree), strict=True):
            assert isinstance(a, np.ndarray | np.generic)
            assert a.dtype == F32
            np.testing.assert_allclose(a, factor * np.asarray(b))
    (first, _) = sf.federated_computation(lambda x: sf.federated_map(lambda v: v, x))([tree, tree])
    assert jax.tree.structure(first) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("struct", "entry"),
    [
        (sf.StructType([("a", F32), ("b", F32)]), {"a": 1.0, "b": 2.0}),
        (sf.StructType([("a", F32), ("b", F32)]), OrderedDict(a=1.0, b=2.0)),
        (sf.StructType([F32, F32]), [1.0, 2.0]),
        (sf.StructType([F32, F32]), (1.0, 2.0)),
    ],
    ids=["dict", "OrderedDict", "list", "tuple"],
)
def test_a_declared_structure_keeps_the_callers_container(struct, entry):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients(struct))
    result = comp([entry, entry])
    assert type(result) is type(entry)
    assert jax.tree.leaves(result) == [2, 4]


def test_structures_on_runtimes(everywhere):
    result = everywhere(mean, [TREES[-1], TREES[-1]])
    assert list(result["deep"]) == ["q", "a"]
    assert result["deep"]["q"].a[0].b == (3.0,)


def test_attrs():
    attrs = pytest.importorskip("attrs")
    made = attrs.make_class("Made", ["w", "b"])
    result = mean([made(1.0, [2.0]), made(3.0, [4.0])])
    assert isinstance(result, made)
    assert (result.w, result.b) == (2.0, [3.0])


def test_parts_of_structures():
    comp = sf.federated_computation(lambda layer: (sf.federated_mean(layer.w), layer.b * 2))
    assert comp([Layer(1.0, 2.0), Layer(3.0, 4.0)]) == (2.0, [4.0, 8.0])
    assert sf.federated_computation(lambda p: sf.federated_mean(p[0], p[1]))([(1.0, 2.0), (3.0, 1.0)]) == (
        pytest.approx(5 / 3)
    )
    first, second = sf.federated_computation(
        lambda p: tuple(sf.federated_sum(v) for v in p), sf.type_at_clients(Point(F32, I32))
    )([Point(1.0, 2)] * 3)
    assert (first, second) == (3.0, 6)
    named = sf.federated_computation(lambda d: sf.federated_map(lambda y, x: y - x, d))
    assert named([{"x": 1.0, "y": 5.0}]) == [4.0]


def test_implicit_zips(simulated):
    comp = sf.federated_computation(lambda x, y: sf.federated_sum({"x": x, "deep": [y, (x,)]}), N, X)
    assert simulated(comp, [1, 2], [3.0, 4.0]) == {"deep": [7.0, (3,)], "x": 3}
