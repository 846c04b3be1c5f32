"""Federated evaluation: the same numbers as evaluating everything at once, as sums."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.driver import check_groups

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


# ---------------------------------------------------------------------------------------- ratios of sums (A45)


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
def test_a45_metrics_are_ratios_of_sums(runtime):
    """Clients that measured (1, 2) and (3, 6) give 4/8; (1, 1) and (0, 9) give 1/10, where ratios' mean is 1/2."""

    def sums(outputs, y, weight):
        return (y[:, 0] * weight).sum(), (y[:, 1] * weight).sum()

    share = sf.metrics.Metric((np.float32(0), np.float32(0)), sums, lambda pair: pair[0] / jnp.maximum(pair[1], 1))
    model = sf.models.from_functions(
        lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: jnp.zeros(len(y)), {"share": share}
    )
    process = sf.learning.fed_eval(model, batching=sf.Batching(size=2, shuffle=False)).on(runtime)
    for (a, b), expected in {((1, 2), (3, 6)): 0.5, ((1, 1), (0, 9)): 0.1}.items():
        # each client's two numbers come in two batches
        y = [np.array([pair, (0, 0), (0, 0)], np.float32) for pair in (a, b)]
        y[1][2], y[1][0] = y[1][0], 0
        _, metrics = process.next(process.initialize(), [(np.zeros(3, np.float32), rows) for rows in y])
        assert metrics["client_work"]["eval"]["share"] == pytest.approx(expected)


# ---------------------------------------------------------------------------------------- single clients


@pytest.fixture(scope="module", params=[sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
def single(request):
    return sf.learning.fed_eval(MODEL, batching=sf.Batching(size=8, shuffle=False), per_client=True).on(request.param)


@functools.cache
def evaluated(k):
    return MODEL.evaluate(WEIGHTS, *CLIENTS[k])


def test_each_clients_own_metrics_when_asked_for(single, process):
    state = single.set_model_weights(single.initialize(), WEIGHTS)
    bad = {**CLIENTS, "nan": (np.full((2, 3), np.nan, np.float32), np.array([0, 1]))}
    for cohort in (list(bad), ["d", "nan", "c", "b", "a"], []):
        _, metrics = single.next(state, bad, clients=cohort)
        found = metrics["client_work"]["eval"].pop("clients")
        assert list(found) == [k for k in cohort if k != "nan"]
        for k, values in found.items():
            expected = evaluated(k)
            assert values.keys() == expected.keys()
            assert values == pytest.approx(expected, rel=1e-5), k
        # the sums are those of an evaluation that was not asked
        _, plain = process.next(process.set_model_weights(process.initialize(), WEIGHTS), bad, clients=cohort)
        for name, value in plain["client_work"]["eval"]["total_rounds_metrics"].items():
            assert metrics["client_work"]["eval"]["total_rounds_metrics"][name] == pytest.approx(value, rel=1e-5)
    assert "clients" not in plain["client_work"]["eval"]


def test_ids_are_numbers_where_clients_are_numbered(single):
    x, y = np.ones((5, 3), np.float32), np.zeros(5, np.int32)
    state = single.initialize()
    _, of_list = single.next(state, [(x, y), (x[:2], y[:2])])
    assert {k: v["num_examples"] for k, v in of_list["client_work"]["eval"]["clients"].items()} == {0: 5, 1: 2}
    fed = sf.Federation.from_arrays(x, y, client_ids=np.array([7, 7, 3, 7, 3]))
    _, of_arrays = single.next(state, fed, clients=np.array([7]))
    assert list(of_arrays["client_work"]["eval"]["clients"]) == [7]
    json.dumps(of_arrays)


def test_they_survive_a_history_and_its_file(tmp_path):
    process = sf.learning.fed_eval(MODEL, per_client=True)
    history = sf.train(process, CLIENTS, rounds=2, clients_per_round=2, checkpoint=tmp_path / "run", progress=False)
    history.save(tmp_path / "run.json")
    saved = json.loads((tmp_path / "run.json").read_text())["metrics"]
    assert saved == history.metrics
    assert all(len(metrics["client_work"]["eval"]["clients"]) == 2 for metrics in saved)
    again = sf.train(process, CLIENTS, rounds=2, clients_per_round=2, checkpoint=tmp_path / "run", progress=False)
    assert again.metrics == history.metrics


def test_the_explanation_says_so(process):
    single = sf.learning.fed_eval(MODEL, per_client=True)
    text = single.explain(CLIENTS)
    assert "part 'clients': the algorithm uses EVERY CLIENT'S OWN VALUE: this rule needs individuals (stack)" in text
    assert "EVERY CLIENT" not in process.explain(CLIENTS)


def test_a_runtime_of_sums_alone_refuses_it(process):
    class Sums(sf.Simulation):
        groups = frozenset({"add", "modular"})

        def bind(self, round):
            check_groups(round, self)
            return super().bind(round)

    single = sf.learning.fed_eval(MODEL, per_client=True).on(Sums())
    with pytest.raises(sf.CompositionError, match=r"part 'clients' of 'fed_eval' needs the group 'stack'.*SF-COMP-005"):
        single.next(single.initialize(), CLIENTS)
    plain = process.on(Sums())
    assert plain.next(plain.initialize(), CLIENTS).metrics["client_work"]["eval"]["num_examples"] == 40


@pytest.mark.parametrize("value", [1, None, "yes"])
def test_per_client_is_a_yes_or_no(value):
    with pytest.raises(sf.CompositionError, match=rf"per_client={value!r}.*True or False.*SF-COMP-096"):
        sf.learning.fed_eval(MODEL, per_client=value)
