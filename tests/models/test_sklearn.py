"""scikit-learn estimators: what is averaged, what adds up, and against pooled fits."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

import sumfold as sf

pytest.importorskip("sklearn")
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression, SGDClassifier, SGDRegressor
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, ComplementNB, GaussianNB, MultinomialNB
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

RUNTIMES = pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=["simulation", "loopback"])


def flat(federation):
    return sf.Federation.from_clients({k: (federation[k][0].reshape(-1, 64), federation[k][1]) for k in federation})


@pytest.fixture(scope="module")
def digits():
    train, test = sf.data.digits(clients=20, alpha=0.3)
    return flat(train), flat(test)


def trained(model, data, rounds, runtime, **options):
    process = sf.learning.fed_avg(model, **options).on(runtime)
    state = process.initialize(seed=0)
    for _ in range(rounds):
        state, metrics = process.next(state, data)
    return process.get_model_weights(state), metrics


@pytest.mark.slow
def test_a_federated_sgd_classifier_reads_digits(digits):
    train, test = digits
    model = sf.models.from_sklearn(SGDClassifier(), train.pooled()[0][:10], classes=range(10))
    weights, _ = trained(model, train, 25, sf.Simulation())
    assert model.evaluate(weights, *test.pooled())["accuracy"] >= 0.93


@RUNTIMES
@pytest.mark.parametrize("estimator", [GaussianNB(), MultinomialNB(), BernoulliNB(), ComplementNB()], ids=repr)
def test_one_round_of_naive_bayes_is_the_pooled_fit(digits, estimator, runtime):
    train, test = digits
    x, _ = test.pooled()
    model = sf.models.from_sklearn(estimator, x[:10], classes=range(10))
    for rounds in (1, 2):  # a second round counts nothing twice
        weights, _ = trained(model, train, rounds, runtime)
        np.testing.assert_allclose(
            model.predict(weights, x), estimator.fit(*train.pooled()).predict_proba(x), atol=1e-4
        )


def test_gaussian_naive_bayes_survives_features_far_from_zero():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 150)
    x = rng.normal(size=(150, 4)) + y[:, None] + 1e4
    model = sf.models.from_sklearn(GaussianNB(), x[:10], classes=range(3))
    weights, _ = trained(model, [(x[k::3], y[k::3]) for k in range(3)], 1, sf.Loopback())
    pooled = GaussianNB().fit(x, y)
    seen = x.astype(np.float32).astype(np.float64)
    np.testing.assert_allclose(model.predict(weights, x), pooled.predict_proba(seen), atol=2e-2)
    assert np.array_equal(model.export(weights).predict(seen), GaussianNB().fit(seen, y).predict(seen))


def test_the_estimator_comes_back_fitted(digits):
    train, test = digits
    model = sf.models.from_sklearn(SGDClassifier(random_state=0), train.pooled()[0][:10], classes=range(10))
    weights, _ = trained(model, train.subset(range(3)), 1, sf.Loopback())
    x, y = test.pooled()
    estimator = model.export(weights)
    assert isinstance(estimator, SGDClassifier)
    assert estimator.score(x, y) == pytest.approx(model.evaluate(weights, x, y)["accuracy"])


def test_a_run_without_a_random_state_can_be_resumed(tmp_path):
    rng = np.random.default_rng(0)
    clients = {k: (rng.normal(size=(9, 3)), rng.integers(0, 2, 9)) for k in "ab"}

    def process():
        model = sf.models.from_sklearn(SGDClassifier(), np.zeros((1, 3)), classes=[0, 1])
        return sf.learning.fed_avg(model).on(sf.Loopback())

    sf.train(process(), clients, rounds=2, checkpoint=tmp_path, progress=False)
    history = sf.train(process(), clients, rounds=4, checkpoint=tmp_path, progress=False)
    straight = sf.train(process(), clients, rounds=4, progress=False)
    for a, b in zip(jax.tree.leaves(history.state), jax.tree.leaves(straight.state), strict=True):
        assert np.array_equal(a, b)


@RUNTIMES
def test_a_linear_round_is_the_weighted_mean_of_partial_fits(runtime):
    rng = np.random.default_rng(0)
    clients = [(rng.normal(size=(n, 3)), rng.normal(size=n)) for n in (5, 9, 1)]
    estimator = SGDRegressor(shuffle=False, learning_rate="constant", eta0=0.05, alpha=0.0)
    model = sf.models.from_sklearn(estimator, np.zeros((1, 3)))
    batching = sf.Batching(size=None, shuffle=False)
    weights, _ = trained(model, clients, 3, runtime, batching=batching)

    w, b = np.zeros(3), 0.0
    for _ in range(3):
        ends = []
        for x, y in clients:
            v, c = w.copy(), b
            for row, label in zip(x.astype(np.float32).astype(float), y.astype(np.float32).astype(float), strict=True):
                error = row @ v + c - label
                v, c = v - 0.05 * error * row, c - 0.05 * error
            ends.append((v, c))
        sizes = np.array([len(x) for x, _ in clients]) / 15
        w = sum(s * v for s, (v, _) in zip(sizes, ends, strict=True))
        b = sum(s * c for s, (_, c) in zip(sizes, ends, strict=True))
    np.testing.assert_allclose(weights["coef_"], w, atol=1e-5)
    np.testing.assert_allclose(weights["intercept_"], [b], atol=1e-5)


@pytest.mark.parametrize(
    "estimator",
    [SGDClassifier(loss="log_loss"), MLPClassifier((8,)), MiniBatchKMeans(3, n_init=1)],
    ids=["linear", "layers", "centres"],
)
def test_both_runtimes_agree_with_a_server_optimizer_and_uniform_weights(digits, estimator):
    train, _ = digits
    train = train.subset(range(4))
    model = sf.models.from_sklearn(estimator, train.pooled()[0][:10], classes=range(10))
    options = {"server_optimizer": optax.adam(0.05), "weighting": "uniform"}
    here, metrics = trained(model, train, 2, sf.Simulation(), **options)
    there, _ = trained(model, train, 2, sf.Loopback(), **options)
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert metrics["client_work"]["train"]["num_clients"] == 4


def test_layers_begin_with_weights_that_follow_from_the_seed(digits):
    train, _ = digits
    model = sf.models.from_sklearn(MLPClassifier((8,)), train.pooled()[0][:2], classes=range(10))
    process = sf.learning.fed_avg(model)
    one, other, again = (process.get_model_weights(process.initialize(seed)) for seed in (0, 1, 0))
    assert np.array_equal(one["coefs_0"], again["coefs_0"])
    assert not np.array_equal(one["coefs_0"], other["coefs_0"])
    bound = np.sqrt(6 / (64 + 8))
    assert 0.9 * bound < np.abs(one["coefs_0"]).max() <= bound


def test_a_fitted_estimator_gives_the_initial_weights(digits):
    train, _ = digits
    fitted = SGDClassifier(random_state=0).fit(*train.pooled())
    model = sf.models.from_sklearn(fitted)
    weights = model.init(jax.random.key(0))
    np.testing.assert_allclose(weights["coef_"], fitted.coef_, rtol=1e-6)
    x, y = train.pooled()
    assert model.evaluate(weights, x, y)["accuracy"] == pytest.approx(fitted.score(x, y))


def test_points_without_labels_are_clustered():
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    clients = [centres[rng.integers(0, 3, 40)] + rng.normal(scale=0.1, size=(40, 2)) for _ in range(4)]
    model = sf.models.from_sklearn(MiniBatchKMeans(3, n_init=3, random_state=0), np.concatenate(clients))
    weights, metrics = trained(model, clients, 3, sf.Loopback())
    found = np.asarray(weights["cluster_centers_"])
    assert np.abs(found[:, None] - centres).sum(-1).min(0).max() < 0.2
    assert metrics["client_work"]["train"]["loss"] < 0.1


def test_categories_are_counted_over_all_clients():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, [3, 5, 2], (90, 3)), rng.integers(0, 2, 90)
    model = sf.models.from_sklearn(CategoricalNB(min_categories=[3, 5, 2]), x[:4], classes=[0, 1])
    weights, _ = trained(model, [(x[:20], y[:20]), (x[20:], y[20:])], 1, sf.Loopback())
    np.testing.assert_allclose(model.predict(weights, x), CategoricalNB().fit(x, y).predict_proba(x), atol=1e-6)


def test_example_weights_of_zero_leave_rows_out():
    x, y = np.array([[0.0], [1.0], [5.0]]), np.array([0, 1, 0])
    model = sf.models.from_sklearn(GaussianNB(), x, classes=[0, 1])
    weights, _ = trained(model, [(x, y, np.array([1.0, 1.0, 0.0]))], 1, sf.Loopback())
    np.testing.assert_allclose(weights["moments_0"], [1, 1])
    without = sf.models.from_sklearn(SGDClassifierWithoutWeights(), x, classes=[0, 1])
    with pytest.raises(sf.CompositionError, match="SF-MODEL-035"):
        trained(without, [(x, y, np.ones(3))], 1, sf.Loopback())


class SGDClassifierWithoutWeights(SGDClassifier):
    def partial_fit(self, X, y, classes=None):
        return super().partial_fit(X, y, classes=classes)


def refused(code, *args, **options):
    with pytest.raises(sf.CompositionError) as caught:
        sf.models.from_sklearn(*args, **options)
    assert caught.value.code == code
    return str(caught.value)


def test_estimators_that_cannot_be_used_are_refused():
    x = np.zeros((2, 3))
    assert "no partial_fit" in refused("SF-MODEL-030", LogisticRegression(), x, classes=[0, 1])
    assert "Pipeline" in refused("SF-MODEL-030", make_pipeline(StandardScaler(), SGDClassifier()), x)
    assert "the class SGDClassifier" in refused("SF-MODEL-030", SGDClassifier, x)
    assert "StandardScaler" in refused("SF-MODEL-031", StandardScaler(), x)
    assert "average=True" in refused("SF-MODEL-032", SGDClassifier(average=True), x, classes=[0, 1])
    assert "no example" in refused("SF-MODEL-033", SGDClassifier(), classes=[0, 1])
    assert "2 rows for 3 clusters" in refused("SF-MODEL-033", MiniBatchKMeans(3), x)
    assert "classes=None" in refused("SF-MODEL-034", SGDClassifier(), x)
    assert "classes=[1]" in refused("SF-MODEL-034", SGDClassifier(), x, classes=[1])
    assert "early_stopping" in refused("SF-MODEL-036", SGDClassifier(early_stopping=True), x, classes=[0, 1])
