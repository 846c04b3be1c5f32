"""What the arrays of a federation are: their names, dtypes and shapes in words, and which of them are the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.entries import Tree
from sumfold.errors import DataError


def describe(examples: Tree) -> str:
    """Name, dtype and shape of a row of every array.

    Example:
        >>> describe((np.zeros((4, 2)), np.zeros(4, np.int32)))
        'x float64[2], y int32'
    """
    leaves, structure = entries.flatten(examples)
    return ", ".join(
        f"{name} {leaf.dtype}" + (f"[{','.join(map(str, leaf.shape[1:]))}]" if leaf.ndim > 1 else "")
        for name, leaf in zip(entries.leaf_names(structure), leaves, strict=True)
    )


def labels(examples: Tree) -> npt.NDArray[Any]:
    """See `Federation.labels`."""
    found: Any = None
    if isinstance(examples, tuple) and len(examples) > 1:
        found = examples[1]
    elif isinstance(examples, dict):
        found = examples.get("y", examples.get("label"))
    if isinstance(found, np.ndarray) and found.ndim == 1:
        return found
    raise DataError(
        "SF-DATA-018",
        f"examples ({describe(examples)}) without one label per row",
        "(x, y) with y of one dimension, or a dict with 'y' or 'label'",
        "pass labels as class numbers, or split without stratify=True",
    )
