"""scikit-learn's digits at simulated clients."""

import sys

import numpy as np
import pytest

from sumfold.data import digits
from sumfold.errors import MissingExtraError


def test_shapes_and_parts():
    pytest.importorskip("sklearn")
    train, test = digits()
    x, y = train.examples
    assert x.shape == (1797, 8, 8, 1)
    assert x.dtype == np.float32
    assert (x.min(), x.max()) == (0, 1)
    assert y.dtype == np.int32
    assert len(train) == len(test) == 20
    assert sum(train.sizes.values()) + sum(test.sizes.values()) == 1797
    assert sum(train.sizes.values()) == pytest.approx(0.8 * 1797, abs=10)


def test_seeds_and_alpha():
    pytest.importorskip("sklearn")
    sizes = [dict(digits(clients=5, seed=seed)[0].sizes) for seed in (0, 0, 1)]
    assert sizes[0] == sizes[1]
    assert sizes[0] != sizes[2]


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[sklearn\]"):
        digits()
