"""Arrays in safetensors layout, bfloat16 and float8 included, which the NumPy half of safetensors cannot read."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import deserialize
from safetensors.numpy import save as save_tensors

__all__ = ["DTYPES", "load_tensors", "save_tensors"]

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
    "C64": np.dtype(np.complex64),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "U8": np.dtype(np.uint8),
}
"""The format's word for each dtype that can be written and read."""


def load_tensors(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays of a safetensors file by name, views of `data`'s copy; raises what safetensors raises, or KeyError."""
    read: Any = deserialize
    return {
        name: np.frombuffer(view["data"], DTYPES[view["dtype"]]).reshape(view["shape"]) for name, view in read(data)
    }
