"""What is refused while a computation is traced, and outside of it: one sentence, with a code, at the user's line."""

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
declared_mean = sf.federated_computation(lambda x: sf.federated_mean(x), X)
declared_weighted = sf.federated_computation(lambda x, w: sf.federated_mean(x, w), X, X)


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

    line = f"(at test_misuse_traced.py:{function.__code__.co_firstlineno + 1})"
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
