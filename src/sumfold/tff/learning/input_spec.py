"""What TFF calls an ``input_spec``: the shapes and dtypes of one batch, in whatever form a script has them.

TensorFlow's ``TensorSpec`` and ``TensorShape`` are recognised by what they have, so TensorFlow is never imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sumfold.errors import CompositionError

__all__ = ["Spec", "features_of"]


class Spec(NamedTuple):
    """One array of a batch: its shape, None where any length will do, and its dtype's name."""

    shape: tuple[int | None, ...]
    dtype: str


def features_of(input_spec: Any) -> Any:
    """The features' specs: a `Spec`, or a tuple or dict of them.

    Args:
        input_spec: features and labels, in order or under ``x`` and ``y``: a pair, a dict, ``dataset.element_spec``, a
            dataset that has one, or a sumfold type. At each place stands something with a ``shape`` and a ``dtype``, or
            a pair (dtype, shape) in either order. The first axis is that of the batch.

    Raises:
        CompositionError: when it is none of these.

    Example:
        >>> features_of((((None, 3), np.float32), ((None, 1), np.int32)))
        Spec(shape=(None, 3), dtype='float32')
    """
    plain = _plain(getattr(input_spec, "element_spec", input_spec), input_spec)
    if isinstance(plain, Mapping) and {"x", "y"} <= set(plain):
        return plain["x"]
    if isinstance(plain, Spec | Mapping) or len(plain) not in {2, 3}:
        raise _unreadable(input_spec)
    return plain[0]


def _plain(node: Any, whole: Any) -> Any:
    for inside in ("member", "element"):  # of a federated type, of a sequence of batches
        if hasattr(node, inside) and not hasattr(node, "shape"):
            return _plain(getattr(node, inside), whole)
    if hasattr(node, "shape") and hasattr(node, "dtype"):
        return _spec(node.shape, node.dtype, whole)
    if hasattr(node, "elements"):  # a struct: names and types
        node = _members(node.elements, whole)
    if isinstance(node, Mapping):
        return {name: _plain(child, whole) for name, child in node.items()}
    if not isinstance(node, tuple | list):
        raise _unreadable(whole)
    if len(node) == 2:
        for shape, dtype in (node, node[::-1]):
            if _is_shape(shape) and _is_dtype(dtype):
                return _spec(shape, dtype, whole)
    return tuple([_plain(child, whole) for child in node])


def _members(elements: Any, whole: Any) -> Any:
    """A struct's members as a dict if they are named, and as a tuple if they are not."""
    if isinstance(elements, Mapping):
        return elements
    pairs = list(elements)
    named = [pair for pair in pairs if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str | None)]
    if pairs and len(named) == len(pairs):
        return dict(pairs) if all(name is not None for name, _ in pairs) else tuple([member for _, member in pairs])
    return tuple(pairs)


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple | list) and all(n is None or isinstance(n, int | np.integer) for n in node)


def _is_dtype(node: Any) -> bool:
    return isinstance(node, str | np.dtype | type) or hasattr(node, "as_numpy_dtype")


def _spec(shape: Any, dtype: Any, whole: Any) -> Spec:
    try:
        sizes = tuple([None if n is None else int(n) for n in shape])
        kind = np.dtype(getattr(dtype, "as_numpy_dtype", dtype))
    except (TypeError, ValueError):
        raise _unreadable(whole) from None
    return Spec(sizes, kind.name)


def _unreadable(given: Any) -> CompositionError:
    text = repr(given)
    return CompositionError(
        "SF-COMP-073",
        f"input_spec is {text if len(text) <= 80 else text[:77] + '...'} ({type(given).__name__})",
        "shapes and dtypes of one batch of features and labels, its first axis that of the batch",
        "pass dataset.element_spec, or for example (((None, 784), np.float32), ((None, 1), np.int32))",
    )
