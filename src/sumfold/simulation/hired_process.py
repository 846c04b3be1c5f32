"""One process of a hired gang: ``python -m sumfold.simulation.hired_process FD FOLDER``; see `hired`.

It is told an algorithm once, and then rounds. All processes answer each round; the first sends its outcome.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sumfold.core.cohort import Cohort
from sumfold.core.driver import Outcome, State
from sumfold.core.round import Round
from sumfold.simulation.by_value import algorithm, program
from sumfold.simulation.hired import unsendable
from sumfold.simulation.joined import Joined
from sumfold.simulation.pipe import load_file, packed, receive, write
from sumfold.simulation.processes import Processes
from sumfold.simulation.supervisor import watch_parent

__all__: list[str] = []


class Member:
    """What a process holds between rounds: algorithms, data, and the state that it ended with."""

    def __init__(self, runtime: Processes) -> None:
        self.runtime = runtime
        self.runs: dict[int, Callable[[State, Cohort], Outcome]] = {}
        self.unchecked: dict[int, tuple[Round, str]] = {}
        self.warnings: dict[int, list[str]] = {}
        self.states: dict[int, State] = {}
        self.data: dict[int, Any] = {}

    def algorithm(self, name: int, code: bytes, expected: str, chosen: dict[str, Any]) -> None:
        """Prepare an algorithm, which must compute the expected program; an interrupted run chose before."""
        round = algorithm(code)
        run: Any = self.runtime.bind(round)
        self.runs[name] = run
        self.unchecked[name] = round, expected
        self.warnings[name] = list(run.adopt(chosen)) if chosen else []

    def round(
        self, name: int, sent: tuple[Any, ...] | None, number: int, data: Any, positions: Any, whole: Any
    ) -> tuple[Any, ...]:
        """One round of it: what it measured, algorithm, stages, news of clients' memories, metrics, invalid, notes.

        All but the first process return the first of these only.
        """
        state = self.states[name] if sent is None else State(*sent)
        state = state._replace(round=np.int32(number))
        held = self._held(*data)
        if name in self.unchecked:
            round, expected = self.unchecked.pop(name)
            if program(round, state, held) != expected:
                raise unsendable("the algorithm", "it computes something else there")
        drawn_from = None if whole is None else (self._held(*whole[0]), whole[1])
        outcome = self.runs[name](state, Cohort(held, positions, drawn_from))
        self.states[name] = state._replace(algorithm=outcome.algorithm, stages=outcome.stages, clients=outcome.clients)
        run: Any = self.runs[name]
        told = {**run.measured.snapshot(), "chosen": run.chosen(), "warnings": self.warnings.pop(name, [])}
        if self.runtime.gang.rank:
            return (told,)
        news = {c: memory for c, memory in outcome.clients.items() if state.clients.get(c) is not memory}
        given = (outcome.algorithm, outcome.stages, news, outcome.metrics, outcome.invalid)
        return (told, *jax.device_get(given), outcome.notes)

    def failed(self, error: Exception) -> None:
        """Let the others know, so that they do not wait."""
        gang = self.runtime.gang
        if isinstance(gang, Joined):
            gang.fail(f"{type(error).__name__}: {error}")

    def _held(self, number: int, file: tuple[str, bytes, list[int]] | None) -> Any:
        if file is not None:
            path, head, sizes = file
            self.data[number] = load_file(Path(path), head, sizes)
        return self.data[number]


def work(pipe: Connection) -> None:
    """Serve until the pipe closes."""
    _, paths, x64, options, deadline = receive(pipe)
    sys.path[:] = paths
    settings: Any = jax.config
    settings.update("jax_enable_x64", x64)
    member = Member(Processes(deadline=deadline, **options))
    while True:
        kind, *rest = receive(pipe)
        try:
            if kind == "algorithm":
                member.algorithm(*rest)
                continue
            answer = packed(("ended", *member.round(*rest)))
        except Exception as error:
            text = traceback.format_exc()
            member.failed(error)
            try:
                answer = packed(("failed", error, text))
                pickle.loads(answer[0], buffers=answer[1])
            except Exception:  # an error that cannot be sent
                answer = packed(("failed", None, text))
            write(pipe, answer)
            while True:  # the program has more to say before it hears of this, and then closes the pipe
                receive(pipe)
        write(pipe, answer)


def main() -> None:
    """The process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's to decide about
    watch_parent(Path(sys.argv[2]))
    with contextlib.suppress(EOFError, OSError):  # the program closed the pipe
        work(Connection(int(sys.argv[1])))


if __name__ == "__main__":
    main()
