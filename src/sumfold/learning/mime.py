"""Mime and MimeLite: clients mimic a centralised optimizer, whose statistics s stay frozen while they train.

    client    w_k ← w_k − η U(g; s)     MimeLite: g = ∇ loss(w_k; b)
                                        Mime:     g = ∇ loss(w_k; b) − ∇ loss(w; b) + c
    server    c = mean of the clients' full gradients at w;     s ← V(c; s);     w ← ServerOpt(w, − mean (w_k − w))

with U the update and V the statistics of a base optimizer such as SGD with momentum or Adam. Karimireddy et al. 2021
("Breaking the centralized barrier for cross-device federated learning"), Algorithm 1. Mime needs c before the local
steps, so its round has two exchanges with the same clients; MimeLite gathers it along the way.
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
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_aggregator, check_model
from sumfold.learning.hparams import readable, written
from sumfold.learning.optimizers import as_optimizer
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.learning.weighting import Weighting, as_weighting
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["mime", "mime_lite"]


class Server(NamedTuple):
    """The model, the server optimizer's state, the base optimizer's statistics s, and this round's gradient c."""

    model: Parts
    optimizer: Tree
    base: Tree
    gradient: Tree


class Gathering(NamedTuple):
    """A client's gradient at the server's weights so far: a weighted sum, its metrics there, rows and batches."""

    gradient: Tree
    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


class Local(NamedTuple):
    """A client's run: its weights, what it has measured, and its gradient at the server's weights."""

    trainable: Tree
    statistics: Tree
    sums: dict[str, Tree]
    whole: Gathering


@user_facing
def mime(
    model: Model,
    optimizer: Any,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Local steps of a base optimizer with frozen statistics, and gradients corrected by the cohort's.

    Args:
        model, weighting, aggregator, batching: as in `fed_avg`; the full gradient is averaged with the same weights,
            under the mean.
        optimizer: the base optimizer that clients mimic, an optax transform or a Keras optimizer; its statistics are
            updated once a round, on the server.
        server_optimizer: as in `fed_avg`; ``optax.sgd(1.0)`` is the paper's rule.

    Raises:
        CompositionError: as `fed_avg`.

    Source: Karimireddy et al. 2021, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = mime(model, optax.sgd(0.1, momentum=0.9), batching=sf.Batching(size=None))
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """
    return _mime("mime", model, optimizer, server_optimizer, weighting, aggregator, batching)


@user_facing
def mime_lite(
    model: Model,
    optimizer: Any,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Local steps of a base optimizer with frozen statistics, each with the client's own gradient; see `mime`.

    The full gradient at the server's weights is gathered over the same batches as the local steps, so with
    ``max_steps`` it is that of the rows that were processed.

    Args:
        model, optimizer, server_optimizer, weighting, aggregator, batching: as in `mime`.

    Raises:
        CompositionError: as `fed_avg`.

    Source: Karimireddy et al. 2021, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = mime_lite(model, optax.sgd(0.1, momentum=0.9), batching=sf.Batching(size=None))
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state = process.initialize()
        >>> for _ in range(2):
        ...     state, _ = process.next(state, clients)
        >>> round(float(process.get_model_weights(state)), 4)
        2.925
    """
    return _mime("mime_lite", model, optimizer, server_optimizer, weighting, aggregator, batching)


def _mime(
    name: str,
    model: Model,
    base_optimizer: Any,
    server_optimizer: Any,
    weighting: Any,
    aggregator: Any,
    batching: Any,
) -> Process:
    check_model(model)
    base, server = as_optimizer(base_optimizer, "optimizer"), as_optimizer(server_optimizer, "server_optimizer")
    weigh, chosen = as_weighting(weighting), batching_for(model, batching)
    corrected = name == "mime"
    has_statistics = bool(jax.tree.leaves(model.template.statistics))

    def init(weights: Tree, key: Key) -> Server:
        parts = model.split(weights)
        nothing = tree.zeros_like(parts.trainable)
        return Server(parts, server.init(parts.trainable), base.init(parts.trainable), nothing)

    # local steps under frozen statistics

    def begin(task: Task, key: Key) -> Local:
        trainable, statistics, _constants = task.message.model
        return Local(trainable, statistics, model.zero(), _nothing(model, task))

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        message: Server = task.message
        rest = message.model._replace(statistics=local.statistics)
        gradient, statistics, sums = model.gradient(local.trainable, rest, batch, key)
        whole, there = _gathered(model, local.whole, task, batch, key)
        if corrected:
            gradient = tree.add(tree.sub(gradient, there), message.gradient)
        trainable, _ = base.update(gradient, message.base, local.trainable)
        return Local(trainable, statistics, tree.add(local.sums, sums), whole)

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.whole.num_examples, "num_batches": local.whole.num_batches}
        weight = weigh(task.rows, local.whole.num_batches, {**model.finish(local.sums), **counts})
        parts = {"update": Contribution(tree.sub(task.message.model.trainable, local.trainable), weight)}
        if not corrected:
            parts["gradient"] = Contribution(_mean(local.whole), weight)
        if has_statistics:
            parts["statistics"] = Contribution(local.statistics, weight)
        return Report(parts, {**local.sums, **counts})

    # the server: s ← V(c; s), and the mean change through the server optimizer

    def finalize(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        before = state.model
        trainable, optimizer = server.update(results["update"], state.optimizer, before.trainable)
        gradient = state.gradient if corrected else results["gradient"]
        _, statistics_of_base = base.update(gradient, state.base, before.trainable)
        after = before._replace(trainable=trainable, statistics=results.get("statistics", before.statistics))
        moved = (after, optimizer, statistics_of_base)
        applied = tree.all_finite((results, moved)) & (measured.sums["num_batches"] > 0)
        metrics: Metrics = {
            "client_work": {"train": summary(model, measured)},
            "finalizer": {"update_non_finite": (~applied).astype(jnp.int32)},
        }
        moved = tree.where(applied, moved, (before, state.optimizer, state.base))
        model_after, optimizer, of_base = moved
        return Server(model_after, optimizer, of_base, tree.zeros_like(state.gradient)), metrics

    def hparams(state: Server) -> Metrics:
        return {
            "client_work": readable(base.read(state.base), base_optimizer),
            "finalizer": readable(server.read(state.optimizer), server_optimizer),
        }

    def with_hparams(state: Server, values: Metrics) -> Server:
        of_base = written(base.read(state.base), values["client_work"], "client_work")
        of_server = written(server.read(state.optimizer), values["finalizer"], "finalizer")
        return state._replace(base=base.write(state.base, of_base), optimizer=server.write(state.optimizer, of_server))

    def broadcast(state: Server, key: Key) -> Server:
        return state._replace(optimizer=(), gradient=state.gradient if corrected else ())

    aggregate = {"update": check_aggregator(aggregator)}
    aggregate.update({} if corrected else {"gradient": mean()})
    aggregate.update({"statistics": mean()} if has_statistics else {})
    training = Phase(broadcast, Work(begin, train, report, chosen), aggregate, finalize)
    return Process(
        Round(name, init, (_full_gradient(model, weigh, chosen), training) if corrected else (training,)),
        model=model,
        batching=batching,
        parts=lambda state: state.model,
        with_parts=lambda state, parts: state._replace(model=parts),
        hparams=hparams,
        with_hparams=with_hparams,
    )


# -- the gradient of a client's rows at the server's weights


def _nothing(model: Model, task: Task) -> Gathering:
    return Gathering(tree.zeros_like(task.message.model.trainable), model.zero(), jnp.int32(0), jnp.int32(0))


def _gathered(model: Model, whole: Gathering, task: Task, batch: Batch, key: Key) -> tuple[Gathering, Tree]:
    """One more batch, and its gradient at the server's weights."""
    parts: Parts = task.message.model
    gradient, _, sums = model.gradient(parts.trainable, parts, batch, key)
    _, weight = sums["loss"]
    total = tree.add(whole.gradient, tree.scale(weight, gradient))
    rows = whole.num_examples + batch.mask.sum(dtype=jnp.int32)
    return Gathering(total, tree.add(whole.sums, sums), rows, whole.num_batches + 1), gradient


def _mean(whole: Gathering) -> Tree:
    _, weights = whole.sums["loss"]
    return tree.divide(whole.gradient, jnp.where(weights > 0, weights, jnp.ones_like(weights)))


def _full_gradient(model: Model, weigh: Callable[..., Array], batching: Batching) -> Phase:
    """Mime's first exchange: c, the mean of the clients' full gradients."""

    def gather(task: Task, whole: Gathering, batch: Batch, key: Key) -> Gathering:
        return _gathered(model, whole, task, batch, key)[0]

    def report(task: Task, whole: Gathering, key: Key) -> Report:
        counts = {"num_examples": whole.num_examples, "num_batches": whole.num_batches}
        weight = weigh(task.rows, whole.num_batches, {**model.finish(whole.sums), **counts})
        return Report({"gradient": Contribution(_mean(whole), weight)})

    def keep(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        known = tree.all_finite(results)
        return state._replace(gradient=tree.where(known, results["gradient"], tree.zeros_like(state.gradient))), {}

    # One look at each row, in any order.
    once = batching._replace(epochs=1, max_steps=None, shuffle=False)
    work = Work(lambda task, key: _nothing(model, task), gather, report, once)
    return Phase(
        lambda state, key: state._replace(optimizer=(), base=(), gradient=()), work, {"gradient": mean()}, keep
    )
