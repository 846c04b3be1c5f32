"""FedDyn: a dynamic regulariser moves every client's optimum to the optimum of all.

    client    minimise  F_k(w) − ⟨g_k, w⟩ + α/2 ‖w − w_global‖²        g_k ← g_k − α (w_k − w_global)
    server    h ← h − α/N Σ_k (w_k − w_global)                         w ← mean_k w_k − h/α

Acar et al. 2021 ("Federated Learning Based on Dynamic Regularization"), Algorithm 1.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.core.batching import Batching
from sumfold.core.round import Measured, Task
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.learning.fed_avg import Local, Message, Variant, averaging
from sumfold.learning.hparams import check_numbers
from sumfold.learning.optimizers import Hparams
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["fed_dyn"]


class Drift(NamedTuple):
    """The server's h, and the population's size N; 0 until it is known."""

    h: Tree
    population: Int[Array, ""]


@user_facing
def fed_dyn(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    alpha: Any,
    weighting: Weighting | Any = "uniform",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Local training under a dynamic regulariser, for clients whose data differ.

    Every client remembers its g_k in ``state.clients``; the server's h is part of the state. The population's size N
    is that of ``initialize(clients=N)``, else the number of clients in the data of the first round.

    Args:
        model, client_optimizer, server_optimizer, aggregator, batching: as in `fed_avg`; ``optax.sgd(1.0)`` on the
            server is the paper's rule.
        alpha: strength α > 0 of the regulariser; it can be read and set: ``client_work.alpha``.
        weighting: as in `fed_avg`; uniform in the paper. With another one everybody must take part for h to be that
            of the weighted objective.

    Raises:
        CompositionError: for an alpha that is not positive and finite, and as `fed_avg`.

    Source: Acar et al. 2021, Algorithm 1.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_dyn(model, optax.sgd(0.05), alpha=0.5, batching=sf.Batching(size=None, epochs=5))
        >>> clients = {"a": (np.ones(1), 2 * np.ones(1)), "b": (2 * np.ones(3), 4 * np.ones(3))}
        >>> state = process.initialize()
        >>> for _ in range(20):
        ...     state, _ = process.next(state, clients)
        >>> round(float(process.get_model_weights(state)), 3)
        2.0
    """
    check = functools.partial(check_numbers, "fed_dyn", zero=False)
    check({"alpha": alpha})

    def regularised(task: Task, local: Local, gradient: Tree, weight: Array) -> tuple[Tree, Tree]:
        message: Message = task.message
        away = tree.sub(local.trainable, message.model.trainable)
        pulled = tree.sub(tree.scale(message.own_hparams["alpha"], away), task.memory)
        return tree.add(gradient, pulled), ()

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        # The mean change, whatever `aggregator` makes of the update, and the share of the cohort that weighs something.
        weighs = update.weight > 0
        active = Contribution(weighs.astype(jnp.float32), jnp.float32(1))
        memory = tree.add(task.memory, tree.scale(task.message.own_hparams["alpha"], update.value))
        return {"update": update, "drift": update, "active": active}, tree.where(weighs, memory, task.memory)

    def server(own: Drift, results: Mapping[str, Tree], measured: Measured, hparams: Hparams) -> tuple[Tree, Drift]:
        number = measured.num_clients.astype(jnp.float32) * results["active"]
        share = number / jnp.maximum(own.population, 1).astype(jnp.float32)
        h = tree.add(own.h, tree.scale(hparams["alpha"] * share, results["drift"]))
        return tree.add(results["update"], tree.divide(h, hparams["alpha"])), own._replace(h=h)

    def population(own: Drift, number: int) -> Drift:
        return own if int(own.population) else own._replace(population=jnp.int32(number))

    variant = Variant(
        "fed_dyn",
        hparams={"alpha": float(alpha)},
        check=check,
        state=lambda trainable: Drift(tree.zeros_like(trainable), jnp.int32(0)),
        memory=lambda message: tree.zeros_like(message.model.trainable),
        gradient=regularised,
        report=report,
        stages={"drift": mean(), "active": mean()},
        server=server,
        population=population,
    )
    return averaging(
        variant,
        model,
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
    )
