"""The user's arrays are used where they lie, and let go of when nobody needs them."""

from __future__ import annotations

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sumfold as sf
from sumfold.data import Federation
from sumfold.simulation.borrowed import Window, borrowed, copied, rows_at
from sumfold.simulation.placement import Placement

MIB = 1 << 20


def at_border(shape, dtype, behind):
    """Zeros that begin so many bytes behind a border of 64."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 128, np.uint8)
    begin = -raw.ctypes.data % 64 + behind
    return raw[begin : begin + size].view(dtype).reshape(shape)


@given(
    behind=st.integers(0, 15).map(lambda n: 4 * n),
    dtype=st.sampled_from([np.float32, np.int32, np.uint8, np.int16, np.float16]),
    row=st.sampled_from([(), (1,), (3,), (2, 5), (4, 1, 2)]),
    rows=st.lists(st.integers(0, 6), min_size=1, max_size=9),
)
def test_rows_are_those_of_the_array_wherever_it_begins(behind, dtype, row, rows):
    array = at_border((7, *row), dtype, behind)
    array[...] = np.arange(array.size).reshape(array.shape)
    lent = borrowed(array, None)
    assert isinstance(lent, Window) == (behind > 0)
    taken = jax.jit(rows_at)(lent, jnp.asarray(rows, jnp.int32))
    assert taken.dtype == array.dtype
    np.testing.assert_array_equal(taken, array[rows])


@pytest.mark.parametrize("behind", [0, 16, 60])
def test_xla_reads_the_users_own_memory(behind):
    array = at_border((1000, 8), np.float32, behind)
    lent = borrowed(array, None)
    vector = lent.flat if isinstance(lent, Window) else lent
    assert vector.unsafe_buffer_pointer() == array.ctypes.data - behind
    array[5] = 7
    assert rows_at(lent, jnp.array([5])).tolist() == [[7.0] * 8]


def test_what_cannot_be_lent_is_copied():
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    for view in (array[:, ::2], array.T, at_border((4, 6), np.uint8, 3).view(np.uint8)[:, :4]):
        assert copied(view)
        np.testing.assert_array_equal(rows_at(borrowed(view, None), jnp.array([1, 0])), view[[1, 0]])
    assert not copied(at_border((4,), np.uint8, 3))
    assert copied(np.ndarray((4,), np.float32, bytearray(64), offset=1))


def test_the_array_outlives_the_window_and_no_longer():
    array = at_border((1000, 8), np.float32, 16).copy()
    lent = borrowed(array, None)
    watched = weakref.ref(array)
    del array
    gc.collect()
    assert watched() is not None, "XLA still reads from it"
    assert float(rows_at(lent, jnp.array([999]))[0, 0]) == 0
    del lent
    gc.collect()
    assert watched() is None


def test_a_placed_federation_is_kept_as_long_as_somebody_uses_it():
    def federation():
        return Federation.from_arrays(np.zeros((17 * MIB, 1), np.float32), offsets=[0, 17 * MIB])

    placement, first = Placement(), federation()
    part = first.subset(first.ids)
    placed = placement.examples(first)
    watched = weakref.ref(jax.tree.leaves(first.examples)[0])
    assert placement.examples(part) is placed
    del first, part, placed
    placement.examples(federation())
    gc.collect()
    assert watched() is None


def test_a_round_of_a_large_federation_copies_none_of_it():
    x, y = at_border((17 * MIB, 1), np.float32, 16), at_border((17 * MIB,), np.int32, 32)
    fed = sf.Federation.from_arrays(x, y, offsets=np.linspace(0, len(x), 1025).astype(int))
    model = sf.models.from_functions(
        lambda key: jnp.zeros(1), lambda w, x: x[:, 0] * w[0], lambda outputs, y: (outputs - y) ** 2
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(4, max_steps=1))
    before = {id(array) for array in jax.live_arrays()}
    process.next(process.initialize(), fed, clients=fed.ids[:8])
    held = [array for array in jax.live_arrays() if id(array) not in before and array.nbytes >= x.nbytes]
    assert {array.unsafe_buffer_pointer() for array in held} == {x.ctypes.data - 16, y.ctypes.data - 32}
