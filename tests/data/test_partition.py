"""Every partition deals every row once, depends on its seed alone, and refuses what it cannot do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumfold.data import partition
from sumfold.errors import CATALOG, DataError

WAYS = {
    "iid": partition.iid,
    "dirichlet": lambda x, y, **kw: partition.dirichlet(x, y, alpha=0.2, **kw),
    "shards": lambda x, y, **kw: partition.shards(x, y, shards_per_client=1, **kw),
    "power_law": partition.power_law,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def refused(code, *words):
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def rows(n, labels=5):
    return np.arange(n, dtype=np.float32), (np.arange(n) * 7 % labels).astype(np.int32)


@ways
@given(n=st.integers(1, 80), share=st.floats(0.01, 1), labels=st.integers(1, 6), seed=st.integers(0, 2**32))
def test_every_row_goes_to_exactly_one_client(way, n, share, labels, seed):
    x, y = rows(n, labels)
    clients = max(1, int(share * n))
    fed = way(x, y, clients=clients, seed=seed)
    assert fed.ids == range(clients)
    assert fed.examples[0] is x
    assert sorted(np.concatenate([fed[k][0] for k in fed])) == x.tolist()
    assert min(fed.sizes.values()) >= 1
    for k in fed:
        np.testing.assert_array_equal(fed[k][1], y[fed[k][0].astype(int)])
        assert np.all(np.diff(fed[k][0]) > 0)


@ways
def test_seeds_decide(way):
    x, y = rows(200)
    dealt = [[way(x, y, clients=8, seed=seed)[k][0].tolist() for k in range(8)] for seed in (1, 1, 2)]
    assert dealt[0] == dealt[1]
    assert dealt[0] != dealt[2]


@ways
def test_bad_parameters(way):
    x, y = rows(10)
    with refused("SF-DATA-024", "10 rows for 11 clients", "fewer clients"):
        way(x, y, clients=11)
    with refused("SF-DATA-025", "clients=0", "at least 1"):
        way(x, y, clients=0)
    with refused("SF-DATA-025", "seed=-1"):
        way(x, y, clients=2, seed=-1)
    with refused("SF-DATA-003", "x has 10 rows", "y has 9"):
        way(x, y[:9], clients=2)


def test_iid_sizes_differ_by_one():
    assert set(partition.iid(*rows(103), clients=10).sizes.values()) == {10, 11}


def test_iid_and_power_law_need_no_labels():
    assert partition.iid(rows(9)[0], clients=3)[0].shape == (3,)
    assert partition.power_law({"x": rows(9)[0]}, clients=3)[0]["x"].shape == (4,)


def test_dirichlet_skews_with_alpha():
    x, y = rows(5000)

    def purity(alpha):
        fed = partition.dirichlet(x, y, clients=10, alpha=alpha, seed=0)
        return np.mean([np.bincount(fed[k][1], minlength=5).max() / len(fed[k][1]) for k in fed])

    assert purity(1000.0) < 0.25
    assert purity(0.05) > 0.6


def test_dirichlet_min_size():
    x, y = rows(100)
    fed = partition.dirichlet(x, y, clients=20, alpha=0.01, min_size=5)
    assert set(fed.sizes.values()) == {5}
    assert min(partition.dirichlet(x, y, clients=20, alpha=0.01, min_size=3).sizes.values()) == 3
    with refused("SF-DATA-024", "min_size=6"):
        partition.dirichlet(x, y, clients=20, alpha=0.1, min_size=6)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_dirichlet_alpha(alpha):
    with refused("SF-DATA-025", "alpha", "positive"):
        partition.dirichlet(*rows(10), clients=2, alpha=alpha)


def test_shards_hold_few_labels():
    x, y = rows(1000, labels=10)
    fed = partition.shards(x, y, clients=50, shards_per_client=2, seed=0)
    assert set(fed.sizes.values()) == {20}
    assert max(len(np.unique(fed[k][1])) for k in fed) == 2
    with refused("SF-DATA-024", "shards_per_client=11"):
        partition.shards(x, y, clients=100, shards_per_client=11)
    with refused("SF-DATA-025", "shards_per_client=0"):
        partition.shards(x, y, clients=10, shards_per_client=0)


def test_power_law_sizes():
    sizes = list(partition.power_law(*rows(1000), clients=10, exponent=1.5).sizes.values())
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 10 * sizes[-1]
    assert set(partition.power_law(*rows(100), clients=10, exponent=0.0).sizes.values()) == {10}
    with refused("SF-DATA-025", "exponent"):
        partition.power_law(*rows(10), clients=2, exponent=-1.0)


def test_labels_have_one_dimension():
    x, _ = rows(10)
    with refused("SF-DATA-026", r"\(10, 3\)", "argmax"):
        partition.dirichlet(x, np.eye(3)[np.arange(10) % 3], clients=2, alpha=1.0)
    with refused("SF-DATA-026"):
        partition.shards(x, np.ones((10, 1)), clients=2)
