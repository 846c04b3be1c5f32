"""The rounds of a run, as `sumfold.train` asks for them: one after the other, or a stretch of them as one program.

Each round is what `Process.next` makes of it, with the same checks, and the same errors in the same round. What differs
is that the loop says which cohorts will follow: they are looked up once, a round is planned while the one before it
computes, and where the engine can, several rounds are one call (`sumfold.simulation.fused`). The rounds of a run go
through the same program whether several are asked for or one, so that its bytes do not depend on who watches.

A run spends its states where it may: a large one is written over by the next. It may where nobody else has the arrays
and nothing will ask for them: the first state is the run's own copy (`own`), no function of the user's is shown any,
and each is on disk, if it is ever to be, before the round that follows it.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from sumfold.core.cohort import Cohort
from sumfold.core.driver import State
from sumfold.core.round import Metrics
from sumfold.data import Federation
from sumfold.learning.ahead import Cohorts, Ids
from sumfold.learning.process import Process
from sumfold.learning.profile import Watch
from sumfold.simulation.bound import Bound
from sumfold.simulation.spare import is_large, owned

__all__ = ["Rounds", "own"]


class _Known(NamedTuple):
    """A cohort that was looked up: the ids, what they were then, and the clients."""

    ids: Ids
    copy: Ids
    cohort: Cohort


class Rounds:
    """The rounds of one run.

    Args:
        process: the algorithm.
        federation: the clients.
        cohorts: who takes part in the rounds that are left.
        watch: measures the loop.
        spend: nobody needs a state any more when the round that follows it begins; the first is of `own`.

    Attributes:
        clients: how many took part in the rounds of the last call.
    """

    def __init__(
        self, process: Process, federation: Federation, cohorts: Cohorts, watch: Watch, spend: bool = False
    ) -> None:
        self._process, self._federation, self._cohorts, self._watch = process, federation, cohorts, watch
        self._spend = spend
        self.clients = 0
        self._known: list[_Known] = []  # in the order in which they come

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let go of what was made for rounds that do not come."""
        bound = vars(self._process).get("_run")
        if isinstance(bound, Bound):
            bound.ahead.drop()

    def __call__(self, state: State) -> tuple[State, list[Metrics]]:
        """As many of the rounds that are left as the runtime computes at once, at least one.

        Returns:
            The state after these rounds, and the metrics of each.

        Raises:
            SumfoldError: what `Process.next` raises in the first of them. What a later one would raise ends the
                stretch before it.
        """
        with self._watch.span("cohorts"):
            now, later = self._cohorts.offered()
        with self._watch.span("round"):
            after, told = self._trained(state, now, later)
        self._watch.trained(int(after.round))
        self.clients = self._cohorts.took(int(after.round))
        return after, told

    def _trained(self, state: State, cohorts: Sequence[Ids], later: Sequence[Ids]) -> tuple[State, list[Metrics]]:
        """Train the first of these cohorts, or more; those that may come later are planned meanwhile."""
        process, bound = self._process, self._process._run
        run = functools.partial(bound, spend=True) if self._spend and isinstance(bound, Bound) else bound
        if not isinstance(bound, Bound) or not self._federation.in_memory:
            after, metrics = process._next(state, self._federation, cohorts[0], run)
            return after, [metrics]
        state = process._own(state, self._federation, len(self._federation))
        self._look_up(state, [*cohorts, *later])
        coming = [known.cohort for known in self._known]
        taken = bound.fused.plan(state, coming[: len(cohorts)])
        number = max(len(taken), 1)
        outcomes = bound.fused.outcomes(taken) if taken else iter(())
        if not taken:
            bound.ahead.expect(int(state.round) + 1, state.seed, coming[1:2])
        after, told = state, list[Metrics]()
        for cohort in coming[:number]:
            try:
                after, metrics = process._one(after, cohort, (lambda *_: next(outcomes)) if taken else run)
            except Exception:
                if not told:
                    raise
                # The state is that of all rounds of the stretch, and those from this one on are none.
                return self._trained(state, cohorts[: len(told)], [])
            told.append(metrics)
        del self._known[:number]
        return after, told

    def _look_up(self, state: State, coming: Sequence[Ids]) -> None:
        """Find the clients of these cohorts, up to the first that cannot be used: it is refused when it is the next."""
        found: list[_Known] = []
        for ids, known in itertools.zip_longest(coming, self._known[: len(coming)]):
            try:
                found.append(known if _unchanged(known, ids) else self._found(state, ids, found))
            except Exception:
                if not found:
                    raise
                break
        self._known = found

    def _found(self, state: State, ids: Ids, found: list[_Known]) -> _Known:
        if ids is None and found and found[-1].ids is None:  # everybody, as before
            return found[-1]
        number = len(self._federation)
        among = np.arange(number, dtype=np.int64) if ids is None else self._federation.positions(ids)
        copy: Any = ids.copy() if isinstance(ids, (list, set, np.ndarray)) else ids
        return _Known(ids, copy, self._process._cohort(self._federation, among, state))


def own(process: Process, given: list[State]) -> State:
    """The only state of a list, which is empty then, in arrays that nobody else has, where it can be spent.

    Who made a state may have kept its arrays: a user passed it in, or a model's `init` returned what it holds.
    """
    state, bound = given.pop(), process._run
    if not isinstance(bound, Bound) or bound.options.deterministic or not is_large(state.algorithm):
        return state
    arrays = [(state.algorithm, state.stages)]
    state = state._replace(algorithm=(), stages=())
    algorithm, stages = owned(arrays)
    return state._replace(algorithm=algorithm, stages=stages)


def _unchanged(known: _Known | None, ids: Any) -> bool:
    """Whether these ids are those that were looked up, and the caller left them as they were."""
    if known is None or ids is not known.ids:
        return False
    copy: Any = known.copy
    if isinstance(ids, np.ndarray):
        return np.array_equal(ids, copy)
    return ids is None or isinstance(ids, (tuple, range, frozenset)) or bool(ids == copy)
