"""What is refused of arguments and signatures: one sentence, with a code, at the user's line."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold import DataError, TypeMismatchError

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
