"""Types of federated computations: what is computed, and where it lives.

    TensorType        int32, float32[?,784]                an array
    StructType        <a=int32,b=<bool>>                   elements, with names or without
    SequenceType      int32*                               any number of values, one after the other
    FederatedType     {int32}@CLIENTS, int32@SERVER        a value at every member of a placement
    FunctionType      ({int32}@CLIENTS -> int32@SERVER)    a computation
    PlacementType     placement                            a placement itself

Types are values: two that say the same are equal, hash alike and print alike, and different types print differently.
A struct remembers the Python container that it was made from, so that results look like what was passed; that is
no part of the type.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias, final

import jax.numpy as jnp
import numpy as np

from sumfold.errors import CompositionError, TypeMismatchError, user_facing
from sumfold.language.containers import Container, default_container, open_container, step, word
from sumfold.language.placements import CLIENTS, SERVER, Placement

__all__ = [
    "FederatedType",
    "FunctionType",
    "PlacementType",
    "SequenceType",
    "StructType",
    "TensorType",
    "Type",
    "join",
    "leaves",
    "paths",
    "to_type",
    "type_at_clients",
    "type_at_server",
]

Shape: TypeAlias = tuple[int | None, ...] | None
"""Sizes, None where a size is unknown; None instead of all of them where even their number is."""


class Type:
    """What all types have in common. Where another type is asked for, anything that `to_type` takes will do.

    Example:
        >>> TensorType(np.int32, [None]).is_assignable_from((np.int32, [3]))
        True
        >>> to_type({"a": [np.int32, bool]}).check_assignable_from({"a": [np.int32, float]})
        Traceback (most recent call last):
        ...
        sumfold.errors.TypeMismatchError: <a=<int32,float32>>, whose a[1] is float32; needed: ...
    """

    __slots__ = ()

    def is_assignable_from(self, source: Any) -> bool:
        """Whether a value of the type `source` may be passed where this type is needed."""
        return _mismatch(self, to_type(source)) is None

    def is_equivalent_to(self, other: Any) -> bool:
        """Whether each of the two is assignable from the other."""
        return self.is_assignable_from(other) and to_type(other).is_assignable_from(self)

    def is_identical_to(self, other: Any) -> bool:
        """Whether the two are equal."""
        return bool(self == to_type(other))

    @user_facing
    def check_assignable_from(self, source: Any) -> None:
        """Raise a TypeMismatchError, with the first element that differs, unless this is assignable from `source`."""
        source = to_type(source)
        if found := _mismatch(self, source):
            raise _refused("SF-TYPE-010", "assignable to", self, source, found)

    @user_facing
    def check_equivalent_to(self, other: Any) -> None:
        """Raise a TypeMismatchError, with the first element that differs, unless the two are equivalent."""
        other = to_type(other)
        if found := _mismatch(self, other) or _swapped(_mismatch(other, self)):
            raise _refused("SF-TYPE-011", "equivalent to", self, other, found)

    @user_facing
    def check_identical_to(self, other: Any) -> None:
        """Raise a TypeMismatchError, with the first element that differs, unless the two are equal."""
        other = to_type(other)
        if found := _mismatch(self, other, exact=True):
            raise _refused("SF-TYPE-012", "identical to", self, other, found)

    def formatted_representation(self) -> str:
        """The type over several lines, each element of a struct on its own."""
        return _text(self, pretty=True)

    def __str__(self) -> str:
        return _text(self)


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class TensorType(Type):
    """The type of an array.

    Args:
        dtype: a dtype of NumPy, JAX, ml_dtypes, TensorFlow or PyTorch, its name, or bool, int, float, complex, str or
            bytes. A Python class stands for the dtype that JAX gives its values: int32, float32, complex64.
        shape: sizes, None where one is unknown; None where even their number is unknown.

    Example:
        >>> print(TensorType(np.float32, [None, 3]))
        float32[?,3]
        >>> TensorType(float).shape
        ()
    """

    dtype: np.dtype[Any]
    shape: Shape

    @user_facing
    def __init__(self, dtype: Any, shape: Any = ()) -> None:
        known = _dtype(dtype)
        if known is None:
            do = "pass for example np.float32, jnp.bfloat16 or int; for a key of JAX's: jax.random.key_data(key)"
            raise TypeMismatchError("SF-TYPE-014", f"{dtype!r} as a dtype", "one of numbers, booleans or strings", do)
        object.__setattr__(self, "dtype", known)
        object.__setattr__(self, "shape", _shape(shape))

    @property
    def is_fully_defined(self) -> bool:
        """Whether every size is known."""
        return self.shape is not None and None not in self.shape

    def __repr__(self) -> str:
        shape = "" if self.shape == () else f", {self.shape}"
        return f"TensorType({self.dtype.name!r}{shape})"


@final
@dataclass(frozen=True, slots=True, init=False, repr=False)
class StructType(Type):
    """The type of a structure: elements in an order, some or all with names.

    Args:
        elements: types or pairs (name, type), or a mapping, whose order is kept.
        container: what `join` rebuilds the structure as; without one an OrderedDict if all elements have names,
            otherwise a tuple.

    Example:
        >>> struct = StructType([("a", np.int32), ("b", [bool])])
        >>> print(struct, struct["a"], len(struct), struct.names)
        <a=int32,b=<bool>> int32 2 ('a', 'b')
    """

    elements: tuple[tuple[str | None, Type], ...]
    container: Container = field(compare=False)

    @user_facing
    def __init__(self, elements: Any, container: Container | None = None) -> None:
        if isinstance(elements, Mapping):
            elements = [(str(name), to_type(value)) for name, value in elements.items()]
        if not isinstance(elements, Iterable):
            raise _no_type(elements)
        named = tuple(_element(element) for element in elements)
        names = tuple(name for name, _ in named)
        known = [name for name in names if name is not None]
        name, count = Counter(known).most_common(1)[0] if known else ("", 0)
        if count > 1:
            raise CompositionError(
                "SF-COMP-042", f"{count} elements named {name!r}", "names that differ", "rename them"
            )
        if container is not None and container.names != names:
            came, needed = f"a container of children named {container.names}", f"the elements' names, {names}"
            raise CompositionError("SF-COMP-043", came, needed, "take names and children from the same container")
        object.__setattr__(self, "elements", named)
        object.__setattr__(self, "container", container or default_container(names))

    @property
    def names(self) -> tuple[str | None, ...]:
        """The elements' names, None where there is none."""
        return tuple(name for name, _ in self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    def __iter__(self) -> Iterator[Type]:
        return (element for _, element in self.elements)

    def __getitem__(self, key: int | str) -> Type:
        if isinstance(key, int):
            return self.elements[key][1]
        for name, element in self.elements:
            if name == key:
                return element
        needed, do = f"the name of an element of {self}", "use one of its names, or a position"
        raise TypeMismatchError("SF-TYPE-018", f"the name {key!r}", needed, do)

    def __repr__(self) -> str:
        parts = (repr(kind) if name is None else f"({name!r}, {kind!r})" for name, kind in self.elements)
        return f"StructType([{', '.join(parts)}])"


@final
@dataclass(frozen=True, slots=True, init=False)
class SequenceType(Type):
    """The type of any number of values, one after the other, such as a client's examples.

    Args:
        element: the type of each: tensors and structs of tensors.

    Example:
        >>> print(SequenceType(np.int32))
        int32*
    """

    element: Type

    @user_facing
    def __init__(self, element: Any) -> None:
        element = to_type(element)
        _forbid(
            "SF-COMP-041", "an element of a sequence", element, FederatedType, FunctionType, SequenceType, PlacementType
        )
        object.__setattr__(self, "element", element)


@final
@dataclass(frozen=True, slots=True, init=False)
class FunctionType(Type):
    """The type of a computation.

    Args:
        parameter: what it takes; several parameters are a struct. None if it takes nothing.
        result: what it returns.

    Example:
        >>> print(FunctionType([np.int32, bool], np.float32), FunctionType(None, np.int32))
        (<int32,bool> -> float32) ( -> int32)
    """

    parameter: Type | None
    result: Type

    @user_facing
    def __init__(self, parameter: Any, result: Any) -> None:
        object.__setattr__(self, "parameter", None if parameter is None else to_type(parameter))
        object.__setattr__(self, "result", to_type(result))


@final
@dataclass(frozen=True, slots=True, init=False)
class FederatedType(Type):
    """The type of a value that every member of a placement has.

    Args:
        member: the type of each member's value.
        placement: CLIENTS or SERVER.
        all_equal: whether all members have the same value; by default only at the server.

    Example:
        >>> print(FederatedType(np.int32, CLIENTS), FederatedType(np.int32, SERVER))
        {int32}@CLIENTS int32@SERVER
    """

    member: Type
    placement: Placement
    all_equal: bool

    @user_facing
    def __init__(self, member: Any, placement: Any, all_equal: bool | None = None) -> None:
        member = to_type(member)
        if not isinstance(placement, Placement):
            came, needed = f"{placement!r} as a placement", "CLIENTS or SERVER"
            raise TypeMismatchError("SF-TYPE-019", came, needed, "pass sf.CLIENTS or sf.SERVER")
        _forbid("SF-COMP-040", "a member of a federated type", member, FederatedType, FunctionType, PlacementType)
        object.__setattr__(self, "member", member)
        object.__setattr__(self, "placement", placement)
        object.__setattr__(self, "all_equal", placement.default_all_equal if all_equal is None else all_equal)


@final
@dataclass(frozen=True, slots=True)
class PlacementType(Type):
    """The type of a placement itself.

    Example:
        >>> print(PlacementType())
        placement
    """


@user_facing
def type_at_clients(t: Any, all_equal: bool = False) -> FederatedType:
    """The type of a value that each client has.

    Example:
        >>> print(type_at_clients(np.int32), type_at_clients(np.int32, all_equal=True))
        {int32}@CLIENTS int32@CLIENTS
    """
    return FederatedType(t, CLIENTS, all_equal)


@user_facing
def type_at_server(t: Any, all_equal: bool = True) -> FederatedType:
    """The type of a value that the server has.

    Example:
        >>> print(type_at_server((np.float32, [3])))
        float32[3]@SERVER
    """
    return FederatedType(t, SERVER, all_equal)


@user_facing
def to_type(obj: Any) -> Type:
    """The type that `obj` describes.

    Args:
        obj: a type; a dtype; a pair (dtype, shape); a container of such, which is kept, or a list of pairs
            (name, type); an array, or what has a shape and a dtype (`jax.ShapeDtypeStruct`, `tf.TensorSpec`, a
            Keras tensor or `InputSpec`, which is float32 unless it says otherwise); a data set, or its description,
            with an `element_spec`.

    Raises:
        TypeMismatchError: for anything else, such as None and Python numbers.

    Example:
        >>> print(to_type((np.float32, [None, 784])), to_type({"x": np.int32, "y": [bool, float]}))
        float32[?,784] <x=int32,y=<bool,float32>>
    """
    if isinstance(obj, Type):
        return obj
    if _dtype(obj) is not None:
        return TensorType(obj)
    if _is_tensor_pair(obj):
        return TensorType(*obj)
    if isinstance(obj, (list, tuple, Mapping)):
        return _struct(obj)
    if not isinstance(obj, type):
        if hasattr(obj, "element_spec"):
            return SequenceType(obj.element_spec)
        if hasattr(obj, "shape") and hasattr(obj, "dtype"):
            shape = obj.shape  # a Keras InputSpec may leave out the shape, and the dtype
            if shape is None and getattr(obj, "ndim", None) is not None:
                shape = (None,) * obj.ndim
            return TensorType("float32" if obj.dtype is None else obj.dtype, shape)
    return _struct(obj)


def leaves(t: Type) -> tuple[TensorType | SequenceType, ...]:
    """The tensors and sequences of a type, in the order of its structs.

    Example:
        >>> [str(leaf) for leaf in leaves(to_type({"a": [np.int32, bool], "b": SequenceType(float)}))]
        ['int32', 'bool', 'float32*']
    """
    found = []
    for path, leaf in _walk(t):
        if not isinstance(leaf, (TensorType, SequenceType)):
            came = f"{t}, in which {path or 'the whole'} is a {type(leaf).__name__}"
            raise TypeMismatchError("SF-TYPE-016", came, "structs of tensors and sequences", "ask for its member's")
        found.append(leaf)
    return tuple(found)


def paths(t: Type) -> tuple[str, ...]:
    """Where each of the `leaves` is, as words for a message; empty for the whole.

    Example:
        >>> paths(to_type({"a": [np.int32, {"b": bool}]}))
        ('a[0]', 'a[1].b')
    """
    return tuple(path for path, _ in _walk(t))


def join(t: Type, leaves: Sequence[Any]) -> Any:
    """The Python containers of a type around these values, one for each of its leaves.

    Example:
        >>> join(to_type({"a": [np.int32, bool], "b": float}), [1, True, 2.0])
        {'a': [1, True], 'b': 2.0}
    """
    count = sum(1 for _ in _walk(t))
    if count != len(leaves):
        came, needed = f"{len(leaves)} values for {t}", f"{count}, one for each tensor and sequence"
        raise TypeMismatchError("SF-TYPE-016", came, needed, "pass as many")
    rest = iter(leaves)

    def build(part: Type) -> Any:
        return part.container.join([build(element) for element in part]) if isinstance(part, StructType) else next(rest)

    return build(t)


def _walk(t: Type, at: str = "") -> Iterator[tuple[str, Type]]:
    if not isinstance(t, StructType):
        yield at, t
        return
    for index, (name, element) in enumerate(t.elements):
        yield from _walk(element, step(at, name, index))


def _forbid(code: str, use: str, t: Type, *kinds: type[Type]) -> None:
    """Refuse `t` if it is of one of these kinds, or has one in a struct or sequence."""
    for _, leaf in _walk(t):
        if isinstance(leaf, kinds):
            inside = "" if leaf is t else f", in which {leaf} is a {type(leaf).__name__}"
            needed = "structs of tensors" + ("" if SequenceType in kinds else " and sequences")
            raise CompositionError(code, f"{t} as {use}{inside}", needed, "give it a place of its own, outside")


def _text(t: Type, pretty: bool = False) -> str:
    match t:
        case TensorType(dtype=dtype, shape=None):
            return f"{dtype.name!r}(shape=None)"
        case TensorType(dtype=dtype, shape=shape):
            sizes = ",".join("?" if size is None else str(size) for size in shape or ())
            return f"{dtype.name}[{sizes}]" if sizes else str(dtype.name)
        case StructType(elements=elements):
            parts = [("" if name is None else f"{word(name)}=") + _text(part, pretty) for name, part in elements]
            if pretty and parts:
                return "<\n" + "\n".join("  " + line for line in ",\n".join(parts).split("\n")) + "\n>"
            return f"<{','.join(parts)}>"
        case SequenceType(element=element):
            return f"{_text(element, pretty)}*"
        case FunctionType(parameter=parameter, result=result):
            return f"({'' if parameter is None else _text(parameter, pretty)} -> {_text(result, pretty)})"
        case FederatedType(member=member, placement=placement, all_equal=all_equal):
            text = _text(member, pretty)
            return f"{text}@{placement}" if all_equal else f"{{{text}}}@{placement}"
        case _:
            return "placement"


class _Mismatch(NamedTuple):
    """Where a source first differs from a target, and how: what it has there, and what the target needs."""

    path: str
    came: str
    needed: str


def _swapped(found: _Mismatch | None) -> _Mismatch | None:
    return found and _Mismatch(found.path, found.needed, found.came)


def _mismatch(target: Type, source: Type, at: str = "", exact: bool = False) -> _Mismatch | None:
    """The first difference that keeps `source` from being assigned to `target`; if `exact`, the first at all."""
    match target, source:
        case TensorType(shape=t), TensorType(shape=s):
            fits = target.dtype == source.dtype and (t == s or (not exact and _takes(t, s)))
        case StructType(), StructType():
            return _mismatch_of_structs(target, source, at, exact)
        case SequenceType(), SequenceType():
            return _mismatch(target.element, source.element, f"{at}*", exact)
        case FunctionType(parameter=None), FunctionType(parameter=None):
            return _mismatch(target.result, source.result, f"{at}(result)", exact)
        case FunctionType(parameter=Type() as t), FunctionType(parameter=Type() as s):
            # A function that is passed must take all that it will be called with: the parameters' roles are reversed.
            parameter = _swapped(_mismatch(s, t, f"{at}(parameter)", exact))
            return parameter or _mismatch(target.result, source.result, f"{at}(result)", exact)
        case FederatedType(all_equal=t), FederatedType(all_equal=s):
            fits = target.placement is source.placement and (t == s or (not exact and s))
            if fits:
                return _mismatch(target.member, source.member, at, exact)
        case _:
            fits = isinstance(target, PlacementType) and isinstance(source, PlacementType)
    return None if fits else _Mismatch(at, str(source), str(target))


def _takes(target: Shape, source: Shape) -> bool:
    if target is None or source is None:
        return target is None
    return len(target) == len(source) and all(t in (None, s) for t, s in zip(target, source, strict=True))


def _mismatch_of_structs(target: StructType, source: StructType, at: str, exact: bool) -> _Mismatch | None:
    if len(target) != len(source):
        return _Mismatch(at, str(source), str(target))
    for index, ((name, needed), (given, came)) in enumerate(zip(target.elements, source.elements, strict=True)):
        if given != name and (exact or given is not None):
            said = ["without a name" if n is None else f"named {word(n)}" for n in (given, name)]
            return _Mismatch(f"{at}[{index}]", *said)
        if found := _mismatch(needed, came, step(at, name, index), exact):
            return found
    return None


def _refused(code: str, relation: str, target: Type, source: Type, found: _Mismatch) -> TypeMismatchError:
    came, needed = str(source), f"a type {relation} {target}"
    if found.came != came:
        where = f"whose {found.path}" if found.path else "which"
        came, needed = f"{came}, {where} is {found.came}", f"{needed}, {where} is {found.needed}"
    return TypeMismatchError(code, came, needed, "cast, reshape or rename what is given, or change the needed type")


_PYTHON = {bool: "bool", int: "int32", float: "float32", complex: "complex64", str: "str", bytes: "str"}
_ALIAS = {kind.__name__: name for kind, name in _PYTHON.items()}
_ABSTRACT = {
    *(np.generic, np.number, np.integer, np.signedinteger, np.unsignedinteger),
    *(np.inexact, np.floating, np.complexfloating, np.flexible, np.character),
}
_NAME = re.compile(r"u?int\d+|b?float\d+(_\w+)?|complex\d+")


def _dtype(obj: Any) -> np.dtype[Any] | None:
    """The dtype that `obj` stands for, in the machine's byte order; None if it stands for none."""
    if isinstance(obj, type) and obj in _PYTHON:
        return np.dtype(_PYTHON[obj])
    if isinstance(obj, str):
        return _dtype_of_name(obj)
    if type(obj).__name__ == "dtype" and type(obj).__module__ == "torch":
        return _dtype_of_name(str(obj).removeprefix("torch."))
    given = getattr(obj, "as_numpy_dtype", obj)  # a dtype of TensorFlow's, for which a string is an object
    if given is object and given is not obj:
        return np.dtype(np.str_)
    if isinstance(given, type):
        concrete = issubclass(given, np.generic) and given not in _ABSTRACT
        given = np.dtype(given) if concrete else getattr(given, "dtype", None)  # jnp.float32 is a class with a dtype
    if not isinstance(given, np.dtype):
        return None
    if given.kind in "SUT":
        return np.dtype(np.str_)
    number = given.kind not in "mM" and jnp.issubdtype(given, np.number)
    return np.dtype(given.name) if number or given.kind == "b" else None


def _dtype_of_name(name: str) -> np.dtype[Any] | None:
    name = _ALIAS.get(name, name)
    if name not in _ALIAS and not _NAME.fullmatch(name):
        return None
    try:
        return np.dtype(name)
    except TypeError:  # a number of bits that there is not
        return None


def _is_shape(obj: Any) -> bool:
    """Whether `obj` is None, a list or tuple of sizes, or a shape of TensorFlow's."""
    if isinstance(obj, (list, tuple)):
        return all(size is None or type(size) is int or isinstance(size, np.integer) for size in obj)
    return obj is None or hasattr(obj, "as_list")


def _shape(obj: Any) -> Shape:
    sizes = (None if obj.rank is None else obj.as_list()) if hasattr(obj, "as_list") else obj
    if sizes is None:
        return None
    if not _is_shape(sizes) or any(size is not None and size < 0 for size in sizes):
        needed, do = "a list or tuple of sizes, None where one is unknown, or None", "write for example (None, 784)"
        raise TypeMismatchError("SF-TYPE-015", f"{obj!r} as a shape", needed, do)
    return tuple(None if size is None else int(size) for size in sizes)


def _is_tensor_pair(obj: Any) -> bool:
    return type(obj) is tuple and len(obj) == 2 and _dtype(obj[0]) is not None and _is_shape(obj[1])


def _is_named(obj: Any) -> bool:
    """Whether `obj` is a pair (name, type)."""
    return type(obj) is tuple and len(obj) == 2 and isinstance(obj[0], str) and not _is_tensor_pair(obj)


def _element(obj: Any) -> tuple[str | None, Type]:
    if _is_named(obj) or (type(obj) is tuple and len(obj) == 2 and obj[0] is None):
        return obj[0], to_type(obj[1])
    return None, to_type(obj)


def _struct(obj: Any) -> Type:
    """The type of a container of types."""
    if isinstance(obj, (list, tuple)):
        if _is_named(obj) and _dtype(obj[0]) is None:
            return StructType([obj])
        if any(map(_is_named, obj)):
            return StructType(obj)
    opened = open_container(obj)
    if opened is not None:
        container, children = opened
        return StructType([(n, to_type(c)) for n, c in zip(container.names, children, strict=True)], container)
    if isinstance(obj, (list, tuple, Mapping)):  # of a class that JAX does not know
        return StructType(obj)
    raise _no_type(obj)


def _no_type(obj: Any) -> TypeMismatchError:
    came, do = f"{obj!r}, a {type(obj).__name__}", "pass a dtype such as np.float32, or a pair (np.float32, [3])"
    if obj is None:
        came, do = "None", "pass a dtype; for a computation that takes nothing: FunctionType(None, …)"
    elif isinstance(obj, (bool, int, float, complex, bytes)):
        came, do = f"the value {obj!r}", f"pass its dtype: {type(obj).__name__}, or one of NumPy's"
    elif isinstance(obj, str):
        came, do = f"the string {obj!r}, which is no dtype's name", 'write for example "float32", or np.float32'
    needed = "a type, dtype, pair (dtype, shape), array or specification, or a container of such"
    return TypeMismatchError("SF-TYPE-013", came, needed, do)
