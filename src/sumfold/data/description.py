"""How a file describes a federation's examples: their tree, and the dtype and shape of each array, in JSON's types."""

from __future__ import annotations

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from sumfold.data import entries
from sumfold.data.entries import Structure
from sumfold.errors import DataError


class Leaf(NamedTuple):
    """One array of the examples, as the file describes it: the dtype and the shape of one row."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return int(self.dtype.itemsize * np.prod(self.shape, dtype=np.int64))


def write_structure(structure: Any) -> Any:
    """A structure of `entries.flatten` in JSON's types."""
    if structure is None or structure == "*":
        return structure
    kind, keys, children = structure
    inner = [write_structure(child) for child in children]
    if kind is not dict:
        fields = getattr(kind, "_fields", None)
        return {"tuple": inner} if fields is None else {"record": kind.__name__, "fields": list(fields), "of": inner}
    for key in keys:
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise unfit(f"the key {key!r} ({type(key).__name__}) of a dict", "keys that are str or int")
    return {"dict": list(keys), "of": inner}


def dtype_word(dtype: np.dtype[Any]) -> str:
    """The dtype in a word that names its byte order too.

    Example:
        >>> dtype_word(np.dtype(np.uint8)), dtype_word(np.dtype(np.float32))
        ('|u1', '<f4')
    """
    return dtype.str if dtype.kind in "biufc" else dtype.name


def read_dtype(word: str) -> np.dtype[Any]:
    """The dtype of a word of the file; bfloat16 and its kin by name."""
    import ml_dtypes

    own = getattr(ml_dtypes, word, None) if word.isidentifier() else None
    dtype = np.dtype(word if own is None else own)
    if not entries.is_numeric(dtype):
        raise ValueError(f"the dtype {word}")
    return dtype


def read_structure(node: Any, depth: int) -> tuple[Structure, int]:
    """The structure that `write_structure` wrote, and how many arrays it has."""
    if depth > 64:
        raise ValueError("nested too deep")
    if node is None:
        return None, 0
    if node == "*":
        return "*", 1
    read = [read_structure(child, depth + 1) for child in node.get("of", node.get("tuple"))]
    children = tuple([structure for structure, _ in read])
    leaves = sum(number for _, number in read)
    if "dict" in node:
        return (dict, tuple(node["dict"]), children), leaves
    if "tuple" in node:
        return (tuple, None, children), leaves
    return (_record(str(node["record"]), tuple(map(str, node["fields"]))), None, children), leaves


def _record(name: str, fields: tuple[str, ...]) -> Any:
    """The named tuple of this name and these fields; one class for equal ones, so that structures compare equal."""
    if (name, fields) not in _RECORDS:
        _RECORDS[name, fields] = namedtuple(name, fields)
    return _RECORDS[name, fields]


_RECORDS: dict[tuple[str, tuple[str, ...]], Any] = {}


def unfit(came: str, needed: str) -> DataError:
    """The error for what a file cannot hold."""
    return DataError("SF-DATA-106", f"{came}, in a file", needed, "name it differently before saving")
