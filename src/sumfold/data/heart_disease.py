"""920 patients of four hospitals: the real data of the demo, shipped inside the package."""

from __future__ import annotations

import csv
import dataclasses
import functools
import importlib.resources
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.federation import Federation
from sumfold.errors import user_facing

HEART_FEATURES = (
    "age",
    "sex",
    "chest_pain",
    "resting_bp",
    "cholesterol",
    "fasting_sugar_high",
    "resting_ecg",
    "max_heart_rate",
    "exercise_angina",
    "st_depression",
)
"""The columns of x, in order."""

_CHOLESTEROL, _CHEST_PAIN = HEART_FEATURES.index("cholesterol"), HEART_FEATURES.index("chest_pain")
_ASYMPTOMATIC = 4


@user_facing
def heart_disease(*, seed: int = 0, fraction: float = 0.7, raw: bool = False) -> tuple[Federation, Federation]:
    """Four hospitals that may not share patients: (train, test), split within each hospital by diagnosis.

    x is float32[n, 10], the columns `HEART_FEATURES`; y is int32[n], 1 where the angiogram showed heart
    disease (``disease_grade > 0``). The clients are cleveland (303 patients, 46 % ill), hungary (294, 36 %),
    switzerland (123, 93 %) and va_long_beach (200, 74 %).

    **Rows.** All 920, nothing is dropped. **Columns.** The ten that were recorded at every hospital. Left out
    are ``st_slope``, ``vessels`` and ``thal``, which are missing for 34 %, 66 % and 53 % of the patients,
    nearly all of them outside of Cleveland.

    **Missing values.** "Recorded" is not "complete": the hospitals lack different things. A cholesterol of 0
    is no measurement and is read as missing. So cholesterol is missing for *every* patient of Switzerland, 56
    of VA Long Beach and 23 of Hungary; fasting_sugar_high for 75 of Switzerland, 8 of Hungary and 7 of VA;
    resting_bp, max_heart_rate, exercise_angina and st_depression for 53 to 56 of VA, and for at most 6 of
    Hungary or Switzerland; Cleveland lacks nothing. One patient of VA has a resting_bp of 0, left as it is.

    With ``raw=False`` the values are ready for a linear model. chest_pain, a code without an order (1 typical
    angina, 2 atypical, 3 non-anginal, 4 asymptomatic), becomes 1 for asymptomatic and 0 otherwise. Every
    column is centred and scaled by the mean and deviation of the training patients of all hospitals, and a
    missing value is the mean, that is 0. Those means and deviations need only the sums of x, of x² and the
    counts of observed values, which is what a federated round computes: no patient has to leave a hospital.

    Args:
        seed: another seed gives another split.
        fraction: of each hospital's patients for training; each keeps its share of ill patients.
        raw: leave the values and codes as they are, with NaN where one is missing.

    Raises:
        DataError: a fraction outside of (0, 1) (SF-DATA-017).

    Reference:
        Janosi, Steinbrunn, Pfisterer and Detrano, "Heart Disease", UCI Machine Learning Repository, 1989,
        https://doi.org/10.24432/C52P4X, licensed CC BY 4.0.

    Example:
        >>> train, test = heart_disease()
        >>> train
        Federation(4 clients, 644 examples, x float32[10], y int32)
        >>> test.ids
        ('cleveland', 'hungary', 'switzerland', 'va_long_beach')
    """
    hospital, x, y = _patients()
    train, test = Federation.from_arrays(x, y, client_ids=hospital).split(fraction, seed=seed, stratify=True)
    if raw:
        return train, test
    coded = x.astype(np.float64)
    coded[:, _CHEST_PAIN] = coded[:, _CHEST_PAIN] == _ASYMPTOMATIC
    standard = _standardised(coded, np.concatenate([train.rows(k) for k in range(len(train))]))
    return dataclasses.replace(train, examples=(standard, y)), dataclasses.replace(test, examples=(standard, y))


def _standardised(x: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """Each column less its mean over `rows`, divided by its deviation there; 0 where it is missing."""
    known = ~np.isnan(x)
    filled = np.where(known, x, 0.0)
    count = known[rows].sum(axis=0)
    mean = filled[rows].sum(axis=0) / count
    deviation = np.sqrt((filled[rows] ** 2).sum(axis=0) / count - mean**2)
    return np.where(known, (filled - mean) / deviation, 0.0).astype(np.float32)


@functools.cache
def _patients() -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Hospital [920], x [920, 10] with NaN where a value is missing, y [920]."""
    text = importlib.resources.files("sumfold.data").joinpath("heart_disease.csv").read_text("utf-8")
    patients = list(csv.DictReader(text.splitlines()))
    x = np.array([[float(p[name] or "nan") for name in HEART_FEATURES] for p in patients], np.float32)
    x[x[:, _CHOLESTEROL] == 0, _CHOLESTEROL] = np.nan
    y = np.array([int(p["disease_grade"]) > 0 for p in patients], np.int32)
    for array in (x, y):  # shared by every federation made from them
        array.flags.writeable = False
    return np.array([p["hospital"] for p in patients]), x, y
