"""Server optimizers in the form of their papers: FedAvgM, FedAdagrad, FedAdam, FedYogi.

    Δ_t  =  β1 Δ_{t−1} + (1 − β1) · (mean client change)                     Δ_{−1} = 0
    v_t  =  v_{t−1} + Δ_t²                                    FedAdagrad     v_{−1} = τ²
            β2 v_{t−1} + (1 − β2) Δ_t²                        FedAdam
            v_{t−1} − (1 − β2) Δ_t² sign(v_{t−1} − Δ_t²)      FedYogi
    x    ←  x + η Δ_t / (√v_t + τ)

Reddi et al. 2021, Algorithm 2. There is no bias correction, what is squared is Δ_t (the momentum, not the round's own
change), and τ stands outside the root. FedAvgM: Hsu et al. 2019, section 4.2: d ← β d + change, x ← x + η d.

The papers' mean gives each client the same weight, which is ``weighting="uniform"``; any other works too. A server
optimizer is given the *negative* mean change as its gradient, so it descends, and these are plain optax transforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from sumfold.errors import CompositionError, user_facing
from sumfold.tree import Tree

__all__ = ["fed_adagrad", "fed_adam", "fed_avg_m", "fed_yogi"]


@user_facing
def fed_avg_m(learning_rate: float | Any, momentum: float | Any = 0.9) -> optax.GradientTransformation:
    """FedAvgM's server optimizer: momentum over the rounds' mean changes; exactly ``optax.sgd`` with momentum.

    Args:
        learning_rate: η, a number or an optax schedule of the updates applied. With momentum β a steady change is
            taken 1/(1 − β) times, so η is usually below 1.
        momentum: β, from 0 to below 1.

    Raises:
        CompositionError: for a number outside its range.

    Reference: Hsu et al. 2019, section 4.2.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = fed_avg_m(1.0, momentum=0.5)
        >>> state = optimizer.init(jnp.float32(0))
        >>> for change in (1.0, 1.0):
        ...     update, state = optimizer.update(jnp.float32(-change), state)
        ...     print(float(update))
        1.0
        1.5
    """
    _check("fed_avg_m", learning_rate, momentum=momentum)
    transform: optax.GradientTransformation = optax.sgd(learning_rate, momentum=momentum)
    return transform


@user_facing
def fed_adagrad(
    learning_rate: float | Any, b1: float | Any = 0.0, tau: float | Any = 1e-3
) -> optax.GradientTransformation:
    """FedAdagrad's server optimizer: steps shrink where changes have been large.

    Args:
        learning_rate: η, a number or an optax schedule of the updates applied.
        b1: β1, from 0 to below 1; 0, no momentum, is what the paper's experiments use.
        tau: τ, above 0: how far the steps adapt; with a large one the optimizer is like SGD.

    Raises:
        CompositionError: for a number outside its range.

    Reference: Reddi et al. 2021, Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = fed_adagrad(0.1)
        >>> update, _ = optimizer.update(jnp.float32(-2.0), optimizer.init(jnp.float32(0)))
        >>> round(float(update), 4)
        0.1
    """
    _check("fed_adagrad", learning_rate, tau, b1=b1)
    return _adaptive(lambda v, square: v + square, learning_rate, b1, tau)


@user_facing
def fed_adam(
    learning_rate: float | Any, b1: float | Any = 0.9, b2: float | Any = 0.99, tau: float | Any = 1e-3
) -> optax.GradientTransformation:
    """FedAdam's server optimizer.

    Args:
        learning_rate: η, a number or an optax schedule of the updates applied.
        b1: β1, from 0 to below 1.
        b2: β2, from 0 to below 1.
        tau: τ, above 0: how far the steps adapt; with a large one the optimizer is like SGD.

    Raises:
        CompositionError: for a number outside its range.

    Reference: Reddi et al. 2021, Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = fed_adam(0.1)
        >>> update, _ = optimizer.update(jnp.float32(-2.0), optimizer.init(jnp.float32(0)))
        >>> round(float(update), 2)
        0.95
    """
    _check("fed_adam", learning_rate, tau, b1=b1, b2=b2)
    return _adaptive(lambda v, square: b2 * v + (1 - b2) * square, learning_rate, b1, tau)


@user_facing
def fed_yogi(
    learning_rate: float | Any, b1: float | Any = 0.9, b2: float | Any = 0.99, tau: float | Any = 1e-3
) -> optax.GradientTransformation:
    """FedYogi's server optimizer: as FedAdam, but v moves by at most (1 − β2) Δ² a round, so it forgets slowly.

    Args:
        learning_rate: η, a number or an optax schedule of the updates applied.
        b1: β1, from 0 to below 1.
        b2: β2, from 0 to below 1.
        tau: τ, above 0: how far the steps adapt; with a large one the optimizer is like SGD.

    Raises:
        CompositionError: for a number outside its range.

    Reference: Reddi et al. 2021, Algorithm 2.

    Example:
        >>> import jax.numpy as jnp
        >>> optimizer = fed_yogi(0.1)
        >>> update, _ = optimizer.update(jnp.float32(-2.0), optimizer.init(jnp.float32(0)))
        >>> round(float(update), 2)
        0.95
    """
    _check("fed_yogi", learning_rate, tau, b1=b1, b2=b2)
    return _adaptive(lambda v, square: v - (1 - b2) * square * jnp.sign(v - square), learning_rate, b1, tau)


class Second(NamedTuple):
    """v of Algorithm 2: a tree like the weights."""

    v: Tree


def _adaptive(
    grow: Callable[[Array, Array], Array], learning_rate: Any, b1: Any, tau: Any
) -> optax.GradientTransformation:
    """Algorithm 2 with v_t = grow(v_{t−1}, Δ_t²)."""

    def init(params: Tree) -> Second:
        return Second(jax.tree.map(lambda p: jnp.full_like(p, tau**2), params))

    def update(delta: Tree, state: Second, params: Tree = None) -> tuple[Tree, Second]:
        del params
        v = jax.tree.map(lambda v, d: grow(v, d * d).astype(v.dtype), state.v, delta)
        return jax.tree.map(lambda d, v: d / (jnp.sqrt(v) + tau), delta, v), Second(v)

    transform: optax.GradientTransformation = optax.chain(
        optax.ema(b1, debias=False),
        optax.GradientTransformation(init, update),
        optax.scale_by_learning_rate(learning_rate),
    )
    return transform


def _check(name: str, learning_rate: Any, tau: Any = 1.0, **decays: Any) -> None:
    """Refuse numbers outside their range; under `optax.inject_hyperparams` they are traced arrays, and pass."""

    def refuse(what: str, value: Any, needed: str, example: str) -> None:
        raise CompositionError("SF-COMP-100", f"{name} with {what}={value!r}", needed, f"try {what}={example}")

    def inside(value: Any, allowed: Callable[[float], bool]) -> bool:
        if isinstance(value, jax.Array):
            return True
        return isinstance(value, (int, float, np.number)) and allowed(float(value))

    if not callable(learning_rate) and not inside(learning_rate, lambda rate: math.isfinite(rate) and rate >= 0):
        refuse("learning_rate", learning_rate, "a finite number of at least 0, or a schedule", "0.1")
    if not inside(tau, lambda tau: math.isfinite(tau) and tau > 0):
        refuse("tau", tau, "a finite number above 0", "1e-3")
    for what, value in decays.items():
        if not inside(value, lambda decay: 0 <= decay < 1):
            refuse(what, value, "a number from 0 to below 1", "0.9")
