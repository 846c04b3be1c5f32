"""Buffers of large totals and states, handed from round to round.

The C library maps an allocation of more than 32 MiB anew and gives it back when it is freed, so every round would touch
fresh pages: 140 ms for 400 MB where writing them takes 13. What a stream summed into in one round, and nobody reads any
more when the round has ended, is what it sums into in the next. The state of a run likewise: what nobody but the run's
loop has, the next state is written over. And who calls `process.next` lets go of the state before the last, as a rule:
it is kept here, and if nobody has it any more, the next one is written over it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.core.driver import Totals
from sumfold.simulation import memory
from sumfold.tree import Tree

__all__ = ["Former", "Spare", "is_large", "owned", "vacant"]

_ROOM = 8
"""So many times a state's size must be free for an old one to be kept."""

_LARGE = 32 << 20
"""Bytes of all parts from which on they are kept: glibc's largest threshold for mapping."""


class Spare:
    """The parts of totals that a program may write into; kept between rounds."""

    def __init__(self) -> None:
        self._large: dict[int, Tree | None] = {}
        self._kept: dict[tuple[int, int], Tree] = {}

    def take(self, phase: int, stream: int, like: Callable[[], Totals], device: Any, beside: Tree = ()) -> Tree:
        """Buffers for one stream's totals, to be donated; () where they are small.

        Args:
            like: gives the shapes of the totals.
            device: where the stream runs; None where there is no choice.
            beside: what the program gets too; it is where the program runs.
        """
        if phase not in self._large:
            parts = tree.shapes(like().parts)
            self._large[phase] = parts if is_large(parts) else None
        parts = self._large[phase]
        if parts is None:
            return ()
        kept = self._kept.pop((phase, stream), None)
        if kept is not None and _places(kept) >= _places(beside):
            return kept
        return jax.device_put(jax.tree.map(_fresh, parts), device)

    def put(self, phase: int, stream: int, totals: Totals) -> None:
        """Keep the buffers of totals that nobody reads any more."""
        if self._large.get(phase) is not None:
            self._kept[phase, stream] = totals.parts


class Former:
    """The last two states that were made, as leaves: the older may be nobody's when the next is made.

    A round needs that memory when it makes its state, but not while clients compute; so nothing is kept where it might
    be wanted for them.
    """

    def __init__(self) -> None:
        self._made: deque[list[Any]] = deque(maxlen=2)

    def take(self) -> list[Any]:
        """The older state's leaves, for `vacant`; none where there is none."""
        try:
            return self._made.popleft() if len(self._made) == 2 else []
        except IndexError:  # another thread was first
            return []

    def put(self, state: Tree) -> None:
        """Keep a state that was made."""
        free = memory.free(jax.devices()[0])
        if free is not None and free > _ROOM * tree.nbytes(state):
            self._made.append(jax.tree.leaves(state))
        else:
            self._made.clear()


def vacant(former: Sequence[Any], place: int, like: Any) -> Any:
    """The leaf of a former state at this place, if nobody else has it, or else a new array; to be written over.

    Example:
        >>> former, like = [jnp.ones(2)], jnp.zeros(2)
        >>> vacant(former, 0, like) is former[0]
        True
        >>> mine = former[0]
        >>> vacant(former, 0, like) is former[0]
        False
    """
    if place < len(former) and isinstance(former[place], jax.Array) and not former[place].is_deleted():
        alone = sys.getrefcount(former[place]) == 2  # the sequence's, and that of the call
        alike = (former[place].shape, former[place].dtype) == (like.shape, like.dtype)
        if alone and alike and _places([former[place]]) == _places([like]) and not _shared(former[place]):
            return former[place]
    return _fresh(like)


def _shared(array: jax.Array) -> bool:
    """Whether another array has the same buffer, as `jax.device_put` to the same device makes one."""
    at, every = set(_addresses(array)), jax.live_arrays()  # type: ignore[no-untyped-call]
    others = (other for other in every if other is not array and other.nbytes >= array.nbytes)
    return any(not at.isdisjoint(_addresses(other)) for other in others if not other.is_deleted())


def _addresses(array: jax.Array) -> list[int]:
    if array.is_fully_addressable and len(array.sharding.device_set) == 1:
        return [array.unsafe_buffer_pointer()]
    return [shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards]


def _places(arrays: Tree) -> set[Any]:
    """The devices of those that JAX has."""
    return {device for leaf in jax.tree.leaves(arrays) if isinstance(leaf, jax.Array) for device in leaf.devices()}


def is_large(arrays: Tree) -> bool:
    """Whether these arrays together are worth handing on."""
    return tree.nbytes(arrays) >= _LARGE


def owned(given: list[Tree]) -> Tree:
    """The only tree of a list, which is empty then, with each of its arrays in a buffer that nobody else has.

    What nobody else refers to is freed as soon as it is copied, so that never two whole trees are in memory.

    Example:
        >>> weights = jnp.ones(2)
        >>> given = [(weights, weights)]
        >>> [a.unsafe_buffer_pointer() == weights.unsafe_buffer_pointer() for a in owned(given)], given
        ([False, False], [])
    """
    leaves, structure = jax.tree.flatten(given.pop())
    leaves.reverse()
    copies: list[Any] = []
    while leaves:
        copies.append(_copied(leaves.pop()))
    return tree.unflatten(structure, copies)


def _copied(leaf: Any) -> Any:
    return jnp.array(leaf, copy=True) if isinstance(leaf, (jax.Array, np.ndarray)) else leaf


def _fresh(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype)
