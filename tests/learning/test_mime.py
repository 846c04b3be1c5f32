"""Mime and MimeLite against NumPy forms of Karimireddy et al. 2021, Algorithm 1, and on both runtimes."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

RATE, BETA, SIZE = 0.05, 0.9, 2
START = np.array([0.5, -1.0, 0.25])
LINEAR = sf.models.from_functions(
    lambda key: jnp.array(START, jnp.float32), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
draw = np.random.default_rng(3)
CLIENTS = {
    name: (draw.normal(size=(rows, 3)).astype(np.float32), draw.normal(size=rows).astype(np.float32))
    for name, rows in {"a": 5, "b": 2, "c": 4, "one": 1}.items()
}


def slope(w, x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    return 2 * x.T @ (x @ w - y) / len(y)


def karimireddy_2021(corrected, rounds):
    """Algorithm 1 with heavy-ball momentum as the base optimizer: U(g; m) = g + β m, V(g; m) = g + β m."""
    w, m = START, np.zeros(3)
    share = {k: len(y) / sum(len(y) for _, y in CLIENTS.values()) for k, (_, y) in CLIENTS.items()}
    for _ in range(rounds):
        c = sum(share[k] * slope(w, *CLIENTS[k]) for k in CLIENTS)
        ends = {}
        for k, (x, y) in CLIENTS.items():
            v = w
            for i in range(0, len(y), SIZE):
                batch = x[i : i + SIZE], y[i : i + SIZE]
                g = slope(v, *batch) - slope(w, *batch) + c if corrected else slope(v, *batch)
                v = v - RATE * (g + BETA * m)
            ends[k] = v
        w = sum(share[k] * ends[k] for k in CLIENTS)
        m = c + BETA * m
        yield w, m


@pytest.mark.parametrize("name", ["mime", "mime_lite"])
def test_four_rounds_of_the_paper(name):
    batching = sf.Batching(size=SIZE, shuffle=False)
    process = getattr(sf.learning, name)(LINEAR, optax.sgd(RATE, momentum=BETA), batching=batching)
    state = process.initialize()
    for w, m in karimireddy_2021(name == "mime", 4):
        state, metrics = process.next(state, CLIENTS)
        np.testing.assert_allclose(process.get_model_weights(state), w, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(state.algorithm.base[0].trace, m, rtol=1e-5, atol=1e-5)
    assert metrics["client_work"]["train"]["num_examples"] == 12
    assert len(process.round.phases) == (2 if name == "mime" else 1)


def test_the_two_differ_from_each_other_and_from_federated_averaging():
    ends = [list(karimireddy_2021(corrected, 4))[-1][0] for corrected in (True, False)]
    process = sf.learning.fed_avg(LINEAR, optax.sgd(RATE), batching=sf.Batching(size=SIZE, shuffle=False))
    state = process.initialize()
    for _ in range(4):
        state, _ = process.next(state, CLIENTS)
    three = [*ends, np.asarray(process.get_model_weights(state))]
    assert min(np.abs(three[i] - three[j]).max() for i in range(3) for j in range(i)) > 1e-2


@pytest.mark.parametrize("name", ["mime", "mime_lite"])
def test_runtimes_agree(name):
    process = getattr(sf.learning, name)(LINEAR, optax.adam(0.05), optax.adam(0.1), batching=sf.Batching(size=3))
    data = {**CLIENTS, "empty": (np.zeros((0, 3), np.float32), np.zeros(0, np.float32))}
    sf.testing.assert_runtimes_agree(process, data, sf.Simulation(), sf.Loopback(), rounds=2)


@pytest.mark.parametrize("name", ["mime", "mime_lite"])
def test_a_client_that_is_not_finite_and_nobody(name):
    process = getattr(sf.learning, name)(LINEAR, optax.sgd(RATE, momentum=BETA), batching=sf.Batching(size=SIZE))
    state = process.initialize()
    bad = {**CLIENTS, "bad": (np.full((2, 3), np.nan, np.float32), np.zeros(2, np.float32))}
    after, metrics = process.next(state, bad)
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert np.isfinite(process.get_model_weights(after)).all()
    nothing, metrics = process.next(after, {"bad": bad["bad"]})
    assert metrics["finalizer"]["update_non_finite"] == 1
    np.testing.assert_array_equal(process.get_model_weights(nothing), process.get_model_weights(after))
    np.testing.assert_array_equal(nothing.algorithm.base[0].trace, after.algorithm.base[0].trace)
