"""Cohorts of any size share a handful of programs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.cohort import Cohort, cohort_widths, widths


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


@pytest.mark.parametrize(
    ("size", "rows", "places"),
    [
        (10, (8, 3), 8),
        (32, (4, 0), 8),
        (32, (17, 9), 32),
        (100, (17, 9), 32),
        (4, (9, 1), 4),
        (1, (1,), 1),
        (64, (0,), 8),
    ],
)
def test_a_batch_has_no_more_places_than_the_largest_client_needs(size, rows, places):
    fed = sf.Federation.from_arrays(np.zeros((sum(rows), 2), np.float32), offsets=np.cumsum([0, *rows]))
    batching = sf.Batching(size)
    assert widths(fed, batching).tolist() == [places] * len(rows)
    few = Cohort(fed, np.array([0]))
    assert cohort_widths(few, batching).tolist() == [places] * len(rows)
    drawn = sf.Federation.from_arrays(np.zeros((rows[-1], 2), np.float32), offsets=[0, rows[-1]])
    alone = Cohort(drawn, np.array([0]), (fed, np.array([len(rows) - 1])))
    assert cohort_widths(alone, batching).tolist() == [places], "as in the federation that it was drawn from"
