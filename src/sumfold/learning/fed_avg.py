"""Federated averaging with a server optimizer.

    each round, for the clients of its cohort at once:
        w_k  ←  w;   for every batch b of client k:   w_k ← ClientOpt(w_k, ∇ loss(w_k; b))
    w  ←  ServerOpt(w, − Σ_k n_k (w_k − w) / Σ_k n_k)

FedAvg: McMahan et al. 2017, Algorithm 1 (server optimizer SGD with rate 1). FedAvgM, FedAdagrad, FedAdam, FedYogi:
Reddi et al. 2021, Algorithm 1: the same with another server optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_aggregator, check_model
from sumfold.learning.hparams import readable, written
from sumfold.learning.optimizers import Hparams, as_client_optimizer, as_optimizer
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.learning.weighting import Weighting, as_weighting
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["fed_avg"]


class Server(NamedTuple):
    """The server's state: the model, the server optimizer's, the clients' hyperparameters, and the round."""

    model: Parts
    optimizer: Tree
    client_hparams: Hparams
    round: Int[Array, ""]


class Message(NamedTuple):
    """What every client receives."""

    model: Parts
    hparams: Hparams
    round: Int[Array, ""]


class Local(NamedTuple):
    """A client's run: its weights and optimizer, and what it has measured."""

    trainable: Tree
    statistics: Tree
    optimizer: Tree
    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


@user_facing
def fed_avg(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging: local training on clients, the mean of their changes, a server optimizer.

    Args:
        model: from ``sumfold.models``.
        client_optimizer: an optax transform, a Keras optimizer, or ``fn(round)`` that returns an optax transform.
        server_optimizer: an optax transform or a Keras optimizer; its gradient is the negative mean client change, so
            ``optax.sgd(1.0)`` is plain FedAvg.
        weighting: ``"examples"``, ``"uniform"``, or ``fn(client's metrics) -> weight``.
        aggregator: the stage of the part ``update``, which is w − w_k; default `sumfold.aggregators.mean`. The
            statistics of normalisation layers are a part of their own, ``statistics``, always under the mean.
        batching: default `Batching()` for examples; ready-made batches are used as they are.

    Raises:
        CompositionError: for an optimizer, weighting or batching that cannot be used, or a model whose examples see
            each other without ``drop_remainder``.

    Source: McMahan et al. 2017, Algorithm 1; Reddi et al. 2021, Algorithm 1.

    Example:
        Client 1 holds x = 1, y = 2; client 2 holds three times x = 2, y = 4.

        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     init=lambda key: jnp.float32(0.0),
        ...     predict=lambda w, x: w * x,
        ...     loss=lambda outputs, y: (outputs - y) ** 2,
        ... )
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=None))
        >>> state = process.initialize(seed=0)
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state, metrics = process.next(state, clients)
        >>> round(float(process.get_model_weights(state)), 4), metrics["client_work"]["train"]["num_examples"]
        (1.3, 4)
    """
    check_model(model)
    client, server = as_client_optimizer(client_optimizer), as_optimizer(server_optimizer, "server_optimizer")
    weigh = as_weighting(weighting)
    has_statistics = bool(jax.tree.leaves(model.template.statistics))

    def init(weights: Tree, key: Key) -> Server:
        parts = model.split(weights)
        return Server(parts, server.init(parts.trainable), client.hparams(parts.trainable), jnp.int32(0))

    def broadcast(state: Server, key: Key) -> Message:
        return Message(state.model, state.client_hparams, state.round)

    # each client: w_k ← ClientOpt(w_k, ∇ loss(w_k; b)) for every batch b

    def begin(task: Task, key: Key) -> Local:
        (trainable, statistics, _constants), hparams, round = task.message
        optimizer = client.init(trainable, hparams, round)
        return Local(trainable, statistics, optimizer, model.zero(), jnp.int32(0), jnp.int32(0))

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        rest = task.message.model._replace(statistics=local.statistics)
        gradient, statistics, sums = model.gradient(local.trainable, rest, batch, key)
        trainable, optimizer = client.update(gradient, local.optimizer, local.trainable, task.message.round)
        rows = batch.mask.sum(dtype=jnp.int32)
        return Local(
            trainable,
            statistics,
            optimizer,
            tree.add(local.sums, sums),
            local.num_examples + rows,
            local.num_batches + 1,
        )

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.num_examples, "num_batches": local.num_batches}
        weight = weigh(task.rows, local.num_batches, {**model.finish(local.sums), **counts})
        parts = {"update": Contribution(tree.sub(task.message.model.trainable, local.trainable), weight)}
        if has_statistics:
            parts["statistics"] = Contribution(local.statistics, weight)
        return Report(parts, {**local.sums, **counts})

    # the server: w ← ServerOpt(w, mean of w − w_k); a mean of nobody is not finite and is not applied

    def finalize(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        before = state.model
        trainable, optimizer = server.update(results["update"], state.optimizer, before.trainable)
        after = before._replace(trainable=trainable, statistics=results.get("statistics", before.statistics))
        applied = tree.all_finite((results, after)) & (measured.sums["num_batches"] > 0)
        rate = client.rate(before.trainable, state.client_hparams, state.round)
        metrics: Metrics = {
            "client_work": {"train": summary(model, measured), **rate},
            "finalizer": {"update_non_finite": (~applied).astype(jnp.int32)},
        }
        after, optimizer = tree.where(applied, (after, optimizer), (before, state.optimizer))
        return Server(after, optimizer, state.client_hparams, state.round + 1), metrics

    def hparams(state: Server) -> Metrics:
        return {
            "client_work": readable(state.client_hparams, client_optimizer),
            "finalizer": readable(server.read(state.optimizer), server_optimizer),
        }

    def with_hparams(state: Server, values: Metrics) -> Server:
        return state._replace(
            client_hparams=written(state.client_hparams, values["client_work"], "client_work"),
            optimizer=server.write(
                state.optimizer, written(server.read(state.optimizer), values["finalizer"], "finalizer")
            ),
        )

    work = Work(begin, train, report, batching_for(model, batching))
    aggregate = {"update": check_aggregator(aggregator)}
    if has_statistics:
        aggregate["statistics"] = mean()
    return Process(
        Round("fed_avg", init, (Phase(broadcast, work, aggregate, finalize),)),
        model=model,
        batching=batching,
        parts=lambda state: state.model,
        with_parts=lambda state, parts: state._replace(model=parts),
        hparams=hparams,
        with_hparams=with_hparams,
    )
