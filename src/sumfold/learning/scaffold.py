"""SCAFFOLD: control variates take out of each client's gradient what is the client's own.

    client    w_k ← ClientOpt(w_k, ∇ loss(w_k; b) − c_k + c)          c_k⁺ = mean of ∇ loss(w_k; b) along the way
    server    w ← ServerOpt(w, − mean (w_k − w))                      c ← c + |S|/N · mean (c_k⁺ − c_k)

Karimireddy et al. 2020, Algorithm 1. For SGD with rate η and K steps, w − w_k = η Σ (g − c_k + c), so the paper's
option II, c_k − c + (w − w_k)/(Kη), *is* the mean of the raw gradients g; written so it needs no learning rate, and
other client optimizers can be used (then it is option I along the path, not at w).
"""

from __future__ import annotations

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
from sumfold.learning.optimizers import Hparams
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["scaffold"]


class Control(NamedTuple):
    """The server's control variate c, and the population's size N; 0 until it is known."""

    variate: Tree
    population: Int[Array, ""]


@user_facing
def scaffold(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging corrected by control variates, for clients whose data differ.

    Every client remembers its variate c_k in ``state.clients``; the server's is part of the state. The population's
    size N is that of ``initialize(clients=N)``, else the number of clients in the data of the first round.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`; `weighting` and
            `aggregator` concern the update, the variates are averaged uniformly.

    Raises:
        CompositionError: as `fed_avg`.

    Source: Karimireddy et al. 2020, Algorithm 1, option II for SGD.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = scaffold(model, optax.sgd(0.1), batching=sf.Batching(size=None))
        >>> clients = {"a": (np.ones(1), 2 * np.ones(1)), "b": (2 * np.ones(3), 4 * np.ones(3))}
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4), float(state.clients["a"][0].work)
        (1.3, -4.0)
    """

    def corrected(task: Task, local: Local, gradient: Tree, weight: Array) -> tuple[Tree, Tree]:
        message: Message = task.message
        return tree.add(gradient, tree.sub(message.own, task.memory)), tree.add(local.own, gradient)

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        steps = local.num_batches.astype(jnp.float32)
        variate = tree.where(steps > 0, tree.divide(local.own, jnp.maximum(steps, 1)), task.memory)
        # A client without a step changes nothing, and is one of the |S|.
        change = Contribution(tree.sub(variate, task.memory), jnp.float32(1))
        return {"update": update, "variate": change}, variate

    def server(own: Control, results: Mapping[str, Tree], measured: Measured, hparams: Hparams) -> tuple[Tree, Control]:
        share = measured.num_clients.astype(jnp.float32) / jnp.maximum(own.population, 1).astype(jnp.float32)
        moved = tree.add(own.variate, tree.scale(share, results["variate"]))
        return results["update"], own._replace(variate=moved)

    def population(own: Control, number: int) -> Control:
        return own if int(own.population) else own._replace(population=jnp.int32(number))

    variant = Variant(
        "scaffold",
        state=lambda trainable: Control(tree.zeros_like(trainable), jnp.int32(0)),
        share=lambda own: own.variate,
        memory=lambda message: tree.zeros_like(message.model.trainable),
        begin=lambda task: tree.zeros_like(task.message.model.trainable),
        gradient=corrected,
        report=report,
        stages={"variate": mean()},
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
