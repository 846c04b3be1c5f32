"""What a user of TFF knows must come out as they know it, or by Sumfold's own policy; in every way of running."""

import dataclasses
import functools
from collections import OrderedDict, namedtuple
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sumfold as sf
from sumfold import DataError, tff

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


# ---- the type strings: A1 … A5, A7


def test_a1_sum_and_mean():
    assert typed(lambda x: sf.federated_sum(x), N) == "({int32}@CLIENTS -> int32@SERVER)"
    assert typed(lambda x: sf.federated_mean(x), X) == "({float32}@CLIENTS -> float32@SERVER)"


@pytest.mark.parametrize("weight", ["float32", "int32"])
def test_a2_weighted_mean(weight):
    signature = typed(lambda x, w: sf.federated_mean(x, w), X, sf.type_at_clients(np.dtype(weight)))
    assert signature == f"(<x={{float32}}@CLIENTS,w={{{weight}}}@CLIENTS> -> float32@SERVER)"


def test_a3_broadcast_is_all_equal_and_a_map_is_not():
    assert typed(lambda x: sf.federated_broadcast(x), W) == "(float32@SERVER -> float32@CLIENTS)"
    same = sf.FederatedType(I32, sf.CLIENTS, True)
    assert typed(lambda x: sf.federated_map(lambda v: v + 1, x), same) == "(int32@CLIENTS -> {int32}@CLIENTS)"


def test_a4_zip_is_never_all_equal():
    assert (
        typed(lambda x, y: sf.federated_zip((x, y)), N, X)
        == "(<x={int32}@CLIENTS,y={float32}@CLIENTS> -> {<int32,float32>}@CLIENTS)"
    )
    a, b = (sf.FederatedType(t, sf.CLIENTS, True) for t in (I32, F32))
    assert (
        typed(lambda x, y: sf.federated_zip((x, y)), a, b)
        == "(<x=int32@CLIENTS,y=float32@CLIENTS> -> {<int32,float32>}@CLIENTS)"
    )


@pytest.mark.parametrize("select", [sf.federated_select, sf.federated_secure_select])
def test_a5_select(select):
    signature = typed(
        lambda ck, mk, sv: select(ck, mk, sv, lambda table, key: table + key.astype(F32)),
        sf.type_at_clients((I32, (2,))),
        sf.type_at_server(I32),
        sf.type_at_server((F32, (3,))),
    )
    assert signature == "(<ck={int32[2]}@CLIENTS,mk=int32@SERVER,sv=float32[3]@SERVER> -> {float32[3]*}@CLIENTS)"


def test_a7_assignability():
    def accepts(a: Any, b: Any) -> bool:
        return sf.to_type(a).is_assignable_from(sf.to_type(b))

    assert accepts((I32, (None,)), (I32, (3,)))
    assert not accepts((I32, (3,)), (I32, (None,)))
    same = sf.FederatedType(I32, sf.CLIENTS, True)
    assert accepts(N, same)
    assert not accepts(same, N)
    assert accepts(sf.StructType([("a", I32)]), sf.StructType([I32]))
    assert not accepts(sf.StructType([I32]), sf.StructType([("a", I32)]))
    assert not accepts(sf.StructType([("a", I32)]), sf.StructType([("b", I32)]))


def test_other_type_strings():
    assert typed(lambda: sf.federated_value(10, sf.SERVER)) == "( -> int32@SERVER)"
    assert typed(lambda: sf.federated_value(True, sf.CLIENTS)) == "( -> bool@CLIENTS)"
    assert typed(lambda: sf.federated_eval(lambda: 1.5, sf.CLIENTS)) == "( -> {float32}@CLIENTS)"
    assert typed(lambda x: {"a": sf.federated_sum(x), "b": x > 1}, X) == (
        "({float32}@CLIENTS -> <a=float32@SERVER,b={bool}@CLIENTS>)"
    )
    assert typed(lambda x: sf.sequence_sum(x), READINGS) == "({float32*}@CLIENTS -> {float32}@CLIENTS)"
    assert typed(lambda x: sf.sequence_map(lambda v: v > 1, x), READINGS) == "({float32*}@CLIENTS -> {bool*}@CLIENTS)"


# ---- means, sums and extremes: A11 … A15


def test_a11_means(simulated):
    assert simulated(mean, [1.0, 2.0, 3.0]) == 2.0


def test_a11_weighted_means(simulated):
    assert simulated(weighted, [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(10 / 6)
    assert weighted([1.0, 2.0, 3.0], [3, 2, 1]) == pytest.approx(10 / 6)
    assert weighted([1.0, 2.0, 3.0], [0.1] * 3) == pytest.approx(2.0)
    assert weighted([1.0, 2.0, 3.0], [6.0, 3.0, 1.0]) == 1.5


@functools.cache
def there(way: str, comp: Any) -> Any:
    """A computation on a runtime, once for all tests, so that it is compiled once."""
    return comp if way == "called" else comp.on(getattr(sf, way)())


def _empties(x: Any) -> Any:
    return (
        sf.federated_mean(x, empty={"a": -1.0, "b": np.array([2.0, 3.0], F32)}),
        sf.federated_min(x, empty=5.0),
        sf.federated_max(x, empty=-5),
    )


or_seven = sf.federated_computation(lambda x, w: sf.federated_weighted_mean(x, w, empty=7.0), X, N)
with_empty = sf.federated_computation(_empties, sf.type_at_clients({"a": F32, "b": (F32, (2,))}))
wide_total = sf.federated_computation(lambda x: sf.federated_sum(x, dtype=np.int64), N)
OF_NOBODY = [sf.federated_computation(f, X) for f in (lambda x: sf.federated_min(x), lambda x: sf.federated_max(x))]


@pytest.mark.parametrize("way", ["called", "Simulation", "Loopback"])
class TestPolicy:
    """The hard cases of A12 … A14, as `sumfold.language.sums` decides them."""

    def test_a12_weights_that_are_all_zero(self, way):
        with pytest.raises(DataError, match="SF-DATA-063"):
            there(way, declared_weighted)([1.0, 2.0], [0.0, 0.0])

    def test_a12_weights_that_are_all_zero_with_empty(self, way):
        assert there(way, or_seven)([1.0, 2.0], [0, 0]) == 7.0

    def test_a12_a_nan_of_weight_zero(self, way):
        assert there(way, declared_weighted)([1.0, np.nan, np.inf, 3.0], [1.0, 0.0, 0.0, 1.0]) == 2.0

    def test_a12_a_negative_weight(self, way):
        with pytest.raises(DataError, match=r"negative weight.*SF-DATA-061"):
            there(way, declared_weighted)([1.0, 2.0], [1.0, -1.0])

    def test_a13_a_sum_of_nobody(self, way):
        result = there(way, declared_total)([])
        assert result == 0
        assert result.dtype == I32

    @pytest.mark.parametrize("comp", [declared_mean, *OF_NOBODY], ids=["mean", "min", "max"])
    def test_a13_of_nobody(self, way, comp):
        with pytest.raises(DataError, match=r"nobody.*SF-DATA-063"):
            there(way, comp)([])

    def test_a13_of_nobody_with_empty(self, way):
        means, smallest, largest = there(way, with_empty)([])
        assert means["a"] == -1
        assert means["b"].tolist() == [2, 3]
        assert smallest["b"].tolist() == [5, 5]
        assert largest["a"] == -5

    def test_a14_an_integer_sum_that_overflows(self, way):
        with pytest.raises(DataError, match=r"leaves the range of int32.*SF-DATA-062"):
            there(way, declared_total)([2147483647, 1])

    def test_a14_a_wider_sum(self, way):
        result = there(way, wide_total)([2147483647, 1, -(2**31), 2147483647])
        assert result == 2147483647
        assert result.dtype == np.int64
        assert there(way, wide_total)([2147483647, 1]) == 2147483648
        assert str(wide_total.type_signature) == "({int32}@CLIENTS -> int64@SERVER)"


def test_a14_sums_at_the_edge_of_the_range():
    assert total([2**31 - 2, 1]) == 2**31 - 1
    assert total([-(2**31) + 1, -1]) == -(2**31)
    assert total([2**31 - 1, 1, -1]) == 2**31 - 1  # exact, whatever the order
    with pytest.raises(DataError, match="SF-DATA-062"):
        total([-(2**31), -1])
    assert total(np.array([2**32 - 2, 1], np.uint32)) == 2**32 - 1
    with pytest.raises(DataError, match="SF-DATA-062"):
        total(np.array([2**32 - 1, 1], np.uint32))


def test_a14_wider_sums_of_other_dtypes():
    wide = sf.federated_computation(lambda x: sf.federated_sum(x, dtype=np.int64))
    assert wide(np.full(5, -(2**31), I32)) == -5 * 2**31
    assert wide(np.full(5, 2**32 - 1, np.uint32)) == 5 * (2**32 - 1)
    assert wide(np.full((3, 2), 200, np.uint8)).tolist() == [600, 600]
    assert wide([{"a": 1, "b": [2**31 - 1]}] * 2) == {"a": 2, "b": [2**32 - 2]}
    approximate = sf.federated_computation(lambda x: sf.federated_sum(x, dtype=F32))
    assert approximate([2**31 - 1, 2**31 - 1]) == pytest.approx(2.0**32)


def test_a15_cardinalities():
    with pytest.raises(ValueError, match=r"'x' has 1 client.*'w' has 2"):
        declared_weighted([1.0], [1.0, 2.0])


# ---- A16 … A18


def test_a16_select():
    @sf.federated_computation(sf.type_at_clients((I32, (3,))), sf.type_at_server((I32, (5,))))
    def look_up(keys, table):
        return sf.federated_select(keys, sf.federated_value(4, sf.SERVER), table, lambda t, key: t[key])

    assert look_up([[0, 1, 2], [4, 0, 4]], [0, 10, 20, 30, 40]) == [[0, 10, 20], [40, 0, 40]]
    with pytest.raises(DataError, match=r"client 1.*SF-DATA-060"):
        look_up([[0, 1, 2], [4, 0, 5]], [0, 10, 20, 30, 40])


@pytest.mark.parametrize("name", ["federated_select", "federated_secure_select"])
def test_a16_select_folded_and_summed(name, simulated, everywhere):
    run = everywhere if name == "federated_secure_select" else simulated  # the plain one is in test_agreement.py

    @sf.federated_computation(
        sf.type_at_clients((I32, (2,))), sf.type_at_server(I32), sf.type_at_server({"w": (F32, (3, 2))})
    )
    def chosen(keys, largest, table):
        rows = getattr(sf, name)(keys, largest, table, lambda t, key: {"row": t["w"][key], "key": key})
        return sf.federated_sum(sf.sequence_reduce(rows, jnp.zeros(2), lambda t, e: t + e["row"]))

    table = {"w": np.arange(6, dtype=F32).reshape(3, 2)}
    assert run(chosen, [[0, 1], [2, 2]], 2, table).tolist() == [10, 14]


def test_a17_temperatures(simulated):
    @sf.federated_computation(READINGS, W)
    def above(readings, threshold):
        def count(sequence, limit):
            def one(t, reading):
                return t[0] + 1.0, t[1] + jnp.where(reading > limit, 1.0, 0.0)

            return sf.sequence_reduce(sequence, (0.0, 0.0), one)

        counted = sf.federated_map(count, (readings, sf.federated_broadcast(threshold)))
        return sf.federated_mean(counted[1], counted[0])

    assert str(above.type_signature) == "(<readings={float32*}@CLIENTS,threshold=float32@SERVER> -> float32@SERVER)"
    data = [[68.0, 70.5, 75.0], [80.0, 81.0], [60.0]]
    assert simulated(above, data, 70.0) == pytest.approx((2 * 3 + 2 * 2 + 0 * 1) / 6)


def test_a18_secure_sums(simulated):
    @sf.federated_computation(N)
    def both(x):
        return sf.federated_secure_sum_bitwidth(x, 4), sf.federated_secure_sum(x, 15)

    assert simulated(both, [1, 2, 15]) == (18, 18)
    ten = sf.federated_computation(lambda x: sf.federated_secure_sum(x, 10))
    assert ten([10, 1]) == 11
    for bad in ([11, 1], [-1, 1]):
        with pytest.raises(DataError, match="SF-DATA-064"):
            ten(bad)


def test_a10_secure_sums_are_told_from_plain_ones():
    secure = sf.federated_computation(
        lambda x: [
            sf.federated_secure_sum(x, 10),
            sf.federated_secure_sum_bitwidth(x, 4),
            sf.federated_secure_modular_sum(x, 8),
        ],
        N,
    )
    assert sf.check.only_secure_aggregation(secure)
    mixed = sf.federated_computation(lambda x: (sf.federated_secure_sum(x, 10), sf.federated_min(x)), N)
    verdict = sf.check.only_secure_aggregation(mixed)
    assert not verdict
    assert "federated_min" in str(verdict)
    assert "test_acceptance.py:" in str(verdict)
    assert not sf.check.only_secure_aggregation(sf.federated_computation(lambda x: x + 1, N))


def test_modular_sums(simulated):
    @sf.federated_computation(N)
    def comp(x):
        return [sf.federated_secure_modular_sum(x, m) for m in (8, 22, 2, 2**31)]

    assert simulated(comp, [1, 2, 3, 4]) == [2, 10, 0, 10]
    assert comp([-1, 7]) == [6, 6, 0, 6]
    assert comp([-(2**31), -1]) == [7, (-(2**31) - 1) % 22, 1, 2**31 - 1]
    assert comp([]) == [0, 0, 0, 0]
    whole = sf.federated_computation(lambda x: sf.federated_secure_modular_sum(x, 2**32))
    assert whole(np.array([2**32 - 1, 3], np.uint32)) == 2


def test_secure_bounds_by_leaf(simulated):
    comp = sf.federated_computation(lambda x: sf.federated_secure_sum(x, {"a": 10, "b": 2**20}))
    data = [{"a": np.array([1, 10]), "b": 2**20}, {"a": np.array([0, 9]), "b": 5}]
    result = simulated(comp, data)
    assert result["a"].tolist() == [1, 19]
    assert result["b"] == 2**20 + 5


def test_secure_sums_of_large_words():
    comp = sf.federated_computation(lambda x: sf.federated_secure_sum(x, 2**32 - 1))
    assert comp(np.array([2**31, 2**31 - 1], np.uint32)) == 2**32 - 1
    assert sf.federated_computation(lambda x: sf.federated_secure_sum(x, 10), N)([]) == 0


# ---- the programs of the issue


def programs() -> tuple[Any, Any]:
    # fmt: off
    @tff.federated_computation
    def federated_averaging(model_weights):
      return tff.federated_mean(model_weights, weight=None)

    @tff.federated_computation
    def weighted_federated_averaging(model_weights, weights):
      return tff.federated_weighted_mean(model_weights, weights)
    # fmt: on
    return federated_averaging, weighted_federated_averaging


def check_programs(constant: Any, global_model: Any) -> None:
    federated_averaging, weighted_federated_averaging = programs()
    client_updates = [
        [constant(0.1), constant(0.2)],
        [constant(0.3), constant(0.1)],
        [constant(0.2), constant(0.3)],
    ]
    client_weights = [1.0, 2.0, 0.5]
    aggregated_update = federated_averaging(client_updates)
    assert isinstance(aggregated_update, list)
    np.testing.assert_allclose(aggregated_update, [0.2, 0.2], rtol=1e-6)
    new_global_model = [global_model[i] + aggregated_update[i] for i in range(len(global_model))]
    assert [w.shape for w in new_global_model] == [w.shape for w in global_model]
    aggregated_update = weighted_federated_averaging(client_updates, client_weights)
    np.testing.assert_allclose(aggregated_update, [0.8 / 3.5, 0.55 / 3.5], rtol=1e-6)
    new_global_model = [global_model[i] + aggregated_update[i] for i in range(len(global_model))]
    np.testing.assert_allclose(new_global_model[1], global_model[1] + 0.55 / 3.5, rtol=1e-6)


@pytest.mark.parametrize("constant", [float, np.float32, np.array, jnp.float32, lambda v: np.array(v, np.float32)])
def test_the_programs_as_printed(constant):
    check_programs(constant, [np.ones((2, 1), F32), np.zeros(1, F32)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_the_programs_with_keras_weights():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(1)])
    check_programs(keras.ops.convert_to_tensor, model.get_weights())


def test_the_programs_with_tensorflow():
    tf = pytest.importorskip("tensorflow")
    check_programs(tf.constant, [np.ones((2, 1), F32), np.zeros(1, F32)])


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras's own
def test_whole_keras_models_are_averaged():
    keras = pytest.importorskip("keras")
    model = keras.Sequential([keras.layers.Input((2,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    weights = model.get_weights()
    averaged = programs()[0]([weights, [w + 2 for w in weights]])
    for a, b in zip(averaged, weights, strict=True):
        np.testing.assert_allclose(a, b + 1, rtol=1e-6)
    model.set_weights(averaged)


# ---- several exchanges


def test_two_exchanges(simulated):
    @sf.federated_computation
    def mime(w, data):
        gradient = sf.federated_mean(sf.federated_map(lambda w, x: x - w, (sf.federated_broadcast(w), data)))
        corrected = sf.federated_map(lambda g, x: x * g, (sf.federated_broadcast(gradient), data))
        return sf.federated_mean(corrected), gradient

    assert simulated(mime, 1.0, [1.0, 2.0, 6.0]) == (6.0, 2.0)


def test_a_clients_value_that_a_later_exchange_needs(simulated):
    @sf.federated_computation(X)
    def comp(x):
        doubled = sf.federated_map(lambda v: 2 * v, x)
        centred = doubled - sf.federated_broadcast(sf.federated_mean(doubled))
        return sf.federated_mean(centred * centred) ** 0.5, sf.federated_max(centred)

    deviation, largest = simulated(comp, [1.0, 2.0, 6.0])
    assert deviation == pytest.approx(np.std([2.0, 4.0, 12.0]))
    assert largest == 6


def test_a_line_search_in_three_exchanges(simulated):
    @sf.federated_computation
    def search(w, data):
        def loss(w):
            return sf.federated_mean((sf.federated_broadcast(w) - data) ** 2)

        gradient = sf.federated_mean(2 * (sf.federated_broadcast(w) - data))
        first = loss(w - 0.5 * gradient)
        better = sf.federated_map(lambda w, g, a: jnp.where(a > 1.0, w - 0.5 * g, w), (w, gradient, first))
        return better, loss(better)

    better, last = simulated(search, 0.0, [1.0, 2.0, 6.0])
    assert better == 3
    assert last == pytest.approx(14 / 3)


def test_two_passes_over_a_sequence(simulated):
    @sf.federated_computation(READINGS)
    def moments(readings):
        def local(sequence):
            count, summed = sf.sequence_reduce(sequence, (0.0, 0.0), lambda t, v: (t[0] + 1.0, t[1] + v))
            middle = summed / count
            return {
                "mean": middle,
                "var": sf.sequence_reduce(sequence, 0.0, lambda t, v: t + (v - middle) ** 2) / count,
            }

        return sf.federated_mean(sf.federated_map(local, readings))

    result = simulated(moments, [[1.0, 2.0, 3.0], [4.0, 8.0]])
    assert result["mean"] == pytest.approx(4.0)
    assert result["var"] == pytest.approx((2 / 3 + 4) / 2)


def test_a_fold_that_starts_from_the_server_in_a_second_exchange(simulated):
    @sf.federated_computation(READINGS)
    def centred(readings):
        count = sf.federated_sum(sf.sequence_reduce(readings, 0, lambda n, _: n + 1))
        middle = sf.federated_map(lambda s, n: s / n.astype(F32), (sf.federated_sum(sf.sequence_sum(readings)), count))
        around = sf.federated_map(
            lambda seq, m: sf.sequence_sum(sf.sequence_map(lambda v: (v - m) ** 2, seq)),
            (readings, sf.federated_broadcast(middle)),
        )
        return middle, sf.federated_sum(around)

    data = [[1.0, 2.0], [], [6.0]]
    middle, around = simulated(centred, data)
    assert middle == 3
    assert around == pytest.approx(14)


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


# ---- intrinsics


def test_eval_and_value(simulated):
    @sf.federated_computation(X, sf.type_at_server(I32))
    def comp(x, k):
        return {
            "count": sf.federated_sum(sf.federated_eval(lambda: 1, sf.CLIENTS)),
            "five": sf.federated_sum(sf.federated_value(5, sf.CLIENTS)),
            "sent": sf.federated_sum(sf.federated_broadcast(k)),
            "server": sf.federated_eval(lambda: {"a": jnp.arange(3)}, sf.SERVER),
            "constant": sf.federated_value(np.array([1.5, 2.5], F32), sf.SERVER),
        }

    result = simulated(comp, [1.0, 2.0, 3.0], 7)
    assert (result["count"], result["five"], result["sent"]) == (3, 15, 21)
    assert result["server"]["a"].tolist() == [0, 1, 2]
    assert result["constant"].tolist() == [1.5, 2.5]


def test_extremes(simulated):
    comp = sf.federated_computation(lambda x: (sf.federated_min(x), sf.federated_max(x)))
    small, large = simulated(comp, [{"a": np.array([1, 5]), "b": -1.5}, {"a": np.array([3, 2]), "b": 2.5}])
    assert small["a"].tolist() == [1, 2]
    assert large["a"].tolist() == [3, 5]
    assert (small["b"], large["b"]) == (-1.5, 2.5)
    assert comp(np.array([2**31, 1], np.uint32)) == (1, 2**31)
    assert comp(np.array([-(2**31), 2**31 - 1], I32)) == (-(2**31), 2**31 - 1)


def count_and_sum(x: Any) -> Any:
    return sf.federated_aggregate(
        x,
        {"n": 0, "s": 0.0},
        lambda t, v: {"n": t["n"] + 1, "s": t["s"] + v},
        lambda a, b: {"n": a["n"] + b["n"], "s": a["s"] + b["s"]},
        lambda t: (t["s"], t["n"]),
    )


def test_aggregate(simulated):
    comp = sf.federated_computation(count_and_sum, X)
    assert simulated(comp, [1.0, 2.0, 3.0]) == (6.0, 3)
    assert simulated(comp, []) == (0.0, 0)


def test_aggregate_directly():
    comp = sf.federated_computation(count_and_sum)
    assert comp([1.0, 2.0, 3.0]) == (6.0, 3)
    histogram = sf.federated_computation(
        lambda x: sf.federated_aggregate(
            x, jnp.zeros(4, int), lambda t, v: t.at[v].add(1), lambda a, b: a + b, lambda t: t
        )
    )
    assert histogram([0, 3, 3]).tolist() == [1, 0, 0, 2]


def test_a_federated_variance_in_one_line(simulated):
    comp = sf.federated_computation(lambda x: sf.federated_mean(x * x) - sf.federated_mean(x) ** 2, X)
    assert simulated(comp, [1.0, 2.0, 6.0]) == pytest.approx(np.var([1.0, 2.0, 6.0]))


def test_constants_of_the_function():
    table = np.array([1.0, 2.0], F32)
    comp = sf.federated_computation(lambda x: sf.federated_map(lambda v: v + table.sum(), x))
    assert comp([1.0]) == [4.0]
    device = jnp.array([1.0, 2.0])
    comp = sf.federated_computation(lambda x: sf.federated_sum(sf.federated_map(lambda v: v * device, x)))
    assert comp([1.0, 2.0]).tolist() == [3, 6]


def test_constants_that_are_returned(simulated):
    comp = sf.federated_computation(lambda x: (sf.federated_sum(x), 3.5, {"k": np.arange(2)}), X)
    sums, half, rest = simulated(comp, [1.0, 2.0])
    assert (sums, half) == (3.0, 3.5)
    assert rest["k"].tolist() == [0, 1]


def test_a_constant_array_made_inside(simulated):
    def doubled(x: Any) -> Any:
        scale = np.array([2.0, 3.0], F32)
        return sf.federated_sum(sf.federated_map(lambda v: v * jnp.asarray(scale), x))

    assert simulated(sf.federated_computation(doubled, X), [1.0, 2.0]).tolist() == [6, 9]


def test_results_that_are_arguments():
    assert sf.federated_computation(lambda x: x)([1, 2]) == [1, 2]
    assert sf.federated_computation(lambda x, y: sf.federated_sum(x))([1, 2], [5, 6]) == 3
    assert sf.federated_computation(lambda x, s: (s, x), X, W)([1.0], 2.0) == (2.0, [1.0])
    assert sf.federated_computation(lambda s: sf.federated_broadcast(s), W)(3.0) == 3.0


def test_unused_results_and_arguments(simulated):
    def comp(x: Any, y: Any) -> Any:
        sf.federated_sum(x)
        return sf.federated_max(y)

    assert simulated(sf.federated_computation(comp, X, X), [1.0, 2.0], [3.0, 4.0]) == 4


# ---- placements from use


def test_inferred_placements():
    assert sf.federated_computation(lambda w, x: w + sf.federated_mean(x))(1.0, [1.0, 3.0]) == 3.0
    assert sf.federated_computation(lambda x, w: sf.federated_mean(x) * w)([1.0, 3.0], 10.0) == 20.0
    assert sf.federated_computation(lambda w, x: sf.federated_sum(x * sf.federated_broadcast(w)))(2.0, [1.0, 3.0]) == 8


def test_the_placement_of_a_servers_structure():
    comp = sf.federated_computation(lambda w, x: [a + b for a, b in zip(w, sf.federated_mean(x), strict=True)])
    assert comp([1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]]) == [3.0, 5.0]


def test_the_placement_of_a_servers_dict():
    comp = sf.federated_computation(lambda w, x: {"a": w["a"] + sf.federated_mean(x)})
    assert comp({"a": 1.0}, [1.0, 3.0]) == {"a": 3.0}


def test_a_polymorphic_computation_is_specialised():
    assert total([1, 2]).dtype == I32
    assert total([1.0, 2.0]).dtype == F32
    assert total([[1, 2.0]] * 2) == [2, 4.0]
    assert str(total.type_signature) == "({<int32,float32>}@CLIENTS -> <int32,float32>@SERVER)"


# ---- nesting, local computations, the tutorial


def test_nested_computations(simulated):
    double = sf.computation(lambda v: 2 * v)
    typed_double = sf.computation(lambda v: 2 * v, F32)

    @sf.federated_computation(X)
    def outer(x):
        return [
            mean(x),
            declared_mean(x),
            declared_mean(sf.federated_map(double, x)),
            sf.federated_sum(sf.federated_map(typed_double, x)),
            weighted(x, w=x),
        ]

    assert simulated(outer, [1.0, 3.0]) == [2, 2, 4, 8, 2.5]


def test_local_computations():
    add = sf.computation(lambda a, b: {"s": a + b})
    assert add(1.0, 2.0) == {"s": 3.0}
    assert add(np.ones(2), np.ones(2))["s"].tolist() == [2, 2]
    longest = sf.computation(lambda s: sf.sequence_reduce(s, 0.0, lambda a, b: a + b), sf.SequenceType(F32))
    assert str(longest.type_signature) == "(float32* -> float32)"
    assert longest([1.0, 2.0, 3.0]) == 6
    assert longest([]) == 0
    assert sf.computation(lambda: 3.0)() == 3
    assert sf.computation(lambda a: a)([1.0, 2.0]) == [1.0, 2.0]
    assert tff.tf_computation(lambda v: v + 1, F32)(1) == 2


def test_the_local_train_of_the_tutorial(simulated):
    """TFF's "Custom federated algorithms, part 2", with jax in place of TensorFlow."""
    batch_type = OrderedDict(x=(F32, (None, 3)), y=(I32, (None,)))
    model_type = OrderedDict(weights=(F32, (3, 2)), bias=(F32, (2,)))
    local_data_type = tff.SequenceType(batch_type)

    @tff.jax_computation(model_type, batch_type)
    def batch_loss(model, batch):
        scores = jax.nn.log_softmax(batch["x"] @ model["weights"] + model["bias"][None, :])
        return -jnp.mean(jnp.take_along_axis(scores, batch["y"][:, None], axis=1))

    @tff.jax_computation(model_type, batch_type, F32)
    def batch_train(initial_model, batch, learning_rate):
        gradient = jax.grad(lambda m: batch_loss(m, batch))(initial_model)
        return jax.tree.map(lambda p, g: p - learning_rate * g, initial_model, gradient)

    @tff.federated_computation(model_type, F32, local_data_type)
    def local_train(initial_model, learning_rate, all_batches):
        @tff.federated_computation(model_type, batch_type)
        def batch_fn(model, batch):
            return batch_train(model, batch, learning_rate)

        return tff.sequence_reduce(all_batches, initial_model, batch_fn)

    @tff.federated_computation(model_type, local_data_type)
    def local_eval(model, all_batches):
        @tff.federated_computation(batch_type)
        def loss_of(batch):
            return batch_loss(model, batch)

        return tff.sequence_sum(tff.sequence_map(loss_of, all_batches))

    @tff.federated_computation(tff.type_at_server(model_type), tff.type_at_clients(local_data_type))
    def federated_eval(model, data):
        return tff.federated_mean(tff.federated_map(local_eval, [tff.federated_broadcast(model), data]))

    @tff.federated_computation(
        tff.type_at_server(model_type), tff.type_at_server(F32), tff.type_at_clients(local_data_type)
    )
    def federated_train(model, learning_rate, data):
        sent = [tff.federated_broadcast(model), tff.federated_broadcast(learning_rate), data]
        return tff.federated_mean(tff.federated_map(local_train, sent))

    rng = np.random.default_rng(0)
    batch = OrderedDict(x=rng.normal(size=(4, 3)).astype(F32), y=np.array([0, 1, 1, 0]))
    data = [[batch, batch], [batch]]
    start = OrderedDict(weights=np.zeros((3, 2), F32), bias=np.zeros(2, F32))
    assert str(local_train.type_signature).startswith("(<initial_model=<weights=float32[3,2],bias=float32[2]>")
    assert local_eval(start, data[0]) == pytest.approx(2 * np.log(2))
    assert federated_eval(start, data) == pytest.approx(1.5 * np.log(2))
    trained = simulated(federated_train, start, 0.1, data)
    one, two = (local_train(start, 0.1, d) for d in data)
    np.testing.assert_allclose(trained["weights"], (one["weights"] + two["weights"]) / 2, rtol=1e-5, atol=1e-7)
    assert federated_eval(trained, data) < federated_eval(start, data)


# ---- dtypes


@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        "uint8",
        "int16",
        "uint16",
        "int32",
        "uint32",
    ],
)
def test_integers(dtype):
    info = np.iinfo(dtype)
    result = total(np.array([info.max - 1, 1], dtype))
    assert result.dtype == dtype
    assert result == info.max
    with pytest.raises(DataError, match=f"leaves the range of {dtype}"):
        total(np.array([info.max, 1], dtype))
    largest = sf.federated_computation(lambda x: sf.federated_max(x))
    assert largest(np.array([info.min, info.max], dtype)) == info.max


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
def test_small_floats(dtype):
    kind = jnp.dtype(dtype)
    result = total(np.array([1, 0.5, 2], kind))
    assert result.dtype == kind
    assert float(result) == 3.5
    assert float(mean(np.array([1, 2, 3], kind))) == 2
    # A sum in the small type itself would stay at 256 or below.
    if dtype == "bfloat16":
        assert float(total(np.ones(1000, kind))) == 1000
    extremes = sf.federated_computation(lambda x: (sf.federated_min(x), sf.federated_max(x)))
    assert tuple(map(float, extremes(np.array([1, -2, 3], kind)))) == (-2, 3)


def test_complex_and_bool(everywhere):
    assert everywhere(total, np.array([1 + 2j, 3], np.complex64)) == 4 + 2j
    assert mean(np.array([1 + 2j, 3], np.complex64)) == 2 + 1j
    assert weighted(np.array([1 + 2j, 4], np.complex64), [3.0, 0.0]) == 1 + 2j
    above = sf.federated_computation(lambda x: x > 1)
    assert above([1.0, 2.0]) == [False, True]
    both = sf.federated_computation(lambda x, y: x & ~y | (x ^ y))
    assert both([True, False, True], [True, True, False]) == [False, True, True]


def test_64_bits_with_x64_off():
    assert total(np.array([1, 2], np.int64)).dtype == I32
    assert total(np.array([1.0, 2.0])).dtype == F32
    wide = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients(np.int64))
    assert str(wide.type_signature) == "({int64}@CLIENTS -> int64@SERVER)"
    assert wide([2**31 - 1, 2**31 - 1]) == 2**32 - 2
    assert wide([1]).dtype == np.int64
    assert mean([np.array(1.0, ml_dtypes.bfloat16)]).dtype == ml_dtypes.bfloat16


# ---- arithmetic


ARITHMETIC = [
    (lambda x: 1 - x, [0, 3]),
    (lambda x: x**2, [1, 4]),
    (lambda x: 2**x, [2, 0.25]),
    (lambda x: -x, [-1, 2]),
    (lambda x: +x, [1, -2]),
    (lambda x: abs(x), [1, 2]),
    (lambda x: 2 / x, [2, -1]),
    (lambda x: x // 2, [0, -1]),
    (lambda x: x % 2, [1, 0]),
    (lambda x: x > 0, [True, False]),
    (lambda x: 0 >= x, [False, True]),  # noqa: SIM300
    (lambda x: x == 1, [True, False]),
    (lambda x: x != 1, [False, True]),
    (lambda x: ~(x > 0), [False, True]),
    (lambda x: (x > 0) | (x < -1), [True, True]),
    (lambda x: x - F32(1), [0, -3]),
    (lambda x: x * np.array(2, F32), [2, -4]),
    (lambda x: x + x * x - x / 2, [1.5, 3]),
    (lambda x: x + True, [2, -1]),
]


@pytest.mark.parametrize("types", [(), (X,)], ids=["inferred", "declared"])
def test_arithmetic_at_the_clients(types):
    comp = sf.federated_computation(lambda x: tuple(function(x) for function, _ in ARITHMETIC), *types)
    for i, (result, (_, expected)) in enumerate(zip(comp([1.0, -2.0]), ARITHMETIC, strict=True)):
        assert result == expected, f"case {i} gave {result}"


@pytest.mark.parametrize("number", [F32(2), np.array(2, F32), jnp.float32(2)], ids=["scalar", "array", "jax"])
@pytest.mark.parametrize("types", [(), (X,)], ids=["inferred", "declared"])
def test_an_array_on_the_left(number, types):
    comp = sf.federated_computation(lambda x: number * x, *types)
    assert comp([1.0, -2.0]) == [2, -4]


def test_arithmetic_of_integers():
    comp = sf.federated_computation(lambda x: (x + 1, x / 2, x**2, x + 1.5, -x, x * True, x // 2))
    assert comp([1, 2]) == ([2, 3], [0.5, 1], [1, 4], [2.5, 3.5], [-1, -2], [1, 2], [0, 1])
    assert comp([1, 2])[0][0].dtype == I32


def test_arithmetic_at_the_server(simulated):
    comp = sf.federated_computation(lambda x: 1 - sf.federated_sum(x) / 2 + abs(-sf.federated_max(x)), X)
    assert simulated(comp, [1.0, 2.0]) == 1.5


@pytest.mark.parametrize(
    ("delta", "left"),
    [
        ({"a": np.ones(2, F32), "b": 1.0}, True),
        ({"a": np.ones(2, F32), "b": 1.0}, False),
        ({"a": np.ones(2, F32)}, True),
        ({"a": np.ones(2, F32)}, False),
        ([1.0], True),
        ((1.0, 2.0), True),
    ],
)
def test_a_weight_times_a_structure(delta, left):
    comp = sf.federated_computation(lambda w, d: sf.federated_sum(w * d if left else d * w))
    result = comp([2.0, 3.0], [delta, delta])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 5 * np.asarray(b)), result, delta)


def test_arithmetic_of_structures():
    comp = sf.federated_computation(lambda a, b: sf.federated_sum(2 * a - b / 2 + 1))
    assert comp([{"p": 1.0, "q": [2.0]}] * 2, [{"p": 4.0, "q": [2.0]}] * 2) == {"p": 2.0, "q": [8.0]}
    assert sf.federated_computation(lambda d: sf.federated_sum(-d))([{"a": 1.0}]) == {"a": -1.0}


def test_parts_of_arrays():
    comp = sf.federated_computation(lambda x: (sf.federated_sum(x[0]), sf.federated_sum(x[:2]), x @ x))
    one, two, products = comp([np.array([1.0, 2.0, 3.0])] * 2)
    assert one == 2
    assert two.tolist() == [2, 4]
    assert products == [14, 14]


# ---- objects


def test_on_leaves_the_computation_alone():
    there = declared_mean.on(sf.Simulation())
    assert there is not declared_mean
    assert declared_mean.runtime is None
    assert there([1.0, 3.0]) == 2
    assert repr(there) == "<<lambda>: ({float32}@CLIENTS -> float32@SERVER) on Simulation>"
    assert declared_mean([1.0, 3.0]) == 2


def test_explain_names_what_leaves():
    text = declared_weighted.explain()
    assert "Leaves each client" in text
    assert "federated_mean" in text
    assert "float32" in text
    assert "No client takes part" in sf.federated_computation(lambda: 1.0).explain()
    with_data = sf.federated_computation(lambda x: sf.federated_sum(sf.sequence_sum(x)), READINGS)
    assert "Leaves each client" in with_data.explain([[1.0, 2.0]])


def test_a51_fed_avg_sends_and_aggregates_once():
    @sf.federated_computation(sf.type_at_server({"w": F32}), READINGS)
    def step(model, data):
        def train(model, sequence):
            return sf.sequence_reduce(sequence, model, lambda m, x: {"w": m["w"] - 0.1 * (m["w"] - x)})

        count = sf.sequence_reduce(data, 0.0, lambda n, _: n + 1.0)
        return sf.federated_mean(sf.federated_map(train, (sf.federated_broadcast(model), data)), count)

    plan = step.program.plan
    assert len(plan.clients) == 1
    assert len(plan.clients[0].received) == 1
    assert len(plan.clients[0].sums) == 1
