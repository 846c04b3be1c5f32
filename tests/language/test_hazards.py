"""What must not happen on the thousandth call: growth, tracing again, other results, warnings without a reason."""

import functools
import gc
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

F32 = np.float32
X = sf.type_at_clients(F32)
READINGS = sf.type_at_clients(sf.SequenceType(F32))

WAYS = ["called", "Simulation", "Loopback"]


@functools.cache
def there(way: str, comp: Any) -> Any:
    """A computation on a runtime, once for all tests, so that it is compiled once."""
    return comp if way == "called" else comp.on(getattr(sf, way)())


total = sf.federated_computation(lambda x: sf.federated_sum(x), X)
both = sf.federated_computation(lambda x: (sf.federated_mean(x), sf.federated_sum(x)), X)
weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w), X, X)
secure = sf.federated_computation(lambda x: sf.federated_secure_sum(x, 10), sf.type_at_clients(np.int32))
of_readings = sf.federated_computation(lambda x: sf.federated_mean(sf.sequence_sum(x)), READINGS)


def live() -> int:
    gc.collect()
    return len(jax.live_arrays())


def counted(*types: Any) -> tuple[Any, list[int]]:
    """A computation, and a list that grows with each call of its function."""
    calls: list[int] = []

    def function(x: Any) -> Any:
        calls.append(1)
        return sf.federated_mean(x), sf.federated_max(x)

    return sf.federated_computation(function, *types), calls


@pytest.mark.parametrize("types", [(), (X,)], ids=["inferred", "declared"])
def test_many_calls_grow_nothing(types):
    comp, calls = counted(*types)
    comp([1.0, 2.0])
    programs, compiled, traced, before = len(comp._programs), len(comp._compiled), len(calls), live()
    for i in range(100 if types else 30):
        assert comp([1.0, float(i)])[0] == (1.0 + i) / 2
    assert (len(comp._programs), len(comp._compiled), len(calls)) == (programs, compiled, traced)
    assert live() <= before + 2


def test_calls_on_a_runtime_grow_nothing():
    comp, calls = counted(X)
    run = comp.on(sf.Simulation())
    run([1.0, 2.0])
    sizes, traced, before = (len(run._programs), len(run._bound)), len(calls), live()
    for i in range(40):
        assert run([1.0, float(i)])[0] == (1.0 + i) / 2
    assert (len(run._programs), len(run._bound)) == sizes
    assert len(calls) == traced
    assert live() <= before + 2


def test_a_second_call_of_the_same_types_does_not_trace():
    comp, calls = counted()
    comp([1.0, 2.0])
    first = len(calls)
    for data in ([3.0, 4.0], (5.0,), np.array([1.0, 2.0, 3.0]), {"a": 1.0}, [F32(2), 1]):
        comp(data)
    assert len(calls) == first
    comp([{"a": 1.0}])
    assert first < len(calls) <= 2 * first
    again = len(calls)
    comp([1.0])
    comp([{"a": 2.0}])
    assert len(calls) == again


def test_a_declared_computation_is_traced_once():
    _, calls = counted(X)
    assert len(calls) == 1
    comp, calls = counted(X)
    for n in range(1, 9):
        comp([1.0] * n)
    assert len(calls) == 1


def test_on_does_not_trace_again():
    comp, calls = counted()
    comp([1.0, 2.0])
    traced = len(calls)
    comp.on(sf.Simulation())([1.0, 2.0])
    assert len(calls) == traced


def test_other_numbers_of_clients_and_elements_do_not_trace():
    calls: list[int] = []

    @sf.federated_computation
    def comp(x):
        calls.append(1)
        return sf.federated_sum(sf.sequence_reduce(x, 0.0, lambda t, v: t + v))

    federation = [np.ones(3, F32), np.ones(3, F32)]
    with pytest.raises(sf.SumfoldError):
        comp(federation)  # without types an array is no sequence of a client's
    calls.clear()
    typed = sf.federated_computation(comp.function, READINGS)
    for k in range(1, 6):
        assert typed([[1.0] * n for n in range(k)]) == sum(range(k))
    # Once for the declared type, and once for sizes that are known.
    assert len(calls) <= 2
    assert len(typed._programs) <= 2


def test_compilations_are_few_for_many_sizes():
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), X)
    for n in range(40):
        assert comp([1.0] * n) == n
    (compiled,) = comp._compiled.values()
    assert compiled._cache_size() <= 20


@pytest.mark.parametrize("way", WAYS)
def test_results_are_the_same_every_time(way):
    comp = there(way, weighted)
    rng = np.random.default_rng(0)
    data, weights = rng.normal(size=7).astype(F32), rng.uniform(size=7).astype(F32)
    first, second, third = (comp(data, weights).tobytes() for _ in range(3))
    assert first == second == third


def test_arguments_are_not_changed():
    data = [{"a": np.ones(2, F32)}, {"a": np.zeros(2, F32)}]
    server = np.ones(3, F32)
    types = sf.type_at_clients({"a": (F32, (2,))}), sf.type_at_server((F32, (3,)))
    comp = sf.federated_computation(lambda x, s: (sf.federated_sum(x), s + 1), *types)
    result, more = comp(data, server)
    assert (more.tolist(), result["a"].tolist()) == ([2, 2, 2], [1, 1])
    assert not np.shares_memory(more, server)
    assert not np.shares_memory(result["a"], data[0]["a"])
    assert data[0]["a"].tolist() == [1, 1]
    assert server.tolist() == [1, 1, 1]


@pytest.mark.parametrize("way", WAYS[:2])  # over the loopback a warning fails every other test
def test_ordinary_use_does_not_warn(way):
    comp = there(way, of_readings)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        comp([[1.0, 2.0], [], [3.0]])
        comp([[1.0]])
    assert [str(w.message) for w in said] == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_is_not_finite_is_left_out(way, bad):
    comp = there(way, both)
    with pytest.warns(RuntimeWarning, match=r"1 client.*left out.*would have sent or kept is not finite") as said:
        result = comp([1.0, bad, 5.0])  # here
    assert result == (3.0, 6.0)
    (warning,) = said
    assert warning.filename == __file__
    with open(__file__) as source:
        assert source.readlines()[warning.lineno - 1].endswith("# here\n")


@pytest.mark.parametrize("way", WAYS)
def test_a_client_that_is_not_finite_is_left_out_of_every_exchange(way):
    @sf.federated_computation(X)
    def comp(x):
        middle = sf.federated_mean(sf.federated_map(lambda v: 1 / v, x))
        return sf.federated_sum(sf.federated_broadcast(middle) + x), sf.federated_sum(
            sf.federated_map(lambda v, _: 1, (x, sf.federated_broadcast(middle)))
        )

    with pytest.warns(RuntimeWarning, match="1 client"):
        result = there(way, comp)([1.0, 0.0, 0.5])
    assert result == (pytest.approx(4.5), 2)


@pytest.mark.parametrize("way", WAYS)
def test_a_sum_of_clients_that_are_not_finite(way):
    with pytest.warns(RuntimeWarning, match="2 client"):
        assert there(way, total)([np.nan, np.nan]) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_mean_of_clients_that_are_not_finite(way):
    comp = there(way, both)
    with pytest.warns(RuntimeWarning, match="2 client"), pytest.raises(sf.DataError, match="SF-DATA-063"):
        comp([np.nan, np.nan])


@pytest.mark.parametrize("way", WAYS)
def test_a_check_at_a_client_that_is_left_out_does_not_raise(way):
    with pytest.warns(RuntimeWarning, match="1 client"):
        assert there(way, weighted)([1.0, np.nan, 3.0], [1.0, 1.0, 1.0]) == 2


@pytest.mark.parametrize("way", WAYS)
def test_an_error_does_not_spoil_the_next_call(way):
    comp = there(way, secure)
    assert comp([1, 2]) == 3
    for _ in range(2):
        with pytest.raises(sf.DataError):
            comp([1, 20])
    assert comp([1, 2]) == 3


def test_an_error_while_tracing_does_not_spoil_the_next_call():
    comp = sf.federated_computation(lambda x: sf.federated_mean(x))
    for _ in range(2):
        with pytest.raises(sf.TypeMismatchError):
            comp([1, 2])
    assert comp([1.0, 2.0]) == 1.5
    placed = sf.federated_computation(lambda w, x: sf.federated_mean(x) + w)
    with pytest.raises(sf.SumfoldError):
        placed([1.0], 2.0)
    assert placed(2.0, [1.0]) == 3.0
    assert not isinstance(jnp.zeros(()), jax.core.Tracer)


def test_users_defaults_of_promotion_hold_inside_of_maps():
    comp = sf.federated_computation(lambda x: sf.federated_map(lambda v: v * 2.5 + jnp.arange(2), x))
    assert comp([1.0])[0].tolist() == [2.5, 3.5]


def test_a_users_except_does_not_stop_the_search_for_placements():
    @sf.federated_computation
    def comp(x):
        try:
            return sf.federated_mean(x)
        except Exception:
            return sf.federated_value(0.0, sf.SERVER)

    assert comp([1.0, 3.0]) == 2.0


@pytest.mark.parametrize("way", WAYS)
def test_many_clients(way):
    assert there(way, total)(np.arange(30, dtype=F32)) == 435


def test_threads_can_call_one_computation():
    from concurrent.futures import ThreadPoolExecutor

    comp = sf.federated_computation(lambda x: sf.federated_sum(x))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: comp([float(n), 1.0]).item(), range(20)))
    assert results == [n + 1.0 for n in range(20)]
