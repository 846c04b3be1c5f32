"""A model from Keras, with TFF's arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, user_facing
from sumfold.models.keras import from_keras, on_jax
from sumfold.models.model import Model
from sumfold.tff.learning.input_spec import Spec, features_of

__all__ = ["from_keras_model"]


@user_facing
def from_keras_model(
    keras_model: Any, loss: Any, input_spec: Any, loss_weights: Any = None, metrics: Any = None
) -> Model:
    """`sumfold.models.from_keras` with TFF's arguments, for use in a ``model_fn``.

    Args:
        keras_model: a Keras 3 model; one without weights yet is built for `input_spec`.
        loss: a Keras loss, or a function (outputs, y) -> loss of each example.
        input_spec: shapes and dtypes of one batch (x, y): ``dataset.element_spec``, a sumfold type, or nested
            (shape, dtype) pairs; the first axis is that of the batch.
        loss_weights: has no counterpart.
        metrics: a list or dict of Keras metrics, or of functions without arguments that make them; and of whatever
            `sumfold.models.from_keras` takes.

    Raises:
        CompositionError: for an `input_spec` that cannot be read or does not fit, several losses, or what
            `sumfold.models.from_keras` refuses.

    Example:
        >>> import keras, numpy as np
        >>> net = keras.Sequential([keras.layers.Dense(2, activation="softmax")])
        >>> model = from_keras_model(
        ...     net,
        ...     loss=keras.losses.SparseCategoricalCrossentropy(),
        ...     input_spec=(((None, 3), np.float32), ((None, 1), np.int32)),
        ...     metrics=[keras.metrics.SparseCategoricalAccuracy],
        ... )
        >>> [tuple(weight.shape) for weight in net.weights], list(model.metrics)
        ([(3, 2), (2,)], ['sparse_categorical_accuracy'])
    """
    if loss_weights is not None or isinstance(loss, list | tuple | dict):
        several = "loss_weights" if loss_weights is not None else f"a {type(loss).__name__} of losses"
        raise CompositionError(
            "SF-COMP-074",
            f"{several} for a model of several outputs",
            "one loss",
            "weigh and add the losses of the outputs in a function (outputs, y) -> loss of each example",
        )
    keras = on_jax()
    features = features_of(input_spec)
    if isinstance(keras_model, keras.layers.Layer) and not keras_model.built:
        build(keras, keras_model, features)
    return from_keras(keras_model, loss, measured(keras, metrics))


def build(keras: Any, model: Any, features: Any) -> None:
    """Give a Keras model its weights, by showing it what its input looks like.

    Raises:
        CompositionError: when it does not take such an input.
    """

    def symbol(node: Any) -> Any:
        if isinstance(node, Spec):
            return keras.KerasTensor(node.shape, keras.backend.standardize_dtype(node.dtype))
        if isinstance(node, Mapping):
            return {name: symbol(child) for name, child in node.items()}
        return tuple([symbol(child) for child in node])

    try:
        foreign(model)(symbol(features))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise CompositionError(
            "SF-COMP-075",
            f"the Keras model {model.name!r} failed on the features of input_spec, {features}: "
            f"{type(error).__name__}: {lines[0]}",
            "an input_spec of batches that the model takes; its first axis is that of the batch",
            "compare the two; None stands for a batch of any size",
        ) from error


def measured(keras: Any, metrics: Any) -> Any:
    """The metrics, each made if a function without arguments makes it."""
    if isinstance(metrics, Mapping):
        return {name: _made(keras, metric) for name, metric in metrics.items()}
    return [_made(keras, metric) for metric in metrics] if isinstance(metrics, list | tuple) else metrics


def _made(keras: Any, metric: Any) -> Any:
    if not callable(metric) or isinstance(metric, keras.metrics.Metric | keras.losses.Loss):
        return metric
    try:
        parameters = inspect.signature(metric).parameters.values()
    except (TypeError, ValueError):
        return metric
    return metric if any(p.default is p.empty and p.kind is not p.VAR_KEYWORD for p in parameters) else metric()
