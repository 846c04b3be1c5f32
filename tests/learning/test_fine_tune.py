"""Fine-tuning measured before and after, and each client's own weights on its own rows."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

MODEL = sf.models.from_functions(
    lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2, {"auc": sf.metrics.auc}
)
RATE, STEPS = 0.1, 3
WEIGHTS = jnp.array([0.5, -0.5])


def federation(sizes, seed):
    draw = np.random.default_rng(seed)
    return {
        k: (draw.normal(size=(n, 2)).astype(np.float32), (np.arange(n) % 2).astype(np.int32)) for k, n in sizes.items()
    }


TRAIN = federation({"a": 5, "b": 3, "none": 0, "d": 8}, 1)
TEST = federation({"d": 4, "a": 6, "b": 0, "none": 3}, 2)  # in another order, and one without a row


def slope(w, x, y):
    return 2 * x.T @ (x @ w - y) / len(y)


def trained(k):
    """A few steps of SGD on batches of two in order, once over the rows."""
    w, (x, y) = np.asarray(WEIGHTS, np.float64), TRAIN[k]
    for step in range(min(STEPS, -(-len(y) // 2))):
        w = w - RATE * slope(w, *(a[2 * step : 2 * step + 2] for a in (x, y)))
    return w


@pytest.fixture(scope="module")
def evaluation():
    return sf.learning.fine_tune(
        MODEL, optax.sgd(RATE), batching=sf.Batching(size=2, max_steps=STEPS, shuffle=False), per_client=True
    )


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda runtime: type(runtime).__name__)
def test_before_and_after(evaluation, runtime):
    reached = evaluation.on(runtime)(WEIGHTS, TRAIN, TEST)
    clients = {k: {} for k in TEST}
    for k, (x, y) in TEST.items():
        before, after = MODEL.evaluate(WEIGHTS, x, y), MODEL.evaluate(jnp.asarray(trained(k), jnp.float32), x, y)
        clients[k] = before | {f"fine_tuned_{name}": after[name] for name in ("loss", "auc")}
        assert reached["clients"][k] == pytest.approx(clients[k], rel=1e-5)
    assert clients["none"]["loss"] == clients["none"]["fine_tuned_loss"]
    rows = {k: len(y) for k, (_, y) in TEST.items()}
    for name in ("loss", "fine_tuned_loss"):
        assert reached[name] == pytest.approx(sum(clients[k][name] * rows[k] for k in rows) / 13, rel=1e-5)
    scores = np.concatenate([x @ trained(k) for k, (x, _) in TEST.items()])
    labels = np.concatenate([y for _, y in TEST.values()])
    pairs = np.subtract.outer(scores[labels == 1], scores[labels == 0])
    assert reached["fine_tuned_auc"] == pytest.approx((pairs > 0).mean(), abs=0.01)
    counts = {name: reached[name] for name in ("num_examples", "num_clients", "num_non_finite_clients")}
    assert counts == {"num_examples": 13, "num_clients": 4, "num_non_finite_clients": 0}
    json.dumps(reached)


def test_clients_in_turn_reach_the_same_as_together(evaluation, monkeypatch):
    together = evaluation(WEIGHTS, TRAIN, TEST)
    monkeypatch.setattr(importlib.import_module("sumfold.learning.fine_tune"), "_ROOM", 3 * 8)
    in_turn = evaluation(WEIGHTS, TRAIN, TEST)
    assert in_turn["clients"] == together["clients"]
    assert {k: v for k, v in in_turn.items() if k != "clients"} == pytest.approx(
        {k: v for k, v in together.items() if k != "clients"}, rel=1e-6
    )


def test_nothing_but_metrics_leaves_a_client():
    text = sf.learning.fine_tune(MODEL, optax.sgd(RATE)).explain(TRAIN, TEST)
    assert text.count("Leaves each client") == 3
    assert "part '" not in text
    assert "EVERY CLIENT'S OWN VALUE" in sf.learning.fine_tune(MODEL, optax.sgd(RATE), per_client=True).explain(
        TRAIN, TEST
    )


def test_a_client_whose_training_is_not_finite_is_counted_and_left_out(evaluation):
    broken = {**TRAIN, "a": (TRAIN["a"][0] * np.nan, TRAIN["a"][1])}
    reached, whole = evaluation(WEIGHTS, broken, TEST), evaluation(WEIGHTS, TRAIN, TEST)
    assert reached["num_non_finite_clients"] == 1
    assert "fine_tuned_loss" not in reached["clients"]["a"]
    assert reached["loss"] == whole["loss"]
    others = [whole["clients"][k] for k in TEST if k != "a"]
    rows = sum(of["num_examples"] for of in others)
    mean = sum(of["fine_tuned_loss"] * of["num_examples"] for of in others) / rows
    assert reached["fine_tuned_loss"] == pytest.approx(mean, rel=1e-5)


def test_it_is_an_evaluation_of_the_loop():
    process = sf.learning.fed_avg(MODEL, optax.sgd(RATE), batching=sf.Batching(size=2))
    evaluation = sf.learning.fine_tune(MODEL, optax.sgd(RATE), batching=sf.Batching(size=2, max_steps=2))
    history = sf.train(
        process, TRAIN, rounds=2, evaluate=lambda weights: evaluation(weights, TRAIN, TEST), progress=False
    )
    last = evaluation(process.get_model_weights(history.state), TRAIN, TEST)
    assert history.evaluations[-1] == {"round": 1} | last


def test_other_clients_are_refused(evaluation):
    with pytest.raises(sf.CompositionError, match=r"4 clients .* 3 to test on; 'd' is among one.*SF-COMP-086"):
        evaluation(WEIGHTS, TRAIN, {k: TEST[k] for k in TEST if k != "d"})


def test_a_runtime_of_sums_refuses_single_clients(evaluation):
    class Sums:
        groups = frozenset({"add"})

        def bind(self, round):
            from sumfold.core.driver import check_groups

            check_groups(round, self)

    with pytest.raises(sf.CompositionError, match=r"'stack'.*SF-COMP-005"):
        evaluation.on(Sums())(WEIGHTS, TRAIN, TEST)
    with pytest.raises(sf.CompositionError, match=r"a runtime.*SF-COMP-032"):
        evaluation.on("loopback")


def test_what_else_is_refused():
    with pytest.raises(sf.CompositionError, match=r"client_optimizer is None.*SF-COMP-020"):
        sf.learning.fine_tune(MODEL, None)
    with pytest.raises(sf.CompositionError, match=r"per_client=1.*SF-COMP-096"):
        sf.learning.fine_tune(MODEL, optax.sgd(RATE), per_client=1)


# ---------------------------------------------------------------------------------------- evaluate_clients

PERSONAL = sf.models.from_functions(
    lambda key: {"w": jnp.zeros(2), "b": jnp.float32(0)},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
)


def test_each_client_is_measured_with_its_own_weights():
    process = sf.learning.local_layers(PERSONAL, optax.sgd(RATE), local="b", batching=sf.Batching(size=4))
    state, _ = process.next(process.initialize(), TRAIN, clients=["a", "d"])
    test = sf.Federation.from_clients(TEST)
    reached = sf.learning.evaluate_clients(process, state, test)
    assert list(reached) == list(TEST)
    for k, (x, y) in TEST.items():
        w = process.get_client_weights(state, k)
        expected = np.mean((x @ np.asarray(w["w"]) + float(w["b"]) - y) ** 2) if len(y) else 0.0
        assert reached[k] == {"loss": pytest.approx(expected, rel=1e-5), "num_examples": len(y)}
    assert len({float(process.get_client_weights(state, k)["b"]) for k in TEST}) == 3


def test_example_weights_and_many_rows():
    """Padding to a power of two weighs nothing; from 1,024 rows on nothing is padded here."""
    process = sf.learning.fed_avg(PERSONAL, optax.sgd(RATE))
    draw = np.random.default_rng(0)
    rows = {n: (draw.normal(size=(n, 2)), draw.normal(size=n), draw.random(n)) for n in (1, 5, 8, 1025)}
    reached = sf.learning.evaluate_clients(process, process.initialize(), rows)
    for n, (_, y, weight) in rows.items():
        assert reached[n]["loss"] == pytest.approx((weight * y**2).sum() / weight.sum(), rel=1e-5)
        assert reached[n]["num_examples"] == n


def test_a_process_without_a_model_has_nothing_to_measure():
    moments = sf.analytics.moments(2)
    with pytest.raises(sf.CompositionError, match="SF-COMP-026"):
        sf.learning.evaluate_clients(moments, moments.initialize(), {})


def test_a_model_with_a_loop_of_its_own_is_fine_tuned_by_that_loop():
    sklearn = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    clients = {k: (rng.normal(size=(30, 3)), rng.normal(size=30)) for k in "ab"}
    estimator = sklearn.SGDRegressor(shuffle=False, learning_rate="constant", eta0=0.05, alpha=0.0)
    model = sf.models.from_sklearn(estimator, np.zeros((1, 3)))
    evaluation = sf.learning.fine_tune(model, batching=sf.Batching(size=None, shuffle=False, epochs=2))
    weights = model.init(jax.random.key(0))
    reached = evaluation(weights, clients, clients)
    squared = 0.0
    for x, y in clients.values():
        w, b = np.zeros(3), 0.0
        for row, label in [*zip(x, y, strict=True)] * 2:
            error = row @ w + b - label
            w, b = w - 0.05 * error * row, b - 0.05 * error
        squared += ((x @ w + b - y) ** 2).sum()
    assert reached["fine_tuned_loss"] == pytest.approx(squared / 60, rel=1e-5)
    assert reached["loss"] == pytest.approx(np.mean([(y**2).mean() for _, y in clients.values()]), rel=1e-5)
    there = evaluation.on(sf.Loopback())(weights, clients, clients)
    assert there == pytest.approx(reached, rel=1e-6)
