"""Columns of an Arrow table as NumPy arrays: numbers, booleans, and lists of one length."""

from __future__ import annotations

from typing import Any

import numpy as np

from sumfold.data.entries import Array


def column_array(column: Any) -> Array:
    """A column as an array of its own dtype: [N], or [N, …] for lists of one length; missing numbers are NaN.

    What is neither comes back as an array of objects, or of strings.

    Args:
        column: a ``pyarrow.ChunkedArray``.

    Raises:
        ValueError: lists of different lengths, or with missing entries; the message says which.

    Example:
        >>> import pyarrow
        >>> column_array(pyarrow.chunked_array([[[1, 2], [3, 4]], [[5, 6]]])).shape
        (3, 2)
    """
    import pyarrow as pa

    plain = column.combine_chunks()
    if isinstance(plain, pa.ChunkedArray):  # what pyarrow gives for a column without chunks
        plain = pa.concat_arrays(plain.chunks) if plain.num_chunks else pa.array([], plain.type)
    return _array(plain)


def _array(values: Any) -> Array:
    import pyarrow as pa

    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = values.type
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(values)
    if pa.types.is_dictionary(kind):
        return _array(values.dictionary_decode())
    array: Array = values.to_numpy(zero_copy_only=False)
    return array


def _lists(values: Any) -> Array:
    import pyarrow.compute as pc

    if values.null_count:
        raise ValueError(f"{values.null_count} of {len(values)} lists missing")
    lengths = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    if len(lengths) > 1:
        raise ValueError(f"lists of {lengths[0]} to {lengths[-1]} entries")
    inner = _array(pc.list_flatten(values))
    each = int(lengths[0]) if len(lengths) else max(getattr(values.type, "list_size", 0), 0)
    return inner.reshape(len(values), each, *inner.shape[1:])
