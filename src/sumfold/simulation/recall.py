"""What clients remember from round to round, between the store and the tables of the streams."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Keeping, Memory, Start
from sumfold.core.driver import State
from sumfold.core.round import Round
from sumfold.core.store import ClientStore
from sumfold.tree import Tree

__all__ = ["Recall", "commit"]


class Recall:
    """The memories of an algorithm's clients.

    Args:
        round: the algorithm.
        halves: the client halves of its phases.
    """

    def __init__(self, round: Round, halves: list[ClientHalf]) -> None:
        self.round, self.halves = round, halves
        self._memory: tuple[Memory, ...] | None = None

    def __call__(self, state: State) -> bool:
        """Whether clients remember anything in this algorithm."""
        return bool(jax.tree.leaves(self.templates(state)))

    def templates(self, state: State) -> tuple[Memory, ...]:
        """The shapes of one client's memory, by phase."""
        if self._memory is None:
            self._memory = jax.eval_shape(self._fresh, state.algorithm, state.stages)
        return self._memory

    def _fresh(self, algorithm: Tree, stages: Tree) -> tuple[Memory, ...]:
        memories, kept = [], ()
        for phase, half, held in zip(self.round.phases, self.halves, stages, strict=True):
            public = {part: stage.share(held[part]) for part, stage in phase.aggregate.items()}
            briefing = Briefing(phase.broadcast(algorithm, keys.typed(np.zeros(2, np.uint32))), public)
            memories.append(half.fresh(briefing, kept))
            kept = tree.zeros_like(_keeping(half, briefing, kept).kept)
        return tuple(memories)

    def rows(self, state: State, ids: list[Any], slots: int) -> tuple[tuple[Memory, ...], Any]:
        """The memories of a stream's clients, stacked by slot; clients never seen are told apart by `seen`."""
        templates = self.templates(state)
        seen = np.zeros(slots, bool)
        stacked = jax.tree.map(lambda a: np.zeros((slots, *a.shape), a.dtype), templates)
        for slot, client in enumerate(ids):
            if client in state.clients:
                seen[slot] = True
                held = jax.tree.leaves(state.clients[client])
                for row, value in zip(jax.tree.leaves(stacked), held, strict=True):
                    row[slot] = value
        return stacked, seen


def _keeping(half: ClientHalf, briefing: Briefing, kept: Tree) -> Keeping:
    """What a client without data keeps; only its shapes are used."""
    start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
    key = keys.typed(jnp.zeros(2, jnp.uint32))
    return half.finish(start, half.init(start, key), key)[1]


def commit(store: ClientStore, ids: list[list[list[Any]]], remembered: list[Any]) -> ClientStore:
    """A new version of the store with the memories of the clients that were counted in every phase.

    Args:
        store: the version before.
        ids: for each process, for each of its streams, its clients by slot.
        remembered: likewise, their memories after the round by slot, and who was counted.
    """
    if not any(some for of_one in ids for some in of_one):
        return store
    news: dict[Any, Tree] = {}
    for of_one, after in zip(ids, jax.device_get(remembered), strict=True):
        for some, (memories, counted) in zip(of_one, after, strict=True):
            for slot, client in enumerate(some):
                if counted[slot]:
                    news[client] = jax.tree.map(lambda a, slot=slot: np.asarray(a[slot]).copy(), memories)
    return store.commit(news)
