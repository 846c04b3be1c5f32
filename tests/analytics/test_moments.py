"""Counts, means and deviations without a row leaving a client."""

import numpy as np
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

DRAW = np.random.default_rng(0)
ROWS = {"a": DRAW.normal(3, 2, (40, 3)), "b": DRAW.normal(-1, 1, (7, 3)), "c": np.zeros((0, 3))}
ROWS["a"][DRAW.random((40, 3)) < 0.3] = np.nan
ROWS["b"][:, 2] = np.nan
ALL = np.concatenate(list(ROWS.values()))


@pytest.fixture(scope="module")
def process():
    return sf.analytics.moments(3, batching=sf.Batching(size=8, shuffle=False))


@pytest.mark.parametrize("form", ["x", "x and y", "mapping"])
def test_against_numpy(process, form):
    labels = {k: np.zeros(len(v), np.int32) for k, v in ROWS.items()}
    data = {
        "x": ROWS,
        "x and y": {k: (v, labels[k]) for k, v in ROWS.items()},
        "mapping": {k: {"x": v, "y": labels[k]} for k, v in ROWS.items()},
    }[form]
    state, metrics = process.next(process.initialize(), data)
    np.testing.assert_array_equal(state.algorithm.counts, (~np.isnan(ALL)).sum(0))
    np.testing.assert_allclose(state.algorithm.mean, np.nanmean(ALL, 0), rtol=1e-5)
    np.testing.assert_allclose(state.algorithm.deviation, np.nanstd(ALL, 0), rtol=1e-4)
    assert metrics["client_work"]["moments"]["counts"] == state.algorithm.counts.tolist()


def test_a_column_that_nobody_has(process):
    rows = {k: np.where(np.arange(3) == 1, np.nan, v) for k, v in ROWS.items()}
    state, _ = process.next(process.initialize(), rows)
    assert (state.algorithm.counts[1], state.algorithm.mean[1], state.algorithm.deviation[1]) == (0, 0, 0)
    assert np.isfinite(state.algorithm.mean).all()


def test_infinite_rows_leave_their_client_out(process):
    state, _ = process.next(process.initialize(), {**ROWS, "d": np.full((2, 3), np.inf)})
    np.testing.assert_array_equal(state.algorithm.counts, (~np.isnan(ALL)).sum(0))


def test_a_constant_column_has_no_deviation(process):
    state, _ = process.next(process.initialize(), [np.full((5, 3), 0.1)])
    np.testing.assert_allclose(state.algorithm.deviation, 0, atol=1e-4)


def test_runtimes_agree(process):
    assert_runtimes_agree(process, ROWS, sf.Simulation(), sf.Loopback(), rounds=2)


def test_it_has_no_model_and_says_what_leaves(process):
    assert "float32[3, 3]" in process.explain(ROWS)
    with pytest.raises(sf.CompositionError, match=r"'moments' has no model weights.*SF-COMP-026"):
        process.get_model_weights(process.initialize())
    with pytest.raises(sf.CompositionError, match=r"moments\(features=0\).*one column"):
        sf.analytics.moments(0)
