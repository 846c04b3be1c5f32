"""What a user of TFF knows must come out as they know it, or by Sumfold's own policy; in every way of running."""

import functools
from typing import Any

import jax.numpy as jnp
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
        np.testing.assert_allclose(a, b + 1, rtol=1e-6, atol=1e-6)  # drawn anew: some weight may be near -1
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
