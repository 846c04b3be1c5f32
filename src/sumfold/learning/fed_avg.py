"""Federated averaging with a server optimizer.

    each round, for the clients of its cohort at once:
        w_k  ←  w;   for every batch b of client k:   w_k ← ClientOpt(w_k, ∇ loss(w_k; b))
    w  ←  ServerOpt(w, − Σ_k n_k (w_k − w) / Σ_k n_k)

FedAvg: McMahan et al. 2017, Algorithm 1 (server optimizer SGD with rate 1). FedAvgM, FedAdagrad, FedAdam, FedYogi:
Reddi et al. 2021, Algorithm 1: the same with another server optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.aggregators import sum as total
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, HostWork, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_aggregator, check_model
from sumfold.learning.hparams import readable, written
from sumfold.learning.optimizers import ClientOptimizer, Hparams, as_client_optimizer, as_optimizer
from sumfold.learning.own_loop import OWN, OwnLoop, check_steps, check_visible, no_client_optimizer, weight_rows
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.learning.weighting import Weighting, as_weighting
from sumfold.models.host import HostModel
from sumfold.models.model import Model, Parts, combine
from sumfold.tree import Tree

__all__ = ["Local", "Message", "Variant", "averaging", "fed_avg"]


class Server(NamedTuple):
    """The server's state: the model, the server optimizer's, the clients' hyperparameters, the round, the variant's."""

    model: Parts
    optimizer: Tree
    client_hparams: Hparams
    round: Int[Array, ""]
    own: Tree = ()
    own_hparams: Hparams = {}  # noqa: RUF012 - never written to


class Message(NamedTuple):
    """What every client receives."""

    model: Parts
    hparams: Hparams
    round: Int[Array, ""]
    own: Tree = ()
    own_hparams: Hparams = {}  # noqa: RUF012 - never written to


class Local(NamedTuple):
    """A client's run: its weights and optimizer, what it has measured, and what the variant gathers."""

    trainable: Tree
    statistics: Tree
    optimizer: Tree
    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]
    own: Tree = ()


def _unchanged(task: Task, local: Local, gradient: Tree, weight: Array) -> tuple[Tree, Tree]:
    return gradient, local.own


def _own(task: Task, local: Local, batch: Batch, key: Key) -> Tree:
    return local.own


def _update(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
    return {"update": update}, ()


def _mean_update(own: Tree, results: Mapping[str, Tree], measured: Measured, hparams: Hparams) -> tuple[Tree, Tree]:
    return results["update"], own


class Variant(NamedTuple):
    """What an algorithm of the family does otherwise than federated averaging; the defaults change nothing.

    Attributes:
        name: the algorithm's.
        hparams: its own hyperparameters, read and set under ``client_work``.
        check: refuses values of them that cannot be used.
        state: trainable -> what its server remembers besides.
        share: that -> what clients see of it.
        memory: message -> the memory of a client never seen.
        optimizer: the clients' optimizer -> the one that they use.
        start: task -> the weights that a client begins with.
        begin: task -> what a client gathers while it trains.
        gradient: (task, local, gradient, the batch's example weights together) -> the gradient that its optimizer is
            given, and what is gathered now.
        beside: (task, local, batch, key) -> what is gathered, after its own step: what it does with a batch besides.
        shared: the model's weights -> those that leave the client, None for the others.
        report: (task, local, the update w − w_k with its weight) -> the parts that it sends, and its next memory.
        measures: local -> sums that it reports beside those of its training.
        metrics: what the clients measured -> metrics under ``client_work`` beside ``train``.
        personal: (the server's weights, a client's memory) -> the weights that this client itself uses; None where
            they are the server's.
        stages: the stages of the parts besides ``update``.
        server: (its state, results, measured, hparams) -> the update that the server optimizer is given, and its state.
        population: (its state, number of clients) -> its state, where the population's size counts.
        before: phases that come before training, of the same `Server`; what they keep is the training's ``task.kept``.
        pull: the hyperparameter whose value times w_k − w is all that `gradient` adds, if so: then a model that brings
            its own loop can be trained too, where its adapter takes the steps.
    """

    name: str
    hparams: Mapping[str, float] = {}
    check: Callable[[Mapping[str, Any]], None] = lambda values: None
    state: Callable[[Tree], Tree] = lambda trainable: ()
    share: Callable[[Tree], Tree] = lambda own: ()
    memory: Callable[[Message], Tree] = lambda message: ()
    optimizer: Callable[[ClientOptimizer], ClientOptimizer] = lambda client: client
    start: Callable[[Task], Parts] = lambda task: task.message.model
    begin: Callable[[Task], Tree] = lambda task: ()
    gradient: Callable[[Task, Local, Tree, Array], tuple[Tree, Tree]] = _unchanged
    beside: Callable[[Task, Local, Batch, Key], Tree] = _own
    shared: Callable[[Parts], Parts] = lambda model: model
    report: Callable[[Task, Local, Contribution], tuple[dict[str, Contribution], Tree]] = _update
    measures: Callable[[Local], dict[str, Tree]] = lambda local: {}
    metrics: Callable[[Measured], Metrics] = lambda measured: {}
    personal: Callable[[Parts, Tree], Parts] | None = None
    stages: Mapping[str, Stage] = {}
    server: Callable[[Tree, Mapping[str, Tree], Measured, Hparams], tuple[Tree, Tree]] = _mean_update
    population: Callable[[Tree, int], Tree] | None = None
    before: tuple[Phase, ...] = ()
    pull: str | None = None


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
    return averaging(
        Variant("fed_avg"),
        model,
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
    )


def averaging(  # noqa: PLR0915 - a record of closures, in the order of a round
    variant: Variant,
    model: Model,
    client_optimizer: Any,
    server_optimizer: Any,
    *,
    weighting: Weighting | Any,
    aggregator: Stage | Any,
    batching: Batching | Any,
    examples: Batching | None = None,
) -> Process:
    """Federated averaging and its family: what every member shares, with the places where a `Variant` differs.

    Args:
        variant: what differs.
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`.
        examples: how examples become batches where `batching` is None; default `Batching()`.
    """
    check_model(model, own_loop=True)
    sees_gradients = variant.gradient is not _unchanged or variant.beside is not _own or bool(variant.before)
    check_visible(variant.name, model, sees_gradients, variant.pull)
    own_loop = model if isinstance(model, HostModel) else None
    client = variant.optimizer(
        no_client_optimizer(client_optimizer, own_loop) if own_loop else as_client_optimizer(client_optimizer)
    )
    server = as_optimizer(server_optimizer, "server_optimizer")
    weigh = as_weighting(weighting)
    has_statistics = bool(jax.tree.leaves(variant.shared(model.template).statistics))

    def init(weights: Tree, key: Key) -> Server:
        parts = model.split(weights)
        own_hparams = {name: jnp.float32(value) for name, value in variant.hparams.items()}
        optimizers = server.init(parts.trainable), client.hparams(parts.trainable)
        return Server(parts, *optimizers, jnp.int32(0), variant.state(parts.trainable), own_hparams)

    def broadcast(state: Server, key: Key) -> Message:
        return Message(state.model, state.client_hparams, state.round, variant.share(state.own), state.own_hparams)

    # each client: w_k ← ClientOpt(w_k, ∇ loss(w_k; b)) for every batch b

    def begin(task: Task, key: Key) -> Local:
        message: Message = task.message
        trainable, statistics, _constants = variant.start(task)
        optimizer = client.init(trainable, message.hparams, message.round)
        return Local(trainable, statistics, optimizer, model.zero(), jnp.int32(0), jnp.int32(0), variant.begin(task))

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        rest = task.message.model._replace(statistics=local.statistics)
        gradient, statistics, sums = model.gradient(local.trainable, rest, batch, key)
        rows = batch.mask.sum(dtype=jnp.int32)
        gradient, own = variant.gradient(task, local, gradient, sums["loss"][1])
        trainable, optimizer = client.update(gradient, local.optimizer, local.trainable, task.message.round)
        after = Local(
            trainable,
            statistics,
            optimizer,
            tree.add(local.sums, sums),
            local.num_examples + rows,
            local.num_batches + 1,
            own,
        )
        return after._replace(own=variant.beside(task, after, batch, key))

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.num_examples, "num_batches": local.num_batches}
        rows = weight_rows(model, task.rows, local.num_examples)
        weight = weigh(rows, local.num_batches, {**model.finish(local.sums), **counts})
        before = variant.shared(task.message.model)
        after = variant.shared(before._replace(trainable=local.trainable, statistics=local.statistics))
        update = Contribution(tree.sub(before.trainable, after.trainable), weight)
        parts, memory = variant.report(task, local, update)
        if has_statistics:
            parts["statistics"] = Contribution(after.statistics, weight)
        return Report(parts, {**local.sums, **counts, **variant.measures(local)}, memory)

    # the server: w ← ServerOpt(w, mean of w − w_k); a mean of nobody is not finite and is not applied

    def finalize(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        before = state.model
        update, own = variant.server(state.own, results, measured, state.own_hparams)
        update = combine(update, tree.zeros_like(before.trainable))
        trainable, optimizer = server.update(update, state.optimizer, before.trainable)
        statistics = results.get("statistics", before.statistics)
        moved = variant.shared(before._replace(trainable=trainable, statistics=statistics))
        after = combine(moved, before)  # what stays with the clients does not move here, not even by weight decay
        applied = tree.all_finite((results, after)) & (measured.sums["num_batches"] > 0)
        rate = client.rate(before.trainable, state.client_hparams, state.round)
        metrics: Metrics = {
            "client_work": {"train": summary(model, measured), **variant.metrics(measured), **rate},
            "finalizer": {"update_non_finite": (~applied).astype(jnp.int32)},
        }
        after, optimizer = tree.where(applied, (after, optimizer), (before, state.optimizer))
        # Clients commit their memory whether or not the update is applied, so what mirrors it on the server moves too.
        own = tree.where(tree.all_finite(own), own, state.own)
        return Server(after, optimizer, state.client_hparams, state.round + 1, own, state.own_hparams), metrics

    unseen: Metrics = {"unseen": OWN}

    def read(state: Server) -> Metrics:
        return readable(state.client_hparams, client_optimizer)

    def hparams(state: Server) -> Metrics:
        return {
            "client_work": {**(unseen if own_loop else read(state)), **state.own_hparams},
            "finalizer": readable(server.read(state.optimizer), server_optimizer),
        }

    def with_hparams(state: Server, values: Metrics) -> Server:
        given = values["client_work"]
        of_variant = {name: value for name, value in given.items() if name in state.own_hparams}
        variant.check(of_variant)
        of_optimizer = {name: value for name, value in given.items() if name not in state.own_hparams}
        return state._replace(
            client_hparams=written(state.client_hparams, of_optimizer, "client_work"),
            own_hparams=written(state.own_hparams, of_variant, "client_work"),
            optimizer=server.write(
                state.optimizer, written(server.read(state.optimizer), values["finalizer"], "finalizer")
            ),
        )

    def with_population(state: Server, number: int) -> Server:
        return state._replace(own=variant.population(state.own, number)) if variant.population else state

    def personal(state: Server, memory: Tree | None) -> Parts:
        return state.model if variant.personal is None or memory is None else variant.personal(state.model, memory)

    examples = own_loop.batching if own_loop else examples
    chosen = examples if batching is None and examples is not None else batching_for(model, batching)
    work: Work | HostWork = Work(begin, train, report, chosen, variant.memory)
    if own_loop:
        check_steps(own_loop, chosen)
        run = OwnLoop(own_loop.trainer, variant.start, variant.pull, chosen, Local)
        work = HostWork(run, begin, report, chosen, variant.memory)
    aggregate = {"update": check_aggregator(aggregator), **variant.stages}
    if has_statistics:
        aggregate["statistics"] = total() if own_loop and own_loop.statistics_are == "sums" else mean()
    return Process(
        Round(variant.name, init, (*variant.before, Phase(broadcast, work, aggregate, finalize))),
        model=model,
        batching=batching,
        parts=lambda state: state.model,
        with_parts=lambda state, parts: state._replace(model=parts),
        hparams=hparams,
        with_hparams=with_hparams,
        with_population=with_population if variant.population is not None else None,
        personal=personal,
        labelled=own_loop.labelled if own_loop else True,
    )
