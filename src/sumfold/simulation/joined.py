"""A gang of `jax.distributed` processes: how one is joined, and how its members exchange totals.

Members find each other by `sumfold.simulation.rollcall`, which says what is wrong where JAX would end the program;
then JAX connects them, and an exchange is one collective of one flat vector: gloo on a CPU, NCCL on a GPU. What adds up
is all-reduced, see `sumfold.simulation.exchange`; anything else is gathered as bytes. It begins after a meeting, at
which all have arrived, so that no timeout of the collective's own can run out.

Whoever dies is noticed at the next meeting, in an exchange by gloo's connections, and in the middle of a computation
by `sumfold.simulation.deaths`. JAX's own service would notice by a heartbeat, cannot tell a process that is stopped
from one that is gone, and ends the program with a stack trace. It is needed to introduce the processes to each other:
on a CPU it is shut down after the first exchange, and elsewhere its heartbeat is as patient as a meeting.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from types import TracebackType
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numpy.typing import NDArray

from sumfold.errors import ProcessError
from sumfold.simulation.cores import cores
from sumfold.simulation.deaths import watch
from sumfold.simulation.exchange import as_vector, of_vector
from sumfold.simulation.launched import Membership
from sumfold.simulation.rollcall import Card, RollCall, answer, call
from sumfold.simulation.supervisor import LOST
from sumfold.tree import Tree

__all__ = ["Joined", "join", "joined"]

_PATIENCE = 100.0
"""Seconds of silence after which JAX takes a process for dead; the deadline of a meeting where that is more."""

_AT_ONCE = 256 << 20
"""Bytes that an exchange may take on a device; longer vectors are exchanged in pieces."""

_HELD: list[Joined] = []
"""The gang that this process belongs to, once it has joined one."""


class Joined:
    """The gang, seen by one of its processes; see `sumfold.simulation.gang.Gang`.

    Attributes:
        rank, size: see `Gang`.
        cores: the fewest that a process of the gang has, so that all of them plan the same streams.
        stopping: see `Gang`.
        failed, code: whether this process told the others that it ends, and what the program then ends with.
    """

    def __init__(self, roll: RollCall, hellos: Sequence[Card]) -> None:
        self.roll, self.rank, self.size = roll, roll.rank, roll.size
        self.cores: int | None = min(int(hello["cores"]) for hello in hellos)
        self.stopping = False
        self._asked = False
        self._ended = False
        self._facts: dict[str, str] = {}
        self._network: _Network | None = None
        self._noticed = False
        self.failed, self.code = False, 1

    def summed(self, tree: Tree) -> Tree:
        """The sum of the trees of all processes: the same bytes in each of them, and exact for integers."""
        arrays, structure, _, shapes = _described(tree)
        cards = self._meet({"kind": "add", "shapes": shapes, "facts": self._facts})
        if any(card["shapes"] != shapes for card in cards):
            mine = f"{len(arrays)} arrays of {sum(array.size for array in arrays)} numbers ({shapes})"
            raise _disagreement(
                "what they sum", [card["words"] for card in self._meet({"kind": "shapes", "words": mine})]
            )
        vector = self._exchanged(lambda network: network.summed(as_vector(arrays, self.size)))
        return jax.tree.unflatten(structure, of_vector(vector, arrays, self.size))

    def gathered(self, tree: Tree) -> list[Tree]:
        """The trees of all processes, by rank."""
        arrays, structure, form, shapes = _described(tree)
        cards = self._meet({"kind": "sum", "shapes": shapes, "facts": self._facts})
        forms: list[Any] = [form] * self.size
        if any(card["shapes"] != shapes for card in cards):  # such as memories of clients, more here and fewer there
            cards = self._meet({"kind": "shapes", "form": form, "structure": _digest(str(structure))})
            forms = [card["form"] for card in cards]
            if any(card["structure"] != cards[0]["structure"] for card in cards):
                raise _disagreement("what they sum", [card["structure"] for card in cards])
        lengths = [sum(_nbytes(dtype, shape) for dtype, shape in some) for some in forms]
        rows = self._exchanged(lambda network: network.gathered(_flat(arrays), max(lengths)))
        return [
            jax.tree.unflatten(structure, arrays if rank == self.rank else _cut(row, some))
            for rank, (row, some) in enumerate(zip(rows, forms, strict=True))
        ]

    def told(self, news: bytes) -> bytes:
        """What the first process says, to all."""
        cards = self._meet({"kind": "news", "length": len(news)})
        found = self.roll.tell(news)
        assert self.rank == 0 or len(found) == cards[0]["length"]
        return found

    def agreed(self, facts: Mapping[str, str], now: bool) -> None:
        """Compare what all processes must have in common: name in words -> value.

        Args:
            facts: of this process.
            now: before anything else is computed; otherwise at the next exchange, where it costs nothing.

        Raises:
            ProcessError: for the first of them that differs, with the values (SF-PROC-020).
        """
        self._facts = dict(facts)
        if now:
            self._meet({"kind": "facts", "facts": self._facts})

    def ask_to_stop(self, ask: bool = True) -> None:
        """Let all learn at the next meeting; all take it back at the same place of their program."""
        self._asked = ask
        self.stopping = self.stopping and ask

    def fail(self, why: str, code: int = 1) -> None:
        """Tell the others that this process ends, and why; it will end with this exit code."""
        if not self._ended:
            self._ended, self.failed, self.code = True, True, code
            self.roll.last_words(why)

    def leave(self) -> None:
        """End together: wait for the others, and take JAX's connections down."""
        if self._ended:
            return
        self._meet({"kind": "end"})
        self._ended = True
        _shutdown()
        self.roll.close()

    def watch(self) -> None:
        """From now on end this program when another process is gone, whatever it computes."""

        def gone(rank: int) -> None:
            why = f"process {rank} is gone: it was killed, has failed, or its machine does not answer"
            self.fail(why, LOST)
            sys.stderr.write(f"{why}\n")
            _exit(LOST)

        connections = {rank: line.socket for rank, line in self.roll.lines.items()}
        watch(connections, lambda: self._ended or self._noticed, gone)

    def _exchanged(self, exchange: Callable[[_Network], NDArray[Any]]) -> NDArray[Any]:
        if self._network is None:  # not before: a program may still choose its devices after it has joined
            self._network = _Network(self.rank, self.size)
        try:
            return exchange(self._network)
        except ProcessError:
            self._noticed = True
            raise

    def _meet(self, card: Card) -> list[Card]:
        try:
            cards = self.roll.meet({**card, "stop": self._asked})
        except ProcessError:
            self._noticed = True
            raise
        kinds = [theirs["kind"] for theirs in cards]
        if len(set(kinds)) > 1:
            doing = [_DOING.get(kind, kind) for kind in kinds]
            raise _disagreement("what they do next", doing)
        for name in cards[0].get("facts", {}):
            values = [theirs["facts"].get(name, "nothing") for theirs in cards]
            if len(set(values)) > 1:
                raise _disagreement(name, values)
        self.stopping = self.stopping or any(theirs["stop"] for theirs in cards)
        return cards


_DOING = {
    "add": "to add up totals",
    "sum": "to exchange totals",
    "shapes": "to exchange totals",
    "facts": "to begin a round",
    "news": "to hear the first process",
    "end": "to end the program",
}


def _disagreement(what: str, values: Sequence[str]) -> ProcessError:
    first, other = values[0], next(rank for rank, value in enumerate(values) if value != values[0])
    return ProcessError(
        "SF-PROC-020",
        f"the processes disagree on {what}: process 0 has {first}, process {other} has {values[other]}",
        "the same program with the same data and seed in every process",
        "start all of them alike; nothing in the program may depend on the machine, the process or the time",
    )


class _Network:
    """Sums of flat vectors and all-gathers of bytes, by one device of each process."""

    def __init__(self, rank: int, size: int) -> None:
        first: dict[int, Any] = {}
        for device in jax.devices():
            first.setdefault(device.process_index, device)
        mesh = Mesh(np.array([first[rank] for rank in range(size)]), ("processes",))
        self.size, self.device = size, first[rank]
        spec: Any = PartitionSpec
        self.apart = NamedSharding(mesh, spec("processes"))
        everywhere = NamedSharding(mesh, spec())
        self.gather = jax.jit(lambda rows: rows, out_shardings=everywhere)
        self.sum = jax.jit(lambda rows: rows.sum(0), out_shardings=everywhere)  # of one row here: an all-reduce
        self.used = False

    def summed(self, vector: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32[n], the sum of all processes' vectors."""
        piece = _AT_ONCE // (2 * vector.itemsize)
        pieces = [self._exchanged(self.sum, vector[at : at + piece]) for at in range(0, len(vector), piece)]
        return pieces[0] if len(pieces) == 1 else np.concatenate([vector[:0], *pieces])

    def gathered(self, flat: NDArray[np.uint8], length: int) -> NDArray[np.uint8]:
        """uint8[processes, length], of vectors that are no longer."""
        if not length:
            return np.zeros((self.size, 0), np.uint8)
        padded = flat if len(flat) == length else np.concatenate([flat, np.zeros(length - len(flat), np.uint8)])
        piece = max(_AT_ONCE // self.size, 1)
        pieces = [self._exchanged(self.gather, padded[at : at + piece]) for at in range(0, length, piece)]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def _exchanged(self, program: Callable[[Any], Any], piece: NDArray[Any]) -> NDArray[Any]:
        mine = jax.device_put(piece[None], self.device)
        rows = jax.make_array_from_single_device_arrays((self.size, len(piece)), self.apart, [mine])
        try:
            with contextlib.nullcontext() if self.used else _quiet():
                found = np.asarray(program(rows).addressable_data(0))
            if not self.used and self.device.platform == "cpu":
                _shutdown()
        except (jax.errors.JaxRuntimeError, ValueError) as error:  # gloo's failures come as the latter
            words = str(error).splitlines()
            raise ProcessError(
                "SF-PROC-022",
                f"an exchange with the other processes broke off: {words[0] if words else error}",
                "every process until the end of the run",
                "start the run again: with a checkpoint it goes on after the last saved round",
            ) from error
        self.used = True
        return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Gloo says on standard output that it is connected, where results belong."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as nowhere:
        kept = os.dup(1)
        try:
            os.dup2(nowhere.fileno(), 1)
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def _described(tree: Tree) -> tuple[list[NDArray[Any]], Any, list[Any], str]:
    """The leaves on the host, their structure, the form of each, and a mark of all that."""
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in jax.device_get(leaves)]
    form = [[array.dtype.name, list(array.shape)] for array in arrays]
    return arrays, structure, form, _digest(json.dumps(form) + str(structure))


def _flat(arrays: Sequence[NDArray[Any]]) -> NDArray[np.uint8]:
    parts = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays if array.size]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _cut(row: NDArray[np.uint8], form: Sequence[Any]) -> list[NDArray[Any]]:
    arrays, at = [], 0
    for dtype, shape in form:
        length = _nbytes(dtype, shape)
        arrays.append(row[at : at + length].copy().view(jax.numpy.dtype(dtype)).reshape(shape))
        at += length
    return arrays


def _nbytes(dtype: str, shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * jax.numpy.dtype(dtype).itemsize


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


# -- joining and leaving --------------------------------------------------------------------------------


def joined() -> Joined | None:
    """The gang that this process belongs to, if it has joined one."""
    return _HELD[0] if _HELD else None


def join(member: Membership, deadline: float) -> Joined:
    """Find the other processes, and let JAX connect all.

    Args:
        member: who this process is.
        deadline: seconds that it waits for the others, now and at each later meeting.

    Raises:
        ProcessError: when JAX has been used already (SF-PROC-002), or as `call` and `answer`.
    """
    own = int(os.environ.get("SUMFOLD_CORES", cores()))
    port = _free_port() if member.rank == 0 else None
    hello: Card = {"cores": own, "sumfold": version("sumfold"), "jax": jax.__version__, "port": port}
    if member.rank == 0:
        roll, hellos = call(member.coordinator, member.size, hello, deadline)
    else:
        roll, hellos = answer(member.coordinator, member.rank, member.size, hello, deadline)
    try:
        for name in ("sumfold", "jax"):
            versions = [str(one[name]) for one in hellos]
            if len(set(versions)) > 1:
                raise _disagreement(f"the version of {name}", versions)
        host = member.coordinator.rpartition(":")[0]
        _connect(f"{host}:{hellos[0]['port']}", member, deadline)
        gang = Joined(roll, hellos)
    except BaseException as error:
        roll.last_words(f"{type(error).__name__}: {error}")
        roll.close()
        raise
    gang.watch()
    _HELD.append(gang)
    sys.excepthook = _Hook(gang, sys.excepthook)
    atexit.register(_end, gang)
    return gang


def _connect(address: str, member: Membership, deadline: float) -> None:
    settings: Any = jax.config
    settings.update("jax_enable_preemption_service", False)  # it would keep SIGTERM from ending the process
    try:
        jax.distributed.initialize(
            address,
            member.size,
            member.rank,
            local_device_ids=member.devices,
            cluster_detection_method="deactivate",
            initialization_timeout=max(int(deadline), 10),
            heartbeat_timeout_seconds=int(max(deadline, _PATIENCE)),
            shutdown_timeout_seconds=int(max(deadline, _PATIENCE)),
        )
    except RuntimeError as error:
        if "before" not in str(error) and "once" not in str(error):
            raise
        raise ProcessError(
            "SF-PROC-002",
            "JAX was used before this process joined the others",
            "sf.Processes() as the first thing that a program does",
            "make the runtime at the top of the program, before any model or array: runtime = sf.Processes()",
        ) from None


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        port: int = found.getsockname()[1]
        return port


def _shutdown() -> None:
    end: Any = jax.distributed.shutdown
    end()


class _Hook:
    """Python's `excepthook`, which tells the others first."""

    def __init__(self, gang: Joined, before: Any) -> None:
        self.gang, self.before = gang, before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        self.gang.fail(f"{kind.__name__}: {error}")
        self.before(kind, error, trace)


def _end(gang: Joined) -> None:
    """At the program's end, leave together; after a failure at once, since JAX would wait for the others."""
    if gang._ended and gang.failed:
        _exit(gang.code)
    try:
        gang.leave()
    except ProcessError as error:
        sys.stderr.write(f"{error}\n")
        _exit(1)


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
