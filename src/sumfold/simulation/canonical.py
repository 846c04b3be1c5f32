"""Convolutions and max-pooling of a traced step, rewritten into the forms that XLA's CPU backend computes fast.

A round is a loop, and inside loops XLA:CPU leaves two things slow that it mends elsewhere:

- a convolution whose operands are not laid out (batch, space, features), (space, in, out): the gradients of every
  convolution are such, and any convolution of a channels-first model. It is the same sum in another order of axes, so
  the operands are transposed, convolved in that layout, and the result is transposed back.
- the gradient of max-pooling, which searches each window again. Here each window's places are compared with its
  maximum one by one; the first that reaches it takes the gradient, which is the rule of the original.

Both are rewritten in the step's own program, after differentiation and whatever the framework, inside nested jit,
scan, while, cond and checkpoint too. Nothing else of the program changes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jaxprs

__all__ = ["canonical"]

Equation: TypeAlias = Any

_REWRITTEN = frozenset({"conv_general_dilated", "reduce_window_max", "select_and_scatter_add"})
_WINDOW = 32
"""Places of a pooling window up to which it is taken apart; a larger one stays as it is."""


def canonical(step: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of arrays, its convolutions and max-pooling rewritten; without any, the same program.

    Example:
        >>> jax.config.update("jax_platforms", "cpu")
        >>> first = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME")      # channels first
        >>> x, w = jnp.ones((1, 2, 4, 4)), jnp.ones((3, 2, 3, 3))
        >>> bool(jnp.allclose(first(x, w), canonical(first)(x, w)))
        True
    """

    def rewritten(*args: Any) -> Any:
        traced, shapes = jax.make_jaxpr(step, return_shape=True)(*args)
        leaves = jax.tree.leaves(args)
        if _found(traced.jaxpr):
            results = _evaluate(traced.jaxpr, traced.consts, leaves)
        else:
            results = jaxprs.jaxpr_as_fun(traced)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten


def _found(jaxpr: Any) -> bool:
    """Whether a program or one inside it has something to rewrite."""
    return any(equation.primitive.name in _REWRITTEN or any(map(_found, _inner(equation))) for equation in jaxpr.eqns)


def _inner(equation: Equation) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, jaxprs.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, jaxprs.Jaxpr):
                yield one


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    """Run a program, equation by equation."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jaxprs.Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = _result(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _result(equation: Equation, values: list[Any]) -> list[Any]:
    """What one equation gives, rewritten where there is something to rewrite."""
    name, params = equation.primitive.name, equation.params
    if name == "conv_general_dilated":
        return [_convolved(values[0], values[1], params)]
    if name == "reduce_window_max" and _can_be_taken_apart(params):
        return [_pooled(values[0], params)]
    if name == "select_and_scatter_add" and _can_be_taken_apart(params) and params["select_prim"].name == "ge":
        return [_unpooled(values[0], values[1], params)]
    if name in ("jit", "pjit", "custom_jvp_call", "custom_vjp_call"):
        return _inlined(params, values)
    if name in ("scan", "while", "cond", "checkpoint", "remat2") and any(map(_found, _inner(equation))):
        params = _rewritten_params(params)
    results = equation.primitive.bind(*values, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _inlined(params: dict[str, Any], values: list[Any]) -> list[Any]:
    """A called program as part of this one; derivatives are taken already, so custom rules have no more use."""
    called = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    if isinstance(called, jaxprs.ClosedJaxpr):
        return _evaluate(called.jaxpr, called.consts, values)
    return _evaluate(called, [], values)


def _rewritten_params(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters with every program in them rewritten."""

    def rewrite(value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(one, jaxprs.ClosedJaxpr) for one in value):
            return tuple(map(rewrite, value))
        if isinstance(value, jaxprs.ClosedJaxpr):
            return _again(value.jaxpr, value.consts)
        if isinstance(value, jaxprs.Jaxpr):
            return _again(value, []).jaxpr
        return value

    return {name: rewrite(value) for name, value in params.items()}


def _again(jaxpr: Any, consts: Sequence[Any]) -> Any:
    shapes = [variable.aval for variable in jaxpr.invars]
    return jax.make_jaxpr(lambda *args: _evaluate(jaxpr, consts, args))(*shapes)


# -- convolutions


def _convolved(lhs: Any, rhs: Any, params: dict[str, Any]) -> Any:
    """A convolution of any layout by way of (batch, space, features), (space, in, out)."""
    numbers, space = params["dimension_numbers"], lhs.ndim - 2
    batch, feature, *places = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    axes = tuple(range(1, space + 1))
    plain = lax.ConvDimensionNumbers((0, space + 1, *axes), (space + 1, space, *range(space)), (0, space + 1, *axes))
    result = jaxprs.primitives.conv_general_dilated_p.bind(
        lax.transpose(lhs, (batch, *places, feature)),
        lax.transpose(rhs, (*window, into, out)),
        **{**params, "dimension_numbers": plain},
    )
    batch, feature, *places = numbers.out_spec
    order = [batch, *places, feature]  # where each axis of the result belongs
    return lax.transpose(result, [order.index(axis) for axis in range(len(order))])


# -- max-pooling


def _can_be_taken_apart(params: dict[str, Any]) -> bool:
    dilated = any(d != 1 for name in ("base_dilation", "window_dilation") for d in params.get(name, ()))
    places = 1
    for size in params["window_dimensions"]:
        places *= size
    return not dilated and places <= _WINDOW


def _places(operand: Any, params: dict[str, Any], fill: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Each place of the window, in order, and what stands there in every window."""
    strides, padding = params["window_strides"], params["padding"]
    padded = lax.pad(operand, fill, [(low, high, 0) for low, high in padding])
    counts = [
        (length - size) // stride + 1
        for length, size, stride in zip(padded.shape, params["window_dimensions"], strides, strict=True)
    ]
    for place in itertools.product(*map(range, params["window_dimensions"])):
        stops = [p + (n - 1) * s + 1 for p, n, s in zip(place, counts, strides, strict=True)]
        yield place, lax.slice(padded, place, stops, strides)


def _lowest(dtype: Any) -> Any:
    if jnp.issubdtype(dtype, jnp.floating):
        return jnp.asarray(-jnp.inf, dtype)
    return jnp.asarray(np.iinfo(dtype).min, dtype)


def _pooled(operand: Any, params: dict[str, Any]) -> Any:
    """The maximum of each window."""
    best = None
    for _, here in _places(operand, params, _lowest(operand.dtype)):
        best = here if best is None else lax.max(best, here)
    return best


def _unpooled(source: Any, operand: Any, params: dict[str, Any]) -> Any:
    """The gradient of max-pooling: `source` goes to the first place of each window that holds its maximum."""
    places = list(_places(operand, params, _lowest(operand.dtype)))
    best = _pooled(operand, params)
    taken = jnp.zeros(best.shape, bool)
    strides, padding = params["window_strides"], params["padding"]
    lengths = [length + low + high for length, (low, high) in zip(operand.shape, padding, strict=True)]
    zero = jnp.zeros((), source.dtype)
    total = jnp.zeros(lengths, source.dtype)
    for place, here in places:
        hit = (here == best) & ~taken
        taken = taken | hit
        ends = [p + (n - 1) * s + 1 for p, n, s in zip(place, best.shape, strides, strict=True)]
        spread = [(p, length - end, s - 1) for p, length, end, s in zip(place, lengths, ends, strides, strict=True)]
        total = total + lax.pad(jnp.where(hit, source, zero), zero, spread)
    starts = [low for low, _ in padding]
    return lax.slice(total, starts, [s + n for s, n in zip(starts, operand.shape, strict=True)])
