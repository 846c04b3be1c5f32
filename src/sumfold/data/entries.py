"""What a user may give as one client's data, read into flat NumPy arrays.

An *entry* is either **examples** (a tuple, a dict or one array, every array with one row per example) or
**ready-made batches** (a list, iterator, ``tf.data.Dataset`` or torch ``DataLoader`` of examples). Arrays of
other libraries are recognised by what they can do (``__array__``, ``detach``, ``as_numpy_iterator``), so none
of those libraries is ever imported here.
"""

from __future__ import annotations

import functools
import numbers
import weakref
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt

from sumfold.aligned import aligned
from sumfold.errors import DataError

Array = npt.NDArray[Any]
ClientId = str | int
if TYPE_CHECKING:
    Ids = Sequence[ClientId]
else:
    Ids = Sequence  # who checks annotations while a program runs must not look an id up in a file
"""A range where clients are numbered, a tuple elsewhere; of a federation in a file, a sequence that looks them up."""
Tree = Any
Structure = Hashable
"""``"*"`` for an array, None for nothing, ``(container type, keys, children)`` for a tuple or a dict."""
Kept = dict[int, tuple[Any, list[Any]]]
"""One-shot iterators that were read: ``id(iterator) -> (iterator, its batches)``."""

ACCEPTED = (
    "a sequence with one entry per client, a mapping {client id: entry} or a Federation, where an entry is "
    "(x, y), (x, y, example_weight), a dict of arrays, or a list of ready-made batches"
)


class Part(NamedTuple):
    """Some rows of one client: the arrays of a tree, and how many rows they have."""

    structure: Structure
    leaves: tuple[Array, ...]
    rows: int


class Client(NamedTuple):
    """One client's entry as read: its parts, and whether each part is a ready-made batch."""

    id: ClientId
    parts: tuple[Part, ...]
    batched: bool

    @property
    def rows(self) -> int:
        """How many examples the client holds."""
        return sum(part.rows for part in self.parts)


# ---------------------------------------------------------------------------------------------- trees
# The same containers and the same order as jax.tree_util, without loading jax.


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """The leaves of a tree of tuples and dicts, and its structure.

    Example:
        >>> flatten({"b": 2, "a": (1, None)})[0]
        [1, 2]
    """
    if tree is None:
        return [], None
    if isinstance(tree, tuple):
        keys, children = None, [flatten(child) for child in tree]
    elif isinstance(tree, Mapping):
        keys = tuple(sorted(tree, key=str))
        children = [flatten(tree[key]) for key in keys]
    else:
        return [tree], "*"
    kind = type(tree) if isinstance(tree, tuple) else dict
    leaves = [leaf for child_leaves, _ in children for leaf in child_leaves]
    return leaves, (kind, keys, tuple(structure for _, structure in children))


def unflatten(structure: Structure, leaves: Iterable[Any]) -> Tree:
    """The tree that `flatten` took apart, with other leaves.

    Example:
        >>> unflatten(flatten((1, {"a": 2}))[1], [10, 20])
        (10, {'a': 20})
    """
    return _grow(structure, iter(leaves))


def _grow(structure: Any, leaves: Iterator[Any]) -> Tree:
    if structure is None:
        return None
    if structure == "*":
        return next(leaves)
    kind, keys, children = structure
    grown = [_grow(child, leaves) for child in children]
    if kind is dict:
        return dict(zip(keys, grown, strict=True))
    return kind(*grown) if hasattr(kind, "_fields") else tuple(grown)


@functools.lru_cache(maxsize=64)
def leaf_names(structure: Structure) -> tuple[str, ...]:
    """What to call each leaf: ``x``, ``y``, ``weight`` in a tuple, keys and field names elsewhere.

    Example:
        >>> leaf_names(flatten((0, 0))[1]), leaf_names(flatten(({"age": 0}, 0))[1])
        (('x', 'y'), ('x.age', 'y'))
    """
    return tuple(_names(structure, ()))


def _names(structure: Any, path: tuple[str, ...]) -> Iterator[str]:
    if structure is None:
        return
    if structure == "*":
        yield ".".join(path) or "x"
        return
    kind, keys, children = structure
    usual = ("x", "y", "weight") if not path and len(children) <= 3 else map(str, range(len(children)))
    for name, child in zip(keys or getattr(kind, "_fields", usual), children, strict=False):
        yield from _names(child, (*path, str(name)))


# --------------------------------------------------------------------------------------------- arrays


def to_array(value: Any, who: str, name: str) -> Array:
    """A NumPy array of numbers with a leading example axis; arrays and memory maps are not copied.

    Args:
        value: a NumPy, JAX, TensorFlow or torch array, a data frame, or a list of numbers.
        who: the beginning of error messages, ``"client 'a': "`` or empty.
        name: what the array is called in error messages.

    Raises:
        DataError: strings or objects (SF-DATA-007), no leading axis (008), rows of unequal length (009),
            a masked array with hidden values (027).
    """
    array = value if isinstance(value, np.ndarray) else _converted(value, who, name)
    if not is_numeric(array.dtype):
        raise DataError(
            "SF-DATA-007",
            f"{who}{name} has dtype {array.dtype}" + _sample(array),
            "numbers or booleans",
            "encode labels and categories as integers, for example with np.unique(values, "
            "return_inverse=True)[1], over all clients at once",
        )
    if array.ndim == 0:
        raise DataError(
            "SF-DATA-008",
            f"{who}{name} is a single number",
            "an array whose first axis counts examples",
            "give one row per example; batch a dataset of single examples first (.batch(32))",
        )
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise DataError(
                "SF-DATA-027",
                f"{who}{name} is a masked array with hidden values",
                "plain arrays",
                "fill the hidden values first, for example with array.filled(np.nan)",
            )
        return array.data
    return array


def is_numeric(dtype: np.dtype[Any]) -> bool:
    """Whether arrays of `dtype` hold numbers or booleans (bfloat16 and its kin included).

    Example:
        >>> is_numeric(np.dtype("float32")), is_numeric(np.dtype("U3"))
        (True, False)
    """
    return dtype.kind in "biufc" or (dtype.kind == "V" and dtype.type is not np.void)


def _converted(value: Any, who: str, name: str) -> Array:
    if hasattr(value, "detach"):  # torch refuses __array__ for tensors with gradients or on a device
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
        return _frame(value, array) if array.dtype == object and hasattr(value, "columns") else array
    except (ValueError, TypeError) as error:
        raise DataError(
            "SF-DATA-009",
            f"{who}{name} is a {type(value).__name__} that is no regular array ({error})",
            "rows of the same shape",
            "pad or cut the rows to one length, or give one array per feature",
        ) from error


def _frame(df: Any, array: Array) -> Array:
    """A data frame of several dtypes, else an array of objects, as numbers if its columns are; booleans are 0, 1."""
    columns = [np.asarray(df[name]) for name in df.columns]
    return np.stack(columns, axis=1) if columns and all(is_numeric(column.dtype) for column in columns) else array


def check_range(examples: Tree, starts: Array, counts: Array, order: Array | None, ids: Ids) -> None:
    """Refuse integers that would wrap in JAX, which keeps 32 bits of them unless jax_enable_x64 is on.

    Memory maps of more than 64 MiB are not looked at.

    Args:
        examples: the rows of all clients.
        starts, counts, order, ids: whose they are, as in `Federation`.

    Raises:
        DataError: naming the first such client (SF-DATA-028).
    """
    leaves, structure = flatten(examples)
    for name, leaf in zip(leaf_names(structure), leaves, strict=True):
        large_map = isinstance(leaf, np.memmap) and leaf.nbytes > 64 * 2**20
        if leaf.dtype not in (np.int64, np.uint64) or not leaf.size or large_map:
            continue
        kept = np.iinfo(np.int32 if leaf.dtype == np.int64 else np.uint32)
        low, high = int(leaf.min()), int(leaf.max())
        if (kept.min <= low and high <= kept.max) or _has_x64():
            continue
        outside = ((leaf < kept.min) | (leaf > kept.max)).reshape(len(leaf), -1).any(1)
        rows = np.flatnonzero(outside if order is None else outside[order])
        place = np.flatnonzero((starts <= rows[:1]) & (rows[:1] < starts + counts)) if len(rows) else rows
        who = f"client {ids[int(place[0])]!r}: " if len(place) else ""
        raise DataError(
            "SF-DATA-028",
            f"{who}{name} has {leaf.dtype} values from {low} to {high} over all clients",
            f"integers from {kept.min} to {kept.max}: JAX keeps 32 bits, and larger ones would wrap silently",
            "number the values anew over all clients at once (np.unique(values, return_inverse=True)[1]), convert them "
            'to floats, or call jax.config.update("jax_enable_x64", True) first',
        )


def _has_x64() -> bool:
    import jax  # only now: client data is read without it

    return jax.dtypes.canonicalize_dtype(np.int64) == np.int64


def _sample(array: Array) -> str:
    return f", for example {array.reshape(-1)[:1].tolist()[0]!r}" if array.size else ""


def read_part(tree: Tree, who: str) -> Part:
    """A tree of array-likes as a `Part`: converted, and checked to have one number of rows.

    Raises:
        DataError: no arrays (SF-DATA-002), unequal lengths (003), and what `to_array` raises.

    Example:
        >>> read_part(([[1.0], [2.0]], [0, 1]), "client 'a': ").rows
        2
    """
    raw, structure = flatten(tree)
    names = leaf_names(structure)
    leaves = tuple([to_array(leaf, who, name) for leaf, name in zip(raw, names, strict=True)])
    if not leaves:
        raise DataError("SF-DATA-002", f"{who}{tree!r} holds no array", ACCEPTED, "pass the client's arrays")
    rows = len(leaves[0])
    for leaf, name in zip(leaves, names, strict=True):
        if len(leaf) != rows:
            raise DataError(
                "SF-DATA-003",
                f"{who}{names[0]} has {rows} rows and {name} has {len(leaf)}",
                "arrays with one row per example, all of the same length",
                "look at how the arrays were cut",
            )
    return Part(structure, leaves, rows)


# -------------------------------------------------------------------------------------------- entries


def entries_of(client_data: Any) -> tuple[Ids, Sequence[Any]]:
    """The ids and the entries of a mapping or a sequence of clients.

    Raises:
        DataError: neither a mapping nor a sequence (SF-DATA-001), an id that is no str or int (012).

    Example:
        >>> entries_of({"a": 1, "b": 2}), entries_of([1, 2])
        ((('a', 'b'), [1, 2]), (range(0, 2), [1, 2]))
    """
    if isinstance(client_data, Mapping):
        return tuple([checked_id(key) for key in client_data]), list(client_data.values())
    if isinstance(client_data, Sequence) and not isinstance(client_data, str | bytes | bytearray | range):
        return range(len(client_data)), client_data
    if hasattr(client_data, "columns") and hasattr(client_data, "__getitem__"):
        came = "one data frame"
        do = "use Federation.from_frame(df, client=…, label=…)"
    elif hasattr(client_data, "__array__"):
        came = f"one array of shape {np.shape(client_data)}"
        do = "for one client write [(x, y)]; for more use Federation.from_arrays(x, y, client_ids=…)"
    elif hasattr(client_data, "__iter__") and not isinstance(client_data, str | bytes):
        came = f"client_data is a {type(client_data).__name__}"
        do = "write list(client_data) if it yields one entry per client, [client_data] if it is one client"
    else:
        came = f"client_data is {_short(client_data)}"
        do = "for one client write [(x, y)]"
    raise DataError("SF-DATA-001", came, ACCEPTED, do)


def checked_id(key: Any) -> ClientId:
    """A client's id as a plain str or int.

    Raises:
        DataError: it is neither (SF-DATA-012).

    Example:
        >>> checked_id(np.int64(3))
        3
    """
    if is_id(key):
        return str(key) if isinstance(key, str) else int(key)
    raise DataError(
        "SF-DATA-012",
        f"the client id {_short(key)}",
        "a str or an int",
        "name clients by str(…) or number them",
    )


def is_id(key: object) -> TypeGuard[str | int | np.integer[Any]]:
    """Whether a value can be a client's id: True and 1.0, which are equal to 1, cannot.

    Example:
        >>> is_id("a"), is_id(np.int64(1)), is_id(True)
        (True, True, False)
    """
    return isinstance(key, str | int | np.integer) and not isinstance(key, bool)


def read_client(key: ClientId, entry: Any, kept: Kept, batched: bool | None = None) -> Client:
    """One client's entry, read into arrays.

    Args:
        key: the client's id, for messages.
        entry: examples, or ready-made batches.
        kept: one-shot iterators that were read before; one that is read now is added.
        batched: what the entry is; None decides by its type.

    Raises:
        DataError: the entry is of no known kind (SF-DATA-002), an iterator that has run dry (014), an
            endless dataset (015), and what `read_part` raises.
    """
    who = f"client {key!r}: "
    if _is_table(entry):
        entry = entry.with_format("numpy")[:]
    if batched is None:
        batched = _is_batched(entry, who)
    if not batched:
        return Client(key, (read_part(entry, who),), batched=False)
    parts = [read_part(_pair(batch), who) for batch in _batches(entry, who, kept)]
    return Client(key, tuple([part for part in parts if part.rows]), batched=True)


def _is_batched(entry: Any, who: str) -> bool:
    if isinstance(entry, tuple | Mapping) or _is_array(entry):
        return False
    if isinstance(entry, list):
        return not _is_numbers(entry)
    if hasattr(entry, "__iter__") and not isinstance(entry, str | bytes | bytearray):
        return True
    raise DataError("SF-DATA-002", f"{who}the entry is {_short(entry)}", ACCEPTED, "pass the client's arrays")


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or hasattr(value, "detach")


def _is_table(entry: Any) -> bool:
    # A Hugging Face Dataset: iterating it would yield single rows, its columns are the examples.
    return all(hasattr(entry, name) for name in ("with_format", "column_names", "__getitem__"))


def _is_numbers(entry: list[Any]) -> bool:
    """Whether a list is an array of examples written out (``[]`` included), and not a list of batches."""
    first: Any = entry
    while isinstance(first, list) and first:
        first = first[0]
    return isinstance(first, numbers.Number | np.generic | str | list)


def _pair(batch: Any) -> Any:
    # torch's default collate turns the pair (x, y) into the list [x, y].
    return tuple(batch) if isinstance(batch, list) and batch and all(map(_is_array, batch)) else batch


def _batches(entry: Any, who: str, kept: Kept) -> list[Any]:
    if hasattr(entry, "as_numpy_iterator"):
        if hasattr(entry, "cardinality") and int(entry.cardinality()) == -1:
            raise DataError(
                "SF-DATA-015",
                f"{who}the dataset never ends",
                "a finite dataset: ready-made batches are used in one pass",
                "leave out .repeat(), or end the dataset with .take(n)",
            )
        return list(entry.as_numpy_iterator())
    if not hasattr(entry, "__next__"):
        return list(entry)
    if id(entry) not in kept:
        read = list(entry)
        if not read:
            raise DataError(
                "SF-DATA-014",
                f"{who}the one-shot iterator ({type(entry).__name__}) is already empty",
                "batches: an iterator can be read only once",
                "pass list(iterator), or an iterable that starts anew each time, such as a Dataset",
            )
        kept[id(entry)] = (_watched(entry, kept), read)
    return kept[id(entry)][1]


def forget(kept: Kept, entries: Iterable[Any]) -> None:
    """Let go of held iterators that are not among these entries: a loop that passes new ones holds only the latest."""
    present = {id(entry) for entry in entries}
    for key, (reference, _) in list(kept.items()):
        if key not in present and not isinstance(reference, weakref.ref):
            del kept[key]


def _watched(entry: Any, kept: Kept) -> Any:
    """A reference under which an iterator's batches are kept: they go with the iterator.

    Iterators that cannot be referenced weakly (those of lists, zip, map) are held, so that their id() is not given to
    another object.
    """
    at = id(entry)
    try:
        return weakref.ref(entry, lambda _: kept.pop(at, None))
    except TypeError:
        return entry


# ----------------------------------------------------------------------------------------- all clients


def joined(clients: Sequence[Client]) -> Tree:
    """All rows of all clients as one tree of arrays, client after client; None if there are no arrays.

    Empty parts take the others' structure, shape and dtype. Integers and floats of different clients are
    promoted to a common dtype. A single part is used as it is; more are copied into one array.

    Raises:
        DataError: clients with examples and clients with batches (SF-DATA-013), or with another structure
            (004), feature shape (005) or kind of dtype (006).
    """
    _check_one_kind(clients)
    parts = [part for client in clients for part in client.parts]
    filled = [part for part in parts if part.rows]
    if not filled:
        return unflatten(parts[0].structure, parts[0].leaves) if parts else None
    kinds = _signatures(clients)
    structure = filled[0].structure
    columns = []
    for i in range(len(filled[0].leaves)):
        dtype = np.result_type(*{dtypes[i] for _, _, dtypes in kinds})
        arrays = [part.leaves[i] for part in filled]
        columns.append(_joined(arrays, np.dtype(dtype)))  # a copy, so that later changes by the caller do not matter
    return unflatten(structure, columns)


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """`np.concatenate` into memory that a CPU device uses without a copy."""
    if dtype.hasobject:
        return np.concatenate(arrays, dtype=dtype)
    shape = (sum(len(array) for array in arrays), *arrays[0].shape[1:])
    return np.concatenate(arrays, out=aligned(shape, dtype))


def _check_one_kind(clients: Sequence[Client]) -> None:
    first: dict[bool, ClientId] = {}
    for client in clients:
        if client.rows:
            first.setdefault(client.batched, client.id)
    if len(first) == 2:
        raise DataError(
            "SF-DATA-013",
            f"client {first[False]!r} holds examples and client {first[True]!r} ready-made batches",
            "one kind for all clients",
            "pass (x, y) for every client, or a list of (x, y) batches for every client "
            "(a list is read as batches; one client's x and y belong in a tuple)",
        )


_Signature = tuple[Structure, tuple[tuple[int, ...], ...], tuple[np.dtype[Any], ...]]


def _signatures(clients: Sequence[Client]) -> dict[_Signature, ClientId]:
    """Every different element type that occurs, with the first client that has it; checked to agree."""
    found: dict[_Signature, ClientId] = {}
    for client in clients:
        for part in client.parts:
            if part.rows:
                shapes = tuple([leaf.shape[1:] for leaf in part.leaves])
                dtypes = tuple([leaf.dtype for leaf in part.leaves])
                found.setdefault((part.structure, shapes, dtypes), client.id)
    if len(found) > 1:
        (reference, first), *others = found.items()
        for other, key in others:
            _check_agree(reference, first, other, key)
    return found


def _check_agree(reference: _Signature, first: ClientId, other: _Signature, key: ClientId) -> None:
    who, whom = f"client {key!r}", f"client {first!r}"
    names, other_names = leaf_names(reference[0]), leaf_names(other[0])
    if reference[0] != other[0]:
        raise DataError(
            "SF-DATA-004",
            f"{who} has the arrays ({', '.join(other_names)}) and {whom} has ({', '.join(names)})",
            "the same structure at every client",
            "give every client the same tuple or the same dict keys; " + _TUPLE_HINT,
        )
    for name, shape, other_shape in zip(names, reference[1], other[1], strict=True):
        if shape != other_shape:
            raise DataError(
                "SF-DATA-005",
                f"{who}: one row of {name} has shape {other_shape}, at {whom} it has shape {shape}",
                "the same feature shape at every client",
                "give every client the same columns in the same order; " + _TUPLE_HINT,
            )
    for name, dtype, other_dtype in zip(names, reference[2], other[2], strict=True):
        kinds = {dtype.kind, other_dtype.kind}
        if len(kinds) > 1 and not kinds <= {"i", "u", "f"}:
            raise DataError(
                "SF-DATA-006",
                f"{who}: {name} has dtype {other_dtype}, at {whom} it has dtype {dtype}",
                "dtypes of one kind (integers and floats mix, other kinds do not)",
                f"convert {name} to one dtype at every client, with array.astype(…)",
            )


_TUPLE_HINT = "write one client's arrays as a tuple (x, y): a list is read as batches or as clients"


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
