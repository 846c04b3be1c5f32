"""What an interrupted run was computed by, and what that means for a run that goes on with it.

A runtime fixes the order of sums. Results have the same bytes where both runtimes are of one kind: the pinned ones
(`Loopback`, and `deterministic=True` in any number of processes) among each other, and the compiled ones in the same
number of processes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sumfold.core.round import HostWork, Round

__all__ = ["announced", "described"]

_ENGINE = {"Simulation", "Processes"}
"""Runtimes that are the same engine, alone and in many processes."""


def described(runtime: Any, round: Round) -> dict[str, Any]:
    """What a checkpoint stores of a runtime: its name, how many processes it has, and whether its bits are pinned.

    Python functions run in the first of many processes, and alike whether or not other clients' bits are pinned.

    Example:
        >>> import sumfold as sf
        >>> round = sf.learning.kmeans(clusters=2, features=1).round
        >>> described(sf.Simulation(deterministic=True), round)
        {'runtime': 'Simulation', 'processes': 1, 'deterministic': True}
    """
    name = type(runtime).__name__
    if name in _ENGINE and any(isinstance(phase.work, HostWork) for phase in round.phases):
        return {"runtime": name, "processes": 1, "deterministic": False}
    hired = getattr(runtime, "hired", None)
    gang = hired if hired is not None else getattr(runtime, "gang", None)
    options = getattr(runtime, "options", runtime)
    pinned = bool(getattr(options, "deterministic", False)) or name == "Loopback"
    return {"runtime": name, "processes": getattr(gang, "size", 1), "deterministic": pinned}


def announced(before: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What a person should know who goes on here with what was computed before; nothing where bytes are the same.

    Args:
        before, here: from `described`; what an older checkpoint has not, is not compared.

    Example:
        >>> import sumfold as sf
        >>> round = sf.learning.kmeans(clusters=2, features=1).round
        >>> announced(described(sf.Loopback(), round), described(sf.Simulation(deterministic=True), round))
        []
        >>> announced(described(sf.Loopback(), round), described(sf.Simulation(), round))[0][:57]
        'the rounds so far were computed by Loopback(), from here '
    """
    if not before.keys() >= here.keys() or (before["deterministic"] and here["deterministic"]):
        return []
    if _kind(before) == _kind(here):
        return []
    return [
        f"the rounds so far were computed by {_named(before)}, from here on it is {_named(here)}: going on, and equal "
        "to rounding; only deterministic=True gives the same bytes in any number of processes"
    ]


def _kind(runtime: Mapping[str, Any]) -> tuple[Any, ...]:
    name = runtime["runtime"]
    return "engine" if name in _ENGINE else name, runtime["processes"], runtime["deterministic"]


def _named(runtime: Mapping[str, Any]) -> str:
    name = runtime["runtime"]
    given = [str(runtime["processes"])] if name == "Processes" else []
    given += ["deterministic=True"] if runtime["deterministic"] and name != "Loopback" else []
    return f"{name}({', '.join(given)})"
