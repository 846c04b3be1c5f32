"""Σ in an order that is fixed: the same bits however clients were packed, and on every runtime.

Floating-point addition is not associative, so a sum has one value only where its order is said. Here the order is a
binary tree over the places of the cohort, whoever computed what: the clients of places 2j and 2j+1 are added first,
then pairs of those sums, and so on. Any run of consecutive places reduces to at most two sums a level, so streams and
processes that each own a run need O(log clients) copies of the model, and what they hand over can be joined to the
very tree. (Fixed-point sums would need a scale that no client exceeds, and none is known beforehand.)

Groups whose total does not depend on the order anyway (minimum, maximum, modular) are summed as they come, and what is
stacked is written to the host, see `sumfold.core.rows`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.core.client import Briefing
from sumfold.core.driver import NOBODY, Totals, nothing, uploading
from sumfold.core.group import add
from sumfold.core.round import Phase
from sumfold.core.rows import Rows, individual, rows_for, with_rows
from sumfold.tree import Leaf, Tree

__all__ = ["Node", "Ordered"]

_ORDERED = frozenset({"add", "fold"})


class Branch(NamedTuple):
    """The sum over some clients: parts of the groups whose order matters, metrics, and how many were counted."""

    parts: dict[str, Tree]
    metrics: Tree
    num_clients: Leaf


class Node(NamedTuple):
    """Places at·2^level … (at+1)·2^level - 1 of the cohort; `branch` is None where nobody was counted."""

    level: int
    at: int
    branch: Branch | None


class Ordered:
    """The totals of consecutive places while they come in, in their order.

    Args:
        phase: whose stages say what the sum of each part is.
    """

    def __init__(self, phase: Phase) -> None:
        self._groups = {part: stage.group or add for part, stage in phase.aggregate.items()}
        self._phase, self._upload = phase, uploading(phase)
        self._stacked = individual(phase)
        self._leaf = jax.jit(self._one)
        self._merge = jax.jit(self._both)
        self._free = jax.jit(self._entered)

    def begin(self, briefing: Briefing, kept: Tree, places: int, rows: Mapping[str, Rows] | None = None) -> Sum:
        """The sum of nobody.

        Args:
            briefing, kept: what every client receives and has kept, arrays or shapes.
            places: of the whole cohort.
            rows: where stacked values go, of all runs of places that are joined later; made here by default.
        """
        zero = self.nobody(briefing, kept)
        return Sum(self, zero, rows_for(self._stacked, zero, places) if rows is None else rows)

    def nobody(self, briefing: Briefing, kept: Tree) -> Totals:
        """The totals of nobody, with a stack of no rows for each part that is stacked."""
        return nothing(self._phase, briefing, kept, 0, self._upload)

    def total(self, zero: Totals, sums: Iterable[Sum]) -> Totals:
        """The totals of several runs of places, in the order of places, as one."""
        first, *others = sums
        whole = Sum(self, zero, first.rows)
        for some in (first, *others):
            whole.join(some)
        return whole.total()

    def received(self, zero: Totals, places: range, arrays: Tree, rows: Mapping[str, Rows] | None = None) -> Sum:
        """The sum that another process has `sent`, of these places; what is stacked comes another way, in `rows`."""
        stacked, filled, free, non_finite, invalid = arrays
        some = Sum(self, zero, rows or {})
        for place in places:
            some.skip(place)
        some.nodes = [
            node._replace(branch=jax.tree.map(lambda a, n=n: a[n], stacked) if filled[n] else None)
            for n, node in enumerate(some.nodes)
        ]
        some.free, some.non_finite, some.invalid = dict(free), int(non_finite), int(invalid)
        return some

    def _one(self, zero: Totals, parts: dict[str, Tree], metrics: Tree, place: Leaf) -> Branch:
        mine = {
            part: group.accumulate(zero.parts[part], parts[part], place)
            for part, group in self._groups.items()
            if group.kind in _ORDERED
        }
        return Branch(mine, metrics, jnp.int32(1))

    def _both(self, a: Branch, b: Branch) -> Branch:
        parts = {part: self._groups[part].merge(a.parts[part], b.parts[part]) for part in a.parts}
        return Branch(parts, tree.add(a.metrics, b.metrics), a.num_clients + b.num_clients)

    def _entered(self, free: dict[str, Tree], parts: dict[str, Tree], place: Leaf) -> dict[str, Tree]:
        return {part: self._groups[part].accumulate(free[part], parts[part], place) for part in free}


class Sum:
    """One run of consecutive places."""

    def __init__(self, of: Ordered, zero: Totals, rows: Mapping[str, Rows]) -> None:
        self.of, self.rows = of, rows
        self.zero = zero._replace(parts={p: total for p, total in zero.parts.items() if p not in of._stacked})
        self.nodes: list[Node] = []
        self.free = {p: total for p, total in self.zero.parts.items() if of._groups[p].kind not in _ORDERED}
        self.non_finite, self.invalid = 0, int(NOBODY)

    def take(self, place: int, parts: dict[str, Tree], metrics: Tree) -> None:
        """The next place: a client that is counted."""
        for part, rows in self.rows.items():
            rows.put([place], jax.tree.map(lambda a: np.asarray(a)[None], parts[part]), [True])
        if self.free:
            self.free = self.of._free(self.free, {part: parts[part] for part in self.free}, np.int32(place))
        summed = {part: parts[part] for part in self.zero.parts}
        self._push(Node(0, place, self.of._leaf(self.zero, summed, metrics, np.int32(place))))

    def skip(self, place: int, *, finite: bool = True, valid: bool = True) -> None:
        """The next place: a client that is not counted, and why."""
        self.non_finite += not finite
        if finite and not valid:
            self.invalid = min(self.invalid, place)
        self._push(Node(0, place, None))

    def join(self, other: Sum) -> None:
        """The run of places that follows this one."""
        for part, total in other.free.items():
            self.free[part] = self.of._groups[part].merge(self.free[part], total)
        self.non_finite += other.non_finite
        self.invalid = min(self.invalid, other.invalid)
        for node in other.nodes:
            self._push(node)

    def sent(self, room: int) -> Tree:
        """The sum as arrays whose shapes do not depend on what came in; see `Ordered.received`.

        Args:
            room: nodes that there is room for.
        """
        empty = Branch(
            {part: total for part, total in self.zero.parts.items() if part not in self.free},
            self.zero.metrics,
            np.int32(0),
        )
        branches = [node.branch or empty for node in self.nodes] + [empty] * (room - len(self.nodes))
        filled = np.array([node.branch is not None for node in self.nodes] + [False] * (room - len(self.nodes)))
        stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *branches)
        return stacked, filled, self.free, np.int32(self.non_finite), np.int32(self.invalid)

    def at(self, device: Any) -> Sum:
        """The same on another device."""
        moved = Sum(self.of, jax.device_put(self.zero, device), self.rows)
        moved.nodes = [node._replace(branch=jax.device_put(node.branch, device)) for node in self.nodes]
        moved.free = jax.device_put(self.free, device)
        moved.non_finite, moved.invalid = self.non_finite, self.invalid
        return moved

    def total(self) -> Totals:
        """What has come in, as one."""
        branches = [node.branch for node in self.nodes]
        branch = functools.reduce(lambda right, left: self._added(left, right), reversed(branches), None)
        if branch is None:
            return self._counted(self.zero._replace(parts={**self.zero.parts, **self.free}))
        return self._counted(
            Totals({**branch.parts, **self.free}, branch.metrics, branch.num_clients, np.int32(0), NOBODY)
        )

    def _counted(self, totals: Totals) -> Totals:
        counted = totals._replace(num_non_finite_clients=np.int32(self.non_finite), invalid=np.int32(self.invalid))
        return with_rows(self.of._phase, counted, self.rows)  # in the order of the parts, which is part of the type

    def _push(self, node: Node) -> None:
        """Add at the right; two sisters become their mother."""
        while self.nodes and self.nodes[-1].level == node.level and self.nodes[-1].at == node.at ^ 1:
            left = self.nodes.pop()
            node = Node(node.level + 1, node.at // 2, self._added(left.branch, node.branch))
        self.nodes.append(node)

    def _added(self, left: Branch | None, right: Branch | None) -> Branch | None:
        if left is None or right is None:
            return right if left is None else left
        merged: Branch = self.of._merge(left, right)
        return merged
