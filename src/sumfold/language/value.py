"""What a user's function holds while it is traced: values that have a type and a placement, but no numbers yet.

A value placed at the clients stands for one number *per client*; arithmetic between values of one placement happens
there, client by client. Values of a sequence type are read by `sequence_map`, `sequence_reduce` and `sequence_sum`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, PlacementError, SumfoldError, TypeMismatchError, user_facing
from sumfold.language import types
from sumfold.language.containers import open_container
from sumfold.language.placements import CLIENTS, Placement
from sumfold.language.types import FederatedType, StructType, TensorType, Type
from sumfold.tree import Leaf

__all__ = ["Elements", "Pending", "Undecided", "Value", "Wide", "flat", "local", "refill", "typed"]


class Elements(NamedTuple):
    """A sequence while it is traced.

    Attributes:
        handle: int32[], what the program passes around for it; see `sumfold.language.primitives`.
        element: the type of one element.
        shapes: the element's leaves as shapes, once for each combination of sizes that occurs in the data.
    """

    handle: Leaf
    element: Type
    shapes: tuple[tuple[Leaf, ...], ...]


class Wide(NamedTuple):
    """A 64-bit integer where JAX has 32 bits: int32[…, 8], its bytes, lowest first and the highest signed.

    It can be returned, and not computed with.
    """

    digits: Leaf


Part: TypeAlias = Leaf
"""One leaf of a value: an array, `Elements` for a sequence, or `Wide`."""


class Undecided(BaseException):
    """An argument met a use that tells where it lives, or that needs it to live somewhere: trace again.

    Not an error: a user's ``except Exception`` must not catch it.
    """

    def __init__(self, index: int, placement: Placement | None, certain: bool) -> None:
        self.index, self.placement, self.certain = index, placement, certain
        super().__init__(index)


def _operators(name: str) -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    function = getattr(operator, name)
    return (
        user_facing(lambda self, other: _binary(function, name, self, other)),
        user_facing(lambda self, other: _binary(lambda a, b: function(b, a), name, self, other)),
    )


_SYMBOLS = {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=", "and_": "&", "or_": "|", "xor": "^",
}  # fmt: skip


class Value:
    """A value of a traced computation.

    Values of one placement add, multiply, compare and so on, leaf by leaf, with each other and with numbers; a
    single array also with every leaf of a structure. Structures support ``[key]``, ``[i]``, ``.name`` and iteration.

    Attributes:
        type: a `FederatedType`, or a `SequenceType` inside a mapped function.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def spread(x):
        ...     return sf.federated_max(x) - sf.federated_min(x)
        >>> spread([1.0, 5.0, 3.0]).item()
        4.0
    """

    __slots__ = ("leaves", "traced_in", "type")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None  # so that NumPy leaves arithmetic to us
    type: Type
    leaves: tuple[Part, ...]

    def __init__(self, type: Type, leaves: tuple[Part, ...]) -> None:
        self.type, self.leaves, self.traced_in = type, leaves, _now_traced()

    @property
    def placement(self) -> Placement | None:
        """Where it lives; None for a sequence inside a mapped function."""
        return self.type.placement if isinstance(self.type, FederatedType) else None

    @property
    def member(self) -> Type:
        """The type without the placement."""
        return self.type.member if isinstance(self.type, FederatedType) else self.type

    def __repr__(self) -> str:
        return f"Value({self.type})"

    # -- structures -----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._struct("len()"))

    @user_facing
    def __iter__(self) -> Iterator[Any]:
        self._struct("iteration")
        return iter([self._child(i) for i in range(len(self))])

    @user_facing
    def __getitem__(self, key: Any) -> Any:
        if isinstance(self.member, TensorType):
            return _apply(lambda a: a[key], self)
        struct = self._struct(f"[{key!r}]")
        if isinstance(key, slice):
            return tuple(self._child(i) for i in range(len(struct))[key])
        if isinstance(key, str):
            if key not in struct.names:
                raise TypeMismatchError(
                    "SF-TYPE-031",
                    f"[{key!r}] of {self.type}",
                    f"one of its names {list(struct.names)}",
                    "check the spelling",
                )
            key = struct.names.index(key)
        if not -len(struct) <= int(key) < len(struct):
            raise IndexError(f"[{key}] of {self.type}, which has {len(struct)} elements")
        return self._child(int(key) % len(struct))

    def __getattr__(self, name: str) -> Any:
        member = object.__getattribute__(self, "member")
        if isinstance(member, StructType) and name in member.names:
            return self._child(member.names.index(name))
        names = f", which has the names {[n for n in member.names if n]}" if isinstance(member, StructType) else ""
        raise AttributeError(
            f"no attribute {name!r} of a value of type {object.__getattribute__(self, 'type')}{names}; inside of a "
            "computation a value has no numbers: apply functions with federated_map"
        )

    def _struct(self, use: str) -> StructType:
        if not isinstance(self.member, StructType):
            raise TypeMismatchError(
                "SF-TYPE-030",
                f"{use} of a value of type {self.type}",
                "a structure",
                "use federated_map for what happens to the array or the sequence itself",
            )
        return self.member

    def _child(self, i: int) -> Value:
        struct = self._struct("an element")
        before = sum(len(types.leaves(struct[j])) for j in range(i))
        element = struct[i]
        leaves = self.leaves[before : before + len(types.leaves(element))]
        if isinstance(self.type, FederatedType):
            return Value(FederatedType(element, self.type.placement, self.type.all_equal), leaves)
        return Value(element, leaves)

    # -- sequences, in the spelling of tf.data ---------------------------------------------------------

    def reduce(self, initial_state: Any, reduce_func: Callable[[Any, Any], Any]) -> Any:
        """`sequence_reduce(self, initial_state, reduce_func)`."""
        from sumfold.language.sequences import sequence_reduce

        return sequence_reduce(self, initial_state, reduce_func)

    def map(self, map_func: Callable[..., Any]) -> Any:
        """`sequence_map(map_func, self)`."""
        from sumfold.language.sequences import sequence_map

        return sequence_map(map_func, self)

    # -- what a value cannot do ------------------------------------------------------------------------

    @user_facing
    def __bool__(self) -> bool:
        raise _no_number(self, "`if`, `and`, `or`, `not` or bool()", "jnp.where inside federated_map")

    @user_facing
    def __float__(self) -> float:
        raise _no_number(self, "float()", "arithmetic, or federated_map")

    @user_facing
    def __int__(self) -> int:
        raise _no_number(self, "int()", "federated_map with .astype(jnp.int32)")

    @user_facing
    def __index__(self) -> int:
        raise _no_number(self, "indexing with, or range() of,", "federated_map")

    @user_facing
    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise _no_number(self, "a NumPy function", "jax.numpy inside federated_map")

    # -- arithmetic ------------------------------------------------------------------------------------

    __neg__ = user_facing(lambda self: _apply(operator.neg, self))
    __pos__ = user_facing(lambda self: _apply(operator.pos, self))
    __abs__ = user_facing(lambda self: _apply(abs, self))
    __invert__ = user_facing(lambda self: _apply(operator.invert, self))

    __add__, __radd__ = _operators("add")
    __sub__, __rsub__ = _operators("sub")
    __mul__, __rmul__ = _operators("mul")
    __truediv__, __rtruediv__ = _operators("truediv")
    __floordiv__, __rfloordiv__ = _operators("floordiv")
    __mod__, __rmod__ = _operators("mod")
    __pow__, __rpow__ = _operators("pow")
    __matmul__, __rmatmul__ = _operators("matmul")
    __and__, __rand__ = _operators("and_")
    __or__, __ror__ = _operators("or_")
    __xor__, __rxor__ = _operators("xor")
    __lt__, _ = _operators("lt")
    __le__, _ = _operators("le")
    __gt__, _ = _operators("gt")
    __ge__, _ = _operators("ge")
    __eq__, _ = _operators("eq")
    __ne__, _ = _operators("ne")
    del _


def _no_number(value: Value, use: str, instead: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-051",
        f"{use} on a value of type {value.type}, which has no number while the computation is traced",
        "operations that hold for every number",
        f"use {instead}",
    )


def _binary(function: Callable[[Any, Any], Any], name: str, a: Value, b: Any) -> Any:
    symbol = _SYMBOLS.get(name, name)
    if isinstance(b, Pending):
        b.decide(a.placement, certain=True)
    if isinstance(b, jax.core.Tracer):
        raise PlacementError(
            "SF-PLACE-003",
            f"{symbol} between a value of type {a.type} and a value without a placement",
            "two values of one placement",
            "give a mapped function all that it uses as arguments, federated_map(function, (a, b)); place other values "
            "with federated_value",
        )
    if not isinstance(b, Value | int | float | complex | bool | np.generic | np.ndarray | jax.Array):
        return NotImplemented
    if isinstance(b, Value) and a.placement is not b.placement:
        raise PlacementError(
            "SF-PLACE-002",
            f"{symbol} between {a.type} and {b.type}",
            "two values of one placement",
            "bring the server's value to the clients with federated_broadcast, or the clients' to the server with "
            "federated_sum or federated_mean",
        )
    return _apply(function, a, b)


def _apply(function: Callable[..., Any], *values: Any) -> Value:
    """The function, leaf by leaf; arrays and numbers meet every leaf of a structure."""
    placed = [v for v in values if isinstance(v, Value)]
    for value in placed:
        check_alive(value)
        if any(isinstance(leaf, Elements) for leaf in value.leaves):
            raise TypeMismatchError(
                "SF-TYPE-032",
                f"arithmetic on {value.type}",
                "arrays",
                "use sequence_map, sequence_reduce or sequence_sum",
            )
        check_narrow(value.type, value.leaves, "arithmetic on")
    whole = max(placed, key=lambda v: (not isinstance(v.member, TensorType), len(v.leaves)))
    shape = _shape(whole.member)
    for value in placed:
        if not isinstance(value.member, TensorType) and _shape(value.member) != shape:
            raise TypeMismatchError(
                "SF-TYPE-033",
                f"arithmetic between {whole.type} and {value.type}",
                "structures of the same form, or an array and a structure",
                "pick their elements, or write it with federated_map",
            )
    columns = []
    for v in values:
        single = not isinstance(v, Value) or isinstance(v.member, TensorType)
        columns.append([v.leaves[0] if isinstance(v, Value) else v] * len(whole.leaves) if single else list(v.leaves))
    try:
        leaves = tuple(jnp.asarray(foreign(function)(*row)) for row in zip(*columns, strict=True))
    except SumfoldError:
        raise
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            "SF-TYPE-034",
            f"arithmetic on {' and '.join(str(v.type) for v in placed)}: {_first_line(error)}",
            "shapes and dtypes that go together",
            "compare the types",
        ) from error
    member = refill(whole.member, [tensor_of(leaf) for leaf in leaves])
    placement = whole.placement
    return Value(FederatedType(member, placement) if placement is not None else member, leaves)


def check_narrow(t: Type, leaves: tuple[Part, ...], what: str) -> None:
    """Refuse a 64-bit integer that JAX cannot compute with.

    Raises:
        CompositionError: saying so.
    """
    if any(isinstance(leaf, Wide) for leaf in leaves):
        raise CompositionError(
            "SF-COMP-052",
            f"{what} {t}, which has 64 bits",
            "at most 32 bits while jax_enable_x64 is off",
            "return it as it is, or switch on jax_enable_x64",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _shape(member: Type) -> str:
    """The type with its tensors' dtypes and shapes left out."""
    return str(refill(member, [TensorType(np.int32)] * len(types.leaves(member))))


def tensor_of(leaf: Leaf) -> TensorType:
    """The type of an array; sizes that are not known are None."""
    return TensorType(leaf.dtype, tuple(d if isinstance(d, int) else None for d in leaf.shape))


def refill(member: Type, leaves: list[Any]) -> Type:
    """The same structure, containers included, with these types as leaves, which are used up."""
    rest = list(leaves)

    def walk(t: Type) -> Type:
        if isinstance(t, StructType):
            return StructType([(name, walk(e)) for name, e in t.elements], t.container)
        return rest.pop(0)  # type: ignore[no-any-return]

    return walk(member)


def typed(result: Any, what: str) -> tuple[Type, tuple[Part, ...]]:
    """What a local function returned, as a type and leaves.

    Raises:
        TypeMismatchError: for None, strings and other objects.
        PlacementError: for a placed value.
    """
    if isinstance(result, Value):
        if isinstance(result.type, FederatedType):
            raise PlacementError(
                "SF-PLACE-005",
                f"{what} gave a value of type {result.type}, which is placed",
                "arrays without a placement: it runs at one place",
                "apply intrinsics outside of mapped functions",
            )
        return result.type, result.leaves
    opened = open_container(result)
    if opened is not None:
        container, children = opened
        parts = [typed(child, what) for child in children]
        struct = StructType([(n, t) for n, (t, _) in zip(container.names, parts, strict=True)], container)
        return struct, tuple(leaf for _, leaves in parts for leaf in leaves)
    if result is None or isinstance(result, str | bytes):
        raise TypeMismatchError(
            "SF-TYPE-035",
            f"{what} returned {'None' if result is None else repr(result)}",
            "arrays, numbers, or structures of them",
            "end the function with `return …`" if result is None else "return numbers",
        )
    try:
        leaf = tree.strong(jnp.asarray(result))
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            "SF-TYPE-035",
            f"{what} returned a {type(result).__name__}",
            "arrays, numbers, or structures of them",
            "return arrays",
        ) from error
    return tensor_of(leaf), (leaf,)


def local(member: Type, leaves: tuple[Part, ...]) -> Any:
    """Leaves as what a local function is given: arrays in their containers, and sequences as values."""
    kinds = types.leaves(member)
    shown = [Value(t, (leaf,)) if isinstance(leaf, Elements) else leaf for t, leaf in zip(kinds, leaves, strict=True)]
    return types.join(member, shown)


def flat(leaves: tuple[Part, ...]) -> list[Leaf]:
    """The variables of a jaxpr behind a value's leaves: one each."""
    return [leaf[0] if isinstance(leaf, Elements | Wide) else leaf for leaf in leaves]


def with_flat(leaves: tuple[Part, ...], variables: list[Leaf]) -> tuple[Part, ...]:
    """The reverse of `flat`."""
    return tuple(
        leaf._replace(handle=v) if isinstance(leaf, Elements) else Wide(v) if isinstance(leaf, Wide) else v
        for leaf, v in zip(leaves, variables, strict=True)
    )


def _now_traced() -> Any:
    """What JAX traces at this moment; comparable."""
    state: Any = core.get_opaque_trace_state
    return state()


def check_alive(value: Value) -> None:
    """Refuse a value where another function is traced than the one that it belongs to.

    Raises:
        CompositionError: saying so.
    """
    if value.traced_in == _now_traced():
        return
    if any(isinstance(leaf, Elements) for leaf in value.leaves):
        raise CompositionError(
            "SF-COMP-060",
            f"a sequence of type {value.type} that is read where JAX traces another function: inside of jax.jit, vmap, "
            "grad, cond or a loop, or of a function that is applied to each element of a sequence",
            "a fold in the mapped function itself, which a client can do as it reads its rows",
            "fold first and use the result there; repeat a fold with Python's for",
        )
    raise CompositionError(
        "SF-COMP-050",
        f"a value of type {value.type} outside of the computation that it belongs to, or captured by a mapped function",
        "values of the computation that is being traced",
        "pass it in as an argument: of the computation, or of the mapped function, federated_map(function, (a, b))",
    )


class Pending:
    """An argument whose placement is still to be learnt from its use.

    Any use raises `Undecided`; the computation is then traced again with that argument placed. Intrinsics that accept
    one placement only are certain of it; arithmetic, selection and mapping guess the clients.
    """

    __slots__ = ("index", "name", "traced_in")
    __hash__ = None  # type: ignore[assignment]
    __array_ufunc__ = None

    def __init__(self, index: int, name: str) -> None:
        self.index, self.name, self.traced_in = index, name, _now_traced()

    def decide(self, placement: Placement | None, *, certain: bool) -> NoReturn:
        """Trace again with the argument at this placement.

        Raises:
            Undecided: always, but for
            CompositionError: where another function is traced than the argument's own.
        """
        if self.traced_in != _now_traced():
            raise CompositionError(
                "SF-COMP-050",
                f"the argument {self.name!r} outside of the computation that it belongs to, or captured by a mapped "
                "function",
                "arguments of the function itself",
                "pass it to the mapped function: federated_map(function, (a, b)); broadcast the server's first",
            )
        raise Undecided(self.index, placement, certain)

    def guess(self, *_: Any, **__: Any) -> Any:
        """Try the clients."""
        self.decide(CLIENTS, certain=False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self.decide(CLIENTS, certain=False)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.decide(None, certain=False)

    def _meets(self, other: Any) -> Any:
        placed = isinstance(other, Value)
        self.decide(other.placement if placed else CLIENTS, certain=placed)

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _meets
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _meets
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __lt__ = __le__ = __gt__ = __ge__ = _meets
    __eq__ = __ne__ = _meets
    __getitem__ = __iter__ = __len__ = __bool__ = __float__ = __int__ = __index__ = __call__ = guess
    __neg__ = __pos__ = __abs__ = __invert__ = guess
