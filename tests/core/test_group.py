"""Σ is a commutative monoid: nobody is neutral, order and grouping do not matter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sumfold as sf
from sumfold.core import add, fold, maximum, minimum, modular, stack
from sumfold.core.group import Group

MODULI = [2, 3, 7, 2**16, 2**31 - 1, 2**31 + 11, 2**32 - 1, 2**32]
AS_FOLD = fold({"n": jnp.int32(0)}, lambda t, v: jax.tree.map(jnp.add, t, v), lambda a, b: jax.tree.map(jnp.add, a, b))
GROUPS: dict[str, tuple[Group, type, int]] = {
    "add": (add, np.int32, 2**31),
    "min": (minimum, np.int32, 2**31),
    "max": (maximum, np.int32, 2**31),
    "fold": (AS_FOLD, np.int32, 2**31),
    **{f"modular {m}": (modular(m), np.uint32, m) for m in MODULI},
}


@pytest.mark.parametrize("name", GROUPS)
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_laws(name, data):
    group, dtype, top = GROUPS[name]
    low = 0 if dtype is np.uint32 else -top
    ints = st.one_of(st.integers(low, top - 1), st.sampled_from([0, top - 1, low]))
    a, b, c = ({"n": jnp.asarray(data.draw(ints), dtype)} for _ in range(3))
    zero, place = group.zero(a, 3), jnp.int32(0)

    def same(x, y):
        np.testing.assert_array_equal(x["n"], y["n"])
        assert x["n"].dtype == y["n"].dtype == dtype

    same(group.merge(a, b), group.merge(b, a))
    same(group.merge(group.merge(a, b), c), group.merge(a, group.merge(b, c)))
    same(group.merge(zero, a), a)
    same(group.accumulate(zero, a, place), a)
    same(group.accumulate(group.accumulate(zero, a, place), b, place), group.merge(a, b))


@pytest.mark.parametrize("modulus", MODULI)
@given(st.data())
@settings(max_examples=20, deadline=None)
def test_modular_is_the_arithmetic_of_python(modulus, data):
    values = data.draw(st.lists(st.integers(0, modulus - 1), min_size=1, max_size=5))
    group = modular(modulus)
    total = group.zero(jnp.uint32(0), len(values))
    for value in values:
        total = group.accumulate(total, jnp.asarray(value, jnp.uint32), jnp.int32(0))
    assert int(total) == sum(values) % modulus


@given(st.permutations(range(4)), st.sets(st.integers(0, 3)))
@settings(max_examples=20, deadline=None)
def test_stack_keeps_each_value_at_its_place(order, counted):
    value = {"w": jnp.zeros(2), "n": jnp.int32(0)}
    left, right = stack.zero(value, 4), stack.zero(value, 4)
    for i in order:
        if i in counted:
            mine = {"w": jnp.full(2, i + 1.0), "n": jnp.int32(i)}
            left, right = (
                (stack.accumulate(left, mine, jnp.int32(i)), right)
                if i % 2
                else (left, stack.accumulate(right, mine, jnp.int32(i)))
            )
    merged = stack.merge(left, right)
    assert merged.present.tolist() == [i in counted for i in range(4)]
    assert merged.values["w"][:, 0].tolist() == [i + 1.0 if i in counted else 0.0 for i in range(4)]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_the_extremes_of_nobody(dtype):
    value = jnp.zeros(2, dtype)
    low, high = minimum.zero(value, 1), maximum.zero(value, 1)
    assert low.dtype == high.dtype == dtype
    if jnp.issubdtype(dtype, jnp.floating):
        assert (low == jnp.inf).all()
        assert (high == -jnp.inf).all()
    else:
        assert int(low[0]) == np.iinfo(dtype).max
        assert int(high[0]) == np.iinfo(dtype).min


@pytest.mark.parametrize("modulus", [1, 0, -8, 2**32 + 1])
def test_a_modulus_out_of_range(modulus):
    with pytest.raises(sf.CompositionError, match=rf"modular\({modulus}\).*from 2 to 2\*\*32"):
        modular(modulus)
