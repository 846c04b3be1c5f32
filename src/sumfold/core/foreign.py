"""The border to code that is not ours: models, losses and optimizers are traced under JAX's default promotion rules.

Sumfold's own code is written for strict dtype and rank promotion and tested under it. A user's ``x @ w + b`` adds a
vector to a matrix, which is legal JAX; it must stay legal whatever is switched on around it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from sumfold.core.pure import leaked

__all__ = ["foreign"]

P = ParamSpec("P")
R = TypeVar("R")


def foreign(function: Callable[P, R]) -> Callable[P, R]:
    """The same function, traced under JAX's defaults.

    Raises:
        CompositionError: when it is called and uses a value that was put away while a function was traced.

    Example:
        >>> import jax.numpy as jnp
        >>> foreign(lambda x, b: x + b)(jnp.ones((2, 3)), jnp.ones(3)).shape
        (2, 3)
    """

    @functools.wraps(function)
    def traced(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            try:
                return function(*args, **kwargs)
            except jax.errors.UnexpectedTracerError as error:
                raise leaked(error) from error

    return traced
