"""The sum over clients; weights do not matter."""

from __future__ import annotations

from typing import Any

from sumfold import tree
from sumfold.core.stage import Contribution, Stage
from sumfold.keys import Key
from sumfold.tree import Tree

__all__ = ["sum"]


def sum() -> Stage:
    """The sum Σ value over the clients whose weight is not 0.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> value, _ = sum().encode((), (), Contribution(jnp.float32(2.0), jnp.float32(9)), jax.random.key(0))
        >>> float(value)
        2.0
    """

    def encode(public: Tree, memory: Tree, given: Contribution, key: Key) -> tuple[Tree, Tree]:
        return tree.where(given.weight > 0, given.value, tree.zeros_like(given.value)), memory

    def decode(state: Tree, total: Tree, key: Key) -> tuple[Tree, Tree, dict[str, Any]]:
        return total, state, {}

    return Stage(encode, decode, name="sum")
