"""A gang's processes on a Ray cluster: each is held by an actor, and Ray chooses the machines.

Ray starts the processes and tells how they end. What they exchange in a round goes over `jax.distributed`, as
everywhere; nothing of it passes through Ray's object store. Sumfold and the job's files must be on every machine, at
the same paths.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sumfold.errors import missing_extra, user_facing
from sumfold.simulation.launched import ADDRESS, RANK, SIZE
from sumfold.simulation.supervisor import LOST, PARENT, Seat, free_port

__all__ = ["OnRay"]

_PLACED = 120.0
"""Seconds in which Ray must find room for a process."""

_OFTEN = 0.5
"""Seconds between two questions to one actor."""


class OnRay:
    """Processes in actors on the cluster that ``RAY_ADDRESS`` names, or on this machine; see `Starter`.

    Args:
        keep: whether the first one's standard output is kept for the caller, instead of shown.

    Raises:
        MissingExtraError: when Ray is not installed.
    """

    @user_facing
    def __init__(self, keep: bool = False) -> None:
        try:
            import ray
        except ImportError:
            raise missing_extra("ray", "ray") from None
        self.ray: Any = ray
        self.keep = keep
        self.actors: list[Any] = []

    def start(self, command: Sequence[str], size: int) -> list[Seat]:
        """See `Starter`; actors that live are used again."""
        ray = self.ray
        if not ray.is_initialized():
            ray.init(log_to_driver=False, configure_logging=False)
        total = ray.cluster_resources()
        cpus, gpus = max(int(total.get("CPU", 1)) // size, 1), 1 if total.get("GPU", 0) >= size else 0
        make = ray.remote(Holder).options(num_cpus=cpus, num_gpus=gpus, scheduling_strategy="SPREAD")
        self.actors = [actor for actor in self.actors[:size] if self._asked(actor.address.remote(), 5.0) is not None]
        self.actors += [make.remote() for _ in range(size - len(self.actors))]
        addresses = [self._asked(actor.address.remote(), _PLACED) for actor in self.actors]
        if None in addresses:
            for actor in self.actors:
                ray.kill(actor)
            self.actors = []
            raise OSError(f"Ray found no room for {size} processes of {cpus} CPUs each within {_PLACED:g} s")
        named = {ADDRESS: str(addresses[0]), SIZE: str(size), "SUMFOLD_CORES": str(cpus)}
        seats: list[Seat] = []
        for rank, actor in enumerate(self.actors):
            self._asked(actor.begin.remote(list(command), {**named, RANK: str(rank)}, os.getcwd()), _PLACED)
            seats.append(_OnActor(self, actor, shown=rank == 0))
        return seats

    def _asked(self, answer: Any, timeout: float) -> Any:
        """What an actor answers; None when it is gone, or has no place."""
        try:
            return self.ray.get(answer, timeout=timeout)
        except self.ray.exceptions.RayError:
            return None


class _OnActor:
    """One process on the cluster; see `Seat`."""

    def __init__(self, starter: OnRay, actor: Any, shown: bool) -> None:
        self.starter, self.actor, self.shown = starter, actor, shown
        self.code: int | None = None
        self.asked = 0.0
        self.wrote, self.said = "", ""

    def poll(self) -> int | None:
        """See `Seat`."""
        if self.code is None and time.monotonic() - self.asked > _OFTEN:
            self.asked = time.monotonic()
            self._look()
        return self.code

    def interrupt(self) -> None:
        """See `Seat`."""
        self.starter._asked(self.actor.end.remote(int(signal.SIGINT)), 10.0)

    def kill(self) -> None:
        """See `Seat`."""
        self.starter._asked(self.actor.end.remote(int(signal.SIGKILL)), 10.0)

    def words(self) -> str:
        """See `Seat`."""
        return "" if self.shown else "\n".join(self.said.splitlines()[-40:])

    def output(self) -> str:
        """See `Seat`."""
        return self.wrote if self.shown and self.starter.keep else ""

    def _look(self) -> None:
        news = self.starter._asked(self.actor.news.remote(), 30.0)
        if news is None:
            self.code = LOST  # the machine, or the actor
            return
        self.code, wrote, said = news
        self.wrote, self.said = self.wrote + wrote, self.said + said
        if self.shown:
            sys.stderr.write(said)
            sys.stdout.write("" if self.starter.keep else wrote)


class Holder:
    """The actor: holds one process after the other."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.files: list[Any] = []

    def address(self) -> str:
        """Where the first process may listen, should this be it."""
        import ray

        host = ray.util.get_node_ip_address() or socket.gethostname()
        return f"{host}:{free_port()}"

    def begin(self, command: Sequence[str], named: Mapping[str, str], folder: str) -> None:
        """Start a process."""
        self.files = [tempfile.TemporaryFile() for _ in range(2)]  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0],
            stderr=self.files[1],
            env={**os.environ, **named, PARENT: str(os.getpid())},
            cwd=folder if os.path.isdir(folder) else None,
            process_group=0,
        )
        self.read = [0, 0]

    def news(self) -> tuple[int | None, str, str]:
        """The exit code, if it has ended, and what it wrote and said since the last question."""
        assert self.process is not None
        code, found = self.process.poll(), []
        for i, file in enumerate(self.files):
            data = os.pread(file.fileno(), 1 << 20, self.read[i])
            whole = data if code is not None else data[: data.rfind(b"\n") + 1]
            self.read[i] += len(whole)
            found.append(whole.decode(errors="replace"))
        return code, found[0], found[1]

    def end(self, number: int) -> None:
        """Send a signal, and wait if it is the last one."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            if number == signal.SIGKILL:
                self.process.wait()
