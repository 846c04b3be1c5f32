"""Which algorithm, for clients whose data differ? Two data sets, the same cohorts for all, several seeds.

python benchmarks/which_algorithm.py [--seeds 5] [--out FOLDER]      (needs the extras sklearn and plot; minutes)

digits: 20 clients, labels by Dirichlet(0.1), a linear model; rounds to 90 % of the pooled test images.
hospitals: the four of heart_disease, a logistic regression; rounds until the mean AUC over the hospitals is within
0.005 of that of the model trained on all patients in one place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf

RATE = 0.1
HEART_RATE = 0.1


def digits_model() -> sf.models.Model:
    return sf.models.from_functions(
        init=lambda key: {"w": jnp.zeros((64, 10)), "b": jnp.zeros(10)},
        predict=lambda p, x: x.reshape(len(x), 64) @ p["w"] + p["b"],
        loss=optax.softmax_cross_entropy_with_integer_labels,
        metrics={"accuracy": sf.metrics.accuracy},
    )


def heart_model() -> sf.models.Model:
    return sf.models.from_functions(
        init=lambda key: {"w": jnp.zeros(10), "b": jnp.zeros(())},
        predict=lambda p, x: x @ p["w"] + p["b"],
        loss=optax.sigmoid_binary_cross_entropy,
        metrics={"auc": sf.metrics.auc, "accuracy": sf.metrics.accuracy},
    )


def algorithms(model: sf.models.Model, rate: float, batching: sf.Batching) -> dict[str, sf.Process]:
    """The family with one local optimizer; the server's rates are those of a short search, the same for both data."""
    learning, sgd = sf.learning, optax.sgd(rate)
    return {
        "FedSGD": learning.fed_sgd(model, optax.sgd(rate)),
        "FedAvg": learning.fed_avg(model, sgd, batching=batching),
        "FedProx, mu 0.1": learning.fed_prox(model, sgd, mu=0.1, batching=batching),
        "FedNova": learning.fed_nova(model, sgd, batching=batching),
        "SCAFFOLD": learning.scaffold(model, sgd, batching=batching),
        "FedDyn, alpha 0.1": learning.fed_dyn(model, sgd, alpha=0.1, batching=batching),
        "Mime, momentum 0.9": learning.mime(model, optax.sgd(rate, momentum=0.9), batching=batching),
        "MimeLite, momentum 0.9": learning.mime_lite(model, optax.sgd(rate, momentum=0.9), batching=batching),
        "q-FedAvg, q 1": learning.q_fed_avg(model, sgd, q=1.0, lipschitz=1 / rate, batching=batching),
        "FedAvgM": learning.fed_avg(model, sgd, sf.optimizers.fed_avg_m(1.0, 0.9), batching=batching),
        "FedAdagrad": learning.fed_avg(model, sgd, sf.optimizers.fed_adagrad(0.1), batching=batching),
        "FedAdam": learning.fed_avg(model, sgd, sf.optimizers.fed_adam(0.03), batching=batching),
        "FedYogi": learning.fed_avg(model, sgd, sf.optimizers.fed_yogi(0.03), batching=batching),
    }


def digits(seeds: int, rounds: int, cohort: int | None) -> sf.Comparison:
    processes = algorithms(digits_model(), RATE, sf.Batching(size=16, epochs=2))
    return sf.compare(
        processes,
        lambda seed: sf.data.digits(clients=20, alpha=0.1, seed=seed),
        rounds=rounds,
        seeds=seeds,
        clients_per_round=cohort,
        progress=False,
    )


def hospitals(seeds: int, rounds: int) -> tuple[sf.Comparison, list[float]]:
    """The comparison, and for each seed the mean AUC over the hospitals of the pooled model after as many rounds."""
    model, batching = heart_model(), sf.Batching(size=32, epochs=2)
    parts = [sf.data.heart_disease(seed=seed) for seed in range(seeds)]

    def mean_auc(weights: Any, test: sf.Federation) -> float:
        return float(np.mean([model.evaluate(weights, *test[hospital])["auc"] for hospital in test.ids]))

    reached = []
    for seed, (train, test) in enumerate(parts):
        together = sf.Federation.from_clients({"pooled": train.pooled()})
        process = sf.learning.fed_avg(model, optax.sgd(HEART_RATE), batching=batching)
        history = sf.train(process, together, rounds=rounds, seed=seed, progress=False)
        reached.append(mean_auc(process.get_model_weights(history.state), test))

    def judged(seed: int) -> tuple[sf.Federation, Any]:
        train, test = parts[seed]

        def judge(weights: Any) -> dict[str, float]:
            auc = mean_auc(weights, test)
            return {"auc": auc, "below_pooled": reached[seed] - auc}

        return train, judge

    processes = algorithms(model, HEART_RATE, batching)
    return sf.compare(processes, judged, rounds=rounds, seeds=seeds, progress=False), reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    tables: dict[str, Any] = {}

    for name, cohort in (("digits, all 20 clients a round", None), ("digits, 5 of 20 clients a round", 5)):
        rounds = given.rounds if cohort is None else given.rounds * 5 // 3
        compared = digits(given.seeds, rounds, cohort)
        tables[name] = compared.table(target={"accuracy": 0.9})
        print(f"\n{name}\n{tables[name]}", flush=True)
        if given.out:
            given.out.mkdir(parents=True, exist_ok=True)
            compared.plot("accuracy").savefig(given.out / f"digits-{cohort or 'all'}.png", dpi=150)

    compared, reached = hospitals(given.seeds, given.rounds)
    tables["hospitals"] = compared.table(target=("below_pooled", 0.005, "min"))
    print(
        f"\nhospitals; pooled model: AUC {np.mean(reached):.4f} ± {np.std(reached, ddof=1):.4f}\n{tables['hospitals']}"
    )
    if given.out:
        (given.out / "tables.json").write_text(json.dumps(tables, indent=2))


if __name__ == "__main__":
    main()
