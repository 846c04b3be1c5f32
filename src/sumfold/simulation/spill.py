"""Stacks that are larger than memory: in a file without a name, which the system pages in and out.

The rows of a stack are written once, in the order of clients, and read once by their rule, mostly in pieces: what an
operating system's own paging serves well. The file is mapped, so to XLA it is an array like any other, and it has no
name from the beginning on: its room on the disk is free again when the last array that looks into it is gone, however
the round or the program ends.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold.aligned import aligned
from sumfold.core.driver import Totals
from sumfold.core.rows import Rows, rows_for
from sumfold.errors import DataError
from sumfold.simulation import memory

__all__ = ["Stacks"]

_log = logging.getLogger("sumfold")


class Stacks:
    """Room for the stacks of an algorithm's rounds: in memory where they fit, else on the disk, which is told once."""

    def __init__(self) -> None:
        self._told = False

    def __call__(self, parts: Sequence[str], totals: Totals, places: int) -> dict[str, Rows]:
        """Rows for these parts; see `sumfold.core.rows.rows_for`.

        Raises:
            DataError: when they fit neither into memory nor on the disk.
        """
        if not parts:
            return {}
        leaves = jax.tree.leaves([totals.parts[part].values for part in parts])
        size = sum(places * math.prod(leaf.shape[1:]) * leaf.dtype.itemsize for leaf in leaves)
        budget = memory.for_stacks(memory.free(jax.local_devices(backend="cpu")[0]))
        if budget is None or size <= budget:
            return rows_for(parts, totals, places)
        if not self._told:
            self._told = True
            _log.info(
                "the values of %s clients take %s, more than memory has room for (%s): they go through a file in %s",
                f"{places:,}",
                memory.told(size),
                memory.told(budget),
                _folder(),
            )
        try:
            return rows_for(parts, totals, places, _mapped)
        except OSError as error:
            raise DataError(
                "SF-SIM-004",
                f"the values of {places:,} clients, {memory.told(size)}, and no room in {_folder()}: {error}",
                f"a disk with so much room, or memory: {memory.told(budget)} may be used",
                "take fewer clients a round, let TMPDIR name a folder on a larger disk, or choose a rule that is a sum",
            ) from error


def _folder() -> Path:
    """Where a large temporary file belongs: /tmp is often memory itself, /var/tmp is not."""
    disk = Path("/var/tmp")
    said = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return Path(tempfile.gettempdir()) if said or not os.access(disk, os.W_OK) else disk


def _mapped(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros in a file of their own.

    Raises:
        OSError: when the disk is full; found now, since a mapped file that finds no room later ends the program.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if not size:
        return aligned(shape, dtype)
    with tempfile.TemporaryFile(dir=_folder()) as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        raw = np.frombuffer(mmap.mmap(file.fileno(), size), np.uint8)
    whole: NDArray[Any] = raw.view(dtype).reshape(shape)
    return whole
