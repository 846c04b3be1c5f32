"""Flax modules, of `flax.linen` and of `flax.nnx`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from sumfold import tree
from sumfold.errors import CompositionError, missing_extra, user_facing
from sumfold.models.flax_linen import from_linen
from sumfold.models.flax_nnx import from_nnx
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["from_flax"]


@user_facing
def from_flax(
    module: Any, example: Tree, loss: Callable[[Any, Any], Any], metrics: Mapping[str, Any] | None = None
) -> Model:
    """A model from a Flax module, `flax.linen` or `flax.nnx`.

    Weights of a linen module are its variables, ``{"params": …, "batch_stats": …}``, ready for
    ``module.apply(weights, x)``. Weights of an nnx module are its state as a plain dict without random state; put them
    into a module with ``nnx.update(module, weights)``.

    Floating ``params`` (`nnx.Param`) are trained, other floating variables are averaged, all others stay. Dropout
    follows from the run's seed. The module hears whether it trains by a keyword ``train``, ``training``,
    ``deterministic`` or ``use_running_average`` of its ``__call__``, and an nnx module by ``module.train()`` and
    ``module.eval()``.

    Args:
        module: a linen module; an nnx module, whose weights of this moment are the initial ones whatever the seed; or
            a function ``rngs -> nnx module``, called anew for every initialisation.
        example: one batch of features, of any number of rows.
        loss: (outputs, y) -> loss of each example, [B].
        metrics: name -> fn(outputs, y) -> value of each example [B], or a `sumfold.metrics.Metric`.

    Raises:
        MissingExtraError: when Flax is not installed.
        CompositionError: when something is not what it should be.
        TypeMismatchError: when the module does not take the example.

    Example:
        >>> import flax.linen as nn, numpy as np, optax
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x, train):
        ...         return nn.Dense(2)(nn.Dropout(0.5, deterministic=not train)(x))
        >>> loss = optax.softmax_cross_entropy_with_integer_labels
        >>> model = from_flax(Net(), example=np.ones((1, 3), np.float32), loss=loss)
        >>> jax.tree.map(lambda w: w.shape, model.init(jax.random.key(0)))
        {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    try:
        import flax.linen
        from flax import nnx
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "flax":
            raise
        raise missing_extra("flax", "flax") from None
    example = jax.tree.map(tree.canonical, example)
    if isinstance(module, flax.linen.Module):
        return from_linen(module, example, loss, metrics)
    linen_class = isinstance(module, type) and issubclass(module, flax.linen.Module)
    if isinstance(module, nnx.Module) or (callable(module) and not linen_class):
        return from_nnx(module, example, loss, metrics)
    raise CompositionError(
        "SF-MODEL-013",
        f"the class {module.__name__}" if linen_class else f"a {type(module).__name__}",
        "a flax.linen module, a flax.nnx module, or a function rngs -> nnx module",
        f"pass {module.__name__}(…), not its class" if linen_class else "see from_flax",
    )
