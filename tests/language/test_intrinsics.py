"""Every intrinsic, placements from use, nesting, dtypes and arithmetic, on every way to run."""

from collections import OrderedDict
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
