"""Federated evaluation: the same numbers as evaluating everything at once, as sums."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

DRAW = np.random.default_rng(0)
MODEL = sf.models.from_functions(
    lambda key: jnp.ones((3, 2)),
    lambda w, x: x @ w,
    optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": sf.metrics.accuracy, "auc": sf.metrics.auc},
)
CLIENTS = {
    name: (DRAW.normal(size=(n, 3)).astype(np.float32), DRAW.integers(0, 2, n))
    for name, n in {"a": 9, "b": 1, "c": 0, "d": 30}.items()
}
X, Y = (np.concatenate([entry[i] for entry in CLIENTS.values()]) for i in (0, 1))
WEIGHTS = DRAW.normal(size=(3, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def process():
    return sf.learning.fed_eval(MODEL, batching=sf.Batching(size=8, shuffle=False))


def test_it_is_the_evaluation_of_everything_at_once(process):
    state = process.set_model_weights(process.initialize(), WEIGHTS)
    after, metrics = process.next(state, CLIENTS)
    found, expected = metrics["client_work"]["eval"], MODEL.evaluate(WEIGHTS, X, Y)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name
    assert (found["num_clients"], found["num_batches"], found["num_non_finite_clients"]) == (4, 2 + 1 + 0 + 4, 0)
    np.testing.assert_array_equal(process.get_model_weights(after), WEIGHTS)
    assert metrics["finalizer"] == metrics["aggregator"] == metrics["distributor"] == {}


def test_a40_current_and_total(process):
    state = process.set_model_weights(process.initialize(), WEIGHTS)
    state, first = process.next(state, CLIENTS, clients=["a"])
    assert first["client_work"]["eval"]["current_round_metrics"] == first["client_work"]["eval"]["total_rounds_metrics"]
    _, second = process.next(state, CLIENTS, clients=["d", "b"])
    current, total = (second["client_work"]["eval"][k] for k in ("current_round_metrics", "total_rounds_metrics"))
    assert current["num_examples"] == 31
    assert total["num_examples"] == 40
    assert total["num_clients"] == 3
    assert total["loss"] == pytest.approx(MODEL.evaluate(WEIGHTS, X, Y)["loss"], rel=1e-5)
    assert total["auc"] == pytest.approx(MODEL.evaluate(WEIGHTS, X, Y)["auc"], rel=1e-5)
    assert current["loss"] != pytest.approx(total["loss"])


def test_nobody_and_clients_that_are_not_finite(process):
    state = process.initialize()
    zeros = {"loss": 0.0, "accuracy": 0.0, "auc": 0.0, "num_examples": 0, "num_batches": 0, "num_clients": 0}
    _, metrics = process.next(state, CLIENTS, clients=[])
    assert metrics["client_work"]["eval"]["current_round_metrics"] == {**zeros, "num_non_finite_clients": 0}
    bad = {**CLIENTS, "nan": (np.full((2, 3), np.nan, np.float32), np.array([0, 1]))}
    _, metrics = process.next(state, bad, clients=["nan"])
    assert metrics["client_work"]["eval"]["current_round_metrics"] == {**zeros, "num_non_finite_clients": 1}
    _, with_it = process.next(state, bad)
    assert with_it["client_work"]["eval"]["num_examples"] == 40


def test_it_has_no_hyperparameters_and_predicts_without_a_key(process):
    assert process.get_hparams(process.initialize()) == {}
    seen = []

    def predict(w, x, key=None):
        seen.append(key)
        return x @ w

    model = sf.models.from_functions(
        lambda key: jnp.ones((3, 2)), predict, optax.softmax_cross_entropy_with_integer_labels
    )
    evaluate = sf.learning.fed_eval(model)
    state = evaluate.initialize()
    fed = sf.Federation.from_clients(CLIENTS)
    evaluate._check(fed, state)  # traces a training step, on shapes alone
    seen.clear()
    evaluate.next(state, fed)
    assert seen
    assert not any(key is not None for key in seen)
