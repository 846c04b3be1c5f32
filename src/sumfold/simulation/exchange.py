"""The totals of all processes as one: in most rounds a single all-reduce of a single flat vector.

    totals = Σ_processes (real numbers of every part and metric | integers in pieces | first invalid place, by process)

Everything is float32, so that one collective does it. Real numbers of 32 bits and fewer add as they are. An integer
is cut into pieces of b bits with N · (2^b − 1) < 2^24 for N processes: no sum of such pieces is rounded, so counts come
out exactly, in any order, and wrap around as integers of their own width do. The first invalid place is a minimum; each
process puts its own into one of N places that are zero in all others.

An all-reduce sends each process 2 P (N − 1) / N numbers, where to gather everybody's totals takes P (N − 1), and memory
for N P. Parts that do not add up, such as maxima and masked words, are gathered and then merged in the order of ranks;
what is stacked travels by rows, some clients of each process at a time. Either way all processes hold the same bytes
afterwards: a ring adds each stretch of the vector in one place and then hands it on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.driver import Totals
from sumfold.core.group import add
from sumfold.core.round import Phase
from sumfold.core.rows import Rows
from sumfold.simulation.gang import Gang
from sumfold.tree import Tree

__all__ = ["adds_up", "as_vector", "exchanged", "of_vector", "spread_rows"]

_ROWS = 64 << 20
"""Bytes of all processes' rows that are on their way at a time."""


def exchanged(gang: Gang, phase: Phase, mine: Totals) -> Totals:
    """The totals of all processes; waits for the others, with a deadline.

    Args:
        gang: the processes.
        phase: whose totals they are.
        mine: over the clients of this process.
    """
    groups = {part: stage.group or add for part, stage in phase.aggregate.items()}
    adding = {part for part, value in mine.parts.items() if groups[part].kind == "add" and adds_up(value)}
    counted = adds_up(mine.metrics)
    places = np.zeros(gang.size, np.int32)
    places[gang.rank] = mine.invalid
    parts, metrics, clients, non_finite, places = gang.summed(
        (
            {part: mine.parts[part] for part in sorted(adding)},
            mine.metrics if counted else (),
            mine.num_clients,
            mine.num_non_finite_clients,
            places,
        )
    )
    apart = {part: value for part, value in mine.parts.items() if part not in adding}
    if apart or not counted:
        theirs = gang.gathered((apart, () if counted else mine.metrics))
        parts = {**parts, **{part: _merged(groups[part].merge, [some[0][part] for some in theirs]) for part in apart}}
        metrics = metrics if counted else _merged(tree.add, [some[1] for some in theirs])
    return Totals({part: parts[part] for part in mine.parts}, metrics, clients, non_finite, places.min())


def spread_rows(gang: Gang, rows: Mapping[str, Rows], places: Sequence[NDArray[np.int64]]) -> None:
    """Give every process the rows of all clients; waits for the others, with a deadline.

    Args:
        gang: the processes.
        rows: by part; written in each process are those of its own streams.
        places: of all streams, those of the first process first.
    """
    if not rows:
        return
    streams = len(places) // gang.size
    of_all = [np.concatenate(places[rank * streams : (rank + 1) * streams]) for rank in range(gang.size)]
    leaves = jax.tree.leaves([some.values for some in rows.values()])
    row = sum(leaf.nbytes // max(len(leaf), 1) for leaf in leaves)
    room = max(_ROWS // max(row * gang.size, 1), 1)
    for first in range(0, max(map(len, of_all)), room):
        now = [some[first : first + room] for some in of_all]
        theirs = gang.gathered({part: some.taken(now[gang.rank]) for part, some in rows.items()})
        for rank, stacks in enumerate(theirs):
            for part, some in rows.items():
                some.put(now[rank], *stacks[part])


def _merged(merge: Callable[[Tree, Tree], Tree], trees: Sequence[Tree]) -> Tree:
    return functools.reduce(functools.partial(_both, merge), trees)


@functools.partial(jax.jit, static_argnums=0)
def _both(merge: Callable[[Tree, Tree], Tree], a: Tree, b: Tree) -> Tree:
    return merge(a, b)


def adds_up(values: Tree) -> bool:
    """Whether all leaves are numbers that a sum in one vector of float32 serves.

    Example:
        >>> adds_up({"w": np.zeros(3, "f4"), "n": np.int64(7)}), adds_up(np.zeros(3)), adds_up(np.True_)
        (True, False, False)
    """
    return all(_is_integer(leaf.dtype) or _is_real(leaf.dtype) for leaf in jax.tree.leaves(values))


def as_vector(arrays: Sequence[NDArray[Any]], processes: int) -> NDArray[np.float32]:
    """The arrays of one process as one vector, to be added to those of the others.

    Example:
        >>> as_vector([np.float32([1, 2]), np.int32([-1])], 2).tolist()
        [1.0, 2.0, 65535.0, 65535.0]
    """
    parts = [np.zeros(0, np.float32)]
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1)
        parts.append(
            (flat.view(_piece(array.dtype, processes)) if _is_integer(array.dtype) else flat).astype("f4", copy=False)
        )
    return np.concatenate(parts)


def of_vector(vector: NDArray[np.float32], like: Sequence[NDArray[Any]], processes: int) -> list[NDArray[Any]]:
    """The sums of all processes' arrays, from the sum of their vectors.

    Example:
        >>> ours, theirs = [np.int8([100, -3])], [np.int8([27, 2])]
        >>> of_vector(as_vector(ours, 2) + as_vector(theirs, 2), ours, 2)
        [array([127,  -1], dtype=int8)]
    """
    arrays, at = [], 0
    for array in like:
        piece = _piece(array.dtype, processes)
        each = array.dtype.itemsize // piece.itemsize if _is_integer(array.dtype) else 1
        found = vector[at : at + array.size * each]
        at += array.size * each
        if _is_integer(array.dtype):
            shifts = np.arange(each, dtype=np.uint64) * np.uint64(8 * piece.itemsize)
            words = np.sum(found.astype(np.uint64).reshape(-1, each) << shifts, axis=1, dtype=np.uint64)
            found = words.astype(f"u{array.dtype.itemsize}").view(array.dtype)  # carries beyond its width are cut off
        arrays.append(found.astype(array.dtype, copy=False).reshape(array.shape))
    return arrays


def _piece(dtype: np.dtype[Any], processes: int) -> np.dtype[Any]:
    """Words whose sums over so many processes are whole numbers of at most 24 bits."""
    return np.dtype(np.uint16 if dtype.itemsize > 1 and processes <= 1 << 8 else np.uint8)


def _is_integer(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "iu"  # not JAX's integers of 4 bits, which no view can cut


def _is_real(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and np.dtype(dtype).itemsize <= 4
