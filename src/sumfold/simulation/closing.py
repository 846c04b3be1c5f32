"""The server's programs: the last one compiled while the first clients' is, and large states not copied.

The first round then waits for one of both. A large state is handed to clients as the arrays that it is, and the next
state is written over it where nobody else has it; see `sumfold.simulation.in_place`.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Sequence

import jax
import numpy as np

from sumfold.core.client import Briefing
from sumfold.core.driver import (
    Server,
    Standing,
    State,
    Totals,
    compiled_server,
    compiler_of,
    nothing,
    opened,
    server_of,
)
from sumfold.core.round import Round
from sumfold.simulation.in_place import InPlace
from sumfold.simulation.spare import Former, is_large
from sumfold.tree import Leaf, Tree

__all__ = ["Closing"]


class Closing:
    """The server's programs of one algorithm.

    Args:
        round: the algorithm.
        pinned: bits must not depend on how a program is cut.

    Attributes:
        server: its programs, compiled when they are called, or before.
        spending: the same for a state that nobody else has: what `close` is given is gone.
    """

    def __init__(self, round: Round, pinned: bool = False) -> None:
        self.round, self.pinned, self._compiled = round, pinned, compiled_server(round)
        self.server = Server(self._brief, self._close)
        self.spending = Server(self._brief, functools.partial(self._close, spend=True))
        phases = range(len(round.phases))
        self._briefs = [InPlace(_briefing(round, i)) for i in phases]
        self._closes = [InPlace(_ending(round, i), compiler_of(round)) for i in phases]
        self._former = [Former() for _ in phases]
        self._large: bool | None = None
        self._thread: threading.Thread | None = None

    def prepare(self, state: State, briefing: Briefing, streams: int, places: int, spend: bool = False) -> None:
        """Compile, in a thread of its own, what closes the first phase of a round with so many streams; once.

        What goes wrong there comes again when the program is called, where somebody hears of it.
        """
        if self._thread is not None:
            return
        standing = opened(state.algorithm, state.stages)

        def compile() -> None:
            with contextlib.suppress(Exception):
                totals = [jax.eval_shape(lambda b: nothing(self.round.phases[0], b, (), places), briefing)] * streams
                given = (totals, state.seed, np.int32(state.round))
                if self._cut(standing):
                    self._closes[0].prepare(*_parted(0, standing), *given, spend=spend)
                else:
                    self._compiled.close.lower(0, standing, *given).compile()  # type: ignore[attr-defined]

        self._thread = threading.Thread(target=compile, name="sumfold-closing", daemon=True)
        self._thread.start()

    def _cut(self, standing: Standing) -> bool:
        """Whether the program that closes a phase is one in steps."""
        if self._large is None:
            self._large = is_large(standing.algorithm)
        return self._large and not self.pinned

    def _brief(self, i: int, standing: Standing, seed: Leaf, number: Leaf) -> Briefing:
        self._cut(standing)
        if not self._large:
            return self._compiled.brief(i, standing, seed, number)
        briefing: Briefing = self._briefs[i]((), standing, seed, number)[1]
        return briefing

    def _close(
        self, i: int, standing: Standing, totals: Sequence[Totals], seed: Leaf, number: Leaf, spend: bool = False
    ) -> Standing:
        if self._thread is not None:
            self._thread.join()  # what it compiles is compiled once
        if not self._cut(standing):
            return self._compiled.close(i, standing, totals, seed, number)
        (own, rest), former = _parted(i, standing), self._former[i]
        given = (own, rest, list(totals), seed, number)
        (algorithm, memories), ended = self._closes[i](*given, spend=spend, former=() if spend else former.take())
        if not spend:
            former.put((algorithm, memories))
        return ended._replace(algorithm=algorithm, after=(*standing.after, memories))  # type: ignore[no-any-return]


def _parted(i: int, standing: Standing) -> tuple[tuple[Tree, Tree], Standing]:
    """What the closing of phase `i` replaces, and the rest; the memories of a phase that has ended nobody reads."""
    before = (*standing.before[:i], {}, *standing.before[i + 1 :])
    return (standing.algorithm, standing.before[i]), standing._replace(algorithm=(), before=before, after=())


def _briefing(round: Round, i: int) -> Callable[..., tuple[Tree, Tree]]:
    def brief(nothing: Tree, standing: Standing, seed: Leaf, number: Leaf) -> tuple[Tree, Briefing]:
        return nothing, server_of(round).brief(i, standing, seed, number)

    return brief


def _ending(round: Round, i: int) -> Callable[..., tuple[Tree, Tree]]:
    def close(
        own: tuple[Tree, Tree], rest: Standing, totals: Sequence[Totals], seed: Leaf, number: Leaf
    ) -> tuple[Tree, Standing]:
        before = (*rest.before[:i], own[1], *rest.before[i + 1 :])
        ended = server_of(round).close(i, rest._replace(algorithm=own[0], before=before), totals, seed, number)
        return (ended.algorithm, ended.after[-1]), ended._replace(algorithm=(), before=rest.before, after=())

    return close
