"""Rows of a user's arrays where they lie: XLA reads them without a copy.

On a CPU, XLA uses a NumPy array as it is if the array begins on a border of 64 bytes. NumPy's own large arrays begin 16
bytes behind one, after the allocator's header, and would be copied whole: twice the memory, seconds before the first
round, and a copy in small pages, whose random rows are slower to read ever after (a round of 1,000 clients among 10⁶:
6.0 ms instead of 3.9). A `Window` avoids it: XLA gets all memory from the border before the array as one flat vector,
and each row is read at its offset in it. The border lies on the page of the array's first byte, so the few bytes before
the array can be read, and nothing uses them.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Int32
from numpy.typing import NDArray

from sumfold.aligned import BORDER
from sumfold.tree import Leaf, Tree

__all__ = ["Window", "borrowed", "copied", "rows_at"]

_INDEX = 2**31 - BORDER
"""Elements of a vector that 32-bit numbers can point into."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["flat", "first"], meta_fields=["row"])
@dataclass(frozen=True)
class Window:
    """An array [N, …] inside a flat vector.

    Attributes:
        flat: [first + N · size of a row].
        first: int32[], where the array begins.
        row: a row's shape.
    """

    flat: Leaf
    first: Leaf
    row: tuple[int, ...]


def copied(array: NDArray[Any]) -> bool:
    """Whether a CPU needs a copy of the array.

    It does where the array is not contiguous, begins between the borders of elements, or is too long for 32-bit
    numbers and does not lie on a border of 64 bytes.
    """
    behind = array.ctypes.data % BORDER
    return not array.flags.c_contiguous or (behind > 0 and (behind % array.itemsize > 0 or array.size > _INDEX))


def borrowed(array: NDArray[Any], device: Any) -> Leaf | Window:
    """The array for XLA on this CPU device: itself where it lies on a border, else a window, else a copy.

    The array must not change while it is used.

    Example:
        >>> x = np.arange(12, dtype=np.float32)[3:].reshape(3, 3)
        >>> rows_at(borrowed(x, None), jax.numpy.array([2, 0])).tolist()
        [[9.0, 10.0, 11.0], [3.0, 4.0, 5.0]]
    """
    address = array.ctypes.data
    if address % BORDER == 0 or copied(array):
        return jax.device_put(array, device)
    before = address % BORDER // array.itemsize
    length = before + array.size
    memory: Any = (ctypes.c_byte * (length * array.itemsize)).from_address(address - before * array.itemsize)
    memory.owner = array  # whoever holds the vector holds the array's memory
    flat = np.frombuffer(memory, array.dtype)
    return Window(jax.device_put(flat, device), jax.device_put(np.int32(before), device), array.shape[1:])


def rows_at(examples: Tree, rows: Int32[Array, " b"]) -> Tree:
    """These rows of every leaf of the examples; their numbers must be in bounds."""

    def taken(leaf: Leaf | Window) -> Leaf:
        if not isinstance(leaf, Window):
            return leaf.at[rows].get(mode="promise_in_bounds")
        size = int(np.prod(leaf.row, dtype=np.int64))
        windows = lax.GatherDimensionNumbers(offset_dims=(1,), collapsed_slice_dims=(), start_index_map=(0,))
        start = (rows * size + leaf.first)[:, None]
        taken = lax.gather(leaf.flat, start, windows, (size,), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)
        return taken.reshape(-1, *leaf.row)

    return jax.tree.map(taken, examples, is_leaf=lambda leaf: isinstance(leaf, Window))
