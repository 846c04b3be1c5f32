"""Cohorts of any size share a handful of programs."""

import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf


def test_cohorts_of_changing_size_settle_on_few_programs():
    draw = np.random.default_rng(0)
    counts = draw.integers(1, 40, 200)
    x = np.ones((counts.sum(), 2), np.float32)
    federation = sf.Federation.from_arrays(x, x[:, 0], offsets=np.concatenate([[0], np.cumsum(counts)]))
    model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=8))
    state = process.initialize()
    for size in (33, 40, 36, 38, 34, 39, 33, 40):
        state, _ = process.next(state, federation, clients=draw.choice(200, size, replace=False))
    assert process._run.compiled._cache_size() <= 2  # 33 … 40 round up to 40
    for _ in range(5):
        state, _ = process.next(state, federation, clients=draw.choice(200, 40, replace=False))
    assert process._run.compiled._cache_size() <= 2


def test_cohorts_of_changing_size_soon_need_no_other_executable():
    model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=4))
    rng = np.random.default_rng(0)
    clients = [(rng.normal(size=(n, 2)), rng.normal(size=n)) for n in rng.integers(1, 9, 60)]
    fed = sf.Federation.from_clients(clients)
    state = process.initialize()
    sizes = rng.integers(12, 24, 40)
    sizes[0] = 24
    for size in sizes:
        state, _ = process.next(state, fed, clients=rng.choice(60, size, replace=False))
    assert process._run.compiled._cache_size() == 1
