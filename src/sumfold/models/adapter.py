"""What the adapters of frameworks have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sumfold import tree
from sumfold.errors import CompositionError, TypeMismatchError
from sumfold.models.model import describe
from sumfold.tree import Tree

__all__: list[str] = []


def copied(weights: Tree) -> Tree:
    """The same values in arrays of their own: a framework's training, or ours, may donate what it holds."""
    return tree.strong(jax.tree.map(lambda a: jnp.array(a, copy=True), weights))


def checked_loss(loss: Any, example: str) -> Callable[[Any, Any], Any]:
    """A loss that is a function.

    Raises:
        CompositionError: when it is not one.
    """
    if callable(loss) and not inspect.isclass(loss):
        return loss  # type: ignore[no-any-return]
    kind = "missing" if loss is None else repr(loss) if isinstance(loss, (str, type)) else f"a {type(loss).__name__}"
    raise CompositionError(
        "SF-MODEL-004",
        f"the loss is {kind}",
        "a function (outputs, y) -> loss of each example",
        f"for example {example}",
    )


def takes(call: Callable[..., Any], keyword: str) -> bool:
    """Whether a function has a parameter of this name."""
    return keyword in inspect.signature(call).parameters


def mode(call: Callable[..., Any], training: bool) -> dict[str, bool]:
    """The keywords that tell a module's ``__call__`` whether it trains, out of those that it has."""
    when = {"train": training, "training": training, "is_training": training}
    unless = {"deterministic": not training, "use_running_average": not training}
    return {keyword: value for keyword, value in {**when, **unless}.items() if takes(call, keyword)}


def unfit(name: str, example: Tree, error: Exception) -> TypeMismatchError:
    """The error for a module that fails on its example."""
    lines = str(error).strip().splitlines() or [""]
    return TypeMismatchError(
        "SF-MODEL-011",
        f"{name} failed on the example {describe(example)}: {type(error).__name__}: {lines[0]}",
        "an example that the module takes: one batch of features",
        "the error below is the module's own",
    )
