"""Data that is larger than the device, or lies in a mapped file: each round sends the rows of its own clients."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation import memory, placement
from sumfold.simulation.drawn import Drawn

FEATURES, CLASSES = 12, 5
MODEL = sf.models.from_functions(
    lambda key: jnp.zeros((FEATURES, CLASSES)), lambda w, x: x @ w, optax.softmax_cross_entropy_with_integer_labels
)
RUNTIMES = {
    "whole": {"streams": 1, "kernel": "sequential"},
    "side by side": {"streams": 2, "kernel": "sequential"},
    "lanes": {"streams": 1, "lanes": 4},
    "lanes in two streams": {"streams": 2, "lanes": 4},
    "deterministic": {"streams": 2, "deterministic": True},
}


def federation(clients=60, dtype=np.float32, ids=False):
    draw = np.random.default_rng(0)
    sizes = draw.integers(1, 24, clients)
    x = draw.normal(size=(int(sizes.sum()), FEATURES)).astype(dtype)
    y = draw.integers(0, CLASSES, len(x)).astype(np.int32)
    if ids:  # rows of a client lie apart
        owner = draw.permutation(np.repeat(np.arange(clients), sizes))
        return sf.Federation.from_arrays(x, y, client_ids=[f"c{k:02}" for k in owner])
    return sf.Federation.from_arrays(x, y, offsets=np.concatenate([[0], np.cumsum(sizes)]))


def process(options, batching=sf.Batching(size=4)):  # noqa: B008
    return sf.learning.scaffold(MODEL, optax.sgd(0.1), batching=batching).on(sf.Simulation(**options))


def rounds(made, fed, number=4, clients=9):
    draw, state, found = np.random.default_rng(1), made.initialize(), []
    for _ in range(number):
        before = made._run.meter.snapshot()["counts"].get("bytes", 0)
        state, metrics = made.next(state, fed, clients=draw.choice(fed.ids, clients, replace=False))
        found.append((metrics, made._run.meter.snapshot()["counts"]["bytes"] - before))
    return state, found


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.algorithm, dict(state.clients)))]


@pytest.fixture
def small_device(monkeypatch):
    """A device with room for a few rows, which knows no array of the host."""
    monkeypatch.setattr(memory, "free", lambda device: 40_000)
    monkeypatch.setattr(memory, "wanted", lambda leaves, platform: sum(leaf.nbytes for leaf in leaves))


@pytest.mark.parametrize("apart", [False, True], ids=["together", "apart"])
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rounds_of_rows_alone_give_the_same_bits(runtime, apart, small_device, monkeypatch):
    fed = federation(ids=apart)
    made = process(RUNTIMES[runtime])
    state, _ = rounds(made, fed)
    assert isinstance(made._run.placement._latest[1].data, Drawn)
    monkeypatch.undo()
    usual = process(RUNTIMES[runtime])
    expected, _ = rounds(usual, fed)
    assert usual._run.placement._latest is None
    assert bits(state) == bits(expected)


def test_full_batches_and_doubles_come_as_they_would(small_device, monkeypatch):
    fed, batching = federation(dtype=np.float64), sf.Batching(size=None)
    state, _ = rounds(process(RUNTIMES["whole"], batching), fed)
    monkeypatch.undo()
    assert bits(state) == bits(rounds(process(RUNTIMES["whole"], batching), fed)[0])


def test_ready_made_batches_come_as_they_would(small_device, monkeypatch):
    draw = np.random.default_rng(0)
    clients = [
        [(draw.normal(size=(n, FEATURES)).astype(np.float32), np.zeros(n, np.int32)) for n in (3, 2)]
        for _ in range(300)
    ]
    fed = sf.Federation.from_batches(clients)
    made = process(RUNTIMES["side by side"], None)
    state, _ = rounds(made, fed)
    assert made._run.placement._latest is not None
    monkeypatch.undo()
    assert bits(state) == bits(rounds(process(RUNTIMES["side by side"], None), fed)[0])


@pytest.mark.parametrize("runtime", ["whole", "lanes in two streams", "deterministic"])
def test_nothing_is_compiled_from_the_second_round_on(runtime, small_device):
    from jax._src import test_util  # the counter of JAX's own tests

    made, fed, draw = process(RUNTIMES[runtime]), federation(), np.random.default_rng(1)
    state, _ = made.next(made.initialize(), fed, clients=draw.choice(60, 10, replace=False))
    with test_util.count_jit_and_pmap_lowerings() as count:
        for _ in range(6):
            state, _ = made.next(state, fed, clients=draw.choice(60, 10, replace=False))
    assert count() == 0


def test_a_round_sends_its_own_rows_once(small_device, monkeypatch):
    fed, width = federation(), FEATURES * 4 + 4
    _, found = rounds(process(RUNTIMES["side by side"]), fed)
    most = int(np.sort(fed.counts)[-10:].sum())
    monkeypatch.undo()
    _, usual = rounds(process(RUNTIMES["side by side"]), fed)
    for (_, sent), (_, plan) in zip(found, usual, strict=True):
        assert 9 * width <= sent - plan <= placement.room(most) * width
    assert len({sent for _, sent in found}) == 1, "shapes stay"


def test_the_same_clients_again_are_not_read_again(small_device):
    made, fed = process(RUNTIMES["whole"]), federation()
    state = made.initialize()
    parts = []
    for _ in range(2):
        state, _ = made.next(state, fed, clients=range(8))
        parts.append(made._run.placement._latest[1].data)
    assert parts[0] is parts[1]


def test_it_is_said_once(small_device, caplog):
    rounds(process(RUNTIMES["whole"]), federation())
    said = [record.message for record in caplog.records if "each round sends its own rows" in record.message]
    assert len(said) == 1
    assert "more than the device has room for (30,000 bytes)" in said[0]


def test_old_rows_go_before_new_ones_come(small_device):
    made, fed, draw = process(RUNTIMES["whole"]), federation(), np.random.default_rng(1)
    state = made.initialize()
    for _ in range(4):
        state, _ = made.next(state, fed, clients=draw.choice(60, 10, replace=False))
        assert len(made._run.placement._placed) == 1
        assert len(made._run.placement._codes) <= 2


def test_a_mapped_file_is_read_round_by_round(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(placement, "_LARGE_MAP", 1000)
    caplog.set_level(logging.INFO, "sumfold")
    usual = federation()
    x, y = usual.examples
    np.save(tmp_path / "x.npy", x.astype(np.float64))  # what JAX would have to convert
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    fed = sf.Federation.from_arrays(mapped, y, offsets=np.append(usual.starts, len(x)))
    made = process(RUNTIMES["side by side"])
    state, _ = rounds(made, fed)
    assert isinstance(made._run.placement._latest[1].data, Drawn)
    assert sum("stay in their file" in record.message for record in caplog.records) == 1
    assert bits(state) == bits(rounds(process(RUNTIMES["side by side"]), usual)[0])
    made.next(state, fed)
    assert mapped.ctypes.data == fed.examples[0].ctypes.data, "everybody at once: the map itself is used"
    assert isinstance(made._run.placement._latest[1].data, Drawn)


@pytest.mark.parametrize("behind", [0, 4])
def test_a_mapped_file_that_needs_no_conversion_is_used_where_it_lies(tmp_path, monkeypatch, behind):
    monkeypatch.setattr(placement, "_LARGE_MAP", 1000)
    monkeypatch.setattr(placement, "_SMALL", 0)
    usual = federation()
    x, y = usual.examples
    (tmp_path / "x.raw").write_bytes(bytes(behind) + x.tobytes())
    mapped = np.memmap(tmp_path / "x.raw", x.dtype, "r", behind, x.shape)
    fed = sf.Federation.from_arrays(mapped, y, offsets=np.append(usual.starts, len(x)))
    made = process(RUNTIMES["side by side"])
    assert bits(rounds(made, fed)[0]) == bits(rounds(process(RUNTIMES["side by side"]), usual)[0])
    assert made._run.placement._latest is None
    placed = jax.tree.leaves(made._run.placement.examples(fed))
    assert mapped.ctypes.data - behind in {array.unsafe_buffer_pointer() for array in placed}


def test_a_private_map_keeps_its_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(placement, "_LARGE_MAP", 1000)
    usual = federation()
    x, y = usual.examples
    np.save(tmp_path / "x.npy", np.zeros_like(x, np.float64))
    private = np.load(tmp_path / "x.npy", mmap_mode="c")
    private[:] = x
    for array in (private, np.asarray(private)):
        fed = sf.Federation.from_arrays(array, y, offsets=np.append(usual.starts, len(x)))
        made = process(RUNTIMES["whole"])
        assert bits(rounds(made, fed)[0]) == bits(rounds(process(RUNTIMES["whole"]), usual)[0])
        assert made._run.placement._latest is not None


def test_one_round_that_is_larger_than_an_accelerator(monkeypatch):
    """A device that tells its memory is believed before anything is copied there."""

    class Accelerator:
        platform = "gpu"

        def memory_stats(self):
            return {"bytes_limit": 1000, "bytes_in_use": 400}

    placed, fed = placement.Placement(), federation()
    with pytest.raises(sf.DataError) as caught:
        placed.within_reach(placement.Cohort(fed, np.arange(60)), Accelerator())
    assert caught.value.code == "SF-DATA-058"
    assert "rows of 60 clients in one round" in str(caught.value)
    assert "what the device has free, 600 bytes" in str(caught.value)
    assert "fewer clients a round" in str(caught.value)


def test_no_more_is_reserved_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(memory, "wanted", lambda leaves, platform: 10**6)
    row = FEATURES * 4 + 4
    monkeypatch.setattr(memory, "free", lambda device: 100 * row * 4 // 3 + 1)
    fed, device = federation(), jax.devices()[0]
    near = placement.Placement().within_reach(placement.Cohort(fed, np.arange(5)), device)
    assert int(fed.counts[:5].sum()) < 100 < int(np.sort(fed.counts)[-5:].sum())
    assert len(near.data.examples[0]) == 100
    most = placement.Placement().within_reach(placement.Cohort(fed, np.arange(20)), device)
    assert len(most.data.examples[0]) == int(fed.counts[:20].sum()), "at least what the round needs"


def test_what_is_free_is_known_here():
    left = memory.free(jax.devices()[0])
    assert left is None or left > 1 << 20
