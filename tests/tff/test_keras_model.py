"""from_keras_model: what an input_spec may look like, models without weights, metrics that are made."""

from typing import NamedTuple

import keras
import numpy as np
import pytest

from sumfold import tff
from sumfold.errors import CompositionError
from sumfold.tff.learning.input_spec import Spec, features_of

MSE = keras.losses.MeanSquaredError()
X = Spec((None, 3), "float32")


class Tensor(NamedTuple):
    shape: tuple
    dtype: object


class Struct:
    def __init__(self, elements):
        self.elements = elements


class Sequence:
    def __init__(self, element):
        self.element = element


class Dataset:
    def __init__(self, element_spec):
        self.element_spec = element_spec


x, y = Tensor((None, 3), np.dtype("float32")), Tensor((None,), np.dtype("int32"))


@pytest.mark.parametrize(
    "spec",
    [
        (x, y),
        [x, y],
        {"y": y, "x": x},
        Dataset((x, y)),
        Sequence(Struct(((None, x), (None, y)))),
        Struct((("x", x), ("y", y))),
        Struct({"x": x, "y": y}),
        (((None, 3), np.float32), ((None,), np.int32)),
        ((np.float32, [None, 3]), (np.int32, [None])),
        (("float32", (None, 3)), ("int32", (None,))),
        (np.zeros((0, 3), np.float32), np.zeros(0)),
        (x, y, y),
    ],
)
def test_a_spec_in_many_forms(spec):
    found = features_of(spec)
    assert (found.shape[1:], found.dtype) == (X.shape[1:], X.dtype)


def test_features_of_several_arrays():
    assert features_of(({"a": x, "b": (x, y)}, y)) == {"a": X, "b": (X, Spec((None,), "int32"))}


@pytest.mark.parametrize(
    "spec", [None, 3, x, (x,), (x, y, y, y), {"a": x, "b": y}, (((None,), "no"), y), "xy", (Tensor(None, "f4"), y)]
)
def test_a_spec_that_cannot_be_read(spec):
    with pytest.raises(CompositionError, match=r"input_spec is .*element_spec.*SF-COMP-073"):
        tff.learning.from_keras_model(keras.Sequential([keras.layers.Dense(1)]), MSE, spec)


def test_a_model_without_weights_is_built():
    net = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(1)])
    model = tff.learning.from_keras_model(net, MSE, (x, y))
    assert [tuple(w.shape) for w in net.weights] == [(3, 2), (2,), (2, 1), (1,)]
    assert model.name == net.name


def test_a_model_of_several_inputs_is_built():
    @keras.saving.register_keras_serializable("tests")
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.left, self.right = keras.layers.Dense(1), keras.layers.Dense(1)

        def call(self, inputs):
            return self.left(inputs["a"]) + self.right(inputs["b"])

    net = Two()
    tff.learning.from_keras_model(net, MSE, ({"a": x, "b": Tensor((None, 5), np.float32)}, y))
    assert sorted(tuple(w.shape) for w in net.trainable_weights) == [(1,), (1,), (3, 1), (5, 1)]


def test_integers_reach_an_embedding():
    net = keras.Sequential([keras.layers.Embedding(7, 2), keras.layers.Flatten(), keras.layers.Dense(1)])
    tff.learning.from_keras_model(net, MSE, (Tensor((None, 4), np.int32), y))
    assert [tuple(w.shape) for w in net.weights] == [(7, 2), (8, 1), (1,)]


def test_a_spec_that_the_model_does_not_take():
    with pytest.raises(CompositionError, match=r"failed on the features of input_spec.*SF-COMP-075"):
        tff.learning.from_keras_model(keras.Sequential([keras.layers.Dense(1)]), MSE, (Tensor((None,), "f4"), y))


@pytest.mark.parametrize(
    "given",
    [{"loss": MSE, "loss_weights": [1.0]}, {"loss": [MSE, MSE]}, {"loss": {"a": MSE}}],
    ids=["weights", "list", "dict"],
)
def test_several_losses_are_refused(given):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(CompositionError, match=r"several outputs; needed: one loss.*SF-COMP-074"):
        tff.learning.from_keras_model(net, input_spec=(x, y), **given)


def per_example(outputs, labels):
    return (outputs[:, 0] - labels) ** 2


@pytest.mark.parametrize(
    ("metrics", "names"),
    [
        (None, []),
        ([keras.metrics.MeanAbsoluteError()], ["mean_absolute_error"]),
        ([keras.metrics.MeanAbsoluteError], ["mean_absolute_error"]),
        ([lambda: keras.metrics.MeanAbsoluteError(name="mae")], ["mae"]),
        ({"a": lambda: keras.metrics.MeanAbsoluteError(), "b": per_example}, ["a", "b"]),
        (["mean_absolute_error", per_example], ["mean_absolute_error", "per_example"]),
    ],
)
def test_metrics_may_be_made(metrics, names):
    net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model = tff.learning.from_keras_model(net, MSE, (x, y), metrics=metrics)
    assert sorted(model.metrics) == names


def test_something_else_than_a_keras_model():
    with pytest.raises(CompositionError, match="SF-MODEL-002"):
        tff.learning.from_keras_model(3, MSE, (x, y))
