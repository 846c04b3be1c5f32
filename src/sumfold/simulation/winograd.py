"""Convolutions with 3×3 windows in fewer multiplications: Winograd's minimal filtering F(4×4, 3×3).

Lavin and Gray 2016, *Fast algorithms for convolutional neural networks*, section 4.3: a 4×4 block of outputs y of the
correlation of a 6×6 block of inputs d with a 3×3 filter g is

    y  =  Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A

with the constant matrices below: 36 multiplications in place of 144, and, over channels, 36 matrix products of
(blocks × channels in) by (channels in × channels out), one for each point. The form is bilinear, so both of its
gradients have the same three ingredients, each transposed:

    ∂d  =  B [ (G g Gᵀ) ⊙ (A ∂y Aᵀ) ] Bᵀ          added up where blocks of inputs overlap
    ∂g  =  Gᵀ [ Σ (Bᵀ d B) ⊙ (A ∂y Aᵀ) ] G         summed over blocks

A gradient is itself a convolution in the traced program, with a 3×3 window or with a 3×3 result, and is computed by
its own line; what two of the three share, Bᵀ d B and A ∂y Aᵀ, is the same expression, which the compiler computes
once. Rounding errors are some ten times those of the direct sum: about 1e-6 of the largest value per layer. A number
that is not finite spreads to its whole block.

The constant matrices are applied as sums of slices, one axis at a time; that, not the products, is what memory speed
limits. Compilation takes one or two seconds longer per layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

__all__ = ["convolved", "ordinary"]

# Points 0, ±1, ±2 and infinity.
_B_T = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float64,
)
_G = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    np.float64,
)
_A_T = np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float64)

_CHANNELS, _PAIRS = 16, 512
"""Channels of either side, and pairs of channels, from which it is faster; see benchmarks/convolutions.py."""
_BLOCKS = 64
"""Blocks, over the whole batch, from which it is faster."""
_WASTE = 1.6
"""How many times the outputs asked for the blocks may hold."""


def convolved(x: Any, w: Any, params: dict[str, Any], mirrored: bool = False) -> Any | None:
    """The convolution of x [N, H, W, C] with w [h, w, C, O] as [N, H', W', O]; None where this form does not pay.

    Args:
        x, w: float32.
        params: those of the equation `conv_general_dilated`; the layout is the above whatever they say.
        mirrored: whether w is the mirror image of a filter, as in the gradient by a convolution's input. It decides
            between two equal forms, so that this gradient and that by the filter share their largest part.
    """
    if not _plain(x, w, params):
        return None
    padding = params["padding"]
    height, width = (
        length + low + high - window + 1
        for length, window, (low, high) in zip(x.shape[1:3], w.shape, padding, strict=False)
    )
    low = [pair[0] for pair in padding]
    if w.shape[:2] == (3, 3) and _pays(w.shape[2], w.shape[3]):
        there, here = _blocks(height, width), _blocks(*x.shape[1:3])
        full = all(0 <= side <= 2 for pair in padding for side in pair)  # else zeros outside would be computed too
        adjoint = full and (math.prod(here), not mirrored) < (math.prod(there), mirrored)
        chosen, area = (here, (x.shape[1] + 2) * (x.shape[2] + 2)) if adjoint else (there, height * width)
        if not _enough(len(x), chosen, area):
            return None
        if not adjoint:
            products = jnp.einsum("ptc,pco->pto", _input_to_points(x, low, there), _filter_to_points(w))
            return _points_to_output(products, len(x), there)[:, :height, :width]
        products = jnp.einsum("ptc,pco->pto", _output_to_points(x, here), _filter_to_points(w[::-1, ::-1]))
        whole = _points_to_input(products, len(x), here)
        return whole[:, 2 - low[0] : 2 - low[0] + height, 2 - low[1] : 2 - low[1] + width]
    if (height, width) == (3, 3) and _pays(len(x), w.shape[3]) and all(high >= 0 for _, high in padding):
        # The gradient by a filter: the axes of batch and channels have changed places.
        blocks = _blocks(*w.shape[:2])
        if not _enough(w.shape[2], blocks, w.shape[0] * w.shape[1]):
            return None
        inputs = _input_to_points(lax.transpose(x, (3, 1, 2, 0)), low, blocks)
        gradients = _output_to_points(lax.transpose(w, (2, 0, 1, 3)), blocks)
        products = jnp.einsum("ptc,pto->pco", inputs, gradients)
        return lax.transpose(_points_to_filter(products), (2, 0, 1, 3))
    return None


def _plain(x: Any, w: Any, params: dict[str, Any]) -> bool:
    """Two dimensions, and no strides or dilations."""
    steps = (*params["window_strides"], *params["lhs_dilation"], *params["rhs_dilation"])
    return x.ndim == 4 and ordinary(x, w, params) and all(step == 1 for step in steps)


def ordinary(x: Any, w: Any, params: dict[str, Any]) -> bool:
    """Whether a convolution is of float32 in one group, with no precision asked for."""
    precision = params["precision"]
    default = precision is None or all(one in (None, lax.Precision.DEFAULT) for one in precision)
    return (
        x.dtype == w.dtype == jnp.float32
        and params["preferred_element_type"] in (None, jnp.float32)
        and default
        and params["feature_group_count"] == params["batch_group_count"] == 1
    )


def _pays(channels: int, outputs: int) -> bool:
    return min(channels, outputs) >= _CHANNELS and channels * outputs >= _PAIRS


def _enough(batch: int, blocks: tuple[int, int], area: int) -> bool:
    number = math.prod(blocks)
    return area > 0 and batch * number >= _BLOCKS and 16 * number <= _WASTE * area


def _blocks(height: int, width: int) -> tuple[int, int]:
    """How many 4×4 blocks cover an area."""
    return -(-height // 4), -(-width // 4)


def _sums(matrix: NDArray[np.float64], parts: Sequence[Any]) -> list[Any]:
    """Row by row of a constant matrix, the sum of its numbers times the parts."""
    results = []
    for row in matrix:
        total: Any = None
        for factor, part in zip(row, parts, strict=True):
            if factor:
                term = part if factor == 1 else part * np.float32(factor)
                total = term if total is None else total + term
        results.append(total)
    return results


def _fitted(x: Any, rows: tuple[int, int], columns: tuple[int, int]) -> Any:
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (*rows, 0), (*columns, 0), (0, 0, 0)])


def _input_to_points(x: Any, low: Sequence[int], blocks: tuple[int, int]) -> Any:
    """Bᵀ d B of the overlapping 6×6 blocks of [N, H, W, C]: [36, blocks, C]."""
    down, across = blocks
    _, height, width, channels = x.shape
    x = _fitted(x, (low[0], 4 * down + 2 - height - low[0]), (low[1], 4 * across + 2 - width - low[1]))
    half = jnp.stack(_sums(_B_T, [x[:, :, j : j + 4 * across - 3 : 4] for j in range(6)]))
    points = jnp.stack(_sums(_B_T, [half[:, :, i : i + 4 * down - 3 : 4] for i in range(6)]))
    return points.reshape(36, -1, channels)


def _output_to_points(y: Any, blocks: tuple[int, int]) -> Any:
    """A y Aᵀ of the 4×4 blocks of [N, H, W, C]: [36, blocks, C]."""
    down, across = blocks
    number, height, width, channels = y.shape
    y = _fitted(y, (0, 4 * down - height), (0, 4 * across - width)).reshape(number, down, 4, across, 4 * channels)
    half = jnp.stack(_sums(_A_T.T, [y[..., j * channels : (j + 1) * channels] for j in range(4)]))
    return jnp.stack(_sums(_A_T.T, [half[:, :, :, i] for i in range(4)])).reshape(36, -1, channels)


def _points_to_output(points: Any, number: int, blocks: tuple[int, int]) -> Any:
    """Aᵀ m A of [36, blocks, C] as [N, H, W, C]."""
    down, across = blocks
    points = points.reshape(6, 6, number, down, across, -1)
    half = _sums(_A_T, [points[i] for i in range(6)])
    # Stacked along the last axes: written once, in order.
    rows = [jnp.stack(_sums(_A_T, [row[j] for j in range(6)]), 3) for row in half]
    return jnp.stack(rows, 2).reshape(number, 4 * down, 4 * across, -1)


def _points_to_input(points: Any, number: int, blocks: tuple[int, int]) -> Any:
    """B m Bᵀ of [36, blocks, C], 6×6 blocks added up where they overlap, as [N, H, W, C]; two rows too many."""
    down, across = blocks
    points = points.reshape(6, 6, number, down, across, -1)
    rows = [
        jnp.stack(_overlapped(_sums(_B_T.T, [points[i, j] for j in range(6)]), axis=2), 3) for i in range(6)
    ]  # [N, down, across + 1, 4, C] each
    whole = jnp.stack(_overlapped(_sums(_B_T.T, rows), axis=1), 2)
    return whole.reshape(number, 4 * (down + 1), 4 * (across + 1), -1)


def _overlapped(places: Sequence[Any], axis: int) -> list[Any]:
    """Blocks of six places, each begun four after the last, as blocks of four: the last two join the next block."""

    def moved(part: Any, by: int) -> Any:
        return lax.pad(part, jnp.zeros((), part.dtype), [(by, 1 - by, 0) if a == axis else (0, 0, 0) for a in axes])

    axes = range(places[0].ndim)
    return [moved(places[i], 0) + moved(places[i + 4], 1) if i < 2 else moved(places[i], 0) for i in range(4)]


def _filter_to_points(w: Any) -> Any:
    """G g Gᵀ of [3, 3, C, O]: [36, C, O]."""
    half = jnp.stack(_sums(_G, [w[:, j] for j in range(3)]))
    return jnp.stack(_sums(_G, [half[:, i] for i in range(3)])).reshape(36, *w.shape[2:])


def _points_to_filter(points: Any) -> Any:
    """Gᵀ m G of [36, C, O]: [3, 3, C, O]."""
    points = points.reshape(6, 6, *points.shape[1:])
    half = _sums(_G.T, [points[i] for i in range(6)])
    return jnp.stack([jnp.stack(_sums(_G.T, [row[j] for j in range(6)])) for row in half])
