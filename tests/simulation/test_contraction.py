"""Products over several axes as products over one: the same numbers, and no operand turned round for it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from sumfold.simulation.canonical import canonical
from sumfold.simulation.contraction import joined, product


def drawn(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def contracted(jaxpr):
    """How many axes each product of a program is over."""
    return [
        len(equation.params["dimension_numbers"][0][0])
        for equation in jaxpr.eqns
        if equation.primitive.name == "dot_general"
    ]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_product_is_the_same(data):
    axes = data.draw(st.integers(1, 3))
    left = data.draw(st.permutations(range(axes + 1)))[:axes]
    right = data.draw(st.permutations(range(axes + 2)))[:axes]
    x, y = [4] * (axes + 1), [5] * (axes + 2)
    for i, (a, b) in enumerate(zip(left, right, strict=True)):
        x[a] = y[b] = i + 2
    numbers = ((tuple(left), tuple(right)), ((), ()))
    operands = drawn(*x), drawn(*y)
    np.testing.assert_allclose(product(*operands, numbers), lax.dot_general(*operands, numbers), rtol=1e-5, atol=1e-5)


def test_nothing_may_be_multiplied_with_something():
    numbers = (((0, 1), (0, 1)), ((), ()))
    for x, y in (((4, 5, 0), (4, 5, 3)), ((0, 5, 2), (0, 5, 3)), ((4, 5, 2), (4, 5, 0))):
        assert product(np.ones(x), np.ones(y), numbers).shape == (x[2], y[2])


@pytest.mark.parametrize(
    ("over", "under", "batch", "expected"),
    [
        ((0, 1), (0, 1), ((), ()), True),
        ((1, 0), (2, 1), ((), ()), True),
        ((0, 1), (1, 0), ((), ()), False),
        ((0, 2), (0, 1), ((), ()), False),
        ((1, 2), (1, 2), ((0,), (0,)), False),
        ((0,), (0,), ((), ()), False),
    ],
)
def test_axes_are_joined_where_they_lie_side_by_side_in_order(over, under, batch, expected):
    assert joined(((over, under), batch)) is expected


def test_the_gradient_of_a_layer_of_sequences_is_a_product_over_one_axis():
    w, x = {"a": drawn(6, 7), "b": drawn(7, 400)}, drawn(3, 5, 6)

    def step(w, x):
        return jax.grad(lambda w: (jnp.tanh(x @ w["a"]) @ w["b"]).var())(w)

    rewritten = jax.make_jaxpr(canonical(step))(w, x)
    assert max(contracted(jax.make_jaxpr(step)(w, x).jaxpr)) == 2
    assert set(contracted(rewritten.jaxpr)) == {1}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), step(w, x), canonical(step)(w, x))

    def text(step):
        loop = jax.jit(lambda w, x: lax.fori_loop(0, 2, lambda _, w: step(w, x), w))
        return loop.lower(w, x).compile().as_text()

    # The compiler turns the logits' gradient round for the one, [3·5, 400] as [400, 3·5], and not for the other.
    turned = r"f32\[400,15\]\S* (?:copy|transpose|fusion)\("
    assert re.search(turned, text(step))
    assert not re.search(turned, text(canonical(step)))
