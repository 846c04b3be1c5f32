"""The four hospitals: the numbers that the docstring states, and the standardisation."""

import numpy as np
import pytest

from sumfold.data import HEART_FEATURES, heart_disease
from sumfold.errors import DataError


def everybody(**options):
    train, test = heart_disease(raw=True, **options)
    return {key: np.concatenate([train[key][0], test[key][0]]) for key in train}


def test_patients_and_diagnoses():
    train, test = heart_disease()
    assert train.ids == ("cleveland", "hungary", "switzerland", "va_long_beach")
    assert {key: train.sizes[key] + test.sizes[key] for key in train} == {
        "cleveland": 303,
        "hungary": 294,
        "switzerland": 123,
        "va_long_beach": 200,
    }
    ill = {key: np.concatenate([train[key][1], test[key][1]]).mean() for key in train}
    assert [round(100 * share) for share in ill.values()] == [46, 36, 93, 74]
    x, y = train.examples
    assert x.shape == (920, 10)
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    assert len(HEART_FEATURES) == 10


def test_what_each_hospital_lacks():
    missing = {
        key: dict(zip(HEART_FEATURES, np.isnan(x).sum(0).tolist(), strict=True)) for key, x in everybody().items()
    }
    assert sum(missing["cleveland"].values()) == 0
    assert [missing[key]["cholesterol"] for key in missing] == [0, 23, 123, 56]
    assert [missing[key]["fasting_sugar_high"] for key in missing] == [0, 8, 75, 7]
    for name in ("resting_bp", "max_heart_rate", "exercise_angina", "st_depression"):
        assert 53 <= missing["va_long_beach"][name] <= 56
        assert missing["hungary"][name] <= 6
        assert missing["switzerland"][name] <= 6


def test_every_part_keeps_the_share_of_ill_patients():
    for seed in range(3):
        train, test = heart_disease(seed=seed)
        assert sum(train.sizes.values()) == 644
        for key in train:
            for part in (train, test):
                total = np.concatenate([train[key][1], test[key][1]]).mean()
                assert abs(part[key][1].sum() - total * part.sizes[key]) <= 1
        assert np.sum(test["switzerland"][1] == 0) == 2


def test_standardised_by_the_training_patients_of_all_hospitals():
    train, test = heart_disease(seed=1)
    raw_train, raw_test = heart_disease(seed=1, raw=True)
    raw = raw_train.pooled()[0].astype(np.float64)
    raw[:, 2] = raw[:, 2] == 4
    mean, deviation = np.nanmean(raw, 0), np.nanstd(raw, 0)
    for part, raw_part in ((train, raw_train), (test, raw_test)):
        x, y = raw_part.pooled()
        x = x.astype(np.float64)
        x[:, 2] = x[:, 2] == 4
        expected = np.where(np.isnan(x), 0, (x - mean) / deviation)
        np.testing.assert_allclose(part.pooled()[0], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(part.pooled()[1], y)
    assert np.isfinite(train.examples[0]).all()


def test_raw_values_are_codes_with_gaps():
    values = everybody()["cleveland"]
    assert set(values[:, 2].tolist()) == {1, 2, 3, 4}
    assert values[:, 0].max() == 77


def test_seeds_and_fractions():
    one, same, other = (heart_disease(seed=seed)[0].rows(0).tolist() for seed in (0, 0, 1))
    assert one == same
    assert one != other
    assert sum(heart_disease(fraction=0.5)[0].sizes.values()) == pytest.approx(460, abs=2)
    with pytest.raises(DataError, match="SF-DATA-017"):
        heart_disease(fraction=1.0)


def test_pooling_helps():
    linear = pytest.importorskip("sklearn.linear_model")
    auc = pytest.importorskip("sklearn.metrics").roc_auc_score
    own, pooled = [], []
    for seed in range(15):
        train, test = heart_disease(seed=seed)
        everyone = linear.LogisticRegression(max_iter=1000).fit(*train.pooled())
        for key in train:
            alone = linear.LogisticRegression(max_iter=1000).fit(*train[key])
            x, y = test[key]
            own.append(auc(y, alone.decision_function(x)))
            pooled.append(auc(y, everyone.decision_function(x)))
    # With 3 healthy patients in Switzerland's test part, 15 seeds leave an error of about 0.012.
    assert np.mean(pooled) == pytest.approx(0.825, abs=0.02)
    assert np.mean(pooled) - np.mean(own) > 0.01
