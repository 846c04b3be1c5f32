"""What a client's half must be: a program of arrays, the same each time, that keeps nothing and calls nobody.

A client's half is traced once and then run as a program, many clients at a time, in threads, in other processes or on
other machines. So Python in a step runs when it is traced and never again: what it reads from a clock, a counter or
NumPy's generator is a constant from then on, another one in the next process; an array that it puts away is no array.
A call back into Python from within the program works on this machine alone. All of it shows in the traced program.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core, source_info_util
from numpy.typing import NDArray

from sumfold.errors import CompositionError, is_library

__all__ = ["calls", "check_calls", "check_kept", "check_repeatable", "leaked"]

_ADDRESS = re.compile(r"0x[0-9a-f]+")
_LEAKED_AT = re.compile(r"was created on line (.+?)(?: \(|\.\s|$)")
_PRINTS = "debug_"


def calls(program: core.Jaxpr) -> Iterator[tuple[str, str]]:
    """(primitive, where in the user's code) of everything in a program that calls back into Python.

    Example:
        >>> program = jax.make_jaxpr(lambda x: jax.debug.print("{}", x))(1.0)
        >>> [name.startswith("debug_") for name, where in calls(program.jaxpr)]
        [True]
    """
    for equation in program.eqns:
        name = equation.primitive.name
        if "callback" in name or name.startswith(_PRINTS):
            yield name, _where(equation)
        for inner in core.jaxprs_in_params(equation.params):
            yield from calls(inner)


def check_calls(programs: Mapping[str, core.ClosedJaxpr], *, prints: bool) -> None:
    """Refuse programs that call back into Python.

    A call whose result is used would work here and in no deployment, so it works nowhere. A print changes no number,
    so an algorithm is the same one without it: where programs run in this process it may stay.

    Args:
        programs: of a client's half, by what each of them does.
        prints: whether `jax.debug.print` and `jax.debug.callback` may stay.

    Raises:
        CompositionError: saying which call, and where it is.
    """
    for part, program in programs.items():
        for name, where in calls(program.jaxpr):
            printed = name.startswith(_PRINTS)
            if printed and prints:
                continue
            called = "jax.debug.print or jax.debug.callback" if printed else name
            raise CompositionError(
                "SF-COMP-029",
                f"client work that calls back into Python: {called} in the client's {part}{where}",
                "an array program that can be sent to a client",
                "take jax.debug.print and jax.debug.callback out of the model, loss and metrics; sf.Simulation() "
                "without deterministic=True shows them while you look for a mistake"
                if printed
                else f"write it in jax.numpy instead of {name}, or compute it beforehand, as part of the data; client "
                "work that is a Python function as a whole is an sf.core.HostWork",
            )


def check_repeatable(first: Mapping[str, core.ClosedJaxpr], second: Mapping[str, core.ClosedJaxpr], why: str) -> None:
    """Refuse client work that is another program each time it is traced.

    Args:
        first, second: the programs of two tracings, by what each of them does.
        why: what needs it.

    Raises:
        CompositionError: saying what differs, and where it is.
    """
    for part in first:
        found = _difference(first[part], second[part])
        if found is not None:
            raise CompositionError(
                "SF-COMP-114",
                f"client work that is another program each time it is traced: in the client's {part}, {found}",
                f"a program that depends on its arguments alone, for {why}",
                "draw from the key that the work is given (predict(params, x, key) has one), not from np.random or "
                "random; keep clocks, counters and files out of the model, loss and metrics",
            )


def check_kept(programs: Mapping[str, core.ClosedJaxpr]) -> None:
    """Refuse programs among whose constants is a value of another tracing.

    Raises:
        CompositionError: see `leaked`.
    """
    for program in programs.values():
        used = _uses(program.jaxpr)
        for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
            if isinstance(value, jax.core.Tracer):
                raise _leaked(f", and used{used.get(id(variable), ' later')}")


def leaked(error: BaseException) -> CompositionError:
    """What to raise where JAX meets a value that some function put away while it was traced."""
    at = _LEAKED_AT.search(str(error))
    if at:
        return _leaked(f", at {at[1]}")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_library(frame.filename):
            return _leaked(f", and used at {frame.filename}:{frame.lineno}:{frame.colno} ({frame.name})")
    return _leaked("")


def _leaked(where: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-115",
        f"a value that was put away while the function that made it was traced{where}",
        "functions without side effects: what they compute leaves them by return",
        "do not append to lists or set globals or attributes in the model, loss and metrics; return it as a metric",
    )


class _Met(NamedTuple):
    """An equation or a constant, as far as two tracings can be compared."""

    key: Any
    told: str
    where: str


def _difference(first: core.ClosedJaxpr, second: core.ClosedJaxpr) -> str | None:
    mine, theirs = list(_met(first.jaxpr, first.consts)), list(_met(second.jaxpr, second.consts))
    for a, b in zip(mine, theirs, strict=False):
        if a.key != b.key:
            return f"{a.told} became {b.told}{b.where}"
    if len(mine) != len(theirs):
        return f"{len(mine)} operations and constants became {len(theirs)}"
    same = _plain(first.jaxpr) == _plain(second.jaxpr)
    return None if same else "the same operations were put together in another way"


def _met(program: core.Jaxpr, constants: Any) -> Iterator[_Met]:
    used = _uses(program)
    for variable, value in zip(program.constvars, constants, strict=False):
        yield _Met(_bytes(value), _told(value), used.get(id(variable), ""))
    for equation in program.eqns:
        where, name = _where(equation), equation.primitive.name
        for value in (v.val for v in equation.invars if isinstance(v, core.Literal)):
            yield _Met(_bytes(value), _told(value), where)
        inner = [part for part in map(_inner, equation.params.values()) if part is not None]
        rest = {key: _plain(value) for key, value in equation.params.items() if _inner(value) is None}
        shapes = [str(v.aval) for v in (*equation.invars, *equation.outvars)]
        yield _Met((name, rest, shapes), name, where)
        for parts in inner:
            for part in parts:
                yield from _met(getattr(part, "jaxpr", part), getattr(part, "consts", ()))


def _uses(program: core.Jaxpr) -> dict[int, str]:
    """Where each variable, by its id, is first used."""
    return {id(v): _where(equation) for equation in reversed(program.eqns) for v in equation.invars}


def _inner(value: Any) -> tuple[Any, ...] | None:
    """The programs that an equation's parameter is made of, if it is."""
    parts = value if isinstance(value, (tuple, list)) else (value,)
    return tuple(parts) if parts and all(isinstance(p, (core.Jaxpr, core.ClosedJaxpr)) for p in parts) else None


def _array(value: Any) -> NDArray[Any]:
    is_key = jnp.issubdtype(getattr(value, "dtype", np.float32), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(value) if is_key else value)


def _bytes(value: Any) -> Any:
    array = _array(value)
    return array.dtype, array.shape, array.tobytes()


def _told(value: Any) -> str:
    array = _array(value)
    return (
        f"the constant {array.item():g}"
        if array.size == 1 and array.dtype.kind in "iuf"
        else (f"a constant {array.dtype}{list(array.shape)}")
    )


def _plain(value: Any) -> str:
    return _ADDRESS.sub("", str(value))


def _where(equation: Any) -> str:
    """The user's line of an equation, where the program knows it."""
    told = source_info_util.summarize(equation.source_info)
    return f" at {told}" if told and not told.startswith("unknown") else ""
