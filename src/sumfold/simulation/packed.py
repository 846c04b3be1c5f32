"""Many small arrays sent as a few large ones: what a round takes to an accelerator and brings back.

A copy between host and device costs some ten to a hundred microseconds however small it is, and a round has some
fifteen arrays of plans and ten numbers of metrics. Here all arrays of one dtype travel as one vector, which the program
takes apart again; the layout is a part of the structure that the program is compiled for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sumfold.tree import Tree

__all__ = ["Packed", "packed"]


class _Layout(NamedTuple):
    """What was packed: its structure, and each leaf's dtype and shape."""

    structure: Any
    leaves: tuple[tuple[str, tuple[int, ...]], ...]


@jax.tree_util.register_pytree_node_class
class Packed:
    """A tree as one vector for each dtype, of NumPy or in a traced program.

    Example:
        >>> held = packed({"a": np.float32([[1, 2]]), "b": np.int32(3), "c": np.float32(4)})
        >>> held.vectors
        {'float32': array([1., 2., 4.], dtype=float32), 'int32': array([3], dtype=int32)}
        >>> held.opened()
        {'a': array([[1., 2.]], dtype=float32), 'b': array(3, dtype=int32), 'c': array(4., dtype=float32)}
    """

    def __init__(self, vectors: Mapping[str, Any], layout: _Layout) -> None:
        self.vectors, self._layout = dict(vectors), layout

    def tree_flatten(self) -> tuple[tuple[Any, ...], tuple[tuple[str, ...], _Layout]]:
        """For JAX: the vectors, and what a program is compiled for."""
        return tuple(self.vectors.values()), (tuple(self.vectors), self._layout)

    @classmethod
    def tree_unflatten(cls, fixed: tuple[tuple[str, ...], _Layout], vectors: Iterable[Any]) -> Packed:
        """For JAX: the other way round."""
        return cls(dict(zip(fixed[0], vectors, strict=True)), fixed[1])

    def opened(self) -> Tree:
        """The tree again."""
        at = dict.fromkeys(self.vectors, 0)
        leaves = []
        for dtype, shape in self._layout.leaves:
            first, size = at[dtype], math.prod(shape)
            leaves.append(self.vectors[dtype][first : first + size].reshape(shape))
            at[dtype] = first + size
        return jax.tree.unflatten(self._layout.structure, leaves)


def packed(tree: Tree) -> Packed:
    """The tree as one vector for each dtype; on the host for arrays of NumPy, else in the program that has them.

    Args:
        tree: of arrays of any shapes and dtypes.
    """
    leaves, structure = jax.tree.flatten(tree)
    np_or_jnp = np if all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves) else jnp
    kinds: dict[str, list[Any]] = {}
    for leaf in leaves:
        kinds.setdefault(str(leaf.dtype), []).append(np_or_jnp.ravel(leaf))
    vectors = {dtype: some[0] if len(some) == 1 else np_or_jnp.concatenate(some) for dtype, some in kinds.items()}
    return Packed(vectors, _Layout(structure, tuple((str(leaf.dtype), leaf.shape) for leaf in leaves)))
