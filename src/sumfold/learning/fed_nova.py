"""FedNova: changes are normalised by the number of local steps, so that clients with many steps do not pull harder.

    d_k = (w_k − w) / τ_k          w ← ServerOpt(w, − τ_eff Σ_k p_k d_k)          τ_eff = Σ_k p_k τ_k

with τ_k the steps of client k and p_k its share of the weights. Wang et al. 2020 ("Tackling the Objective
Inconsistency Problem"), equations 6 and 8, for local SGD (‖a_k‖₁ = τ_k).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.core.batching import Batching
from sumfold.core.round import Measured, Task
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.learning.fed_avg import Local, Variant, averaging
from sumfold.learning.optimizers import Hparams
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["fed_nova"]


@user_facing
def fed_nova(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging of normalised changes, for clients that take different numbers of steps.

    Exact for local SGD without momentum; other client optimizers are normalised by their steps too, which is an
    approximation.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`; `aggregator`
            concerns the normalised change, the number of steps is averaged with the same weights.

    Raises:
        CompositionError: as `fed_avg`.

    Source: Wang et al. 2020, equations 6 and 8.

    Example:
        With the same number of steps everywhere it is federated averaging:

        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_nova(model, optax.sgd(0.1), batching=sf.Batching(size=None))
        >>> clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        steps = local.num_batches.astype(jnp.float32)
        normalised = tree.divide(update.value, jnp.maximum(steps, 1))
        return {"update": Contribution(normalised, update.weight), "steps": Contribution(steps, update.weight)}, ()

    def server(own: Tree, results: Mapping[str, Tree], measured: Measured, hparams: Hparams) -> tuple[Tree, Tree]:
        return tree.scale(results["steps"], results["update"]), own

    return averaging(
        Variant("fed_nova", report=report, stages={"steps": mean()}, server=server),
        model,
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
    )
