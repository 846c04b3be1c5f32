"""Arithmetic and description of pytrees of arrays.

Everything that travels through Sumfold is a tree: dicts, lists, tuples, named tuples and registered
classes with arrays as leaves. Nothing here knows what a tree is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool
from numpy.typing import NDArray

__all__ = ["Leaf", "Spec", "Tree"]

Tree: TypeAlias = Any
"""A pytree of arrays. `Any` stands for data here and in `Leaf` only."""

Leaf: TypeAlias = Any
"""An array on the host or a device, or only its shape and dtype while something is traced or checked."""


class Spec(NamedTuple):
    """Shape and dtype of one leaf, with its path: what crosses a border is checked against these.

    Example:
        >>> specs({"w": jnp.zeros((2, 3))})
        (Spec(path='w', shape=(2, 3), dtype='float32'),)
    """

    path: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * jnp.dtype(self.dtype).itemsize


def structure(tree: Tree) -> Any:
    """The tree without its leaves; comparable."""
    return jax.tree.structure(tree)


def unflatten(structure: Any, leaves: Sequence[Leaf]) -> Tree:
    """The reverse of `jax.tree.leaves`."""
    return jax.tree.unflatten(structure, leaves)


def shape(shape: Sequence[Any], dtype: Any) -> Leaf:
    """A leaf that is only its shape and dtype; sizes may be symbols."""
    make: Any = jax.ShapeDtypeStruct
    return make(shape, jnp.dtype(dtype) if isinstance(dtype, (str, type)) else dtype)


def zeros_like(tree: Tree) -> Tree:
    """Zeros of the same shapes and dtypes; leaves may be arrays or `jax.ShapeDtypeStruct`."""
    return jax.tree.map(lambda a: jnp.zeros(jnp.shape(a), jnp.result_type(a)), tree)


def add(a: Tree, b: Tree) -> Tree:
    """Leafwise a + b."""
    return jax.tree.map(lambda x, y: x + y, a, b)


def sub(a: Tree, b: Tree) -> Tree:
    """Leafwise a - b."""
    return jax.tree.map(lambda x, y: x - y, a, b)


def scale(factor: ArrayLike, tree: Tree) -> Tree:
    """Leafwise factor · tree; the leaves keep their dtypes."""
    return jax.tree.map(lambda x: x * jnp.asarray(factor).astype(x.dtype), tree)


def divide(tree: Tree, divisor: ArrayLike) -> Tree:
    """Leafwise tree / divisor; the leaves keep their dtypes."""
    return jax.tree.map(lambda x: x / jnp.asarray(divisor).astype(x.dtype), tree)


def where(condition: Bool[Array, ""], a: Tree, b: Tree) -> Tree:
    """The whole of a if the scalar condition holds, else the whole of b."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def all_finite(tree: Tree) -> Bool[Array, ""]:
    """Whether every floating or complex leaf is free of NaN and infinity."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
    return jnp.stack([_everywhere(jnp.isfinite(x).ravel()) for x in leaves]).all() if leaves else jnp.asarray(True)


_ROWS = 32
"""Terms that XLA reduces on a CPU in one pass together with what computes them; more are written to memory before."""


def _everywhere(true: Bool[Array, " n"]) -> Bool[Array, ""]:
    """Whether all are true: 32 parts of the vector against one another, until few are left."""
    while len(true) > _ROWS:
        along = len(true) // _ROWS
        whole, rest = true[: _ROWS * along].reshape(_ROWS, along).all(0), true[_ROWS * along :]
        true = jnp.concatenate([whole, rest]) if len(rest) else whole
    return true.all()


def strong(tree: Tree) -> Tree:
    """The same values without JAX's weak types, so that a loop's carry keeps its type."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), tree)


def canonical(array: Any) -> NDArray[Any]:
    """A NumPy array in the dtype that JAX will use: float64 becomes float32 unless x64 is on."""
    given: NDArray[Any] = np.asarray(array)
    dtype: Any = jax.dtypes.canonicalize_dtype(given.dtype)
    return given.astype(dtype, copy=False)


def shapes(tree: Tree) -> Tree:
    """The same tree with `jax.ShapeDtypeStruct` leaves."""
    return jax.tree.map(lambda x: shape(jnp.shape(x), jnp.result_type(x)), tree)


def name(path: tuple[Any, ...]) -> str:
    """A leaf's path as words joined by ``/``; attribute, key and index look alike on purpose.

    A state that was saved and loaded holds plain containers where the original had an optimizer's own
    classes; their leaves still have the same names in the same order.
    """
    words = [getattr(k, "name", getattr(k, "key", getattr(k, "idx", k))) for k in path]
    return "/".join(str(word) for word in words)


def specs(tree: Tree) -> tuple[Spec, ...]:
    """Path, shape and dtype of every leaf, in the tree's order."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return tuple(Spec(name(path), tuple(jnp.shape(x)), str(jnp.result_type(x))) for path, x in leaves)


def nbytes(tree: Tree) -> int:
    """Bytes of all leaves together."""
    return sum(spec.nbytes for spec in specs(tree))


def like(template: Tree, tree: Tree) -> Tree | None:
    """`tree`'s leaves in the structure of `template`, or None where path, shape or dtype differ."""
    if specs(template) != specs(tree):
        return None
    return unflatten(structure(template), jax.tree.leaves(tree))
