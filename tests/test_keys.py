"""Randomness is a function of (seed, round, client, purpose), today and in every later version."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumfold import keys

RUN = keys.typed(keys.root(7))

GOLDEN = {
    "init": [84463273, 254242907],
    "client": [4149005818, 2993019468],
    "mix": 7702586659592502839,
    "mixes": [12035550249420947055, 3069472533636442495],
    "hungary": 1075060908,
    "cohort": 1935695558,
}


def words(key):
    return np.asarray(jax.random.key_data(key)).tolist()


def test_golden_values():
    """A change here changes every run that anybody has made."""
    assert keys.root(2**64 + 7).tolist() == [0, 7]
    assert keys.root(-1).tolist() == [2**32 - 1, 2**32 - 1]
    assert words(RUN) == [0, 7]
    assert words(keys.derive(RUN, purpose="init")) == GOLDEN["init"]
    assert words(keys.derive(RUN, purpose="phase 0", round=3, client=5)) == GOLDEN["client"]
    assert keys.mix(1, 2, 3).tolist() == [GOLDEN["mix"]]
    assert keys.mix(0, np.arange(2)).tolist() == GOLDEN["mixes"]
    assert keys.code("hungary") == GOLDEN["hungary"]
    assert keys.generator(keys.root(7), purpose="cohort", round=1).integers(2**31) == GOLDEN["cohort"]


def test_every_argument_of_derive_counts():
    base = {"purpose": "phase 0", "round": 3, "client": 5}
    variants = [
        base,
        {**base, "purpose": "phase 1"},
        {**base, "round": 4},
        {**base, "client": 6},
        {"purpose": "phase 0"},
    ]
    variants += [{"purpose": "phase 0", "round": 3}, {**base, "round": 5, "client": 3}]
    drawn = [tuple(words(keys.derive(RUN, **v))) for v in variants]
    drawn += [tuple(words(keys.derive(keys.typed(keys.root(8)), **base)))]
    assert len(set(drawn)) == len(drawn)


def test_keys_inside_a_client_differ():
    client = keys.derive(RUN, purpose="phase 0", round=0, client=0)
    drawn = {tuple(words(k)) for k in (client, keys.at_init(client), keys.at_finish(client))}
    drawn |= {tuple(words(keys.at_step(client, step))) for step in range(20)}
    assert len(drawn) == 23


def test_streams_of_neighbours_are_not_correlated():
    draw = jax.vmap(lambda c: jax.random.normal(keys.derive(RUN, purpose="x", round=0, client=c), (64,)))
    rows = np.asarray(draw(np.arange(50, dtype=np.uint32)))
    correlation = np.corrcoef(rows) - np.eye(50)
    assert np.abs(correlation).max() < 0.55  # 64 samples: σ = 1/8, 1225 pairs


def test_rounds_may_be_traced():
    traced = jax.jit(lambda r: jax.random.key_data(keys.derive(RUN, purpose="x", round=r, client=1)))(np.int32(9))
    assert traced.tolist() == words(keys.derive(RUN, purpose="x", round=9, client=1))


def test_codes_of_every_kind_of_id():
    assert keys.code(5) == keys.code(np.int64(5)) == keys.code(np.uint8(5)) == 5
    assert keys.code(-1) == 2**32 - 1
    assert keys.code(2**32 + 3) == 3
    assert keys.code("5") != 5
    assert keys.code("a") != keys.code("b")
    for ids in (range(4), range(10, 2, -3), range(2**32 - 1, 2**32 + 2), range(0)):
        np.testing.assert_array_equal(keys.codes(ids), keys.codes(tuple(ids)))
    mixed = keys.codes(("a", 7, np.int32(7)))
    assert mixed.dtype == np.uint32
    assert mixed.tolist() == [keys.code("a"), 7, 7]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4))
def test_mix_broadcasts_as_it_hashes_alone(given_words):
    together = keys.mix(*[np.array([w, 0]) for w in given_words])
    assert together[0] == keys.mix(*given_words)[0]
    assert together.dtype == np.uint64


def test_mix_spreads_neighbouring_words():
    drawn = keys.mix(1, 2, np.arange(4096))
    assert len(np.unique(drawn)) == 4096
    bits = (drawn[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(0) - 0.5).max() < 0.05


@pytest.mark.parametrize("change", [{"purpose": "split"}, {"round": 2}])
def test_generators_of_other_purposes_differ(change):
    given_ = {"purpose": "cohort", "round": 1}
    a = keys.generator(keys.root(7), **given_).integers(0, 2**31, 8)
    b = keys.generator(keys.root(7), **{**given_, **change}).integers(0, 2**31, 8)
    assert (a != b).all()
