"""Arithmetic and description of trees."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sumfold import tree

Pair = namedtuple("Pair", ["first", "second"])
TREE = {"w": jnp.arange(6.0).reshape(2, 3), "deep": [Pair(jnp.int32(4), jnp.ones(2, jnp.bfloat16)), None]}


def test_specs_name_every_leaf_alike_whatever_the_container():
    assert tree.specs(TREE) == (
        tree.Spec("deep/0/first", (), "int32"),
        tree.Spec("deep/0/second", (2,), "bfloat16"),
        tree.Spec("w", (2, 3), "float32"),
    )
    plain = {"w": TREE["w"], "deep": [{"first": TREE["deep"][0].first, "second": TREE["deep"][0].second}]}
    assert tree.specs(plain) == tree.specs(TREE)


def test_nbytes_counts_each_dtype():
    assert tree.nbytes(TREE) == 6 * 4 + 4 + 2 * 2
    assert tree.Spec("empty", (3, 0), "float32").nbytes == 0
    assert tree.nbytes({}) == 0


def test_like_takes_other_containers_and_refuses_other_arrays():
    plain = {"w": np.zeros((2, 3), np.float32), "deep": [(np.int32(1), np.zeros(2, jnp.bfloat16))]}
    assert tree.like(TREE, plain) is None  # names differ: 0, 1 in place of first, second
    plain["deep"] = [{"first": np.int32(1), "second": np.zeros(2, jnp.bfloat16)}]
    fitted = tree.like(TREE, plain)
    assert isinstance(fitted["deep"][0], Pair)
    assert tree.structure(fitted) == tree.structure(TREE)
    assert tree.like(TREE, {**plain, "w": np.zeros((3, 2), np.float32)}) is None
    assert tree.like(TREE, {**plain, "w": np.zeros((2, 3), np.int32)}) is None
    assert tree.like(TREE, {**plain, "more": np.zeros(1)}) is None


def test_arithmetic_keeps_dtypes():
    values = {"a": jnp.float32([1, 2]), "b": jnp.bfloat16([3])}
    assert [x.dtype for x in jax.tree.leaves(tree.scale(jnp.float32(0.5), values))] == [jnp.float32, jnp.bfloat16]
    assert [x.dtype for x in jax.tree.leaves(tree.divide(values, jnp.int32(2)))] == [jnp.float32, jnp.bfloat16]
    np.testing.assert_array_equal(tree.sub(tree.add(values, values), values)["a"], values["a"])
    np.testing.assert_array_equal(tree.zeros_like(tree.shapes(values))["b"], jnp.zeros(1, jnp.bfloat16))
    assert tree.zeros_like(tree.shapes(values))["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("leaves", "finite"),
    [
        ([1.0, 2.0], True),
        ([1.0, np.nan], False),
        ([np.inf], False),
        ([-np.inf], False),
        ([np.complex64(complex(0, np.nan))], False),
        ([np.int32(5), True], True),
        ([], True),
        ([np.zeros(0, np.float32)], True),
        ([jnp.bfloat16(jnp.inf)], False),
    ],
)
def test_all_finite(leaves, finite):
    assert bool(tree.all_finite([jnp.asarray(leaf) for leaf in leaves])) is finite


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 63, 64, 1000, 1023, 1024, 1025, 32 * 32 * 3 + 5])
def test_one_bad_number_is_found_wherever_it_stands(size):
    check = jax.jit(tree.all_finite)
    numbers = np.ones(size, np.float32)
    assert check({"a": numbers})
    for place in sorted({0, size // 2, size - 33, size - 32, size - 1} & set(range(size))):
        for bad in (np.nan, np.inf, -np.inf):
            numbers[place] = bad
            assert not check({"a": numbers, "b": np.zeros(40, np.float32)})
        numbers[place] = np.finfo(np.float32).max


def test_where_takes_one_whole_tree():
    a, b = {"x": jnp.ones(2), "n": jnp.int32(1)}, {"x": jnp.full(2, jnp.nan), "n": jnp.int32(2)}
    np.testing.assert_array_equal(tree.where(jnp.asarray(True), a, b)["x"], a["x"])
    assert int(tree.where(jnp.asarray(False), a, b)["n"]) == 2


def test_canonical_is_what_jax_will_use():
    assert tree.canonical([1.0]).dtype == np.float32
    assert tree.canonical(np.array([1, 2])).dtype == np.int32
    assert tree.canonical(np.array([True])).dtype == bool
    same = np.ones(3, np.float32)
    assert tree.canonical(same) is same


def test_strong_drops_weak_types():
    assert jnp.asarray(1.0).weak_type
    assert not tree.strong(jnp.asarray(1.0)).weak_type
