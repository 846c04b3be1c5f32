"""Many processes of one command: who starts them, and what each of them does differently from a program alone.

The supervisor and its processes run the same command line. A process knows by its environment, or by ``--rank``, that
it is one of many.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sumfold.cli.verb import WRONG_USE, Outcome, complain, exit_code
from sumfold.errors import CompositionError, MissingExtraError

if TYPE_CHECKING:
    from sumfold.learning.process import Process
    from sumfold.simulation.supervisor import Seat, Starter

__all__ = ["Many", "distributed", "failed", "member", "start", "taking_part"]

LAUNCHERS = {"local": "", "slurm": "srun", "mpi": "mpirun", "ray": ""}
"""By name, the program that starts the processes."""

_NUMBERED = {"SUMFOLD_RANK", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK"}
"""Environment variables of which launchers set one; see `sumfold.simulation.launched`."""

_BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"
"""Runs another program that Linux ends with the one that started it (PR_SET_PDEATHSIG)."""

_RESTARTS = 3
"""How often a gang with a checkpoint is started again, unless told otherwise."""


class Many(NamedTuple):
    """The options of a command that are about processes."""

    processes: int | None
    launcher: str
    restarts: int | None
    coordinator: str | None
    rank: int | None
    deadline: float


def member(many: Many) -> bool:
    """Whether this process is one of many, and not the one that starts them."""
    if many.rank is not None:
        return True
    if not _NUMBERED & set(os.environ):  # the usual case needs no import
        return False
    from sumfold.simulation.launched import launched

    number = launched()
    return number is not None and number.size > 1


# -- starting them


def start(many: Many, checkpoint: Path | None, as_json: bool) -> Outcome:
    """Start the processes with this command line, and watch them.

    Args:
        many: the options.
        checkpoint: the folder that the command was given.
        as_json: whether the first process writes a document.

    Raises:
        CompositionError: for what cannot be started (SF-CLI-03x).
        ProcessError: when a process is lost and the rest may not start again.
    """
    from sumfold.simulation.supervisor import saved_round, supervise

    size = many.processes or 1
    if many.restarts and checkpoint is None:
        raise CompositionError(
            "SF-CLI-033",
            f"--restarts {many.restarts} without --checkpoint",
            "a folder from which the processes can go on",
            "add --checkpoint DIR",
        )
    restarts = many.restarts if many.restarts is not None else _RESTARTS if checkpoint is not None else 0
    command = [sys.executable, "-m", "sumfold", *_arguments(sys.argv[1:])]
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        line, _, rest = text.partition("\n")
        complain(line)
        sys.stderr.write(rest + "\n" if rest else "")

    try:
        starter = _starter(many, size, as_json)
    except MissingExtraError as error:  # of what the command line asks for, and not of the job
        complain(str(error))
        return Outcome({"error": {"type": type(error).__name__, "code": error.code, "message": str(error)}}, WRONG_USE)
    code, output = supervise(starter, command, size, restarts, lambda: saved_round(checkpoint), say)
    with contextlib.suppress(ValueError):
        return Outcome(json.loads(output), code)
    return Outcome({"error": {"type": "ProcessError", "message": said[-1] if said else f"exit code {code}"}}, code)


def _starter(many: Many, size: int, keep: bool) -> Starter:
    from sumfold.simulation.launched import accelerators
    from sumfold.simulation.supervisor import Local

    if many.launcher not in LAUNCHERS:
        raise CompositionError(
            "SF-CLI-031",
            f"--launcher {many.launcher}",
            f"one of {', '.join(LAUNCHERS)}",
            "leave it out to start the processes on this machine",
        )
    if many.launcher == "ray":
        from sumfold.simulation.ray_gang import OnRay

        return OnRay(keep)
    if many.launcher != "local":
        return Launcher(many.launcher, keep)
    devices = accelerators() if os.environ.get("JAX_PLATFORMS", "cuda").split(",")[0] != "cpu" else 0
    if 0 < devices < size:
        raise CompositionError(
            "SF-CLI-034",
            f"--processes {size} on a machine with {devices} GPU{'s' if devices > 1 else ''}",
            "at most one process for each GPU",
            f"ask for {devices}, or set JAX_PLATFORMS=cpu",
        )
    return Local(keep)


class Launcher:
    """Processes by ``srun`` or ``mpirun``; see `sumfold.simulation.supervisor.Starter`.

    Raises:
        CompositionError: when it is not installed (SF-CLI-032).
    """

    def __init__(self, name: str, keep: bool) -> None:
        program = shutil.which(LAUNCHERS[name])
        if program is None:
            raise CompositionError(
                "SF-CLI-032",
                f"--launcher {name}, and no program {LAUNCHERS[name]!r} on this machine",
                f"{LAUNCHERS[name]}, which starts the processes",
                "start the command where it is installed; --launcher local needs nothing",
            )
        self.name, self.program, self.keep = name, program, keep

    def start(self, command: Sequence[str], size: int) -> list[Seat]:
        """One program that starts all processes, and ends all of them when one ends."""
        from sumfold.simulation.supervisor import Child

        options = ["--kill-on-bad-exit=1", f"--ntasks={size}"] if self.name == "slurm" else ["-n", str(size)]
        bound = [sys.executable, "-c", _BOUND] if sys.platform == "linux" else []
        whole = [*bound, self.program, *options, *command]
        return [Child(whole, {}, shown=True, keep=self.keep, bound=False)]


def _arguments(given: Sequence[str]) -> list[str]:
    """The command line of each process: the launcher numbers them."""
    left, kept = list(given), []
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if name in {"--processes", "--launcher", "--restarts"}:
            if not equals and left:
                left.pop(0)
            continue
        kept.append(word)
    return kept


# -- being one of them


@contextlib.contextmanager
def taking_part(many: Many) -> Iterator[int]:
    """Join the others, and tell them if this process fails; the rank.

    All but the first are silent on standard output.
    """
    from sumfold.simulation.processes import Processes
    from sumfold.simulation.supervisor import watch_parent

    watch_parent()
    runtime = Processes(many.processes, coordinator=many.coordinator, rank=many.rank, deadline=many.deadline)
    if runtime.gang.rank:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    try:
        yield runtime.gang.rank
    except BaseException as error:
        failed(error)
        raise


def failed(error: BaseException) -> None:
    """Let the others know that this process ends, if it is one of many."""
    module = sys.modules.get("sumfold.simulation.joined")  # a program alone needs no such thing
    gang = module.joined() if module is not None else None
    if gang is not None:
        gang.fail(f"{type(error).__name__}: {error}", exit_code(error))


def distributed(process: Process, deadline: float) -> Process:
    """The same algorithm on all processes, with the options of the simulator that it was built for.

    Raises:
        CompositionError: when it was built for a runtime that knows no other processes (SF-CLI-035).
    """
    from sumfold.simulation.engine import Simulation
    from sumfold.simulation.processes import Processes

    runtime: Any = process.runtime
    if isinstance(runtime, Processes):
        return process
    if not isinstance(runtime, Simulation):
        raise CompositionError(
            "SF-CLI-035",
            f"--processes for {process!r}",
            "a process on the simulator, whose work can be shared",
            "leave .on(…) out of build",
        )
    options = {field.name: getattr(runtime, field.name) for field in dataclasses.fields(runtime)}
    return process.on(Processes(deadline=deadline, **options))
