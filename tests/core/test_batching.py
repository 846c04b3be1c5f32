"""How examples become batches: every row once an epoch, packed to the left, the same for everyone who asks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sumfold as sf
from sumfold import keys
from sumfold.core.batching import plan, plan_ready

GOLDEN = [[0, 3, 4, 6], [5, 1, 2, -1]]

batchings = st.builds(
    sf.Batching,
    size=st.one_of(st.none(), st.integers(1, 9)),
    epochs=st.integers(1, 3),
    shuffle=st.booleans(),
    max_steps=st.one_of(st.none(), st.integers(1, 8)),
    drop_remainder=st.booleans(),
)


def expected_steps(b, rows):
    size = b.size or max(rows, 1)
    an_epoch = rows // size if b.drop_remainder else -(-rows // size)
    return an_epoch, an_epoch * b.epochs if b.max_steps is None else min(an_epoch * b.epochs, b.max_steps)


@given(batchings, st.integers(0, 40), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_is_a_permutation_in_packed_batches(b, rows, seed, round):
    batches = b.batches(rows, seed=seed, round=round, client="c")
    an_epoch, steps = expected_steps(b, rows)
    assert batches.shape == (steps, b.width(rows))
    real = batches >= 0
    assert (real[:, 1:] <= real[:, :-1]).all(), "padding stands only at the end"
    assert not steps or real[:, 0].all()
    for epoch in range(-(-steps // an_epoch) if steps else 0):
        mine = batches[epoch * an_epoch : (epoch + 1) * an_epoch]
        taken = mine[mine >= 0]
        assert len(np.unique(taken)) == len(taken)
        assert set(taken.tolist()) <= set(range(rows))
        if len(mine) == an_epoch and not (b.drop_remainder and b.size):
            assert sorted(taken.tolist()) == list(range(rows))
        if not b.shuffle:
            assert taken.tolist() == list(range(len(taken)))
        full = mine[:-1] if b.size and not b.drop_remainder and len(mine) == an_epoch else mine
        assert b.size is None or (full >= 0).all(), "only the last batch of an epoch is short"


@given(batchings.filter(lambda b: b.size is not None), st.lists(st.integers(0, 20), max_size=6), st.integers(0, 3))
def test_a_clients_plan_does_not_depend_on_the_others(b, counts, round):
    ids = tuple(f"client {i}" for i in range(len(counts)))
    together = plan(np.array(counts, np.int64), keys.codes(ids), b, keys.root(3), round)
    batches = together.batches(b.size)
    assert together.steps.tolist() == [expected_steps(b, n)[1] for n in counts]
    for start, steps, n, client in zip(together.start, together.steps, counts, ids, strict=True):
        alone = b.batches(n, seed=3, round=round, client=client)
        np.testing.assert_array_equal(batches[start : start + steps, : alone.shape[1]], alone)


def test_the_order_depends_on_seed_round_client_and_epoch():
    b = sf.Batching(size=50, epochs=2)
    base = b.batches(50, seed=1, round=1, client="a")
    assert base.shape == (2, 50)
    others = [
        base[1],
        b.batches(50, seed=2, round=1, client="a")[0],
        b.batches(50, seed=1, round=2, client="a")[0],
        b.batches(50, seed=1, round=1, client="b")[0],
    ]
    for other in others:
        assert (other != base[0]).any()
    np.testing.assert_array_equal(base, b.batches(50, seed=1, round=1, client="a"))
    longer = sf.Batching(size=50, epochs=5).batches(50, seed=1, round=1, client="a")
    np.testing.assert_array_equal(base, longer[:2])
    np.testing.assert_array_equal(
        sf.Batching(size=50, epochs=5, max_steps=2).batches(50, seed=1, round=1, client="a"), base
    )


def test_the_order_is_fixed_for_ever():
    """A change here changes every run that anybody has made."""
    assert sf.Batching(size=4).batches(7, seed=0, round=0, client="a").tolist() == GOLDEN


def test_every_place_is_equally_likely():
    b = sf.Batching(size=8)
    firsts = [b.batches(8, seed=0, round=0, client=c)[0, 0] for c in range(800)]
    assert np.bincount(firsts, minlength=8).min() > 60  # expected 100, σ ≈ 9.4


def test_a_full_batch_is_the_next_power_of_two():
    b = sf.Batching(size=None)
    assert [b.width(n) for n in (0, 1, 2, 3, 4, 5, 8, 9, 1000)] == [1, 1, 2, 4, 4, 8, 8, 16, 1024]
    assert b.batches(0).shape == (0, 1)
    assert sorted(b.batches(5)[0].tolist()) == [-1, -1, -1, 0, 1, 2, 3, 4]


def test_drop_remainder_with_too_few_rows_takes_no_step():
    assert sf.Batching(size=8, drop_remainder=True).batches(7).shape == (0, 8)
    assert (sf.Batching(size=3, drop_remainder=True, epochs=2).batches(7) >= 0).all()


def test_ready_made_batches_are_used_as_they_are():
    made = plan_ready([np.array([2, 3]), np.array([], np.int64), np.array([1])])
    assert made.batches(3).tolist() == [[0, 1, -1], [2, 3, 4], [0, -1, -1]]
    assert made.start.tolist() == [0, 2, 2]
    assert made.steps.tolist() == [2, 0, 1]


@pytest.mark.parametrize("name", ["size", "epochs", "max_steps"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "3", True, np.float32(2)])
def test_numbers_that_are_no_whole_number_from_one(name, value):
    with pytest.raises(sf.CompositionError, match=rf"Batching\({name}=.*{name} as a whole number of at least 1"):
        sf.Batching(**{name: value})


def test_epochs_cannot_be_none_and_numpy_numbers_are_numbers():
    with pytest.raises(sf.CompositionError, match=r"epochs as a whole number"):
        sf.Batching(epochs=None)
    b = sf.Batching(size=np.int64(4), epochs=np.uint8(2), max_steps=np.int32(3))
    assert b == sf.Batching(4, 2, max_steps=3)
    assert [type(v) for v in b] == [int, int, bool, int, bool]


def test_replace_keeps_the_class():
    assert sf.Batching(size=4)._replace(epochs=2).batches(3).shape == (2, 4)


@pytest.mark.parametrize(
    "batching", [sf.Batching(4), sf.Batching(3, epochs=2), sf.Batching(5, shuffle=False, epochs=2), sf.Batching(None)]
)
def test_a_part_of_a_plan_is_the_plan_of_its_clients(batching):
    counts, codes = np.array([3, 0, 7, 12, 1]), np.arange(5, dtype=np.uint32)
    whole = plan(counts, codes, batching, keys.root(1), 2)
    for first, end in ((0, 2), (1, 4), (3, 5), (2, 2)):
        alone, part = plan(counts[first:end], codes[first:end], batching, keys.root(1), 2), whole.part(first, end)
        for name, one, other in zip(alone._fields, alone, part, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=name)
