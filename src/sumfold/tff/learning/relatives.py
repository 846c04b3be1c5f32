"""`sumfold.learning.fed_prox`, `fed_sgd` and `mime_lite` under TFF's names and arguments."""

from __future__ import annotations

from typing import Any

import optax

from sumfold.errors import user_facing
from sumfold.learning import Process, fed_prox, fed_sgd, mime_lite
from sumfold.tff.learning.arguments import model_of, optimizer_of, refuse, stage_of
from sumfold.tff.learning.weighting import weighting_of

__all__ = [
    "build_fed_sgd",
    "build_unweighted_fed_prox",
    "build_unweighted_mime_lite",
    "build_weighted_fed_prox",
    "build_weighted_mime_lite",
]


@user_facing
def build_weighted_fed_prox(
    model_fn: Any,
    proximal_strength: Any,
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
    """`sumfold.learning.fed_prox`, by examples unless ``client_weighting`` says otherwise.

    The proximal gradient is μ (w − w_global), which holds clients near the server's weights. TFF adds it with the
    opposite sign, so its numbers differ.

    Args:
        model_fn, client_optimizer_fn, server_optimizer_fn: as for `build_weighted_fed_avg`; so are the options.
        proximal_strength: μ ≥ 0.
        client_weighting, model_aggregator, loop_implementation, use_experimental_simulation_loop: see there.
        model_distributor, metrics_aggregator, measure_timing: have no counterpart.

    Raises:
        TypeMismatchError, CompositionError: as `build_weighted_fed_avg`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_weighted_fed_prox(lambda: model, 1.0, lambda: optax.sgd(0.1))
        >>> client_data = [[(np.ones(1), 2 * np.ones(1))] * 2, [(2 * np.ones(3), 4 * np.ones(3))] * 2]
        >>> state, metrics = process.next(process.initialize(), client_data)
        >>> round(float(process.get_model_weights(state)), 4)
        1.49
    """
    refuse(model_distributor=model_distributor, metrics_aggregator=metrics_aggregator, measure_timing=measure_timing)
    return fed_prox(
        model_of(model_fn),
        optimizer_of(client_optimizer_fn),
        optax.sgd(1.0) if server_optimizer_fn is None else optimizer_of(server_optimizer_fn),
        mu=proximal_strength,
        weighting=weighting_of(client_weighting),
        aggregator=stage_of("model_aggregator", model_aggregator),
    )


@user_facing
def build_unweighted_fed_prox(
    model_fn: Any,
    proximal_strength: Any,
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
    """`build_weighted_fed_prox` in which every client counts the same.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> build_unweighted_fed_prox(lambda: model, 0.1, lambda: optax.sgd(0.1))
        Process(fed_prox of function on Simulation)
    """
    return build_weighted_fed_prox(
        model_fn,
        proximal_strength,
        client_optimizer_fn,
        server_optimizer_fn,
        client_weighting="uniform",
        model_distributor=model_distributor,
        model_aggregator=model_aggregator,
        metrics_aggregator=metrics_aggregator,
        measure_timing=measure_timing,
    )


@user_facing
def build_fed_sgd(
    model_fn: Any,
    server_optimizer_fn: Any = None,
    *,
    model_distributor: Any = None,
    model_aggregator: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
) -> Process:
    """`sumfold.learning.fed_sgd`; the server optimizer is SGD with rate 0.1 unless another is given.

    Example:
        >>> import jax.numpy as jnp, numpy as np, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_fed_sgd(lambda: model)
        >>> client_data = [[(np.ones(1), 2 * np.ones(1))], [(2 * np.ones(3), 4 * np.ones(3))]]
        >>> state, metrics = process.next(process.initialize(), client_data)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """
    refuse(model_distributor=model_distributor, metrics_aggregator=metrics_aggregator)
    return fed_sgd(
        model_of(model_fn),
        optax.sgd(0.1) if server_optimizer_fn is None else optimizer_of(server_optimizer_fn),
        aggregator=stage_of("model_aggregator", model_aggregator),
    )


@user_facing
def build_weighted_mime_lite(
    model_fn: Any,
    base_optimizer: Any,
    server_optimizer: Any = None,
    client_weighting: Any = None,
    model_distributor: Any = None,
    model_aggregator: Any = None,
    full_gradient_aggregator: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
) -> Process:
    """`sumfold.learning.mime_lite`, by examples unless ``client_weighting`` says otherwise.

    Args:
        model_fn: as for `build_weighted_fed_avg`.
        base_optimizer: an optax transform or a Keras optimizer, whose statistics stay frozen on clients.
        server_optimizer: the same; None is SGD with rate 1.
        client_weighting, model_aggregator, loop_implementation, use_experimental_simulation_loop: as there.
        model_distributor, full_gradient_aggregator, metrics_aggregator: have no counterpart.

    Raises:
        TypeMismatchError, CompositionError: as `build_weighted_fed_avg`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = build_weighted_mime_lite(lambda: model, optax.sgd(0.1, momentum=0.9))
        >>> client_data = [[(np.ones(1), 2 * np.ones(1))], [(2 * np.ones(3), 4 * np.ones(3))]]
        >>> state, metrics = process.next(process.initialize(), client_data)
        >>> round(float(process.get_model_weights(state)), 4)
        1.3
    """
    refuse(
        model_distributor=model_distributor,
        full_gradient_aggregator=full_gradient_aggregator,
        metrics_aggregator=metrics_aggregator,
    )
    return mime_lite(
        model_of(model_fn),
        optimizer_of(base_optimizer),
        optax.sgd(1.0) if server_optimizer is None else optimizer_of(server_optimizer),
        weighting=weighting_of(client_weighting),
        aggregator=stage_of("model_aggregator", model_aggregator),
    )


@user_facing
def build_unweighted_mime_lite(
    model_fn: Any,
    base_optimizer: Any,
    server_optimizer: Any = None,
    model_distributor: Any = None,
    model_aggregator: Any = None,
    full_gradient_aggregator: Any = None,
    metrics_aggregator: Any = None,
    loop_implementation: Any = None,
    use_experimental_simulation_loop: bool = False,
) -> Process:
    """`build_weighted_mime_lite` in which every client counts the same.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(()), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> build_unweighted_mime_lite(lambda: model, optax.sgd(0.1, momentum=0.9))
        Process(mime_lite of function on Simulation)
    """
    return build_weighted_mime_lite(
        model_fn,
        base_optimizer,
        server_optimizer,
        client_weighting="uniform",
        model_distributor=model_distributor,
        model_aggregator=model_aggregator,
        full_gradient_aggregator=full_gradient_aggregator,
        metrics_aggregator=metrics_aggregator,
    )
