"""Trees in files: what goes in comes out, what was damaged is refused, what was there before is never lost."""

import json
import os
import stat
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_foreign

import sumfold as sf
from sumfold import tree
from sumfold.core import files

DTYPES = [bool, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
DTYPES += [np.float16, jnp.bfloat16, np.float32, np.float64, np.complex64, jnp.float8_e4m3fn, jnp.float8_e5m2]
Pair = namedtuple("Pair", ["left", "right"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "tree.safetensors"


def assert_same(a, b):
    assert tree.structure(a) == tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        x, y = np.asarray(x), np.asarray(y)
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_dtype_and_shape(path, dtype):
    saved = {
        "matrix": np.arange(6).reshape(2, 3).astype(dtype),
        "scalar": np.ones((), dtype),
        "empty": np.zeros((0, 4), dtype),
        "turned": np.arange(6).reshape(2, 3).astype(dtype).T,
    }
    sf.save(path, saved)
    assert_same(sf.load(path), saved)


def test_bits_survive(path):
    odd = np.array([0x7FC00001, 0x80000000, 0x00000001, 0xFF800000], np.uint32).view(np.float32)
    sf.save(path, odd)
    np.testing.assert_array_equal(sf.load(path).view(np.uint32), odd.view(np.uint32))


trees = st.recursive(
    st.one_of(st.none(), st.integers(-5, 5).map(np.int32), st.just(np.zeros(2, np.float32))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.one_of(st.text(max_size=4), st.just("__metadata__"), st.integers(0, 9)), inner, max_size=3),
        st.builds(Pair, inner, inner),
    ),
    max_leaves=8,
)


def plain(node):
    """Named tuples of others come back as another class of this name: compare them by what they hold."""
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return (type(node).__name__, {k: plain(v) for k, v in node._asdict().items()})
    if isinstance(node, list | tuple):
        return type(node)(plain(v) for v in node)
    if isinstance(node, dict):
        return {k: plain(v) for k, v in node.items()}
    return node if node is None else (str(node.dtype), node.shape, node.tolist())


@given(trees)
@settings(max_examples=60, deadline=None)
def test_any_tree_comes_back(saved):
    assert plain(files.unpack(files.pack(saved), "here")) == plain(saved)


def test_paths_that_collide_stay_apart(path):
    saved = {"x/y#2": np.zeros(1), "x/y": np.ones(1), "x": {"y": np.full(1, 2.0)}, "__metadata__": np.full(1, 3.0)}
    sf.save(path, saved)
    assert_same(sf.load(path), saved)


def test_a_state_of_an_optimizer_is_taken_by_names(path):
    params = {"w": jnp.ones((2, 3)), "b": jnp.zeros(3)}
    state = optax.chain(optax.clip(1.0), optax.adam(1e-3)).init(params)
    sf.save(path, state)
    loaded = sf.load(path)
    assert tree.specs(loaded) == tree.specs(state)
    assert tree.structure(tree.like(state, loaded)) == tree.structure(state)


def test_the_store_and_records_come_back_as_themselves(path):
    state = sf.State(
        np.int32(3),
        np.zeros(2, np.uint32),
        {"w": np.ones(2, np.float32)},
        ({},),
        sf.ClientStore({"a": (np.ones(1),), 7: (np.zeros(1),)}),
        np.zeros(4, np.uint32),
    )
    sf.save(path, state)
    loaded = sf.load(path)
    assert isinstance(loaded, sf.State)
    assert isinstance(loaded.clients, sf.ClientStore)
    assert set(loaded.clients) == {"a", 7}
    assert_same(loaded, state)


def test_numbers_and_jax_arrays_become_numpy(path):
    sf.save(str(path), [1, 2.5, True, jnp.arange(3)])
    loaded = sf.load(str(path))
    assert all(isinstance(a, np.ndarray) for a in loaded)
    assert [a.tolist() for a in loaded] == [1, 2.5, True, [0, 1, 2]]


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"name": "hungary"}, "a str at 'name'"),
        ({"deep": [object()]}, "a object at 'deep/0'"),
        ({"key": jax.random.key(0)}, "jax.random.key_data"),
        ({"z": np.ones(2, np.complex128)}, "complex128 at 'z'"),
        ({"at": np.array(["2020-01-01"], "M8[D]")}, "at 'at'"),
        ({(1, 2): np.ones(1)}, r"the key \(1, 2\)"),
        ({None: np.ones(1)}, "the key None"),
    ],
    ids=["str", "object", "key", "complex128", "dates", "tuple key", "none key"],
)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(path, bad, word):
    with pytest.raises(sf.TypeMismatchError, match=rf"{word}.*SF-TYPE-003"):
        sf.save(path, bad)
    assert not path.exists()


def test_what_is_too_deep_to_load_is_not_saved(path):
    deep, fine = np.ones(1), np.ones(1)
    for _ in range(64):
        fine = [fine]
    for _ in range(65):
        deep = [deep]
    sf.save(path, fine)
    assert_same(sf.load(path), fine)
    with pytest.raises(sf.TypeMismatchError, match=r"nested deeper than 64"):
        sf.save(path, deep)


# ---------------------------------------------------------------------------------------- bad files


def test_a_missing_file(tmp_path):
    with pytest.raises(sf.CheckpointError, match=r"No such file.*SF-CKPT-001"):
        sf.load(tmp_path / "nothing")
    with pytest.raises(sf.CheckpointError, match=r"directory.*SF-CKPT-001"):
        sf.load(tmp_path)


def test_a_file_of_another_program(path):
    path.write_bytes(save_foreign({"w": np.ones(2)}))
    with pytest.raises(sf.CheckpointError, match=r"of another program.*SF-CKPT-002"):
        sf.load(path)


WHOLE = files.pack({"w": np.arange(12, dtype=np.float32), "deep": [np.int32(1), Pair(np.ones(2), None)]})


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 50, len(WHOLE) // 2, len(WHOLE) - 1])
def test_a_truncated_file(path, length):
    path.write_bytes(WHOLE[:length])
    with pytest.raises(sf.CheckpointError, match=r"damaged or truncated.*older copy.*SF-CKPT-003"):
        sf.load(path)


def test_every_single_bit_counts(path):
    draw = np.random.default_rng(0)
    for at in draw.integers(0, len(WHOLE), 150):
        damaged = bytearray(WHOLE)
        damaged[at] ^= 1 << int(draw.integers(8))
        with pytest.raises(sf.CheckpointError, match=r"SF-CKPT-00[23]"):
            files.unpack(bytes(damaged), "here")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_random_bytes(data):
    for start in (b"", WHOLE[:8], len(data).to_bytes(8, "little")):
        with pytest.raises(sf.CheckpointError):
            files.unpack(start + data, "here")


@pytest.mark.parametrize(
    "structure",
    [
        "null",
        "[]",
        "3",
        '{"array": "nothing"}',
        '{"record": "1x", "fields": [["a", null]]}',
        '{"record": "P", "fields": [["class", null]]}',
        '{"dict": [[[1], null]]}',
        '{"store": 3}',
        '{"list": ' * 80 + "null" + "}" * 80,
        "[" * 5000,
    ],
)
def test_a_crafted_description_runs_nothing_and_fails_cleanly(structure):
    header = {"format": "sumfold-tree-1", "structure": structure}
    data = bytes(save_foreign({}, {**header, "digest": files._digest(header, {})}))
    if structure == "null":
        assert files.unpack(data, "here") is None
    else:
        with pytest.raises(sf.CheckpointError, match=r"SF-CKPT-003"):
            files.unpack(data, "here")


def test_notes_travel_in_the_header_and_are_covered_by_the_digest():
    data = files.pack({"w": np.ones(2)}, {"round": "3"})
    assert files.notes(data, "here")["round"] == "3"
    assert json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]["round"] == "3"
    with pytest.raises(sf.CheckpointError, match=r"digest"):
        files.unpack(data.replace(b'"round":"3"', b'"round":"4"'), "here")


# ---------------------------------------------------------------------------------------- writing


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("fails", ["os.fsync", "os.replace", "builtins.open"])
def test_a_disk_that_fills_up_loses_nothing(path, monkeypatch, fails):
    sf.save(path, {"w": np.ones(3)})
    before = path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(fails, full_disk)
        with pytest.raises(sf.CheckpointError, match=r"could not be written: No space left.*bytes.*SF-CKPT-004"):
            sf.save(path, {"w": np.zeros(3)})
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name], "no temporary file may stay"
    sf.save(path, {"w": np.zeros(3)})
    assert sf.load(path)["w"].tolist() == [0, 0, 0]


def test_it_is_written_beside_synced_and_then_renamed(path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    kinds = {True: "folder", False: "file"}
    monkeypatch.setattr(
        os, "fsync", lambda fd: (events.append(kinds[stat.S_ISDIR(os.fstat(fd).st_mode)]), fsync(fd))[1]
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    sf.save(path, {"w": np.ones(3)})
    assert events == ["file", "rename", "folder"]


def test_a_folder_that_does_not_exist(tmp_path):
    with pytest.raises(sf.CheckpointError, match=r"could not be written.*a folder that exists"):
        sf.save(tmp_path / "no" / "where", {"w": np.ones(3)})


@given(st.binary(min_size=1, max_size=64))
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_write_replaces_whole_files(tmp_path, data):
    target = tmp_path / "f"
    files.write(target, b"older and longer" * 10)
    files.write(target, data)
    assert target.read_bytes() == data
