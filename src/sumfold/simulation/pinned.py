"""The pinned kernel: every client through the exported programs, one step a call, and sums in a fixed order.

What XLA makes of a step depends on what stands around it: in a loop it may fuse, reorder and round differently. Here
a step is one program, exported in the form that a deployment's clients run, and the clients' results are added in
the order of a tree over their places (`sumfold.core.ordered`). So the bits are the same for any number of streams,
devices and processes, and in `Loopback`. The cost is a call for each step, some tens of microseconds, and as many
partial sums as the tree is deep.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, client_key
from sumfold.core.cohort import ClientData, batch_shapes
from sumfold.core.driver import State
from sumfold.core.exported import Forms, export_half, forms, loaded
from sumfold.core.ordered import Ordered, Sum
from sumfold.core.round import Batch, Phase
from sumfold.core.rows import Rows, individual
from sumfold.simulation.placement import Plans
from sumfold.tree import Tree

__all__ = ["Pinned"]


class _Half(NamedTuple):
    forms: Forms
    call: dict[str, Any]


class Pinned:
    """One phase of an algorithm.

    Args:
        i: the phase's number.
        phase: the phase.
        half: its client half, in the form that this backend computes fast.
    """

    def __init__(self, i: int, phase: Phase, half: ClientHalf) -> None:
        self.i, self.half = i, half
        self.ordered, self.parts = Ordered(phase), individual(phase)
        self._halves: dict[tuple[Any, ...], _Half] = {}
        self._lock = threading.Lock()
        self._key = jax.jit(
            lambda seed, number, code: jax.random.key_data(client_key(keys.typed(seed), i, number, code))
        )

    def __call__(
        self,
        state: State,
        briefing: Briefing,
        kept_before: Tree,
        kept: Mapping[int, list[Any]],
        memories: Mapping[int, Tree],
        data: ClientData,
        plans: Plans,
        rows: Mapping[str, Rows],
    ) -> tuple[Sum, dict[int, Tree], dict[int, list[Any]], Tree]:
        """Σ over one run of consecutive places.

        Args:
            state, briefing: of the round.
            kept_before: shapes of what a client kept from the phase before.
            kept: the leaves of it, of the places that are still in the round.
            memories: of the places whose client has one, its memory of this phase.
            data: the federation.
            plans: the batches of these places.
            rows: for what is stacked, of the whole cohort.

        Returns:
            (the sum, the memories of those counted, what they keep for the next phase, its shapes).
        """
        widths = [len(clients.rows) // (len(clients.begin) + 1) for clients, _ in plans]
        rank = {
            int(clients.place[k]): (plan, k)
            for plan, (clients, _) in enumerate(plans)
            for k in range(int(clients.number))
        }
        halves = [self._half(briefing, kept_before, batch_shapes(data, width)) for width in widths]
        total = Sum(self.ordered, self.ordered.nobody(briefing, kept_before), rows)
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data.examples)]
        after: dict[int, Tree] = {}
        keeps: dict[int, list[Any]] = {}
        for place in sorted(rank):
            if place not in kept:
                total.skip(place)
                continue
            plan, k = rank[place]
            half, clients = halves[plan], plans[plan][0]
            batches = [
                _batch(leaves, clients, int(clients.start[k]) + t, widths[plan]) for t in range(int(clients.steps[k]))
            ]
            upload, keeping, finite, valid = self._client(
                half, state, briefing, kept[place], memories.get(place), batches, clients.held[k], clients.code[k]
            )
            if bool(finite) and bool(valid):
                structure = tree.structure((half.forms.upload.parts, half.forms.upload.metrics))
                total.take(place, *tree.unflatten(structure, upload))
                number = len(jax.tree.leaves(half.forms.memory))
                after[place] = tree.unflatten(tree.structure(half.forms.memory), keeping[:number])
                keeps[place] = keeping[number:]
            else:
                total.skip(place, finite=bool(finite), valid=bool(valid))
        return total, after, keeps, halves[0].forms.keeping.kept

    def _client(
        self,
        half: _Half,
        state: State,
        briefing: Briefing,
        kept: list[Any],
        memory: Tree | None,
        batches: Sequence[list[Any]],
        rows: Any,
        code: Any,
    ) -> Any:
        """What ends one client's half; the calls are those of `sumfold.client.runner.Runner`."""
        brief = jax.tree.leaves(briefing)
        held = half.call["fresh"](brief, kept) if memory is None else jax.tree.leaves(memory)
        start = [*brief, *held, *kept, np.int32(rows)]
        key = [self._key(state.seed, np.int32(state.round), np.uint32(code))]
        carry = half.call["init"](start, key)
        if "step" in half.call:
            for t, batch in enumerate(batches):
                carry = half.call["step"](start, carry, batch, key, [np.int32(t)])
        return half.call["finish"](start, carry, key)

    def _half(self, briefing: Briefing, kept: Tree, batch: Batch | None) -> _Half:
        at = tree.specs((briefing, kept, batch))
        with self._lock:  # the streams' threads all come here first
            if at not in self._halves:
                made = forms(self.half, briefing, kept, batch)
                programs = loaded(export_half(self.half, made))
                self._halves[at] = _Half(made, {name: jax.jit(program.call) for name, program in programs.items()})
            return self._halves[at]


def _batch(leaves: Sequence[Any], clients: Any, t: int, width: int) -> list[Any]:
    """Batch number t as flat leaves; padded places repeat its first row."""
    rows = clients.rows[clients.begin[t] :][:width]
    mask = np.arange(width) < clients.size[t]
    filled = np.where(mask, rows, rows[0])
    return [*(tree.canonical(leaf[filled]) for leaf in leaves), mask]
