"""Memory on a border that XLA asks for: on a CPU it uses an array that begins there as it lies, and copies others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BORDER", "aligned"]

BORDER = 64
"""Bytes."""


def aligned(shape: Sequence[int], dtype: Any) -> NDArray[Any]:
    """Zeros that begin on a border.

    Example:
        >>> aligned((3, 2), "float32").ctypes.data % BORDER
        0
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    raw = np.zeros(size + BORDER, np.uint8)
    begin = -raw.ctypes.data % BORDER
    whole: NDArray[Any] = raw[begin : begin + size].view(dtype).reshape(shape)
    return whole
