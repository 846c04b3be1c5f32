import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from keras import layers

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError
from sumfold.models import from_keras
from sumfold.models.keras_metrics import build
from sumfold.models.metrics import Metric

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(8, 3)).astype(np.float32)
CLASSES, BINARY = ROWS.integers(0, 4, 8), ROWS.integers(0, 2, 8)


def dense(units=4, activation="softmax"):
    return keras.Sequential([keras.Input((3,)), layers.Dense(units, activation)])


def predicted(net, x):
    return np.asarray(foreign(net)(x, training=False))


M = keras.metrics
N = 60
WEIGHT = np.where(np.arange(N) % 5 == 0, 0, ROWS.uniform(0.5, 2, N)).astype(np.float32)
PROBABILITY = ROWS.uniform(size=(N, 1)).astype(np.float32)
PROBABILITIES = ROWS.dirichlet(np.ones(3), N).astype(np.float32)
TWO, THREE = ROWS.integers(0, 2, N), ROWS.integers(0, 3, N)
ONE_HOT = np.eye(3, dtype=np.float32)[THREE]
LABELS = ROWS.integers(0, 2, (N, 3)).astype(np.float32)
REAL, GUESS = ROWS.normal(size=(N, 2)).astype(np.float32), ROWS.normal(size=(N, 2)).astype(np.float32)

KINDS = [
    *((cls(), TWO[:, None], PROBABILITY) for cls in (M.BinaryAccuracy, M.BinaryCrossentropy, M.Hinge, M.SquaredHinge)),
    *(
        (cls(), ONE_HOT, PROBABILITIES)
        for cls in (M.CategoricalAccuracy, M.CategoricalCrossentropy, M.CategoricalHinge, M.KLDivergence, M.Poisson)
    ),
    (M.TopKCategoricalAccuracy(2), ONE_HOT, PROBABILITIES),
    *(
        (metric, THREE, PROBABILITIES)
        for metric in (
            M.SparseCategoricalAccuracy(),
            M.SparseCategoricalCrossentropy(),
            M.SparseTopKCategoricalAccuracy(2),
        )
    ),
    *(
        (cls(), REAL, GUESS)
        for cls in (
            M.MeanSquaredError,
            M.MeanAbsoluteError,
            M.RootMeanSquaredError,
            M.CosineSimilarity,
            M.LogCoshError,
            M.R2Score,
            M.MeanAbsolutePercentageError,
            M.MeanSquaredLogarithmicError,
            M.PearsonCorrelation,
            M.ConcordanceCorrelation,
        )
    ),
    (M.Accuracy(), TWO[:, None], (PROBABILITY > 0.5).astype(np.float32)),
    *(
        (metric, TWO[:, None], PROBABILITY)
        for metric in (
            M.AUC(),
            M.AUC(curve="PR"),
            M.AUC(thresholds=[0.1, 0.4, 0.8]),
            M.Precision(),
            M.Recall(thresholds=[0.2, 0.7]),
            M.TruePositives(),
            M.TrueNegatives(),
            M.FalsePositives(),
            M.FalseNegatives(),
            M.SensitivityAtSpecificity(0.5),
            M.SpecificityAtSensitivity(0.5),
            M.PrecisionAtRecall(0.5),
            M.RecallAtPrecision(0.5),
            M.BinaryIoU(),
        )
    ),
    *(
        (metric, LABELS, PROBABILITIES)
        for metric in (
            M.AUC(),
            M.AUC(multi_label=True),
            M.Precision(),
            M.Recall(class_id=1),
            M.TruePositives(),
            M.FBetaScore(threshold=0.5),
            M.F1Score(average="macro"),
            M.PrecisionAtRecall(0.5),
        )
    ),
    (M.IoU(3, [0, 1], sparse_y_pred=False), THREE, PROBABILITIES),
    (M.MeanIoU(3, sparse_y_pred=False), THREE, PROBABILITIES),
    (M.OneHotIoU(3, [0, 2]), ONE_HOT, PROBABILITIES),
    (M.OneHotMeanIoU(3), ONE_HOT, PROBABILITIES),
]


@pytest.mark.filterwarnings("ignore:You are passing weight as", "ignore:Explicitly requested dtype int64")
@pytest.mark.parametrize(("metric", "y", "outputs"), KINDS, ids=[type(kind[0]).__name__ for kind in KINDS])
def test_metrics_add_up_to_those_of_keras(metric, y, outputs):
    """Sums over parts, finished once, are Keras's own result on all rows that have a weight."""
    inputs = keras.Input(outputs.shape[1:])
    mine = from_keras(keras.Model(inputs, inputs), "mse", {"it": metric}).metrics["it"]
    fractional = not isinstance(metric, M.IoU)  # Keras's own cuts such weights to integers
    weights = WEIGHT if fractional else np.sign(WEIGHT)
    total = mine.zero
    for rows in np.split(np.arange(N), 3):
        part = foreign(jax.jit(mine.measure))(outputs[rows], y[rows], weights[rows])
        assert tree.specs(part) == tree.specs(mine.zero)
        total = tree.add(total, part)

    def whole(y, outputs, weights):
        own = type(metric).from_config(metric.get_config())
        build(own, keras.Model(inputs, inputs))
        zero = [jnp.zeros(v.shape, v.dtype) for v in own.variables]
        return own.stateless_result(own.stateless_update_state(zero, y, outputs, sample_weight=weights))

    counted = weights > 0
    expected = foreign(jax.jit(whole))(y[counted], outputs[counted], weights[counted])
    finish = foreign(jax.jit(mine.finish))
    np.testing.assert_allclose(finish(total), expected, rtol=2e-5, atol=1e-6)
    assert not np.any(finish(mine.zero))
    assert not any(np.any(np.asarray(v)) for v in metric.variables), "the user's metric keeps its own state"


def test_fractional_weights_count_in_iou():
    mine = from_keras(dense(3), "mse", {"iou": M.MeanIoU(3, sparse_y_pred=False)}).metrics["iou"]
    matrix = mine.measure(np.eye(3), np.array([0, 1, 1]), jnp.array([0.5, 0.25, 1]))[0]
    np.testing.assert_allclose(matrix, [[0.5, 0, 0], [0, 0.25, 1], [0, 0, 0]])


@pytest.mark.filterwarnings("ignore:Explicitly requested dtype int64")
def test_iou_of_images_weighs_every_pixel():
    net = keras.Sequential([keras.Input((2, 2, 1)), layers.Conv2D(3, 1, activation="softmax")])
    model = from_keras(net, "sparse_categorical_crossentropy", {"iou": M.MeanIoU(3, sparse_y_pred=False)})
    x, y = ROWS.normal(size=(5, 2, 2, 1)).astype(np.float32), ROWS.integers(0, 3, (5, 2, 2))
    metric = M.MeanIoU(3, sparse_y_pred=False)
    foreign(metric.update_state)(y, predicted(net, x))
    assert model.evaluate(model.init(KEY), x, y)["iou"] == pytest.approx(float(foreign(metric.result)()))


@pytest.mark.parametrize(
    ("units", "y"), [(1, BINARY), (1, BINARY[:, None]), (4, CLASSES), (4, CLASSES[:, None]), (4, np.eye(4)[CLASSES])]
)
def test_accuracy_is_what_compile_makes_of_it(units, y):
    net = dense(units, "sigmoid" if units == 1 else "softmax")
    net.compile(loss="mse", metrics=["accuracy"])
    narrow = y.astype(np.int32)  # Keras asks JAX for the labels' own dtype, and JAX warns of 64 bits
    two = narrow if y.ndim == 2 else narrow[:, None]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = net.evaluate(X, two, verbose=0, return_dict=True) if units == 1 or y.ndim == 2 else None
        if expected is None:
            net.compile(loss="sparse_categorical_crossentropy", metrics=["accuracy"])
            expected = net.evaluate(X, narrow, verbose=0, return_dict=True)
    own = lambda outputs, y: jnp.zeros(len(y))
    model = from_keras(net, own, ["accuracy"])
    assert model.evaluate(model.init(KEY), X, y)["accuracy"] == pytest.approx(expected["accuracy"])


def test_metrics_by_list_and_by_dict():
    def half(outputs, y):
        return jnp.full(len(y), 0.5)

    model = from_keras(dense, "sparse_categorical_crossentropy", [
        "accuracy", M.SparseTopKCategoricalAccuracy(2, name="top2"), half, M.SparseCategoricalAccuracy,
        keras.losses.SparseCategoricalCrossentropy(name="own_loss"), keras.metrics.sparse_categorical_accuracy,
    ])  # fmt: skip
    result = model.evaluate(model.init(KEY), X, CLASSES)
    assert result["half"] == 0.5
    assert result["accuracy"] == result["sparse_categorical_accuracy"]
    assert result["SparseCategoricalAccuracy"] == result["accuracy"]
    assert "top2" in result
    assert result["own_loss"] == pytest.approx(result["loss"], rel=1e-5)
    count = Metric(np.float32(0), lambda outputs, y, weight: weight.sum(), lambda total: total)
    model = from_keras(dense, "sparse_categorical_crossentropy", {"rows": count, "hits": "accuracy"})
    assert model.evaluate(model.init(KEY), X, CLASSES)["rows"] == 8


class LastSeen(M.Metric):
    def __init__(self, name="last_seen"):
        super().__init__(name=name)
        self.last = self.add_variable((), "zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.last.assign(keras.ops.max(y_pred))

    def result(self):
        return self.last


def branches():
    inputs = keras.Input((3,))
    return keras.Model(inputs, [layers.Dense(1)(inputs), layers.Dense(2)(inputs)])


class Headless(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


def headless():
    net = Headless()
    net(X)
    return net


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: from_keras(dense, "mse", ["mse", "mse"]), ["SF-MODEL-006", "'mse'"]),
        (lambda: from_keras(branches, lambda o, y: y, ["mse"]), ["SF-MODEL-007", "'mse'"]),
        (lambda: from_keras(dense, "mse", ["no_such_metric"]), ["SF-MODEL-008", "no_such_metric"]),
        (lambda: from_keras(dense, "mse", [LastSeen()]), ["SF-MODEL-009", "'last_seen'", "LastSeen"]),
        (lambda: from_keras(dense, "mse", [M.Mean(name="m")]), ["SF-MODEL-009", "'m'"]),
        (lambda: from_keras(dense, "mse", [M.R2Score(num_regressors=2)]), ["SF-MODEL-009", "R2Score"]),
        (lambda: from_keras(headless, "mse", [M.F1Score()]), ["SF-MODEL-010", "f1_score", "update_state"]),
        (lambda: from_keras(dense, "mse", "accuracy"), ["SF-COMP-011"]),
        (lambda: from_keras(dense, "mse", {"a": 3}), ["SF-COMP-010"]),
        (lambda: from_keras(dense, "mse", {"loss": "mse"}), ["SF-COMP-012", "'loss'"]),
    ],
)
def test_refused_with_the_reason(given, words):
    with pytest.raises(CompositionError) as caught:
        given()
    assert [word for word in words if word not in str(caught.value)] == []
