"""Many arrays as a few vectors, on their way to an accelerator and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import sumfold as sf
from sumfold.simulation.packed import packed

ARRAYS = st.sampled_from([np.float32, np.int32, np.uint32, np.bool_]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
)


LINEAR = sf.models.from_functions(
    lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
)


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRAYS, max_size=6))
def test_what_is_packed_comes_out_again(leaves) -> None:
    tree = {"some": leaves[:2], "others": tuple(leaves[2:])}
    opened = packed(tree).opened()
    assert jax.tree.structure(opened) == jax.tree.structure(tree)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(opened), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_program_takes_and_returns_packed_trees() -> None:
    @jax.jit
    def swapped(sent):
        a, b = sent.opened()
        return packed((b.sum(), a * 2))

    told = jax.device_get(swapped(packed((np.float32([[1, 2]]), np.arange(4, dtype=np.int32))))).opened()
    assert told[0] == 6
    np.testing.assert_array_equal(told[1], [[2, 4]])


@pytest.mark.parametrize("options", [{"lanes": 4}, {"kernel": "sequential"}], ids=["lanes", "sequential"])
def test_a_round_with_packed_plans_is_the_same_round(options) -> None:
    draw = np.random.default_rng(1)
    x, y = draw.normal(size=(20, 3)).astype(np.float32), draw.normal(size=20).astype(np.float32)
    fed = sf.Federation.from_arrays(x, y, offsets=np.array([0, 4, 5, 9, 9, 14, 20]))
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.1), batching=sf.Batching(2)).on(
        sf.Simulation(streams=1, **options)
    )
    whole, other = process.on(process.runtime), process.on(process.runtime)
    state = process.initialize(seed=3)
    first, told = whole.next(state, fed)
    other._run.packs = True
    second, told_packed = other.next(state, fed)
    assert whole._run is not other._run
    assert told_packed == told
    jax.tree.map(np.testing.assert_array_equal, second.algorithm, first.algorithm)
