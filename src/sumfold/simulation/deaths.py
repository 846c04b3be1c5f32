"""Noticing in the middle of a computation that another process is gone.

At a meeting a process hears of it by itself, and in an exchange by a connection that breaks. Between them it may
compute for minutes. So a thread looks at the connections of the roll call, reading nothing: whoever is killed closes
its own, and a machine that falls silent is given up by TCP. A process that is slow, or stopped, keeps its connections.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Mapping
from socket import socket

__all__ = ["watch"]

_OFTEN = 1.0
"""Seconds between two looks."""

_GRACE = 2.0
"""Seconds in which the program may come upon it by itself, and say more."""


def watch(connections: Mapping[int, socket], known: Callable[[], bool], gone: Callable[[int], None]) -> None:
    """Call `gone` with the rank of a process that closed its connection, in a thread of its own.

    Args:
        connections: by rank.
        known: whether this process is at its end already, or has noticed by itself; then nothing is called.
        gone: is called at most once.
    """
    if not hasattr(select, "poll"):  # Windows: noticed at the next meeting
        return
    ranks = {connection.fileno(): rank for rank, connection in connections.items()}
    closed = getattr(select, "POLLRDHUP", 0)
    poll = select.poll()
    for number in ranks:
        poll.register(number, closed)

    def look() -> None:
        while not known():
            found = poll.poll(_OFTEN * 1000)
            if not found:
                continue
            time.sleep(_GRACE)
            if not known():
                gone(ranks[found[0][0]])
            return

    threading.Thread(target=look, daemon=True, name="sumfold-deaths").start()
