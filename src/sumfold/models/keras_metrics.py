"""Keras metrics as sums over examples.

A Keras metric's state is a list of variables. For the kinds accepted here every variable is a sum over examples, so
states of batches and clients add up, and the metric's own ``result`` finishes the sum. The user's metric object keeps
its own state: only its stateless functions are used.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError
from sumfold.models.metrics import Metric, as_metrics
from sumfold.tree import Tree

__all__: list[str] = []

ADDITIVE = (
    *("Mean", "Sum", "AUC", "Precision", "Recall", "FBetaScore", "IoU", "R2Score"),
    *("TruePositives", "TrueNegatives", "FalsePositives", "FalseNegatives"),
    *("SensitivityAtSpecificity", "SpecificityAtSensitivity", "PrecisionAtRecall", "RecallAtPrecision"),
)
"""Classes of `keras.metrics` whose state, and that of their subclasses, is a sum over examples."""


def as_keras_metrics(keras: Any, metrics: Any, model: Any) -> dict[str, Metric]:
    """Every metric by name.

    Args:
        keras: the module.
        metrics: a list or dict of what `from_keras` takes.
        model: the Keras model, whose output shape some metrics need.

    Raises:
        CompositionError: for a metric that is no sum, an unknown name, or one name twice.
    """
    if isinstance(metrics, Mapping):
        return as_metrics({name: translated(keras, given, name, model) for name, given in metrics.items()})
    if metrics is None:
        return {}
    in_order = isinstance(metrics, (list, tuple)) and not isinstance(metrics, Metric)
    if not in_order:
        raise CompositionError(
            "SF-COMP-011",
            f"metrics as a {type(metrics).__name__}",
            "a list, or a dict name -> metric",
            'write metrics=["accuracy"]',
        )
    names = [name_of(keras, given) for given in metrics]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CompositionError(
            "SF-MODEL-006", f"two metrics named {twice[0]!r}", "one name each", 'write metrics={"name": metric, …}'
        )
    return as_metrics({n: translated(keras, given, n, model) for n, given in zip(names, metrics, strict=True)})


def name_of(keras: Any, given: Any) -> str:
    """How a metric in a list is called: its string, its own name, or its function's."""
    if isinstance(given, (keras.metrics.Metric, keras.losses.Loss)):
        return str(given.name)
    return given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)


def translated(keras: Any, given: Any, name: str, model: Any) -> Any:
    """A `Metric` out of anything that Keras knows; everything else as it was."""
    if isinstance(given, str) and given.lower() in {"accuracy", "acc"}:
        given = accuracy_as_compiled(keras)
    elif isinstance(given, str):
        try:
            given = keras.metrics.get(given)
        except ValueError:
            raise CompositionError(
                "SF-MODEL-008", f"the metric {given!r}", "the name of a Keras metric", "see keras.metrics"
            ) from None
    elif inspect.isclass(given) and issubclass(given, keras.metrics.Metric):
        given = given()
    if isinstance(given, keras.losses.Loss):
        given = keras.metrics.MeanMetricWrapper(given.call, name=name)
    elif of_keras(given) and not isinstance(given, keras.metrics.Metric):
        given = keras.metrics.MeanMetricWrapper(given, name=name)
    if not isinstance(given, keras.metrics.Metric):
        return given
    if len(getattr(model, "outputs", None) or ()) > 1:
        raise CompositionError(
            "SF-MODEL-007",
            f"the Keras metric {name!r} for {model.name!r}, which has {len(model.outputs)} outputs",
            "a function (outputs, y) -> value of each example",
            "measure one output in a function",
        )
    return summed(keras, given, model)


def of_keras(function: Any) -> bool:
    """Whether a function is Keras's own, which takes (y_true, y_pred)."""
    while isinstance(function, functools.partial):
        function = function.func
    return callable(function) and str(getattr(function, "__module__", "")).partition(".")[0] == "keras"


def accuracy_as_compiled(keras: Any) -> Any:
    """``"accuracy"`` as ``compile`` understands it: the kind follows from the shapes of labels and outputs."""

    def hits(y: Any, outputs: Any) -> Any:
        if outputs.shape[-1] == 1:
            return keras.metrics.binary_accuracy(y, outputs)
        if y.ndim < outputs.ndim or y.shape[-1] == 1:
            return keras.metrics.sparse_categorical_accuracy(y, outputs)
        return keras.metrics.categorical_accuracy(y, outputs)

    return keras.metrics.MeanMetricWrapper(hits, name="accuracy")


def summed(keras: Any, metric: Any, model: Any) -> Metric:
    """A `Metric` from a Keras metric whose state is a sum over examples.

    Raises:
        CompositionError: when its state is none, or cannot be known yet.
    """
    refuse_unless_additive(keras, metric)
    if isinstance(metric, keras.metrics.IoU):  # its own dtype is int, which would cut fractional weights
        metric = type(metric).from_config({**metric.get_config(), "dtype": "float32"})
    build(metric, model)
    zero = [np.zeros(tuple(v.shape), v.dtype) for v in metric.variables]

    def measure(outputs: Tree, y: Tree, weight: Array) -> list[Array]:
        y, outputs = same_rank(y, outputs)
        if isinstance(metric, keras.metrics.IoU):  # one weight for each label
            labels = y.size if metric.sparse_y_true else y.size // y.shape[metric.axis]
            weight = jnp.repeat(weight, labels // len(weight))
        with quiet():
            state = metric.stateless_update_state([jnp.asarray(z) for z in zero], y, outputs, sample_weight=weight)
        return [jnp.asarray(a).astype(z.dtype) for a, z in zip(state, zero, strict=True)]

    def finish(state: Iterable[Any]) -> Any:
        state = [jnp.asarray(a) for a in state]
        measured = jnp.stack([(a != 0).any() for a in state]).any()
        return jax.tree.map(lambda value: jnp.where(measured, value, 0), metric.stateless_result(state))

    return Metric(zero, measure, finish)


def refuse_unless_additive(keras: Any, metric: Any) -> None:
    """Refuse a metric whose state is not a sum over examples, or that does not compare outputs with labels."""
    known = tuple(getattr(keras.metrics, name) for name in ADDITIVE)
    what, reason = f"the Keras metric {metric.name!r}, a {type(metric).__name__}", ""
    if not isinstance(metric, known):
        reason = "whose state is not known to be a sum over examples"
    elif len(inspect.signature(metric.update_state).parameters) < 3:
        reason = "which takes values, not labels and outputs"
    elif isinstance(metric, keras.metrics.R2Score) and metric.num_regressors:
        reason = "adjusted by a number of examples that ignores their weights"
    if reason:
        raise CompositionError(
            "SF-MODEL-009",
            f"{what}, {reason}",
            f"keras.metrics.{', '.join(ADDITIVE)} or a subclass of one, on labels and outputs",
            "use one of these, a function (outputs, y) -> value of each example, or a sumfold.metrics.Metric",
        )


def build(metric: Any, model: Any) -> None:
    """Let a metric make the variables that depend on the number of outputs; its state stays zero."""
    if getattr(metric, "_built", True):
        return
    shapes = [tuple(output.shape) for output in getattr(model, "outputs", None) or ()]
    if not shapes:
        raise CompositionError(
            "SF-MODEL-010",
            f"the metric {metric.name!r} with a model whose output shape is not known",
            "a metric with its variables made",
            "call metric.update_state on one batch, then metric.reset_state()",
        )
    zeros = np.zeros([size or 1 for size in shapes[0]], np.float32)
    foreign(metric.update_state)(zeros, zeros)
    foreign(metric.reset_state)()


def same_rank(y: Any, outputs: Any) -> tuple[Any, Any]:
    """Labels and outputs with as many axes where one lacks a last axis of 1, and at least two."""
    y, outputs = jnp.asarray(y), jnp.asarray(outputs)
    if y.ndim == outputs.ndim == 1:
        return y[:, None], outputs[:, None]
    if outputs.ndim == y.ndim + 1 and outputs.shape[-1] == 1:
        return y[..., None], outputs
    if y.ndim == outputs.ndim + 1 and y.shape[-1] == 1:
        return y, outputs[..., None]
    return y, outputs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keras asks for int64 in its confusion matrix, and JAX without x64 warns each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Explicitly requested dtype int64")
        yield
