"""Metrics as sums over examples: they add up over batches and clients, and are finished on the server.

A per-example function becomes the pair (Σ weight·value, Σ weight). The area under the ROC curve is two histograms of
scores. Nothing is ever a mean of means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, TypeMismatchError, user_facing
from sumfold.tree import Tree

__all__ = ["Metric", "accuracy", "as_metric", "auc", "auc_histogram", "mean_absolute_error", "per_example"]


class Metric(NamedTuple):
    """A number that is a function of sums over examples.

    Attributes:
        zero: the sums of no example: a tree of NumPy arrays, whose shapes and dtypes `measure` gives.
        measure: (outputs [B, …], y [B, …], weight float32[B]) -> tree of sums; weight 0 marks padding.
        finish: summed tree -> value, 0 when nothing was measured.

    Example:
        >>> count = Metric(np.float32(0), lambda outputs, y, weight: weight.sum(), lambda total: total)
        >>> float(count.finish(count.measure(None, None, jnp.ones(3))))
        3.0
    """

    zero: Tree
    measure: Callable[[Tree, Tree, Array], Tree]
    finish: Callable[[Tree], Array]


def ratio(pair: tuple[ArrayLike, ArrayLike]) -> Array:
    """Total / weight, and 0 when the weight is 0."""
    total, weight = jnp.asarray(pair[0]), jnp.asarray(pair[1])
    return jnp.where(weight > 0, total / jnp.where(weight > 0, weight, 1), 0)


@user_facing
def per_example(function: Callable[[Any, Any], ArrayLike], name: str = "metric") -> Metric:
    """The weighted mean of a per-example function ``fn(outputs, y) -> value[B]``.

    Raises:
        TypeMismatchError: while tracing, when the values are not one per example.

    Example:
        >>> hit = per_example(lambda outputs, y: outputs == y)
        >>> float(hit.finish(hit.measure(jnp.array([1, 2]), jnp.array([1, 3]), jnp.ones(2))))
        0.5
    """
    function = foreign(function)

    def measure(outputs: Tree, y: Tree, weight: Array) -> tuple[Array, Array]:
        values = one_per_example(function(outputs, y), weight, name)
        return jnp.where(weight > 0, values * weight, 0).sum(), weight.sum()

    return Metric((np.float32(0), np.float32(0)), measure, ratio)


def one_per_example(values: Any, weight: Array, name: str) -> Float[Array, " b"]:
    """`values` as float32[B], or the error that says what its shape was; [B, 1] is taken as [B]."""
    shape = tuple(jnp.shape(values))
    if shape not in {weight.shape, (*weight.shape, 1)}:
        raise TypeMismatchError(
            "SF-TYPE-001",
            f"{name} returned shape {shape} for a batch of {weight.shape[0]} examples",
            f"one value per example, shape ({weight.shape[0]},)",
            "return the loss or metric before any mean or sum over the batch: Sumfold weighs examples itself",
        )
    return jnp.asarray(values).astype(jnp.float32).reshape(weight.shape)


def as_metric(value: Any, name: str) -> Metric:
    """A `Metric` out of a `Metric` or a per-example function.

    Example:
        >>> as_metric(accuracy, "accuracy").finish((jnp.float32(1), jnp.float32(2))).item()
        0.5
    """
    if isinstance(value, Metric):
        return value
    if callable(value):
        return per_example(value, f"the metric {name!r}")
    raise CompositionError(
        "SF-COMP-010",
        f"the metric {name!r} is a {type(value).__name__}",
        "a function fn(outputs, y) -> value per example, or a sumfold.metrics.Metric",
        "see sumfold.metrics",
    )


def as_metrics(metrics: Any) -> dict[str, Metric]:
    """Every metric by name; the names of Sumfold's own counts are refused."""
    taken = {"loss", "num_examples", "num_batches", "num_clients", "num_non_finite_clients"}
    if metrics is not None and not isinstance(metrics, Mapping):
        raise CompositionError(
            "SF-COMP-011",
            f"metrics as a {type(metrics).__name__}",
            "a dict name -> metric",
            'write metrics={"accuracy": sumfold.metrics.accuracy}',
        )
    if clash := taken & set(metrics or {}):
        raise CompositionError(
            "SF-COMP-012",
            f"a metric named {sorted(clash)[0]!r}",
            f"a name other than {sorted(taken)}",
            "rename it",
        )
    return {name: as_metric(metric, name) for name, metric in (metrics or {}).items()}


def accuracy(outputs: Array, y: Array) -> Array:
    """Whether each example is classified correctly, float32[B].

    Args:
        outputs: [B, C] scores with y [B] class numbers or [B, C] one-hot; or [B], [B, 1] logits with y in {0, 1},
            where a logit above 0 says 1.
        y: the labels.

    Example:
        >>> accuracy(jnp.array([[0.1, 0.9], [0.8, 0.2]]), jnp.array([1, 1]))
        Array([1., 0.], dtype=float32)
    """
    outputs, y = jnp.asarray(outputs), jnp.asarray(y)
    if outputs.ndim >= 2 and outputs.shape[-1] > 1:
        labels = y.argmax(-1) if y.ndim == outputs.ndim and y.shape[-1] == outputs.shape[-1] else y
        hits = outputs.argmax(-1) == labels.reshape(outputs.shape[:-1]).astype(jnp.int32)
    else:
        hits = (outputs.reshape(outputs.shape[:1]) > 0) == (y.reshape(outputs.shape[:1]).astype(jnp.float32) > 0.5)
    return hits.astype(jnp.float32).reshape(len(outputs), -1).mean(-1)


def mean_absolute_error(outputs: Array, y: Array) -> Array:
    """The absolute difference, averaged over all but the first axis, float32[B].

    Example:
        >>> mean_absolute_error(jnp.array([1.0, 5.0]), jnp.array([2.0, 2.0]))
        Array([1., 3.], dtype=float32)
    """
    outputs = jnp.asarray(outputs)
    difference = jnp.abs(outputs - jnp.asarray(y).reshape(outputs.shape).astype(outputs.dtype))
    return difference.reshape(len(outputs), -1).mean(-1)


def auc_histogram(bins: int = 2048) -> Metric:
    """The area under the ROC curve from two histograms of scores, one a class; ties count half.

    Scores z are sorted into `bins` equal parts of ``z / (1 + |z|)``, which keeps their order: logits and probabilities
    both do, and the result differs from the exact area by at most the share of pairs that meet in one bin.

    Outputs are [B] or [B, 1] scores, or [B, 2] of the classes 0 and 1; y is 0 or 1, [B] or [B, 1], or one-hot [B, 2].

    Args:
        bins: places of each histogram.

    Raises:
        CompositionError: for fewer than two bins.

    Example:
        >>> metric = auc_histogram()
        >>> scores, y = jnp.array([0.1, 0.4, 0.35, 0.8]), jnp.array([0, 0, 1, 1])
        >>> float(metric.finish(metric.measure(scores, y, jnp.ones(4))))
        0.75
    """
    if bins < 2:
        raise CompositionError("SF-COMP-013", f"auc_histogram({bins})", "two bins or more", "2048 is the default")

    return Metric(np.zeros((2, bins), np.float32), functools.partial(_histograms, bins), _area)


def _histograms(bins: int, outputs: Tree, y: Tree, weight: Array) -> Array:
    scores = jnp.asarray(outputs)
    if scores.ndim == 2 and scores.shape[1] == 2:
        scores = scores[:, 1] - scores[:, 0]
    scores = one_per_example(scores, weight, "the model, for a two-class AUC,")
    place = jnp.floor((scores / (1 + jnp.abs(scores)) + 1) / 2 * bins).astype(jnp.int32).clip(0, bins - 1)
    y = jnp.asarray(y)
    if y.ndim == 2 and y.shape[1] == 2:
        y = y.argmax(-1)
    label = (y.reshape(weight.shape).astype(jnp.float32) > 0.5).astype(jnp.int32)
    finite = jnp.where(jnp.isfinite(scores), weight, jnp.nan)  # a score that is no number must not pass unseen
    return jnp.zeros((2, bins), jnp.float32).at[label, place].add(jnp.where(weight > 0, finite, 0))


def _area(histograms: Array) -> Array:
    negative, positive = histograms
    below = jnp.cumsum(negative) - negative
    pairs = negative.sum() * positive.sum()
    won = (positive * (below + negative / 2)).sum()
    return jnp.where(pairs == 0, 0, won / jnp.where(pairs == 0, 1, pairs))  # not a number stays so


auc: Metric = auc_histogram()
"""The area under the ROC curve: `auc_histogram` with 2,048 bins."""
