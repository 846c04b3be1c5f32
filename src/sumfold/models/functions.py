"""Models from plain functions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sumfold import tree
from sumfold.core.compiled import at_once
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, StateError, user_facing
from sumfold.keys import Key
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Applied, Model, Parts, combine, is_inexact, partition
from sumfold.tree import Tree

__all__ = ["from_functions"]


@user_facing
def from_functions(
    init: Callable[[Key], Tree] | Any,
    predict: Callable[..., Tree] | Any,
    loss: Callable[[Any, Any], Any] | Any,
    metrics: Mapping[str, Any] | Any = None,
    example: Any = None,
) -> Model:
    """A model from three functions; weights come back as `init`'s own tree.

    Floating leaves of the tree are trained; integers and booleans stay as the server has them.

    Args:
        init: key -> params, any pytree of arrays.
        predict: (params, x [B, …]) -> outputs [B, …]; may also take ``key=None``, given only while training (dropout).
        loss: (outputs, y) -> loss of each example, [B].
        metrics: name -> fn(outputs, y) -> value of each example [B], or a `sumfold.metrics.Metric`.
        example: one batch of features; if given, shapes are checked now instead of with the first data.

    Raises:
        CompositionError: when something that should be a function is not one, `predict` has a key without a default,
            or `init` returns something else than numeric arrays.
        TypeMismatchError: when `predict` does not take `example`.

    Example:
        >>> model = from_functions(
        ...     init=lambda key: {"w": jnp.zeros(2), "b": jnp.zeros(())},
        ...     predict=lambda p, x: x @ p["w"] + p["b"],
        ...     loss=lambda outputs, y: (outputs - y) ** 2,
        ... )
        >>> sorted(model.init(jax.random.key(0)))
        ['b', 'w']
    """
    for role, function in (("init", init), ("predict", predict), ("loss", loss)):
        if not callable(function):
            raise CompositionError(
                "SF-COMP-014",
                f"{role} is a {type(function).__name__}",
                "a function",
                "from_functions(init, predict, loss, metrics={…}) takes functions, in this order",
            )
    key_parameter = inspect.signature(predict).parameters.get("key")
    takes_key = key_parameter is not None
    if key_parameter is not None and key_parameter.default is key_parameter.empty:
        raise CompositionError(
            "SF-COMP-037",
            "predict with a key that has no default",
            "a key that may be missing: it is given only while training",
            "write predict(params, x, key=None), and leave dropout out where it is None",
        )

    def initial(key: Key) -> Tree:
        return tree.strong(jax.tree.map(as_weight, foreign(init)(key)))

    template = jax.eval_shape(initial, jax.random.key(0))

    def split(weights: Tree) -> Parts:
        return divide(matching(template, weights))

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        params = combine(parts.trainable, parts.constants)
        outputs = predict(params, x, key=key) if takes_key and key is not None else predict(params, x)
        return Applied(outputs, ())

    model = Model(
        name=getattr(predict, "__name__", "function").replace("<lambda>", "function"),
        template=divide(template),
        init=at_once(initial),
        split=split,
        join=lambda parts: combine(parts.trainable, parts.constants),
        apply=apply,
        loss=loss,
        metrics=as_metrics(metrics),
    )
    if example is not None:
        model.predict(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), template), example)
    return model


def as_weight(leaf: Any) -> Array:
    """A leaf of what `init` returned as an array.

    Raises:
        CompositionError: when it is a string or another object.
    """
    try:
        return jnp.asarray(leaf)
    except (TypeError, ValueError) as error:
        raise CompositionError(
            "SF-COMP-036",
            f"init returned a tree with a {type(leaf).__name__} ({str(leaf)[:40]!r})",
            "a tree of numeric arrays",
            "close over strings and other objects instead of keeping them in the params",
        ) from error


def divide(weights: Tree) -> Parts:
    """Floating leaves are trained, all others stay."""
    trainable, constants = partition(weights, is_inexact)
    return Parts(trainable, (), constants)


def matching(template: Tree, weights: Tree) -> Tree:
    """`weights` in the structure of `template`; plain containers from a file are taken.

    Raises:
        StateError: when names, shapes or dtypes differ, naming the first difference.
    """
    given = jax.tree.map(jnp.asarray, weights)
    fitted = tree.like(template, given)
    if fitted is not None:
        return fitted
    mine, theirs = tree.specs(template), tree.specs(given)
    wrong = [(a, b) for a, b in zip(mine, theirs, strict=False) if a != b]
    came = f"{wrong[0][1].path!r} {wrong[0][1].dtype}{list(wrong[0][1].shape)}" if wrong else f"{len(theirs)} arrays"
    needed = f"{wrong[0][0].path!r} {wrong[0][0].dtype}{list(wrong[0][0].shape)}" if wrong else f"{len(mine)} arrays"
    raise StateError(
        "SF-STATE-003",
        f"weights with {came}",
        f"the model's own: {needed}",
        "pass what init, get_model_weights or models.load gave for this model",
    )
