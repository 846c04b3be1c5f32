"""A gang that works for a program which is no member of it: `Processes(n)` in a script or a notebook.

    program ──algorithm, data (once), cohort──▶ n processes, joined by `jax.distributed`
            ◀──the new state, by the first of them──

The processes start as ``python -m sumfold.simulation.hired_process`` and never see the user's main program, so a
script needs no guard. The algorithm reaches them by cloudpickle and the data as files in shared memory. The program
itself computes nothing; that a process is lost costs a round, since a round can be asked for again.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import jax

from sumfold.core.cohort import ClientData, Cohort
from sumfold.core.driver import Outcome, State
from sumfold.core.round import Round
from sumfold.errors import CompositionError, ProcessError, SumfoldError
from sumfold.simulation.by_value import as_bytes, program
from sumfold.simulation.launched import ADDRESS, RANK, SIZE
from sumfold.simulation.memory import told
from sumfold.simulation.pipe import packed, receive, save_file, send, write
from sumfold.simulation.supervisor import PARENT, cause, free_port, on_processors, shares
from sumfold.simulation.workers import private_folder

__all__ = ["Hired", "first_cause", "unsendable"]

_MUCH = 256 << 20
"""Bytes of an algorithm from which a person should know of them; weights from which it starts are some of them."""
_GRACE = 3.0
"""Seconds in which the other processes may say what they think of a failure."""

_log = logging.getLogger("sumfold")


class Hired:
    """The processes, started at first need and kept until the program ends.

    Args:
        size: how many.
        options: of the simulator in each of them.
        deadline: seconds that they wait for each other.
    """

    def __init__(self, size: int, options: Mapping[str, Any], deadline: float) -> None:
        self.size, self.options, self.deadline = size, dict(options), deadline
        self.members: list[_Member] = []
        self.folder: Path | None = None
        self.known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self.sent = 0
        atexit.register(self.close)

    def bind(self, round: Round) -> Callable[[State, Cohort], Outcome]:
        """The rounds of one algorithm, in the processes."""
        return _Rounds(self, round)

    def open(self) -> list[_Member]:
        """The processes; new ones when there are none."""
        if not self.members:
            self.folder, self.known, self.sent = private_folder(), weakref.WeakKeyDictionary(), 0
            address, processors = f"127.0.0.1:{free_port()}", shares(self.size)
            for rank in range(self.size):
                with on_processors(processors[rank]):
                    self.members.append(_Member(address, rank, self.size, self.folder))
            settings: Any = jax.config
            told = ([path or os.getcwd() for path in sys.path], settings.jax_enable_x64, self.options, self.deadline)
            for member in self.members:
                with contextlib.suppress(OSError):
                    send(member.pipe, ("begin", *told))
        return self.members

    def close(self) -> None:
        """End the processes; the next round starts new ones."""
        for member in reversed(self.members):  # the first last: those that miss it complain
            member.process.kill()
        for member in self.members:
            member.end()
        self.members = []
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def held(self, data: ClientData) -> tuple[Any, ...]:
        """How a process finds this data: by number where it has it, and by a file where it has not."""
        number = self.known.get(data)
        if number is not None:
            return number, None
        assert self.folder is not None
        self.sent += 1
        self.known[data] = self.sent
        path = self.folder / f"data-{self.sent}"
        try:
            head, sizes = save_file(path, data, by_file=True)
        except OSError:
            raise
        except Exception as error:
            raise unsendable("the client data", f"{type(error).__name__}: {error}") from error
        return self.sent, (str(path), head, sizes)


class _Rounds:
    """One algorithm; see `sumfold.core.driver.Runtime`."""

    def __init__(self, hired: Hired, round: Round) -> None:
        self.hired, self.round = hired, round
        self.code: bytes | None = None
        self.program = ""
        self.after: tuple[Any, ...] = ()
        self.told: list[_Member] = []
        self.engine: dict[str, Any] = {}
        self.meter = Afar()

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        try:
            return self._run(state, cohort)
        except _Lost as lost:
            _log.warning("%s; the round is computed again by new processes", lost)
        try:
            return self._run(state, cohort)
        except _Lost as lost:
            raise ProcessError(
                "SF-PROC-022",
                f"{lost}, twice",
                "every process until the end of a round",
                "look at the machine's memory; the state passed in is unchanged",
            ) from None

    def chosen(self) -> dict[str, Any]:
        """What the processes chose; see `sumfold.simulation.bound.Bound.chosen`."""
        return self.engine

    def adopt(self, chosen: Mapping[str, Any]) -> list[str]:
        """Let the processes go on with what was chosen; what a person should know is logged with the first round."""
        self.engine = dict(chosen)
        return []

    def _run(self, state: State, cohort: Cohort) -> Outcome:
        code = self._packed(state, cohort)
        members = self.hired.open()
        if self.told != members:
            self.told, self.after = list(members), ()
            self.meter.begin()
            self._tell(("algorithm", id(self), *code, self.engine))
        parts = (state.algorithm, state.stages, state.clients, state.seed)
        same = len(self.after) == len(parts) and all(a is b for a, b in zip(parts, self.after, strict=True))
        sent = None if same else jax.device_get(tuple(state))
        whole = None if cohort.drawn_from is None else (self.hired.held(cohort.drawn_from[0]), cohort.drawn_from[1])
        data = self.hired.held(cohort.data)
        self._tell(("round", id(self), sent, int(state.round), data, cohort.positions, whole))
        outcome = self._heard(state)
        self.after = (outcome.algorithm, outcome.stages, outcome.clients, state.seed)
        return outcome

    def _packed(self, state: State, cohort: Cohort) -> tuple[bytes, str]:
        """The algorithm, and what must come of it in another process."""
        if self.code is None:
            try:
                self.code = as_bytes(self.round)
            except Exception as error:  # whatever an object's own pickling raises
                raise unsendable("the algorithm", f"{type(error).__name__}: {error}") from error
            if len(self.code) > _MUCH:
                _log.warning(
                    "the algorithm takes %s, and every process gets a copy: does a function of it close over data?",
                    told(len(self.code)),
                )
            self.program = program(self.round, state, cohort.data)
        return self.code, self.program

    def _tell(self, order: Any) -> None:
        frame = packed(order)  # once for all
        for member in self.hired.members:
            try:
                write(member.pipe, frame)
            except OSError:
                self._lost(member)

    def _heard(self, state: State) -> Outcome:
        """The outcome, when all have ended the round."""
        waiting: dict[Any, _Member] = {member.pipe: member for member in self.hired.members}
        found: Outcome | None = None
        failures: list[tuple[int, Exception | None, str]] = []
        measured: dict[int, Any] = {}
        while waiting:
            ready = wait(list(waiting), timeout=_GRACE if failures else None)
            if not ready:
                break
            for pipe in ready:
                member = waiting.pop(pipe)
                try:
                    kind, *rest = receive(member.pipe)
                except (EOFError, OSError):
                    self._lost(member)
                if kind == "failed":
                    failures.append((member.rank, *rest))
                    continue
                measured[member.rank] = rest[0]
                if member.rank == 0:
                    _, algorithm, stages, news, *others = rest
                    found = Outcome(algorithm, stages, state.clients.commit(news), *others)
        if failures:
            self.hired.close()
            raise first_cause(failures)
        assert found is not None
        self.engine = measured[0]["chosen"]
        for warning in measured[0]["warnings"]:
            _log.warning("%s", warning)
        self.meter.heard([measured[rank] for rank in sorted(measured)])
        return found

    def _lost(self, member: _Member) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            member.process.wait(timeout=5)
        codes = [one.process.poll() for one in self.hired.members]
        killed = next((r for r, code in enumerate(codes) if code is not None and code == -9), member.rank)
        code = codes[killed]
        self.hired.close()
        raise _Lost(f"process {killed} " + ("stopped answering" if code is None else cause(code)))


class Afar:
    """What the processes measured, as `sumfold.simulation.meter.Meter` has it.

    Seconds and compiled programs are those of the first process, which does what every process does; steps and bytes
    are of all.
    """

    def __init__(self) -> None:
        self.before: dict[str, dict[str, Any]] = {"seconds": {}, "counts": {}}
        self.now = self.before

    def begin(self) -> None:
        """New processes count from nothing."""
        self.before, self.now = self.snapshot(), {"seconds": {}, "counts": {}}

    def heard(self, measured: list[dict[str, Any]]) -> None:
        """What each process measured since it began, by rank."""
        counts = dict(measured[0]["counts"])
        for other in measured[1:]:
            shared = {name: n for name, n in other["counts"].items() if name == "bytes" or "steps" in name}
            counts = _sum(counts, shared)
        self.now = {"seconds": measured[0]["seconds"], "counts": counts}

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """See `Meter.snapshot`."""
        return {kind: _sum(self.before[kind], self.now[kind]) for kind in self.now}


def _sum(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


def first_cause(failures: list[tuple[int, Exception | None, str]]) -> Exception:
    """Of the failures of several processes, (rank, error, its traceback), the one that the others only tell of."""

    def derived(error: Exception | None) -> bool:
        return isinstance(error, ProcessError) and error.code == "SF-PROC-022"

    rank, error, text = min(failures, key=lambda failure: (derived(failure[1]), failure[0]))
    if error is None:
        return ProcessError(
            "SF-PROC-023",
            f"process {rank} failed:\n{text}".rstrip(),
            "an algorithm that computes a round",
            "mend what it says; sf.Simulation() runs it in this process, where a debugger sees it",
        )
    if not isinstance(error, SumfoldError):
        error.add_note(f"in process {rank}:\n{text}".rstrip())
    return error


class _Lost(Exception):  # noqa: N818
    """A process is gone in the middle of a round."""


class _Member:
    """One process and the pipe to it."""

    def __init__(self, address: str, rank: int, size: int, folder: Path) -> None:
        self.rank = rank
        self.pipe, theirs = Pipe(duplex=True)
        named = {ADDRESS: address, RANK: str(rank), SIZE: str(size), PARENT: str(os.getpid())}
        paths = [path or os.getcwd() for path in sys.path]
        environment = {**os.environ, **named, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "sumfold.simulation.hired_process",
                    str(theirs.fileno()),
                    str(folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,
                pass_fds=[theirs.fileno()],
                env=environment,
                process_group=0,
            )

    def end(self) -> None:
        """Kill it; nothing that it holds matters."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def unsendable(what: str, why: str) -> CompositionError:
    """The error for what cannot be sent, or does not arrive as it was."""
    return CompositionError(
        "SF-PROC-006",
        f"{what} cannot be sent to other processes: {why}",
        "functions and objects that can be pickled, and come out as they went in",
        "run the program in every process instead: sumfold simulate job.py --processes 2; or use sf.Simulation()",
    )
