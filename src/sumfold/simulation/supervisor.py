"""Starts a gang of processes, watches it, and starts it again when one of them is lost.

Processes of a gang hold no result that a checkpoint does not: so when one is lost, all end, and all are started anew
from the last checkpoint. A gang that is lost twice without a new checkpoint in between loses a process each further
time, for what killed it may be a machine's memory. A program that fails by itself is not started again: it would fail
again.

What starts the processes is a `Starter`: this machine, another launcher, or a cluster.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from sumfold.errors import ProcessError
from sumfold.simulation.cores import cores, siblings
from sumfold.simulation.launched import ADDRESS, RANK, SIZE

__all__ = ["LOST", "PARENT", "Child", "Local", "Seat", "Starter"]
__all__ += ["cause", "free_port", "on_processors", "saved_round", "shares", "supervise", "watch_parent"]

LOST = 75
"""Exit code of a process that ends because another one is gone: the code for "try again" of sysexits."""

PARENT = "SUMFOLD_PARENT"
"""Environment variable with the process whose end is to be this one's too."""

_GLANCE = 0.05
"""Seconds between two looks at the processes."""

_GRACE = 2.0
"""Seconds in which the others may say why they end, too."""

_OWN = {1, 2, 4, 130}
"""Exit codes of a command of Sumfold's that failed; any other is the program's own, and means nothing to a caller."""

_KILLED = {128 + signal.SIGKILL, 128 + signal.SIGABRT, 128 + signal.SIGTERM, 128 + signal.SIGSEGV, 128 + signal.SIGBUS}
"""Exit codes by which other launchers tell of a process that a signal ended."""


@runtime_checkable
class Seat(Protocol):
    """One process that was started."""

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""

    def interrupt(self) -> None:
        """Ask it to stop when it can."""

    def kill(self) -> None:
        """End it now, and wait until it is gone."""

    def words(self) -> str:
        """What it said on standard error, if nobody has seen that yet."""

    def output(self) -> str:
        """What it wrote on standard output, if nobody has seen that yet."""


@runtime_checkable
class Starter(Protocol):
    """Where processes are started."""

    def start(self, command: Sequence[str], size: int) -> list[Seat]:
        """Start so many processes of a gang; the first comes first.

        Raises:
            OSError: when not all of them can be started.
        """


def supervise(
    starter: Starter,
    command: Sequence[str],
    size: int,
    restarts: int,
    saved: Callable[[], int],
    say: Callable[[str], None],
) -> tuple[int, str]:
    """Run a gang until it is done, and start it again when a process is lost.

    Args:
        starter: where.
        command: the program and its arguments, the same for every process.
        size: how many processes.
        restarts: how often the gang may be started again.
        saved: the number of rounds in the last checkpoint; 0 without one.
        say: shows a line.

    Returns:
        the exit code of the program, and what the first process wrote, if that was kept.

    Raises:
        ProcessError: when a process is lost and the gang may not be started again (SF-PROC-030).
    """
    left, stuck = restarts, 0
    while True:
        before = saved()
        try:
            with _started(starter, command, size) as seats:
                code, why = _ended(seats, say)
                output = seats[0].output()
        except OSError as error:  # a machine that is gone, a full process table
            if left == restarts:
                raise
            code, output, why, stuck = LOST, "", f"not all processes could be started ({error})", 1
        if why is None:
            return code, output
        if left == 0:
            raise ProcessError(
                "SF-PROC-030",
                why + (f", after {restarts} restarts" if restarts else ""),
                f"{size} processes until the end of the run",
                "run the same command again: with --checkpoint DIR it goes on after the last saved round, and with "
                "--restarts K it does so by itself",
            )
        left -= 1
        stuck = 0 if saved() > before else stuck + 1
        if stuck > 1 and size > 1:
            size -= 1
        say(f"{why}; starting again with {size} process{'es' if size > 1 else ''} after round {saved()}")


@contextlib.contextmanager
def _started(starter: Starter, command: Sequence[str], size: int) -> Iterator[list[Seat]]:
    seats: list[Seat] = []
    try:
        seats += starter.start(command, size)
        yield seats
    finally:
        for seat in seats:
            seat.kill()


def _ended(seats: Sequence[Seat], say: Callable[[str], None]) -> tuple[int, str | None]:
    """The exit code, and why the gang was lost, if it was."""
    asked, until = False, float("inf")
    while True:
        try:
            codes = [seat.poll() for seat in seats]
            if all(code is not None for code in codes) or time.monotonic() > until:
                break
            if until == float("inf") and any(code not in (None, 0) for code in codes):
                until = time.monotonic() + _GRACE
            time.sleep(_GLANCE)
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True  # once is enough for all: the first process tells the others, and all stop after one round
            seats[0].interrupt()
    return _judged(seats, codes, say)


def _judged(seats: Sequence[Seat], codes: Sequence[int | None], say: Callable[[str], None]) -> tuple[int, str | None]:
    ended = {rank: code for rank, code in enumerate(codes) if code}
    if not ended:
        return 0, None
    lost = {rank: code for rank, code in ended.items() if code < 0 or code in {LOST, *_KILLED}}
    failed = {rank: code for rank, code in ended.items() if rank not in lost}
    # Whom JAX or a meeting ended since another was gone is not the first cause, if there is any other.
    first = {r: c for r, c in lost.items() if c not in {LOST, -signal.SIGABRT, 128 + signal.SIGABRT}}
    if failed and not first:
        rank = min(failed)
        code, words = failed[rank], seats[rank].words()
        if code not in _OWN:
            say(f"process {rank} ended with code {code}" + (f"; it said:\n{words}" if words else ""))
            return 1, None
        if words:
            say(f"process {rank} ended with exit code {code}; it said:\n{words}")
        return code, None
    rank = min(first or lost)
    who = f"process {rank}" if len(seats) > 1 else "a process"
    return LOST, f"{who} {cause(ended[rank])}"


def cause(code: int) -> str:
    """How a process ended, in words.

    Example:
        >>> cause(-9)
        'was killed by SIGKILL (out of memory?)'
    """
    number = -code if code < 0 else code - 128 if code in _KILLED else 0
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    return "lost the others" if code == LOST else f"ended with exit code {code}"


def saved_round(checkpoint: Path | None) -> int:
    """The newest round of a checkpoint folder; 0 where there is none."""
    if checkpoint is None:
        return 0
    found = [file.stem.partition("-")[2] for file in checkpoint.glob("round-*.safetensors")]
    return max((int(number) for number in found if number.isdigit()), default=0)


# -- this machine ---------------------------------------------------------------------------------------


class Local:
    """Processes on this machine, each with its share of the cores.

    Standard output is the first process's; what the others say on standard error is kept, and shown when one of them
    is the cause of the end.

    Args:
        keep: whether the first one's standard output is kept for the caller, instead of shown.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep

    def start(self, command: Sequence[str], size: int) -> list[Seat]:
        """See `Starter`."""
        seats: list[Seat] = []
        address, processors = f"127.0.0.1:{free_port()}", shares(size)
        try:
            for rank in range(size):
                named = {ADDRESS: address, RANK: str(rank), SIZE: str(size), "SUMFOLD_LOCAL_RANK": str(rank)}
                with on_processors(processors[rank]):
                    seats.append(Child(command, named, shown=rank == 0, keep=self.keep and rank == 0))
        except BaseException:
            for seat in seats:
                seat.kill()
            raise
        return seats


class Child:
    """One process of this machine; see `Seat`.

    Args:
        command: the program and its arguments.
        named: environment variables of its own.
        shown: whether what it says is shown at once.
        keep: whether what it writes on standard output is kept instead.
        bound: whether it is a program of Sumfold's, which ends with this one.
    """

    def __init__(
        self, command: Sequence[str], named: Mapping[str, str], shown: bool, keep: bool, bound: bool = True
    ) -> None:
        self.said = None if shown else tempfile.TemporaryFile()  # noqa: SIM115
        self.wrote = tempfile.TemporaryFile() if keep else None  # noqa: SIM115
        number = {PARENT: str(os.getpid())} if bound else {}
        self.process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=self.wrote or (None if shown else subprocess.DEVNULL),
            stderr=self.said,
            env={**os.environ, **named, **number},
            process_group=0,  # Ctrl-C is the supervisor's to pass on
        )

    def poll(self) -> int | None:
        """See `Seat`."""
        return self.process.poll()

    def interrupt(self) -> None:
        """See `Seat`."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """See `Seat`."""
        self.process.kill()
        self.process.wait()

    def words(self) -> str:
        """See `Seat`."""
        return "\n".join(_read(self.said).splitlines()[-40:])

    def output(self) -> str:
        """See `Seat`."""
        return _read(self.wrote)


def _read(file: IO[bytes] | None) -> str:
    if file is None:
        return ""
    file.seek(0)
    return file.read().decode(errors="replace")


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def shares(size: int) -> list[set[int] | None]:
    """The processors of each of so many processes: whole cores, as many for each."""
    if not hasattr(os, "sched_getaffinity"):
        return [None] * size
    by_core: dict[str, set[int]] = {}
    for processor in sorted(os.sched_getaffinity(0)):
        by_core.setdefault(siblings(processor), set()).add(processor)
    known = list(by_core.values())
    each = max(min(cores(), len(known)) // size, 1)
    starts = [rank * each % (len(known) - each + 1) for rank in range(size)]
    return [set().union(*known[start : start + each]) for start in starts]


@contextlib.contextmanager
def on_processors(processors: set[int] | None) -> Iterator[None]:
    """What is started meanwhile runs on these processors only, and so knows how many threads to use."""
    if processors is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def watch_parent(folder: Path | None = None) -> None:
    """End with the process that started this one, however that ends, and remove a folder that they shared."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return

    def look() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(LOST)

    threading.Thread(target=look, daemon=True, name="sumfold-parent").start()
