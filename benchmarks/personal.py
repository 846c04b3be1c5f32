"""Personalised models on the four hospitals, beside each hospital's own and the federated model.

    python benchmarks/personal.py [--splits 5] [--rounds 50]

For each hospital, on test patients that no training saw, accuracy and AUC, means over splits: its own local model, the
federated model, that model fine-tuned there, `local_layers` (the bias of a logistic regression; the last layer of a
small network), and `ditto`. All are trained on the same batches at the same rate; the settings are below, and none was
chosen by test patients of one hospital alone.
"""

from __future__ import annotations

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf
from sumfold.data.heart_disease import HEART_FEATURES

BATCHING = sf.Batching(size=256, epochs=5)  # a hospital's training patients are one batch: five steps a round
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.3))
HIDDEN = 8
METRICS = {"accuracy": sf.metrics.accuracy, "auc": sf.metrics.auc}


def logistic() -> sf.models.Model:
    return sf.models.from_functions(
        lambda key: {"w": jnp.zeros(len(HEART_FEATURES)), "b": jnp.zeros(())},
        lambda p, x: x @ p["w"] + p["b"],
        optax.sigmoid_binary_cross_entropy,
        METRICS,
    )


def network() -> sf.models.Model:
    def init(key):
        first, last = jax.random.split(key)
        return {
            "first": {
                "w": jax.random.normal(first, (len(HEART_FEATURES), HIDDEN)) / np.sqrt(len(HEART_FEATURES)),
                "b": jnp.zeros(HIDDEN),
            },
            "last": {"w": jax.random.normal(last, (HIDDEN,)) / np.sqrt(HIDDEN), "b": jnp.zeros(())},
        }

    def predict(p, x):
        return jnp.tanh(x @ p["first"]["w"] + p["first"]["b"]) @ p["last"]["w"] + p["last"]["b"]

    return sf.models.from_functions(init, predict, optax.sigmoid_binary_cross_entropy, METRICS)


def trained(process: sf.Process, data: sf.Federation, rounds: int, clients=None):
    state = process.initialize()
    for _ in range(rounds):
        state, _ = process.next(state, data, clients=clients)
    return state


def reached(model: sf.models.Model, train: sf.Federation, test: sf.Federation, rounds: int, personal: dict) -> dict:
    """Method -> hospital -> {"accuracy", "auc"}."""
    averaging = sf.learning.fed_avg(model, OPTIMIZER, batching=BATCHING)
    own = {k: averaging.get_model_weights(trained(averaging, train, rounds, [k])) for k in train.ids}
    weights = averaging.get_model_weights(trained(averaging, train, rounds))
    found = {
        "own": {k: model.evaluate(own[k], *test[k]) for k in test.ids},
        "federated": {k: model.evaluate(weights, *test[k]) for k in test.ids},
    }
    for steps in (5, 25):
        batching = sf.Batching(size=256, epochs=steps)
        tuned = sf.learning.fine_tune(model, OPTIMIZER, batching=batching, per_client=True)
        clients = tuned(weights, train, test)["clients"]
        found[f"fine-tuned, {steps} steps"] = {
            k: {name: clients[k][f"fine_tuned_{name}"] for name in METRICS} for k in test.ids
        }
    for name, make in personal.items():
        process = make(model)
        found[name] = sf.learning.evaluate_clients(process, trained(process, train, rounds), test)
    return found


def ditto(mu):
    return lambda model: sf.learning.ditto(model, OPTIMIZER, mu=mu, batching=BATCHING)


def local(names, **options):
    return lambda model: sf.learning.local_layers(model, OPTIMIZER, local=names, batching=BATCHING, **options)


EXPERIMENTS = {
    "logistic regression": (logistic, {"local bias": local("b"), **{f"ditto, mu {m}": ditto(m) for m in (0.1, 1.0)}}),
    f"network, {HIDDEN} hidden": (
        network,
        {
            "local last layer": local("last"),
            "local last bias": local("last/b"),
            "FedRep, last layer": local("last", head_steps=3),
            **{f"ditto, mu {m}": ditto(m) for m in (0.1, 1.0)},
        },
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    for title, (build, personal) in EXPERIMENTS.items():
        began = time.perf_counter()
        splits = [
            reached(build(), *sf.data.heart_disease(seed=seed), given.rounds, personal) for seed in range(given.splits)
        ]
        hospitals = list(next(iter(splits[0].values())))
        for measure in METRICS:
            print(f"\n{title}: {measure}, mean over {given.splits} splits, {given.rounds} rounds")
            print(f"{'':<22}" + "".join(f"{k:>15}" for k in hospitals) + f"{'mean':>9}")
            for method in splits[0]:
                values = np.array([[split[method][k][measure] for k in hospitals] for split in splits])
                cells = [f"{m:.3f} ± {d:.3f}" for m, d in zip(values.mean(0), values.std(0), strict=True)]
                print(f"{method:<22}" + "".join(f"{cell:>15}" for cell in cells) + f"{values.mean():>9.3f}")
        print(f"({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
