"""IFCA, iterative federated clustering: k models, and each client trains the one that fits it best.

    client    j  ←  argmin_i loss_k(w_i)
              w_k ← w_j;   for every batch b:   w_k ← ClientOpt(w_k, ∇ loss(w_k; b))
    server    for every i:   w_i ← ServerOpt_i(w_i, − Σ_{k chose i} n_k (w_k − w_i) / Σ_{k chose i} n_k)

Ghosh et al. 2020 ("An efficient framework for clustered federated learning"), Algorithm 1, option II (model
averaging). A client sends one part for each model, zeros with weight 0 for those that it did not choose: the server
uses sums alone, and learns how many chose which model, not who. A client looks at its rows twice, so a round has two
exchanges with the same clients; the choice stays with the client in between.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import CompositionError, SumfoldError, user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_aggregator, check_clusters, check_model
from sumfold.learning.hparams import readable, written
from sumfold.learning.optimizers import ClientOptimizer, Hparams, as_client_optimizer, as_optimizer
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.learning.weighting import Weighting, as_weighting
from sumfold.models.model import Applied, Model, Parts
from sumfold.tree import Tree

__all__ = ["Clustered", "ifca"]


class Server(NamedTuple):
    """The server's state.

    Attributes:
        models: `Parts` of arrays [k, …], one model behind the other.
        optimizers: the server optimizer's state of each model.
        client_hparams: the clients' hyperparameters.
        round: int32[].
    """

    models: Parts
    optimizers: tuple[Tree, ...]
    client_hparams: Hparams
    round: Int[Array, ""]


class Local(NamedTuple):
    """A client's run with the model that it chose, and what it has measured."""

    trainable: Tree
    statistics: Tree
    optimizer: Tree
    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


@user_facing
def ifca(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    clusters: int | Any,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Clustered federated averaging: k models for clients of k kinds, which find out themselves where they belong.

    Weights are a list of k: `Process.get_model_weights` gives it, `set_model_weights` takes it. They begin with k keys
    of the seed; a client chooses at random among models on which its loss is the same, so models that begin alike
    come apart too. ``process.get_client_weights(state, id)`` are those of a client's last choice, which it remembers.
    ``metrics["client_work"]["clusters"]`` are the numbers of clients that trained each model. A model that nobody
    chose stays as it was, with its optimizer.

    Which of the models fits data in ``sf.train(…, evaluate=…)`` nobody knows: pass ``evaluate_clients=`` instead, which
    measures each client's choice on its own rows, or a function of the k weights.

    Args:
        model, client_optimizer, server_optimizer, weighting, batching: as in `fed_avg`; every model has a server
            optimizer of its own.
        clusters: k, how many models.
        aggregator: the stage of each of the parts ``update 0``, ``update 1``, …; default mean.

    Raises:
        CompositionError: as `fed_avg`; for a number of clusters that is none.

    Source: Ghosh et al. 2020, Algorithm 1, option II.

    Example:
        Two kinds of clients, y = x and y = −x:

        >>> import jax, jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(jax.random.normal, lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = ifca(model, optax.sgd(0.1), clusters=2)
        >>> clients = [(np.ones(4), sign * np.ones(4)) for sign in (1, -1, 1)]
        >>> state = process.set_model_weights(process.initialize(), [-0.5, 0.5])
        >>> for _ in range(30):
        ...     state, metrics = process.next(state, clients)
        >>> [round(float(w), 2) for w in process.get_model_weights(state)], metrics["client_work"]["clusters"]
        ([-1.0, 1.0], [1, 2])
        >>> round(float(process.get_client_weights(state, 1)), 2)
        -1.0
    """
    check_model(model)
    check_clusters("ifca", clusters)
    k = int(clusters)
    client, server = as_client_optimizer(client_optimizer), as_optimizer(server_optimizer, "server_optimizer")
    chosen = batching_for(model, batching)
    has_statistics = bool(jax.tree.leaves(model.template.statistics))
    several = _several(model, k)

    def init(weights: Tree, key: Key) -> Server:
        models = several.split(weights)
        optimizers = tuple(server.init(_one(models, i).trainable) for i in range(k))
        return Server(models, optimizers, client.hparams(_one(models, 0).trainable), jnp.int32(0))

    def broadcast(state: Server, key: Key) -> Server:
        return state._replace(optimizers=())

    # the server: each model moves by the mean of its own clients

    def finalize(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        members: Int[Array, " k"] = measured.sums["clusters"]
        models, optimizers, finite = [], [], []
        for i in range(k):
            before, optimizer = _one(state.models, i), state.optimizers[i]
            trainable, moved = server.update(results[f"update {i}"], optimizer, before.trainable)
            after = before._replace(trainable=trainable, statistics=results.get(f"statistics {i}", before.statistics))
            finite.append(tree.all_finite((results[f"update {i}"], after)))
            after, moved = tree.where(finite[i] & (members[i] > 0), (after, moved), (before, optimizer))
            models.append(after)
            optimizers.append(moved)
        lost = (members > 0) & ~jnp.stack(finite)
        rate = client.rate(models[0].trainable, state.client_hparams, state.round)
        train = summary(model, measured._replace(sums=measured.sums["train"]))
        metrics: Metrics = {
            "client_work": {"train": train, "clusters": members, **rate},
            "finalizer": {"update_non_finite": (lost.any() | ~(members > 0).any()).astype(jnp.int32)},
        }
        return Server(_stacked(models), tuple(optimizers), state.client_hparams, state.round + 1), metrics

    def hparams(state: Server) -> Metrics:
        return {
            "client_work": readable(state.client_hparams, client_optimizer),
            "finalizer": readable(server.read(state.optimizers[0]), server_optimizer),
        }

    def with_hparams(state: Server, values: Metrics) -> Server:
        of_server = written(server.read(state.optimizers[0]), values["finalizer"], "finalizer")
        return state._replace(
            client_hparams=written(state.client_hparams, values["client_work"], "client_work"),
            optimizers=tuple(server.write(optimizer, of_server) for optimizer in state.optimizers),
        )

    def personal(state: Server, memory: Tree | None) -> Parts:
        return state.models if memory is None or memory < 0 else _one(state.models, int(memory))

    stage = check_aggregator(aggregator)
    aggregate = {f"update {i}": stage for i in range(k)}
    aggregate.update({f"statistics {i}": mean() for i in range(k)} if has_statistics else {})
    training = _training(model, k, client, as_weighting(weighting), chosen)
    return Process(
        Round("ifca", init, (_choosing(model, k, chosen), Phase(broadcast, training, aggregate, finalize))),
        model=several,
        batching=batching,
        parts=lambda state: state.models,
        with_parts=lambda state, parts: state._replace(models=parts),
        hparams=hparams,
        with_hparams=with_hparams,
        personal=personal,
    )


def _choosing(model: Model, k: int, batching: Batching) -> Phase:
    """The first exchange: each client measures its loss on every model, and keeps its choice."""

    def measure(task: Task, losses: Array, batch: Batch, key: Key) -> Array:
        return losses + jnp.stack([model.measure(_one(task.message, i), batch)["loss"][0] for i in range(k)])

    def choose(task: Task, losses: Array, key: Key) -> Report:
        losses = jnp.where(jnp.isnan(losses), jnp.inf, losses)  # a model that has diverged fits nobody
        best = jnp.where(losses == losses.min(), jax.random.uniform(key, (k,)), -1.0)
        return Report({}, kept=best.argmax().astype(jnp.int32))

    # One look at each row; predicting, a short batch changes nothing.
    once = batching._replace(epochs=1, max_steps=None, shuffle=False, drop_remainder=False)
    work = Work(lambda task, key: jnp.zeros(k), measure, choose, once)
    return Phase(lambda state, key: state.models, work, {}, lambda state, results, measured, key: (state, {}))


def _training(model: Model, k: int, client: ClientOptimizer, weigh: Callable[..., Array], batching: Batching) -> Work:
    """The second exchange: each client trains the model that it chose, and sends zeros for the others."""
    has_statistics = bool(jax.tree.leaves(model.template.statistics))

    def begin(task: Task, key: Key) -> Local:
        mine, message = _one(task.message.models, task.kept), task.message
        optimizer = client.init(mine.trainable, message.client_hparams, message.round)
        return Local(mine.trainable, mine.statistics, optimizer, model.zero(), jnp.int32(0), jnp.int32(0))

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        rest = _one(task.message.models, task.kept)._replace(statistics=local.statistics)
        gradient, statistics, sums = model.gradient(local.trainable, rest, batch, key)
        trainable, optimizer = client.update(gradient, local.optimizer, local.trainable, task.message.round)
        rows = batch.mask.sum(dtype=jnp.int32)
        counts = local.num_examples + rows, local.num_batches + 1
        return Local(trainable, statistics, optimizer, tree.add(local.sums, sums), *counts)

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.num_examples, "num_batches": local.num_batches}
        weight = weigh(task.rows, local.num_batches, {**model.finish(local.sums), **counts})
        change = tree.sub(_one(task.message.models, task.kept).trainable, local.trainable)
        parts = {}
        for i in range(k):
            parts[f"update {i}"] = _if(task.kept == i, change, weight)
            if has_statistics:
                parts[f"statistics {i}"] = _if(task.kept == i, local.statistics, weight)
        trained = local.num_batches > 0
        members = (jnp.arange(k, dtype=jnp.int32) == task.kept) & trained
        metrics = {"train": {**local.sums, **counts}, "clusters": members.astype(jnp.int32)}
        return Report(parts, metrics, memory=jnp.where(trained, task.kept, task.memory))

    return Work(begin, train, report, batching, memory=lambda message: jnp.int32(-1))


def _if(mine: Bool[Array, ""], value: Tree, weight: Float[Array, ""]) -> Contribution:
    return Contribution(tree.where(mine, value, tree.zeros_like(value)), jnp.where(mine, weight, 0.0))


def _one(models: Parts, i: int | Array) -> Parts:
    one: Parts = jax.tree.map(lambda a: a[i], models)
    return one


def _stacked(models: list[Parts]) -> Parts:
    stacked: Parts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *models)
    return stacked


@dataclass(frozen=True, eq=False, repr=False)
class Clustered(Model):
    """All models as one: its weights are a list, its parts have a leading axis [k, …]; it does not predict.

    The weights of one of them, such as ``process.get_client_weights`` gives, predict and are evaluated.

    Attributes:
        one: the model that there are k of.
    """

    one: Model | Any = None

    def is_one(self, weights: Any) -> bool:
        """Whether these are the weights of one of the models."""
        try:
            return bool(tree.specs(self.one.split(weights)) == tree.specs(self.one.template))
        except (SumfoldError, TypeError, ValueError, AttributeError, KeyError):  # whatever an adapter makes of others
            return False

    @user_facing
    def predict(self, weights: Tree, x: Tree) -> Any:
        """The outputs of one of the models for rows `x`; see `Model.predict`."""
        return self.one.predict(weights, x) if self.is_one(weights) else super().predict(weights, x)

    @user_facing
    def evaluate(self, weights: Tree, x: Tree, y: Tree, example_weight: Any = None) -> dict[str, Any]:
        """Loss and metrics of one of the models over rows; see `Model.evaluate`."""
        asked = self.one.evaluate if self.is_one(weights) else super().evaluate
        found: dict[str, Any] = asked(weights, x, y, example_weight)
        return found


def _several(model: Model, k: int) -> Clustered:

    def init(key: Key) -> list[Tree]:
        return [model.init(jax.random.fold_in(key, i)) for i in range(k)]

    def split(weights: Any) -> Parts:
        if not isinstance(weights, (list, tuple)) or len(weights) != k:
            came = f"a list of {len(weights)}" if isinstance(weights, (list, tuple)) else f"a {type(weights).__name__}"
            raise CompositionError(
                "SF-COMP-092",
                f"weights as {came}",
                f"a list of {k}, one of each model",
                "pass what get_model_weights gave, or a list of what model.init gives",
            )
        return _stacked([model.split(one) for one in weights])

    def join(parts: Parts) -> Any:
        # The weights of one client's model come through here too: they have no leading axis.
        if tree.specs(parts) == tree.specs(model.template):
            return model.join(parts)
        return [model.join(_one(parts, i)) for i in range(k)]

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        if key is None:
            raise CompositionError(
                "SF-COMP-095",
                f"{k} models of ifca asked to predict as one",
                "one of them: which fits these rows is not known",
                "in sf.train and sf.compare pass evaluate_clients=test, where each client uses the one that it chose; "
                "or evaluate=fn, a function of the list of weights that returns a dict",
            )
        return model.apply(_one(parts, 0), x, key)

    template: Parts = jax.tree.map(lambda a: tree.shape((k, *a.shape), a.dtype), model.template)
    own = {"template": template, "init": init, "split": split, "join": join, "apply": apply, "one": model}
    return Clustered(**{field.name: getattr(model, field.name) for field in dataclasses.fields(Model)} | own)
