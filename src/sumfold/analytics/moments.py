"""Means and deviations over all clients, from three sums: of x, of x², and of how many were present.

    mean = Σ x / n        deviation = sqrt(Σ x² / n − mean²)

A round without a model: no client sends a row, only its sums, and missing values (NaN) count for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sumfold.aggregators import sum as total
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution
from sumfold.errors import CompositionError, TypeMismatchError, user_facing
from sumfold.keys import Key
from sumfold.learning.process import Process
from sumfold.tree import Leaf, Tree

__all__ = ["Moments", "moments"]


class Moments(NamedTuple):
    """Per column, float32[features]: how many values, mean, standard deviation; 0 where nothing was present.

    Example:
        >>> Moments(counts=3, mean=0.5, deviation=0.1).mean
        0.5
    """

    counts: Leaf
    mean: Leaf
    deviation: Leaf


@user_facing
def moments(features: int, *, batching: Batching | None = None) -> Process:
    """Count, mean and standard deviation of each column over all clients' rows.

    The result is ``state.algorithm``, a `Moments`, and ``metrics["client_work"]["moments"]``. Client entries are x, or
    (x, y), with x float[rows, features]; NaN is missing. Sums are float32.

    Args:
        features: columns of x.
        batching: default ``Batching(size=256, shuffle=False)``.

    Raises:
        CompositionError: for fewer than one column.

    Example:
        >>> import numpy as np
        >>> process = moments(features=1)
        >>> hospitals = {"a": np.array([[1.0], [np.nan]]), "b": np.array([[3.0]])}
        >>> state, metrics = process.next(process.initialize(), hospitals)
        >>> metrics["client_work"]["moments"]
        {'counts': [2.0], 'deviation': [1.0], 'mean': [2.0]}
    """
    if features < 1:
        raise CompositionError("SF-COMP-030", f"moments(features={features})", "one column or more", "pass x.shape[1]")

    def init(nothing: Tree, key: Key) -> Moments:
        zero = jnp.zeros(features, jnp.float32)
        return Moments(zero, zero, zero)

    def begin(task: Task, key: Key) -> Float[Array, "3 f"]:
        return jnp.zeros((3, features), jnp.float32)

    def gather(task: Task, sums: Float[Array, "3 f"], batch: Batch, key: Key) -> Float[Array, "3 f"]:
        x = jax.tree.leaves(batch.examples)[0].astype(jnp.float32)
        if x.shape[1:] != (features,):
            raise TypeMismatchError(
                "SF-TYPE-004",
                f"rows of shape {x.shape[1:]}",
                f"({features},), since moments was made with features={features}",
                "pass x.shape[1] to moments",
            )
        present = batch.mask[:, None] & ~jnp.isnan(x)
        x = jnp.where(present, x, 0.0)
        return sums + jnp.stack([present.sum(0).astype(jnp.float32), x.sum(0), (x**2).sum(0)])

    def report(task: Task, sums: Float[Array, "3 f"], key: Key) -> Report:
        return Report({"sums": Contribution(sums, jnp.float32(1))})

    def finalize(state: Moments, results: Mapping[str, Any], measured: Measured, key: Key) -> tuple[Moments, Metrics]:
        count, first, second = results["sums"]
        present = jnp.where(count > 0, count, 1.0)
        mean = first / present
        after = Moments(count, mean, jnp.sqrt(jnp.maximum(second / present - mean**2, 0.0)))
        return after, {"client_work": {"moments": after._asdict()}}

    chosen = Batching(size=256, shuffle=False) if batching is None else batching
    work = Work(begin, gather, report, chosen)
    return Process(
        Round("moments", init, (Phase(lambda state, key: (), work, {"sums": total()}, finalize),)),
        batching=batching,
    )
