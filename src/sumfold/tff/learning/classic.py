"""The two builders of TFF's first tutorials, under their arguments of TFF 0.14 to 0.27."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sumfold.errors import user_facing
from sumfold.learning import Process
from sumfold.tff.learning.arguments import refuse, stage_of
from sumfold.tff.learning.averaging import build_fed_eval, build_weighted_fed_avg

__all__ = ["build_federated_averaging_process", "build_federated_evaluation"]


@user_facing
def build_federated_averaging_process(
    model_fn: Any,
    client_optimizer_fn: Any,
    server_optimizer_fn: Any = None,
    *,
    client_weighting: Any = None,
    client_weight_fn: Any = None,
    broadcast_process: Any = None,
    aggregation_process: Any = None,
    model_update_aggregation_factory: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
) -> Process:
    """`sumfold.learning.fed_avg` under its first name; today's is ``tff.learning.algorithms.build_weighted_fed_avg``.

    Args:
        model_fn, client_optimizer_fn, server_optimizer_fn, client_weighting: as for `build_weighted_fed_avg`.
        model_update_aggregation_factory, aggregation_process: a stage of `sumfold.aggregators`; None is the mean.
        loop_implementation, use_experimental_simulation_loop: without effect; the loop is always compiled.
        client_weight_fn, broadcast_process, metrics_aggregator: have no counterpart.

    Raises:
        TypeMismatchError: when `model_fn` makes no model.
        CompositionError: for optimizers that cannot be used, and for an argument that has no counterpart.

    Example:
        >>> import keras, numpy as np
        >>> from sumfold import tff
        >>> def model_fn():
        ...     net = keras.Sequential([keras.layers.Dense(1, kernel_initializer="zeros", use_bias=False)])
        ...     spec = ((None, 1), np.float32), ((None, 1), np.float32)
        ...     return tff.learning.from_keras_model(net, loss=keras.losses.MeanSquaredError(), input_spec=spec)
        >>> process = build_federated_averaging_process(model_fn, lambda: keras.optimizers.SGD(0.1))
        >>> state = process.initialize()
        >>> client_data = [[(np.ones((1, 1)), 2 * np.ones((1, 1)))], [(2 * np.ones((3, 1)), 4 * np.ones((3, 1)))]]
        >>> state, metrics = process.next(state, client_data)
        >>> metrics["client_work"]["train"]["num_examples"]
        4
    """
    refuse(client_weight_fn=client_weight_fn, broadcast_process=broadcast_process)
    stages = [
        stage_of("aggregation_process", aggregation_process),
        stage_of("model_update_aggregation_factory", model_update_aggregation_factory),
    ]
    return build_weighted_fed_avg(
        model_fn,
        client_optimizer_fn,
        server_optimizer_fn,
        client_weighting=client_weighting,
        model_aggregator=next((stage for stage in stages if stage is not None), None),
        metrics_aggregator=metrics_aggregator,
    )


@user_facing
def build_federated_evaluation(
    model_fn: Any,
    *,
    broadcast_process: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
) -> Callable[[Any, Any], dict[str, Any]]:
    """A function (model weights, client data) -> ``{"eval": …}``; later: ``algorithms.build_fed_eval``.

    Example:
        >>> import jax.numpy as jnp, numpy as np, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> evaluation = build_federated_evaluation(lambda: model)
        >>> evaluation(1.0, [[(np.ones(2), np.ones(2))], [(np.ones(2), 3 * np.ones(2))]])["eval"]["loss"]
        2.0
    """
    refuse(broadcast_process=broadcast_process)
    process = build_fed_eval(model_fn, metrics_aggregator=metrics_aggregator)
    fresh = process.initialize()

    @user_facing
    def evaluation(server_model_weights: Any, federated_dataset: Any) -> dict[str, Any]:
        state = process.set_model_weights(fresh, server_model_weights)
        measured = process.next(state, federated_dataset).metrics["client_work"]["eval"]["current_round_metrics"]
        return {"eval": measured}

    return evaluation
