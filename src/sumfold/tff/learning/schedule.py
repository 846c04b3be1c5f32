"""Federated averaging whose client learning rate follows the round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, user_facing
from sumfold.learning import Process
from sumfold.learning.optimizers import as_optimizer
from sumfold.tff.learning.averaging import build_weighted_fed_avg

__all__ = ["build_weighted_fed_avg_with_optimizer_schedule"]


@user_facing
def build_weighted_fed_avg_with_optimizer_schedule(
    model_fn: Any,
    client_learning_rate_fn: Callable[[Any], Any],
    client_optimizer_fn: Callable[[Any], Any],
    server_optimizer_fn: Any = None,
    *,
    client_weighting: Any = None,
    model_distributor: Any = None,
    model_aggregator: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
    measure_timing: bool = False,
) -> Process:
    """`build_weighted_fed_avg` with ``client_optimizer_fn(client_learning_rate_fn(round))`` on clients, from round 0.

    ``metrics["client_work"]["client_learning_rate"]`` is the rate of the round.

    Args:
        model_fn, server_optimizer_fn, client_weighting: as for `build_weighted_fed_avg`.
        client_learning_rate_fn: int32[] round -> learning rate; traced, so it computes with the round and does not
            decide on it by Python's ``if``.
        client_optimizer_fn: learning rate -> optax transform, such as ``tff.learning.optimizers.build_sgdm``.
        model_aggregator: as for `build_weighted_fed_avg`, with all that follows.

    Raises:
        CompositionError: for a rate that cannot be traced, or a Keras optimizer, which keeps its rate in a variable.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_weighted_fed_avg_with_optimizer_schedule(lambda: model, lambda r: 0.1 / (r + 1), optax.sgd)
        >>> state, client_data = process.initialize(), [[(np.ones(1), np.ones(1))]]
        >>> for _ in range(2):
        ...     state, metrics = process.next(state, client_data)
        ...     print(round(metrics["client_work"]["client_learning_rate"], 4))
        0.1
        0.05
    """
    probed = foreign(client_optimizer_fn)(0.1)
    if not isinstance(probed, optax.GradientTransformation):
        kind = "None" if probed is None else f"a {type(probed).__name__}"
        raise CompositionError(
            "SF-COMP-020",
            f"client_optimizer_fn(learning_rate) is {kind}",
            "an optax transform: the rate of a round is an array",
            "return tff.learning.optimizers.build_sgdm(learning_rate), or optax.sgd(learning_rate)",
        )

    def by_rate(learning_rate: Any) -> optax.GradientTransformation:
        return client_optimizer_fn(learning_rate)

    def by_round(round: Array) -> optax.GradientTransformation:
        return optax.inject_hyperparams(by_rate)(jnp.asarray(client_learning_rate_fn(round), jnp.float32))

    def traced(round: Array) -> Any:
        return as_optimizer(by_round, "client_learning_rate_fn", round).init(jnp.zeros(()))

    jax.eval_shape(traced, tree.shape((), jnp.int32))
    return build_weighted_fed_avg(
        model_fn,
        by_round,
        server_optimizer_fn,
        client_weighting=client_weighting,
        model_distributor=model_distributor,
        model_aggregator=model_aggregator,
        metrics_aggregator=metrics_aggregator,
        measure_timing=measure_timing,
    )
