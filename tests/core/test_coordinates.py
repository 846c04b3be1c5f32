"""Rules over coordinates in pieces, and sorting by a network: what NumPy says, in bounded memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sumfold.core import Stacked, by_coordinate, coordinates, sorted_rows

FLOATS = [-np.inf, -2.5, -1e-38, -0.0, 0.0, 1e-38, 1.0, 2.5, np.inf, np.nan]
SORTED = jax.jit(sorted_rows)


@settings(max_examples=25)
@given(st.integers(1, 9).flatmap(lambda k: st.lists(st.sampled_from(FLOATS), min_size=3 * k, max_size=3 * k)))
def test_rows_are_sorted_as_numpy_sorts(numbers):
    values = np.array(numbers, np.float32).reshape(-1, 3)
    np.testing.assert_array_equal(SORTED(values), np.sort(values, axis=0))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8", "uint32"])
def test_rows_of_every_dtype_are_sorted(dtype):
    draw = np.random.default_rng(0)
    values = jnp.asarray(draw.integers(0, 100, (13, 2, 3)) - (0 if dtype == "uint32" else 50), dtype)
    found = sorted_rows(values)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, jnp.sort(values, axis=0))


def median(values, present):
    """Of the rows that are present."""
    ordered = sorted_rows(jnp.where(present[:, None], values, jnp.nan))
    number = present.sum()
    return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2


@pytest.mark.parametrize("piece", [1, 4 * 9 * 5, 1 << 20], ids=["one coordinate", "five coordinates", "all at once"])
def test_a_rule_in_pieces_is_the_rule(piece, monkeypatch):
    monkeypatch.setattr(coordinates, "_PIECE", piece)
    draw = np.random.default_rng(0)
    values = {
        "w": draw.normal(size=(9, 3, 4)).astype("f4"),
        "b": draw.normal(size=9).astype("f4"),
        "none": np.zeros((9, 0), "f4"),
    }
    present = np.arange(9) % 4 != 1
    found = jax.jit(lambda s: by_coordinate(median, s))(Stacked(values, present))
    for name, value in values.items():
        np.testing.assert_allclose(found[name], np.median(value[present], axis=0), rtol=1e-6)


def test_a_rule_in_pieces_makes_no_other_stack():
    shapes = Stacked(jax.ShapeDtypeStruct((100, 200, 1000), jnp.float32), jax.ShapeDtypeStruct((100,), bool))
    account = jax.jit(lambda s: by_coordinate(median, s)).lower(shapes).compile().memory_analysis()
    assert account.temp_size_in_bytes < 8 * coordinates._PIECE < account.argument_size_in_bytes / 8
