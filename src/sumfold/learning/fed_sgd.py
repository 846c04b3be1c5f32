"""Federated SGD: every client sends the gradient of all its rows at the server's weights, and takes no step itself.

    g_k = ∇ F_k(w)  over all rows of client k          w ← ServerOpt(w, Σ_k n_k g_k / Σ_k n_k)

McMahan et al. 2017, section 2 (FederatedSGD, C = 1 and E = 1 with one full batch).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Task
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.learning.fed_avg import Local, Variant, averaging
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["fed_sgd"]


@user_facing
def fed_sgd(
    model: Model,
    server_optimizer: Any = optax.sgd(0.1),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """One gradient a round: the mean of the clients' gradients at the server's weights, and a server optimizer.

    Args:
        model, weighting, aggregator: as in `fed_avg`.
        server_optimizer: an optax transform or a Keras optimizer, given the mean gradient.
        batching: in how many pieces a client computes its gradient, by default one full batch; the result is the
            same but for rounding, and for layers whose examples see each other. One pass each.

    Raises:
        CompositionError: as `fed_avg`.

    Source: McMahan et al. 2017, section 2.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_sgd(model, optax.sgd(0.1))
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """

    def gathered(task: Task, local: Local, gradient: Tree, weight: Array) -> tuple[Tree, Tree]:
        total, weights = local.own
        return gradient, (tree.add(total, tree.scale(weight, gradient)), weights + weight)

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        total, weights = local.own
        whole = tree.divide(total, jnp.where(weights > 0, weights, jnp.ones_like(weights)))
        return {"update": Contribution(whole, update.weight)}, ()

    variant = Variant(
        "fed_sgd",
        begin=lambda task: (tree.zeros_like(task.message.model.trainable), jnp.float32(0)),
        gradient=gathered,
        report=report,
    )
    return averaging(
        variant,
        model,
        optax.sgd(0.0),  # the client stays where it is
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
        examples=Batching(size=None),
    )
