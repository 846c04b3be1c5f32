"""Synthetic(α, β): its moments are the paper's, it is the same everywhere, and bad parameters are refused."""

import numpy as np
import pytest

from sumfold.data import synthetic_linear
from sumfold.errors import CATALOG, DataError


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def means(fed):
    """The mean of each client's features: float64[K, 60]."""
    return np.stack([fed[k][0].mean(axis=0) for k in fed])


def test_dtypes_classes_and_sizes():
    fed = synthetic_linear(1, 1, clients=200, seed=1)
    assert len(fed) == 200
    x, y = fed.pooled()
    assert (x.dtype, y.dtype) == (np.float32, np.int32)
    assert x.shape[1] == 60
    assert set(y.tolist()) == set(range(10))
    sizes = np.array([*fed.sizes.values()])
    assert sizes.min() >= 50
    logs = np.log(sizes[sizes > 54] - 50 + 0.5)  # rounding hides the smallest
    assert 85 < np.median(sizes) < 135  # 50 + e^4 = 105
    assert logs.max() > 7


def test_the_spread_within_a_client_falls_with_the_feature():
    fed = synthetic_linear(0, 0, clients=60)
    within = np.concatenate([fed[k][0] - fed[k][0].mean(axis=0) for k in fed])
    np.testing.assert_allclose(within.var(axis=0), np.arange(1, 61) ** -1.2, rtol=0.12)


def test_beta_is_the_variance_of_the_clients_means():
    # The mean over a client's 60 features is B_k + an average of N(0, 1): variance beta + 1/60 + a little.
    for beta in (0.0, 4.0):
        spread = means(synthetic_linear(0, beta, clients=300)).mean(axis=1).var()
        np.testing.assert_allclose(spread, beta + 1 / 60, rtol=0.35)
    np.testing.assert_allclose(means(synthetic_linear(0, 0, clients=300)).var(), 1, rtol=0.1)


def test_labels_follow_a_linear_model_of_the_client():
    # Ten least-squares scores fitted to a client's own rows find most of its labels; another client's find few.
    fed = synthetic_linear(1, 1, clients=30)
    big = [k for k in fed if fed.sizes[k] > 400][:3]
    own, others = [], []
    for k in big:
        x, y = fed[k]
        scores = np.linalg.lstsq(np.c_[x, np.ones(len(x))], np.eye(10)[y], rcond=None)[0]
        for j in big:
            x, y = fed[j]
            (own if j == k else others).append((np.argmax(np.c_[x, np.ones(len(x))] @ scores, axis=1) == y).mean())
    assert np.mean(own) > 0.8
    assert np.mean(others) < 0.4


def test_iid_is_one_model_and_one_distribution():
    fed = synthetic_linear(iid=True, clients=30)
    np.testing.assert_allclose(means(fed), 0, atol=0.7)
    sizes = [*fed.sizes.values()]
    x, y = fed[int(np.argmax(sizes))]
    scores = np.linalg.lstsq(np.c_[x, np.ones(len(x))], np.eye(10)[y], rcond=None)[0]
    correct = [(np.argmax(np.c_[fed[k][0], np.ones(len(fed[k][0]))] @ scores, axis=1) == fed[k][1]).mean() for k in fed]
    assert np.mean(correct) > 0.6


def test_it_depends_on_the_seed_and_the_clients_number_alone():
    few, many, other = (
        synthetic_linear(1, 1, clients=2),
        synthetic_linear(1, 1, clients=4),
        synthetic_linear(1, 1, seed=1),
    )
    for k in few:
        np.testing.assert_array_equal(few[k][0], many[k][0])
        np.testing.assert_array_equal(few[k][1], many[k][1])
    assert other.sizes[0] != few.sizes[0]
    # Numbers that another machine must find too.
    assert [*many.sizes.values()] == [86, 56, 99, 59]
    np.testing.assert_allclose(many[0][0][0, :3], [0.57602125, 0.08191918, -0.11130665], rtol=1e-6)
    assert many[0][1][:8].tolist() == [3, 3, 3, 3, 3, 3, 9, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1}, "alpha=-1"),
        ({"beta": float("nan")}, "beta=nan"),
        ({"alpha": "1"}, "alpha='1'"),
        ({"clients": 0}, "clients=0"),
        ({"clients": 2.0}, r"clients=2\.0"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": True}, "seed=True"),
        ({"iid": "yes"}, "iid='yes'; needed: True or False"),
        ({"iid": 1}, "iid=1"),
    ],
    ids=["alpha", "beta", "word", "nobody", "float", "seed", "truth", "iid", "iid number"],
)
def test_parameters_out_of_range(options, words):
    with refused("SF-DATA-110", words, "choose another"):
        synthetic_linear(**options)
