"""A small dataset in memory, with the methods of ``tf.data.Dataset`` that TFF scripts use."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sumfold.errors import CompositionError, DataError, user_facing

__all__ = ["Dataset", "TensorSpec"]

Tree = Any

_ENDLESS = -1


@dataclass(frozen=True)
class TensorSpec:
    """The shape and dtype of one array of a dataset's elements; None is an axis of any length."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


class Dataset:
    """Elements of NumPy arrays that can be read any number of times; methods return new datasets.

    An element is an array, or tuples and dicts of arrays. After `batch`, it is one of ``process.next``'s ready-made
    batches.

    Example:
        >>> dataset = Dataset.from_tensor_slices({"x": np.arange(3.0), "y": np.arange(3)})
        >>> batches = dataset.repeat(2).batch(4)
        >>> [batch["y"].tolist() for batch in batches]
        [[0, 1, 2, 0], [1, 2]]
        >>> batches.element_spec["x"]
        TensorSpec(shape=(None,), dtype=dtype('float64'))
    """

    def __init__(self, begin: Callable[[], Iterator[Tree]], spec: Callable[[], Tree], size: int) -> None:
        self._begin, self._spec, self._size = begin, spec, size

    @classmethod
    @user_facing
    def from_tensor_slices(cls, tensors: Tree) -> Dataset:
        """One element for each row of the arrays; a list is an array.

        Raises:
            DataError: when there is no array, or the arrays differ in length.
        """
        arrays = _map(np.asarray, tensors)
        leaves = _leaves(arrays)
        lengths = sorted({len(leaf) if leaf.ndim else 0 for leaf in leaves})
        if len(lengths) != 1:
            raise DataError(
                "SF-DATA-003",
                f"arrays of {lengths} rows" if lengths else f"{tensors!r}, which holds no array",
                "arrays with one row per example, all of the same length",
                "look at how the arrays were cut",
            )

        def rows() -> Iterator[Tree]:
            return (_map(lambda leaf, i=i: leaf[i], arrays) for i in range(lengths[0]))

        return cls(rows, lambda: _map(lambda leaf: TensorSpec(leaf.shape[1:], leaf.dtype), arrays), lengths[0])

    def __iter__(self) -> Iterator[Tree]:
        return self._begin()

    def as_numpy_iterator(self) -> Iterator[Tree]:
        """The elements; the same as iterating."""
        return self._begin()

    def cardinality(self) -> int:
        """How many elements there are; -1 when they never end."""
        return self._size

    def __len__(self) -> int:
        if self._size == _ENDLESS:
            raise TypeError("the dataset never ends; bound it with take(n)")
        return self._size

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        size = "endless" if self._size == _ENDLESS else f"{self._size} elements"
        return f"Dataset({size}, {self.element_spec})"

    @property
    def element_spec(self) -> Tree:
        """A `TensorSpec` for each array of an element."""
        return self._spec()

    @user_facing
    def batch(self, batch_size: int | Any, drop_remainder: bool = False, **options: Any) -> Dataset:
        """Every `batch_size` elements stacked; the last batch may be shorter, or is dropped.

        Raises:
            CompositionError: for a size below one.
        """
        _check(batch_size, "batch_size", 1)
        width = batch_size if drop_remainder else None

        def batches() -> Iterator[Tree]:
            elements = self._begin()
            while group := list(itertools.islice(elements, batch_size)):
                if len(group) == batch_size or not drop_remainder:
                    yield _map(lambda *leaves: np.stack(leaves), *group)

        def spec() -> Tree:
            return _map(lambda one: TensorSpec((width, *one.shape), one.dtype), self.element_spec)

        size = self._size
        if size != _ENDLESS:
            size = size // batch_size if drop_remainder else -(-size // batch_size)
        return Dataset(batches, spec, size)

    @user_facing
    def shuffle(
        self, buffer_size: int | Any, seed: int | None = None, reshuffle_each_iteration: bool = True
    ) -> Dataset:
        """Elements drawn at random from a buffer of the next `buffer_size`; in another order each time it is read.

        Raises:
            CompositionError: for a buffer below one.
        """
        _check(buffer_size, "buffer_size", 1)
        entropy = secrets.randbits(64) if seed is None else seed
        reads = itertools.count()

        def shuffled() -> Iterator[Tree]:
            read = next(reads) if reshuffle_each_iteration else 0
            random = np.random.default_rng((entropy, read))
            elements = self._begin()
            buffer = list(itertools.islice(elements, buffer_size))
            while buffer:
                place = int(random.integers(len(buffer)))
                buffer[place], buffer[-1] = buffer[-1], buffer[place]
                yield buffer.pop()
                buffer += itertools.islice(elements, 1)

        return Dataset(shuffled, self._spec, self._size)

    @user_facing
    def repeat(self, count: int | Any = None) -> Dataset:
        """The elements `count` times over; None or -1 is without end.

        Raises:
            CompositionError: for a count below -1.
        """
        endless = count is None or count == _ENDLESS
        if not endless:
            _check(count, "count", 0)

        def repeated() -> Iterator[Tree]:
            for _ in itertools.count() if count is None or endless else range(count):
                read = 0
                for read, element in enumerate(self._begin(), 1):  # noqa: B007 - counted
                    yield element
                if not read:
                    return

        size = _ENDLESS if count is None or endless or self._size == _ENDLESS else self._size * count
        return Dataset(repeated, self._spec, size if self._size else 0)

    @user_facing
    def map(self, map_func: Callable[..., Tree], *options: Any, **more: Any) -> Dataset:
        """Every element changed by a function of NumPy arrays; a tuple's members are its arguments."""

        def changed(element: Tree) -> Tree:
            made = map_func(*element) if type(element) is tuple else map_func(element)
            return _map(np.asarray, made)

        def spec() -> Tree:
            before = self.element_spec
            element = next(self._begin(), None)
            if element is None:
                element = _map(lambda one: np.zeros([n or 0 for n in one.shape], one.dtype), before)
            free = {len(leaf) for leaf, one in zip(_leaves(element), _leaves(before), strict=True) if None in one.shape}

            def described(leaf: NDArray[Any]) -> TensorSpec:
                batched = bool(free) and leaf.ndim > 0 and len(leaf) in free
                return TensorSpec((None, *leaf.shape[1:]) if batched else leaf.shape, leaf.dtype)

            return _map(described, changed(element))

        return Dataset(lambda: map(changed, self._begin()), spec, self._size)

    @user_facing
    def take(self, count: int | Any) -> Dataset:
        """The first `count` elements; -1 is all.

        Raises:
            CompositionError: for a count below -1.
        """
        if count == _ENDLESS:
            return self
        _check(count, "count", 0)
        size = count if self._size == _ENDLESS else min(count, self._size)
        return Dataset(lambda: itertools.islice(self._begin(), count), self._spec, size)

    def concatenate(self, dataset: Dataset) -> Dataset:
        """These elements, then those of another dataset."""
        size = _ENDLESS if _ENDLESS in (self._size, dataset._size) else self._size + dataset._size
        return Dataset(lambda: itertools.chain(self._begin(), dataset._begin()), self._spec, size)

    def prefetch(self, buffer_size: int | None = None) -> Dataset:
        """The same dataset: it is in memory already."""
        return self

    def cache(self) -> Dataset:
        """The same dataset: it is in memory already."""
        return self


def _map(function: Callable[..., Any], *trees: Tree) -> Tree:
    """Trees of tuples and dicts, leaf by leaf; the structure is that of the first, in its own order."""
    first = trees[0]
    if isinstance(first, Mapping):
        return {key: _map(function, *[tree[key] for tree in trees]) for key in first}
    if isinstance(first, tuple):
        members = [_map(function, *parts) for parts in zip(*trees, strict=True)]
        return type(first)(*members) if hasattr(first, "_fields") else tuple(members)
    return function(*trees)


def _leaves(tree: Tree) -> list[Any]:
    if isinstance(tree, Mapping | tuple):
        parts: Sequence[Tree] = list(tree.values()) if isinstance(tree, Mapping) else tree
        return [leaf for part in parts for leaf in _leaves(part)]
    return [tree]


def _check(value: Any, name: str, least: int) -> None:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise CompositionError(
            "SF-COMP-077", f"{name}={value!r}", f"a whole number of at least {least}", "look at the dataset's arguments"
        )
