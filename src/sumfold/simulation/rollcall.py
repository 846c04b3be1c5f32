"""How the processes of a gang meet: one connection from each to the first, which hears all and tells all.

    process 1 ──card──▶ process 0 ──all cards──▶ process 1, 2, …
    process 2 ──card──▶

A meeting is over when everybody's card is there. A card says what its process is about to do, so that processes
whose programs have parted are told apart; a process that fails sends a last card that says why, and one that is killed
closes its connection. Lines of JSON travel, and raw bytes where a line announces them: nothing in either can run code.

JAX's own service for this ends the whole program, with a stack trace, when an address does not answer or a process
stays away. So Sumfold's processes find each other here first, and hand JAX a gang that is complete.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from typing import Any, TypeAlias

from sumfold.errors import ProcessError

__all__ = ["Card", "RollCall", "answer", "call"]

Card: TypeAlias = dict[str, Any]
"""What one process says at a meeting; plain values, for JSON."""

_GREETING = "sumfold-gang-1"
_SLICE = 1.0
"""Seconds after which a waiting process looks around."""

_MARGIN = 15.0
"""Seconds more than the first process that the others wait, since it is the one that can say who is missing."""

_LONGEST = 1 << 20
"""Bytes of a line; a longer one is no card."""


class RollCall:
    """The connections of one process; made by `call` in the first and by `answer` in the others."""

    def __init__(self, rank: int, size: int, lines: dict[int, _Line], deadline: float) -> None:
        self.rank, self.size, self.deadline = rank, size, deadline
        self.lines = lines

    def meet(self, card: Card) -> list[Card]:
        """The cards of all processes, by rank.

        Raises:
            ProcessError: when one stays away past the deadline (SF-PROC-021), is gone or has failed (SF-PROC-022).
        """
        cards = self._heard(card) if self.rank == 0 else self._sent(card)
        for rank, theirs in enumerate(cards):
            if theirs.get("kind") == "failed" and rank != self.rank:
                raise _lost(f"process {rank} failed: {theirs['why']}", "mend what it says; its own output has more")
            if theirs.get("kind") == "gone":
                raise _gone(rank)
        absent = [rank for rank, theirs in enumerate(cards) if theirs.get("kind") == "absent"]
        if absent:
            raise ProcessError(
                "SF-PROC-021",
                f"{_named(absent)} did not arrive within {self.deadline:g} s",
                "all processes at the end of every round",
                "look at what they say; a larger deadline gives them more time",
            )
        return cards

    def tell(self, news: bytes) -> bytes:
        """The first process's news, in every process; right after a meeting in which it was announced.

        Raises:
            ProcessError: when the first process is gone (SF-PROC-022).
        """
        if self.rank:
            try:
                return self.lines[0].receive(time.monotonic() + self.deadline, longest=None)
            except OSError:
                raise _gone(0) from None
        for line in self.lines.values():
            with contextlib.suppress(OSError):  # at the next meeting it is gone
                line.send(news)
        return news

    def last_words(self, why: str) -> None:
        """Say that this process fails, to whoever still listens; nobody is waited for."""
        card = {"kind": "failed", "why": why[:2000]}
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.send(_text(card if self.rank else [card]))

    def close(self) -> None:
        """End the connections."""
        _close(self.lines)

    def _heard(self, mine: Card) -> list[Card]:
        cards, until = {0: mine}, time.monotonic() + self.deadline
        while len(cards) < self.size and time.monotonic() < until:
            waiting = {line.socket: rank for rank, line in self.lines.items() if rank not in cards}
            for ready in select.select(list(waiting), [], [], min(_SLICE, max(until - time.monotonic(), 0)))[0]:
                rank = waiting[ready]
                try:
                    cards[rank] = json.loads(self.lines[rank].receive(until))
                except (OSError, ValueError):
                    cards[rank] = {"kind": "gone"}
            if any(card.get("kind") in {"gone", "failed"} for card in cards.values()):
                break  # nobody needs to wait for the rest
        everybody = [cards.get(rank, {"kind": "absent"}) for rank in range(self.size)]
        for line in self.lines.values():
            with contextlib.suppress(OSError):
                line.send(_text(everybody))
        return everybody

    def _sent(self, card: Card) -> list[Card]:
        try:
            self.lines[0].send(_text(card))
            cards: list[Card] = json.loads(self.lines[0].receive(time.monotonic() + self.deadline + _MARGIN))
        except TimeoutError:
            return [{"kind": "absent"}]
        except OSError:
            return [{"kind": "gone"}]
        return cards


class _Line:
    """One connection: frames of bytes, each after its length."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, seconds in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
            if hasattr(socket, name):  # a machine that falls silent is noticed in 11 s
                connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), seconds)

    def send(self, data: bytes) -> None:
        self.socket.settimeout(None)
        self.socket.sendall(len(data).to_bytes(8, "little") + data)

    def receive(self, until: float, longest: int | None = _LONGEST) -> bytes:
        length = int.from_bytes(self._exactly(8, until), "little")
        if longest is not None and length > longest:
            raise OSError("no line of Sumfold's")
        return self._exactly(length, until)

    def _exactly(self, length: int, until: float) -> bytes:
        found = bytearray(length)
        view = memoryview(found)
        while view:
            self.socket.settimeout(max(until - time.monotonic(), 0.001))
            count = self.socket.recv_into(view, min(len(view), 1 << 20))
            if not count:
                raise ConnectionResetError("closed")
            view = view[count:]
        return bytes(found)

    def close(self) -> None:
        self.socket.close()


def call(address: str, size: int, hello: Card, deadline: float) -> tuple[RollCall, list[Card]]:
    """Wait, as the first process, until all others have said hello.

    Args:
        address: ``host:port`` of this machine.
        size: how many processes there will be.
        hello: what to tell the others.
        deadline: seconds.

    Returns:
        the connections, and everybody's hello by rank.

    Raises:
        ProcessError: when the address is not this machine's or in use (SF-PROC-012), processes are missing
            (SF-PROC-011), or two have the same rank or count another number of processes (SF-PROC-013).
    """
    lines: dict[int, _Line] = {}
    hellos = {0: hello}
    until = time.monotonic() + deadline
    with contextlib.ExitStack() as unless_all_came, _listening(address, size) as server:
        unless_all_came.callback(_close, lines)
        while len(hellos) < size:
            server.settimeout(max(until - time.monotonic(), 0.001))
            try:
                line = _Line(server.accept()[0])
            except TimeoutError:
                missing = [rank for rank in range(size) if rank not in hellos]
                raise ProcessError(
                    "SF-PROC-011",
                    f"{_named(missing)} of {size} did not come to {address} within {deadline:g} s",
                    "all processes",
                    "start them, each with its own rank and the same coordinator; a larger deadline gives more time",
                ) from None
            theirs = _greeting(line)
            if theirs is None:  # somebody else, who tried the port
                line.close()
                continue
            rank = theirs["rank"]
            clash = None
            if theirs["size"] != size:
                clash = f"process {rank} counts {theirs['size']} processes and process 0 counts {size}"
            elif rank in hellos or not 0 < rank < size:
                clash = f"two processes say that they are process {rank}"
            if clash is not None:
                for one in (line, *lines.values()):
                    with contextlib.suppress(OSError):
                        one.send(_text([{"kind": "clash", "why": clash}]))
                line.close()
                raise _clash(clash)
            lines[rank], hellos[rank] = line, theirs
        unless_all_came.pop_all()
    everybody = [hellos[rank] for rank in range(size)]
    for line in lines.values():
        line.send(_text(everybody))
    return RollCall(0, size, lines, deadline), everybody


def _close(lines: dict[int, _Line]) -> None:
    for line in lines.values():
        line.close()


def _greeting(line: _Line) -> Card | None:
    """What a newcomer says of itself; None for one that is no process of a gang."""
    try:
        said = json.loads(line.receive(time.monotonic() + 5.0))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) and said.get("greeting") == _GREETING else None


def answer(address: str, rank: int, size: int, hello: Card, deadline: float) -> tuple[RollCall, list[Card]]:
    """Find the first process, and wait until everybody has; as `call`, in the other processes.

    Raises:
        ProcessError: when nobody answers at the address (SF-PROC-010), or as `call`.
    """
    until = time.monotonic() + deadline
    line = _Line(_connected(address, rank, until, deadline))
    try:
        line.send(_text({**hello, "greeting": _GREETING, "rank": rank, "size": size}))
        everybody = json.loads(line.receive(time.monotonic() + deadline + _MARGIN))
    except (OSError, ValueError):
        line.close()
        raise _silent(address, rank, deadline) from None
    if everybody[0].get("kind") == "clash":
        line.close()
        raise _clash(everybody[0]["why"])
    return RollCall(rank, size, {0: line}, deadline), everybody


def _connected(address: str, rank: int, until: float, deadline: float) -> socket.socket:
    host, port = _parts(address)
    pause = 0.02
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(min(until - time.monotonic(), 5.0), 0.001))
        except OSError:  # not started yet; a name that is not known yet
            if time.monotonic() + pause > until:
                raise _silent(address, rank, deadline) from None
        time.sleep(pause)
        pause = min(2 * pause, 1.0)


def _listening(address: str, size: int) -> socket.socket:
    host, port = _parts(address)
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=size)
    except OSError as error:
        raise ProcessError(
            "SF-PROC-012",
            f"the coordinator {address}: {error.strerror or error}",
            "an address of the machine of process 0, with a port that is free",
            "name another port, or start process 0 on that machine",
        ) from None


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _text(value: Any) -> bytes:
    return json.dumps(value).encode()


def _named(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _silent(address: str, rank: int, deadline: float) -> ProcessError:
    return ProcessError(
        "SF-PROC-010",
        f"nobody answered process {rank} at the coordinator {address} within {deadline:g} s",
        "process 0 at that address",
        "start process 0, and check the name, the port and what is between the machines",
    )


def _clash(why: str) -> ProcessError:
    return ProcessError(
        "SF-PROC-013",
        why,
        "ranks 0, 1, … that are all different, and one number of processes",
        "start each process with its own --rank, and all with the same --processes",
    )


def _gone(rank: int) -> ProcessError:
    what = f"process {rank} is gone: it was killed, or its machine does not answer"
    return _lost(what, "start the run again: with a checkpoint it goes on after the last saved round")


def _lost(what: str, do: str) -> ProcessError:
    return ProcessError("SF-PROC-022", what, "every process until the end of the run", do)
