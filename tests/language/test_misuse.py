"""Mistakes, one test each: the class, the code, what the message names, and that the traceback ends at the line."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold import CompositionError, DataError, PlacementError, TypeMismatchError

F32, I32 = np.float32, np.int32
X = sf.type_at_clients(F32)
N = sf.type_at_clients(I32)
W = sf.type_at_server(F32)
M = sf.type_at_server(I32)
PAIR = sf.type_at_clients([F32, F32])
READINGS = sf.type_at_clients(sf.SequenceType(F32))

mean = sf.federated_computation(lambda x: sf.federated_mean(x))
total = sf.federated_computation(lambda x: sf.federated_sum(x))
weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w))
declared_mean = sf.federated_computation(lambda x: sf.federated_mean(x), X)
declared_total = sf.federated_computation(lambda x: sf.federated_sum(x), N)
declared_weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w), X, X)


# ---- values without a placement


def test_the_mean_of_an_unplaced_argument(refused):
    with refused(PlacementError, "SF-PLACE-008", "value to be averaged", "float32", "CLIENTS"):

        @sf.federated_computation(F32)
        def _(x):
            return sf.federated_mean(x)  # <-


def test_the_sum_of_an_unplaced_argument(refused):
    with refused(PlacementError, "SF-PLACE-008", "value to be summed", "int32"):

        @sf.federated_computation(I32)
        def _(x):
            y = x + 1
            return sf.federated_sum(y)  # <-


def test_the_broadcast_of_an_unplaced_argument(refused):
    with refused(PlacementError, "SF-PLACE-008", "value to be broadcasted", "SERVER"):

        @sf.federated_computation(F32)
        def _(x):
            return sf.federated_broadcast(x)  # <-


def test_a_map_over_an_unplaced_argument(refused):
    with refused(PlacementError, "SF-PLACE-008", "value to be mapped"):

        @sf.federated_computation(F32)
        def _(x):
            return sf.federated_map(lambda v: v, x)  # <-


def test_an_unplaced_weight(refused):
    with refused(PlacementError, "SF-PLACE-008", "weight to use in averaging"):

        @sf.federated_computation(X, F32)
        def _(x, w):
            return sf.federated_mean(x, w)  # <-


# ---- values at the wrong place


@pytest.mark.parametrize(
    "intrinsic",
    [
        sf.federated_sum,
        sf.federated_mean,
        sf.federated_min,
        sf.federated_max,
        lambda x: sf.federated_weighted_mean(x, x),  # <-
    ],
)
def test_an_aggregate_of_a_server_value(intrinsic, refused):
    with refused(PlacementError, "SF-PLACE-001", "float32@SERVER", "CLIENTS"):

        @sf.federated_computation(W)
        def _(x):
            return intrinsic(x)  # <-


def test_a_secure_sum_of_a_server_value(refused):
    with refused(PlacementError, "SF-PLACE-001", "int32@SERVER", "CLIENTS"):

        @sf.federated_computation(M)
        def _(x):
            return sf.federated_secure_sum(x, 3)  # <-


def test_the_broadcast_of_a_clients_value(refused):
    with refused(PlacementError, "SF-PLACE-001", "{float32}@CLIENTS", "SERVER"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_broadcast(x)  # <-


def test_a_weight_at_the_server(refused):
    with refused(PlacementError, "SF-PLACE-001", "weight", "float32@SERVER"):

        @sf.federated_computation(X, W)
        def _(x, w):
            return sf.federated_mean(x, w)  # <-


@pytest.mark.parametrize("structure", [lambda x, y: (x, y), lambda x, y: {"deep": [x], "server": y}])
def test_a_zip_across_placements(structure, refused):
    with refused(PlacementError, "SF-PLACE-007", "zipped", "@CLIENTS", "float32@SERVER"):

        @sf.federated_computation(X, W)
        def _(x, y):
            return sf.federated_zip(structure(x, y))  # <-


def test_a_map_across_placements(refused):
    with refused(PlacementError, "SF-PLACE-007", "mapped", "@CLIENTS", "@SERVER"):

        @sf.federated_computation(X, W)
        def _(x, y):
            return sf.federated_map(lambda a, b: a + b, (x, y))  # <-


@pytest.mark.parametrize("use", ["x + w", "w + x", "x > w", "x * w", "w ** x"])
def test_arithmetic_across_placements(use, refused):
    with refused(PlacementError, "SF-PLACE-002", use.split()[1], "{float32}@CLIENTS", "float32@SERVER"):

        @sf.federated_computation(X, W)
        def _(x, w):
            match use:
                case "x + w":
                    return x + w  # <-
                case "w + x":
                    return w + x  # <-
                case "x > w":
                    return x > w  # <-
                case "x * w":
                    return x * w  # <-
                case _:
                    return w**x  # <-


def test_a_placement_that_is_none(refused):
    with refused(PlacementError, "SF-PLACE-009", "'clients'"):

        @sf.federated_computation
        def _():
            return sf.federated_value(1, "clients")  # <-


def test_a_value_that_is_placed_already(refused):
    with refused(PlacementError, "SF-PLACE-005", "federated_value", "{float32}@CLIENTS"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_value(x, sf.SERVER)  # <-


# ---- dtypes and shapes of intrinsics


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.bool_])
def test_the_mean_of_integers(dtype, refused):
    with refused(TypeMismatchError, "SF-TYPE-048", "federated_mean", sf.to_type(dtype).__str__(), "astype"):

        @sf.federated_computation(sf.type_at_clients(dtype))
        def _(x):
            return sf.federated_mean(x)  # <-


def test_the_mean_of_integers_that_a_call_infers(refused):
    comp = sf.federated_computation(
        lambda x: sf.federated_mean(x)  # <-
    )
    with refused(TypeMismatchError, "SF-TYPE-048", "{int32}@CLIENTS"):
        comp([1, 2, 3])


@pytest.mark.parametrize("kind", [(F32, (2,)), [F32, F32], np.bool_, np.complex64])
def test_a_weight_that_is_no_number(kind, refused):
    with refused(TypeMismatchError, "SF-TYPE-049", "weight", str(sf.to_type(kind))):

        @sf.federated_computation(X, sf.type_at_clients(kind))
        def _(x, w):
            return sf.federated_mean(x, w)  # <-


def test_a_weight_of_strings_that_is_declared(refused):
    with refused(TypeMismatchError, "SF-TYPE-072", "'w'", "str"):
        sf.federated_computation(lambda x, w: sf.federated_mean(x, w), X, sf.type_at_clients(str))  # <-


def test_a_weight_of_strings(refused):
    with refused(TypeMismatchError, "SF-TYPE-072", "'w'", "client 0", "'a'"):
        weighted([1.0, 2.0], ["a", "b"])  # <-


@pytest.mark.parametrize("data", [["a", "b"], np.array(["a", "b"]), [{"name": "a"}]])
def test_strings(data, refused):
    with refused(TypeMismatchError, "SF-TYPE-072", "'x'", "strings"):
        total(data)  # <-


@pytest.mark.parametrize("shape", [(None,), (2, None)])
def test_the_sum_of_unknown_shapes(shape, refused):
    with refused(TypeMismatchError, "SF-TYPE-056", "federated_sum", "float32[", "known shape"):

        @sf.federated_computation(sf.type_at_clients((F32, shape)))
        def _(x):
            return sf.federated_sum(x)  # <-


def test_a_parameter_of_unknown_rank(refused):
    with refused(TypeMismatchError, "SF-TYPE-080", "'x'", "number of dimensions"):
        sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients(sf.TensorType(F32, None)))  # <-


def test_the_sum_of_a_sequence(refused):
    with refused(TypeMismatchError, "SF-TYPE-055", "{float32*}@CLIENTS", "sequence_sum"):

        @sf.federated_computation(READINGS)
        def _(x):
            return sf.federated_sum(x)  # <-


def test_the_sum_of_bools(refused):
    with refused(TypeMismatchError, "SF-TYPE-055", "{bool}@CLIENTS", "astype"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_sum(x > 1)  # <-


@pytest.mark.parametrize("dtype", [np.complex64, np.bool_])
def test_an_extreme_of_what_has_no_order(dtype, refused):
    with refused(TypeMismatchError, "SF-TYPE-050", "federated_max", "integers or floats"):

        @sf.federated_computation(sf.type_at_clients(dtype))
        def _(x):
            return sf.federated_max(x)  # <-


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.bool_])
def test_a_sum_with_a_dtype_that_cannot_be(dtype, refused):
    with refused(TypeMismatchError, "SF-TYPE-053", "federated_sum", np.dtype(dtype).name):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_sum(x, dtype=dtype)  # <-


def test_a_sum_with_a_dtype_that_is_none(refused):
    with refused(TypeMismatchError, "SF-TYPE-053", "abc"):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_sum(x, dtype="abc")  # <-


def test_empty_of_another_structure(refused):
    with refused(TypeMismatchError, "SF-TYPE-054", "empty with 2 arrays", "<a=float32>"):

        @sf.federated_computation(sf.type_at_clients({"a": F32}))
        def _(x):
            return sf.federated_mean(x, empty=[1.0, 2.0])  # <-


def test_a_weighted_mean_without_weight(refused):
    with refused(TypeMismatchError, "SF-TYPE-047", "federated_weighted_mean", "weight"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_weighted_mean(x, None)  # <-


# ---- federated_select


def select(keys, largest, table):
    return sf.federated_select(keys, largest, table, lambda rows, key: rows[key])  # <-


def test_select_with_wide_keys(refused):
    with refused(TypeMismatchError, "SF-TYPE-046", "client_keys", "int64[2]", "int32[N]"):
        sf.federated_computation(select, sf.type_at_clients((np.int64, (2,))), M, sf.type_at_server((F32, (3,))))


def test_select_with_an_unknown_number_of_keys(refused):
    with refused(TypeMismatchError, "SF-TYPE-046", "client_keys", "int32[?]", "known number"):
        sf.federated_computation(select, sf.type_at_clients((I32, (None,))), M, sf.type_at_server((F32, (3,))))


def test_select_with_keys_of_the_server(refused):
    with refused(PlacementError, "SF-PLACE-001", "client_keys", "SERVER"):
        sf.federated_computation(select, sf.type_at_server((I32, (2,))), M, sf.type_at_server((F32, (3,))))


def test_select_from_a_clients_value(refused):
    with refused(PlacementError, "SF-PLACE-001", "server_val", "CLIENTS"):
        sf.federated_computation(select, sf.type_at_clients((I32, (2,))), M, sf.type_at_clients((F32, (3,))))


def test_select_with_a_plain_largest_key(refused):
    with refused(PlacementError, "SF-PLACE-008", "max_key", "federated_value"):

        @sf.federated_computation(sf.type_at_clients((I32, (2,))), sf.type_at_server((F32, (3,))))
        def _(keys, table):
            return sf.federated_select(keys, 2, table, lambda rows, key: rows[key])  # <-


@pytest.mark.parametrize("key", [-1, 3])
def test_select_with_a_key_out_of_range(key, refused):
    comp = sf.federated_computation(select, sf.type_at_clients((I32, (2,))), M, sf.type_at_server((F32, (3,))))
    with refused(DataError, "SF-DATA-060", "client 1", "max_key"):
        comp([[0, 2], [1, key]], 2, [1.0, 2.0, 3.0])  # <-


def test_select_with_a_list_of_keys_whose_types_are_inferred(refused):
    comp = sf.federated_computation(
        lambda k, t: sf.federated_select(k, sf.federated_value(4, sf.SERVER), t, lambda r, key: r[key])  # <-
    )
    with refused(TypeMismatchError, "SF-TYPE-046", "client_keys", "array"):
        comp([[0, 1, 2], [4, 0, 4]], [0, 10, 20, 30, 40])


# ---- secure sums


@pytest.mark.parametrize(
    "name", ["federated_secure_sum", "federated_secure_sum_bitwidth", "federated_secure_modular_sum"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_a_secure_sum_of_what_is_no_integer(name, dtype, refused):
    with refused(TypeMismatchError, "SF-TYPE-061", name, "integers"):

        @sf.federated_computation(sf.type_at_clients(dtype))
        def _(x):
            return getattr(sf, name)(x, 4)  # <-


@pytest.mark.parametrize("bound", [-3, 0, 3.5, 2**32, True, [1, 2], None, "4"])
def test_a_bound_that_is_no_whole_number(bound, refused):
    with refused(TypeMismatchError, "SF-TYPE-062", "max_input", "whole number"):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_secure_sum(x, bound)  # <-


def test_a_bound_that_is_a_value(refused):
    with refused(TypeMismatchError, "SF-TYPE-062", "max_input", "a value of the computation"):

        @sf.federated_computation(N, M)
        def _(x, m):
            return sf.federated_secure_sum(x, m)  # <-


def test_a_bound_that_is_an_argument_of_unknown_placement(refused):
    comp = sf.federated_computation(
        lambda x, largest: sf.federated_secure_sum(x, largest)  # <-
    )
    with refused(TypeMismatchError, "SF-TYPE-062", "max_input", "a value of the computation"):
        comp([1], 3)


@pytest.mark.parametrize("bits", [0, 63])
def test_a_bitwidth_out_of_range(bits, refused):
    with refused(TypeMismatchError, "SF-TYPE-062", "bitwidth", str(bits)):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_secure_sum_bitwidth(x, bits)  # <-


@pytest.mark.parametrize("modulus", [1, 2**32 + 1])
def test_a_modulus_out_of_range(modulus, refused):
    with refused(TypeMismatchError, "SF-TYPE-062", "modulus", str(modulus)):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_secure_modular_sum(x, modulus)  # <-


def test_a_modulus_that_the_dtype_cannot_hold(refused):
    with refused(TypeMismatchError, "SF-TYPE-060", "int32", "4294967296"):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_secure_modular_sum(x, 2**32)  # <-


ten = sf.federated_computation(lambda x: sf.federated_secure_sum(x, 10), N)
bits = sf.federated_computation(lambda x: sf.federated_secure_sum_bitwidth(x, 4), N)


@pytest.mark.parametrize("data", [[1, 11], [1, -1]])
def test_a_secure_sum_out_of_range(data, refused):
    with refused(DataError, "SF-DATA-064", "client 1", "0 … 10", "federated_secure_sum"):
        ten(data)  # <-


@pytest.mark.parametrize("data", [[16, 1], [-1, 1]])
def test_a_secure_sum_out_of_its_bits(data, refused):
    with refused(DataError, "SF-DATA-064", "client 0", "0 … 15", "federated_secure_sum_bitwidth"):
        bits(data)  # <-


def test_a_secure_sum_out_of_range_names_the_clients_id(refused):
    with refused(DataError, "SF-DATA-064", "client 'b'"):
        ten({"a": 1, "b": 11})  # <-


@pytest.mark.parametrize("runtime", [sf.Simulation, sf.Loopback])
def test_a_secure_sum_out_of_range_on_a_runtime(runtime, refused):
    with refused(DataError, "SF-DATA-064", "0 … 10", "1 of 3 clients"):
        ten.on(runtime())([1, -5, 2])  # <-


def test_a_secure_sum_that_leaves_the_dtype(refused):
    comp = sf.federated_computation(lambda x: sf.federated_secure_sum(x, 2**31 - 1), N)
    with refused(DataError, "SF-DATA-062", "int32", "range"):
        comp([2**31 - 1, 1])  # <-


# ---- lists of clients


def test_lists_of_different_lengths(refused):
    with refused(DataError, "SF-DATA-073", "'x' has 2 clients", "'w' has 3"):
        weighted([1.0, 2.0], [1.0, 2.0, 3.0])  # <-


def test_declared_lists_of_different_lengths(refused):
    with refused(DataError, "SF-DATA-073", "'x' has 1 client", "'w' has 2"):
        declared_weighted([1.0], [1.0, 2.0])  # <-


def test_different_lengths_on_a_runtime(refused):
    with refused(DataError, "SF-DATA-073", "'x' has 2 clients", "'w' has 3"):
        declared_weighted.on(sf.Simulation())([1.0, 2.0], [1.0, 2.0, 3.0])  # <-


def test_mappings_of_different_clients(refused):
    with refused(DataError, "SF-DATA-073", "'x'", "'w'", "['a', 'b']", "['b', 'a']", "order"):
        weighted({"a": 1.0, "b": 2.0}, {"b": 1.0, "a": 2.0})  # <-


@pytest.mark.parametrize(
    "value", [3.0, np.float32(3.0), np.array(3.0), "abc", None, {1.0, 2.0}, iter([1.0])], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("comp", [mean, declared_mean], ids=["inferred", "declared"])
def test_no_list_where_one_is_due(value, comp, refused):
    with refused(TypeMismatchError, "SF-TYPE-070", "'x'", "CLIENTS", "one entry a client"):
        comp(value)  # <-


def test_a_scalar_jax_array_where_a_list_is_due(refused):
    with refused(TypeMismatchError, "SF-TYPE-070", "'x'", "one entry a client"):
        mean(jnp.float32(3.0))  # <-


def test_a_list_where_the_servers_number_is_due(refused):
    comp = sf.federated_computation(lambda x, w: sf.federated_sum(x) * w, X, W)
    with refused(TypeMismatchError, "SF-TYPE-073", "'w'", "[2]", "needed: float32"):
        comp([1.0, 2.0], [3.0, 4.0])  # <-


def test_a_forgotten_argument(refused):
    with refused(TypeMismatchError, "SF-TYPE-083", "no argument 'w'", "x, w"):
        weighted([1.0, 2.0])  # <-


def test_a_forgotten_declared_argument(refused):
    with refused(TypeMismatchError, "SF-TYPE-083", "no argument 'w'"):
        declared_weighted([1.0, 2.0])  # <-


def test_too_many_arguments(refused):
    with refused(TypeMismatchError, "SF-TYPE-083", "2 arguments", "1 argument"):
        mean([1.0], [2.0])  # <-


def test_an_unknown_argument(refused):
    with refused(TypeMismatchError, "SF-TYPE-083", "unknown argument 'y'"):
        mean(y=[1.0])  # <-


def test_an_argument_twice(refused):
    with refused(TypeMismatchError, "SF-TYPE-083", "'x' twice"):
        mean([1.0], x=[1.0])  # <-


def test_nobody_to_infer_a_type_from(refused):
    with refused(DataError, "SF-DATA-070", "'x'", "no client", "declare"):
        mean([])  # <-


def test_sums_over_an_unknown_number_of_clients(refused):
    comp = sf.federated_computation(lambda: sf.federated_sum(sf.federated_value(1, sf.CLIENTS)))
    with refused(DataError, "SF-DATA-072", "no argument", "clients"):
        comp()  # <-


# ---- entries that differ


@pytest.mark.parametrize(
    ("data", "code", "leaf"),
    [
        ([{"a": np.ones(2)}, {"a": np.ones(3)}], "SF-TYPE-075", "leaf a"),
        ([{"a": {"b": np.ones(2)}}, {"a": {"b": np.ones((2, 1))}}], "SF-TYPE-075", "leaf a.b"),
        ([{"a": [1.0, 2.0]}, {"a": [1.0]}], "SF-TYPE-076", "leaf a"),
        ([[1.0, [2.0]], [1.0, 2.0]], "SF-TYPE-076", "leaf [1]"),
        ([[1.0, 2.0], [1.0]], "SF-TYPE-076", "has 1 elements; needed: 2"),
        ([{"a": 1.0}, {"b": 1.0}], "SF-TYPE-076", "['b']"),
        ([{"a": 1.0}, 1.0], "SF-TYPE-076", "dict"),
        ([1.0, {"a": 1.0}], "SF-TYPE-075", "dict"),
        ([np.ones(2), np.ones(3)], "SF-TYPE-075", "(3,)"),
        ([{"a": 1.0}, {"a": None}], "SF-TYPE-072", "leaf a"),
        ([{"a": 1.0}, {"a": "s"}], "SF-TYPE-072", "leaf a"),
        ([1.0, None], "SF-TYPE-072", "None"),
        ([1.0, object()], "SF-TYPE-072", "object"),
    ],
)
def test_clients_that_differ(data, code, leaf, refused):
    with refused(TypeMismatchError, code, "client 1 of the argument 'x'", leaf):
        mean(data)  # <-


def test_clients_that_differ_name_their_ids(refused):
    with refused(TypeMismatchError, "SF-TYPE-075", "'b'", "'x'", "leaf w"):
        mean({"a": {"w": np.ones(2)}, "b": {"w": np.ones(3)}})  # <-


def test_declared_structures_that_differ(refused):
    comp = sf.federated_computation(lambda x: sf.federated_mean(x), sf.type_at_clients({"a": (F32, (2,))}))
    with refused(TypeMismatchError, "SF-TYPE-075", "client 1 of the argument 'x'", "leaf a", "(3,)"):
        comp([{"a": np.ones(2)}, {"a": np.ones(3)}])  # <-


@pytest.mark.parametrize(
    "data",
    [
        [object()],
        [len],
        np.array([1, None], object),
    ],
    ids=["object", "function", "array"],
)
def test_objects(data, refused):
    with refused(TypeMismatchError, "SF-TYPE-072", "'x'", "numbers"):
        mean(data)  # <-


def test_another_shape_than_declared(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients((F32, (2,))))
    with refused(TypeMismatchError, "SF-TYPE-073", "'x'", "[3]", "float32[2]"):
        comp([[1.0, 2.0, 3.0]])  # <-


@pytest.mark.parametrize("data", [[1.5, 2.0], [True, False]])
def test_another_kind_of_number_than_declared(data, refused):
    with refused(TypeMismatchError, "SF-TYPE-074", "'x'", "int32"):
        declared_total(data)  # <-


@pytest.mark.parametrize("data", [[1, 2**40], [1, -(2**31) - 1]])
def test_an_integer_that_does_not_fit(data, refused):
    with refused(DataError, "SF-DATA-071", "client 1 of the argument 'x'", str(data[1]), "int32"):
        total(data)  # <-


def test_a_negative_number_for_an_unsigned_type(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x), sf.type_at_clients(np.uint32))
    with refused(DataError, "SF-DATA-071", "client 1", "-1", "uint32"):
        comp([1, -1])  # <-


def test_a_number_where_a_sequence_is_declared(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(sf.sequence_sum(x)), READINGS)
    with refused(TypeMismatchError, "SF-TYPE-077", "client 1 of the argument 'x'", "float32"):
        comp([[1.0], 2.0])  # <-


def test_elements_of_another_type_than_declared(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(sf.sequence_sum(x)), READINGS)
    with refused(TypeMismatchError, "SF-TYPE-073", "client 1 of the argument 'x'", "needed: float32"):
        comp([[1.0], [[1.0, 2.0]]])  # <-


def test_a_federation_where_no_sequence_is_declared(refused):
    federation = sf.data.Federation.from_clients({"a": (np.ones((2, 2)), np.ones(2))})
    with refused(TypeMismatchError, "SF-TYPE-079", "'x'", "Federation", "float32"):
        declared_mean(federation)  # <-


# ---- signatures


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x=1: x, "'x' with a default"),
        (lambda *x: x, "*x"),
        (lambda **x: x, "**x"),
        (lambda *, k: k, "keyword-only"),
        (eval("lambda k, /: k"), "positional-only parameter 'k'"),
    ],
    ids=["default", "varargs", "kwargs", "keyword-only", "positional-only"],
)
def test_parameters_that_are_not_plain(function, named, refused):
    with refused(TypeMismatchError, "SF-TYPE-086", named):
        sf.federated_computation(function)  # <-


@pytest.mark.parametrize("types", [(X,), (X, X, X)])
def test_another_number_of_types_than_parameters(types, refused):
    with refused(TypeMismatchError, "SF-TYPE-082", f"{len(types)} type", "'x', 'y'"):
        sf.federated_computation(lambda x, y: x, *types)  # <-


@pytest.mark.parametrize("bad", ["hello", 3, None])
def test_a_type_that_is_none(bad, refused):
    with refused(TypeMismatchError, "SF-TYPE-013", "type"):
        sf.federated_computation(bad)  # <-


@Callable.register
class Odd:
    """No function, which the checks of annotations in tests let pass."""


class Unseen:
    __signature__ = "none"

    def __call__(self, x):
        return x


@pytest.mark.parametrize(("function", "word"), [(Odd(), "of a Odd"), (Unseen(), "cannot be seen")])
def test_no_function(function, word, refused):
    with refused(TypeMismatchError, "SF-TYPE-085", word, "function"):
        sf.federated_computation(X)(function)  # <-


def test_returning_none(refused):
    with refused(TypeMismatchError, "SF-TYPE-081", "returned None", "return"):

        @sf.federated_computation(X)  # <-
        def forgetful(x):
            sf.federated_sum(x)


def test_returning_none_when_called(refused):
    @sf.federated_computation
    def forgetful(x):
        sf.federated_sum(x)

    with refused(TypeMismatchError, "SF-TYPE-081", "'forgetful' returned None"):
        forgetful([1.0])  # <-


def test_returning_none_inside_of_a_structure(refused):
    with refused(TypeMismatchError, "SF-TYPE-081", "None"):
        sf.federated_computation(lambda x: {"a": sf.federated_sum(x), "b": None}, X)  # <-


@pytest.mark.parametrize("result", ["abc", len])
def test_returning_something_else(result, refused):
    with refused(TypeMismatchError, "SF-TYPE-035", "returned", "arrays"):
        sf.federated_computation(lambda x: result, X)  # <-


def test_a_local_computation_of_placed_types(refused):
    with refused(TypeMismatchError, "SF-TYPE-084", "{float32}@CLIENTS", "federated_computation"):
        sf.computation(X)(lambda x: x)  # <-


def test_a_local_computation_of_a_placed_value(refused):
    @sf.computation
    def double(v):
        return 2 * v

    with refused(TypeMismatchError, "SF-TYPE-088", "'v'", "{float32}@CLIENTS", "federated_map"):

        @sf.federated_computation(X)
        def _(x):
            return double(x)  # <-


def test_a_nested_computation_of_another_type(refused):
    with refused(TypeMismatchError, "SF-TYPE-087", "'x'", "{int32}@CLIENTS", "{float32}@CLIENTS"):

        @sf.federated_computation(N)
        def _(n):
            return declared_mean(n)  # <-


# ---- what a value cannot do


@pytest.mark.parametrize("use", ["if", "and", "not", "bool", "comparison"])
def test_a_values_truth(use, refused):
    with refused(CompositionError, "SF-COMP-051", "if", "jnp.where", "federated_map"):

        @sf.federated_computation(X)
        def _(x):
            if use == "bool":
                return bool(x)  # <-
            if use == "and":
                return x and x  # <-
            if use == "not":
                return not x  # <-
            if use == "comparison":
                return x if sf.federated_sum(x) > 0 else -x  # <-
            if x:  # <-
                return x
            return x


@pytest.mark.parametrize("use", ["float", "int", "index"])
def test_a_values_number(use, refused):
    with refused(CompositionError, "SF-COMP-051", "int32@SERVER", "federated_map"):

        @sf.federated_computation(M)
        def _(x):
            match use:
                case "float":
                    return float(x)  # <-
                case "int":
                    return int(x)  # <-
                case _:
                    return [1, 2, 3][x]  # <-


@pytest.mark.parametrize("sin", [np.sin, jnp.sin], ids=["numpy", "jax"])
@pytest.mark.parametrize("kind", [X, W], ids=["clients", "server"])
def test_a_function_of_arrays_on_a_value(sin, kind, refused):
    with refused(PlacementError, "SF-PLACE-004", "a placed value itself", "federated_map(function, value)"):

        @sf.federated_computation(kind)
        def _(x):
            return sin(x)  # <-


@pytest.mark.parametrize(
    ("sin", "kind", "code", "words"),
    [
        (np.sin, TypeMismatchError, "SF-TYPE-038", "jax.numpy"),  # tried without a place, where jnp.sin would do
        (jnp.sin, PlacementError, "SF-PLACE-004", "federated_map"),
    ],
    ids=["numpy", "jax"],
)
def test_a_function_of_arrays_on_an_argument_of_unknown_placement(sin, kind, code, words, refused):
    @sf.federated_computation
    def comp(x):
        return sf.federated_sum(sin(x))  # <-

    with refused(kind, code, words):
        comp([1.0, 2.0])


def test_a_method_of_arrays(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "astype", "federated_map"):

        @sf.federated_computation(X)
        def _(x):
            return x.astype(I32)  # <-


def test_a_name_that_is_not_there(refused):
    with refused(TypeMismatchError, "SF-TYPE-031", "['b']", "['a']"):

        @sf.federated_computation(sf.type_at_clients({"a": F32}))
        def _(x):
            return x["b"]  # <-


def test_an_attribute_that_is_not_there(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "'b'", "['a']"):

        @sf.federated_computation(sf.type_at_clients({"a": F32}))
        def _(x):
            return x.b  # <-


def test_a_position_that_is_not_there(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "[2]", "2 elements"):

        @sf.federated_computation(PAIR)
        def _(x):
            return x[2]  # <-


@pytest.mark.parametrize("use", [list, len])
@pytest.mark.parametrize("kind", [X, READINGS])
def test_iterating_over_what_is_no_structure(use, kind, refused):
    with refused(TypeMismatchError, "SF-TYPE-030", str(kind), "structure"):

        @sf.federated_computation(kind)
        def _(x):
            return use(x)  # <-


def test_calling_a_value(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "not callable"):

        @sf.federated_computation(X)
        def _(x):
            return x(1)  # <-


@pytest.mark.parametrize("other", ["a", [1.0, 2.0], {"a": 1.0}])
def test_arithmetic_with_what_is_no_number(other, refused):
    with refused(TypeMismatchError, "SF-TYPE-036", type(other).__name__, "+"):

        @sf.federated_computation(X)
        def _(x):
            return x + other  # <-


def test_arithmetic_of_shapes_that_do_not_go_together(refused):
    with refused(TypeMismatchError, "SF-TYPE-034", "float32[2]", "float32[3]"):

        @sf.federated_computation(sf.type_at_clients((F32, (2,))), sf.type_at_clients((F32, (3,))))
        def _(x, y):
            return x + y  # <-


def test_arithmetic_of_different_structures(refused):
    with refused(TypeMismatchError, "SF-TYPE-033", "<float32,float32>", "<a=float32>"):

        @sf.federated_computation(PAIR, sf.type_at_clients({"a": F32}))
        def _(x, y):
            return x + y  # <-


def test_arithmetic_on_a_sequence(refused):
    with refused(TypeMismatchError, "SF-TYPE-032", "{float32*}@CLIENTS", "sequence_map"):

        @sf.federated_computation(READINGS)
        def _(x):
            return x + 1  # <-


def test_arithmetic_on_a_wide_sum(refused):
    with refused(CompositionError, "SF-COMP-052", "int64@SERVER", "jax_enable_x64"):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_sum(x, dtype=np.int64) + 1  # <-


def test_a_map_over_a_wide_sum(refused):
    with refused(CompositionError, "SF-COMP-052", "int64@SERVER", "jax_enable_x64"):

        @sf.federated_computation(N)
        def _(x):
            return sf.federated_map(lambda v: v + 1, sf.federated_sum(x, dtype=np.int64))  # <-


# ---- mapped functions


def test_a_map_of_no_function(refused):
    with refused(TypeMismatchError, "SF-TYPE-045", "federated_map", "function"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_map(x, lambda v: v)  # <-


@pytest.mark.parametrize("function", [lambda: 1, lambda a, b, c: a], ids=["none", "three"])
def test_a_map_of_a_function_of_another_number_of_parameters(function, refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "federated_map", "positional argument"):

        @sf.federated_computation(PAIR)
        def _(x):
            return sf.federated_map(function, x)  # <-


def test_a_mapped_function_that_returns_none(refused):
    with refused(TypeMismatchError, "SF-TYPE-035", "federated_map", "None", "return"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_map(lambda v: None, x)  # <-


def test_a_mapped_function_with_shapes_that_do_not_go_together(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "float32[2]", "dot_general"):

        def product(v):
            y = v + 1
            return y @ jnp.ones((3, 3))  # <-

        sf.federated_computation(lambda x: sf.federated_map(product, x), sf.type_at_clients((F32, (2,))))


def test_a_mapped_function_that_fails(refused):
    with refused(TypeMismatchError, "SF-TYPE-036", "ZeroDivisionError"):

        def broken(v):
            return v + 1 / 0  # <-

        sf.federated_computation(lambda x: sf.federated_map(broken, x), X)


@pytest.mark.parametrize("use", ["numpy", "float", "int", "item", "index"])
def test_a_mapped_function_that_is_not_jax(use, refused):
    with refused(TypeMismatchError, "SF-TYPE-038", "not JAX", "jnp"):

        def foreign(v):
            match use:
                case "numpy":
                    return np.sin(v)  # <-
                case "float":
                    return float(v)  # <-
                case "int":
                    return int(v)  # <-
                case "item":
                    return v.item()  # <-
                case _:
                    return [1, 2, 3][v]  # <-

        sf.federated_computation(lambda n: sf.federated_map(foreign, n), N)


def test_a_mapped_function_that_decides(refused):
    with refused(TypeMismatchError, "SF-TYPE-037", "if", "jnp.where"):

        def sign(v):
            if v > 0:  # <-
                return 1.0
            return 0.0

        sf.federated_computation(lambda x: sf.federated_map(sign, x), X)


@pytest.mark.parametrize("intrinsic", [sf.federated_sum, sf.federated_broadcast, sf.federated_zip])
def test_an_intrinsic_inside_of_a_mapped_function(intrinsic, refused):
    with refused(CompositionError, "SF-COMP-053", "intrinsic inside of the function of federated_map"):
        sf.federated_computation(
            lambda x: sf.federated_map(
                lambda v: intrinsic(v),  # <-
                x,
            ),
            X,
        )


@pytest.mark.parametrize("use", ["eval", "value"])
def test_a_value_that_is_placed_inside_of_a_mapped_function(use, refused):
    def placed(v):
        return sf.federated_value(v, sf.SERVER) if use == "value" else sf.federated_eval(lambda: v, sf.SERVER)

    with refused(PlacementError, "SF-PLACE-005", "the function of federated_map", "float32@SERVER"):
        sf.federated_computation(lambda x: sf.federated_map(placed, x), X)  # <-


@pytest.mark.parametrize(
    ("use", "code"),
    [
        ("v + y", "SF-PLACE-003"),
        ("y + v", "SF-PLACE-003"),
        ("jnp.maximum", "SF-PLACE-004"),
        ("jnp.where", "SF-PLACE-004"),
        ("y", "SF-PLACE-005"),
        ("federated_sum", "SF-COMP-050"),
        ("federated_map", "SF-COMP-050"),
    ],
)
def test_a_captured_value(use, code, refused):
    kind = CompositionError if code == "SF-COMP-050" else PlacementError
    words = {
        "SF-COMP-050": "{float32}@CLIENTS outside of the computation that it belongs to",
        "SF-PLACE-004": "the function of federated_map applies a function of JAX or NumPy",
    }
    with refused(kind, code, words.get(code, "{float32}@CLIENTS"), "federated_map"):

        @sf.federated_computation(X, X)
        def _(x, y):
            def uses(v):
                match use:
                    case "v + y":
                        return v + y  # <-
                    case "y + v":
                        return y + v  # <-
                    case "jnp.maximum":
                        return jnp.maximum(v, y)  # <-
                    case "jnp.where":
                        return jnp.where(v > 0, v, y)  # <-
                    case "federated_sum":
                        return sf.federated_sum(y)  # <-
                    case "federated_map":
                        return sf.federated_map(lambda w: w, y)  # <-
                    case _:
                        return y

            return sf.federated_map(uses, x)  # <-


def test_a_captured_unplaced_value(refused):
    with refused(PlacementError, "SF-PLACE-006", "captures", "argument"):

        @sf.federated_computation(X, F32)
        def _(x, y):
            return sf.federated_map(lambda v: v + y, x)  # <-


def test_a_map_over_a_local_computation_that_sums(refused):
    with refused(CompositionError, "SF-COMP-054", "plain arrays", "outside of jax.jit and of mapped functions"):
        local = sf.computation(lambda v: sf.federated_sum(v))  # <-
        sf.federated_computation(lambda x: sf.federated_map(local, x), X)


# ---- folds


def test_an_accumulate_of_another_type(refused):
    with refused(TypeMismatchError, "SF-TYPE-052", "accumulate", "float32", "int32", "zero"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_aggregate(x, 0, lambda t, v: t + v, lambda a, b: a + b, lambda t: t)  # <-


def test_a_merge_of_another_type(refused):
    with refused(TypeMismatchError, "SF-TYPE-052", "merge", "<float32,float32>"):

        @sf.federated_computation(X)
        def _(x):
            return sf.federated_aggregate(x, 0.0, lambda t, v: t + v, lambda a, b: (a, b), lambda t: t)  # <-


def test_a_zero_that_is_a_value(refused):
    """It is found when all is traced: the traceback ends at the decorator or call, and the message has the line."""

    def function(x, zero):
        return sf.federated_aggregate(x, zero, lambda t, v: t + v, lambda a, b: a + b, lambda t: t)

    line = f"(at test_misuse.py:{function.__code__.co_firstlineno + 1})"
    with refused(TypeMismatchError, "SF-TYPE-051", f"zero of federated_aggregate {line}", "needed: a constant"):

        @sf.federated_computation(X, W)  # <-
        def _(x, zero):
            return function(x, zero)

    inferred = sf.federated_computation(lambda x: function(x, sf.federated_max(x)))
    with refused(TypeMismatchError, "SF-TYPE-051", line):
        inferred([1.0, 2.0])  # <-


def test_an_op_of_another_type(refused):
    with refused(TypeMismatchError, "SF-TYPE-041", "sequence_reduce", "int32", "float32"):

        @sf.federated_computation(READINGS)
        def _(x):
            return sf.sequence_reduce(x, 0, lambda t, v: t + v)  # <-


def test_a_placed_zero_of_a_sequence(refused):
    with refused(TypeMismatchError, "SF-TYPE-040", "zero", "{float32}@CLIENTS"):

        @sf.federated_computation(READINGS, X)
        def _(x, zero):
            return sf.sequence_reduce(x, zero, lambda t, v: t + v)  # <-


@pytest.mark.parametrize("name", ["sequence_sum", "sequence_map", "sequence_reduce"])
def test_a_fold_of_no_sequence(name, refused):
    with refused(TypeMismatchError, "SF-TYPE-039", name, "float32", "sequence"):

        @sf.federated_computation(X)
        def _(x):
            arguments: Any = {
                "sequence_sum": (x,),
                "sequence_map": (lambda v: v, x),
                "sequence_reduce": (x, 0.0, lambda t, v: t + v),
            }
            return getattr(sf, name)(*arguments[name])  # <-


def test_a_sequence_sum_of_unknown_shapes(refused):
    with refused(TypeMismatchError, "SF-TYPE-042", "float32[?,2]", "known shape"):

        @sf.federated_computation(sf.type_at_clients(sf.SequenceType((F32, (None, 2)))))
        def _(x):
            return sf.sequence_sum(x)  # <-


@pytest.mark.parametrize("runtime", [None, sf.Simulation])
def test_a_sequence_sum_that_leaves_the_dtype(runtime, refused):
    comp = sf.federated_computation(
        lambda x: sf.federated_max(sf.sequence_sum(x)), sf.type_at_clients(sf.SequenceType(I32))
    )
    comp = comp.on(runtime()) if runtime else comp
    which = "1 of 2 clients" if runtime else "client 1"
    with refused(DataError, "SF-DATA-067", f"a sequence_sum of int32 that leaves the dtype's range at {which}"):
        comp([[1], [2**31 - 1, 1]])  # <-


SEQUENCES = sf.type_at_clients(sf.SequenceType((I32, (3,))))


@pytest.mark.parametrize("name", ["sequence_map", "sequence_reduce"])
def test_a_sequence_sum_of_integers_for_each_element(name, refused):
    with refused(CompositionError, "SF-COMP-059", "sequence_sum of integers inside of", name, "jnp.sum"):

        @sf.federated_computation(SEQUENCES)
        def _(x):
            if name == "sequence_map":
                return sf.sequence_map(lambda e: sf.sequence_sum(e), x)  # <-
            return sf.sequence_reduce(x, 0, lambda t, e: t + sf.sequence_sum(e))  # <-


# ---- outside of a computation


@pytest.mark.parametrize(
    "call",
    [
        lambda: sf.federated_mean([1.0, 2.0]),  # <-
        lambda: sf.federated_sum([1, 2]),  # <-
        lambda: sf.federated_sum(np.ones(3)),  # <-
        lambda: sf.federated_weighted_mean([1.0], [1.0]),  # <-
        lambda: sf.federated_min([1, 2]),  # <-
        lambda: sf.federated_map(lambda x: x, [1, 2]),  # <-
        lambda: sf.federated_zip([1, 2]),  # <-
        lambda: sf.federated_broadcast(1.0),  # <-
        lambda: sf.federated_secure_sum([1, 2], 3),  # <-
        lambda: sf.federated_secure_sum_bitwidth([1, 2], 3),  # <-
        lambda: sf.federated_secure_modular_sum([1, 2], 3),  # <-
        lambda: sf.federated_select([[1]], 1, [1.0], lambda t, k: t[k]),  # <-
        lambda: sf.federated_aggregate([1], 0, lambda a, b: a, lambda a, b: a, lambda a: a),  # <-
    ],
)
def test_an_intrinsic_of_a_list(call, refused):
    with refused(PlacementError, "SF-PLACE-008", "federated_computation", "list"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sf.federated_value(1, sf.SERVER),  # <-
        lambda: sf.federated_eval(lambda: 1, sf.CLIENTS),  # <-
    ],
)
def test_a_constant_outside_of_a_computation(call, refused):
    with refused(CompositionError, "SF-COMP-050", "outside of a computation"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: sf.sequence_sum([1, 2]),  # <-
        lambda: sf.sequence_map(lambda v: v, [1, 2]),  # <-
        lambda: sf.sequence_reduce([1, 2], 0, lambda t, v: t + v),  # <-
    ],
)
def test_a_fold_of_a_list(call, refused):
    with refused(TypeMismatchError, "SF-TYPE-039", "list", "sequence"):
        call()


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(
            lambda: jax.jit(lambda x: total(x))(jnp.arange(3)),  # <-
        ),
        lambda: jax.jit(lambda x: declared_mean([x, x]))(1.0),  # <-
        lambda: jax.grad(lambda x: declared_mean([x, x]))(1.0),  # <-
        lambda: jax.vmap(lambda x: mean([x, x]))(jnp.ones(3)),  # <-
        pytest.param(
            lambda: jax.jit(lambda: total([1, 2]))(),  # <-
        ),
    ],
    ids=["jit", "declared", "grad", "vmap", "closed"],
)
def test_a_computation_inside_of_jax(call, refused):
    with refused(CompositionError, "SF-COMP-054", "jax.jit", "outside"):
        call()


OUTSIDE = "outside of the computation that it belongs to"


class TestStale:
    """A value that a computation left behind."""

    @pytest.fixture
    def stale(self):
        kept = []

        @sf.federated_computation(X)
        def _(x):
            kept.append(x)
            return sf.federated_sum(x)

        return kept[0]

    def test_arithmetic(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):
            stale + 1  # <-

    def test_sum(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):
            sf.federated_sum(stale)  # <-

    def test_map(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):
            sf.federated_map(lambda v: v + 1, stale)  # <-

    def test_argument(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "value of another computation"):
            declared_mean(stale)  # <-

    def test_client(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "value of another computation"):
            declared_mean([stale])  # <-

    def test_sum_in_another_computation(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):

            @sf.federated_computation(X)
            def _(x):
                return sf.federated_sum(stale)  # <-

    def test_arithmetic_in_another_computation(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):

            @sf.federated_computation(X)
            def _(x):
                return sf.federated_sum(x + stale)  # <-

    def test_result_of_another_computation(self, stale, refused):
        with refused(CompositionError, "SF-COMP-050", "{float32}@CLIENTS", OUTSIDE):
            sf.federated_computation(lambda x: stale, X)  # <-


# ---- runtimes and questions


@pytest.mark.parametrize("runtime", [3, sf.Simulation, None])
def test_something_that_is_no_runtime(runtime, refused):
    with refused(CompositionError, "SF-COMP-032", "runtime"):
        total.on(runtime)  # <-


@pytest.mark.parametrize("runtime", [sf.Simulation, sf.Loopback])
def test_clients_values_on_a_runtime(runtime, refused):
    comp = sf.federated_computation(lambda x: (sf.federated_sum(x), x + 1), X).on(runtime())
    with refused(CompositionError, "SF-COMP-056", "{float32}@CLIENTS", "aggregates"):
        comp([1.0])  # <-


def test_an_unplaced_sequence_on_a_runtime(refused):
    comp = sf.federated_computation(lambda s: sf.sequence_sum(s), sf.SequenceType(F32)).on(sf.Simulation())
    with refused(CompositionError, "SF-COMP-057", "sequence"):
        comp([1.0])  # <-


def test_the_type_of_what_was_not_called(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x))
    with refused(CompositionError, "SF-COMP-055", "not called yet"):
        print(comp.type_signature)  # <-


def test_the_explanation_of_what_was_not_called(refused):
    comp = sf.federated_computation(lambda x: sf.federated_sum(x))
    with refused(CompositionError, "SF-COMP-055", "not called yet"):
        comp.explain()  # <-


def test_a_check_of_something_else(refused):
    with refused(TypeMismatchError, "SF-TYPE-089", "function", "computation"):
        sf.check.only_secure_aggregation(lambda x: x)  # <-


def test_a_negative_weight(refused):
    with refused(DataError, "SF-DATA-061", "negative weight", "client 1"):
        declared_weighted([1.0, 2.0], [1.0, -1.0])  # <-


@pytest.mark.parametrize(
    "code", [c for c in sf.errors.CATALOG if c.startswith(("SF-COMP-05", "SF-PLACE", "SF-DATA-06"))]
)
def test_every_code_has_a_cause_and_a_remedy(code):
    entry = sf.errors.CATALOG[code]
    assert entry.cause.endswith(".")
    assert entry.remedy.endswith(".")
