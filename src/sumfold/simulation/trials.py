"""What a trial of the kernels measured, kept on disk, so that the next start of the same program chooses without one.

A file is known by what decides which kernel is faster: the client's programs with all their shapes, so the model, its
loss and optimizer and the batch size; which lanes were tried beside how many streams; the device, the cores, and the
versions of JAX and Sumfold. It lies beside the compiled programs of this kind of machine, and holds numbers alone. A
run that is resumed does not look there: its checkpoint says what was chosen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sumfold.core.batching import Batching
from sumfold.core.client import ClientHalf
from sumfold.core.cohort import Cohort, batch_shapes, widths
from sumfold.core.driver import State
from sumfold.core.exported import each_half, traced
from sumfold.core.round import Round
from sumfold.simulation import compilation_cache
from sumfold.simulation.cores import cores

__all__ = ["faster", "mark", "seconds_in"]

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def mark(
    round: Round, halves: Sequence[ClientHalf], state: State, cohort: Cohort, batching: Batching, about: Any
) -> str:
    """A hash of what the outcome of a trial depends on: the same in every process.

    Args:
        round: the algorithm.
        halves: of its phases, as they run here; the first is tried.
        state: arrays or shapes.
        cohort: whose examples have the shapes that the client's step takes.
        batching: of the first phase.
        about: what else it depends on, such as the device; anything whose `repr` is the same in every process.
    """
    parts = [f"{about!r} {cores()} cores, jax {jax.__version__}, sumfold {version('sumfold')}"]
    whole = cohort.drawn_from[0] if cohort.drawn_from else cohort.data
    for width in np.unique(widths(whole, batching)).tolist():
        half, made = next(iter(each_half(round, halves, state, batch_shapes(cohort.data, width))))
        for name, program in traced(half, made).items():
            parts.append(f"{name} {_ADDRESS.sub('', str(program))}")
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def faster(mark: str, tried: Sequence[int], seconds: Callable[[int], float]) -> tuple[int, str]:
    """The number of lanes that is fastest, and in words why.

    Args:
        mark: as `mark` gives it.
        tried: numbers of lanes, 0 for none.
        seconds: measures one of them, a client step; not called where that is known.
    """
    folder = compilation_cache.switch_on()  # none where the user switched it off, or configured JAX's own
    found, when = None, "as measured before: "
    if folder is not None:
        with contextlib.suppress(OSError):
            found = seconds_in((folder / f"trial-{mark}.json").read_bytes(), tried)
    if found is None:
        found, when = {lanes: seconds(lanes) for lanes in tried}, ""
        if folder is not None:
            with contextlib.suppress(OSError):  # a folder that cannot be written: the next start tries again
                _write(folder / f"trial-{mark}.json", {"seconds a client step, by lanes": found})
    told = ", ".join(f"{lanes or 'no'} lanes {one * 1e6:.1f}" for lanes, one in found.items())
    return min(found, key=found.__getitem__), f"{when}µs a client step: {told}"


def seconds_in(data: bytes, tried: Sequence[int]) -> dict[int, float] | None:
    """What a file says of just these numbers of lanes; None where it says nothing that makes sense.

    Example:
        >>> seconds_in(b'{"seconds a client step, by lanes": {"0": 2e-05, "16": 4e-06}}', (0, 16))
        {0: 2e-05, 16: 4e-06}
        >>> seconds_in(b'{"seconds a client step, by lanes": {"0": 2e-05', (0, 16)) is None
        True
    """
    try:
        said = json.loads(data)["seconds a client step, by lanes"]
        found = {lanes: float(said[str(lanes)]) for lanes in tried}
    except (ValueError, TypeError, LookupError):
        return None
    return found if all(0 < one < math.inf for one in found.values()) else None


def _write(path: Path, news: Mapping[str, Any]) -> None:
    """At once: whoever reads the file meanwhile finds all of it or nothing."""
    number, name = tempfile.mkstemp(dir=path.parent)
    try:
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(news, file)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
