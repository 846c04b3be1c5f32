"""Convolutions of few channels as one matrix product, a few neighbouring results in each of its columns.

A convolution is the product of a matrix of patches, one row for each place of the result, and the filter as a matrix
(Chellapilla, Puri and Simard 2006, *High performance convolutional neural networks for document processing*, section
3). With 3 channels in and 6 out both are so narrow that no vector unit is filled, and XLA's own convolutions reach a
tenth of the processor's speed. Therefore t results that lie side by side are computed together: a row of the matrix is
what all t of them see, (t-1)·s + k places of a line instead of k (s the stride, k the length of the window), and the
filter stands t times in its matrix, each time s places lower and in columns of its own:

    [ y(0) … y(t-1) ]  =  [ x(0) … x((t-1)s+k-1) ] · T(w),      T(w)[q·s + j, q] = w[j]

which is ((t-1)s + k) / k times the multiplications, of numbers that lie side by side in memory, by a product that is t
times as wide and has t times fewer rows.

The gradient by the filter is a convolution too, whose window is the whole image and whose results are the filter's
places. With the same matrix P of patches it is P ᵀ ∂y, folded by the adjoint of T: the sum of its diagonals. Where both
are computed from one image P is the same expression, which the compiler computes once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from sumfold.simulation.winograd import ordinary

__all__ = ["convolved", "padded"]

_PAIRS, _INTO, _OUT = 128, 16, 32
"""Pairs of channels, channels, and channels of the result, up to which it is faster on lines and on images, see
benchmarks/convolutions.py. On volumes it always is: XLA computes those place by place."""
_LINE = 48
"""Numbers of a line of a window from which each line has a product of its own, and is not copied beside the others."""
_NUMBERS = 1 << 22
"""Numbers of a matrix of patches beyond which it leaves every cache, and is made and multiplied in parts."""


def convolved(x: Any, w: Any, params: dict[str, Any], results: Sequence[int]) -> Any | None:
    """The convolution of x [N, space, C] with w [window, C, O] as [N, results, O]; None where this form does not pay.

    Args:
        x, w: float32.
        params: those of the equation `conv_general_dilated`; the layout is the above whatever they say.
        results: how many results there are along each axis of space.
    """
    strides, apart, window = params["window_strides"], params["rhs_dilation"], w.shape[:-2]
    if not ordinary(x, w, params):
        return None
    holes = any(hole != 1 for hole in params["lhs_dilation"])
    if math.prod(window) <= math.prod(results):
        if any(step != 1 for step in apart) or not _pays(w.shape, holes):
            return None
        return _products(padded(x, params), w, results, strides)
    # The gradient by a filter: batch and channels have changed places, and so have strides and dilation.
    filters = (*results, len(x), w.shape[-1])
    if any(step != 1 for step in strides) or not _pays(filters, holes):
        return None
    x, g = padded(jnp.swapaxes(x, 0, -1), params), jnp.moveaxis(w, -2, 0)
    return jnp.moveaxis(_gradients(x, g, results, apart), -2, 0)


def padded(x: Any, params: dict[str, Any]) -> Any:
    """The operand [N, space, C] with its padding and the holes in it."""
    around = zip(params["padding"], params["lhs_dilation"], strict=True)
    space = [(low, high, hole - 1) for (low, high), hole in around]
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *space, (0, 0, 0)])


def _pays(filters: Sequence[int], holes: bool) -> bool:
    """Whether the form is faster, of filters [window, C, O] on an image with or without holes between its numbers."""
    *window, into, out = filters
    return len(window) > 2 or (not holes and into <= _INTO and out <= _OUT and into * out <= _PAIRS)


class _Parts(NamedTuple):
    """A batch cut in parts with small matrices of patches, each of so many examples and rows of their results."""

    number: int
    rows_each: int
    examples: int
    rows: int

    def of(self, x: Any, i: Any, window: int = 1, step: int = 1) -> Any:
        """What part `i` sees of x [N, rows, …] with a window of so many rows."""
        first, row = i // self.rows_each * self.examples, i % self.rows_each * self.rows * step
        x = lax.dynamic_slice_in_dim(x, first, self.examples)
        return lax.dynamic_slice_in_dim(x, row, (self.rows - 1) * step + window, axis=1)


def _parts(batch: int, filters: Sequence[int], results: Sequence[int], strides: Sequence[int]) -> _Parts:
    *window, into, out = filters
    together = _together(window[-1], results[-1], out)
    places = math.prod(window[:-1]) * ((together - 1) * strides[-1] + window[-1])
    numbers = batch * math.prod(results[:-1]) * -(-results[-1] // together) * places * into
    of_batch = _divisor(batch, numbers / _NUMBERS)
    of_rows = _divisor(results[0], numbers / _NUMBERS / batch) if of_batch == batch else 1
    return _Parts(of_batch * of_rows, of_rows, batch // of_batch, results[0] // of_rows)


def _divisor(length: int, least: float) -> int:
    """The least number that divides a length into equal parts, and is not less than asked for where there is one."""
    return next(n for n in range(1, length + 1) if length % n == 0 and (n >= least or n == length))


def _products(x: Any, w: Any, results: Sequence[int], strides: Sequence[int]) -> Any:
    """`_product`, in parts if need be."""
    parts = _parts(len(x), w.shape, results, strides)
    if parts.number == 1:
        return _product(x, w, results, strides)

    def one(i: Any) -> Any:
        return _product(parts.of(x, i, w.shape[0], strides[0]), w, (parts.rows, *results[1:]), strides)

    return lax.map(one, jnp.arange(parts.number)).reshape(len(x), *results, w.shape[-1])


def _gradients(x: Any, g: Any, window: Sequence[int], strides: Sequence[int]) -> Any:
    """`_gradient`, in parts if need be."""
    filters = (*window, x.shape[-1], g.shape[-1])
    parts = _parts(len(x), filters, g.shape[1:-1], strides)
    if parts.number == 1:
        return _gradient(x, g, window, strides)

    def one(total: Any, i: Any) -> Any:
        return total + _gradient(parts.of(x, i, window[0], strides[0]), parts.of(g, i), window, strides), None

    return lax.scan(one, jnp.zeros(filters, g.dtype), jnp.arange(parts.number))[0]


def _product(x: Any, w: Any, results: Sequence[int], strides: Sequence[int]) -> Any:
    """The results [N, results, O] of a filter w [window, C, O] on x."""
    window, step, together = w.shape[:-2], strides[-1], _together(w.shape[-3], results[-1], w.shape[-1])
    lower = [(q * step, (together - 1 - q) * step) for q in range(together)]
    filters = jnp.stack([_along(w, len(window) - 1, *pair) for pair in lower], -2)
    patches = _patches(x, window, results, strides, together)
    filters = filters.reshape(len(patches), -1, together * w.shape[-1])
    product = functools.reduce(lax.add, map(jnp.matmul, patches, filters))
    return lax.slice_in_dim(product.reshape(len(x), *results[:-1], -1, w.shape[-1]), 0, results[-1], axis=-2)


def _gradient(x: Any, g: Any, window: Sequence[int], strides: Sequence[int]) -> Any:
    """The gradient [window, C, O] by a filter whose results on x have the gradient g [N, results, O]."""
    results, outputs, step = g.shape[1:-1], g.shape[-1], strides[-1]
    together = _together(window[-1], results[-1], outputs)
    g = _along(g, g.ndim - 2, 0, -results[-1] % together).reshape(-1, together * outputs)
    patches = _patches(x, window, results, strides, together)
    products = jnp.stack([_over_rows(part, g) for part in patches])
    products = products.reshape(*window[:-1], -1, x.shape[-1], together, outputs)
    axis = len(window) - 1
    diagonals = (
        lax.slice_in_dim(products[..., q, :], q * step, q * step + window[-1], axis=axis) for q in range(together)
    )
    return functools.reduce(lax.add, diagonals)


def _over_rows(a: Any, b: Any) -> Any:
    """aᵀ b. XLA computes it well if its longer side comes last, and left alone would put it first again."""
    over = (((0,), (0,)), ((), ()))
    return _written(lax.dot_general(b, a, over)).T if b.shape[-1] < a.shape[-1] else lax.dot_general(a, b, over)


def _together(length: int, results: int, outputs: int) -> int:
    """How many neighbouring results are computed together, of a line of so many and a window of such a length."""
    return min(4 if length >= 5 and outputs <= 8 else 2 if outputs <= _OUT else 1, results)


def _patches(x: Any, window: Sequence[int], results: Sequence[int], strides: Sequence[int], together: int) -> list[Any]:
    """What the places of the result see of x, `together` of them as one along a line: [places, numbers].

    One matrix for each line of the window if those are long, else one for all. The lines are written first, so that
    what is copied is long; the compiler would make one of the two steps again, and of copying and multiplying.
    """
    channels, step = x.shape[-1], strides[-1]
    blocks, places = -(-results[-1] // together), (together - 1) * step + window[-1]
    block, parts = together * step, -(-places // (together * step))
    x = _along(x, x.ndim - 2, 0, (blocks + parts - 1) * block - x.shape[-2])  # what is missing or too much at the end
    x = x.reshape(*x.shape[:-2], blocks + parts - 1, block * channels)
    last = (places - (parts - 1) * block) * channels
    pieces = [lax.slice_in_dim(x, i, i + blocks, axis=-2) for i in range(parts)]
    line = _written(jnp.concatenate([*pieces[:-1], pieces[-1][..., :last]], -1))
    lines = []
    for place in itertools.product(*map(range, window[:-1])):
        stops = [p + (n - 1) * s + 1 for p, n, s in zip(place, results, strides, strict=False)]
        sizes = [len(x), *stops, *line.shape[-2:]]
        lines.append(lax.slice(line, [0, *place, 0, 0], sizes, [1, *strides[:-1], 1, 1]))
    joined = lines if line.shape[-1] >= _LINE else [jnp.concatenate(lines, -1)]
    return [_written(one).reshape(-1, one.shape[-1]) for one in joined]


def _along(x: Any, axis: int, low: int, high: int) -> Any:
    """Zeros before and behind along an axis; where there are fewer than none, so much less of it."""
    return lax.pad(x, jnp.zeros((), x.dtype), [(low, high, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)])


def _written(x: Any) -> Any:
    """The array as it is, computed where it stands and only once."""
    return lax.optimization_barrier(x)  # type: ignore[no-untyped-call]
