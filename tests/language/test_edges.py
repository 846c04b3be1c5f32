"""Edges between inference, JAX and NumPy: each gave a wrong number, a raw error or an endless loop once."""

import jax
import numpy as np
import pytest

import sumfold as sf
from sumfold import tff

CLIENTS, SERVER = sf.type_at_clients, sf.type_at_server


@pytest.fixture
def leftover():
    """An argument of unknown placement that its computation left behind."""
    kept = []

    @sf.federated_computation
    def mean(x):
        kept.append(x)
        return sf.federated_mean(x)

    mean([1.0, 2.0])
    return kept[0]


def test_a_leftover_argument_ends_in_an_error_and_not_in_a_loop(leftover):
    with pytest.raises(sf.CompositionError, match="SF-COMP-050"):
        sf.federated_computation(lambda x: sf.federated_sum(leftover))([1.0])
    with pytest.raises(sf.CompositionError, match="SF-COMP-050"):
        sf.federated_sum(leftover)
    with pytest.raises(sf.CompositionError, match="SF-COMP-050"):
        leftover + 1


def test_an_argument_captured_before_its_placement_is_known():
    @sf.federated_computation
    def scaled(x, s):
        return sf.federated_sum(sf.federated_map(lambda v: v * s, x))

    with pytest.raises(sf.CompositionError, match=r"'s'.*captured by a mapped.*SF-COMP-050"):
        scaled([1.0], 2.0)


@pytest.mark.parametrize("runtime", [None, sf.Simulation()], ids=["called", "Simulation"])
def test_a_key_behind_the_last_row_is_not_clamped(runtime):
    @sf.federated_computation(CLIENTS((np.int32, [1])), SERVER(np.int32), SERVER((np.float32, [3])))
    def look_up(keys, max_key, table):
        rows = sf.federated_select(keys, max_key, table, lambda table, key: table[key])
        return sf.federated_sum(sf.sequence_sum(rows))

    run = look_up if runtime is None else look_up.on(runtime)
    assert run([[2], [0]], 9, [1.0, 2.0, 3.0]) == 4.0
    with pytest.raises(sf.DataError, match=r"behind the last row.*SF-DATA-060"):
        run([[3], [0]], 9, [1.0, 2.0, 3.0])


def test_a_float_that_does_not_fit_is_an_error_and_no_infinity():
    mean = sf.federated_computation(lambda x: sf.federated_mean(x))
    with pytest.raises(sf.DataError, match=r"client 0 .*1e\+300.*float32.*SF-DATA-071"):
        mean(np.array([1e300, 1.0]))
    assert np.isposinf(sf.federated_computation(CLIENTS(np.float32))(lambda x: sf.federated_map(abs, x))([np.inf])[0])


def test_empty_of_another_kind_than_the_result():
    with pytest.raises(sf.TypeMismatchError, match="SF-TYPE-054"):
        sf.federated_computation(lambda x: sf.federated_min(x, empty=2.5))([1, 2])


def test_grad_and_vmap_around_a_call():
    mean = sf.federated_computation(lambda x: sf.federated_mean(x))
    with pytest.raises(sf.CompositionError, match="SF-COMP-054"):
        jax.grad(lambda a: mean(a))(np.ones(3, np.float32))


def test_one_structure_for_several_parameters():
    plus = tff.tf_computation(lambda a, b: a + b, (np.int32, np.int32))
    assert str(plus.type_signature) == "(<a=int32,b=int32> -> int32)"
    assert plus(1, 2) == 3


def test_a_local_computation_without_parameters_has_a_type():
    assert str(tff.tf_computation(lambda: 0).type_signature.result) == "int32"


def test_a_zero_that_is_an_argument_is_the_servers():
    @sf.federated_computation
    def total(x, zero):
        return sf.federated_aggregate(x, zero, lambda a, b: a + b, lambda a, b: a + b, lambda a: a)

    with pytest.raises(sf.TypeMismatchError, match=r"depends on an argument.*SF-TYPE-051"):
        total([1.0, 4.0], 0.0)


def test_a_struct_with_a_container():
    assert str(tff.StructWithPythonType([("a", np.int32)], dict)) == "<a=int32>"
    assert tff.StructWithPythonType([("a", np.int32)], dict).container.join([1]) == {"a": 1}
    assert tff.StructWithPythonType([np.int32], list).container.join([1]) == [1]


def test_8_bit_floats_without_infinity_have_extremes():
    import jax.numpy as jnp

    both = sf.federated_computation(lambda x: (sf.federated_min(x), sf.federated_max(x)))
    assert [float(v) for v in both(np.array([1, -2, 3], jnp.float8_e4m3fn))] == [-2.0, 3.0]
