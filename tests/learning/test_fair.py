"""q-FedAvg against Li et al. 2020, Algorithm 2, in NumPy: rounds, limits, what is kept, and refusals."""

import functools

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import sumfold as sf

RUNTIMES = [sf.Simulation(), sf.Loopback()]
RATE, START = 0.02, np.array([0.5, -1.0, 0.25])
LINEAR = sf.models.from_functions(
    lambda key: jnp.array(START, jnp.float32), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
ORDERED = sf.Batching(size=3, epochs=2, shuffle=False)
draw = np.random.default_rng(5)
ROWS = {
    k: (draw.normal(size=(n, 3)).astype(np.float32), (draw.normal(size=n) + i).astype(np.float32))
    for i, (k, n) in enumerate({"a": 5, "single": 1, "empty": 0, "d": 8, "e": 4}.items())
}
COHORTS = [list(ROWS), ["a", "d", "empty"], ["e", "single", "a"]]


def losses(w):
    return {k: ((x.astype(np.float64) @ w - y) ** 2).mean() for k, (x, y) in ROWS.items() if len(y)}


def li_2020(q, cohorts=COHORTS, weighting="examples", lipschitz=1 / RATE):
    """Algorithm 2, with p_k of equation 1; a client without rows has neither loss nor step."""
    w = START
    for cohort in cohorts:
        top, bottom, loss = np.zeros(3), 0.0, losses(w)
        for k in (k for k in cohort if k in loss):
            x, y = ROWS[k]
            v = w
            for _ in range(2):
                for i in range(0, len(y), 3):
                    rows = x[i : i + 3].astype(np.float64)
                    v = v - RATE * 2 * rows.T @ (rows @ v - y[i : i + 3]) / len(rows)
            change = lipschitz * (w - v)
            p = len(y) if weighting == "examples" else 1
            top = top + p * loss[k] ** q * change
            bottom = bottom + p * (q * loss[k] ** (q - 1) * change @ change + lipschitz * loss[k] ** q)
        w = w - top / bottom
        yield w


def made(q, optimizer=None, model=LINEAR, lipschitz=1 / RATE, **options):
    options = {"batching": ORDERED, "lipschitz": lipschitz, **options}
    return sf.learning.q_fed_avg(model, optimizer or optax.sgd(RATE), q=q, **options)


def follow(process, expected, state=None, cohorts=COHORTS):
    state = process.initialize() if state is None else state
    for cohort, w in zip(cohorts, expected, strict=True):
        state, metrics = process.next(state, ROWS, clients=cohort)
        np.testing.assert_allclose(process.get_model_weights(state), w, rtol=1e-5, atol=1e-5)
        assert metrics["finalizer"] == {"update_non_finite": 0}
    return state


@functools.cache
def plain(runtime):
    """q = 1 by examples, compiled once for every test that needs no other."""
    return made(1.0).on(runtime)


@pytest.mark.parametrize(
    ("q", "weighting", "runtime"),
    [
        (0.0, "uniform", RUNTIMES[0]),
        (0.5, "uniform", RUNTIMES[0]),
        (1.0, "examples", RUNTIMES[1]),
        (5.0, "uniform", RUNTIMES[1]),
        (5.0, "examples", RUNTIMES[0]),
    ],
    ids=lambda v: str(v) if isinstance(v, (float, str)) else type(v).__name__,
)
def test_three_rounds_of_the_paper(q, weighting, runtime):
    process = plain(runtime) if (q, weighting) == (1.0, "examples") else made(q, weighting=weighting).on(runtime)
    state = follow(process, li_2020(q, weighting=weighting))
    assert len(state.clients) == 0


def test_every_q_is_another_algorithm():
    ends = [list(li_2020(q))[-1] for q in (0.0, 0.5, 1.0, 5.0)]
    assert min(np.abs(a - b).max() for i, a in enumerate(ends) for b in ends[:i]) > 1e-3


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_without_q_it_is_federated_averaging(weighting):
    averaging = sf.learning.fed_avg(LINEAR, optax.sgd(RATE), optax.adam(0.1), weighting=weighting, batching=ORDERED)
    process = made(0.0, server_optimizer=optax.adam(0.1), weighting=weighting)
    state, expected = process.initialize(), averaging.initialize()
    for cohort in COHORTS:
        state, _ = process.next(state, ROWS, clients=cohort)
        expected, _ = averaging.next(expected, ROWS, clients=cohort)
        a, b = process.get_model_weights(state), averaging.get_model_weights(expected)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("q", [30.0, 60.0])
def test_a_large_q_neither_overflows_nor_vanishes(q):
    """F^q of a loss of 1e-3 is 1e-90 here, far below what float32 has; the paper's ratio is what it is."""
    x = np.eye(2, 3, dtype=np.float32)
    data = {k: (x, (x @ START + e).astype(np.float32)) for k, e in {"a": 0.01, "b": 0.03, "c": 0.035}.items()}
    process = made(q, batching=sf.Batching(size=None))
    state, _ = process.next(process.initialize(), data)
    top, bottom, lipschitz = np.zeros(3), 0.0, 1 / RATE
    for k, (rows, y) in data.items():
        residual = (rows.astype(np.float64) @ START - y.astype(np.float64))[: len(y)]
        loss, change = (residual**2).mean(), 2 * rows.astype(np.float64).T @ residual / len(y)
        assert loss**q < 1e-38 or k != "a"
        top = top + loss**q * change
        bottom = bottom + q * loss ** (q - 1) * change @ change + lipschitz * loss**q
    np.testing.assert_allclose(process.get_model_weights(state) - START, -top / bottom, rtol=2e-3)


def test_the_rate_is_read_where_it_can_be_and_follows_what_is_set():
    injected = made(1.0, optax.inject_hyperparams(optax.sgd)(RATE), lipschitz=None)
    everybody = [list(ROWS)] * 2
    expected = list(li_2020(1.0, everybody))
    follow(injected, expected, cohorts=everybody)
    state = injected.initialize()
    assert injected.get_hparams(state)["client_work"] == {"learning_rate": pytest.approx(RATE), "q": 1.0}
    other = made(1.0, optax.inject_hyperparams(optax.sgd)(0.5), lipschitz=None)
    changed = other.set_hparams(other.initialize(), {"client_work": {"learning_rate": RATE}})
    follow(other, expected, changed, everybody)
    by_round = made(1.0, lambda round: optax.inject_hyperparams(optax.sgd)(RATE + 0.0 * round), lipschitz=None)
    follow(by_round, expected, cohorts=everybody)
    follow(made(1.0, keras.optimizers.SGD(RATE), lipschitz=None), expected, cohorts=everybody)


def test_q_and_l_can_be_read_and_set():
    process = made(1.0, lipschitz=4.0)
    state = process.initialize()
    assert {"q": 1.0, "lipschitz": 4.0}.items() <= process.get_hparams(state)["client_work"].items()
    follow(process, li_2020(1.0, lipschitz=4.0))
    changed = process.set_hparams(state, {"client_work": {"q": 2.0, "lipschitz": 9.0}})
    follow(process, li_2020(2.0, lipschitz=9.0), changed)


def test_a_rate_of_0_moves_nothing():
    process = made(1.0, optax.inject_hyperparams(optax.sgd)(0.0), lipschitz=None)
    state, metrics = process.next(process.initialize(), ROWS)
    np.testing.assert_array_equal(process.get_model_weights(state), START.astype(np.float32))
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 0


SCALAR = sf.models.from_functions(
    lambda key: jnp.float32(0), lambda w, x: w * x, lambda outputs, y: 0.5 * (outputs - y) ** 2
)


@pytest.mark.parametrize("q", [0.0, 1.0, 3.0])
def test_the_stationary_point_of_the_objective(q):
    """Clients with optima −1, −1, −1 and 1, F_k = (w − b_k)²/2: Σ F_k^q F_k' = 0, a closed form in w."""
    clients = [(np.ones(1), b * np.ones(1)) for b in (-1.0, -1.0, -1.0, 1.0)]
    process = made(q, optax.sgd(0.1), SCALAR, lipschitz=10.0, batching=sf.Batching(size=None))
    ratio = 3 ** (1 / (2 * q + 1))  # 3 (1 + w)^{2q + 1} = (1 − w)^{2q + 1}
    optimum = (1 - ratio) / (1 + ratio)
    assert optimum == pytest.approx({0.0: -0.5, 1.0: -0.1811, 3.0: -0.0783}[q], abs=1e-4)  # the odd one out gains
    state = process.set_model_weights(process.initialize(), jnp.float32(optimum))
    state, _ = process.next(state, clients)
    assert float(process.get_model_weights(state)) == pytest.approx(optimum, abs=1e-6)
    state = process.initialize()
    for _ in range(25):
        state, _ = process.next(state, clients)
    assert abs(float(process.get_model_weights(state)) - optimum) < abs(optimum) / 2


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda r: type(r).__name__)
def test_clients_that_are_not_finite_and_nobody(runtime):
    process = plain(runtime)
    bad = {**ROWS, "nan": (np.full((2, 3), np.nan, np.float32), np.zeros(2, np.float32))}
    (state, metrics), (without, _) = (process.next(process.initialize(), data) for data in (bad, ROWS))
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    np.testing.assert_allclose(process.get_model_weights(state), process.get_model_weights(without), rtol=1e-6)
    for cohort in (["nan"], [], ["empty"]):
        after, metrics = process.next(state, bad, clients=cohort)
        assert metrics["finalizer"] == {"update_non_finite": 1}
        np.testing.assert_array_equal(process.get_model_weights(after), process.get_model_weights(state))


def test_a_negative_loss_is_left_out_and_a_loss_of_0_is_not():
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: o - y)
    process = made(1.0, optax.sgd(0.1), model)
    one = np.ones(2)
    state, metrics = process.next(process.initialize(), {"negative": (one, one), "positive": (one, -one)})
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert float(process.get_model_weights(state)) != 0
    for q in (0.0, 0.5, 1.0, 3.0):
        process = made(q, optax.sgd(0.1), SCALAR)
        state, metrics = process.next(process.initialize(), [(one, 0 * one), (one, one)])
        assert metrics["client_work"]["train"]["num_non_finite_clients"] == 0
        assert 0 < float(process.get_model_weights(state)) < 0.2


def test_the_loss_stays_with_the_client():
    process = made(1.0)
    text = process.explain(ROWS)
    first, second = text.split("Exchange 2")
    assert "part" not in first.split("Leaves each client")[1].split("metrics")[0]
    assert "Stays with the client, never sent\n  value" in first
    assert second.count("part '") == 1
    assert "float32[3]" in second.split("Leaves each client")[1]


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "make", [lambda: optax.sgd(0.1), lambda: lambda round: optax.sgd(0.1)], ids=["sgd", "schedule"]
)
def test_a_rate_that_cannot_be_read(make):
    with pytest.raises(sf.CompositionError, match=r"rate cannot be read.*1 / learning rate.*lipschitz=.*SF-COMP-090"):
        sf.learning.q_fed_avg(LINEAR, make(), q=1.0)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), "1", None, True])
def test_q_out_of_range(value):
    with pytest.raises(sf.CompositionError, match=r"q_fed_avg with q=.*of at least 0.*SF-COMP-062"):
        made(value)


@pytest.mark.parametrize("value", [0, -1, float("nan"), "1", True])
def test_l_out_of_range(value):
    with pytest.raises(sf.CompositionError, match=r"q_fed_avg with lipschitz=.*above 0.*SF-COMP-062"):
        made(1.0, lipschitz=value)
    process = made(1.0)
    with pytest.raises(sf.CompositionError, match="SF-COMP-062"):
        process.set_hparams(process.initialize(), {"client_work": {"lipschitz": value}})


def test_other_arguments_are_those_of_federated_averaging():
    with pytest.raises(sf.CompositionError, match="client_optimizer is None"):
        sf.learning.q_fed_avg(LINEAR, None, q=1.0)
    with pytest.raises(sf.CompositionError, match="weighting='foo'"):
        made(1.0, weighting="foo")
