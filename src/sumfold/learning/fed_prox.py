"""FedProx: federated averaging whose clients are held near the server's weights.

    each client minimises   F_k(w) + μ/2 ‖w − w_global‖²      so its gradient is   ∇ loss(w; b) + μ (w − w_global)

Li et al. 2020 ("Federated Optimization in Heterogeneous Networks"), equation 2 and Algorithm 2.
"""

from __future__ import annotations

import functools
from typing import Any

import optax
from jaxtyping import Array

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Task
from sumfold.core.stage import Stage
from sumfold.errors import user_facing
from sumfold.learning.fed_avg import Local, Message, Variant, averaging
from sumfold.learning.hparams import check_numbers
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["fed_prox"]


@user_facing
def fed_prox(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    mu: Any,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging with a proximal term that keeps clients near the server's weights.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`.
        mu: strength μ ≥ 0 of the term; 0 is federated averaging. It can be read and set: ``client_work.mu``.

    Raises:
        CompositionError: for a negative or infinite mu, and as `fed_avg`.

    Source: Li et al. 2020, Algorithm 2.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_prox(model, optax.sgd(0.05), mu=1.0, batching=sf.Batching(size=None, epochs=2))
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4)
        1.0225
    """
    check = functools.partial(check_numbers, "fed_prox", zero=True)
    check({"mu": mu})

    def held_near(task: Task, local: Local, gradient: Tree, weight: Array) -> tuple[Tree, Tree]:
        message: Message = task.message
        away = tree.sub(local.trainable, message.model.trainable)
        return tree.add(gradient, tree.scale(message.own_hparams["mu"], away)), ()

    return averaging(
        Variant("fed_prox", hparams={"mu": float(mu)}, check=check, gradient=held_near, pull="mu"),
        model,
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
    )
