"""The client store: versions that share what did not change."""

import jax
import numpy as np
import pytest

import sumfold as sf


def test_versions_are_independent_and_share_entries():
    first = sf.ClientStore({"a": np.zeros(2), 3: np.ones(1)})
    second = first.commit({"a": np.full(2, 5.0), "b": np.zeros(0)})
    assert list(first) == ["a", 3]
    assert set(second) == {"a", 3, "b"}
    assert first["a"].tolist() == [0.0, 0.0]
    assert second["a"].tolist() == [5.0, 5.0]
    assert second[3] is first[3]
    assert first.commit({}) is first
    assert "2 clients" in repr(first)


def test_it_does_not_alias_the_mapping_it_was_made_of():
    entries = {"a": np.zeros(1)}
    store = sf.ClientStore(entries)
    entries["b"] = np.zeros(1)
    assert list(store) == ["a"]


def test_it_cannot_be_changed():
    with pytest.raises(TypeError):
        sf.ClientStore()["a"] = 1


def test_it_is_a_tree_whose_order_does_not_depend_on_history():
    a = sf.ClientStore({"b": {"x": np.ones(1)}, 2: {"x": np.zeros(1)}, "a": {"x": np.zeros(1)}, 1: {"x": np.ones(2)}})
    b = sf.ClientStore(dict(reversed(list(a.items()))))
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert [leaf.tolist() for leaf in jax.tree.leaves(a)] == [leaf.tolist() for leaf in jax.tree.leaves(b)]
    doubled = jax.tree.map(lambda x: 2 * x, a)
    assert isinstance(doubled, sf.ClientStore)
    assert doubled["b"]["x"].tolist() == [2.0]
    paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_flatten_with_path(a)[0]]
    assert paths == ["[1]['x']", "[2]['x']", "['a']['x']", "['b']['x']"]
