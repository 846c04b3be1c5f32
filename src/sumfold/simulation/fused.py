"""Rounds fused: a stretch of a run as one program, for models so small that a round is mostly the host's work.

    (state, plans of rounds r … r+n-1)  ->  fori_loop(0, n, round r+k on plan k)  ->  (state, metrics of each round)

A round of a tiny model computes for a tenth of a millisecond and costs several times that around it: arguments are
converted, a program is started and waited for, results are fetched. A stretch pays this once. Plans lie along a first
axis of always the same length, and the number of rounds is data: so one executable serves a stretch of any length, and
a round is the same instructions wherever in a stretch it stands. Hence the bytes of a run do not depend on where its
stretches begin, which a run that was interrupted chooses otherwise.

Only what needs nothing of the host between rounds is fused: one stream, one process, data on the device, no client
memory, nothing stacked, no Python functions as client work, no `deterministic`. What the server checks after each round
on the host (an invalid weight, a rate that is not finite) is looked at when the stretch has ended; the caller then
computes the rounds before the first bad one again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int32
from numpy.typing import NDArray

from sumfold import tree
from sumfold.aligned import aligned
from sumfold.core.client import Memory
from sumfold.core.cohort import Cohort
from sumfold.core.compiled import compiled
from sumfold.core.driver import Outcome, State
from sumfold.simulation.ahead import Begun
from sumfold.simulation.placement import Plans
from sumfold.tree import Tree

if TYPE_CHECKING:
    from sumfold.simulation.bound import Bound

__all__ = ["STRETCH", "Fused"]

STRETCH = 16
"""Rounds that a program has room for. What is saved is shared by so many, and more would share little else."""

_SMALL = 100_000
"""Parameters from which on a round costs so much more than the host's work that nothing is gained."""

_NUMBERS = 1 << 17
"""Numbers of one round's plan that may be held sixteen times: half a megabyte."""


class Fused:
    """The rounds of one algorithm that may be fused.

    Args:
        bound: the algorithm on this machine.
    """

    def __init__(self, bound: Bound) -> None:
        self.bound = bound
        self.program = compiled(self._stretch)
        self._closed: bool | None = None

    def plan(self, state: State, cohorts: Sequence[Cohort]) -> list[Begun]:
        """The rounds from `state` on that one program computes, `STRETCH` at most; none where the first is no such.

        What is decided here is a function of the algorithm and the cohorts, so that it does not depend on where a run
        was interrupted.
        """
        bound, taken = self.bound, list[Begun]()
        if bound.hosted or bound.blocks or bound.options.deterministic or bound.gang.size > 1:
            return []
        if bound.parameters >= _SMALL or bound.recall(state):
            return []
        for k, cohort in enumerate(cohorts[:STRETCH]):
            with bound.meter.span("data"):
                near = bound.placement.within_reach(cohort, bound.devices[0])
            if near.drawn_from is not None:
                break
            with bound.meter.span("plan"):
                begun = bound.ahead(state._replace(round=np.int32(state.round + k)), near)
                alone = len(begun.seats.places) == 1
                begun = bound._planned(begun) if alone and not begun.plans else begun
            if not alone or not self._fits(begun) or (taken and _shapes(begun) != _shapes(taken[0])):
                if begun.plans or not k:
                    bound.ahead.keep(begun)
                break
            taken.append(begun)
        return taken

    def outcomes(self, taken: Sequence[Begun]) -> Iterator[Outcome]:
        """Compute these rounds; of each what it measured, and with it the state after the last one."""
        bound, state, seats = self.bound, taken[0].state, taken[0].seats
        plans = [tuple(bound._plans(i, b, [0], ())[0] for i in range(len(bound.round.phases))) for b in taken]
        examples = bound._examples(taken[0].cohort, 0)
        memories, seen = bound.recall.rows(state, [], seats.slots)
        with bound.meter.span("plan"):
            stacked = jax.tree.map(_stacked, *plans)
        with bound.meter.span("clients"):
            ended = self.program(
                state.algorithm,
                state.stages,
                state.seed,
                np.int32(state.round),
                np.int32(len(taken)),
                stacked,
                examples,
                memories,
                seen,
            )
            algorithm, stages, *reported = ended
            metrics, invalid = jax.device_get(reported)  # when these are there, all is
        for k in range(len(taken)):
            measured = jax.tree.map(lambda a, k=k: a[k], metrics)
            yield Outcome(algorithm, stages, state.clients, measured, invalid[k])

    def _stretch(
        self,
        algorithm: Tree,
        stages: Tree,
        seed: Any,
        first: Any,
        length: Any,
        plans: tuple[Plans, ...],
        examples: Tree,
        memories: tuple[Memory, ...],
        seen: Any,
    ) -> tuple[Tree, Tree, Tree, Any]:
        """A stretch as a program; what it returns for rounds that it has not is zero."""

        def play(algorithm: Tree, stages: Tree, number: Any, plan: Any) -> Any:
            return self.bound._play(algorithm, stages, seed, number, plan, examples, memories, seen)[:4]

        one = jax.tree.map(lambda a: tree.shape(a.shape[1:], a.dtype), plans)
        reported = jax.eval_shape(play, algorithm, stages, first, one)[2:]
        room = jax.tree.map(lambda a: jnp.zeros((STRETCH, *a.shape), a.dtype), reported)

        def body(k: Int32[Array, ""], carry: tuple[Tree, Tree, Tree]) -> tuple[Tree, Tree, Tree]:
            algorithm, stages, told = carry
            plan = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, k, keepdims=False), plans)
            algorithm, stages, *news = play(algorithm, stages, first + k, plan)
            told = jax.tree.map(lambda a, new: lax.dynamic_update_index_in_dim(a, new, k, 0), told, tuple(news))
            return tree.strong(algorithm), tree.strong(stages), told

        algorithm, stages, (metrics, invalid) = lax.fori_loop(jnp.int32(0), length, body, (algorithm, stages, room))
        return algorithm, stages, metrics, invalid

    def _fits(self, begun: Begun) -> bool:
        if self.bound.parameters >= _SMALL:
            return False
        clients = [clients for plans in begun.plans.values() for clients, _ in plans]
        numbers = sum(int(some.size.sum()) + 2 * int(some.steps.sum()) + 7 * int(some.number) for some in clients)
        return numbers <= _NUMBERS and self._carried(begun)

    def _carried(self, begun: Begun) -> bool:
        """Whether a round's state has the shapes of the one before, so that a loop can carry it."""
        if self._closed is None:
            bound, state = self.bound, begun.state
            plans = tuple(begun.plans[i, 0] for i in range(len(bound.round.phases)))
            memories, seen = bound.recall.rows(state, [], begun.seats.slots)
            examples = bound._examples(begun.cohort, 0)
            given = (state.algorithm, state.stages, state.seed, np.int32(state.round), plans, examples, memories, seen)
            after = jax.eval_shape(bound.compiled, *given)[:2]
            before = tree.shapes((state.algorithm, state.stages))
            same = tree.structure(after) == tree.structure(before)
            self._closed = same and tree.specs(after) == tree.specs(before)
        return self._closed


def _shapes(begun: Begun) -> Any:
    plans = dict(begun.plans)
    return begun.seats.slots, begun.seats.total, tree.structure(plans), [a.shape for a in jax.tree.leaves(plans)]


def _stacked(*arrays: Any) -> NDArray[Any]:
    """The arrays along a first axis of `STRETCH`, which the rest of leaves as it was: nobody reads it."""
    first = np.asarray(arrays[0])
    stacked = aligned((STRETCH, *first.shape), first.dtype)
    for k, array in enumerate(arrays):
        stacked[k] = array
    return stacked
