"""Plans made before their turn: while a round computes, a thread of the host plans the rounds that follow it.

A plan is a function of the seed, the round's number, the cohort and the engine's choice, never of a result. So a plan
that was made early is the plan that would be made in its turn, array for array, and the numbers of a run do not depend
on whether there was time for it. One that turns out to be for another round or cohort is dropped and made anew; so is
one whose making failed, since its error belongs to its own round.

Where every core computes a stream there is nobody to plan: a thread that plans takes turns with them, and the round of
a thousand clients that it was to shorten takes a tenth longer. There a plan is made in its turn.

Planning fills the caches of `sumfold.simulation.placement`, which are one thread's at a time: the thread plans only
after all plans of the present round are made, and whoever misses a plan waits until the thread is idle.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sumfold.core.cohort import Cohort
from sumfold.core.driver import State
from sumfold.core.store import ClientStore
from sumfold.simulation.choice import Choice
from sumfold.simulation.cores import cores
from sumfold.simulation.placement import Plans, Seats

if TYPE_CHECKING:
    from sumfold.simulation.bound import Bound

__all__ = ["Ahead", "Begun"]


_WORTHWHILE = 512
"""Clients from which on a plan is mostly NumPy's work, which leaves Python to the other threads; the plan of fewer
would make the round that is computed wait for it."""


class Begun(NamedTuple):
    """A round that is planned: who runs where, and what the clients of this process's streams remember.

    Attributes:
        state: that the round begins with; of a round that was planned before its turn, only its number and seed count.
        cohort: who takes part.
        seats: who runs where.
        lanes: abreast in each stream; 0 for one client after the other.
        mine: this process's streams.
        ids: the ids of each of these streams' clients, where clients remember anything.
        plans: by phase and stream, those made already: all or none.
    """

    state: State
    cohort: Cohort
    seats: Seats
    lanes: int
    mine: range
    ids: list[list[Any]]
    plans: Mapping[tuple[int, int], Plans] = {}


class _Made(NamedTuple):
    """A plan, perhaps still in the making, and what it is for."""

    state: State
    cohort: Cohort
    choice: Choice | None
    begun: Future[Begun]


class Ahead:
    """The rounds that are planned before their turn.

    Args:
        bound: the algorithm on this machine.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._expected: list[tuple[State, Cohort]] = []
        self._made: dict[int, _Made] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._busy = False

    def expect(self, first: int, seed: Any, cohorts: Iterable[Cohort]) -> None:
        """Say whose rounds will come, from round number `first` on."""
        bare = State(np.int32(0), seed, (), (), ClientStore(), None)  # no model is kept alive for a plan
        rounds = [(bare._replace(round=np.int32(first + k)), cohort) for k, cohort in enumerate(cohorts)]
        self._expected = [some for some in rounds if len(some[1].positions) >= _WORTHWHILE]

    def __call__(self, state: State, cohort: Cohort) -> Begun:
        """The round with this state and cohort; with all its plans if it was planned before its turn.

        Where rounds are expected it always has them: nothing may be left to plan when the thread begins.
        """
        made, begun = self._made.pop(int(state.round), None), None
        if made is not None and self._is(made, state, cohort):
            try:
                begun = made.begun.result()._replace(state=state)
            except Exception:  # it is its own round's, and comes again below
                begun = None
        if begun is None:
            self.drop()
            begun = self._bound._begun(state, cohort)
        self._busy = self._bound.devices[0].platform == "cpu" and len(begun.mine) >= _cores()
        return self._bound._planned(begun) if self._expected and not self._busy and not begun.plans else begun

    def keep(self, begun: Begun) -> None:
        """Put a round back, for the call that it is for; one without plans only for the very next."""
        done: Future[Begun] = Future()
        done.set_result(begun)
        self._made[int(begun.state.round)] = _Made(begun.state, begun.cohort, self._bound.choice, done)

    def go(self) -> None:
        """Plan what is expected, in the thread; call it when nothing else is left to plan."""
        for state, cohort in [] if self._busy else self._expected:
            made = self._made.get(int(state.round))
            if made is None or not self._is(made, state, cohort):
                if self._thread is None:
                    self._thread = ThreadPoolExecutor(1, thread_name_prefix="sumfold-plan")
                begun = self._thread.submit(self._planned, state, cohort)
                self._made[int(state.round)] = _Made(state, cohort, self._bound.choice, begun)
        self._expected = []

    def drop(self) -> None:
        """Forget what was planned, and wait until the thread is idle."""
        for made in self._made.values():
            if not made.begun.cancel() and not made.begun.done():
                made.begun.exception()
        self._made = {}

    def _planned(self, state: State, cohort: Cohort) -> Begun:
        return self._bound._planned(self._bound._begun(state, cohort))

    def _is(self, made: _Made, state: State, cohort: Cohort) -> bool:
        same = made.cohort.data is cohort.data and made.cohort.drawn_from is None and cohort.drawn_from is None
        same = same and made.choice == self._bound.choice and int(made.state.round) == int(state.round)
        return (
            same
            and np.array_equal(made.state.seed, state.seed)
            and np.array_equal(made.cohort.positions, cohort.positions)
        )


@functools.cache
def _cores() -> int:
    """Counted once: the account of a machine takes a tenth of a millisecond to read."""
    return cores()
