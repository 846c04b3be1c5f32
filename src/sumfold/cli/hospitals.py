"""Four hospitals train a model together: the experiment that ``sumfold demo`` shows, without any printing.

For each seed, on test patients that no training saw:

    own         each hospital's model of its own training patients
    others      the mean over what the three other hospitals' own models reach here
    federated   federated averaging over the four hospitals
    pooled      the same training on all patients in one place: what federated learning does without

All four are `fed_avg`, which with one client is plain gradient descent, with the same number of passes over the
training patients. Means and deviations of the columns are a federated round too (sums of x, of x² and of counts):
for the federated model no patient leaves a hospital for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import sumfold as sf
from sumfold.data.heart_disease import HEART_FEATURES

__all__ = ["MEASURES", "MODELS", "ROUNDS", "Experiment", "Hospital", "run"]

MODELS = ("own", "others", "federated", "pooled")
MEASURES = ("auc", "accuracy", "loss")
ROUNDS = 50

_NAMES = {
    "cleveland": "Cleveland",
    "hungary": "Hungary",
    "switzerland": "Switzerland",
    "va_long_beach": "VA Long Beach",
}
_BATCHING = sf.Batching(size=256, epochs=5)  # a hospital's training patients are one batch: five steps a round
_RATE, _DECAY = 0.3, 0.01
_CHEST_PAIN, _ASYMPTOMATIC = HEART_FEATURES.index("chest_pain"), 4


@dataclass(frozen=True)
class Hospital:
    """What the words and the table say of a hospital.

    Attributes:
        name: as people write it.
        train, test: how many patients.
        ill: the share of ill patients, over both.
        rarest: how many test patients belong to the rarer diagnosis; few of them make its AUC uncertain.
        unmeasured: the columns that no patient has.
    """

    name: str
    train: int
    test: int
    ill: float
    rarest: int
    unmeasured: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Experiment:
    """The numbers of all seeds.

    Attributes:
        rounds: of federated training.
        hospitals: in the order of the last axes below.
        scores: by measure, [seed, model, hospital]; models in the order of `MODELS`.
        curve: by measure, the federated model by round, [seed, round, hospital]; round 0 is untrained.
    """

    rounds: int
    hospitals: tuple[Hospital, ...]
    scores: Mapping[str, Float[np.ndarray, "seeds 4 hospitals"]]
    curve: Mapping[str, Float[np.ndarray, "seeds rounds hospitals"]]

    def of(self, measure: str, model: str) -> Float[np.ndarray, "seeds hospitals"]:
        """One measure of one model."""
        return self.scores[measure][:, MODELS.index(model)]


def run(seeds: int = 5, rounds: int = ROUNDS, done: Callable[[int], None] = lambda seed: None) -> Experiment:
    """The experiment for the splits 0 … seeds − 1.

    Args:
        seeds: how many splits into training and test patients.
        rounds: of federated training; the other models are trained for as long.
        done: called with each seed when it is finished.
    """
    model, judge = _logistic_regression(), _logistic_regression(_JUDGE)
    moments = sf.analytics.moments(len(HEART_FEATURES))
    optimizer = optax.chain(optax.add_decayed_weights(_DECAY), optax.sgd(_RATE))
    averaging = sf.learning.fed_avg(model, optimizer, batching=_BATCHING)
    scores, curves = [], []
    for seed in range(seeds):
        train, test = _prepared(moments, seed)
        score, curve = _one_split(averaging, judge, train, test, rounds)
        scores.append(score)
        curves.append(curve)
        done(seed)
    return Experiment(rounds, _hospitals(), _by_measure(scores), _by_measure(curves))


def _logistic_regression(metrics: Mapping[str, Any] | None = None) -> sf.models.Model:
    return sf.models.from_functions(
        init=lambda key: {"w": jnp.zeros(len(HEART_FEATURES)), "b": jnp.zeros(())},
        predict=lambda weights, x: x @ weights["w"] + weights["b"],
        loss=optax.sigmoid_binary_cross_entropy,
        metrics=metrics,
    )


_JUDGE = {"auc": sf.metrics.auc, "accuracy": sf.metrics.accuracy}  # the AUC from histograms of scores, which are sums


# -- data, at the hospitals


def _prepared(moments: sf.Process, seed: int) -> tuple[sf.Federation, sf.Federation]:
    """(train, test), standardised by a federated round over the training patients; a missing value is the mean."""
    train, test = (_each(part, _coded) for part in sf.data.heart_disease(seed=seed, raw=True))
    _, metrics = moments.next(moments.initialize(), train)
    found = metrics["client_work"]["moments"]
    mean, deviation = np.array(found["mean"], np.float32), np.array(found["deviation"], np.float32)

    def standardised(x: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
        scaled: Float[np.ndarray, "n f"] = np.nan_to_num((x - mean) / deviation)
        return scaled

    return _each(train, standardised), _each(test, standardised)


def _each(federation: sf.Federation, change: Callable[[Any], Any]) -> sf.Federation:
    """The federation with x changed at every client."""
    clients = ((hospital, federation[hospital]) for hospital in federation.ids)
    return sf.Federation.from_clients({hospital: (change(x), y) for hospital, (x, y) in clients})


def _coded(x: Float[np.ndarray, "n f"]) -> Float[np.ndarray, "n f"]:
    """chest_pain, a code without an order, becomes 1 for asymptomatic and 0 otherwise."""
    x = np.array(x)
    x[:, _CHEST_PAIN] = x[:, _CHEST_PAIN] == _ASYMPTOMATIC
    return x


def _hospitals() -> tuple[Hospital, ...]:
    train, test = sf.data.heart_disease(raw=True)
    found = []
    for name in train.ids:
        (x, y), (x_test, y_test) = train[name], test[name]
        rows, diagnoses = np.concatenate([x, x_test]), np.concatenate([y, y_test])
        empty = tuple(f for f, gone in zip(HEART_FEATURES, np.isnan(rows).all(axis=0), strict=True) if gone)
        rarest = int(np.bincount(y_test, minlength=2).min())
        found.append(Hospital(_NAMES[str(name)], len(x), len(x_test), float(diagnoses.mean()), rarest, empty))
    return tuple(found)


# -- models, and what they reach


def _one_split(
    process: sf.Process, judge: sf.models.Model, train: sf.Federation, test: sf.Federation, rounds: int
) -> tuple[Any, Any]:
    """Scores [model, hospital, measure] and the federated model's curve [round, hospital, measure]."""
    # The pooled model first: the largest plan makes the room that one compiled program needs for all single clients.
    together = sf.Federation.from_clients({"pooled": train.pooled()})
    pooled = _scores(judge, _trained(process, together, None, rounds)[-1], test)
    crossed = np.stack(
        [_scores(judge, _trained(process, train, [hospital], rounds)[-1], test) for hospital in train.ids]
    )  # [whose model, hospital, measure]
    own = np.stack([crossed[k, k] for k in range(len(train))])
    others = (crossed.sum(axis=0) - own) / (len(train) - 1)
    curve = np.stack([_scores(judge, weights, test) for weights in _trained(process, train, None, rounds)])
    return np.stack([own, others, curve[-1], pooled]), curve


def _trained(process: sf.Process, data: sf.Federation, clients: list[Any] | None, rounds: int) -> list[Any]:
    """The weights after 0, 1, …, `rounds` rounds with these clients."""
    state = process.initialize()
    weights = [process.get_model_weights(state)]
    for _ in range(rounds):
        state, _ = process.next(state, data, clients=clients)
        weights.append(process.get_model_weights(state))
    return weights


def _scores(judge: sf.models.Model, weights: Any, test: sf.Federation) -> Float[np.ndarray, "hospitals 3"]:
    """What a model reaches at each hospital, computed there, in the order of `MEASURES`."""
    reached = (judge.evaluate(weights, *test[hospital]) for hospital in test.ids)
    return np.array([[at[measure] for measure in MEASURES] for at in reached])


def _by_measure(stacked: list[Any]) -> dict[str, Any]:
    """One array a measure out of arrays whose last axis is the measures."""
    return dict(zip(MEASURES, np.moveaxis(np.stack(stacked), -1, 0), strict=True))
