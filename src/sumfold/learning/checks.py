"""What is refused before anything runs: a model, a batching or data that an algorithm cannot take."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold.aggregators import mean
from sumfold.core.batching import Batching
from sumfold.core.cohort import batch_shapes, widths
from sumfold.core.round import Batch, Metrics, Round
from sumfold.core.stage import Stage
from sumfold.core.store import ClientStore
from sumfold.data import Federation
from sumfold.errors import CompositionError, DataError
from sumfold.learning.labels import classes_of
from sumfold.models.host import HostModel
from sumfold.models.model import Model, Parts, unpack
from sumfold.tree import Tree

__all__ = [
    "Labels",
    "batching_for",
    "check_aggregator",
    "check_batches",
    "check_clusters",
    "check_labels",
    "check_model",
    "check_population",
    "check_rate",
    "check_remembered",
    "check_seed",
    "labels_of",
]

_LABELS_AT_ONCE = 1 << 22
"""Labels that are looked at together: they may lie in a file."""


def check_model(model: Any, *, own_loop: bool = False) -> None:
    """Refuse what is no model, or one that brings its own training loop where that cannot be used.

    Args:
        model: what the caller gave.
        own_loop: whether the algorithm takes such a model.

    Raises:
        CompositionError: saying which adapter makes one.
    """
    if isinstance(model, HostModel) and not own_loop:
        raise CompositionError(
            "SF-COMP-110",
            f"{model.name}, a model that brings its own training loop",
            "a model whose steps Sumfold takes itself, which this algorithm needs",
            "use from_functions, from_flax, from_keras or from_equinox; or one of fed_avg, fed_prox, fed_nova, "
            "local_layers, fed_bn, fine_tune",
        )
    if not isinstance(model, Model):
        raise CompositionError(
            "SF-COMP-028",
            f"model is a {type(model).__name__}",
            "a sumfold Model",
            "make one with sf.models.from_functions, from_keras, from_flax, from_equinox, from_torch or from_sklearn",
        )


def check_seed(seed: Any) -> None:
    """Refuse a seed that is no whole number.

    Raises:
        CompositionError: saying what came.
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool):
        raise CompositionError("SF-COMP-033", f"seed={seed!r}", "a whole number", "pass for example seed=0")


def check_population(clients: Any) -> None:
    """Refuse a population's size that is no whole number of at least 1.

    Raises:
        CompositionError: saying what came.
    """
    if not isinstance(clients, (int, np.integer)) or isinstance(clients, bool) or clients < 1:
        raise CompositionError(
            "SF-COMP-061", f"clients={clients!r}", "how many clients there are in all", "pass for example clients=100"
        )


def check_rate(metrics: Metrics, number: int) -> None:
    """Refuse a round whose clients trained with a learning rate that is not finite, where the rate can be read.

    Raises:
        CompositionError: saying the round and the rate; the round's result is not returned.
    """
    rate = metrics.get("client_work", {}).get("client_learning_rate", 0.0)
    if not math.isfinite(rate):
        raise CompositionError(
            "SF-COMP-101",
            f"the client learning rate of round {number} is {rate}",
            "a finite number in every round",
            "look at the schedule or what set_hparams was given; the state passed in is unchanged",
        )


def check_remembered(clients: ClientStore, federation: Federation, met: set[Any]) -> None:
    """Refuse a state that remembers clients whom the federation does not know: their memory is of other data.

    Args:
        clients: of the state.
        federation: of this round.
        met: clients that it is known to have; those of the state are added.

    Raises:
        DataError: naming some of them.
    """
    known = federation.whole
    new = clients.keys() - met
    strangers = [client for client in new if client not in known]
    met |= new.difference(strangers)
    if strangers:
        raise DataError(
            "SF-DATA-057",
            f"a state that remembers {len(strangers)} client(s) whom this federation of {len(known)} does not have: "
            f"{', '.join(map(repr, strangers[:5]))}{', …' if len(strangers) > 5 else ''}",
            "the federation whose clients it has trained with, or one with more clients",
            "name a round's clients by clients=… instead of another federation; or begin anew with initialize and "
            "set_model_weights, which forgets the clients",
        )


def check_clusters(algorithm: str, clusters: Any) -> None:
    """Refuse a number of clusters that is no whole number of at least 1.

    Raises:
        CompositionError: saying what came.
    """
    if not isinstance(clusters, (int, np.integer)) or isinstance(clusters, bool) or clusters < 1:
        raise CompositionError(
            "SF-COMP-091", f"{algorithm} with clusters={clusters!r}", "a whole number of at least 1", "try clusters=2"
        )


def check_aggregator(aggregator: Any) -> Stage:
    """The stage of the part `update`: the caller's, or the mean.

    Raises:
        CompositionError: for something that is no stage.
    """
    if aggregator is None:
        return mean()
    if not isinstance(aggregator, Stage):
        raise CompositionError(
            "SF-COMP-034",
            f"aggregator={aggregator!r}",
            "a sumfold Stage",
            "write for example aggregator=sf.aggregators.mean(), with parentheses",
        )
    return aggregator


def batching_for(model: Model, batching: Any) -> Batching:
    """The batching of examples; a model whose examples see each other must drop short batches.

    Raises:
        CompositionError: when a short or padded batch would change such a model's results.
    """
    if batching is not None and not isinstance(batching, Batching):
        raise CompositionError(
            "SF-COMP-023",
            f"batching={batching!r}",
            "a sumfold.Batching",
            "write sf.Batching(size=32, epochs=1)",
        )
    if model.coupled and batching is not None and (not batching.drop_remainder or batching.size is None):
        raise _coupled(model, str(batching))
    return batching or Batching()


def _coupled(model: Model, what: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-024",
        f"{model.coupled} with {what}",
        "batches of one size: padding a short batch would change what such a layer computes",
        "use sf.Batching(size=…, drop_remainder=True), or a layer that looks at one example at a time, "
        "such as group or layer normalisation",
    )


def check_batches(federation: Federation, round: Round, model: Model | None, batching: Batching | None) -> Batch | None:
    """The shapes of a batch as the clients' steps will see it; None when there is no row.

    Args:
        federation: the clients' data.
        round: the algorithm.
        model: what it trains, or None.
        batching: as the caller gave it.

    Raises:
        DataError: for ready-made batches and a batching.
        CompositionError: for short batches of a model whose examples see each other.
    """
    ready = federation.batch_sizes
    if ready is not None and batching is not None:
        raise DataError(
            "SF-DATA-053",
            f"ready-made batches and {batching}",
            "one of the two",
            "leave batching out, or give each client its examples as (x, y)",
        )
    lengths = {int(n) for sizes in ready or () for n in sizes}
    if model is not None and model.coupled:
        if ready is not None and len(lengths) > 1:
            raise _coupled(model, f"ready-made batches of {sorted(lengths)} rows")
        if ready is None and batching is None:
            raise _coupled(model, "the default batching")
    if not len(federation):
        return None
    return batch_shapes(federation, int(widths(federation, round.phases[0].work.batching).max()))


class Labels(NamedTuple):
    """What a federation's labels and weights are, client by client.

    Attributes:
        classes: how many the loss knows; 0 when it does not index with its labels.
        low, high: float64[K], the range of each client's labels; of rows that weigh something.
        weight: float64[K], each client's smallest example weight.
        narrow: the labels' dtype where it is signed and cannot count to the last class; None elsewhere.
        wrapped: float64[K], with `narrow`, each client's lowest label other than -1 and -100, by which programs mark
            rows to ignore; of rows that weigh something.
        columns: with `narrow`, how many there are to choose among.
    """

    classes: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    weight: NDArray[np.float64]
    narrow: np.dtype[Any] | None = None
    wrapped: NDArray[np.float64] | None = None
    columns: int = 0


def labels_of(federation: Federation, model: Model, parts: Parts, batch: Batch) -> Labels:
    """Trace the model on such a batch, and look at every client's labels and weights once.

    Raises:
        TypeMismatchError: when the model does not take such examples, or its loss is not per example.
    """
    outputs = model.check(parts, batch)
    _, y, weight = unpack(federation.examples)
    leaves = jax.tree.leaves(y)
    traced = len(leaves) == 1 and not isinstance(model, HostModel)
    classes = classes_of(model.loss, outputs, unpack(batch.examples)[1]) if traced else None
    nothing = np.zeros(len(federation))
    weights = None if weight is None else np.asarray(weight, np.float64).reshape(len(weight), -1).min(1)
    lightest = nothing if weights is None else _each(federation, weights, np.minimum, np.inf)
    columns = (classes or _columns(outputs, unpack(batch.examples)[1])) if traced else 0
    narrow = _narrow(np.dtype(leaves[0].dtype), columns) if columns else None
    if classes is None and narrow is None:
        return Labels(0, nothing, nothing, lightest)
    low, high, wrapped = _extremes(leaves[0], narrow is not None)
    if weights is not None:
        low, high, wrapped = (np.where(weights == 0, 0, some) for some in (low, high, wrapped))
    return Labels(
        classes or 0,
        _each(federation, low, np.minimum, np.inf),
        _each(federation, high, np.maximum, -np.inf),
        lightest,
        narrow,
        _each(federation, wrapped, np.minimum, np.inf),
        columns,
    )


def _columns(outputs: Tree, y: Tree) -> int:
    """Among how many outputs a label may choose: there is one axis more than labels have. 0 where there is none."""
    made, labels = jax.tree.leaves(outputs), jax.tree.leaves(y)
    if len(made) == len(labels) == 1 and made[0].shape[:-1] == labels[0].shape:
        return int(made[0].shape[-1])
    return 0


def _narrow(dtype: np.dtype[Any], columns: int) -> np.dtype[Any] | None:
    """The dtype if it is signed, of 16 bits at most, and cannot count to the last column."""
    signed = dtype.kind == "i" and dtype.itemsize <= 2
    return dtype if signed and columns - 1 > np.iinfo(dtype).max else None


def _extremes(labels: Any, signed: bool) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Of each row the smallest and the largest label, and the smallest that is no mark; some rows at a time."""
    rows = len(labels)
    low, high, wrapped = np.zeros(rows), np.zeros(rows), np.zeros(rows)
    step = max(_LABELS_AT_ONCE // max(int(np.prod(labels.shape[1:])), 1), 1)
    for begin in range(0, rows if labels.size else 0, step):
        some = np.asarray(labels[begin : begin + step])
        some = some.reshape(len(some), -1)
        at = slice(begin, begin + len(some))
        low[at], high[at] = some.min(1), some.max(1)
        if signed:
            wrapped[at] = np.where((some == -1) | (some == -100), 0, some).min(1)
    return low, high, wrapped


def check_labels(labels: Labels | None, federation: Federation, positions: NDArray[np.int64]) -> None:
    """Refuse labels outside the model's classes and negative weights of the clients that take part.

    Raises:
        DataError: naming the first such client; and their dtype, where they are negative since they did not fit it.
    """
    if labels is None:
        return
    low, high, weight = labels.low[positions], labels.high[positions], labels.weight[positions]
    for place in np.flatnonzero(~(weight >= 0))[:1]:
        raise DataError(
            "SF-DATA-055",
            f"an example_weight of {weight[place]} at client {federation.ids[int(positions[place])]!r}",
            "weights of at least 0",
            "look at how the weights were made; 0 leaves a row out",
        )
    if labels.narrow is not None and labels.wrapped is not None:
        wrapped, dtype = labels.wrapped[positions], labels.narrow
        for place in np.flatnonzero(wrapped < 0)[:1]:
            came, most = int(wrapped[place]), np.iinfo(dtype).max
            raise DataError(
                "SF-DATA-059",
                f"the label {came} at client {federation.ids[int(positions[place])]!r}: labels are stored as {dtype}, "
                f"whose largest value is {most}, and there are {labels.columns} columns of outputs to choose among",
                f"class numbers from 0 to {labels.columns - 1} in a dtype that holds them",
                f"make them of {'uint8' if labels.columns <= 256 else 'uint16'} or int32 before they become {dtype}, "
                f"in which {came + 2 * (most + 1)} is {came}",
            )
    if not labels.classes:
        return
    for place in np.flatnonzero((low < 0) | (high > labels.classes - 1))[:1]:
        raise DataError(
            "SF-DATA-054",
            f"labels from {low[place]:g} to {high[place]:g} at client {federation.ids[int(positions[place])]!r}",
            f"class numbers from 0 to {labels.classes - 1}, to choose among {labels.classes} columns of outputs",
            "number the classes from 0; rows to ignore take an example_weight of 0",
        )


def _each(
    federation: Federation,
    values: NDArray[np.float64],
    smaller: np.ufunc,
    nobody: float,
) -> NDArray[np.float64]:
    """`smaller` (minimum or maximum) over each client's own rows, float64[K]; `nobody` of none, which passes."""
    if federation.order is not None:
        values = values[federation.order]
    counts, starts = np.asarray(federation.counts), np.asarray(federation.starts)
    reached = np.full(len(counts), nobody)
    holding = np.flatnonzero(counts > 0)
    edges = np.stack([starts[holding], starts[holding] + counts[holding]], axis=1).reshape(-1)
    padded = np.append(values, nobody)  # an edge may lie just behind the last row
    if len(holding):
        reached[holding] = smaller.reduceat(padded, edges)[::2]
    return reached
