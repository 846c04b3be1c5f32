"""Buffers of large totals, handed from round to round.

The C library maps an allocation of more than 32 MiB anew and gives it back when it is freed, so every round would touch
fresh pages: 140 ms for 400 MB where writing them takes 13. What a stream summed into in one round, and nobody reads any
more when the round has ended, is what it sums into in the next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sumfold import tree
from sumfold.core.driver import Totals
from sumfold.tree import Tree

__all__ = ["Spare"]

_LARGE = 32 << 20
"""Bytes of all parts from which on they are kept: glibc's largest threshold for mapping."""


class Spare:
    """The parts of totals that a program may write into; kept between rounds."""

    def __init__(self) -> None:
        self._large: dict[int, Tree | None] = {}
        self._kept: dict[tuple[int, int], Tree] = {}

    def take(self, phase: int, stream: int, like: Callable[[], Totals], device: Any) -> Tree:
        """Buffers for one stream's totals, to be donated; () where they are small.

        Args:
            like: gives the shapes of the totals.
            device: where the stream runs; None where there is no choice.
        """
        if phase not in self._large:
            parts = tree.shapes(like().parts)
            self._large[phase] = parts if tree.nbytes(parts) >= _LARGE else None
        parts = self._large[phase]
        if parts is None:
            return ()
        kept = self._kept.pop((phase, stream), None)
        return kept if kept is not None else jax.device_put(jax.tree.map(_fresh, parts), device)

    def put(self, phase: int, stream: int, totals: Totals) -> None:
        """Keep the buffers of totals that nobody reads any more."""
        if self._large.get(phase) is not None:
            self._kept[phase, stream] = totals.parts


def _fresh(leaf: Any) -> Any:
    return jnp.zeros(leaf.shape, leaf.dtype)
