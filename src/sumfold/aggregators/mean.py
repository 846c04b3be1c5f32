"""The weighted mean over clients, as two sums."""

from __future__ import annotations

from typing import Any, NamedTuple

from sumfold import tree
from sumfold.core.stage import Bound, Contribution, Stage
from sumfold.keys import Key
from sumfold.tree import Leaf, Tree

__all__ = ["Weighted", "mean"]


class Weighted(NamedTuple):
    """A value times its weight, and the weight: both add up over clients."""

    value: Tree
    weight: Leaf


def mean() -> Stage:
    """The mean Σ weight·value / Σ weight; each part's weights come with its contributions.

    By examples, uniform or any function of the client's report: the algorithm decides the weight (`weighting=`),
    the mean divides by their sum. When the weights sum to 0 the result is not a number, and no server applies it.

    Source: McMahan et al. 2017, Algorithm 1 (last line).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> stage = mean()
        >>> a, _ = stage.encode((), (), Contribution(jnp.float32(1.0), jnp.float32(1)), key)
        >>> b, _ = stage.encode((), (), Contribution(jnp.float32(3.0), jnp.float32(3)), key)
        >>> result, _, _ = stage.decode((), tree.add(a, b), key)
        >>> float(result)
        2.5
    """

    def encode(public: Tree, memory: Tree, given: Contribution, key: Key) -> tuple[Weighted, Tree]:
        return Weighted(tree.scale(given.weight, given.value), given.weight), memory

    def decode(state: Tree, total: Weighted, key: Key) -> tuple[Tree, Tree, dict[str, Any]]:
        return tree.divide(total.value, total.weight), state, {}

    def bound(given: Bound) -> Bound:
        largest = max(abs(given.low), abs(given.high)) * given.weight
        return given._replace(norm=given.norm * given.weight, low=-largest, high=largest)

    return Stage(encode, decode, bound=bound, name="mean")
