"""A federation's identity: a hash that a checkpoint compares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.entries import Ids, Tree


def fingerprint(ids: Ids, examples: Tree, whose: Sequence[npt.NDArray[np.int64]]) -> str:
    """A hash of the ids, the arrays, and the integers that say whose rows they are: 32 hex digits.

    Example:
        >>> len(fingerprint(range(1), np.zeros(2), [np.array([0]), np.array([2])]))
        32
    """
    hashed = hashlib.blake2b(digest_size=16)
    hashed.update(repr(ids).encode())
    leaves, structure = entries.flatten(examples)
    hashed.update(repr(entries.leaf_names(structure)).encode())
    starts, counts, *others = whose
    for array in (starts, counts, *leaves, *others):
        hashed.update(f"{array.dtype}{array.shape}".encode())
        for block in _blocks(array):
            hashed.update(block.tobytes())
    return hashed.hexdigest()


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    mib = 2**20
    if array.nbytes <= 64 * mib:
        yield array
        return
    length = max(1, mib * len(array) // array.nbytes)
    for start in np.linspace(0, len(array) - length, 64).astype(int).tolist():
        yield array[start : start + length]
