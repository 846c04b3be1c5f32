"""TFF's optimizers as optax transforms, by TFF's formulas and parameter names.

Their numbers are in the state (`optax.inject_hyperparams`), so ``process.get_hparams`` reads them and ``set_hparams``
sets them. Adam, AdamW and Yogi add epsilon to the root of the second moment *before* its bias is corrected, as the
last lines of Kingma and Ba 2015, section 2, and unlike optax's own; the difference is seen where epsilon is large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from sumfold.errors import CompositionError, user_facing
from sumfold.tree import Tree

__all__ = [
    "build_adafactor",
    "build_adagrad",
    "build_adam",
    "build_adamw",
    "build_rmsprop",
    "build_sgdm",
    "build_yogi",
]

_Rate = float | int | Array | Callable[..., Any]


@user_facing
def build_sgdm(
    learning_rate: _Rate = 0.01, momentum: Any = None, nesterov: bool = False
) -> optax.GradientTransformation:
    """Gradient descent: v ← m v + g; w ← w − lr v, and with Nesterov's momentum w ← w − lr (g + m v).

    Raises:
        CompositionError: for a number out of range, or `nesterov` without momentum.

    Example:
        >>> optimizer = build_sgdm(0.1, momentum=0.9)
        >>> state = optimizer.init(jnp.zeros(()))
        >>> sorted(state.hyperparams)
        ['learning_rate', 'momentum']
    """
    _check(learning_rate, "learning_rate")
    _check(momentum, "momentum", 1.0)
    if nesterov and not momentum:
        raise _out_of_range("nesterov=True without momentum", "a momentum between 0 and 1")
    return optax.inject_hyperparams(optax.sgd, static_args=("nesterov", "accumulator_dtype"))(
        learning_rate, momentum or None, nesterov
    )


@user_facing
def build_adam(
    learning_rate: _Rate, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7
) -> optax.GradientTransformation:
    """Adam: a ← β₁ a + (1−β₁) g; s ← β₂ s + (1−β₂) g²; w ← w − lr √(1−β₂ᵗ)/(1−β₁ᵗ) a / (√s + ε).

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> sorted(build_adam(0.1).init(jnp.zeros(())).hyperparams)
        ['beta_1', 'beta_2', 'epsilon', 'learning_rate']
    """
    _check_moments(learning_rate, beta_1, beta_2, epsilon)

    def adam(learning_rate: Any, beta_1: Any, beta_2: Any, epsilon: Any) -> optax.GradientTransformation:
        return optax.chain(_moments(beta_1, beta_2, epsilon, _adam), optax.scale_by_learning_rate(learning_rate))

    return optax.inject_hyperparams(adam)(learning_rate, beta_1, beta_2, epsilon)


@user_facing
def build_adamw(
    learning_rate: _Rate, beta_1: Any = 0.9, beta_2: Any = 0.999, epsilon: Any = 1e-7, weight_decay: Any = 0.004
) -> optax.GradientTransformation:
    """`build_adam` whose step also takes lr · weight_decay · w away.

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> float(build_adamw(0.1).init(jnp.zeros(())).hyperparams["weight_decay"])
        0.004...
    """
    _check_moments(learning_rate, beta_1, beta_2, epsilon)
    _check(weight_decay, "weight_decay")

    def adamw(
        learning_rate: Any, beta_1: Any, beta_2: Any, epsilon: Any, weight_decay: Any
    ) -> optax.GradientTransformation:
        return optax.chain(
            _moments(beta_1, beta_2, epsilon, _adam),
            optax.add_decayed_weights(weight_decay),
            optax.scale_by_learning_rate(learning_rate),
        )

    return optax.inject_hyperparams(adamw)(learning_rate, beta_1, beta_2, epsilon, weight_decay)


@user_facing
def build_yogi(
    learning_rate: _Rate,
    beta_1: Any = 0.9,
    beta_2: Any = 0.999,
    epsilon: Any = 1e-3,
    initial_preconditioner_value: Any = 1e-6,
) -> optax.GradientTransformation:
    """Yogi: as `build_adam`, with s ← s + (1−β₂) sign(g² − s) g².

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> sorted(build_yogi(0.1).init(jnp.zeros(())).hyperparams)
        ['beta_1', 'beta_2', 'epsilon', 'learning_rate']
    """
    _check_moments(learning_rate, beta_1, beta_2, epsilon)
    _check(initial_preconditioner_value, "initial_preconditioner_value")

    def yogi(learning_rate: Any, beta_1: Any, beta_2: Any, epsilon: Any) -> optax.GradientTransformation:
        moments = _moments(beta_1, beta_2, epsilon, _yogi, initial_preconditioner_value)
        return optax.chain(moments, optax.scale_by_learning_rate(learning_rate))

    return optax.inject_hyperparams(yogi)(learning_rate, beta_1, beta_2, epsilon)


@user_facing
def build_adagrad(
    learning_rate: _Rate, initial_preconditioner_value: Any = 0.1, epsilon: Any = 1e-7
) -> optax.GradientTransformation:
    """Adagrad: s ← s + g²; w ← w − lr g / √(s + ε).

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> sorted(build_adagrad(0.1).init(jnp.zeros(())).hyperparams)
        ['epsilon', 'learning_rate']
    """
    _check(learning_rate, "learning_rate")
    _check(initial_preconditioner_value, "initial_preconditioner_value")
    _check(epsilon, "epsilon")

    def adagrad(learning_rate: Any, epsilon: Any) -> optax.GradientTransformation:
        squares = optax.scale_by_rss(initial_preconditioner_value, epsilon)
        return optax.chain(squares, optax.scale_by_learning_rate(learning_rate))

    return optax.inject_hyperparams(adagrad)(learning_rate, epsilon)


@user_facing
def build_rmsprop(learning_rate: _Rate, decay: Any = 0.9, epsilon: Any = 1e-7) -> optax.GradientTransformation:
    """RMSprop: s ← d s + (1−d) g²; w ← w − lr g / (√s + ε).

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> sorted(build_rmsprop(0.1).init(jnp.zeros(())).hyperparams)
        ['decay', 'epsilon', 'learning_rate']
    """
    _check(learning_rate, "learning_rate")
    _check(decay, "decay", 1.0)
    _check(epsilon, "epsilon")

    def rmsprop(learning_rate: Any, decay: Any, epsilon: Any) -> optax.GradientTransformation:
        squares = optax.scale_by_rms(decay, epsilon, eps_in_sqrt=False)
        return optax.chain(squares, optax.scale_by_learning_rate(learning_rate))

    return optax.inject_hyperparams(rmsprop)(learning_rate, decay, epsilon)


@user_facing
def build_adafactor(
    learning_rate: _Rate,
    *,
    beta_2_decay: float = -0.8,
    epsilon_1: Any = 1e-30,
    epsilon_2: Any = 1e-3,
    clip_threshold: Any = 1.0,
    relative_step: bool = True,
) -> optax.GradientTransformation:
    """Adafactor: Shazeer and Stern 2018, Algorithms 4 and 5, from the parts that optax has.

    The second moment of arrays with two axes or more is factored. With `relative_step` the rate of step t is at most
    1/√t.

    Raises:
        CompositionError: for a number out of range.

    Example:
        >>> sorted(build_adafactor(0.1).init(jnp.zeros(())).hyperparams)
        ['clip_threshold', 'epsilon_2', 'learning_rate']
    """
    _check(learning_rate, "learning_rate")
    _check(-beta_2_decay, "-beta_2_decay")

    def adafactor(learning_rate: Any, epsilon_2: Any, clip_threshold: Any) -> optax.GradientTransformation:
        def rate(count: Array) -> Any:
            return jnp.minimum(learning_rate, 1 / jnp.sqrt(jnp.asarray(count, jnp.float32) + 1))

        return optax.chain(
            optax.scale_by_factored_rms(decay_rate=-beta_2_decay, min_dim_size_to_factor=1, epsilon=epsilon_1),
            optax.clip_by_block_rms(clip_threshold),
            optax.scale_by_learning_rate(rate if relative_step else learning_rate),
            optax.scale_by_param_block_rms(epsilon_2),
        )

    return optax.inject_hyperparams(adafactor)(learning_rate, epsilon_2, clip_threshold)


# -- Adam and Yogi ---------------------------------------------------------------------------------------


def _adam(s: Array, square: Array, beta_2: Any) -> Any:
    return s + (1 - beta_2) * (square - s)


def _yogi(s: Array, square: Array, beta_2: Any) -> Any:
    return s + (1 - beta_2) * jnp.sign(square - s) * square


def _moments(
    beta_1: Any, beta_2: Any, epsilon: Any, second: Callable[[Array, Array, Any], Any], start: Any = 0.0
) -> optax.GradientTransformation:
    """√(1−β₂ᵗ)/(1−β₁ᵗ) · a / (√s + ε), where `second` moves the second moment."""

    def init(params: Tree) -> optax.ScaleByAdamState:
        def full(value: Any) -> Tree:
            return jax.tree.map(lambda p: jnp.full_like(p, value), params)

        return optax.ScaleByAdamState(jnp.int32(0), full(0.0), full(start))

    def update(gradient: Tree, state: Any, params: Tree | None = None) -> tuple[Tree, optax.ScaleByAdamState]:
        count = state.count + 1
        a = jax.tree.map(lambda a, g: a + (1 - beta_1) * (g - a), state.mu, gradient)
        s = jax.tree.map(lambda s, g: second(s, jnp.square(g), beta_2), state.nu, gradient)
        t = count.astype(jnp.float32)
        scale = jnp.sqrt(1 - jnp.power(beta_2, t)) / (1 - jnp.power(beta_1, t))
        step = jax.tree.map(lambda a, s: scale.astype(a.dtype) * a / (jnp.sqrt(s) + epsilon), a, s)
        return step, optax.ScaleByAdamState(count, a, s)

    return optax.GradientTransformation(init, update)


# -- checks ----------------------------------------------------------------------------------------------


def _check_moments(learning_rate: Any, beta_1: Any, beta_2: Any, epsilon: Any) -> None:
    _check(learning_rate, "learning_rate")
    _check(beta_1, "beta_1", 1.0)
    _check(beta_2, "beta_2", 1.0)
    _check(epsilon, "epsilon")


def _check(value: Any, name: str, high: float = float("inf")) -> None:
    """Refuse a number outside 0 … high; arrays and schedules pass, whose values are not known yet."""
    if isinstance(value, int | float) and not 0 <= value <= high:
        raise _out_of_range(
            f"{name}={value}", f"a number of at least 0{'' if high == float('inf') else f' and at most {high:g}'}"
        )


def _out_of_range(came: str, needed: str) -> CompositionError:
    return CompositionError("SF-COMP-076", came, needed, "choose another value")
