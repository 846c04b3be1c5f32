"""What a user may get wrong about the engine, and what the message says."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning import checks
from sumfold.simulation import memory


def federation(clients=12, features=4, rows=6):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients * rows, features)).astype(np.float32)
    return sf.Federation.from_arrays(x, x[:, 0] - x[:, 1], offsets=np.arange(clients + 1) * rows)


def squared(outputs, y):
    return (outputs - y) ** 2


def process(loss=squared, features=4, **options):
    model = sf.models.from_functions(lambda key: jnp.zeros(features), lambda w, x: x @ w, loss)
    made = sf.learning.fed_avg(model, optax.adam(0.05), batching=sf.Batching(size=2))
    return made.on(sf.Simulation(**options))


def trained(made, fed, rounds=3):
    state = made.initialize()
    for _ in range(rounds):
        state, _ = made.next(state, fed)
    return np.asarray(made.get_model_weights(state))


# -- lanes that do not fit

LANE = 2 * (3 * 16 + 4 + 16) + 20
"""Bytes: weights, Adam's two moments and its count, and four sums, twice; and a gradient as large as the message."""


@pytest.mark.parametrize(
    ("free", "lanes"), [(10**6, 16), (2 * 16 * LANE, 16), (2 * 16 * LANE - 2, 8), (4 * LANE, 2), (4 * LANE - 2, 0)]
)
def test_lanes_are_halved_until_they_fit(free, lanes, monkeypatch, caplog):
    monkeypatch.setattr(memory, "free", lambda device: free)
    fed, made = federation(64), process(streams=1, lanes=16)
    weights = trained(made, fed)
    chosen = made._run.chosen()
    assert (chosen["lanes"], chosen["kernel"]) == (lanes, "lanes" if lanes else "sequential")
    if lanes < 16:
        assert chosen["why"].startswith(f"given 16 lanes, {16 * LANE:,} bytes in one stream, and ")
        assert caplog.text.count("16 lanes do not fit the device") == 1
        assert f"going on with {f'{lanes} lanes' if lanes else 'one client after the other'}" in caplog.text
    else:
        assert chosen["why"] == "given"
        assert not caplog.records
    monkeypatch.undo()
    np.testing.assert_allclose(weights, trained(process(streams=1, kernel="sequential"), fed), rtol=1e-5)


def test_a_resumed_run_keeps_the_lanes_that_fitted(tmp_path, monkeypatch, caplog):
    fed, run = federation(64), {"checkpoint": tmp_path, "progress": False}
    monkeypatch.setattr(memory, "free", lambda device: 16 * LANE)
    history = sf.train(process(streams=1, lanes=16), fed, rounds=2, **run)
    assert "8 lanes in a stream, 1 streams at most (given 16 lanes, " in str(history.profile())
    monkeypatch.undo()
    again = process(streams=1, lanes=16)
    sf.train(again, fed, rounds=3, **run)
    assert again._run.chosen()["lanes"] == 8
    assert caplog.text.count("going on with") == 1, "said by the run that chose"


# -- calls back into Python, and side effects


def host(values):
    return np.asarray(values)


def pure(outputs, y):
    shape = jax.ShapeDtypeStruct(outputs.shape, outputs.dtype)
    called = jax.pure_callback(host, shape, jax.lax.stop_gradient(outputs), vmap_method="sequential")
    return (called - y) ** 2


def io(outputs, y):
    shape = jax.ShapeDtypeStruct(outputs.shape, outputs.dtype)
    return (jax.experimental.io_callback(host, shape, jax.lax.stop_gradient(outputs)) - y) ** 2


def printed(outputs, y):
    jax.debug.print("loss of {}", outputs.sum())
    return squared(outputs, y)


def told(outputs, y):
    jax.debug.callback(lambda value: print("loss of", value), outputs.sum())
    return squared(outputs, y)


RUNTIMES = {
    "whole": sf.Simulation(streams=1, kernel="sequential"),
    "side by side": sf.Simulation(streams=2, kernel="sequential"),
    "lanes": sf.Simulation(streams=2, lanes=4),
    "deterministic": sf.Simulation(streams=2, deterministic=True),
    "loopback": sf.Loopback(),
}
EXPORTED = ("deterministic", "loopback")


def refusal(loss, runtime):
    made, fed = process(loss).on(RUNTIMES[runtime]), federation()
    with pytest.raises(sf.CompositionError) as caught:
        made.next(made.initialize(), fed)
    return caught.value


def line_of(function, word):
    """Where in this file the line of a function is that has this word."""
    lines, first = inspect.getsourcelines(function)
    return f"test_bad_input.py:{next(first + n for n, line in enumerate(lines) if word in line)}:"


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("loss", [pure, io], ids=["pure_callback", "io_callback"])
def test_a_call_whose_result_is_used_works_nowhere(loss, runtime):
    error = refusal(loss, runtime)
    assert error.code == "SF-COMP-029"
    assert f"calls back into Python: {loss.__name__}_callback in the client's step at " in error.came
    assert line_of(loss, "callback(") in error.came
    assert error.needed == "an array program that can be sent to a client"
    assert "write it in jax.numpy instead" in error.do


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("loss", [printed, told], ids=["print", "callback"])
def test_a_print_is_shown_where_programs_run_and_refused_where_they_are_sent(loss, runtime, capfd):
    if runtime in EXPORTED:
        error = refusal(loss, runtime)
        assert error.code == "SF-COMP-029"
        assert "jax.debug.print or jax.debug.callback in the client's step at " in error.came
        assert line_of(loss, "jax.debug") in error.came
        assert "sf.Simulation() without deterministic=True shows them" in error.do
        return
    fed = federation()
    loud, quiet = (process(some).on(RUNTIMES[runtime]) for some in (loss, squared))
    weights = trained(loud, fed, rounds=1)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("loss of") >= 12 * 3
    np.testing.assert_array_equal(weights, trained(quiet, fed, rounds=1))


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_value_that_was_put_away(runtime):
    kept = []

    def loss(outputs, y):
        kept.append(squared(outputs, y).mean())
        return squared(outputs, y) + kept[0]

    error = refusal(loss, runtime)
    assert error.code == "SF-COMP-115"
    assert "put away while the function that made it was traced" in error.came
    assert line_of(loss, "kept[0]") in error.came
    assert "return it as a metric" in error.do


def test_a_value_that_was_put_away_by_a_round_of_ones_own():
    kept = []
    made = process()

    def step(task, carry, batch, key):
        kept.append(batch.mask.sum())
        return made.round.phases[0].work.step(task, carry, batch, key)._replace(num_examples=kept[0])

    phase = made.round.phases[0]
    round = made.round._replace(phases=(phase._replace(work=phase.work._replace(step=step)),))
    with pytest.raises(sf.CompositionError, match="put away while the function") as caught:
        sf.testing.check_round(round, jnp.zeros(4), (np.ones((2, 4), np.float32), np.ones(2, np.float32)))
    assert caught.value.code == "SF-COMP-115"


@pytest.mark.parametrize("runtime", ["whole", "side by side", "loopback"])
def test_a_value_that_the_server_put_away(runtime):
    kept, made = [], process()
    phase = made.round.phases[0]

    def finalize(state, results, measured, key):
        kept.append(measured.num_clients)
        after, metrics = phase.finalize(state, results, measured, key)
        return after, {**metrics, "finalizer": {"before": kept[0]}}

    def twice():  # the second time at the latest: what closes a round may be traced before its turn too
        for _ in range(2):
            own = sf.learning.process.Process(round, made.model, made.batching, made.parts, made.with_parts)
            own = own.on(RUNTIMES[runtime])
            own.next(own.initialize(), federation())

    round = made.round._replace(phases=(phase._replace(finalize=finalize),))
    with pytest.raises(sf.CompositionError) as caught:
        twice()
    assert caught.value.code == "SF-COMP-115"


# -- another program each time

CALLS = []


def counting(outputs, y):
    CALLS.append(1)
    return squared(outputs, y) * len(CALLS)


def drawing(outputs, y):
    return squared(outputs, y) + np.random.default_rng().random(2)[: len(y)].astype(np.float32)


def choosing(outputs, y):
    CALLS.append(1)
    return squared(outputs, y) if len(CALLS) % 2 else jnp.abs(outputs - y)


def late(outputs, y):
    return jax.lax.cond(outputs.sum() > 0, lambda: squared(outputs, y) * np.random.default_rng().random(), lambda: y)


@pytest.mark.parametrize(
    ("loss", "differs", "word"),
    [
        (counting, "the constant ", "len(CALLS)"),
        (drawing, "a constant float32[2] became a constant float32[2]", "default_rng"),
        (choosing, " became ", None),
        (late, "the constant ", "default_rng"),
    ],
    ids=["counter", "numpy", "branch", "in a branch of the program"],
)
def test_another_program_each_time_is_refused_under_deterministic(loss, differs, word):
    error = refusal(loss, "deterministic")
    assert error.code == "SF-COMP-114"
    assert "another program each time it is traced: in the client's step, " in error.came
    assert differs in error.came
    assert word is None or line_of(loss, word) in error.came
    assert error.needed == "a program that depends on its arguments alone, for deterministic=True"
    assert "draw from the key" in error.do
    made = process(loss)
    with pytest.raises(sf.CompositionError, match="for the same numbers in every process") as caught:
        sf.testing.check_round(made.round, jnp.zeros(4), (np.ones((2, 4), np.float32), np.ones(2, np.float32)))
    assert caught.value.code == "SF-COMP-114"


def test_what_a_seed_fixes_is_the_same_program():
    def loss(outputs, y):
        return squared(outputs, y) + np.random.default_rng(1).random(len(y)).astype(np.float32)

    trained(process(loss).on(RUNTIMES["deterministic"]), federation(), rounds=1)


# -- labels that wrapped


def sparse(outputs, y):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, y.astype(jnp.int32))


def hidden(outputs, y):
    """A loss that does not show that it takes classes."""
    return ((outputs - jnp.arange(outputs.shape[-1]) * y[..., None].astype(jnp.float32)) ** 2).mean(-1)


def labelled(values, columns, loss=sparse, weights=None, dtype=np.int8):
    model = sf.models.from_functions(lambda key: jnp.zeros((4, columns)), lambda w, x: x @ w, loss)
    made = sf.learning.fed_avg(model, optax.sgd(0.1))
    y = np.array(values).astype(dtype)
    x = np.ones((len(y), 4), np.float32)
    ids = [f"c{k // 2}" for k in range(len(y))]
    fed = sf.Federation.from_arrays(x, y, client_ids=ids, weight=weights)
    return made.next(made.initialize(), fed)


@pytest.mark.parametrize("loss", [sparse, hidden])
def test_labels_that_did_not_fit_their_dtype(loss):
    with pytest.raises(sf.DataError) as caught:
        labelled([0, 127, 3, 200], 201, loss)
    error = caught.value
    assert error.code == "SF-DATA-059"
    assert "the label -56 at client 'c1': labels are stored as int8, whose largest value is 127" in error.came
    assert "201 columns of outputs" in error.came
    assert error.needed == "class numbers from 0 to 200 in a dtype that holds them"
    assert error.do == "make them of uint8 or int32 before they become int8, in which 200 is -56"


def test_token_numbers_that_did_not_fit_theirs():
    with pytest.raises(sf.DataError, match="uint16 or int32 before they become int16, in which 40000 is -25536"):
        labelled([1, 40_000], 50_000, dtype=np.int16)


@pytest.mark.parametrize(
    ("values", "columns", "loss", "weights", "dtype"),
    [
        ([-1, 5, -100, 3], 200, hidden, None, np.int8),
        ([-56, 5, 7, 3], 128, hidden, None, np.int8),
        ([-56, 5, 7, 3], 200, hidden, None, np.int32),
        ([-56, 5, 7, 3], 200, sparse, np.array([0, 1, 1, 1], np.float32), np.int8),
        ([[-56] * 200, [5] * 200], 200, lambda o, y: ((o - y.astype(jnp.float32)) ** 2).mean(-1), None, np.int8),
    ],
    ids=["marks of rows to ignore", "as many columns as fit", "a wide dtype", "no weight", "targets of a regression"],
)
def test_labels_that_are_as_they_should_be(values, columns, loss, weights, dtype):
    labelled(values, columns, loss, weights, dtype)


def test_labels_are_looked_at_some_at_a_time(monkeypatch):
    monkeypatch.setattr(checks, "_LABELS_AT_ONCE", 3)
    with pytest.raises(sf.DataError, match="-56 at client 'c3'"):
        labelled([0, 1, 2, 3, 4, 5, 6, 200], 201)
