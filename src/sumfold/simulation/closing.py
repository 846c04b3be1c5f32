"""The server's last program, compiled while the first clients' is: the first round then waits for one of them."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import jax
import numpy as np

from sumfold.core.client import Briefing
from sumfold.core.driver import Server, Standing, State, compiled_server, nothing, opened
from sumfold.core.round import Round

__all__ = ["Closing"]


class Closing:
    """The server's programs of one algorithm.

    Args:
        round: the algorithm.

    Attributes:
        server: its programs, compiled when they are called, or before.
    """

    def __init__(self, round: Round) -> None:
        self.round, self._compiled = round, compiled_server(round)
        self.server = Server(self._compiled.brief, self._close)
        self._thread: threading.Thread | None = None

    def prepare(self, state: State, briefing: Briefing, streams: int, places: int) -> None:
        """Compile, in a thread of its own, what closes the first phase of a round with so many streams; once.

        What goes wrong there comes again when the program is called, where somebody hears of it.
        """
        if self._thread is not None:
            return
        standing = opened(state.algorithm, state.stages)

        def compile() -> None:
            with contextlib.suppress(Exception):
                totals = jax.eval_shape(lambda b: nothing(self.round.phases[0], b, (), places), briefing)
                given = (0, standing, [totals] * streams, state.seed, np.int32(state.round))
                self._compiled.close.lower(*given).compile()  # type: ignore[attr-defined]

        self._thread = threading.Thread(target=compile, name="sumfold-closing", daemon=True)
        self._thread.start()

    def _close(self, *args: Any) -> Standing:
        if self._thread is not None:
            self._thread.join()  # what it compiles is compiled once
        return self._compiled.close(*args)
