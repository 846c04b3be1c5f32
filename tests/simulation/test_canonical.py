"""Convolutions and max-pooling in the forms that XLA's CPU backend computes fast: the same numbers, canonical text."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import sumfold as sf
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


@settings(max_examples=40, deadline=None)
@given(
    layout=st.sampled_from([("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NCHW"), ("HWNC", "IHWO", "NCHW")]),
    stride=st.sampled_from([(1, 1), (2, 1), (2, 3)]),
    dilation=st.sampled_from([(1, 1), (2, 1)]),
    padding=st.sampled_from(["SAME", "VALID", ((1, 2), (0, 1))]),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 9),
)
def test_the_gradient_of_any_convolution_is_the_same(layout, stride, dilation, padding, groups, seed):
    names = layout[0].index("N"), layout[0].index("C"), layout[0].index("H"), layout[0].index("W")
    size = [0] * 4
    for axis, n in zip(names, (2, 4, 9, 8), strict=True):
        size[axis] = n
    window = [0] * 4
    for letter, n in zip("OIHW", (6, 4 // groups, 3, 2), strict=True):
        window[layout[1].index(letter)] = n
    keys = jax.random.split(jax.random.key(seed), 2)
    x, w = jax.random.normal(keys[0], size), jax.random.normal(keys[1], window)

    def step(w, x):
        def loss(w, x):
            y = lax.conv_general_dilated(
                x, w, stride, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=groups
            )
            return (jnp.tanh(y) ** 2).sum()

        return jax.grad(loss, (0, 1))(w, x)

    close(step(w, x), canonical(step)(w, x))


@settings(max_examples=40, deadline=None)
@given(
    window=st.sampled_from([(2, 2), (3, 2), (3, 3), (1, 2)]),
    stride=st.sampled_from([(1, 1), (2, 2), (3, 2)]),
    padding=st.sampled_from(["SAME", "VALID"]),
    ties=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_gradient_of_max_pooling_is_the_same_and_ties_go_to_the_first(window, stride, padding, ties, seed):
    x = jax.random.normal(jax.random.key(seed), (2, 7, 6, 3))
    x = jnp.round(x) if ties else x

    def step(x):
        def loss(x):
            y = lax.reduce_window(x, -jnp.inf, lax.max, (1, *window, 1), (1, *stride, 1), padding)
            return (y * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)).sum()

        return jax.value_and_grad(loss)(x)

    close(step(x), canonical(step)(x))


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


def test_a_step_without_convolutions_keeps_its_program():
    def step(w, x):
        return jax.tree.map(lambda w: jnp.tanh(x @ w) * jax.random.normal(jax.random.key(3), ()), w)

    w, x = {"a": jnp.ones((3, 3))}, jnp.ones((2, 3))
    same = jax.make_jaxpr(canonical(step))(w, x)
    assert len(same.eqns) <= 1 or str(same) == str(jax.make_jaxpr(step)(w, x))
    close(step(w, x), canonical(step)(w, x))


def flax_net():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), (2, 2))
            x = nn.relu(nn.Conv(4, (3, 3))(x))
            return nn.Dense(10)(x.reshape(len(x), -1))

    loss = optax.softmax_cross_entropy_with_integer_labels
    return sf.models.from_flax(Net(), example=np.ones((1, 8, 8, 1), np.float32), loss=loss)


def keras_net():
    keras = pytest.importorskip("keras")

    def build():
        return keras.Sequential(
            [
                keras.layers.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", padding="same"),
                keras.layers.MaxPooling2D(),
                keras.layers.Conv2D(4, 3, activation="relu", padding="same"),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )

    return sf.models.from_keras(build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def equinox_net():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        layers: list

        def __init__(self, key):
            a, b, c = jax.random.split(key, 3)
            self.layers = [
                eqx.nn.Conv2d(1, 4, 3, padding=1, key=a),
                eqx.nn.MaxPool2d(2, 2),
                eqx.nn.Conv2d(4, 4, 3, padding=1, key=b),
                eqx.nn.Linear(64, 10, key=c),
            ]

        def __call__(self, x):
            x = jnp.moveaxis(x, -1, 0)
            for layer in self.layers[:-1]:
                x = jax.nn.relu(layer(x))
            return self.layers[-1](x.reshape(-1))

    loss = optax.softmax_cross_entropy_with_integer_labels
    return sf.models.from_equinox(lambda key: Net(key), loss=loss)


@pytest.mark.parametrize("build", [flax_net, keras_net, equinox_net], ids=["flax", "keras", "equinox"])
def test_a_compiled_round_has_canonical_convolutions_only(build, monkeypatch):
    pytest.importorskip("sklearn")
    train, _ = sf.data.digits(clients=3)
    process = sf.learning.fed_avg(build(), optax.sgd(0.1), batching=sf.Batching(size=16, max_steps=2))
    kept = []
    bound = process._run
    compiled = bound.compiled

    def recorded(*args):
        kept.append(compiled.lower(*args).compile().as_text())
        return compiled(*args)

    monkeypatch.setattr(bound, "compiled", recorded)
    state, _ = process.next(process.initialize(), train)
    assert layouts(kept[0])
    assert layouts(kept[0]) <= CANONICAL
    assert "select-and-scatter" not in kept[0]
    assert "feature_group_count" not in kept[0]
    there, _ = process.on(sf.Loopback()).next(process.initialize(), train)
    close(process.get_model_weights(state), process.get_model_weights(there))
