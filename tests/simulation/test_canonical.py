"""Convolutions and max-pooling in the forms that XLA's CPU backend computes fast: the same numbers, canonical text."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from sumfold.simulation import patches
from sumfold.simulation.canonical import canonical

CANONICAL = {"b01f_01io->b01f", "b0f_0io->b0f", "b012f_012io->b012f"}


def close(a, b):
    arrays = [leaf for leaf in jax.tree.leaves(a) if hasattr(leaf, "dtype")]  # an Equinox module holds functions too
    others = [leaf for leaf in jax.tree.leaves(b) if hasattr(leaf, "dtype")]
    for x, y in zip(arrays, others, strict=True):
        assert np.asarray(x).dtype == np.asarray(y).dtype
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-5)


def text(function, *args):
    return jax.jit(function).lower(*args).compile().as_text()


def layouts(compiled):
    return set(re.findall(r"dim_labels=([^,\s]+)", compiled))


def in_loop(step):
    return lambda w, x: lax.fori_loop(0, 2, lambda t, w: step(w, x), w)


def drawn(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


WRAPS = {
    "plain": lambda layer: layer,
    "jit": jax.jit,
    "checkpoint": jax.checkpoint,
    "cond": lambda layer: lambda w, x: lax.cond(x.sum() < 1e9, layer, lambda w, x: 2 * layer(w, x), w, x),
    "scan": lambda layer: lambda w, x: lax.scan(lambda c, x: (c, layer(c, x)), w, x[None])[1][0],
    "custom_vjp": lambda layer: with_rule(layer),
}


def with_rule(layer):
    ruled = jax.custom_vjp(layer)
    ruled.defvjp(lambda w, x: (layer(w, x), (w, x)), lambda saved, g: jax.vjp(layer, *saved)[1](g))
    return ruled


@st.composite
def convolutions(draw):
    """One convolution and what stands around it: sizes by axis name, then the layouts as orders of the names."""
    space = "DHW"[: draw(st.sampled_from([1, 2, 2, 2, 3]))]
    groups, into, out = draw(
        st.sampled_from([(1, 3, 4), (1, 1, 2), (1, 3, 50), (1, 20, 17), (2, 4, 6), (3, 3, 3), (3, 3, 6), (4, 8, 4)])
    )
    each = lambda *choices: draw(st.tuples(*[st.sampled_from(choices)] * len(space)))
    return {
        "groups": groups,
        "image": dict(zip("N" + space + "C", (2, *each(4, 5, 7), into), strict=True)),
        "filter": dict(zip(space + "IO", (*each(1, 2, 3), into // groups, out), strict=True)),
        "layouts": tuple("".join(draw(st.permutations(axes + space))) for axes in ("NC", "IO", "NC")),
        "strides": each(1, 1, 2, 3),
        "holes": each(1, 1, 2),
        "apart": each(1, 1, 2),
        "padding": draw(st.sampled_from(["SAME", "VALID", "LOW"])),
        "wrap": draw(st.sampled_from(list(WRAPS))),
    }


@settings(max_examples=18, deadline=None, derandomize=True)
@given(graph=convolutions())
def test_the_value_and_gradients_of_any_convolution_are_the_same(graph):
    space = len(graph["strides"])
    padding = ((2, 1),) * space if graph["padding"] == "LOW" else graph["padding"]
    if isinstance(padding, str) and max(graph["holes"]) > 1:
        padding = ((1, 0),) * space  # JAX has no such names for images with holes

    def layer(w, x):
        y = lax.conv_general_dilated(
            x,
            w,
            graph["strides"],
            padding,
            lhs_dilation=graph["holes"],
            rhs_dilation=graph["apart"],
            dimension_numbers=graph["layouts"],
            feature_group_count=graph["groups"],
        )
        return jnp.tanh(y)

    def step(w, x):
        wrapped = WRAPS[graph["wrap"]](layer)
        return jax.value_and_grad(lambda w, x: (wrapped(w, x) ** 2).sum(), (0, 1))(w, x)

    x = drawn([graph["image"][axis] for axis in graph["layouts"][0]])
    w = drawn([graph["filter"][axis] for axis in graph["layouts"][1]])
    close(jax.jit(step)(w, x), jax.jit(canonical(step))(w, x))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["max", "max", "sum"]),
    lengths=st.lists(st.sampled_from([5, 6, 8]), min_size=1, max_size=3),
    window=st.sampled_from([(2, 2, 2), (3, 2, 1), (3, 3, 1), (1, 2, 2)]),
    stride=st.sampled_from([(1, 1, 1), (2, 2, 2), (3, 2, 1)]),
    padding=st.sampled_from(["SAME", "VALID"]),
    channels_first=st.booleans(),
    channels=st.sampled_from([3, 16]),
    wrap=st.sampled_from(list(WRAPS)),
    ties=st.booleans(),
)
def test_pooling_is_the_same_and_ties_go_to_the_first(
    kind, lengths, window, stride, padding, channels_first, channels, wrap, ties
):
    def full(sizes, outer):
        inner = tuple(sizes[: len(lengths)])
        return (outer[0], outer[1], *inner) if channels_first else (outer[0], *inner, outer[1])

    x = drawn(full(lengths, (2, channels)))
    x = np.round(x) if ties else x
    start, operation = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)
    spread = lambda y: jnp.arange(y.size, dtype=y.dtype).reshape(y.shape) % 32  # whole numbers: sums of them are exact

    def layer(scale, x):
        return lax.reduce_window(x, start, operation, full(window, (1, 1)), full(stride, (1, 1)), padding)

    def step(x):
        result, back = jax.vjp(lambda x: WRAPS[wrap](layer)(1.0, x), x)
        return result, back(spread(result))[0]

    (result, gradient), (value, other) = jax.jit(step)(x), jax.jit(canonical(step))(x)
    np.testing.assert_array_equal(gradient, other)
    close(result, value)


def test_a_maximum_of_numbers_of_which_one_is_not_a_number_is_not_a_number():
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 1, 1, 0].set(jnp.nan)

    def step(x):
        return jax.value_and_grad(
            lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").sum()
        )(x)

    for images in (x, jnp.tile(x, 16)):  # few channels and many take different ways
        value, gradient = canonical(step)(images)
        assert np.isnan(value)
        np.testing.assert_array_equal(gradient, step(images)[1])


def test_inside_scan_while_cond_jit_and_checkpoint():
    x, w = jax.random.normal(jax.random.key(0), (2, 3, 8, 8)), jax.random.normal(jax.random.key(1), (3, 3, 3, 3)) / 5

    def layer(x):
        return jax.nn.relu(lax.conv_general_dilated(x, w, (1, 1), "SAME"))

    def nested(x):
        x, _ = lax.scan(lambda x, _: (layer(x), None), x, None, length=2)
        x = lax.cond(x.sum() > 0, layer, lambda x: x, x)
        x = lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, jax.jit(layer)(s[1])), (0, x))[1]
        return jax.checkpoint(layer)(x).sum()

    def step(x):
        return nested(x), jax.grad(lambda x: jax.checkpoint(layer)(lax.scan(
            lambda x, _: (layer(x), None), x, None, length=2)[0]).sum())(x)  # fmt: skip

    close(step(x), canonical(step)(x))
    assert layouts(text(canonical(step), x)) <= CANONICAL
    assert not layouts(text(step, x)) <= CANONICAL


def test_one_and_three_dimensions_and_small_floats():
    for n, dtype in ((1, jnp.float32), (3, jnp.float32), (2, jnp.bfloat16)):
        x = jax.random.normal(jax.random.key(0), (2, 3, *[6] * n), dtype)
        w = jax.random.normal(jax.random.key(1), (4, 3, *[2] * n), dtype)

        def step(w, x, n=n):
            return jax.grad(lambda w: (lax.conv_general_dilated(x, w, (1,) * n, "SAME") ** 2).mean())(w)

        a, b = step(w, x), canonical(step)(w, x)
        assert a.dtype == b.dtype == dtype
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("part", [1 << 22, 400], ids=["whole", "in parts"])
@pytest.mark.parametrize(
    ("image", "window", "strides", "padding"),
    [
        ((6, 12, 11, 3), (5, 5, 3, 6), (1, 1), "VALID"),
        ((6, 9, 10, 8), (3, 5, 8, 16), (1, 1), "SAME"),
        ((6, 21, 23, 1), (7, 7, 1, 32), (2, 3), ((3, 2), (0, 1))),
        ((6, 40, 4), (4, 4, 8), (3,), "SAME"),
        ((4, 6, 5, 7, 5), (3, 2, 3, 5, 40), (1, 2, 2), "SAME"),
    ],
    ids=["few", "lines apart", "strides", "one axis", "volume"],
)
def test_few_channels_and_volumes_are_products_with_patches(monkeypatch, part, image, window, strides, padding):
    monkeypatch.setattr(patches, "_NUMBERS", part)
    space = "DHW"[-len(strides) :]
    layout = (f"N{space}C", f"{space}IO", f"N{space}C")
    x, w = drawn(image), drawn(window) / 10

    def step(w, x):
        conv = lambda w, x: lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=layout)
        y, back = jax.vjp(conv, w, x)
        return y, back(jnp.cos(y))

    rewritten = canonical(step)
    close(jax.jit(step)(w, x), jax.jit(rewritten)(w, x))
    weights = text(lambda w, x: (rewritten(w, x)[0], rewritten(w, x)[1][0]), w, x)
    assert "convolution(" not in weights
    assert ("while(" in weights) == (part == 400)


def test_a_large_image_needs_no_matrix_of_all_its_patches():
    x, w = jnp.zeros((1, 512, 512, 3)), jnp.zeros((9, 9, 3, 3))

    def step(w, x):
        conv = lambda w, x: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y, back = jax.vjp(conv, w, x)
        return y, back(y)

    needed = jax.jit(canonical(step)).lower(w, x).compile().memory_analysis().temp_size_in_bytes
    assert needed < 12 * x.nbytes + 3 * 4 * patches._NUMBERS  # all patches at once: 54 images for each of three


def test_pooling_inside_checkpoint_and_products_of_few_channels_there():
    x, w = drawn((4, 9, 9, 3)), drawn((3, 3, 3, 6))

    @jax.checkpoint
    def block(w, x):
        y = lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return lax.reduce_window(y, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")

    step = lambda w, x: jax.value_and_grad(lambda w, x: (block(w, x) ** 2).mean(), (0, 1))(w, x)
    close(jax.jit(step)(w, x), jax.jit(canonical(step))(w, x))
    assert "select-and-scatter" not in text(canonical(step), w, x)


def test_the_forward_pass_and_the_gradient_by_the_filter_share_their_patches():
    x, w = drawn((6, 12, 12, 3)), drawn((5, 5, 3, 6))

    def step(w, x):
        conv = lambda w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        y, back = jax.vjp(conv, w)
        return y, back(jnp.cos(y))[0]

    # lines of 12 places, 4 together: [6, 12, 3] rows, and 5 lines of 8 places of 3 channels
    matrices = re.findall(r"f32\[6,12,3,120\]\S* concatenate\(", text(canonical(step), w, x))
    assert len(matrices) == 1


def test_a_step_without_convolutions_keeps_its_program():
    def step(w, x):
        return jax.tree.map(lambda w: jnp.tanh(x @ w) * jax.random.normal(jax.random.key(3), ()), w)

    w, x = {"a": jnp.ones((3, 3))}, jnp.ones((2, 3))
    same = jax.make_jaxpr(canonical(step))(w, x)
    assert len(same.eqns) <= 1 or str(same) == str(jax.make_jaxpr(step)(w, x))
    close(step(w, x), canonical(step)(w, x))


@pytest.mark.parametrize(
    ("size", "channels", "padding", "first"),
    [
        ((10, 13), (16, 32), "VALID", False),
        ((8, 9), (32, 16), "SAME", True),
        ((9, 8), (32, 32), ((2, 0), (0, 1)), False),
    ],
    ids=["valid", "same, channels first", "other padding"],
)
def test_winograd_is_the_same_sum_and_leaves_no_convolution(size, channels, padding, first):
    layout = ("NCHW", "OIHW", "NCHW") if first else ("NHWC", "HWIO", "NHWC")
    x, w = drawn((12, *size, channels[0])), drawn((3, 3, *channels)) / 10
    arguments = (w.transpose(3, 2, 0, 1), x.transpose(0, 3, 1, 2)) if first else (w, x)

    def step(w, x):
        y, back = jax.vjp(lambda w, x: lax.conv_general_dilated(x, w, (1, 1), padding, dimension_numbers=layout), w, x)
        return y, back(jnp.cos(y))

    fast = jax.jit(canonical(step, winograd=True)).lower(*arguments).compile()
    assert "convolution(" not in fast.as_text()
    assert "convolution(" in text(canonical(step), *arguments)
    for exact, close_to in zip(jax.tree.leaves(step(*arguments)), jax.tree.leaves(fast(*arguments)), strict=True):
        np.testing.assert_allclose(close_to, exact, rtol=0, atol=1e-5 * float(np.abs(exact).max()))

    # the definition, in double precision
    pads = lax.padtype_to_pads(size, (3, 3), (1, 1), padding) if isinstance(padding, str) else padding
    wide = np.pad(x.astype(np.float64), ((0, 0), *pads, (0, 0)))
    height, width = wide.shape[1] - 2, wide.shape[2] - 2
    direct = sum(wide[:, i : i + height, j : j + width] @ w[i, j] for i in range(3) for j in range(3))
    y = np.asarray(fast(*arguments)[0])
    y = y.transpose(0, 2, 3, 1) if first else y
    np.testing.assert_allclose(y, direct, rtol=0, atol=1e-5 * np.abs(direct).max())


@pytest.mark.parametrize(
    "changes",
    [
        {"window_strides": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 2)},
        {"precision": lax.Precision.HIGHEST},
        {"feature_group_count": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_winograd_is_left_alone_where_it_does_not_hold(changes):
    x, w = drawn((12, 8, 8, 32)), drawn((3, 3, 32 // changes.get("feature_group_count", 1), 32))
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, ("NHWC", "HWIO", "NHWC"))

    def step(w, x):
        plain = {"window_strides": (1, 1), "padding": "VALID" if "lhs_dilation" not in changes else ((1, 1), (1, 1))}
        return lax.conv_general_dilated(x, w, dimension_numbers=numbers, **{**plain, **changes})

    rewritten = canonical(step, winograd=True)
    if "feature_group_count" not in changes:
        assert "conv_general_dilated" in str(jax.make_jaxpr(rewritten)(w, x))
    close(jax.tree.map(lambda y: y / 100, step(w, x)), jax.tree.map(lambda y: y / 100, rewritten(w, x)))


def test_windows_that_do_not_fit_give_nothing_as_before():
    x = jnp.ones((2, 3, 3, 4))
    grouped = lambda w: lax.conv_general_dilated(
        x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
    )
    pooled = lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (1, 5, 5, 1), (1, 5, 5, 1), "VALID")
    assert canonical(grouped)(jnp.ones((5, 5, 1, 4))).shape == (2, 0, 0, 4)
    assert canonical(jax.vmap(pooled))(x[None]).shape == (1, 2, 0, 0, 4)


def test_small_floats_by_channel_are_summed_in_float32():
    x = np.ones((1, 8, 8, 3), jnp.bfloat16)
    w = np.full((7, 7, 1, 3), 1.0, jnp.bfloat16) * np.where(np.arange(49) == 0, 256, 0.5).reshape(7, 7, 1, 1)

    def layer(w, x):
        return lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
        )

    w = w.astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.float32(canonical(layer)(w, x)), 280.0)  # 256 + 48 / 2; one by one 256 stays
