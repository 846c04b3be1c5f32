"""Client work that is a Python function, on both runtimes: what it is given, what may come back, what is counted."""

import functools
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

WORKERS = sf.Workers(2)
RUNTIMES = {"simulation": sf.Simulation(host=WORKERS), "loopback": sf.Loopback()}
both = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
DRAW = np.random.default_rng(0)
SIZES = {"a": 5, "empty": 0, "b": 3, "one": 1, "c": 8}
ROWS = {name: DRAW.normal(size=(n, 3)).astype("f") for name, n in SIZES.items()}
OFFSET = np.array([1.0, 2.0, 3.0], np.float32)


def mean_rows(message, data, key, memory):
    """A function of a module that workers cannot import: pytest made it up from this file."""
    return sf.Report({"update": sf.Contribution(data.mean(0) + OFFSET, len(data))}, {"rows": len(data)})


def one_phase(run, aggregate=None, begin=lambda params, key: jnp.zeros(3), **options):
    """The state becomes the result of the part `update`; an empty round leaves it."""

    def finalize(state, results, measured, key):
        result = results["update"]
        kept = jnp.where(jnp.isfinite(result).all(), result, state)
        counts = {"clients": measured.num_clients, "non_finite": measured.num_non_finite_clients}
        return kept, {"client_work": {**counts, **(measured.sums or {})}}

    aggregate = aggregate or {"update": sf.aggregators.mean()}
    phase = sf.Phase(lambda state, key: state, sf.HostWork(run, **options), aggregate, finalize)
    return sf.Process(sf.Round("by hand", begin, (phase,)))


def after(process, runtime, data=ROWS, rounds=1, **options):
    process = process.on(runtime)
    state, metrics = process.initialize(seed=3), {}
    for _ in range(rounds):
        state, metrics = process.next(state, data, **options)
    return state, metrics


def weighted(value, rows=ROWS):
    return sum(len(x) * value(x) for x in rows.values() if len(x)) / sum(map(len, rows.values()))


# -- functions of every kind


@both
def test_a_function_whose_module_workers_cannot_import(runtime):
    state, metrics = after(one_phase(mean_rows), runtime)
    np.testing.assert_allclose(state.algorithm, weighted(lambda x: x.mean(0)) + OFFSET, rtol=1e-5, atol=1e-6)
    assert metrics["client_work"] == {"clients": 5, "non_finite": 0, "rows": 17}  # one is not asked, and counted


@both
def test_lambdas_closures_partials_and_objects(runtime):
    large = np.arange(3, dtype=np.float32)

    def closure(message, data, key, memory):
        return sf.Report({"update": sf.Contribution(large * len(data), 1.0)})

    def given(factor, message, data, key, memory):
        return sf.Report({"update": sf.Contribution(factor * large * len(data), 1.0)})

    class Called:
        def __call__(self, message, data, key, memory):
            return closure(message, data, key, memory)

    runs = [
        closure,
        lambda message, data, key, memory: closure(message, data, key, memory),
        functools.partial(given, 1.0),
        Called(),
    ]
    sizes = [n for n in SIZES.values() if n]
    # A client without rows reports zeros of the message's shapes, and weighs nothing.
    for run in runs:
        state, _ = after(one_phase(run), runtime)
        np.testing.assert_allclose(state.algorithm, large * np.mean(sizes), rtol=1e-6)


SCRIPT = """
import numpy as np, sumfold as sf
FACTOR = 2.0
def helper(data):
    return FACTOR * data.sum()
def run(message, data, key, memory):
    return sf.Report({"update": sf.Contribution(np.float32(helper(data)), 1.0)})
phase = sf.Phase(lambda s, k: s, sf.HostWork(RUN), {"update": sf.aggregators.mean()},
                 lambda s, results, measured, k: (results["update"], {}))
process = sf.Process(sf.Round("script", lambda params, key: np.float32(0), (phase,)))
process = process.on(sf.Simulation(host=sf.Workers(1)))
state, _ = process.next(process.initialize(), [np.ones(3, "f"), np.ones(5, "f")])
print("result", float(state.algorithm))
"""


def program(arguments, text="", **options):
    ran = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, timeout=240, check=False, **options
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_a_program_from_standard_input(tmp_path):
    assert program(["-"], SCRIPT.replace("RUN", "run"), cwd=tmp_path) == ["result", "8.0"]


def test_a_script_without_a_main_guard_and_a_module_beside_it(tmp_path):
    """Run from another folder, which holds a file named like a module of Python's own."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "random.py").write_text("raise SystemExit('the current folder came first')")
    (tmp_path / "beside.py").write_text(SCRIPT.partition("phase =")[0])
    (tmp_path / "script.py").write_text("import beside\n" + SCRIPT.replace("RUN", "beside.run"))
    assert program([str(tmp_path / "script.py")], cwd=elsewhere) == ["result", "8.0"]


# -- what it is given


@both
def test_arrays_are_read_only_and_shaped_as_the_client_holds_them(runtime):
    def run(message, data, key, memory):
        x, y = data
        told = [a.flags.writeable for a in (message, x, y, memory)]
        kinds = [type(a) is np.ndarray for a in (message, x, y, memory)]
        right = x.shape == (len(y), 3) and x.dtype == np.float64 and y.dtype == np.int64
        value = np.array([any(told), all(kinds), right], np.float32)
        return sf.Report({"update": sf.Contribution(value, 1.0)}, memory=memory)

    data = {"a": (ROWS["a"].astype("d"), np.arange(5)), "b": (ROWS["b"].astype("d"), np.arange(3))}
    state, _ = after(one_phase(run, memory=lambda message: message), runtime, data)
    assert np.asarray(state.algorithm).tolist() == [0, 1, 1]


@both
def test_ready_made_batches_come_as_a_list(runtime):
    def run(message, data, key, memory):
        assert isinstance(data, list)
        value = np.array([len(data), max(len(x) for x, y in data), sum(y.sum() for x, y in data)], np.float32)
        return sf.Report({"update": sf.Contribution(value, 1.0)})

    batches = {
        "a": [(np.ones((2, 3)), np.ones(2)), (np.ones((1, 3)), np.ones(1))],
        "b": [(np.ones((3, 3)), np.ones(3))],
    }
    state, _ = after(one_phase(run), runtime, batches)
    assert np.asarray(state.algorithm).tolist() == [1.5, 2.5, 3]


def test_keys_are_equal_everywhere_and_differ_by_client_and_round():
    def run(message, data, key, memory):
        drawn = [key.generator().random(), key.generator("other").random(), key.number() % 2**20 / 2**20]
        return sf.Report({"update": sf.Contribution(np.array(drawn, "f"), 1.0)})

    process, seen = one_phase(run), []
    for runtime in RUNTIMES.values():
        bound = process.on(runtime)
        state = bound.initialize(seed=2**63 + 5)
        first, _ = bound.next(state, ROWS, clients=["a"])
        second, _ = bound.next(first, ROWS, clients=["a"])
        other, _ = bound.next(state, ROWS, clients=["b"])
        seen.append(np.stack([first.algorithm, second.algorithm, other.algorithm]))
    np.testing.assert_array_equal(seen[0], seen[1])
    assert len(set(seen[0].ravel().tolist())) == 9


@both
def test_global_generators_are_seeded_for_each_client(runtime):
    def run(message, data, key, memory):
        drawn = [random.random(), np.random.random(), len(data)]
        return sf.Report({"update": sf.Contribution(np.array(drawn, "f"), 1.0)})

    np.random.seed(1)
    before = np.random.get_state()[1].tolist()
    process = one_phase(run)
    once, _ = after(process, runtime, clients=["a"])
    again, _ = after(process, runtime, clients=["b", "a"][1:])
    other, _ = after(process, runtime, clients=["b"])
    np.testing.assert_array_equal(once.algorithm, again.algorithm)
    assert once.algorithm[0] != other.algorithm[0]
    assert once.algorithm[1] != other.algorithm[1]
    assert before == np.random.get_state()[1].tolist()


def test_both_runtimes_seed_the_global_generators_alike():
    def run(message, data, key, memory):
        drawn = np.array([random.random(), np.random.random(), 0], "f")
        return sf.Report({"update": sf.Contribution(drawn, 1.0)})

    assert assert_runtimes_agree(one_phase(run), ROWS, *RUNTIMES.values(), rounds=2).weights < 1e-6


# -- declared and undeclared shapes


def test_declared_init_memory_and_finish():
    """`run` returns a carry; `finish` weighs by the rows that the client holds, and keeps a count of its rounds."""

    def run(message, data, key, memory):
        return {"total": data.sum(0) + message + memory["rounds"], "largest": data.max()}

    def init(task, key):
        return {"total": jnp.zeros(3), "largest": jnp.float32(-1)}

    def finish(task, carry, key):
        weight = task.rows.astype(jnp.float32)
        rounds = {"rounds": task.memory["rounds"] + 1}
        return sf.Report(
            {"update": sf.Contribution(carry["total"], weight)},
            {"largest": carry["largest"], "rows": task.rows},
            rounds,
        )

    process = one_phase(run, init=init, finish=finish, memory=lambda message: {"rounds": jnp.int32(0)})
    agreement = assert_runtimes_agree(process, ROWS, *RUNTIMES.values(), rounds=3)
    assert agreement.weights < 1e-5
    state, metrics = after(process, RUNTIMES["simulation"])
    np.testing.assert_allclose(state.algorithm, weighted(lambda x: x.sum(0)), rtol=1e-5, atol=1e-6)
    largest = sum(float(x.max()) if len(x) else -1 for x in ROWS.values())  # `init` says what one without rows reports
    assert metrics["client_work"]["largest"] == pytest.approx(largest, rel=1e-5)
    assert metrics["client_work"]["rows"] == 17


@both
def test_memory_stays_with_its_client_across_rounds(runtime):
    def run(message, data, key, memory):
        value = np.full(3, memory.sum() if data.ndim else 0, "f")
        return sf.Report({"update": sf.Contribution(value, 1.0)}, memory=memory + len(data))

    process = one_phase(run, memory=lambda message: jnp.zeros(3)).on(runtime)
    state = process.initialize()
    for cohort in (["a", "b"], ["b", "empty"], ["a"], ["b"]):
        state, _ = process.next(state, ROWS, clients=cohort)
    held = {client: np.asarray(state.clients[client][0].work).tolist() for client in state.clients}
    assert held == {"a": [10] * 3, "b": [9] * 3, "empty": [0] * 3}
    assert np.asarray(state.algorithm).tolist() == [18] * 3  # what b remembered before the last round, summed


@both
def test_parts_under_other_sums(runtime):
    from sumfold.core import Stage, minimum, modular, stack

    plain = Stage(lambda public, memory, given, key: (given.value, memory), lambda s, total, key: (total, s, {}))

    def run(message, data, key, memory):
        n = len(data)
        return sf.Report(
            {
                "low": sf.Contribution(np.float32(data.min()), 1.0),
                "count": sf.Contribution(np.uint32(n), 1.0),
                "each": sf.Contribution(np.float32(n), 1.0),
            }
        )

    def init(task, key):
        return {"low": jnp.float32(jnp.inf), "count": jnp.uint32(0), "each": jnp.float32(0)}

    def finish(task, carry, key):
        values = carry.parts if isinstance(carry, sf.Report) else carry
        low = jnp.where(jnp.isfinite(values["low"]), values["low"], 1e6)
        return sf.Report({name: sf.Contribution({**values, "low": low}[name], jnp.float32(1)) for name in values})

    def carry(message, data, key, memory):
        return {name: part.value for name, part in run(message, data, key, memory).parts.items()}

    aggregate = {
        "low": plain._replace(group=minimum),
        "count": plain._replace(group=modular(16)),
        "each": plain._replace(group=stack),
    }

    def finalize(state, results, measured, key):
        each = results["each"]
        told = {"low": results["low"], "count": results["count"], "each": jnp.where(each.present, each.values, -1)}
        return state, {"client_work": told}

    phase = sf.Phase(lambda state, key: state, sf.HostWork(carry, init, finish), aggregate, finalize)
    process = sf.Process(sf.Round("sums", lambda params, key: jnp.float32(0), (phase,)))
    _, metrics = after(process, runtime)
    told = metrics["client_work"]
    assert told["low"] == pytest.approx(min(float(x.min()) for x in ROWS.values() if len(x)))
    assert told["count"] == 1
    assert told["each"][: len(SIZES)] == list(SIZES.values())


@pytest.mark.parametrize("first", ["array", "function"])
def test_two_phases_one_of_each_kind_with_what_is_kept_between(first):
    """The first phase sends the mean and keeps the client's own; the second sends the difference of the two."""

    def finish_first(task, carry, key):
        total, n = carry
        own = total / jnp.maximum(n, 1)
        return sf.Report({"update": sf.Contribution(own, n)}, {"first": n}, kept=own)

    def finish_second(task, carry, key):
        gap = jnp.abs(task.kept - task.message).sum() * carry[1]
        return sf.Report({"gap": sf.Contribution(gap, jnp.float32(1))}, {"second": carry[1]})

    def zero(task, key):
        return jnp.zeros(3), jnp.float32(0)

    def step(task, carry, batch, key):
        mask = batch.mask[:, None]
        return carry[0] + jnp.where(mask, batch.examples, 0.0).sum(0), carry[1] + batch.mask.sum().astype(jnp.float32)

    def run(message, data, key, memory):
        return data.sum(0), np.float32(len(data))

    def work(kind, finish):
        if kind == "array":
            return sf.Work(zero, step, finish, sf.Batching(size=2))
        return sf.HostWork(run, zero, finish)

    def learn(state, results, measured, key):
        return {**state, "mean": results["update"]}, {"client_work": measured.sums}

    def tell(state, results, measured, key):
        return {**state, "gap": results["gap"]}, {"client_work": measured.sums}

    def send(state, key):
        return state["mean"]

    second = "function" if first == "array" else "array"
    phases = (
        sf.Phase(send, work(first, finish_first), {"update": sf.aggregators.mean()}, learn),
        sf.Phase(send, work(second, finish_second), {"gap": sf.aggregators.sum()}, tell),
    )
    begin = lambda params, key: {"mean": jnp.zeros(3), "gap": jnp.float32(0)}
    process = sf.Process(sf.Round("two", begin, phases))
    assert assert_runtimes_agree(process, ROWS, *RUNTIMES.values(), rounds=2).weights < 1e-4
    state, metrics = after(process, RUNTIMES["simulation"])
    mean = weighted(lambda x: x.mean(0))
    gap = sum(len(x) * np.abs(x.mean(0) - mean).sum() for x in ROWS.values() if len(x))
    np.testing.assert_allclose(state.algorithm["gap"], gap, rtol=1e-5)
    assert (metrics["client_work"]["first"], metrics["client_work"]["second"]) == (17, 17)


@both
def test_a_client_out_of_the_first_phase_is_not_asked_in_the_second(runtime):
    def fails(message, data, key, memory):
        if len(data) == 3:
            raise ValueError("three rows")
        return data.sum(0), np.float32(len(data))

    def counts(message, data, key, memory):
        return np.float32(len(data))

    def zero(task, key):
        return jnp.zeros(3), jnp.float32(0)

    def finish(task, carry, key):
        return sf.Report({"update": sf.Contribution(carry[0], carry[1])}, kept=carry[1])

    def finish_second(task, carry, key):
        return sf.Report({"rows": sf.Contribution(carry + task.kept, jnp.float32(1))})

    def finalize(state, results, measured, key):
        return results.get("rows", state), {"client_work": {"clients": measured.num_clients}}

    send = lambda state, key: state
    phases = (
        sf.Phase(send, sf.HostWork(fails, zero, finish), {"update": sf.aggregators.mean()}, finalize),
        sf.Phase(
            send,
            sf.HostWork(counts, lambda task, key: jnp.float32(0), finish_second),
            {"rows": sf.aggregators.sum()},
            finalize,
        ),
    )
    process = sf.Process(sf.Round("two", lambda params, key: jnp.float32(0), phases))
    state, metrics = after(process, runtime)
    assert float(state.algorithm) == 2 * (17 - 3)
    assert metrics["client_work"] == {"clients": 4, "failed": {"b": "ValueError: three rows"}}


# -- who counts


@both
def test_nan_reports_are_left_out_and_keep_their_memory(runtime):
    def run(message, data, key, memory):
        value = data.mean(0) * (np.nan if len(data) == 3 else 1)
        return sf.Report({"update": sf.Contribution(value, len(data))}, memory=memory + 1)

    state, metrics = after(one_phase(run, memory=lambda message: jnp.zeros(1)), runtime)
    rest = {name: x for name, x in ROWS.items() if name != "b"}
    np.testing.assert_allclose(state.algorithm, weighted(lambda x: x.mean(0), rest), rtol=1e-5, atol=1e-6)
    assert metrics["client_work"] == {"clients": 4, "non_finite": 1}
    assert "b" not in state.clients
    assert "a" in state.clients


@both
def test_a_negative_weight_is_an_error_that_names_the_client(runtime):
    def run(message, data, key, memory):
        return sf.Report({"update": sf.Contribution(data.mean(0), -1.0 if len(data) == 3 else 1.0)})

    with pytest.raises(sf.DataError, match=r"client 'b' reported a weight that is negative.*SF-DATA-050"):
        after(one_phase(run), runtime)


@both
def test_a_cohort_of_clients_without_rows_changes_nothing(runtime):
    state, metrics = after(one_phase(mean_rows), runtime, clients=["empty"])
    assert np.asarray(state.algorithm).tolist() == [0, 0, 0]
    assert metrics["client_work"] == {"clients": 1, "non_finite": 0}
    state, metrics = after(one_phase(mean_rows), runtime, clients=[])
    assert metrics["client_work"] == {"clients": 0, "non_finite": 0}


@both
def test_a_failing_client_is_told_and_the_round_goes_on(runtime, caplog):
    def run(message, data, key, memory):
        if len(data) in (1, 3):
            raise RuntimeError("line one\nline two")
        return sf.Report({"update": sf.Contribution(data.mean(0), len(data))}, memory=memory + 1)

    process = one_phase(run, memory=lambda message: jnp.zeros(1))
    with caplog.at_level("WARNING", "sumfold"):
        state, metrics = after(process, runtime)
    rest = {name: x for name, x in ROWS.items() if len(x) > 3}
    np.testing.assert_allclose(state.algorithm, weighted(lambda x: x.mean(0), rest), rtol=1e-5, atol=1e-6)
    reason = "RuntimeError: line one"
    assert metrics["client_work"] == {"clients": 3, "non_finite": 0, "failed": {"b": reason, "one": reason}}
    assert set(state.clients) == {"a", "empty", "c"}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert told[0].startswith("client 'b' failed: RuntimeError: line one\nTraceback")
    assert 'raise RuntimeError("line one\\nline two")' in told[0]
    assert "sumfold/core/host.py" not in told[0]
    assert told[1] == "client 'one' failed: RuntimeError: line one"


@both
@pytest.mark.parametrize("error", [MemoryError, SystemExit, RecursionError])
def test_all_fail(runtime, error):
    def run(message, data, key, memory):
        raise error("too much")

    process = one_phase(run).on(runtime)
    state = process.initialize()
    before = [np.array(leaf) for leaf in jax.tree.leaves(state)]
    with pytest.raises(sf.WorkError) as caught:
        process.next(state, ROWS)
    assert caught.value.code == "SF-HOST-001"
    text = str(caught.value)
    assert text.startswith(f"the work of all 4 client(s) failed; client 'a': {error.__name__}: too much\nTraceback")
    assert text.count('raise error("too much")') == 1
    assert "test_host.py" in text
    assert "the state passed in is unchanged" in text
    for old, leaf in zip(before, jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(old, leaf)
    again, _ = one_phase(mean_rows).on(runtime).next(state, ROWS)
    assert int(again.round) == 1


RETURNS = {
    "None": (lambda: None, r"returned a NoneType; needed: a sumfold\.Report with the part\(s\) \['update'\]"),
    "an array": (lambda: np.zeros(3), r"returned a ndarray; needed: a sumfold\.Report"),
    "other parts": (
        lambda: sf.Report({"other": sf.Contribution(np.zeros(3), 1.0)}),
        r"returned a Report of the parts \['other'\]; needed: .*\['update'\]",
    ),
    "no contribution": (lambda: sf.Report({"update": np.zeros(3)}), r"each a Contribution\(value, weight\)"),
    "a string": (
        lambda: sf.Report({"update": sf.Contribution("text", 1.0)}),
        r"returned a Report of the parts \['update'\] \(.*needed: a tree of numeric arrays",
    ),
    "another shape": (
        lambda: sf.Report({"update": sf.Contribution(np.zeros(2), 1.0)}),
        r"returned 'parts/update/value' as float32\[2\]; needed: float32\[3\]",
    ),
    "another kind": (
        lambda: sf.Report({"update": sf.Contribution(np.zeros(3, complex), 1.0)}),
        r"returned 'parts/update/value' as complex64\[3\]; needed: float32\[3\]",
    ),
    "another tree": (
        lambda: sf.Report({"update": sf.Contribution({"w": np.zeros(3)}, 1.0)}),
        r"returned the leaves \['parts/update/value/w', .*differ at 'parts/update/value'",
    ),
    "a weight of many": (
        lambda: sf.Report({"update": sf.Contribution(np.zeros(3), np.ones(3))}),
        r"returned 'parts/update/weight' as float32\[3\]; needed: float32\[\]",
    ),
}


@both
@pytest.mark.parametrize("case", RETURNS)
def test_wrong_returns_without_a_declaration(runtime, case):
    made, words = RETURNS[case]

    def wrong(message, data, key, memory):
        return made()

    with pytest.raises(sf.WorkError, match=words) as caught:
        after(one_phase(wrong), runtime)
    assert caught.value.code == "SF-HOST-003"
    assert "wrong returned" in str(caught.value)


@both
def test_metrics_that_differ_from_the_first_clients(runtime):
    def run(message, data, key, memory):
        metrics = {"rows": len(data)} if len(data) != 3 else {"rows": len(data), "more": 1.0}
        return sf.Report({"update": sf.Contribution(data.mean(0), 1.0)}, metrics)

    with pytest.raises(sf.WorkError, match=r"differ at 'metrics/more'.*as the first client returned"):
        after(one_phase(run), runtime)


@both
def test_wrong_returns_against_a_declaration(runtime):
    def init(task, key):
        return {"w": jnp.zeros(3), "n": jnp.int32(0)}

    def finish(task, carry, key):
        return sf.Report({"update": sf.Contribution(carry["w"], jnp.float32(1))})

    for made, words in (
        ({"w": np.zeros((3, 1)), "n": 1}, r"returned 'w' as float32\[3, 1\]; needed: float32\[3\]"),
        ({"w": np.zeros(3), "n": 0.5}, r"returned 'n' as float32\[\]; needed: int32\[\]"),
        ({"w": np.zeros(3)}, r"returned the leaves \['w'\], which differ at 'n'; needed: the leaves \['n', 'w'\]"),
        (None, r"returned the leaves \[\], which differ at 'n'"),
    ):
        process = one_phase(lambda message, data, key, memory, made=made: made, init=init, finish=finish)
        with pytest.raises(sf.WorkError, match=words):
            after(process, runtime)


@both
def test_numbers_of_other_widths_and_plain_containers_are_taken(runtime):
    def run(message, data, key, memory):
        value = [data.astype(np.float64).mean(0), np.int64(len(data))]
        return sf.Report({"update": sf.Contribution(value, np.int16(1))})

    def finalize(state, results, measured, key):
        return results["update"], {}

    begin = lambda params, key: (jnp.zeros(3), jnp.float32(0))
    phase = sf.Phase(lambda s, key: s, sf.HostWork(run), {"update": sf.aggregators.mean()}, finalize)
    state, _ = after(sf.Process(sf.Round("plain", begin, (phase,))), runtime)
    assert float(state.algorithm[1]) == 17 / 4
