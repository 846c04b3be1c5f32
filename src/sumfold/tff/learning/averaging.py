"""`sumfold.learning.fed_avg` and `fed_eval` under TFF's names and arguments."""

from __future__ import annotations

from typing import Any

import optax

from sumfold.errors import user_facing
from sumfold.learning import Process, fed_avg, fed_eval
from sumfold.tff.learning.arguments import model_of, optimizer_of, refuse, stage_of
from sumfold.tff.learning.weighting import weighting_of

__all__ = ["build_fed_eval", "build_unweighted_fed_avg", "build_weighted_fed_avg"]


@user_facing
def build_weighted_fed_avg(
    model_fn: Any,
    client_optimizer_fn: Any,
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
    """`sumfold.learning.fed_avg`, by examples unless ``client_weighting`` says otherwise.

    Args:
        model_fn: a function without arguments that returns a model, or a model.
        client_optimizer_fn: a function without arguments that returns an optax transform or a Keras optimizer, or an
            optimizer.
        server_optimizer_fn: the same; None is SGD with rate 1.
        client_weighting: `ClientWeighting`, or a function of the client's metrics.
        model_aggregator: a stage of `sumfold.aggregators`; None is the mean.
        loop_implementation, use_experimental_simulation_loop: without effect; the loop is always compiled.
        model_distributor, metrics_aggregator, measure_timing: have no counterpart.

    Raises:
        TypeMismatchError: when `model_fn` makes no model.
        CompositionError: for optimizers that cannot be used, and for an argument that has no counterpart.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_weighted_fed_avg(lambda: model, lambda: optax.sgd(0.1))
        >>> state = process.initialize()
        >>> client_data = [[(np.ones(1), 2 * np.ones(1))], [(2 * np.ones(3), 4 * np.ones(3))]]
        >>> state, metrics = process.next(state, client_data)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """
    refuse(model_distributor=model_distributor, metrics_aggregator=metrics_aggregator, measure_timing=measure_timing)
    return fed_avg(
        model_of(model_fn),
        optimizer_of(client_optimizer_fn),
        optax.sgd(1.0) if server_optimizer_fn is None else optimizer_of(server_optimizer_fn),
        weighting=weighting_of(client_weighting),
        aggregator=stage_of("model_aggregator", model_aggregator),
    )


@user_facing
def build_unweighted_fed_avg(
    model_fn: Any,
    client_optimizer_fn: Any,
    server_optimizer_fn: Any = None,
    *,
    model_distributor: Any = None,
    model_aggregator: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
    measure_timing: bool = False,
) -> Process:
    """`build_weighted_fed_avg` in which every client counts the same.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_unweighted_fed_avg(lambda: model, lambda: optax.sgd(0.1))
        >>> client_data = [[(np.ones(1), 2 * np.ones(1))], [(2 * np.ones(3), 4 * np.ones(3))]]
        >>> state, metrics = process.next(process.initialize(), client_data)
        >>> round(float(process.get_model_weights(state)), 4)
        1.0
    """
    return build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn,
        server_optimizer_fn,
        client_weighting="uniform",
        model_distributor=model_distributor,
        model_aggregator=model_aggregator,
        metrics_aggregator=metrics_aggregator,
        measure_timing=measure_timing,
    )


@user_facing
def build_fed_eval(
    model_fn: Any,
    *,
    model_distributor: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
    measure_timing: bool = False,
) -> Process:
    """`sumfold.learning.fed_eval`; weights enter by ``process.set_model_weights(state, weights)``.

    Example:
        >>> import jax.numpy as jnp, numpy as np, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_fed_eval(lambda: model)
        >>> state = process.set_model_weights(process.initialize(), 1.0)
        >>> state, metrics = process.next(state, [[(np.ones(2), np.ones(2))], [(np.ones(2), 3 * np.ones(2))]])
        >>> metrics["client_work"]["eval"]["total_rounds_metrics"]["loss"]
        2.0
    """
    refuse(model_distributor=model_distributor, metrics_aggregator=metrics_aggregator, measure_timing=measure_timing)
    return fed_eval(model_of(model_fn))
