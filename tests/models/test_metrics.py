"""Metrics are sums over examples: splitting, padding and weighting never change them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sumfold as sf
from sumfold import tree
from sumfold.models.metrics import as_metric, as_metrics, auc_histogram, per_example

DRAW = np.random.default_rng(0)


def value(metric, outputs, y, weight=None):
    weight = np.ones(len(y)) if weight is None else weight
    return float(metric.finish(metric.measure(jnp.asarray(outputs), jnp.asarray(y), jnp.asarray(weight, jnp.float32))))


def exact_auc(scores, y):
    positive, negative = scores[y == 1], scores[y == 0]
    wins = (positive[:, None] > negative).sum() + (positive[:, None] == negative).sum() / 2
    return wins / (len(positive) * len(negative))


@pytest.mark.parametrize(
    ("outputs", "y", "hits"),
    [
        ([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 1, 0], [1, 0, 0]),
        ([[0.1, 0.9], [0.8, 0.2]], [[0, 1], [0, 1]], [1, 0]),
        ([2.0, -1.0, 0.0], [1, 1, 0], [1, 0, 1]),
        ([[2.0], [-1.0]], [[1], [0]], [1, 1]),
        ([[2.0], [-1.0]], [0.0, 0.0], [0, 1]),
        ([[[0.0, 1.0], [1.0, 0.0]]], [[1, 1]], [0.5]),
    ],
)
def test_accuracy(outputs, y, hits):
    found = sf.metrics.accuracy(jnp.asarray(outputs), jnp.asarray(y))
    assert found.dtype == jnp.float32
    assert found.tolist() == hits


def test_mean_absolute_error_takes_columns_and_integers():
    assert sf.metrics.mean_absolute_error(jnp.array([[1.0], [5.0]]), jnp.array([2, 2])).tolist() == [1, 3]
    assert sf.metrics.mean_absolute_error(jnp.array([[1.0, 3.0]]), jnp.array([[0.0, 0.0]])).tolist() == [2]


@pytest.mark.parametrize("kind", ["logits", "probabilities", "two columns", "column"])
def test_auc_is_the_area_under_the_curve(kind):
    y = (DRAW.random(400) < 0.4).astype(np.int32)
    scores = (DRAW.normal(size=400) + y).astype(np.float32)
    outputs = {
        "logits": scores,
        "probabilities": 1 / (1 + np.exp(-scores)),
        "two columns": np.stack([-scores / 2, scores / 2], 1),
        "column": scores[:, None],
    }[kind]
    assert value(sf.metrics.auc, outputs, y) == pytest.approx(exact_auc(scores, y), abs=2e-3)


def test_auc_at_its_edges():
    y = np.array([0, 0, 1, 1])
    assert value(sf.metrics.auc, np.array([0.0, 0.1, 0.8, 0.9]), y) == 1
    assert value(sf.metrics.auc, np.array([0.9, 0.8, 0.1, 0.0]), y) == 0
    assert value(sf.metrics.auc, np.zeros(4), y) == 0.5
    assert value(sf.metrics.auc, np.array([-1e30, -1e4, 1e4, 1e30]), y) == 1
    assert value(sf.metrics.auc, np.zeros(4), np.ones(4)) == 0  # one class only
    assert np.isnan(value(sf.metrics.auc, np.array([0.0, np.nan, 1.0, 2.0]), y))
    assert value(sf.metrics.auc, np.array([0.0, np.nan, 1.0, 2.0]), y, np.array([1, 0, 1, 1])) == 1
    with pytest.raises(sf.CompositionError, match=r"auc_histogram\(1\).*two bins"):
        auc_histogram(1)


@pytest.mark.parametrize(
    "metric", [sf.metrics.auc, as_metric(sf.metrics.accuracy, "accuracy"), per_example(lambda o, y: jnp.abs(o - y))]
)
@given(st.sampled_from([1, 12]), st.sampled_from([0, 5, 12]), st.integers(0, 10**6))
@settings(max_examples=8, deadline=None)
def test_splitting_padding_and_junk_change_nothing(metric, n, cut, seed):
    draw = np.random.default_rng(seed)
    outputs, y = draw.normal(size=n).astype(np.float32), draw.integers(0, 2, n)
    weight = draw.integers(0, 3, n).astype(np.float32)
    cut = min(cut, n)
    pad = 3

    def measured(o, t, w):
        o, t = np.append(o, np.full(pad, np.nan)).astype(np.float32), np.append(t, np.full(pad, 77))
        return metric.measure(jnp.asarray(o), jnp.asarray(t), jnp.asarray(np.append(w, np.zeros(pad)), jnp.float32))

    halves = tree.add(measured(outputs[:cut], y[:cut], weight[:cut]), measured(outputs[cut:], y[cut:], weight[cut:]))
    whole = metric.measure(jnp.asarray(outputs), jnp.asarray(y), jnp.asarray(weight))
    np.testing.assert_allclose(metric.finish(halves), metric.finish(whole), rtol=1e-5)
    repeated = [np.repeat(a, weight.astype(int)) for a in (outputs, y)]
    if len(repeated[0]):
        assert value(metric, *repeated) == pytest.approx(float(metric.finish(whole)), rel=1e-4)
    else:
        assert float(metric.finish(whole)) == 0
    assert tree.specs(metric.zero) == tree.specs(whole)


@pytest.mark.parametrize("shape", [(), (3,), (4, 2), (1, 4)])
def test_a_metric_that_is_not_per_example(shape):
    metric = as_metric(lambda outputs, y: jnp.zeros(shape), "mine")
    with pytest.raises(sf.TypeMismatchError, match=r"the metric 'mine' returned shape .* batch of 4.*before any mean"):
        metric.measure(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"accuracy": "accuracy"}, r"the metric 'accuracy' is a str.*SF-COMP-010"),
        (["accuracy"], r"metrics as a list.*name -> metric.*SF-COMP-011"),
        ({"loss": sf.metrics.accuracy}, r"a metric named 'loss'.*rename.*SF-COMP-012"),
        ({"num_clients": sf.metrics.accuracy}, r"a metric named 'num_clients'"),
    ],
)
def test_metrics_that_cannot_be_used(metrics, words):
    with pytest.raises(sf.CompositionError, match=words):
        as_metrics(metrics)


def test_auc_takes_one_hot_labels():
    scores = jnp.array([[0.2, 0.1], [0.0, 0.4], [0.3, 0.35], [0.1, 0.8]])
    y = jnp.array([0, 0, 1, 1])
    expected = sf.metrics.auc.finish(sf.metrics.auc.measure(scores, y, jnp.ones(4)))
    for labels in (jax.nn.one_hot(y, 2), jax.nn.one_hot(y, 2, dtype=jnp.int32), y[:, None]):
        assert sf.metrics.auc.finish(sf.metrics.auc.measure(scores, labels, jnp.ones(4))) == expected
