"""Weights whose rows fill no vectors are held with zeros behind each row, and the numbers are the same."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import sumfold as sf
from sumfold.simulation import widened
from sumfold.simulation.widened import repeated

COMING, CLASSES = 500, 62


@pytest.fixture(autouse=True)
def counts_are_powers_of_decays():
    """As Optax has them."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def drawn(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32) * np.float32(0.1)


X, Y = drawn(5, 6, COMING), np.arange(30).reshape(5, 6) % CLASSES


def logistic(p, x):
    return x @ p["w"] + p["b"][None]


def loss(predict, p, t):
    scores = jax.nn.log_softmax(predict(p, jnp.asarray(X)[t]))
    return -jnp.take_along_axis(scores, jnp.asarray(Y)[t][:, None], 1).mean()


def steps(optimizer, predict, params):
    def step(t, state):
        params, memory = state
        updates, memory = optimizer.update(jax.grad(lambda p: loss(predict, p, t))(params), memory, params)
        return optax.apply_updates(params, updates), memory

    return step, (params, optimizer.init(params))


def shapes(step, state):
    """Of the carry of the loop over steps."""
    program = jax.make_jaxpr(lambda n, state: repeated(n, step, state))(jnp.int32(3), state)
    (loop,) = (e for e in program.jaxpr.eqns if e.primitive.name in ("while", "scan"))
    return [v.aval.shape for v in loop.outvars if v.aval.ndim == 2]


def plain(step, state):
    return lax.fori_loop(jnp.int32(0), jnp.int32(5), step, state)


WEIGHTS = {"w": drawn(COMING, CLASSES), "b": np.zeros(CLASSES, np.float32)}


@pytest.mark.parametrize(
    ("optimizer", "arrays"),
    [
        (optax.sgd(0.1), 1),
        (optax.sgd(0.1, momentum=0.9), 2),
        (optax.adam(0.01), 3),
        (optax.adamw(0.01, weight_decay=0.1), 3),
        (optax.yogi(0.01), 3),
        (optax.adam(0.01, eps=0.0, eps_root=0.0), 3),  # what is behind the rows is no number then
    ],
    ids=["sgd", "momentum", "adam", "adamw", "yogi", "adam without eps"],
)
def test_what_an_optimizer_keeps_is_widened_with_the_weights(optimizer, arrays):
    step, state = steps(optimizer, logistic, WEIGHTS)
    assert shapes(step, state) == [(COMING, 64)] * arrays
    found, expected = jax.jit(lambda s: repeated(jnp.int32(5), step, s))(state), plain(step, state)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found, expected)
    jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(f"{a} {b}"), found, expected)


def by_its_columns(p, x):
    return lax.dot_general(x[:, :CLASSES], p["w"], (((1,), (1,)), ((), ())))


@pytest.mark.parametrize(
    ("why", "optimizer", "predict", "params"),
    [
        ("a product with its last axis", optax.sgd(0.1), by_its_columns, {"w": drawn(COMING, CLASSES)}),
        ("its norm is asked for", optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)), logistic, WEIGHTS),
        ("rows are whole", optax.sgd(0.1), logistic, {"w": drawn(COMING, 64), "b": np.zeros(64, np.float32)}),
        ("too much for nothing", optax.sgd(0.1), logistic, {"w": drawn(COMING, 34), "b": np.zeros(34, np.float32)}),
        ("it is turned", optax.sgd(0.1), lambda p, x: x @ p["w"].T, {"w": drawn(CLASSES, COMING + 2)}),
        ("it is looked at", optax.sgd(0.1), lambda p, x: x @ p["w"] * p["w"].max(), WEIGHTS),
    ],
    ids=lambda one: one.replace(" ", "-") if isinstance(one, str) else "",
)
def test_other_weights_stay_as_they_are(why, optimizer, predict, params):
    coming = params["w"].shape[-1] if why == "it is turned" else COMING
    step, state = steps(optimizer, lambda p, x: predict(p, jnp.resize(x, (6, coming))), params)
    before = [a.shape for a in jax.tree.leaves(state) if np.ndim(a) == 2]
    assert shapes(step, state) == before
    found, expected = jax.jit(lambda s: repeated(jnp.int32(5), step, s))(state), plain(step, state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), found, expected)


def test_a_carry_that_is_given_out_twice_or_mixed_with_another_is_not_widened():
    w = drawn(COMING, CLASSES)
    other = drawn(COMING, CLASSES) + 1

    def step(t, state):
        a, _ = state
        gradient = jnp.asarray(X)[t].T @ (jnp.asarray(X)[t] @ a)
        return a - 0.1 * gradient + 0.01 * other, a[:, ::-1]

    assert shapes(step, (w, w)) == [(COMING, CLASSES)] * 2
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        repeated(jnp.int32(5), step, (w, w)),
        plain(step, (w, w)),
    )


@pytest.mark.parametrize("algorithm", ["fed_avg", "fed_prox", "scaffold", "mime", "fed_nova"])
def test_algorithms_compute_the_same_with_it(algorithm, monkeypatch):
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros((COMING, CLASSES)), "b": jnp.zeros(CLASSES)},
        logistic,
        lambda outputs, y: -jnp.take_along_axis(jax.nn.log_softmax(outputs), y[:, None], 1)[:, 0],
    )
    make = {
        "fed_avg": lambda: sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(4, epochs=2)),
        "fed_prox": lambda: sf.learning.fed_prox(model, optax.sgd(0.1), mu=0.1, batching=sf.Batching(4)),
        "scaffold": lambda: sf.learning.scaffold(model, optax.sgd(0.1), batching=sf.Batching(4)),
        "mime": lambda: sf.learning.mime(model, optax.sgd(0.1, momentum=0.9), batching=sf.Batching(4)),
        "fed_nova": lambda: sf.learning.fed_nova(model, optax.sgd(0.1, momentum=0.5), batching=sf.Batching(4)),
    }[algorithm]
    data = {k: (X[k, : k + 2], Y[k, : k + 2].astype(np.int32)) for k in range(5)}
    states, seen = [], []
    planned = widened._planned
    monkeypatch.setattr(widened, "_planned", lambda program: seen.append(planned(program)) or seen[-1])
    for least in (1 << 14, 1 << 30):
        monkeypatch.setattr(widened, "_LARGE", least)
        process = make().on(sf.Simulation(kernel="sequential", streams=1))
        state = process.initialize(seed=0, **({"clients": 5} if algorithm == "scaffold" else {}))
        for _ in range(2):
            state, _ = process.next(state, data)
        states.append(state)
    assert any(plan.states for plan in seen), "something was widened"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), states[0].algorithm, states[1].algorithm
    )
