"""The cohorts of a run's rounds, and those that may be known before their turn.

A cohort that is a function of the seed, the round and the federation alone can be drawn early, and nobody sees it: so a
round can be planned while the one before it computes, and rounds can be fused. What a user wrote (a policy of their
own, a function as a trace of availability, a generator) is called in its turn and never before: it may look at a
result.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from sumfold.data import Federation
from sumfold.errors import DataError
from sumfold.learning.sampling import cohort, early

__all__ = ["Cohorts", "Ids", "is_policy", "no_cohort"]

Ids: TypeAlias = Collection[Any] | None
"""A cohort; None is everybody."""

_MOST = 16
"""Rounds that are handed to the engine at once."""

_PLAIN = (list, tuple, range, np.ndarray, set, frozenset)
"""Collections that can be read twice, and without being noticed."""


class Cohorts:
    """The cohorts of a run's rounds, as many at a time as the engine may use.

    Args:
        federation: the clients.
        chosen: None for everybody, a policy, or an iterable of id lists from round 0 on.
        seed: the run's, uint32[2].
        rounds: those that are left to train.
        periods: something looks at the state after every so many rounds.
    """

    def __init__(
        self, federation: Federation, chosen: Any, seed: Any, rounds: range, periods: Collection[int] = ()
    ) -> None:
        self._federation, self._chosen, self._seed, self.left, self._periods = federation, chosen, seed, rounds, periods
        self._offered: list[Ids] = []
        self._most = 1
        self._drawn: collections.deque[Any] = collections.deque()  # by a policy, from the next round on
        given = not (chosen is None or is_policy(chosen))
        self._given: Iterator[Any] = itertools.islice(chosen, rounds.start, None) if given else iter(())

    def offered(self) -> tuple[list[Ids], list[Ids]]:
        """The next round's cohort with those that may be trained in one go, and some of those that come then.

        Raises:
            DataError: when there is none, or what the policy returns is none.
        """
        done = self.left.start
        now = min(self._most, len(self.left), *(period - done % period for period in self._periods))
        coming = [self._next(), *self._coming(now - 1 + self._most)]
        self._offered = coming[:now]
        return self._offered, coming[now:]

    def took(self, done: int) -> int:
        """So many rounds of the run are trained now; how many clients took part in those that were added.

        Twice as many are offered next where all were taken, so that few are drawn in vain.
        """
        rounds, offered = done + 1 - self.left.start, len(self._offered)
        for _ in range(rounds - 1):
            self._next()
        if rounds < offered:
            self._most = max(2 * rounds, 2)
        elif offered > 1 or self._most == 1:
            self._most = min(2 * self._most, _MOST)
        return sum(len(self._federation) if ids is None else len(ids) for ids in self._offered[:rounds])

    def _next(self) -> Ids:
        number, ids = self.left.start, None
        if is_policy(self._chosen):
            ids = self._drawn.popleft() if self._drawn else self._draw(number)
        elif self._chosen is not None:
            given = next(self._given, None)
            if given is None:
                raise no_cohort(number, self.left.stop)
            ids = given if hasattr(given, "__len__") else list(given)
        self.left = self.left[1:]
        return ids

    def _coming(self, most: int) -> list[Ids]:
        """Those of the rounds that are left which may be known; those of a list are read again in their turn."""
        numbers = self.left[:most]
        if self._chosen is None:
            return [None for _ in numbers]
        if is_policy(self._chosen):
            while early(self._chosen) and len(self._drawn) < len(numbers):
                try:
                    self._drawn.append(self._draw(numbers[len(self._drawn)]))
                except Exception:  # it is its own round's, and comes again then
                    break
            return list(itertools.islice(self._drawn, len(numbers)))
        if type(self._chosen) not in (list, tuple, np.ndarray):
            return []
        listed = self._chosen[numbers.start : numbers.stop]
        return list(itertools.takewhile(lambda ids: isinstance(ids, _PLAIN), listed))

    def _draw(self, number: int) -> Any:
        return cohort(self._chosen, self._federation, self._seed, number)


def is_policy(cohorts: Any) -> bool:
    """Whether cohorts are drawn by a function."""
    return callable(cohorts) and not isinstance(cohorts, Iterable)


def no_cohort(number: int, rounds: int) -> DataError:
    """The error of cohorts that are too few."""
    return DataError(
        "SF-TRAIN-006",
        f"cohorts end before round {number}",
        f"one list of ids for each of the {rounds} rounds",
        "pass more cohorts, or ask for fewer rounds",
    )
