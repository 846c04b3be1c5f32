"""Worker processes on this machine for client work that is no array program.

    parent ──function, message (once)──▶ worker        the message lies in a file that all workers map
           ──one client──▶  …  ◀──its result──         arrays as raw bytes

Workers start as ``python -m sumfold.simulation.worker``, so a script needs no main guard and may come from standard
input or a notebook; functions reach them by cloudpickle. They live as long as the program. A worker that dies is
replaced and its client asked once more; if that one dies too, the client has failed.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cloudpickle
import jax

from sumfold.core.host import Failure
from sumfold.errors import CompositionError, user_facing
from sumfold.simulation.host import Asked, Ended
from sumfold.simulation.pipe import code, receive, remember, save_file, send, unsendable
from sumfold.tree import Tree

__all__ = ["Workers", "private_folder"]

_GLANCE = 1.0
"""Seconds after which a silent worker is looked at."""

_log = logging.getLogger("sumfold")


@dataclass(frozen=True)
class Workers:
    """Worker processes on this machine, started at first need and kept until the program ends.

    Args:
        processes: how many; None is one for each core that this process may use.
        threads: for the numerical libraries of each; results may depend on this, and do not on `processes`.

    Raises:
        CompositionError: for a number that is not a whole one of at least 1.

    Example:
        >>> Workers(2)
        Workers(processes=2, threads=1)
    """

    processes: int | Any = None
    threads: int | Any = 1

    @user_facing
    def __post_init__(self) -> None:
        for name, value in (("processes", self.processes), ("threads", self.threads)):
            whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if not whole and not (name == "processes" and value is None):
                raise CompositionError(
                    "SF-HOST-010", f"Workers({name}={value!r})", "a whole number of at least 1", "try Workers(2)"
                )

    def open(self) -> Crew:
        """The running processes of this description: one crew for a whole program, or for each thread that trains."""
        at = self, threading.get_ident()
        crew = _CREWS.get(at)
        if crew is None or crew.owner != os.getpid():  # after a fork the workers are the parent's
            crew = _CREWS[at] = Crew(self.processes or _cores(), self.threads)
        return crew

    def close(self) -> None:
        """End the processes; the next round starts new ones."""
        for at in [at for at in _CREWS if at[0] == self]:
            crew = _CREWS.pop(at)
            if crew.owner == os.getpid():
                crew.close()


_CREWS: dict[tuple[Workers, int], Crew] = {}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@atexit.register
def _close_all() -> None:
    for workers, _ in list(_CREWS):
        workers.close()


class Crew:
    """Running workers; see `sumfold.simulation.host.Pool`."""

    def __init__(self, size: int, threads: int) -> None:
        self.size, self.threads, self.owner = size, threads, os.getpid()
        self.folder = private_folder()
        self.workers: list[_Worker] = []
        self.run: Callable[..., Any] | None = None
        self.code = b""
        self.jobs = 0
        self.job: tuple[Any, ...] = ()

    def load(self, run: Callable[..., Any], message: Tree) -> None:
        """Give the function and the message to every worker that will work, when it does."""
        self.abandon()
        if run is not self.run:
            self.run, self.code = run, code(run)
        self.jobs += 1
        if not self.workers:  # from now on there is somebody who removes the folder, should this program be killed
            self.workers.append(_Worker(self.folder, self.threads))
        path, head, sizes = self._saved(message)
        if self.job:
            Path(self.job[2]).unlink(missing_ok=True)
        self.job = self._job(str(path), head, sizes)

    def submit(self, asked: Asked) -> None:
        """Start one client on a worker that is free."""
        worker = next((one for one in self.workers if one.asked is None), None)
        if worker is None:
            worker = _Worker(self.folder, self.threads)
            self.workers.append(worker)
        worker.asked = asked
        try:
            self._tell(worker)
        except OSError:  # it died while idle: this client has had no chance yet
            self._replace(worker)

    def ended(self) -> list[Ended]:
        """Wait until one client or more has ended."""
        found: list[Ended] = []
        while not found:
            busy = {worker.pipe: worker for worker in self.workers if worker.asked is not None}
            ready = wait(list(busy), timeout=_GLANCE)
            for pipe, worker in busy.items():
                if pipe in ready:
                    found += self._heard(worker)
                elif worker.process.poll() is not None:
                    found += self._died(worker)
        return found

    def abandon(self) -> None:
        """Give up what is unfinished: workers in the middle of a client are ended."""
        for worker in [one for one in self.workers if one.asked is not None]:
            worker.end()
            self.workers.remove(worker)

    def close(self) -> None:
        """End every process and remove the files."""
        for worker in self.workers:
            worker.end()
        self.workers = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _job(self, *message: Any) -> tuple[Any, ...]:
        return (hashlib.blake2b(self.code, digest_size=16).digest(), self.code, *message)

    def _saved(self, message: Tree) -> tuple[Path, bytes, list[int]]:
        path = self.folder / f"message-{self.jobs}"
        try:
            return path, *save_file(path, message)
        except OSError:  # shared memory is full, or was never large: a disk does as well
            self.close()  # the folder that workers would remove is another now
            self.folder = Path(tempfile.mkdtemp(prefix="sumfold-"))
            path = self.folder / f"message-{self.jobs}"
            return path, *save_file(path, message)

    def _tell(self, worker: _Worker) -> None:
        if worker.job is not self.job:
            digest, run, *message = self.job
            send(worker.pipe, ("job", digest, None if digest in worker.known else run, *message))
            worker.job = self.job
        else:
            assert worker.asked is not None
            send(worker.pipe, ("client", *worker.asked))

    def _heard(self, worker: _Worker) -> list[Ended]:
        try:
            kind, *rest = receive(worker.pipe)
        except (EOFError, OSError):
            return self._died(worker)
        if kind != "ended":
            if kind == "loaded":
                remember(worker.known, worker.job[0], True)
            elif worker.job is self.job:
                self._by_value(*rest)
            try:
                self._tell(worker)
            except OSError:
                return self._died(worker)
            return []
        worker.retried, retried = None, worker.retried
        worker.asked = None
        place, carry = rest
        return [Ended(place, carry, retried)]

    def _by_value(self, module: str | None, told: str) -> None:
        """Make the function's bytes anew, with a module that a worker cannot import travelling inside them.

        Raises:
            WorkError: when there is no such module, or it travels inside already.
        """
        assert self.run is not None
        inside = cloudpickle.list_registry_pickle_by_value()
        missing = [] if module is None else [module, getattr(self.run, "__module__", module)]
        found = next((name for name in missing if name in sys.modules and name not in inside), None)
        if found is None:
            raise unsendable(
                f"a function, or what it returned, that cannot be sent between processes:\n{told}".rstrip()
            )
        cloudpickle.register_pickle_by_value(sys.modules[found])
        self.code = code(self.run)
        self.job = self._job(*self.job[2:])

    def _died(self, worker: _Worker) -> list[Ended]:
        """A worker is gone in the middle of a client: ask once more, then give up on the client."""
        asked, why = worker.asked, worker.cause()
        assert asked is not None
        if worker.retried is None:
            _log.warning("a worker process %s while it had a client; the client is asked again", why)
            self._replace(worker, retried=f"its worker process {why}")
            return []
        worker.end()
        self.workers.remove(worker)
        return [Ended(asked.place, Failure(f"its worker process {why}, twice", ""), worker.retried)]

    def _replace(self, worker: _Worker, retried: str | None = None) -> None:
        worker.end()
        fresh = _Worker(self.folder, self.threads)
        self.workers[self.workers.index(worker)] = fresh
        fresh.asked, fresh.retried = worker.asked, retried
        self._tell(fresh)


class _Worker:
    """One process and the client that it works on.

    Attributes:
        asked: the client, or None when it is free.
        retried: why that client is asked for the second time.
        job: the function and message that it was given last.
        known: digests of the functions that it holds.
    """

    def __init__(self, folder: Path, threads: int) -> None:
        self.pipe, theirs = Pipe(duplex=True)
        limits = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
        # The child imports what this process would; `-P` keeps its own folder from coming first.
        paths = [path or os.getcwd() for path in sys.path]
        environment = {"JAX_PLATFORMS": "cpu", **os.environ, **dict.fromkeys(limits, str(threads))}
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        with theirs:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "sumfold.simulation.worker",
                    str(theirs.fileno()),
                    str(os.getpid()),
                    str(folder),
                ],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a user's function prints is no result of this program
                pass_fds=[theirs.fileno()],
                env=environment,
                process_group=0,  # Ctrl-C is the parent's to decide about, also while a worker starts
            )
        self.asked: Asked | None = None
        self.retried: str | None = None
        self.job: tuple[Any, ...] = ()
        self.known: dict[bytes, bool] = {}
        with contextlib.suppress(OSError):
            settings: Any = jax.config
            send(self.pipe, ("paths", paths, os.environ.get("PYTHONPATH"), settings.jax_enable_x64))

    def cause(self) -> str:
        """How it ended, in words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=5)
        code = self.process.returncode
        if code is None:
            return "stopped answering"
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def end(self) -> None:
        """Kill it; nothing that it holds matters."""
        self.pipe.close()
        self.process.kill()
        self.process.wait()


def private_folder() -> Path:
    """A private folder, in shared memory where there is some."""
    shared = Path("/dev/shm")
    with contextlib.suppress(OSError):
        if shared.is_dir():
            return Path(tempfile.mkdtemp(prefix="sumfold-", dir=shared))
    return Path(tempfile.mkdtemp(prefix="sumfold-"))
