"""The simulator against an independent calculation, and what may not change a result: packing, padding, company."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.cohort import room

RATE, SEED = 0.05, 3
BATCHING = sf.Batching(size=7, epochs=3)


def ragged(sizes, features=3, seed=0):
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=features)
    clients = {}
    for i, n in enumerate(sizes):
        x = draw.normal(size=(n, features)).astype(np.float32)
        clients[f"c{i}"] = (x, (x @ truth + 0.3 * draw.normal(size=n)).astype(np.float32))
    return sf.Federation.from_clients(clients)


FED = ragged([1, 50, 7, 8, 23, 2, 41, 14, 5, 0, 33])
MODEL = sf.models.from_functions(
    lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
)


def numpy_fed_avg(fed, cohorts, batching=BATCHING, uniform=False):
    """McMahan et al. 2017, Algorithm 1, in loops and float64; only the order of the rows is Sumfold's."""
    w, b = np.zeros(3), 0.0
    for number, cohort in enumerate(cohorts):
        total_w, total_b, total, loss, rows = np.zeros(3), 0.0, 0.0, 0.0, 0
        for client in cohort:
            x, y = (np.asarray(a, np.float64) for a in fed[client])
            own_w, own_b = w.copy(), b
            batches = batching.batches(len(y), seed=SEED, round=number, client=client)
            for batch in batches:
                gradient_w, gradient_b = np.zeros(3), 0.0
                taken = [i for i in batch if i >= 0]
                for i in taken:
                    error = x[i] @ own_w + own_b - y[i]
                    loss, rows = loss + error**2, rows + 1
                    gradient_w += 2 * error * x[i] / len(taken)
                    gradient_b += 2 * error / len(taken)
                own_w -= RATE * gradient_w
                own_b -= RATE * gradient_b
            weight = (1.0 if uniform else len(y)) if len(batches) else 0.0
            total_w, total_b, total = total_w + weight * (own_w - w), total_b + weight * (own_b - b), total + weight
        w, b = w + total_w / total, b + total_b / total
    return w, b, loss / rows, rows


@pytest.fixture(scope="module")
def process():
    return sf.learning.fed_avg(MODEL, optax.sgd(RATE), batching=BATCHING)


def train(process, cohorts, fed=FED):
    state = process.initialize(seed=SEED)
    for cohort in cohorts:
        state, metrics = process.next(state, fed, clients=cohort)
    return state, metrics


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)]


IDS = list(FED.ids)
COHORTS = {
    "everybody": [IDS] * 4,
    "backwards": [IDS[::-1]] * 4,
    "different cohorts": [IDS[:3], IDS[5:], IDS[2:7:2], [IDS[1]]],
}


@pytest.mark.parametrize("cohorts", COHORTS.values(), ids=COHORTS)
def test_against_numpy(process, cohorts):
    state, metrics = train(process, cohorts)
    weights = process.get_model_weights(state)
    w, b, loss, rows = numpy_fed_avg(FED, cohorts)
    np.testing.assert_allclose(weights["w"], w, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(weights["b"], b, rtol=2e-5, atol=2e-6)
    assert metrics["client_work"]["train"]["loss"] == pytest.approx(loss, rel=2e-5)
    assert metrics["client_work"]["train"]["num_examples"] == rows
    assert np.abs(w).max() > 0.1, "the comparison must not be of zeros"


@pytest.mark.parametrize(
    "batching",
    [
        sf.Batching(size=None, epochs=2),
        sf.Batching(size=4, drop_remainder=True, epochs=2),
        sf.Batching(size=4, epochs=3, max_steps=5),
        sf.Batching(size=16, shuffle=False),
    ],
    ids=str,
)
def test_other_batchings_against_numpy(batching):
    process = sf.learning.fed_avg(MODEL, optax.sgd(RATE), batching=batching, weighting="uniform")
    state, metrics = train(process, [IDS] * 2)
    w, _, _, rows = numpy_fed_avg(FED, [IDS] * 2, batching, uniform=True)
    np.testing.assert_allclose(process.get_model_weights(state)["w"], w, rtol=2e-5, atol=2e-6)
    train_metrics = metrics["client_work"]["train"]
    assert train_metrics["num_examples"] == rows
    assert train_metrics["num_batches"] == int(batching.steps(FED.counts).sum())
    assert train_metrics["num_clients"] == len(IDS)


def test_company_and_spare_room_change_no_bit(process):
    """A cohort alone in its federation, and the same cohort among many others of other sizes."""
    cohort = IDS[2:5]
    alone, m1 = train(process, [cohort] * 2, FED.subset(cohort))
    among, m2 = train(process, [cohort] * 2, FED)
    rebuilt, m3 = train(process, [cohort] * 2, sf.Federation.from_clients({c: FED[c] for c in cohort}))
    assert bits(alone) == bits(among) == bits(rebuilt)
    assert m1 == m2 == m3


def test_next_is_pure(process):
    state = process.initialize(seed=SEED)
    state, _ = process.next(state, FED)
    before = bits(state)
    first, again = process.next(state, FED), process.next(state, FED)
    assert bits(first.state) == bits(again.state)
    assert first.metrics == again.metrics
    assert bits(state) == before
    assert bits(first.state) != before


def test_one_executable_for_all_cohorts_of_a_ragged_federation():
    process = sf.learning.fed_avg(MODEL, optax.sgd(RATE), batching=BATCHING)
    fed = ragged([1, 50, 7, 8, 23, 2, 41, 14, 5, 0, 33])
    ids, state = list(fed.ids), process.initialize()
    draw = np.random.default_rng(0)
    for cohort in [
        ["c0", "c5", "c9"],
        ["c1", "c6", "c10"],
        *[draw.choice(ids, 3, replace=False).tolist() for _ in range(6)],
    ]:
        state, _ = process.next(state, fed, clients=cohort)
    assert process._run.compiled._cache_size() == 1


def test_full_batches_of_every_size_share_one_executable():
    process = sf.learning.fed_avg(MODEL, optax.sgd(0.01), batching=sf.Batching(size=None))
    fed = ragged(range(1, 18))
    state = process.initialize()
    for cohort in (["c0", "c16"], ["c3", "c4"], ["c8", "c9"]):
        state, _ = process.next(state, fed, clients=cohort)
    assert process._run.compiled._cache_size() == 1


def test_the_shapes_of_room():
    sizes = [room(n) for n in range(1, 2000)]
    assert all(r >= n for n, r in enumerate(sizes, 1))
    assert all(r <= 1.25 * n for n, r in enumerate(sizes, 1))
    assert sizes == sorted(sizes)
    assert len(set(sizes)) < 45


def test_ready_made_batches_are_the_batches_of_batching():
    by_sumfold = sf.learning.fed_avg(MODEL, optax.sgd(RATE), batching=sf.Batching(size=7, shuffle=False))
    ready = sf.learning.fed_avg(MODEL, optax.sgd(RATE))
    batches = {c: [(FED[c][0][i : i + 7], FED[c][1][i : i + 7]) for i in range(0, FED.sizes[c], 7)] for c in IDS}
    a, metrics_a = train(by_sumfold, [None] * 2)
    b, metrics_b = train(ready, [None] * 2, batches)
    assert bits(a) == bits(b)
    assert metrics_a == metrics_b
    c, _ = train(ready, [None] * 2, {k: iter_anew(v) for k, v in batches.items()})
    assert bits(c) == bits(a)


class iter_anew:
    """A dataset of other libraries: batches each time that it is iterated."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def test_a_one_shot_iterator_is_read_once_and_kept():
    process = sf.learning.fed_avg(MODEL, optax.sgd(RATE))
    x, y = FED["c1"]
    once = [((x[i : i + 7], y[i : i + 7]) for i in range(0, 50, 7))]
    state, first = process.next(process.initialize(), once)
    _, second = process.next(state, once)
    assert first["client_work"]["train"]["num_examples"] == second["client_work"]["train"]["num_examples"] == 50
