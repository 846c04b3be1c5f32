"""From a user's function to a program: traced once by JAX on types, for a given kind of arguments.

Where an argument has no declared type, its placement is learnt from its use: it starts as `Pending`, an intrinsic that
takes one placement only decides it, and the function is traced again. A use that both placements allow (arithmetic,
federated_map) guesses the clients, and the server if that ends in a contradiction.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.extend.core import ClosedJaxpr, Literal

from sumfold import tree
from sumfold.errors import CompositionError, PlacementError, SumfoldError, TypeMismatchError
from sumfold.language import primitives, types
from sumfold.language.containers import open_container
from sumfold.language.evaluate import Sources
from sumfold.language.interpret import interpret, read
from sumfold.language.mapping import explained
from sumfold.language.placements import CLIENTS, Placement
from sumfold.language.plan import Place, Plan, plan
from sumfold.language.types import FederatedType, SequenceType, StructType, TensorType, Type
from sumfold.language.value import Elements, Part, Pending, Undecided, Value, check_alive, flat, local, typed
from sumfold.tree import Leaf

__all__ = ["Output", "Parameter", "Program", "place", "trace", "varies"]


class Parameter(NamedTuple):
    """One parameter of a computation as it is traced.

    Attributes:
        name: the parameter's.
        type: with its placement; None while that is still to be learnt.
        shapes: for each sequence leaf of the type, the combinations of sizes of its elements; () for the type's own.
    """

    name: str
    type: Type | None
    shapes: tuple[Any, ...] = ()


class Output(NamedTuple):
    """One value that a computation returns: its type, and how many of the program's outputs it takes."""

    type: Type
    parts: tuple[Part, ...]


class Program(NamedTuple):
    """A traced computation.

    Attributes:
        closed: the jaxpr; see `sumfold.language.primitives`.
        parameters: what it was traced for.
        result: its result's type.
        outputs: the values that it returns, in order.
        structure: the containers around them; JAX's, with `Output` as leaves.
        plan: its operations sorted into exchanges.
        sources: which variables the arguments are.
    """

    closed: ClosedJaxpr
    parameters: tuple[Parameter, ...]
    result: Type
    outputs: tuple[Output, ...]
    structure: Any
    plan: Plan
    sources: Sources


def place(attempt: Callable[[dict[int, Placement | None]], Program], learnt: dict[int, Placement | None]) -> Program:
    """Find where undeclared arguments live, by tracing until their uses agree.

    Args:
        attempt: traces with the placements known so far, by number of the argument.
        learnt: what an earlier call found.

    Raises:
        PlacementError: when no placement of the guessed arguments fits; the first contradiction found.
    """
    certain: dict[int, Placement | None] = dict(learnt)
    guessed: dict[int, Placement | None] = {}
    first: SumfoldError | None = None
    while True:
        try:
            return attempt({**guessed, **certain})
        except Undecided as undecided:
            if undecided.certain:
                certain[undecided.index] = undecided.placement
            else:
                guessed[undecided.index] = undecided.placement
        except (PlacementError, TypeMismatchError) as error:
            # The guess that was made last may be wrong: try the other placement, once.
            first = first or error
            open_guesses = [i for i, where in guessed.items() if where is CLIENTS and i not in certain]
            if not open_guesses:
                raise first from first.__cause__
            certain[open_guesses[-1]] = Placement.SERVER


def trace(function: Callable[..., Any], parameters: Sequence[Parameter], name: str) -> Program:
    """Trace a function on values of these types.

    Args:
        function: takes one argument a parameter.
        parameters: their types.
        name: the computation's, for messages.

    Raises:
        SumfoldError: at the user's line.
    """
    variables, places, kinds = _variables(parameters)
    found: list[tuple[Type, list[Output], Any]] = []

    def run(*given: Leaf) -> list[Leaf]:
        rest = list(given)
        arguments = [_argument(i, parameter, rest) for i, parameter in enumerate(parameters)]
        result = explained(function, arguments, f"the computation {name!r}", parameters)
        outputs: list[Output] = []
        member, structure = _result(result, outputs, name)
        found.append((member, outputs, structure))
        return [v for output in outputs for v in flat(output.parts)]

    closed = _with_zeros(jax.make_jaxpr(run)(*variables))
    result, outputs, structure = found[-1]
    made = plan(closed, places)
    invars = closed.jaxpr.invars
    of = {kind: [v for v, k in zip(invars, kinds, strict=True) if k == kind] for kind in _KINDS}
    shapes = dict(zip([*of["sequence"], *of["unplaced"]], _shapes_in_order(parameters, kinds), strict=True))
    sources = Sources(of["server"], of["single"], of["sequence"], of["unplaced"], shapes)
    return Program(closed, tuple(parameters), result, tuple(outputs), structure, made, sources)


def _with_zeros(closed: ClosedJaxpr) -> ClosedJaxpr:
    """The program with the zeros of its folds, which are constants, in their groups.

    Raises:
        TypeMismatchError: when a zero depends on an argument.
    """
    jaxpr = closed.jaxpr
    makers = {v: e for e in jaxpr.eqns for v in e.outvars}
    constants = dict(zip(jaxpr.constvars, closed.consts, strict=True))

    def value(variable: Any, line: str) -> Any:
        needed: set[int] = set()
        stack = [variable]
        while stack:
            v = stack.pop()
            if isinstance(v, Literal) or v in constants:
                continue
            if v not in makers or makers[v].primitive in {primitives.sum_p, primitives.broadcast_p}:
                raise TypeMismatchError(
                    "SF-TYPE-051",
                    f"zero of federated_aggregate (at {line}) depends on an argument",
                    "a constant: it is where the total starts, the same in every call",
                    "add what depends on arguments in report, at the server",
                )
            needed.add(id(makers[v]))
            stack += makers[v].invars
        env = dict(constants)
        interpret([e for e in jaxpr.eqns if id(e) in needed], env, {})
        return np.asarray(read(env, variable))

    equations = []
    for e in jaxpr.eqns:
        if e.primitive is primitives.sum_p and e.params["group"].kind == "fold":
            number = e.params["number"]
            zeros = [value(v, e.params["line"]) for v in e.invars[len(e.invars) - number :]]
            group = e.params["group"]._replace(zero=functools.partial(_fixed, zeros))
            e = e.replace(invars=e.invars[: len(e.invars) - number], params={**e.params, "group": group})  # noqa: PLW2901
        equations.append(e)
    return ClosedJaxpr(jaxpr.replace(eqns=equations), closed.consts)


def _fixed(zeros: list[Any], *_: Any) -> list[Any]:
    return [jnp.asarray(z) for z in zeros]


_KINDS = ("server", "single", "sequence", "unplaced")


def _leaves(parameter: Parameter) -> tuple[Type, ...]:
    assert parameter.type is not None
    member = parameter.type.member if isinstance(parameter.type, FederatedType) else parameter.type
    return types.leaves(member)


def varies(t: Type | None) -> bool:
    """Whether each client has a value of its own."""
    return isinstance(t, FederatedType) and t.placement is CLIENTS and not t.all_equal


def _variables(parameters: Sequence[Parameter]) -> tuple[list[Leaf], list[Place], list[str]]:
    """A variable a leaf, where it is known, and which kind of argument it is."""
    variables, places, kinds = [], [], []
    for parameter in parameters:
        if parameter.type is None:
            continue
        each = varies(parameter.type)
        for t in _leaves(parameter):
            if isinstance(t, SequenceType):
                variables.append(tree.shape((), "int32"))
                kinds.append("sequence" if each else "unplaced")
            elif isinstance(t, TensorType):
                variables.append(_shape_of(t, parameter.name))
                kinds.append("single" if each else "server")
            else:
                raise TypeMismatchError(
                    "SF-TYPE-071",
                    f"the parameter {parameter.name!r} of type {parameter.type}",
                    "tensors, sequences, structures of them, and placed ones",
                    "a function is captured, not passed",
                )
            places.append(Place(each, 0))
    return variables, places, kinds


def _shape_of(t: TensorType, name: str) -> Leaf:
    if t.dtype.kind not in "biufcV":
        raise TypeMismatchError(
            "SF-TYPE-072", f"the parameter {name!r} of type {t}", "numbers", "encode strings as integers"
        )
    if t.shape is None:
        raise TypeMismatchError(
            "SF-TYPE-080", f"the parameter {name!r} of type {t}", "a known number of dimensions", "declare float32[?,?]"
        )
    dtype: Any = jax.dtypes.canonicalize_dtype(t.dtype)
    if None not in t.shape:
        return tree.shape(t.shape, dtype)
    text = ", ".join(f"d{axis}" if d is None else str(d) for axis, d in enumerate(t.shape))
    # Unknown sizes of one axis are taken to be the same everywhere, as batches of x and y are.
    return tree.shape(export.symbolic_shape(text, scope=_SCOPE), dtype)


_SCOPE = export.SymbolicScope()


def _element_shapes(t: SequenceType, name: str) -> tuple[tuple[Leaf, ...], ...]:
    return (tuple(_shape_of(leaf, name) for leaf in types.leaves(t.element) if isinstance(leaf, TensorType)),)


def _sized(parameter: Parameter) -> list[tuple[tuple[Leaf, ...], ...]]:
    """For each sequence leaf, the shapes of its elements as JAX takes them."""
    sequences = [t for t in _leaves(parameter) if isinstance(t, SequenceType)]
    made = []
    for i, t in enumerate(sequences):
        if not parameter.shapes:
            made.append(_element_shapes(t, parameter.name))
            continue
        leaves = [leaf for leaf in types.leaves(t.element) if isinstance(leaf, TensorType)]
        dtypes: list[Any] = [jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves]
        made.append(
            tuple(tuple(tree.shape(s, d) for s, d in zip(sizes, dtypes, strict=True)) for sizes in parameter.shapes[i])
        )
    return made


def _shapes_in_order(parameters: Sequence[Parameter], kinds: list[str]) -> list[Any]:
    """Plain shapes of every sequence variable: those of clients first, then those without a placement."""
    ordered: dict[str, list[Any]] = {"sequence": [], "unplaced": []}
    for parameter in parameters:
        if parameter.type is not None:
            kind = "sequence" if varies(parameter.type) else "unplaced"
            ordered[kind] += [tuple(tuple(leaf.shape for leaf in k) for k in s) for s in _sized(parameter)]
    return ordered["sequence"] + ordered["unplaced"]


def _argument(index: int, parameter: Parameter, rest: list[Leaf]) -> Any:
    """What the user's function is given for a parameter; takes its variables from `rest`."""
    if parameter.type is None:
        return Pending(index, parameter.name)
    sized, parts = _sized(parameter), []
    for t in _leaves(parameter):
        variable = rest.pop(0)
        parts.append(Elements(variable, t.element, sized.pop(0)) if isinstance(t, SequenceType) else variable)
    if not isinstance(parameter.type, FederatedType):
        return local(parameter.type, tuple(parts))
    if parameter.type.placement is CLIENTS and parameter.type.all_equal:
        if any(isinstance(part, Elements) for part in parts):
            raise TypeMismatchError(
                "SF-TYPE-071",
                f"the parameter {parameter.name!r} of type {parameter.type}",
                "a sequence of each client's own",
                "declare type_at_clients(SequenceType(…))",
            )
        parts = primitives.broadcast(parts, "")
    return Value(parameter.type, tuple(parts))


def _result(result: Any, outputs: list[Output], name: str) -> tuple[Type, Any]:
    """The type of what was returned, its containers with an output's number as leaves; fills `outputs`."""
    if isinstance(result, Pending):
        result.decide(None, certain=False)
    if result is None:
        raise TypeMismatchError(
            "SF-TYPE-081",
            f"the computation {name!r} returned None",
            "a value, or a structure of values",
            "add a return",
        )
    if not isinstance(result, Value):
        opened = open_container(result)
        if opened is not None:
            container, children = opened
            made = [_result(child, outputs, name) for child in children]
            struct = StructType([(n, t) for n, (t, _) in zip(container.names, made, strict=True)], container)
            return struct, (container, [built for _, built in made])
        member, parts = typed(result, f"the computation {name!r}")
        outputs.append(Output(member, parts))
        return member, len(outputs) - 1
    if any(isinstance(part, Elements) and len(part.shapes) > 1 for part in result.leaves):
        raise CompositionError(
            "SF-COMP-058",
            f"the computation {name!r} returns {result.type}, whose elements have several sizes",
            "elements of one size",
            "pad them with sequence_map, or return what is computed of them",
        )
    check_alive(result)
    outputs.append(Output(result.type, result.leaves))
    return result.type, len(outputs) - 1


def rebuild(structure: Any, values: Sequence[Any]) -> Any:
    """The returned containers around the outputs' values."""
    if isinstance(structure, int):
        return values[structure]
    container, children = structure
    return container.join([rebuild(child, values) for child in children])
