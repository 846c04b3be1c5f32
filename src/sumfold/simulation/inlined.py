"""A traced program with those that it calls as parts of it, run equation by equation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.extend import core as jaxprs

__all__ = ["BY_ELEMENT", "Equation", "Variable", "computed", "inlined", "is_literal", "read"]

Equation: TypeAlias = Any
Variable: TypeAlias = Any

# fmt: off
BY_ELEMENT = frozenset({
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "copy_p", "cos",
    "div", "eq", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p",
    "log2", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "one_minus_square", "or", "pow",
    "real", "imag", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sqrt", "square", "sub", "tan", "tanh", "xor",
})
# fmt: on
"""Operations that compute each number of their result from the numbers at its place."""
_CALLS = frozenset({"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call"})


def inlined(closed: Any) -> Any:
    """The closed program without calls; derivatives are taken already, so custom rules have no more use."""
    return jax.make_jaxpr(lambda *given: _run(closed.jaxpr, closed.consts, given))(*closed.in_avals)


def is_literal(atom: Any) -> bool:
    """Whether this is a number in the program, and no variable."""
    return isinstance(atom, jaxprs.Literal)


def read(known: Mapping[Variable, Any], atom: Any) -> Any:
    """The value of a variable or a literal."""
    return atom.val if is_literal(atom) else known[atom]


def computed(equations: Iterable[Equation], known: dict[Variable, Any]) -> dict[Variable, Any]:
    """What is known once these equations are computed."""
    for equation in equations:
        results = equation.primitive.bind(*(read(known, atom) for atom in equation.invars), **equation.params)
        known |= zip(equation.outvars, results if equation.primitive.multiple_results else [results], strict=True)
    return known


def _run(program: Any, consts: Sequence[Any], given: Sequence[Any]) -> list[Any]:
    known = dict(zip([*program.constvars, *program.invars], [*consts, *given], strict=True))
    for equation in program.eqns:
        if equation.primitive.name not in _CALLS:
            known = computed([equation], known)
            continue
        called = next(equation.params[at] for at in ("jaxpr", "call_jaxpr", "fun_jaxpr") if at in equation.params)
        inner, own = (called.jaxpr, called.consts) if isinstance(called, jaxprs.ClosedJaxpr) else (called, [])
        values = [read(known, atom) for atom in equation.invars]
        known |= zip(equation.outvars, _run(inner, own, values), strict=True)
    return [read(known, atom) for atom in program.outvars]
