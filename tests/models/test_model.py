"""What algorithms rely on: masks that hide junk, losses per example, checks before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tree
from sumfold.core.round import Batch
from sumfold.models.model import Examples, Parts, combine, partition, unpack

KEY = jax.random.key(0)
DRAW = np.random.default_rng(0)


def dropout(params, x, key=None):
    hidden = jnp.tanh(x @ params["w"] + params["b"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.5, hidden.shape[-1:]), hidden, 0.0)
    return hidden @ params["v"]


MODEL = sf.models.from_functions(
    lambda key: {"w": jax.random.normal(key, (3, 4)), "b": jnp.zeros(4), "v": jnp.ones((4, 2)), "steps": jnp.int32(3)},
    dropout,
    optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": sf.metrics.accuracy, "auc": sf.metrics.auc},
)
PARTS = MODEL.split(MODEL.init(KEY))
ROWS = 5
X = DRAW.normal(size=(ROWS, 3)).astype(np.float32)
Y = DRAW.integers(0, 2, ROWS).astype(np.int32)


def padded(x=0.0, y=0, weight=None, to=8):
    def fill(a, junk):
        return jnp.asarray(np.concatenate([a, np.full((to - ROWS, *a.shape[1:]), junk, a.dtype)]))

    examples = (fill(X, x), fill(Y, y))
    if weight is not None:
        examples = (*examples, fill(np.ones(ROWS, np.float32), weight))
    return Batch(examples, jnp.arange(to) < ROWS)


@jax.jit
def gradient(batch):
    return MODEL.gradient(PARTS.trainable, PARTS, batch, KEY)


measure = jax.jit(lambda batch: MODEL.measure(PARTS, batch))


def bits(tree_):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(tree_)]


@pytest.mark.parametrize("function", [gradient, measure], ids=["gradient", "measure"])
@pytest.mark.parametrize("weight", [None, 1.0])
@pytest.mark.parametrize("junk", [np.nan, np.inf, -1e30])
def test_junk_in_masked_rows_changes_nothing_bit_for_bit(function, junk, weight):
    clean = bits(function(padded(weight=weight)))
    assert bits(function(padded(x=junk, y=2**30, weight=None if weight is None else junk))) == clean
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(function(padded(x=junk))))


@pytest.mark.parametrize("function", [gradient, measure], ids=["gradient", "measure"])
def test_more_padding_agrees(function):
    a, b, none = (function(padded(to=to)) for to in (8, 16, ROWS))
    for x, y, z in zip(*map(jax.tree.leaves, (a, b, none)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(x, z, rtol=1e-6, atol=1e-6)


def test_rows_of_weight_zero_count_as_absent():
    weight = jnp.asarray([1.0, 0.0, 1.0, 0.0, 1.0])
    kept = np.array([0, 2, 4])
    weighted = gradient(Batch((X, Y, weight), jnp.ones(ROWS, bool)))
    without = gradient(Batch((X[kept], Y[kept]), jnp.ones(3, bool)))
    for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(without), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_weights_weigh_like_repetitions():
    weight = jnp.asarray([2.0, 0.0, 1.0, 3.0, 0.0])
    rows = np.array([0, 0, 2, 3, 3, 3])
    for function in (gradient, measure):
        weighted = function(Batch((X, Y, weight), jnp.ones(ROWS, bool)))
        repeated = function(Batch((X[rows], Y[rows]), jnp.ones(6, bool)))
        for a, b in zip(jax.tree.leaves(weighted), jax.tree.leaves(repeated), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_of_weight_zero_has_no_gradient():
    got, _, sums = gradient(Batch((X, Y, jnp.zeros(ROWS)), jnp.ones(ROWS, bool)))
    assert not any(np.asarray(a).any() for a in jax.tree.leaves(got))
    assert float(MODEL.finish(sums)["loss"]) == 0


def test_the_gradient_is_that_of_the_mean_loss():
    def loss(trainable):
        params = combine(trainable, PARTS.constants)
        return optax.softmax_cross_entropy_with_integer_labels(dropout(params, X, KEY), Y).mean()

    with jax.numpy_rank_promotion("allow"):
        expected = jax.grad(loss)(PARTS.trainable)
    got, _, sums = gradient(padded())
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert float(sums["loss"][1]) == ROWS


def test_dropout_only_while_training():
    one = Batch((jnp.asarray(X), jnp.asarray(Y)), jnp.ones(ROWS, bool))
    a = MODEL.gradient(PARTS.trainable, PARTS, one, jax.random.key(1))[0]["v"]
    b = MODEL.gradient(PARTS.trainable, PARTS, one, jax.random.key(2))[0]["v"]
    assert (np.asarray(a) != np.asarray(b)).any()
    weights = MODEL.init(KEY)
    np.testing.assert_array_equal(MODEL.predict(weights, X), MODEL.predict(weights, X))
    assert (np.tanh(X @ np.asarray(weights["w"])) @ np.ones((4, 2))).round(4).tolist() == MODEL.predict(
        weights, X
    ).astype(np.float64).round(4).tolist()


def test_evaluate_in_chunks_is_evaluate_at_once(monkeypatch):
    weights = MODEL.init(KEY)
    whole = MODEL.evaluate(weights, X, Y)
    monkeypatch.setattr("sumfold.models.model._CHUNK", 2)
    chunked = MODEL.evaluate(weights, X, Y)
    assert whole.keys() == chunked.keys() == {"loss", "accuracy", "auc", "num_examples"}
    assert whole["num_examples"] == chunked["num_examples"] == ROWS
    for name, value in whole.items():
        assert isinstance(value, float | int)
        assert chunked[name] == pytest.approx(value, rel=1e-5)


def test_evaluate_nothing():
    assert MODEL.evaluate(MODEL.init(KEY), X[:0], Y[:0]) == {
        "loss": 0.0,
        "accuracy": 0.0,
        "auc": 0.0,
        "num_examples": 0,
    }


def test_evaluate_refuses_other_lengths():
    with pytest.raises(sf.DataError, match=r"arrays of \[4, 5\] rows.*one length.*SF-DATA-052"):
        MODEL.evaluate(MODEL.init(KEY), X, Y[:4])


@pytest.mark.parametrize(
    ("examples", "weight"),
    [((1, 2), None), ([1, 2, 3], 3), ({"x": 1, "y": 2}, None), ({"x": 1, "y": 2, "weight": 3}, 3)],
)
def test_the_forms_of_an_entry(examples, weight):
    assert unpack(examples) == (1, 2, weight)


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        (np.ones(2), "client examples as one array"),
        ((1,), "client examples as a tuple"),
        ((1, 2, 3, 4), "client examples as a tuple"),
        ({"x": 1, "label": 2}, r"a dict with \['label', 'x'\]"),
        ({"x": 1, "y": 2, "z": 3}, r"a dict with \['x', 'y', 'z'\]"),
    ],
)
def test_other_forms_are_refused(examples, words):
    with pytest.raises(sf.DataError, match=rf"{words}.*example_weight.*SF-DATA-051"):
        unpack(examples)


def test_trees_of_features_are_filled_too():
    batch = Batch(
        ({"a": jnp.asarray([1.0, jnp.nan]), "b": jnp.asarray([[1], [9]])}, jnp.asarray([3, 4])),
        jnp.array([True, False]),
    )
    examples = Examples.of(batch)
    assert examples.x["a"].tolist() == [1, 1]
    assert examples.x["b"].tolist() == [[1], [1]]
    assert examples.y.tolist() == [3, 3]
    assert examples.weight.tolist() == [1, 0]


def test_check_gives_the_shape_of_the_outputs_without_running():
    shapes = Batch((tree.shape((4, 3), "float32"), tree.shape((4,), "int32")), tree.shape((4,), "bool"))
    assert MODEL.check(PARTS, shapes).shape == (4, 2)


def test_partition_and_combine():
    weights = {"a": jnp.ones(2), "n": jnp.int32(1), "deep": [jnp.array(True), jnp.zeros(1, jnp.bfloat16)]}
    floats, others = partition(weights, lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating))
    assert [s.path for s in tree.specs(floats)] == ["a", "deep/1"]
    assert [s.path for s in tree.specs(others)] == ["deep/0", "n"]
    assert tree.structure(combine(floats, others)) == tree.structure(weights)
    assert Parts(floats, (), others).statistics == ()


WEIGHTS = MODEL.init(KEY)


def test_wrong_features_are_explained():
    for use in (lambda x: MODEL.predict(WEIGHTS, x), lambda x: MODEL.evaluate(WEIGHTS, x, Y)):
        with pytest.raises(sf.TypeMismatchError, match=r"x float32\[5, 4\].*SF-TYPE-002") as caught:
            use(np.ones((ROWS, 4), np.float32))
        assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(sf.DataError, match="SF-DATA-007"):
        MODEL.predict(WEIGHTS, np.array([["a"]]))
    with pytest.raises(sf.DataError, match="SF-DATA-009"):
        MODEL.predict(WEIGHTS, [[1.0, 2.0], [3.0]])
    with pytest.raises(sf.DataError, match="SF-DATA-008"):
        MODEL.evaluate(WEIGHTS, 3.0, Y)


def test_lists_are_arrays():
    np.testing.assert_array_equal(MODEL.predict(WEIGHTS, X.tolist()), MODEL.predict(WEIGHTS, X))
    assert MODEL.evaluate(WEIGHTS, X.tolist(), Y.tolist(), [1.0] * ROWS) == MODEL.evaluate(WEIGHTS, X, Y)
    assert MODEL.evaluate(WEIGHTS, [], [])["num_examples"] == 0


def test_weights_are_one_a_row():
    weight = np.arange(ROWS, dtype=np.float32)
    flat = MODEL.evaluate(WEIGHTS, X, Y, weight)
    assert MODEL.evaluate(WEIGHTS, X, Y, weight[:, None]) == flat
    for wrong in (np.ones((ROWS, 2)), np.ones((ROWS, 1, 1))):
        with pytest.raises(sf.DataError, match=r"example_weight.*SF-DATA-056"):
            MODEL.evaluate(WEIGHTS, X, Y, wrong)


def test_weights_of_clients_are_one_a_row():
    process = sf.learning.fed_avg(MODEL, optax.sgd(0.1))
    state = process.initialize()
    weight = np.arange(ROWS, dtype=np.float32)
    flat, _ = process.next(state, [(X, Y, weight)])
    column, _ = process.next(state, [(X, Y, weight[:, None])])
    assert bits(process.get_model_weights(flat)) == bits(process.get_model_weights(column))
    with pytest.raises(sf.DataError, match=r"example_weight that is of shape.*SF-DATA-056"):
        process.next(state, [(X, Y, np.ones((ROWS, 2), np.float32))])
