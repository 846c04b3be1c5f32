"""Mistakes, one test each: the class, the code, what the message names, and that the traceback ends at the line."""

import numpy as np
import pytest

import sumfold as sf
from sumfold import DataError, PlacementError, TypeMismatchError

F32, I32 = np.float32, np.int32
X = sf.type_at_clients(F32)
N = sf.type_at_clients(I32)
W = sf.type_at_server(F32)
M = sf.type_at_server(I32)
READINGS = sf.type_at_clients(sf.SequenceType(F32))

total = sf.federated_computation(lambda x: sf.federated_sum(x))
weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w))


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
