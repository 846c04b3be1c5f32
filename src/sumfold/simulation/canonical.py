"""Convolutions and pooling of a traced step, rewritten into the forms that XLA's CPU backend computes fast.

A round is a loop, and inside loops XLA:CPU leaves two things slow that it mends elsewhere:

- a convolution whose operands are not laid out (batch, space, features), (space, in, out): the gradients of every
  convolution are such, and any convolution of a channels-first model. It is the same sum in another order of axes, so
  the operands are transposed, convolved in that layout, and the result is transposed back. Groups are convolved one
  by one, groups of one channel are sums of slices, and a window of one place is a matrix product. Few channels, and
  volumes, become products with matrices of patches (`sumfold.simulation.patches`).
- pooling. The gradient of a maximum searches each window again: here each window's places are compared with its
  maximum one by one, and the first that reaches it takes the gradient, which is the rule of the original. A sum over
  windows, and its gradient, goes element by element: here it is a sum of slices.

Both are rewritten in the step's own program, after differentiation and whatever the framework, inside nested jit,
scan, while, cond and checkpoint too; so are products over several axes (`sumfold.simulation.contraction`) and products
in loops over time (`sumfold.simulation.recurrent`). Nothing else of the program changes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core as jaxprs

from sumfold.core.client import ClientHalf
from sumfold.simulation import contraction, patches
from sumfold.simulation import winograd as minimal
from sumfold.simulation.recurrent import multiplies, scanned

__all__ = ["canonical", "fast", "rewrites"]

Equation: TypeAlias = Any

_REWRITTEN = frozenset({"conv_general_dilated", "reduce_window_max", "reduce_window_sum", "select_and_scatter_add"})
_CHECKPOINTS = frozenset({"checkpoint", "remat2"})
"""Equations whose program has no place for arrays of its own."""
_CHANNELS, _ROWS = 16, 8
"""Channels and rows from which a convolution is given the padding that it lacks; see benchmarks/convolutions.py."""
_GROUPS = 32
"""Groups of a convolution up to which they are computed one by one."""
_PLACES = 64
"""Places of a window up to which channels that are convolved each by itself become a sum of slices."""
_WINDOW = 32
"""Places of a pooling window up to which it is taken apart; a larger one stays as it is."""
_VECTOR = 16
"""Channels below which the gradient of max-pooling is not put together of rows so short."""


def canonical(step: Callable[..., Any], winograd: bool = False) -> Callable[..., Any]:
    """The same function of arrays, its convolutions and pooling rewritten; without any, the same program.

    Args:
        step: the function, differentiated already.
        winograd: whether 3×3 convolutions of many channels take the form of `sumfold.simulation.winograd`: about half
            the time, one or two seconds more of compilation per layer, ten times the rounding error.

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
            results = _evaluate(traced.jaxpr, traced.consts, leaves, winograd)
        else:
            results = jaxprs.jaxpr_as_fun(traced)(*leaves)
        return jax.tree.unflatten(jax.tree.structure(shapes), results)

    return rewritten


def rewrites(step: Callable[..., Any], *args: Any) -> bool:
    """Whether there is anything in the function of these arrays that `canonical` rewrites."""
    return _found(jax.make_jaxpr(step)(*args).jaxpr)


def fast(half: ClientHalf) -> ClientHalf:
    """A client's half with the rewritten step: for a CPU."""
    return half if half.step is None else half._replace(step=canonical(half.step, winograd=True))


def _found(jaxpr: Any) -> bool:
    """Whether a program or one inside it has something to rewrite."""
    return any(
        equation.primitive.name in _REWRITTEN
        or (equation.primitive.name == "scan" and any(map(multiplies, _inner(equation))))
        or (equation.primitive.name == "dot_general" and contraction.joined(equation.params["dimension_numbers"]))
        or any(map(_found, _inner(equation)))
        for equation in jaxpr.eqns
    )


def _inner(equation: Equation) -> Iterator[Any]:
    """The programs among an equation's parameters."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, jaxprs.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, jaxprs.Jaxpr):
                yield one


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], winograd: bool) -> list[Any]:
    """Run a program, equation by equation."""
    mirrored: set[Any] = set()
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jaxprs.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            results = [_convolved(values[0], values[1], equation.params, winograd, equation.invars[1] in mirrored)]
        else:
            results = _result(equation, values, winograd)
        if equation.primitive.name == "rev":
            mirrored.update(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _result(equation: Equation, values: list[Any], winograd: bool) -> list[Any]:
    """What one equation gives, rewritten where there is something to rewrite."""
    name, params = equation.primitive.name, equation.params
    if name == "reduce_window_sum" and _can_be_taken_apart(equation):
        return [_summed(values[0], params)]
    if name == "reduce_window_max" and _can_be_taken_apart(equation):
        return [_pooled(values[0], params)]
    if name == "select_and_scatter_add" and _can_be_taken_apart(equation) and params["select_prim"].name == "ge":
        return [_unpooled(values[0], values[1], params)]
    if name == "dot_general" and contraction.joined(params["dimension_numbers"]):
        return [contraction.product(*values, **params)]
    if name in ("jit", "pjit", "custom_jvp_call", "custom_vjp_call"):
        return _inlined(params, values, winograd)
    if name == "scan" and multiplies(params["jaxpr"].jaxpr):
        params = _rewritten_params(name, params, winograd)
        apart = scanned(values, params, functools.partial(_evaluate, winograd=winograd))
        if apart is not None:
            return apart
    elif name in {"scan", "while", "cond", *_CHECKPOINTS} and any(map(_found, _inner(equation))):
        params = _rewritten_params(name, params, winograd)
    results = equation.primitive.bind(*values, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def _inlined(params: dict[str, Any], values: list[Any], winograd: bool) -> list[Any]:
    """A called program as part of this one; derivatives are taken already, so custom rules have no more use."""
    called = next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if name in params)
    if isinstance(called, jaxprs.ClosedJaxpr):
        return _evaluate(called.jaxpr, called.consts, values, winograd)
    return _evaluate(called, [], values, winograd)


def _rewritten_params(name: str, params: dict[str, Any], winograd: bool) -> dict[str, Any]:
    """The parameters with every program in them rewritten."""

    def rewrite(value: Any) -> Any:
        if isinstance(value, tuple) and any(isinstance(one, jaxprs.ClosedJaxpr) for one in value):
            return tuple(map(rewrite, value))
        if not isinstance(value, jaxprs.ClosedJaxpr | jaxprs.Jaxpr):
            return value
        again = _again(getattr(value, "jaxpr", value), getattr(value, "consts", ()), winograd)
        if name not in _CHECKPOINTS:
            return again
        return value if again.consts else again.jaxpr

    return {key: rewrite(value) for key, value in params.items()}


def _again(jaxpr: Any, consts: Sequence[Any], winograd: bool) -> Any:
    shapes = [variable.aval for variable in jaxpr.invars]
    return jax.make_jaxpr(lambda *args: _evaluate(jaxpr, consts, args, winograd))(*shapes)


# -- convolutions


def _convolved(lhs: Any, rhs: Any, params: dict[str, Any], winograd: bool, mirrored: bool) -> Any:
    """A convolution of any layout by way of (batch, space, features), (space, in, out)."""
    numbers, space = params["dimension_numbers"], lhs.ndim - 2
    batch, feature, *places = numbers.lhs_spec
    out, into, *window = numbers.rhs_spec
    axes = tuple(range(1, space + 1))
    image = (0, space + 1, *axes)
    params = {**params, "dimension_numbers": lax.ConvDimensionNumbers(image, (space + 1, space, *range(space)), image)}
    lhs, rhs = lax.transpose(lhs, (batch, *places, feature)), lax.transpose(rhs, (*window, into, out))
    if 0 in (lhs.size, rhs.size) or min(_results(lhs, rhs, params), default=1) < 1:
        result = jaxprs.primitives.conv_general_dilated_p.bind(lhs, rhs, **params)  # nothing to compute
    else:
        result = _ungrouped(lhs, rhs, params, winograd, mirrored)
    batch, feature, *places = numbers.out_spec
    order = [batch, *places, feature]  # where each axis of the result belongs
    return lax.transpose(result, [order.index(axis) for axis in range(len(order))])


def _ungrouped(x: Any, w: Any, params: dict[str, Any], winograd: bool, mirrored: bool) -> Any:
    """Groups one by one: together they are computed by a general loop, ten times slower."""
    of_features, of_batch = params["feature_group_count"], params["batch_group_count"]
    groups = max(of_features, of_batch)
    places = math.prod(w.shape[:-2] if of_features > 1 else _results(x, w, params))
    if groups > 1 and groups == (x.shape[-1] if of_features > 1 else len(x)) and places <= _PLACES:
        return _by_channel(x, w, params)
    if not 1 < groups <= _GROUPS:
        return _dense(x, w, params, winograd, mirrored)
    params = {**params, "feature_group_count": 1, "batch_group_count": 1}
    parts = zip(jnp.split(x, groups, axis=-1 if of_features > 1 else 0), jnp.split(w, groups, axis=-1), strict=True)
    return jnp.concatenate([_dense(one, other, params, winograd, mirrored) for one, other in parts], -1)


def _dense(x: Any, w: Any, params: dict[str, Any], winograd: bool, mirrored: bool) -> Any:
    result = _product(x, w, params)
    if result is None:
        result = patches.convolved(x, w, params, _results(x, w, params))
    if result is None and winograd:
        result = minimal.convolved(x, w, params, mirrored)
    return _bound(x, w, params) if result is None else result


def _bound(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """The convolution itself. XLA leaves those without padding to a library that takes half as long again.

    So there is some where it costs little: a row of zeros more, of the window or beyond the results asked for.
    """
    bind, padding = jaxprs.primitives.conv_general_dilated_p.bind, list(params["padding"])
    rows = _results(x, w, params)[0]
    wide = w.shape[0] > rows
    padded = any(side for pair in padding for side in pair)
    if padded or min(len(x) if wide else x.shape[-1], w.shape[-1]) < _CHANNELS or max(w.shape[0], rows) < _ROWS:
        return bind(x, w, **params)
    if wide:
        w = lax.pad(w, jnp.zeros((), w.dtype), [(0, 1, 0), *[(0, 0, 0)] * (w.ndim - 1)])
        return bind(x, w, **{**params, "padding": ((0, params["rhs_dilation"][0]), *padding[1:])})
    result = bind(x, w, **{**params, "padding": ((0, params["window_strides"][0]), *padding[1:])})
    return lax.slice_in_dim(result, 0, rows, axis=1)


def _results(x: Any, w: Any, params: dict[str, Any]) -> list[int]:
    """How many results there are along each axis of space."""
    lengths = [
        (n - 1) * hole + 1 + low + high
        for n, hole, (low, high) in zip(x.shape[1:-1], params["lhs_dilation"], params["padding"], strict=True)
    ]
    spans = [(size - 1) * apart + 1 for size, apart in zip(w.shape[:-2], params["rhs_dilation"], strict=True)]
    return [(n - span) // s + 1 for n, span, s in zip(lengths, spans, params["window_strides"], strict=True)]


def _product(x: Any, w: Any, params: dict[str, Any]) -> Any | None:
    """A window of one place, or a result of one place, is a matrix product; None of anything else."""
    if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
        return None
    window = w.shape[:-2]
    over: tuple[int, ...]
    under: tuple[int, ...]
    padded, results = patches.padded(x, params), _results(x, w, params)
    if math.prod(window) == 1:
        stops = [(n - 1) * s + 1 for n, s in zip(results, params["window_strides"], strict=True)]
        taken = lax.slice(padded, [0] * x.ndim, [len(x), *stops, x.shape[-1]], [1, *params["window_strides"], 1])
        over, under = (x.ndim - 1,), (0,)
        w = w.reshape(w.shape[-2:])
    elif math.prod(results) == 1:
        stops = [(n - 1) * s + 1 for n, s in zip(window, params["rhs_dilation"], strict=True)]
        taken = lax.slice(padded, [0] * x.ndim, [len(x), *stops, x.shape[-1]], [1, *params["rhs_dilation"], 1])
        over, under = tuple(range(1, x.ndim)), tuple(range(w.ndim - 1))
    else:
        return None
    product = lax.dot_general(
        taken,
        w,
        ((over, under), ((), ())),
        precision=params["precision"],
        preferred_element_type=params["preferred_element_type"],
    )
    return product.reshape(len(x), *results, w.shape[-1])


def _by_channel(x: Any, w: Any, params: dict[str, Any]) -> Any:
    """Each channel by itself, as a sum of slices: groups of one channel, and their gradient by the filters."""
    dtype = params["preferred_element_type"] or x.dtype
    # Small floats are summed in float32, as a convolution sums them.
    wide = jnp.float32 if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 4 else dtype
    results = _results(x, w, params)
    x = patches.padded(x, params)
    window, strides, apart = w.shape[:-2], params["window_strides"], params["rhs_dilation"]
    by_filter = params["batch_group_count"] > 1  # batch and channels have changed places
    if by_filter:
        x = jnp.swapaxes(x, 0, -1)
    x = jnp.repeat(x, w.shape[-1] // x.shape[-1], axis=-1).astype(wide)  # as many results of each channel
    w, one = w.astype(wide), (1,) * (x.ndim - 1) + (-1,)
    if by_filter:
        w = jnp.moveaxis(w, -2, 0)
        places, counts, outer, inner = results, window, strides, apart
    else:
        places, counts, outer, inner = window, results, apart, strides
    slices = {}
    for place in itertools.product(*map(range, places)):
        starts = [p * s for p, s in zip(place, outer, strict=True)]
        stops = [p + (n - 1) * s + 1 for p, n, s in zip(starts, counts, inner, strict=True)]
        slices[place] = lax.slice(x, [0, *starts, 0], [len(x), *stops, x.shape[-1]], [1, *inner, 1])
    if not by_filter:
        total = functools.reduce(lax.add, (here * w[place].reshape(one) for place, here in slices.items()))
        return total.astype(dtype)
    sums = [(here * w).sum(tuple(range(w.ndim - 1))) for here in slices.values()]
    return jnp.stack(sums).reshape(1, *results, -1).astype(dtype)


# -- pooling


def _can_be_taken_apart(equation: Equation) -> bool:
    """A window of few places without holes, and something to pool."""
    wide = any(d != 1 for d in equation.params.get("window_dilation", ()))
    empty = any(0 in variable.aval.shape for variable in (*equation.invars, *equation.outvars))
    return not wide and not empty and math.prod(equation.params["window_dimensions"]) <= _WINDOW


def _places(operand: Any, params: dict[str, Any], fill: Any) -> Iterator[tuple[tuple[int, ...], Any]]:
    """Each place of the window, in order, and what stands there in every window."""
    strides, padding = params["window_strides"], params["padding"]
    holes = params.get("base_dilation", (1,) * operand.ndim)
    padded = lax.pad(operand, fill, [(low, high, hole - 1) for (low, high), hole in zip(padding, holes, strict=True)])
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


def _side_by_side(params: dict[str, Any]) -> bool:
    """Whether windows neither overlap nor leave anything between them, and begin at the edge."""
    if any(hole != 1 for hole in params.get("base_dilation", ())):
        return False
    padded = any(side for pair in params["padding"] for side in pair)
    return not padded and tuple(params["window_dimensions"]) == tuple(params["window_strides"])


def _summed(operand: Any, params: dict[str, Any]) -> Any:
    """The sum of each window."""
    zero = jnp.zeros((), operand.dtype)
    return functools.reduce(lax.add, (here for _, here in _places(operand, params, zero)))


def _pooled(operand: Any, params: dict[str, Any]) -> Any:
    """The maximum of each window."""
    if not _side_by_side(params):
        lowest = _lowest(operand.dtype)
        return functools.reduce(lax.max, (here for _, here in _places(operand, params, lowest)))
    return _windows(operand, params).max(range(1, 2 * operand.ndim, 2))


def _windows(operand: Any, params: dict[str, Any]) -> Any:
    """Windows that lie side by side, with an axis of its places behind each axis; what fills no window is left out."""
    counts = [(length // size, size) for length, size in zip(operand.shape, params["window_dimensions"], strict=True)]
    whole = lax.slice(operand, [0] * operand.ndim, [count * size for count, size in counts])
    return whole.reshape(list(itertools.chain(*counts)))


def _unpooled(source: Any, operand: Any, params: dict[str, Any]) -> Any:
    """The gradient of max-pooling: `source` goes to the first place of each window that holds its maximum."""
    if _side_by_side(params) and (params["window_dimensions"][-1] > 1 or source.shape[-1] < _VECTOR):
        return _spread(source, operand, params)
    best, first = None, jnp.zeros(source.shape, jnp.int32)
    places: list[tuple[int, ...]] = []
    for place, here in _places(operand, params, _lowest(operand.dtype)):
        if best is None:
            best = here
        else:
            greater = ~(best >= here)
            best, first = jnp.where(greater, here, best), jnp.where(greater, len(places), first)
        places.append(place)
    zero = jnp.zeros((), source.dtype)
    parts = {place: jnp.where(first == i, source, zero) for i, place in enumerate(places)}
    if _side_by_side(params):
        return _tiled(parts, operand.shape, params["window_dimensions"])
    strides, padding = params["window_strides"], params["padding"]
    lengths = [length + low + high for length, (low, high) in zip(operand.shape, padding, strict=True)]
    total = jnp.zeros(lengths, source.dtype)
    for place, part in parts.items():
        ends = [p + (n - 1) * s + 1 for p, n, s in zip(place, part.shape, strides, strict=True)]
        spread = [(p, length - end, s - 1) for p, length, end, s in zip(place, lengths, ends, strides, strict=True)]
        total = total + lax.pad(part, zero, spread)
    starts = [low for low, _ in padding]
    return lax.slice(total, starts, [s + n for s, n in zip(starts, operand.shape, strict=True)])


def _spread(source: Any, operand: Any, params: dict[str, Any]) -> Any:
    """The same for windows side by side, place by place of the operand: longer, but no short rows are put together.

    Where a window has something that is no number, that takes the gradient.
    """
    windows, sizes = _windows(operand, params), params["window_dimensions"]
    within = range(1, windows.ndim, 2)
    places, count = jnp.zeros(windows.shape, jnp.int32), math.prod(sizes)
    for axis, size in zip(within, sizes, strict=True):
        places = places * size + lax.broadcasted_iota(jnp.int32, windows.shape, axis)
    best = windows.max(within, keepdims=True)
    below = (windows < best) | (lax.ne(best, best) & lax.eq(windows, windows))  # what is not a number is the greatest
    first = jnp.where(below, jnp.int32(count), places).min(within, keepdims=True)
    zero = jnp.zeros((), source.dtype)
    whole = jnp.where(first == places, source.reshape(first.shape), zero)
    whole = whole.reshape([count * size for count, size in zip(source.shape, sizes, strict=True)])
    return _filled(whole, operand.shape)


def _filled(whole: Any, shape: Sequence[int]) -> Any:
    """Zeros behind, where no window reaches."""
    zero = jnp.zeros((), whole.dtype)
    return lax.pad(whole, zero, [(0, wanted - there, 0) for wanted, there in zip(shape, whole.shape, strict=True)])


def _tiled(parts: dict[tuple[int, ...], Any], shape: Sequence[int], sizes: Sequence[int]) -> Any:
    """The parts of windows that lie side by side, put together; zeros where no window reaches."""

    def joined(place: tuple[int, ...]) -> Any:
        axis = len(place)
        if axis == len(sizes):
            return parts[place]
        along = [joined((*place, i)) for i in range(sizes[axis])]
        if len(along) == 1:
            return along[0]
        result = jnp.stack(along, axis + 1)
        return result.reshape(*result.shape[:axis], -1, *result.shape[axis + 2 :])

    return _filled(joined(()), shape)
