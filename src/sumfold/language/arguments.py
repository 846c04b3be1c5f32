"""From what a user passes to the columns that a program runs on: one array a leaf, clients along its first axis.

Types are inferred from all clients together, leaf by leaf, or checked against the declared ones; whatever does not
fit is reported with the argument, the client and the leaf.
"""

from __future__ import annotations

import numbers
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold.data import Federation
from sumfold.errors import CompositionError, DataError, TypeMismatchError
from sumfold.language import types
from sumfold.language.containers import Container, open_container
from sumfold.language.types import SequenceType, StructType, TensorType, Type
from sumfold.language.value import Value, refill

__all__ = ["Argument", "Run", "of_clients", "of_server"]

Who = Callable[[int], str]
"""Names the holder of an entry, for messages."""


class Run(NamedTuple):
    """The column of a sequence leaf: all elements of all holders, one after the other.

    Attributes:
        arrays: the element's leaves, [N, …], padded to the largest size.
        kind: int32[N], which of `shapes` each element has; None when there is one.
        shapes: the combinations of sizes that occur.
        counts: int64[K], elements of each holder.
    """

    arrays: tuple[NDArray[Any], ...]
    kind: NDArray[np.int32] | None
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    counts: NDArray[np.int64]


class Argument(NamedTuple):
    """One argument of a call.

    Attributes:
        member: its type, without the placement, in the caller's containers.
        columns: for each leaf an array [K, …], or a `Run`; K is 1 for what is not at the clients.
        ids: the clients' ids when the caller named them.
        number: K.
    """

    member: Type
    columns: list[Any]
    ids: list[Any] | None
    number: int


def of_server(name: str, value: Any, declared: Type | None) -> Argument:
    """An argument that one party holds."""
    _refuse_traced(value, f"the argument {name!r}")
    member, columns = _columns([value], declared, "", lambda _: f"the argument {name!r}")
    return Argument(member, columns, None, 1)


def of_clients(name: str, value: Any, declared: Type | None) -> Argument:
    """An argument with one entry a client.

    Args:
        name: the parameter's.
        value: a list, tuple, array (first axis), mapping id -> entry or federation.
        declared: the member type, or None to infer it.

    Raises:
        TypeMismatchError: for something that is no collection of clients, or an entry of another type.
        DataError: for entries that cannot be used.
    """
    _refuse_traced(value, f"the argument {name!r}")
    ids: list[Any] | None = None
    entries: Any = value
    if isinstance(value, Federation):
        return _federation(name, value, declared)
    if isinstance(value, Mapping):
        ids, entries = list(value), list(value.values())
    elif not isinstance(value, list | tuple) and not (hasattr(value, "__array__") and np.ndim(value) > 0):
        raise TypeMismatchError(
            "SF-TYPE-070",
            f"the argument {name!r} is {_kind(value)}, and it is placed at CLIENTS",
            "a list with one entry a client",
            f"pass for example [{'entry' if declared is None else declared}, …], an array whose first axis are the "
            "clients, or a mapping id -> entry",
        )
    if not isinstance(value, list | tuple | Mapping):
        entries = np.asarray(value)

    def who(k: int) -> str:
        return f"client {k if ids is None else ids[k]!r} of the argument {name!r}"

    if declared is None and not len(entries) and not isinstance(entries, np.ndarray):
        raise DataError(
            "SF-DATA-070",
            f"the argument {name!r} has no client",
            "one client at least, to infer the type from",
            "declare the types: @sf.federated_computation(sf.type_at_clients(…))",
        )
    member, columns = _columns(entries, declared, "", who)
    return Argument(member, columns, ids, len(entries))


def _columns(entries: Any, declared: Type | None, path: str, who: Who) -> tuple[Type, list[Any]]:
    """The type and the columns of entries, which are alike or refused."""
    if isinstance(declared, SequenceType):
        return _sequence(entries, declared, path, who)
    if isinstance(declared, StructType):
        return _struct(entries, declared, path, who)
    if isinstance(declared, TensorType) or (declared is None and isinstance(entries, np.ndarray)):
        member, column = _tensor(entries, declared, path, who)
        return member, [column]
    if declared is not None:
        raise TypeMismatchError(
            "SF-TYPE-071",
            f"{who(0)} with the declared type {declared}",
            "arrays, structures and sequences",
            "declare these",
        )
    first = entries[0]
    _refuse(first, path, who(0))
    if open_container(first) is not None:
        return _struct(entries, None, path, who)
    if not _is_array(first) and isinstance(first, Iterable) and not isinstance(first, str | bytes):
        return _sequence(entries, None, path, who)
    member, column = _tensor(entries, None, path, who)
    return member, [column]


def _refuse(entry: Any, path: str, who: str) -> None:
    _refuse_traced(entry, who)
    if entry is None or isinstance(entry, str | bytes) or (callable(entry) and not _is_array(entry)):
        raise TypeMismatchError(
            "SF-TYPE-072",
            f"{_at(path)}{who} is {_kind(entry)}",
            "numbers, arrays, or structures of them",
            "encode strings as integers; leave objects out",
        )


def _refuse_traced(entry: Any, who: str) -> None:
    if isinstance(entry, jax.core.Tracer):
        raise CompositionError(
            "SF-COMP-054",
            f"{who} is traced by JAX: the computation was called inside jax.jit, vmap or grad",
            "numbers: a federated computation is a program of its own",
            "call it outside of jax.jit, and pass its result in",
        )
    if isinstance(entry, Value):
        raise CompositionError(
            "SF-COMP-050", f"{who} is a value of another computation", "numbers", "call it inside that computation"
        )


def _tensor(entries: Any, declared: TensorType | None, path: str, who: Who) -> tuple[TensorType, NDArray[Any]]:
    """One array with an entry a row."""
    if not isinstance(entries, np.ndarray):
        try:
            column = np.asarray(entries)
        except (ValueError, TypeError, jax.errors.TracerArrayConversionError):
            column = np.empty(len(entries), object)
        if column.dtype.kind not in "biufcV":
            _explain(entries, declared, path, who)
            column = np.stack([np.asarray(e) for e in entries])
    else:
        column = entries
        if column.dtype.kind not in "biufcV":
            _explain(list(entries), declared, path, who)
            column = np.stack([np.asarray(e) for e in entries])
    if not len(entries):
        shape = tuple(d or 0 for d in (declared.shape or ())) if declared else ()
        shape = shape if declared else np.shape(entries)[1:]
        column = np.zeros((0, *shape), declared.dtype if declared else np.asarray(entries).dtype)
    if declared is not None and len(entries):
        sizes = declared.shape
        fits = sizes is None or (
            len(sizes) == column.ndim - 1
            and all(a is None or a == b for a, b in zip(sizes, column.shape[1:], strict=True))
        )
        if not fits:
            shown = TensorType(jax.dtypes.canonicalize_dtype(column.dtype), column.shape[1:])
            raise TypeMismatchError(
                "SF-TYPE-073",
                f"{_at(path)}{who(0)} is {shown}",
                f"{declared}",
                "check the shape, or declare another type",
            )
        _check_dtype(column.dtype, declared.dtype, path, who)
    # Undeclared, JAX's own: 64 bits only where it has them.
    dtype: Any = declared.dtype if declared is not None else jax.dtypes.canonicalize_dtype(column.dtype)
    return TensorType(dtype, column.shape[1:]), _narrowed(column, dtype, path, who)


def _narrowed(column: NDArray[Any], dtype: Any, path: str, who: Who) -> NDArray[Any]:
    """The column in the dtype that JAX computes in, unless a whole number does not fit it."""
    computed: Any = jax.dtypes.canonicalize_dtype(dtype)
    if column.dtype == computed:
        return column
    if computed.kind in "iu" and column.dtype.kind in "iu" and column.size:
        info = np.iinfo(computed)
        wrong = (column < info.min) | (column > info.max)
        if wrong.any():
            k = int(np.argwhere(wrong)[0][0])
            raise DataError(
                "SF-DATA-071",
                f"{_at(path)}{who(k)} holds {column[wrong][0]}",
                f"integers that fit {computed}",
                "use floats, smaller integers, or switch on jax_enable_x64",
            )
    with np.errstate(over="ignore"):
        narrow = column.astype(computed)
    if computed.kind == "f" and column.dtype.kind == "f":
        wrong = np.isinf(narrow) & np.isfinite(column)
        if wrong.any():
            k = int(np.argwhere(wrong)[0][0])
            raise DataError(
                "SF-DATA-071",
                f"{_at(path)}{who(k)} holds {column[wrong][0]}",
                f"numbers that fit {computed}",
                "scale the values, or switch on jax_enable_x64",
            )
    return narrow


def _check_dtype(came: Any, needed: Any, path: str, who: Who) -> None:
    """Take what keeps its meaning: floats for floats, integers for integers and floats, bools for bools."""
    ranks = [jnp.bool_, jnp.integer, jnp.floating, jnp.complexfloating]
    rank = [next((i for i, kind in enumerate(ranks) if jnp.issubdtype(d, kind)), -1) for d in (came, needed)]
    if rank[1] < 0 or rank[0] < 0 or rank[0] > rank[1] or (rank[0] == 0) != (rank[1] == 0):
        raise TypeMismatchError(
            "SF-TYPE-074",
            f"{_at(path)}{who(0)} holds {jax.dtypes.canonicalize_dtype(came)}",
            f"{np.dtype(needed)}",
            "convert it with astype, or declare its dtype",
        )


def _explain(entries: Any, declared: TensorType | None, path: str, who: Who) -> None:
    """Say which entry is no array of numbers, or differs from the first."""
    first = None
    for k, entry in enumerate(entries):
        _refuse(entry, path, who(k))
        opened = None if _is_array(entry) else open_container(entry)
        try:
            array = np.asarray(entry)
        except (ValueError, TypeError):
            array = np.empty((), object)
        if array.dtype.kind not in "biufcV":
            if first is not None and opened is not None and declared is None:
                raise TypeMismatchError(
                    "SF-TYPE-075",
                    f"{_at(path)}{who(k)} is {_kind(entry)}",
                    f"{first[1]}, as {who(0)}",
                    "make them alike",
                )
            ragged = opened is not None and array.dtype == object
            raise TypeMismatchError(
                "SF-TYPE-072",
                f"{_at(path)}{who(k)} is {'a ragged ' + _kind(entry) if ragged else _kind(entry)}",
                str(declared) if declared is not None else "numbers, arrays, or structures of them",
                "encode strings as integers; pad ragged lists, or declare a SequenceType",
            )
        if first is None:
            first = (array.shape, _kind(entry) if opened is not None else f"an array of shape {array.shape}")
        elif array.shape != first[0]:
            raise TypeMismatchError(
                "SF-TYPE-075",
                f"{_at(path)}{who(k)} has shape {array.shape}",
                f"shape {first[0]}, as {who(0)}",
                "give every client the same shapes; declare a SequenceType for data of any length",
            )


def _struct(entries: Any, declared: StructType | None, path: str, who: Who) -> tuple[Type, list[Any]]:
    """A structure, column by column."""
    opened: list[tuple[Container, list[Any]]] = []
    for k, entry in enumerate(entries):
        children = _children_like(entries[0], entry) if opened else None
        if children is not None:
            opened.append((opened[0][0], children))
            continue
        _refuse(entry, path, who(k))
        taken = None if _is_array(entry) else open_container(entry)
        if taken is None:
            needed = f"{_kind(entries[0])}, as {who(0)}" if declared is None else str(declared)
            raise TypeMismatchError(
                "SF-TYPE-076",
                f"{_at(path)}{who(k)} is {_kind(entry)}",
                needed,
                "give every client the same structure",
            )
        opened.append(taken)
    names = declared.names if declared is not None else opened[0][0].names
    rows = [_children(taken, names, declared, path, lambda k=k: who(k)) for k, taken in enumerate(opened)]  # type: ignore[misc]
    container = _container(declared, opened[0][0] if opened else None)
    parts = []
    for i, name in enumerate(names):
        below = f"{path}.{name}" if name else f"{path}[{i}]"
        parts.append(_columns([row[i] for row in rows], declared[i] if declared is not None else None, below, who))
    member = StructType([(n, t) for n, (t, _) in zip(names, parts, strict=True)], container)
    return member, [column for _, columns in parts for column in columns]


_ALIKE = ({list, tuple}, {dict, OrderedDict})
"""Containers that a function of the user reads in the same way."""


def _container(declared: StructType | None, came: Container | None) -> Container | None:
    """The caller's container, so that a result looks like what was passed; the declared one where they differ."""
    if declared is None or came is None or declared.container is None:
        return came if declared is None else declared.container
    alike = any({declared.container.kind, came.kind} <= kinds for kinds in _ALIKE)
    return came if alike and came.names == declared.container.names else declared.container


def _children_like(first: Any, entry: Any) -> list[Any] | None:
    """The children of a list, tuple or dict that is built like the first; most are, and JAX need not look at them."""
    kind = type(entry)
    if kind not in {list, tuple, dict} or kind is not type(first) or len(entry) != len(first):
        return None
    if kind is dict:
        return [entry[key] for key in sorted(first)] if entry.keys() == first.keys() else None
    return list(entry)


def _children(
    taken: tuple[Container, list[Any]],
    names: Sequence[str | None],
    declared: StructType | None,
    path: str,
    who: Callable[[], str],
) -> list[Any]:
    """One holder's children in the order of the type."""
    container, children = taken
    if container.names == tuple(names):
        return children
    if None not in names and set(container.names) == set(names) and len(children) == len(names):
        by_name = dict(zip(container.names, children, strict=True))
        return [by_name[name] for name in names]
    if declared is not None and len(children) == len(names) and not any(container.names):
        return children
    came = f"{len(children)} elements" if not any(container.names) else f"the names {list(container.names)}"
    needed = f"{len(names)} elements" if not any(names) else f"the names {list(names)}"
    raise TypeMismatchError(
        "SF-TYPE-076",
        f"{_at(path)}{who()} has {came}",
        f"{declared}" if declared is not None else f"{needed}, as the first client",
        "give every client the same structure; lists of any length are declared as a SequenceType",
    )


# -- sequences ----------------------------------------------------------------------------------------


def _sequence(entries: Any, declared: SequenceType | None, path: str, who: Who) -> tuple[Type, list[Any]]:
    """The elements of all holders as one run."""
    element = None if declared is None else declared.element
    whole = [_whole(entry, element) for entry in entries]
    if all(w is not None for w in whole) and whole and element is not None:
        return _joined([w for w in whole if w is not None], element, path, who)
    lists = []
    for k, entry in enumerate(entries):
        _refuse(entry, path, who(k))
        if not isinstance(entry, Iterable) or isinstance(entry, Mapping):
            raise TypeMismatchError(
                "SF-TYPE-077",
                f"{_at(path)}{who(k)} is {_kind(entry)}",
                f"a list of elements of type {element}" if element is not None else "a list of elements",
                "pass a list, an array whose first axis are the elements, or a dataset",
            )
        lists.append(list(entry))
    counts = np.array([len(items) for items in lists], np.int64)
    flat = [item for items in lists for item in items]
    owner = np.repeat(np.arange(len(lists)), counts)
    inner: Who = lambda i: f"element {i - int(counts[: owner[i]].sum())} of {who(int(owner[i]))}"  # noqa: E731
    if not flat:
        if element is None:
            raise DataError(
                "SF-DATA-070",
                f"{_at(path)}{who(0)} and all others are empty",
                "one element at least",
                "declare the types",
            )
        kinds = types.leaves(element)
        shape = tuple(tuple(d or 0 for d in (t.shape or ())) for t in kinds if isinstance(t, TensorType))
        arrays = [np.zeros((0, *s), jax.dtypes.canonicalize_dtype(t.dtype)) for s, t in zip(shape, kinds, strict=True)]  # type: ignore[union-attr]
        return SequenceType(element), [Run(tuple(arrays), None, (shape,), counts)]
    groups = _alike(flat)
    if len(groups) == 1:
        member, columns = _columns(flat, element, path, inner)
        return SequenceType(member), [Run(tuple(columns), None, (tuple(c.shape[1:] for c in columns),), counts)]
    return _several(flat, groups, element, counts, path, inner)


def _several(
    flat: list[Any], groups: list[list[int]], element: Type | None, counts: NDArray[np.int64], path: str, who: Who
) -> tuple[Type, list[Any]]:
    """Elements of several sizes: each group is one kind, padded to the largest."""
    made = [_columns([flat[i] for i in g], element, path, lambda j, g=g: who(g[j])) for g in groups]  # type: ignore[misc]
    first = types.leaves(made[0][0])
    for g, (member, _) in zip(groups, made, strict=True):
        kinds = types.leaves(member)
        alike = len(kinds) == len(first) and all(
            a.dtype == b.dtype and len(a.shape or ()) == len(b.shape or ())  # type: ignore[union-attr]
            for a, b in zip(kinds, first, strict=True)
        )
        if not alike:
            raise TypeMismatchError(
                "SF-TYPE-078",
                f"{_at(path)}{who(g[0])} has the type {member}",
                f"{made[0][0]} up to sizes, as {who(0)}",
                "make all elements alike",
            )
    shapes = tuple(tuple(c.shape[1:] for c in columns) for _, columns in made)
    kind = np.zeros(len(flat), np.int32)
    arrays = []
    for leaf in range(len(first)):
        largest = tuple(np.max([s[leaf] for s in shapes], axis=0).tolist())
        arrays.append(np.zeros((len(flat), *largest), made[0][1][leaf].dtype))
    for k, (g, (_, columns)) in enumerate(zip(groups, made, strict=True)):
        kind[g] = k
        for array, column in zip(arrays, columns, strict=True):
            at: Any = (np.asarray(g), *(slice(d) for d in column.shape[1:]))
            array[at] = column
    member = made[0][0] if element is None else element
    return SequenceType(_unsized(member, shapes)), [Run(tuple(arrays), kind, shapes, counts)]


def _unsized(member: Type, shapes: Any) -> Type:
    """The type with the sizes that differ between shapes unknown."""
    leaves = []
    for i, t in enumerate(types.leaves(member)):
        assert isinstance(t, TensorType)
        sizes = zip(*[s[i] for s in shapes], strict=True)
        leaves.append(TensorType(t.dtype, tuple(d[0] if len(set(d)) == 1 else None for d in sizes)))
    return refill(member, leaves)


def _alike(flat: list[Any]) -> list[list[int]]:
    """Element numbers grouped by the shapes of their leaves, in order of appearance."""
    if all(isinstance(x, numbers.Number | np.generic) for x in flat):
        return [list(range(len(flat)))]
    groups: dict[Any, list[int]] = {}
    for i, item in enumerate(flat):
        groups.setdefault(tuple(np.shape(leaf) for leaf in _leaves(item)), []).append(i)
    return list(groups.values())


def _leaves(item: Any) -> list[Any]:
    opened = None if _is_array(item) else open_container(item)
    return [item] if opened is None else [leaf for child in opened[1] for leaf in _leaves(child)]


def _whole(entry: Any, element: Type | None) -> list[Any] | None:
    """A holder's elements as one array a leaf, when they come so: an array, or a structure of arrays."""
    if isinstance(element, TensorType) and element.shape is not None:
        if isinstance(entry, list | tuple) and element.shape == ():
            entry = np.asarray(entry) if len(entry) else np.zeros(0, element.dtype)
        if _is_array(entry) and np.ndim(entry) == len(element.shape) + 1:
            return [np.asarray(entry)]
        return None
    if not isinstance(element, StructType) or isinstance(entry, list):
        return None
    opened = None if _is_array(entry) else open_container(entry)
    if opened is None or len(opened[1]) != len(element):
        return None
    container, children = opened
    if None not in element.names and set(container.names) == set(element.names):
        children = [children[container.names.index(name)] for name in element.names]
    columns: list[Any] = []
    for child, t in zip(children, element, strict=True):
        taken = _whole(np.asarray(child) if isinstance(child, list) and isinstance(t, TensorType) else child, t)
        if taken is None:
            return None
        columns += taken
    return columns if len({len(c) for c in columns}) == 1 else None


def _joined(whole: list[list[Any]], element: Type, path: str, who: Who) -> tuple[Type, list[Any]]:
    """Runs that came as arrays."""
    counts = np.array([len(columns[0]) for columns in whole], np.int64)
    owner = np.repeat(np.arange(len(whole)), counts)
    inner: Who = lambda i: who(int(owner[i])) if len(owner) else who(0)  # noqa: E731
    arrays, leaves = [], []
    for i, t in enumerate(types.leaves(element)):
        assert isinstance(t, TensorType)
        try:
            flat = np.concatenate([columns[i] for columns in whole])
        except ValueError as error:
            raise TypeMismatchError(
                "SF-TYPE-075",
                f"{_at(path)}arrays of different shapes: {error}",
                f"elements of type {t}",
                "make them alike",
            ) from error
        member, column = _tensor(flat, t, path, inner)
        arrays.append(column)
        leaves.append(member)
    return SequenceType(refill(element, list(leaves))), [
        Run(tuple(arrays), None, (tuple(a.shape[1:] for a in arrays),), counts)
    ]


def _federation(name: str, federation: Federation, declared: Type | None) -> Argument:
    """Every client's rows as a sequence; ready-made batches as elements."""
    ids = list(federation.ids)

    def who(k: int) -> str:
        return f"client {ids[k]!r} of the argument {name!r}"

    entries = [_entry(federation, position) for position in range(len(ids))]
    if not isinstance(declared, SequenceType) and declared is not None:
        raise TypeMismatchError(
            "SF-TYPE-079",
            f"the argument {name!r} is a Federation",
            f"entries of type {declared}",
            "declare a SequenceType of its rows, or pass a list with one entry a client",
        )
    if declared is None and federation.batch_sizes is None:
        element = _row_type(federation.examples)
        member, columns = _sequence(entries, SequenceType(element), "", who)
    else:
        member, columns = _columns(entries, declared, "", who)
    return Argument(member, columns, ids, len(ids))


def _entry(federation: Federation, position: int) -> Any:
    rows = federation.take(position)
    if federation.batch_sizes is None:
        return rows
    ends = np.cumsum(federation.batch_sizes[position])
    return [
        jax.tree.map(lambda a, s=slice(end - n, end): a[s], rows)
        for end, n in zip(ends, federation.batch_sizes[position], strict=True)
    ]


def _row_type(examples: Any) -> Type:
    opened = None if _is_array(examples) else open_container(examples)
    if opened is None:
        return TensorType(jax.dtypes.canonicalize_dtype(examples.dtype), examples.shape[1:])
    container, children = opened
    return StructType([(n, _row_type(c)) for n, c in zip(container.names, children, strict=True)], container)


# -- words --------------------------------------------------------------------------------------------


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") or isinstance(value, numbers.Number)


def _kind(value: Any) -> str:
    if isinstance(value, str | bytes):
        return f"the string {value!r}"
    if value is None:
        return "None"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return (
            f"an array {TensorType(value.dtype, tuple(value.shape))}"
            if value.dtype != object
            else "an array of objects"
        )
    name = type(value).__name__
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def _at(path: str) -> str:
    return f"the leaf {path.lstrip('.')} of " if path else ""
