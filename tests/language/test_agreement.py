"""Generated computations: called directly, on Simulation and on Loopback they give what NumPy gives, client by client.

A program is a list of steps, each an operation of the table below on results of earlier steps. An operation is said
twice: in the language, and in plain Python on one client's value, all clients' values or the server's.
"""

import inspect
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import sumfold as sf

# -- kinds of values: their place, c(lients) or s(erver), and what they are -----------------------------

FLOAT, INT, VECTOR = sf.TensorType(np.float32), sf.TensorType(np.int32), sf.TensorType(np.float32, (3,))
TYPES = {
    "f": FLOAT,
    "i": INT,
    "v": VECTOR,
    "t": sf.StructType([("a", FLOAT), ("b", VECTOR)]),
    "q": sf.SequenceType(FLOAT),
    "p": sf.SequenceType(sf.StructType([("x", sf.TensorType(np.float32, (2,))), ("y", INT)])),
}
INPUTS = {
    "x": "cf", "n": "ci", "u": "cv", "r": "ct", "readings": "cq", "rows": "cp", "more": "cq",
    "theta": "sf", "table": "sv", "limit": "si",
}  # fmt: skip

quarters = st.integers(-16, 16).map(lambda n: n / 4)
vectors = st.lists(quarters, min_size=3, max_size=3).map(lambda v: np.array(v, np.float32))
ENTRIES = {
    "f": quarters,
    "i": st.integers(-9, 20),
    "v": vectors,
    "t": st.fixed_dictionaries({"a": quarters, "b": vectors}),
    "q": st.lists(quarters, max_size=4),
    "p": st.lists(st.fixed_dictionaries({"x": vectors.map(lambda v: v[:2]), "y": st.integers(0, 9)}), max_size=4),
}


class Op(NamedTuple):
    """One operation.

    Attributes:
        takes, gives: kinds.
        language: (constant, *values) -> value, in the language.
        plain: the same in plain Python; of one client when all kinds are at the clients.
    """

    takes: tuple[str, ...]
    gives: str
    language: Callable[..., Any]
    plain: Callable[..., Any]


OPS: dict[str, Op] = {}


def op(name: str, takes: str, gives: str, language: Callable[..., Any], plain: Callable[..., Any] | None = None):
    OPS[name] = Op(tuple(takes.split()), gives, language, plain or language)


def local(name: str, takes: str, gives: str, function: Callable[..., Any]):
    """A mapped function, at both places; it is given jax.numpy or NumPy first."""
    for at in "cs":
        kinds = " ".join(at + k for k in takes.split())

        def one(c, a):
            return sf.federated_map(lambda a: function(jnp, c, a), a)

        def two(c, a, b):
            return sf.federated_map(lambda a, b: function(jnp, c, a, b), (a, b))

        language = one if len(takes.split()) == 1 else two
        op(f"{name}@{at}", kinds, at + gives, language, lambda c, *values: function(np, c, *values))


def both(name: str, takes: str, gives: str, function: Callable[..., Any]):
    """Operators, which mean the same on values of the language and on numbers; at both places."""
    for at in "cs":
        op(f"{name}@{at}", " ".join(at + k for k in takes.split()), at + gives, function)


def leafwise(function):
    return lambda c, *trees: {k: function(c, *[t[k] if isinstance(t, dict) else t for t in trees]) for k in "ab"}


local("tanh", "f", "f", lambda m, c, x: m.tanh(x) * c)
local("hinge", "f", "f", lambda m, c, x: m.maximum(x - c, 0.0))
local("blend", "f f", "f", lambda m, c, x, y: m.tanh(x) * y + c)
local("spread", "f", "v", lambda m, c, x: m.stack([x, c * x, -x]))
local("fold up", "v", "f", lambda m, c, v: v.sum() * 0.25 + c)
local("reverse", "v", "v", lambda m, c, v: v[::-1] * c)
local("dampen", "v f", "v", lambda m, c, v, x: v * m.tanh(x))
local("where", "i", "i", lambda m, c, n: m.where(n > 4, n, 7))
local("as float", "i", "f", lambda m, c, n: m.float32(n % 7) * c)
local("pair", "f v", "t", lambda m, c, x, v: {"a": m.tanh(x), "b": v + c})
local("low", "v f", "f", lambda m, c, v, x: m.minimum(v.min(), x))
both("plus", "f f", "f", lambda c, x, y: x + y)
both("minus", "f f", "f", lambda c, x, y: c - x - y)
both("times", "f", "f", lambda c, x: 0.5 * -x)
both("size", "f", "f", lambda c, x: abs(x))
both("shift", "v f", "v", lambda c, v, x: v - x)
both("item", "v", "f", lambda c, v: v[1])
both("count up", "i i", "i", lambda c, m, n: (m + 2 * n) % 97)
both("halve", "i", "i", lambda c, n: n // 2 - 3)
for place in "cs":
    zipped = (lambda c, x, v: sf.federated_zip({"a": x, "b": v})), (lambda c, x, v: {"a": x, "b": v})
    op(f"zip@{place}", f"{place}f {place}v", f"{place}t", *zipped)
    op(f"a@{place}", f"{place}t", f"{place}f", lambda c, t: t.a, lambda c, t: t["a"])
    op(f"b@{place}", f"{place}t", f"{place}v", lambda c, t: t["b"])
    op(f"move@{place}", f"{place}t {place}f", f"{place}t", lambda c, t, x: t + x, leafwise(lambda c, t, x: t + x))
    op(f"add@{place}", f"{place}t {place}t", f"{place}t", lambda c, s, t: s - t, leafwise(lambda c, s, t: s - t))
    op(
        f"turn@{place}",
        f"{place}t",
        f"{place}t",
        lambda c, t: sf.federated_map(lambda b, a: {"a": b.sum() * 0.25, "b": b + a}, t),
        lambda c, t: {"a": t["b"].sum() * 0.25, "b": t["b"] + t["a"]},
    )
op("constant@c", "", "cf", lambda c: sf.federated_value(jnp.float32(c), sf.CLIENTS), lambda c: c)
op("constant@s", "", "sf", lambda c: sf.federated_eval(lambda: jnp.float32(c), sf.SERVER), lambda c: c)
op("one", "", "ci", lambda c: sf.federated_eval(lambda: 1, sf.CLIENTS), lambda c: 1)

# sequences: folds, folds of folds, folds that depend on other values


def fold(c, values, start):
    total = start
    for value in values:
        total = 0.5 * total + value * c
    return total


def fold_rows(c, rows):
    a, b = 0.0, np.zeros(3)
    for row in rows:
        a, b = 0.5 * a + row["x"].sum(), b + np.array([row["x"][0], row["y"], c])
    return {"a": a, "b": b * 0.25}


def count_rows(c, rows, start):
    for row in rows:
        start = (3 * start + row["y"]) % 97
    return start


def select(c, n, table):
    most, fn = sf.federated_value(2, sf.SERVER), lambda t, k: t[k] * c
    return sf.federated_select(sf.federated_map(lambda n: jnp.stack([n % 3, 2 - n % 2]), n), most, table, fn)


op("sequence_sum", "cq", "cf", lambda c, q: sf.sequence_sum(q), lambda c, q: sum(q, 0.0))
op(
    "fold",
    "cq",
    "cf",
    lambda c, q: sf.sequence_reduce(q, 1.0, lambda t, e: 0.5 * t + e * c),
    lambda c, q: fold(c, q, 1.0),
)
op(
    "fold from",
    "cq cf",
    "cf",
    lambda c, q, x: sf.federated_map(lambda q, x: sf.sequence_reduce(q, x, lambda t, e: 0.5 * t + e * c), (q, x)),
    lambda c, q, x: fold(c, q, x),
)
op(
    "fold with",
    "cq cf",
    "cf",
    lambda c, q, x: sf.federated_map(
        lambda q, x: sf.sequence_reduce(q, 0.25, lambda t, e: 0.5 * t + e * jnp.tanh(x)), (q, x)
    ),
    lambda c, q, x: fold(np.tanh(x), q, 0.25),
)
op("length", "cq", "ci", lambda c, q: sf.sequence_reduce(q, 0, lambda n, _: n + 1), lambda c, q: len(q))
op(
    "longest",
    "cq cq",
    "cf",
    lambda c, q, r: sf.federated_map(
        lambda q, r: sf.sequence_reduce(r, sf.sequence_sum(q), lambda t, e: jnp.maximum(t, e)), (q, r)
    ),
    lambda c, q, r: max([sum(q, 0.0), *r]),
)
op("each", "cq", "cq", lambda c, q: sf.sequence_map(lambda e: e * 0.5 + c, q), lambda c, q: [e * 0.5 + c for e in q])
op(
    "each with",
    "cq cf",
    "cq",
    lambda c, q, x: sf.federated_map(lambda q, x: sf.sequence_map(lambda e: e - jnp.tanh(x), q), (q, x)),
    lambda c, q, x: [e - np.tanh(x) for e in q],
)
op(
    "each row",
    "cp",
    "cq",
    lambda c, p: sf.sequence_map(lambda x, y: x.sum() - y.astype(jnp.float32) * c, p),
    lambda c, p: [row["x"].sum() - row["y"] * c for row in p],
)
op(
    "fold rows",
    "cp",
    "ct",
    lambda c, p: sf.federated_map(
        lambda t: {"a": t["a"], "b": t["b"] * 0.25},
        sf.sequence_reduce(
            p,
            {"a": 0.0, "b": np.zeros(3, np.float32)},
            lambda t, e: {
                "a": 0.5 * t["a"] + e["x"].sum(),
                "b": t["b"] + jnp.stack([e["x"][0], e["y"].astype(jnp.float32), jnp.float32(c)]),
            },
        ),
    ),
    fold_rows,
)
op(
    "count rows",
    "cp ci",
    "ci",
    lambda c, p, n: sf.federated_map(lambda p, n: sf.sequence_reduce(p, n, lambda t, e: (3 * t + e["y"]) % 97), (p, n)),
    count_rows,
)
op(
    "fold array",
    "cv cf",
    "cf",
    lambda c, v, x: sf.federated_map(
        lambda v, x: sf.sequence_reduce(sf.sequence_map(lambda e: e * c, v), x, lambda t, e: 0.5 * t + e), (v, x)
    ),
    lambda c, v, x: fold(c, v, x),
)

# from the server to the clients, and back

for kind in "fivt":
    op(f"broadcast {kind}", f"s{kind}", f"c{kind}", lambda c, x: sf.federated_broadcast(x), lambda c, x: x)
op("select", "ci sv", "cq", select, lambda c, n, t: [t[n % 3] * c, t[2 - n % 2] * c])


def per_leaf(function):
    """The function of all clients' numbers, for structures leaf by leaf."""

    def run(c, values, *rest):
        if isinstance(values[0], dict):
            return {k: run(c, [v[k] for v in values], *rest) for k in values[0]}
        return function(c, values, *rest)

    return run


def weighted(c, values, weights):
    return (
        sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights) if sum(weights) else c + 0 * values[0]
    )


def mean_square(c, values):
    return sum(0.25 * np.minimum(v * v, 4.0) for v in values) / len(values)


def two_largest(c, values):
    return np.array([*np.sort([-50.0, -50.0, *values])[-2:], len(values)])


def keep_two(total, x):
    return jnp.sort(jnp.append(total[0], x))[-2:], total[1] + 1


def merge_two(a, b):
    return jnp.sort(jnp.concatenate([a[0], b[0]]))[-2:], a[1] + b[1]


for kind in "fivt":
    op(f"sum {kind}", f"c{kind}", f"s{kind}", lambda c, x: sf.federated_sum(x), per_leaf(lambda c, x: sum(x)))
for kind in "fvt":
    op(
        f"mean {kind}",
        f"c{kind}",
        f"s{kind}",
        lambda c, x: sf.federated_mean(x),
        per_leaf(lambda c, x: sum(x) / len(x)),
    )
    op(
        f"weighted {kind}",
        f"c{kind} ci",
        f"s{kind}",
        lambda c, x, n: sf.federated_mean(x, n % 4, empty=c),
        lambda c, x, n: per_leaf(weighted)(c, x, [w % 4 for w in n]),
    )
    op(
        f"float weights {kind}",
        f"c{kind} cf",
        f"s{kind}",
        lambda c, x, w: sf.federated_weighted_mean(x, abs(w) + 0.5),
        lambda c, x, w: per_leaf(weighted)(c, x, [abs(v) + 0.5 for v in w]),
    )
for kind in "fivt":
    op(
        f"min {kind}",
        f"c{kind}",
        f"s{kind}",
        lambda c, x: sf.federated_min(x),
        per_leaf(lambda c, x: np.min(x, axis=0)),
    )
    op(
        f"max {kind}",
        f"c{kind}",
        f"s{kind}",
        lambda c, x: sf.federated_max(x),
        per_leaf(lambda c, x: np.max(x, axis=0)),
    )
op(
    "secure",
    "ci",
    "si",
    lambda c, n: sf.federated_secure_sum(abs(n) % 50, 49),
    lambda c, n: sum(abs(k) % 50 for k in n),
)
op(
    "bitwidth",
    "ci",
    "si",
    lambda c, n: sf.federated_secure_sum_bitwidth(n % 16, 4),
    lambda c, n: sum(k % 16 for k in n),
)
op("modular", "ci", "si", lambda c, n: sf.federated_secure_modular_sum(n, 13), lambda c, n: sum(n) % 13)
op(
    "xor",
    "ci",
    "si",
    lambda c, n: sf.federated_aggregate(n, np.int32(5), lambda t, k: t ^ k, lambda s, t: s ^ t ^ 5, lambda t: t % 97),
    lambda c, n: int(np.bitwise_xor.reduce([5, *n])) % 97,
)
op(
    "mean square",
    "cf",
    "sf",
    lambda c, x: sf.federated_aggregate(
        x,
        {"total": 0.0, "clients": 0},
        lambda t, x: {"total": t["total"] + 0.25 * jnp.minimum(x * x, 4.0), "clients": t["clients"] + 1},
        lambda s, t: {"total": s["total"] + t["total"], "clients": s["clients"] + t["clients"]},
        lambda t: t["total"] / t["clients"].astype(jnp.float32),
    ),
    mean_square,
)
op(
    "two largest",
    "cf",
    "sv",
    lambda c, x: sf.federated_aggregate(
        x,
        (np.full(2, -50.0, np.float32), 0),
        keep_two,
        merge_two,
        lambda t: jnp.append(t[0], t[1].astype(jnp.float32)),
    ),
    two_largest,
)


# -- programs -------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """Inputs by name, steps (operation, constant, operands), and the values that are returned, by number."""

    inputs: tuple[str, ...]
    steps: tuple[tuple[str, float, tuple[int, ...]], ...]
    returned: tuple[int, ...]
    together: bool

    def kinds(self) -> list[str]:
        return [INPUTS[name] for name in self.inputs] + [OPS[name].gives for name, *_ in self.steps]

    def computation(self) -> sf.Computation:
        """In the language: a parameter for each input, or one structure of all that clients hold."""
        held = [n for n in self.inputs if INPUTS[n][0] == "c"]
        parameters = {n: TYPES[INPUTS[n][1]] for n in self.inputs}
        if self.together:
            parameters = {n: t for n, t in parameters.items() if n not in held}
            parameters["held"] = sf.StructType([(n, TYPES[INPUTS[n][1]]) for n in held])
        at_server = [n for n in parameters if n != "held" and INPUTS[n][0] == "s"]

        def program(*arguments):
            by_name = dict(zip(parameters, arguments, strict=True))
            values = [by_name[n] if n in by_name else by_name["held"][n] for n in self.inputs]
            for name, c, operands in self.steps:
                values.append(OPS[name].language(c, *[values[i] for i in operands]))
            return tuple(values[i] for i in self.returned)

        plain = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in parameters]
        program.__signature__ = inspect.Signature(plain)
        types = [sf.type_at_server(t) if n in at_server else sf.type_at_clients(t) for n, t in parameters.items()]
        return sf.federated_computation(*types)(program)

    def arguments(self, data: dict[str, Any]) -> list[Any]:
        held = [n for n in self.inputs if INPUTS[n][0] == "c"]
        if not self.together:
            return [data[n] for n in self.inputs]
        columns = [data[n] for n in held]
        together = [dict(zip(held, row, strict=True)) for row in zip(*columns, strict=True)]
        return [*[data[n] for n in self.inputs if n not in held], together]

    def in_numpy(self, data: dict[str, Any]) -> tuple[list[Any], float]:
        """The results by loops over clients, in 64 bits, and the largest number on the way."""
        number = len(next(data[n] for n in self.inputs if INPUTS[n][0] == "c"))
        values = [wide(data[n]) for n in self.inputs]
        for name, c, operands in self.steps:
            takes, gives, _, plain = OPS[name]
            given = [values[i] for i in operands]
            if gives[0] == "s":
                values.append(plain(c, *given))
                continue
            each = [v if kind[0] == "c" else [v] * number for v, kind in zip(given, takes, strict=True)]
            values.append([plain(c, *[v[k] for v in each]) for k in range(number)])
        return [values[i] for i in self.returned], max(map(size, values))


def wide(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: wide(v) for k, v in value.items()}
    if isinstance(value, list):
        return [wide(v) for v in value]
    return value.astype(np.float64) if isinstance(value, np.ndarray) else value


def size(value: Any) -> float:
    if isinstance(value, dict | list):
        return max(map(size, value.values() if isinstance(value, dict) else value), default=0.0)
    return float(np.abs(value).max())


GROUPS = {
    "sum": [n for n, o in OPS.items() if o.gives[0] == "s" and o.takes and o.takes[0][0] == "c"],
    "broadcast": [n for n, o in OPS.items() if o.gives[0] == "c" and any(k[0] == "s" for k in o.takes)],
    "sequence": [n for n, o in OPS.items() if any(k[1] in "qp" for k in o.takes)],
    "server": [n for n, o in OPS.items() if o.gives[0] == "s" and not any(k[0] == "c" for k in o.takes)],
}
GROUPS["client"] = [n for n in OPS if not any(n in group for group in GROUPS.values())]
ORDER = ["sum", "broadcast", "client", "sequence", "sum", "broadcast", "client", "server"]


def programs(most: int = 9, aggregated: bool = True) -> st.SearchStrategy[Program]:
    """From a number each: drawing every choice would give many examples that differ in a constant alone."""
    return st.integers(0, 2**32).map(lambda seed: made(random.Random(seed), most, aggregated))


def made(draw: random.Random, most: int, aggregated: bool) -> Program:
    """Steps on whatever kinds there are; recent values are preferred, so that chains arise."""
    inputs = draw.sample(list(INPUTS), draw.randint(1, 4))
    if not any(INPUTS[n][0] == "c" for n in inputs):
        inputs.append("x")
    kinds = [INPUTS[n] for n in inputs]
    steps: list[tuple[str, float, tuple[int, ...]]] = []
    used: set[int] = set()

    def append(name: str, operands: list[int]) -> None:
        steps.append((name, draw.choice([0.5, -1.0, 1.5]), tuple(operands)))
        used.update(operands)
        kinds.append(OPS[name].gives)

    for _ in range(draw.randint(3, most)):
        offered = {g: [n for n in names if set(OPS[n].takes) <= set(kinds)] for g, names in GROUPS.items()}
        if steps and draw.random() < 0.75:  # go on with what was just made
            newest = {g: [n for n in names if kinds[-1] in OPS[n].takes] for g, names in offered.items()}
            offered = newest if any(newest.values()) else offered
        name = draw.choice(offered[draw.choice([g for g in ORDER if offered[g]])])
        among = [[i for i in reversed(range(len(kinds))) if kinds[i] == kind] for kind in OPS[name].takes]
        operands = [draw.choice(candidates[:3]) for candidates in among]
        if kinds[-1] in OPS[name].takes:
            operands[OPS[name].takes.index(kinds[-1])] = len(kinds) - 1
        append(name, operands)
    if aggregated:
        finals = {"cf": "mean f", "ci": "sum i", "cv": "max v", "ct": "sum t", "cq": "sequence_sum", "cp": "fold rows"}
        for i in range(len(kinds)):
            at = i
            while kinds[at][0] == "c" and at not in used:
                append(finals[kinds[at]], [at])
                at = len(kinds) - 1
    returned = [i for i in range(len(kinds)) if i not in used and kinds[i] != "cp"] or [len(kinds) - 1]
    return Program(tuple(inputs), tuple(steps), tuple(returned), draw.random() < 0.5)


@st.composite
def held(draw: Any, program: Program) -> dict[str, Any]:
    number = draw(st.integers(1, 6))
    data = {}
    for name in program.inputs:
        entry = ENTRIES[INPUTS[name][1]]
        data[name] = draw(st.lists(entry, min_size=number, max_size=number) if INPUTS[name][0] == "c" else entry)
    return data


def assert_alike(got: Any, expected: Any, largest: float, where: str) -> None:
    """Floats to 2e-5 of themselves, or of the largest number that they come from; integers exactly."""
    if isinstance(expected, dict):
        assert set(got) == set(expected), where
        for k, v in expected.items():
            assert_alike(got[k], v, largest, f"{where}.{k}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for k, (a, b) in enumerate(zip(got, expected, strict=True)):
            assert_alike(a, b, largest, f"{where}[{k}]")
    elif np.asarray(expected).dtype.kind == "i" and np.asarray(got).dtype.kind == "i":
        np.testing.assert_array_equal(got, expected, err_msg=where)
        assert np.asarray(got).dtype == np.int32, where
    else:
        assert np.asarray(got).dtype == np.float32, f"{where}: {np.asarray(got).dtype}"
        assert np.shape(got) == np.shape(expected), where
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6 * max(1.0, largest), err_msg=where)


def budget(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture]
    # Every example compiles a program of its own: no time to shrink one that fails, they are small as they are.
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=slow,
    )


def check(program: Program, data: dict[str, Any], *runtimes: Any) -> None:
    """On these runtimes, of which None is none."""
    expected, largest = program.in_numpy(data)
    computation, arguments = program.computation(), program.arguments(data)
    for runtime in runtimes:
        results = (computation if runtime is None else computation.on(runtime))(*arguments)
        name = "called" if runtime is None else type(runtime).__name__
        for i, (result, wanted, t) in enumerate(zip(results, expected, computation.type_signature.result, strict=True)):
            if t.placement is sf.CLIENTS and t.all_equal:
                wanted = wanted[0]  # one value stands for all
            assert_alike(result, wanted, largest, f"{name}: result {i}")


@budget(22)
@given(st.data())
def test_a_call_is_what_numpy_says(data):
    program = data.draw(programs(aggregated=False))
    check(program, data.draw(held(program)), None)


@budget(9)
@given(st.data())
def test_simulation_is_what_numpy_says(data):
    program = data.draw(programs())
    check(program, data.draw(held(program)), sf.Simulation())


@budget(5)
@given(st.data())
def test_loopback_is_what_numpy_says(data):
    program = data.draw(programs(most=7))
    check(program, data.draw(held(program)), sf.Loopback())


def test_every_operation_is_what_numpy_says():
    """Each on its own inputs, so that the generated programs leave none out."""
    sources = {kind: next(n for n, k in INPUTS.items() if k == kind) for kind in set(INPUTS.values())}
    sources["st"] = None
    data = {
        "x": [1.5, -2.0, 0.25], "n": [3, -4, 11], "u": [np.array([1, 2, -3], np.float32)] * 3,
        "r": [{"a": 0.5, "b": np.array([k, 1, 2], np.float32)} for k in range(3)],
        "readings": [[1.0, 2.0], [], [-3.0]], "more": [[], [0.5], [1.0, 1.5, -2.0]],
        "rows": [[], [{"x": np.ones(2, np.float32), "y": 2}] * 2, [{"x": np.zeros(2, np.float32), "y": 9}]],
        "theta": 0.75, "table": np.array([4, 5, 6], np.float32), "limit": 3,
    }  # fmt: skip
    steps, returned = [("max t", 0.5, (list(INPUTS).index("r"),))], []
    for name, operation in OPS.items():
        if operation.gives == "cp":
            continue
        operands = [len(INPUTS) if k == "st" else list(INPUTS).index(sources[k]) for k in operation.takes]
        steps.append((name, 1.5, tuple(operands)))
        returned.append(len(INPUTS) + len(steps) - 1)
    program = Program(tuple(INPUTS), tuple(steps), tuple(returned), together=False)
    check(program, data, None)
    on_runtimes = program._replace(returned=tuple(i for i in returned if program.kinds()[i][0] == "s"))
    check(on_runtimes, data, sf.Simulation(), sf.Loopback())


@pytest.mark.parametrize("number", [1, 4])
def test_many_exchanges(number):
    """A chain of exchanges of any length: each needs the one before."""
    steps = [("mean f", 0.5, (0,))]
    for _ in range(number):
        last = len(steps)
        steps += [("broadcast f", 0.5, (last,)), ("blend@c", 0.5, (0, last + 1)), ("mean f", 0.5, (last + 2,))]
    program = Program(("x",), tuple(steps), (len(steps),), together=False)
    assert len(program.computation().program.plan.clients) == number + 1
    check(program, {"x": [1.0, -2.0, 0.5]}, sf.Simulation())


@sf.federated_computation(sf.type_at_clients(TYPES["q"]), sf.type_at_clients(TYPES["q"]))
def _products(q, r):
    """A sum of products, with the inner sum first; what the refused ones below ask for."""

    def body(q, r):
        total = sf.sequence_sum(r)
        return sf.sequence_reduce(q, 0.0, lambda t, e: t + e * total)

    return sf.federated_sum(sf.federated_map(body, (q, r)))


def test_a_fold_before_another():
    for run in (_products, _products.on(sf.Simulation())):
        assert run([[1.0, 2.0], [3.0], []], [[1.0], [], [2.0, 5.0]]) == 3.0


def times(q, captured):
    return sf.sequence_reduce(q, 0.0, lambda t, e: t + e * sf.sequence_sum(captured))  # <-


READS: dict[str, Any] = {
    "op": lambda q, r, v: sf.sequence_reduce(q, 0.0, lambda t, e: t + e * sf.sequence_sum(r)),  # <-
    "map": lambda q, r, v: sf.sequence_sum(sf.sequence_map(lambda e: e * sf.sequence_sum(r), q)),  # <-
    "map itself": lambda q, r, v: sf.sequence_sum(sf.sequence_map(lambda e: e * sf.sequence_sum(q), q)),  # <-
    "an array's": lambda q, r, v: times(q, sf.sequence_map(lambda e: 2 * e, v)),
    "jit": lambda q, r, v: jax.jit(lambda: sf.sequence_sum(q))(),  # <-
    "cond": lambda q, r, v: jax.lax.cond(True, lambda: sf.sequence_sum(q), lambda: 0.0),  # <-
    "fori_loop": lambda q, r, v: jax.lax.fori_loop(0, 1, lambda i, t: t + sf.sequence_sum(q), 0.0),  # <-
    "vmap": lambda q, r, v: jax.vmap(lambda z: z * sf.sequence_sum(q))(v)[0],  # <-
    "grad": lambda q, r, v: jax.grad(lambda z: z * sf.sequence_sum(q))(1.0),  # <-
}


REFUSAL = sf.CompositionError, "SF-COMP-060", "a sequence of type float32*", "where JAX traces another function"


@pytest.mark.parametrize("where", READS)
def test_a_sequence_that_is_read_where_no_client_reads_rows(where, refused):
    """Refused when it is traced, before anything runs it."""
    with refused(*REFUSAL):

        @sf.federated_computation(*map(sf.type_at_clients, (TYPES["q"], TYPES["q"], VECTOR)))
        def _(q, r, v):
            return sf.federated_sum(sf.federated_map(READS[where], (q, r, v)))


@pytest.mark.parametrize("way", ["called", "Simulation", "Loopback"])
def test_a_sequence_that_is_read_inside_of_jit_when_types_are_inferred(way, refused):
    comp = sf.federated_computation(
        lambda d: sf.federated_sum(
            sf.federated_map(
                lambda q: jax.jit(lambda: sf.sequence_sum(sf.sequence_map(lambda x, y: x, q)))(),  # <-
                d,
            )
        )
    )
    federation = sf.data.Federation.from_clients({"a": (np.ones(2, np.float32), np.ones(2, np.float32))})
    comp = comp if way == "called" else comp.on(getattr(sf, way)())
    with refused(sf.CompositionError, "SF-COMP-060", "where JAX traces another function"):
        comp(federation)
