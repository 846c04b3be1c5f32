"""A stack on the host: the value of every client of a part, each written once, where its rule will read it.

A rule that needs individuals reads an array with one row a place. As a total that is carried, merged and copied like a
sum it would exist several times over; here there is one array for each leaf, in the host's memory and on the border
that XLA asks for, and whoever has a client's value writes its row. Rows of different places are different memory: so
threads may write at the same time, and no order of writing makes another stack.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold.aligned import aligned
from sumfold.core.driver import Totals
from sumfold.core.group import Stacked, add, stack
from sumfold.core.round import Phase
from sumfold.tree import Tree

__all__ = ["Rows", "individual", "rows_for", "with_rows", "without"]


class Rows:
    """The stack of one part.

    Args:
        like: tree of arrays or shapes with a leading axis of any length.
        places: of the cohort.
        allocate: (shape, dtype) -> an array of zeros that begins on a border.

    Attributes:
        values: tree of arrays [places, …]; zeros where no client was counted.
        present: bool[places].
    """

    def __init__(self, like: Tree, places: int, allocate: Callable[..., NDArray[Any]] = aligned) -> None:
        self.values = jax.tree.map(lambda a: allocate((places, *a.shape[1:]), a.dtype), like)
        self.present = aligned((places,), bool)

    def put(self, places: Sequence[int] | NDArray[Any], values: Tree, present: Any) -> None:
        """Write the rows of these places; rows of `values` behind them are not read."""
        for leaf, news in zip(jax.tree.leaves(self.values), jax.tree.leaves(values), strict=True):
            leaf[places] = np.asarray(news)[: len(places)]
        self.present[places] = np.asarray(present)[: len(places)]

    def taken(self, places: Sequence[int] | NDArray[Any]) -> Stacked:
        """The rows of these places, copied."""
        present: Any = self.present[places]
        return Stacked(jax.tree.map(lambda a: a[places], self.values), present)

    def stacked(self, device: Any = None) -> Stacked:
        """The stack as a rule takes it; on a CPU no copy, so nothing may be written any more."""
        place = functools.partial(jax.device_put, device=device)
        return Stacked(jax.tree.map(place, self.values), place(self.present))


def individual(phase: Phase) -> list[str]:
    """The parts whose rule needs the value of every client."""
    return [part for part, stage in phase.aggregate.items() if (stage.group or add).kind == stack.kind]


def without(phase: Phase) -> Phase:
    """The phase with the parts that are sums alone; what merges their totals needs no more of it."""
    apart = individual(phase)
    return phase._replace(aggregate={part: stage for part, stage in phase.aggregate.items() if part not in apart})


def rows_for(
    parts: Sequence[str], totals: Totals, places: int, allocate: Callable[..., NDArray[Any]] = aligned
) -> dict[str, Rows]:
    """Rows for every place, for each of the parts, whose totals (arrays or shapes) may be of any number of places."""
    return {part: Rows(totals.parts[part].values, places, allocate) for part in parts}


def with_rows(phase: Phase, totals: Totals, rows: Mapping[str, Rows], device: Any = None) -> Totals:
    """The totals of the sums together with the stacks, as the server's half takes them."""
    parts = {**totals.parts, **{part: some.stacked(device) for part, some in rows.items()}}
    return totals._replace(parts={part: parts[part] for part in phase.aggregate})
