"""What is refused before anything runs: a model, a batching or data that an algorithm cannot take."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Round
from sumfold.data import Federation
from sumfold.errors import CompositionError, DataError
from sumfold.models.model import Model, Parts, describe, unpack

__all__ = ["batch_shapes", "batching_for", "check_examples", "check_model"]


def check_model(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        CompositionError: saying which adapter makes one.
    """
    if not isinstance(model, Model):
        raise CompositionError(
            "SF-COMP-028",
            f"model is a {type(model).__name__}",
            "a sumfold Model",
            "make one with sf.models.from_functions, from_keras, from_flax or from_equinox",
        )


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


def batch_shapes(federation: Federation, round: Round, model: Model | None, batching: Batching | None) -> Batch | None:
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
    if not int(federation.counts.sum()):
        return None
    own = round.phases[0].work.batching
    width = max(lengths, default=1) if ready is not None else own.width(int(federation.counts.max()))
    shapes = jax.tree.map(
        lambda a: tree.shape((width, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)), federation.examples
    )
    return Batch(shapes, tree.shape((width,), bool))


def check_examples(federation: Federation, model: Model, parts: Parts, batch: Batch) -> None:
    """Trace the model on such a batch, and compare labels and weights with what it makes of them.

    Raises:
        TypeMismatchError: when the model does not take such examples, or its loss is not per example.
        DataError: for labels outside the model's classes, or negative example weights; naming the client.
    """
    outputs = model.check(parts, batch)
    _, y, weight = unpack(federation.examples)
    if weight is not None and (wrong := np.flatnonzero(~(np.asarray(weight) >= 0))).size:
        first = int(wrong[0])
        raise DataError(
            "SF-DATA-055",
            f"an example_weight of {np.asarray(weight).reshape(-1)[first]} at {_owner(federation, first)}",
            "weights of at least 0",
            "look at how the weights were made; 0 leaves a row out",
        )
    leaves = jax.tree.leaves(y)
    if len(leaves) != 1:
        return
    labels: NDArray[Any] = leaves[0]
    classes = outputs[-1] if outputs else 0
    if labels.dtype.kind not in "iu" or len(outputs) != labels.ndim + 1 or classes < 2:
        return
    outside = ((labels < 0) | (labels >= classes)).reshape(len(labels), -1).any(1)
    if weight is not None:
        outside &= np.asarray(weight).reshape(len(labels), -1).any(1)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(
            "SF-DATA-054",
            f"labels from {labels.min()} to {labels.max()} ({describe(y)}; "
            f"first wrong one: {_owner(federation, first)})",
            f"class numbers from 0 to {classes - 1}, since the model's outputs have {classes} columns",
            "number the classes from 0; rows to ignore take an example_weight of 0",
        )


def _owner(federation: Federation, row: int) -> str:
    """Which client holds a row of the flat examples."""
    at = row if federation.order is None else int(np.flatnonzero(federation.order == row)[:1].sum())
    inside = (federation.starts <= at) & (at < federation.starts + federation.counts)
    found = np.flatnonzero(inside)
    return f"client {federation.ids[int(found[0])]!r}" if len(found) else "a client outside this subset"
