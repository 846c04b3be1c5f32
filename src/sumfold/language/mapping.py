"""Local functions inside a computation: traced by JAX on what one client (or the server) holds, then inlined.

A local function is traced by itself first. So what it captures from outside is seen, an intrinsic inside it is
refused, and its errors are reported at the user's line before anything runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, PlacementError, SumfoldError, TypeMismatchError
from sumfold.language import types
from sumfold.language.placements import CLIENTS, Placement
from sumfold.language.primitives import broadcast_p, check_p, sum_p
from sumfold.language.types import StructType, Type
from sumfold.language.value import Part, Pending, Undecided, Value, check_narrow, flat, local, typed, with_flat
from sumfold.tree import Leaf

__all__ = ["apply", "close", "explained", "spread"]


def apply(
    function: Callable[..., Any], arguments: Sequence[tuple[Type, tuple[Part, ...]]], at: Placement | None, what: str
) -> tuple[Type, tuple[Part, ...]]:
    """What a local function makes of arguments at one place, as a type and leaves.

    Args:
        function: of as many arguments.
        arguments: type and leaves of each.
        at: where it runs, for what it may capture; None inside another local function.
        what: the use, for messages, such as ``the function of federated_map``.

    Raises:
        TypeMismatchError: when JAX cannot trace it on these, or it returns no arrays.
        PlacementError, CompositionError: for captured values and intrinsics inside it.
    """
    variables = [v for _, leaves in arguments for v in flat(leaves)]
    closed, member, parts = close(function, arguments, what)
    captured = [c for c in closed.consts if isinstance(c, jax.core.Tracer)]
    if captured and at is CLIENTS:
        raise PlacementError(
            "SF-PLACE-006",
            f"{what} captures {len(captured)} value(s) without a placement from outside",
            "a function of its arguments alone, since it runs at the clients",
            "place the value with federated_value(x, SERVER), bring it with federated_broadcast, and pass it as an "
            "argument: federated_map(function, (value, broadcast))",
        )
    return member, with_flat(parts, jaxpr_as_fun(closed)(*variables))


def close(
    function: Callable[..., Any],
    arguments: Sequence[tuple[Type, tuple[Part, ...]]],
    what: str,
    *,
    of_elements: bool = False,
) -> tuple[ClosedJaxpr, Type, tuple[Part, ...]]:
    """Trace a local function on the shapes of its arguments; nothing is inlined.

    Args:
        function, arguments, what: as in `apply`.
        of_elements: whether it is applied to each element of a sequence, where no condition can be reported.
    """
    found: list[tuple[Type, tuple[Part, ...]]] = []
    lengths = [len(leaves) for _, leaves in arguments]
    for member, leaves in arguments:
        check_narrow(member, leaves, f"{what} on")

    def run(*variables: Leaf) -> list[Leaf]:
        rest, given = list(variables), []
        for (member, leaves), n in zip(arguments, lengths, strict=True):
            given.append(local(member, with_flat(leaves, rest[:n])))
            del rest[:n]
        found.append(typed(explained(function, given, what, arguments), what))
        return flat(found[-1][1])

    variables = [v for _, leaves in arguments for v in flat(leaves)]
    try:
        closed = jax.make_jaxpr(run)(*variables)
    except PlacementError as error:
        if error.code == "SF-PLACE-008":
            raise _intrinsic("an intrinsic", what).with_traceback(error.__traceback__) from None
        raise
    for equation in closed.jaxpr.eqns:
        if equation.primitive in {broadcast_p, sum_p}:
            raise _intrinsic(equation.primitive.name, what)
        if of_elements and equation.primitive is check_p:
            raise CompositionError(
                "SF-COMP-059",
                f"sequence_sum of integers inside of {what}",
                "a sum whose overflow can be reported: of a client's own sequence",
                "sum an element's rows with jnp.sum(x, axis=0, dtype=…)",
            )
    return closed, *found[-1]


def _intrinsic(name: str, what: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-053",
        f"{name} inside of {what}",
        "a local function, which sees one client's values and nobody else's",
        "use intrinsics outside of it, between two federated_map calls",
    )


def explained(function: Callable[..., Any], given: list[Any], what: str, arguments: Sequence[Any]) -> Any:
    """Call a user's function while it is traced; its errors are said in the user's terms.

    Args:
        function, given: the call.
        what: whose function it is.
        arguments: records with the type of each argument as their first or second field, for messages.
    """
    shown = ", ".join(_shown(a) for a in arguments)
    try:
        return foreign(function)(*given)
    except SumfoldError:
        raise
    except jax.errors.TracerBoolConversionError as error:
        refusal: SumfoldError = TypeMismatchError(
            "SF-TYPE-037",
            f"{what} decides by Python's `if`, `while`, `and`, `or`, `min` or `max` on a traced value",
            "one program for every value",
            "use jnp.where(condition, a, b), jnp.minimum or jnp.maximum, or jax.lax.cond",
        )
        raise refusal.with_traceback(error.__traceback__) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        refusal = TypeMismatchError(
            "SF-TYPE-038",
            f"{what} calls code that is not JAX (NumPy, TensorFlow, float(), int(), an index) on ({shown})",
            "a function that JAX can trace",
            "write it with jax.numpy: jnp.… in place of np.… and tf.…",
        )
        raise refusal.with_traceback(error.__traceback__) from error
    except Exception as error:  # whatever a user's function raises
        raise _foreign(error, given, what, shown).with_traceback(error.__traceback__) from error


def _shown(argument: Any) -> str:
    """The type of a record with a type and perhaps a name."""
    found = next((field for field in argument if isinstance(field, Type)), None)
    return str(found) if found is not None else f"the argument {argument[0]!r}"


def _foreign(error: Exception, given: list[Any], what: str, shown: str) -> BaseException:
    """An error of a user's function, or of JAX about a placed value, in the user's terms."""
    text = str(error)
    if f"{Value.__module__}.Value" in text or "operand 'Value' does not support ufuncs" in text:
        return PlacementError(
            "SF-PLACE-004",
            f"{what} applies a function of JAX or NumPy to a placed value itself",
            "arrays",
            "apply the function with federated_map(function, value); a value that a mapped function needs is given to "
            "it as an argument, federated_map(function, (a, b)), and brought from the server by federated_broadcast",
        )
    pending = [g for g in given if isinstance(g, Pending)]
    if pending and (f"{Value.__module__}.Pending" in text or "operand 'Pending' does not support ufuncs" in text):
        return Undecided(pending[0].index, None, certain=False)
    first = (text.strip().splitlines() or [""])[0]
    if "_DimExpr" in first:
        first += " (a size that is declared as ? is a symbol while the types are checked)"
    needed, do = "a function that JAX can trace on values of these types", "inside it the arguments are JAX arrays"
    if any(isinstance(g, Value | Pending) for g in given):
        needed = "arithmetic, [key], .name and intrinsics, which is what values of a computation have"
        do = "apply functions of arrays with federated_map"
    return TypeMismatchError(
        "SF-TYPE-036",
        f"{what} failed on ({shown}): {type(error).__name__}: {first}",
        needed,
        f"its own error is attached; {do}",
    )


def spread(function: Callable[..., Any], member: Type, leaves: tuple[Part, ...]) -> list[tuple[Type, tuple[Part, ...]]]:
    """One argument, or a structure's elements when the function takes that many.

    A structure whose names are the parameters' names is passed by name.
    """
    if isinstance(member, StructType) and len(member) != 1:
        wanted = _required(function)
        if wanted is not None and len(wanted) == len(member) and len(wanted) > 1:
            order = list(range(len(member)))
            if set(member.names) == set(wanted):
                order = [member.names.index(name) for name in wanted]
            parts, at = [], 0
            for i in range(len(member)):
                n = len(types.leaves(member[i]))
                parts.append((member[i], leaves[at : at + n]))
                at += n
            return [parts[i] for i in order]
    return [(member, leaves)]


def _required(function: Callable[..., Any]) -> list[str] | None:
    """The names of the parameters that must be given, or None when they cannot be seen."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    positional = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return [p.name for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
