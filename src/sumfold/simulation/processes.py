"""The Processes runtime: Σ over the streams of many processes, on one machine or on many.

Every process runs the same program with the same seed and plans the same round. Each computes its share of the
streams, one exchange makes the totals known to all, and all run the same server half: so every process has the same
state, and none is a master that the others wait for. What is written or shown is the first process's to write.

Before the first round the processes compare what they hold and what they will compute, and each later round which
cohort they drew: two that went apart stop with both values shown, instead of training two models.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from sumfold.core import files
from sumfold.core.cohort import ClientData, Cohort, batch_shapes
from sumfold.core.driver import Notes, Outcome, State, check_groups
from sumfold.core.group import KINDS
from sumfold.core.program import marks
from sumfold.core.round import HostWork, Round
from sumfold.errors import CompositionError, user_facing
from sumfold.simulation.bound import Bound
from sumfold.simulation.compilation_cache import switch_on
from sumfold.simulation.engine import Simulation
from sumfold.simulation.gang import Alone, Gang
from sumfold.simulation.hired import Hired
from sumfold.simulation.joined import Joined, join, joined
from sumfold.simulation.launched import Membership, accelerators, launched
from sumfold.tree import like

__all__ = ["Processes"]

Run: TypeAlias = Callable[[State, Cohort], Outcome]

DEADLINE = 600.0
"""Seconds that processes wait for each other, unless told otherwise."""


class Processes:
    """Many processes that compute each round together, over `jax.distributed`.

    In a script or a notebook ``Processes(4)`` starts four on this machine; a script needs no main guard. One that is
    lost is replaced, and the round computed again.

    Otherwise a launcher starts the processes: ``sumfold simulate job.py --processes 4``, Slurm's ``srun``, ``mpirun``
    or an indexed job on Kubernetes; see the how-to page on many machines. Each of them makes this runtime as the first
    thing that it does, and so finds the others.

    Args:
        processes: how many there are; as the launcher says, if left out.
        coordinator: ``host:port`` of the first process, where no launcher says it.
        rank: which process this is, from 0, where no launcher says it.
        deadline: seconds that a process waits for the others, at the start and in each round.
        devices, streams, kernel, lanes, deterministic, autotune, host: as for `Simulation`, for each process. Streams
            are one for each core that every process has.

    Raises:
        CompositionError: for options that are none, or without a number in a program that no launcher started.
        ProcessError: when the processes do not find each other, or JAX was used before.

    Example:
        >>> Processes(1)
        Processes(1)
    """

    @user_facing
    def __init__(
        self,
        processes: int | Any = None,
        *,
        coordinator: str | Any = None,
        rank: int | Any = None,
        deadline: float | Any = DEADLINE,
        **options: Any,
    ) -> None:
        _check(processes, coordinator, rank, deadline)
        known = [field.name for field in dataclasses.fields(Simulation)]
        if unknown := [name for name in options if name not in known]:
            raise TypeError(
                f"Processes() got an unexpected keyword argument {unknown[0]!r}; known are {', '.join(known)}"
            )
        self.options = Simulation(**options)
        self.hired: Hired | None = None
        number = launched()
        lone = joined() is None and (number is None or number.size == 1) and rank is None and coordinator is None
        if lone and processes not in (None, 1):
            self.hired = Hired(int(processes), options, float(deadline))
        self.gang: Gang = Alone() if self.hired else _gang(processes, coordinator, rank, float(deadline))

    def __repr__(self) -> str:
        return f"Processes({self.hired.size if self.hired else self.gang.size})"

    @property
    def groups(self) -> frozenset[str]:
        """Every kind of sum."""
        return KINDS

    def bind(self, round: Round) -> Run:
        """Prepare an algorithm; see `sumfold.core.driver.Runtime`."""
        check_groups(round, self)
        if self.hired is not None:
            if jax.default_backend() != "cpu":
                raise CompositionError(
                    "SF-PROC-007",
                    f"{self!r} in a program that itself holds the {jax.default_backend()} device",
                    "a device for each process",
                    "start the program as: sumfold simulate job.py --processes 2",
                )
            return self.hired.bind(round)
        switch_on()
        options, gang = self.options, self.gang
        if not isinstance(gang, Joined):
            return Bound(round, options, gang)
        if options.streams is None and jax.default_backend() == "cpu":
            options = dataclasses.replace(options, streams=gang.cores)
        hosted = any(isinstance(phase.work, HostWork) for phase in round.phases)
        if hosted:
            return _Alike(round, _ByFirst(Bound(round, options, Alone()), gang), gang, options)
        return _Alike(round, Bound(round, options, gang), gang, options)


class _Alike:
    """Rounds that begin only when all processes hold the same."""

    def __init__(self, round: Round, run: Bound | _ByFirst, gang: Joined, options: Simulation) -> None:
        self.round, self.run, self.gang = round, run, gang
        shown = {f.name: getattr(options, f.name) for f in dataclasses.fields(options) if f.name != "host"}
        self.options = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        self.known: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self.begun = False
        self.shapes = ""
        self.chosen, self.adopt, self.measured = run.chosen, run.adopt, run.meter

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        whole, positions = cohort.drawn_from or (cohort.data, cohort.positions)
        new = whole not in self.known
        if new:
            self.known[whole] = _described(whole)
        facts = {
            "the algorithm": f"{self.round.name} ({np.asarray(state.fingerprint).tobytes().hex()[:16]})",
            "the options": self.options,
            "the seed": str((int(state.seed[0]) << 32) + int(state.seed[1])),
            "the data": self.known[whole],
            "the round": str(int(state.round)),
            "the cohort": f"{len(positions)} clients ({_hash(np.asarray(positions, np.int64).tobytes())})",
        }
        if not self.begun:  # models whose weights are drawn anew in each process would go unnoticed
            facts["the first state"] = _hash(*(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)))
        if new or not self.begun:
            facts |= self._programs(state, whole)
        self.gang.agreed(facts, now=new or not self.begun)
        self.begun = True
        return self.run(state, cohort)

    def _programs(self, state: State, data: ClientData) -> dict[str, str]:
        """What this process computes for such data, unless the others have heard of it."""
        batch = batch_shapes(data, 2)
        shapes = str(batch)
        if shapes == self.shapes:
            return {}
        self.shapes = shapes
        return marks(self.round, state, batch)


class _ByFirst:
    """Rounds of Python functions: the first process computes them, with workers of its own, and tells the others.

    What such a function gives may depend on the process that runs it, so it runs once.
    """

    def __init__(self, run: Bound, gang: Joined) -> None:
        self.run, self.gang = run, gang
        self.chosen, self.adopt, self.meter = run.chosen, run.adopt, run.meter

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        if self.gang.rank == 0:
            outcome = self.run(state, cohort)
            after = state._replace(algorithm=outcome.algorithm, stages=outcome.stages, clients=outcome.clients)
            rest = {"metrics": outcome.metrics, "invalid": outcome.invalid}
            notes = {name: {str(c): why for c, why in told.items()} for name, told in outcome.notes._asdict().items()}
            data = files.pack({"after": after, "rest": jax.device_get(rest)}, {"notes": json.dumps(notes)})
            self.gang.told(data)
            return outcome
        data = self.gang.told(b"")
        found, notes = files.unpack(data, "process 0"), json.loads(files.notes(data, "process 0")["notes"])
        after, rest = found["after"], found["rest"]
        algorithm, stages = like(state.algorithm, after.algorithm), like(state.stages, after.stages)
        return Outcome(algorithm, stages, after.clients, rest["metrics"], rest["invalid"], Notes(**notes))


def _described(data: ClientData) -> str:
    """What a process can say of its data in one line; two that hold other data say another."""
    rows = int(np.sum(np.asarray(data.counts)))
    by_content = getattr(data, "fingerprint", None)
    if callable(by_content):
        mark = str(by_content())[:16]
    else:
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(data.examples)]
        mark = _hash(*(a.tobytes() for a in (np.asarray(data.counts), np.asarray(data.starts), *leaves)))
    return f"{len(data.counts)} clients with {rows} rows ({mark})"


def _hash(*parts: bytes) -> str:
    hashed = hashlib.blake2b(digest_size=8)
    for part in parts:
        hashed.update(part)
    return hashed.hexdigest()


# -- the gang that this process belongs to


def _gang(processes: int | None, coordinator: str | None, rank: int | None, deadline: float) -> Gang:
    held = joined()
    if held is not None:
        if processes not in (None, held.size):
            raise _other_size(processes, held.size)
        held.roll.deadline = deadline
        return held
    number = launched()
    if rank is not None and number is None and (processes is None or coordinator is None):
        raise CompositionError(
            "SF-PROC-001",
            f"Processes(rank={rank!r}) alone",
            "processes and coordinator too, since no launcher says them",
            "write sf.Processes(2, coordinator='host:port', rank=1), or --processes 2 --coordinator host:port --rank 1",
        )
    if rank is not None and processes is not None and coordinator is not None:
        member = Membership(coordinator, int(rank), int(processes))
    elif number is None:
        if processes == 1:
            return Alone()
        raise CompositionError(
            "SF-PROC-003",
            f"Processes({'' if processes is None else processes}) in a program that no launcher started",
            "a number, or a launcher that says it",
            "write sf.Processes(2), or start it as: sumfold simulate job.py --processes 2, or with srun or mpirun",
        )
    else:
        if processes not in (None, number.size):
            raise _other_size(processes, number.size)
        if number.size == 1:
            return Alone()
        address = coordinator or number.coordinator
        if address is None:
            raise CompositionError(
                "SF-PROC-004",
                f"process {number.rank} of {number.size}, and nothing that says where process 0 is",
                "the address of process 0",
                "pass --coordinator host:port, or coordinator= to sf.Processes",
            )
        own = (number.local,) if number.local is not None and accelerators() > 1 else None
        member = Membership(address, number.rank, number.size, own)
    return Alone() if member.size == 1 else join(member, deadline)


def _other_size(processes: int | None, size: int) -> CompositionError:
    return CompositionError(
        "SF-PROC-005",
        f"Processes({processes}) among {size} processes",
        f"Processes({size}), or Processes()",
        "leave the number out: the launcher says it",
    )


def _check(processes: Any, coordinator: Any, rank: Any, deadline: Any) -> None:
    def refuse(name: str, value: Any, needed: str) -> None:
        raise CompositionError(
            "SF-PROC-001", f"Processes({name}={value!r})", f"{name} as {needed}", "leave it out, or correct it"
        )

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)

    if processes is not None and not whole(processes, 1):
        refuse("processes", processes, "a whole number of at least 1, or None")
    if rank is not None and not (whole(rank, 0) and (processes is None or rank < processes)):
        refuse("rank", rank, "a whole number from 0, less than processes")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":") if isinstance(coordinator, str) else ("", "", "")
        if not host or not port.isdigit():
            refuse("coordinator", coordinator, "'host:port'")
    real = isinstance(deadline, (int, float, np.number)) and not isinstance(deadline, bool)
    if not real or not 0 < deadline < float("inf"):
        refuse("deadline", deadline, "a number of seconds above 0")
