"""How much a client counts in the mean: by examples, uniformly, or by any function of its report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError

__all__ = ["Weighting", "as_weighting"]

Weighting: TypeAlias = str | Callable[[Mapping[str, Any]], Any]


def as_weighting(given: Any) -> Callable[[Array, Array, Mapping[str, Any]], Float[Array, ""]]:
    """(rows held, steps taken, the client's own metrics) -> its weight; a client that took no step weighs 0.

    Args:
        given: ``"examples"`` (rows that the client holds, whatever the epochs), ``"uniform"``, or a function of the
            client's metrics (``loss``, ``num_examples``, ``num_batches`` and the model's own).

    Raises:
        CompositionError: for anything else.
    """

    def weigh(rows: Array, metrics: Mapping[str, Any]) -> Any:
        if given == "examples":
            return jnp.asarray(rows, jnp.float32)
        if given == "uniform":
            return jnp.float32(1)
        weight = jnp.asarray(foreign(given)(metrics), jnp.float32)
        if weight.size != 1:
            raise CompositionError(
                "SF-COMP-021",
                f"a weighting that returned shape {weight.shape}",
                "one number a client",
                "reduce it to a scalar, for example 1 / (1 + metrics['loss'])",
            )
        return weight.reshape(())

    if not callable(given) and given not in ("examples", "uniform"):
        raise CompositionError(
            "SF-COMP-021",
            f"weighting={given!r}",
            '"examples", "uniform" or a function of the client\'s metrics',
            'the default is "examples"',
        )
    return lambda rows, steps, metrics: jnp.where(steps > 0, weigh(rows, metrics), jnp.float32(0))
