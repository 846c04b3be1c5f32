"""Federated evaluation: the model's metrics over the clients' own examples, as sums.

    metrics  ←  finish( Σ_k Σ_{batches b of client k} measure(w; b) )

The same Round as training, whose report has no part but its metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.errors import user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_model
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["fed_eval"]


class Server(NamedTuple):
    """The model, and what all rounds so far have measured."""

    model: Parts
    total: Measured


class Local(NamedTuple):
    """What a client has measured so far."""

    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


@user_facing
def fed_eval(model: Model, *, batching: Batching | Any = None) -> Process:
    """Evaluate a model on clients; weights enter by ``set_model_weights``.

    ``metrics["client_work"]["eval"]`` holds loss, metrics and counts of this round, again under
    ``current_round_metrics``, and of all rounds since ``initialize`` under ``total_rounds_metrics``.

    Args:
        model: from ``sumfold.models``.
        batching: default ``Batching(size=256, shuffle=False)``; ready-made batches are used as they are.

    Example:
        >>> import jax.numpy as jnp, numpy as np, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(1), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_eval(model)
        >>> clients = [(np.ones(3), np.ones(3)), (np.ones(1), 3 * np.ones(1))]
        >>> state, metrics = process.next(process.initialize(), clients)
        >>> metrics["client_work"]["eval"]["loss"], metrics["client_work"]["eval"]["num_examples"]
        (1.0, 4)
    """
    check_model(model)

    def init(weights: Tree, key: Key) -> Server:
        none = jnp.int32(0)
        sums = {**model.zero(), "num_examples": none, "num_batches": none}
        return Server(model.split(weights), Measured(sums, none, none))

    def broadcast(state: Server, key: Key) -> Parts:
        return state.model

    def begin(task: Task, key: Key) -> Local:
        return Local(model.zero(), jnp.int32(0), jnp.int32(0))

    def measure(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        sums = tree.add(local.sums, model.measure(task.message, batch))
        return Local(sums, local.num_examples + batch.mask.sum(dtype=jnp.int32), local.num_batches + 1)

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.num_examples, "num_batches": local.num_batches}
        return Report(parts={}, metrics={**local.sums, **counts})

    def finalize(state: Server, results: Mapping[str, Any], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        total: Measured = tree.add(state.total, measured)
        now = summary(model, measured)
        both = {"current_round_metrics": now, "total_rounds_metrics": summary(model, total)}
        return state._replace(total=total), {"client_work": {"eval": {**now, **both}}}

    model = dataclasses.replace(model, coupled=None)  # predicting, no example sees another
    chosen = Batching(size=256, shuffle=False) if batching is None else batching_for(model, batching)
    return Process(
        Round("fed_eval", init, (Phase(broadcast, Work(begin, measure, report, chosen), {}, finalize),)),
        model=model,
        batching=batching,
        parts=lambda state: state.model,
        with_parts=lambda state, parts: state._replace(model=parts),
    )
