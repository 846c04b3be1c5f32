"""A structure with a Python container, in TFF's spelling."""

from __future__ import annotations

from typing import Any

from sumfold.errors import user_facing
from sumfold.language.containers import container_of
from sumfold.language.types import StructType

__all__ = ["StructWithPythonType"]


@user_facing
def StructWithPythonType(elements: Any, container_type: type | Any = None) -> StructType:  # noqa: N802 - TFF's name
    """A `StructType` whose values are lists, tuples, dicts or OrderedDicts.

    Args:
        elements: as `StructType` takes them.
        container_type: the class; None leaves it open.

    Example:
        >>> import numpy as np
        >>> print(StructWithPythonType([("a", np.int32)], dict))
        <a=int32>
    """
    struct = StructType(elements)
    if container_type is None or not issubclass(container_type, list | tuple | dict):
        return struct
    return StructType(struct.elements, container_of(container_type, struct.names))
