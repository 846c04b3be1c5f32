"""The figures of the design notes that no other benchmark gives: the plan's time, a plan's size, the histogram's AUC.

python benchmarks/design_notes.py      (needs the extra sklearn; the machine should be idle)
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

import sumfold as sf
from sumfold import keys
from sumfold.core.batching import plan


def seconds(function: Callable[[], Any], repeats: int = 5) -> float:
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return round(statistics.median(taken), 3)


def planning() -> dict[str, Any]:
    """Note 0003: the plan of a cohort, and a loop that only permutes."""
    counts = np.random.default_rng(0).integers(1, 101, 10_000)
    batching, codes, seed = sf.Batching(size=32), keys.codes(range(10_000)), keys.root(0)
    loop = seconds(lambda: [np.random.default_rng(k).permutation(n) for k, n in enumerate(counts)])
    return {
        "rows": int(counts.sum()),
        "plan_s": seconds(lambda: plan(counts, codes, batching, seed, 0)),
        "loop_s": loop,
    }


def logistic() -> sf.models.Model:
    return sf.models.from_functions(
        init=lambda key: {"w": jnp.zeros(10), "b": jnp.zeros(())},
        predict=lambda params, x: x @ params["w"] + params["b"],
        loss=optax.sigmoid_binary_cross_entropy,
        metrics={"auc": sf.metrics.auc},
    )


def plan_bytes() -> int:
    """Note 0005: one exported plan, as Loopback sends it, without the metric."""
    train, _ = sf.data.heart_disease()
    model = logistic()
    plain = sf.models.from_functions(model.init, lambda p, x: x @ p["w"] + p["b"], optax.sigmoid_binary_cross_entropy)
    process = sf.learning.fed_avg(plain, optax.sgd(0.1)).on(sf.Loopback())
    process.next(process.initialize(), train)
    (runner,) = process._run.runners.values()
    return sum(len(program) for program in runner.manifest.programs.values())


def areas() -> dict[str, Any]:
    """Note 0009: the histogram's area against the exact one, of a trained model."""
    train, test = sf.data.heart_disease()
    process = sf.learning.fed_avg(logistic(), optax.sgd(0.1))
    state = process.initialize()
    for _ in range(20):
        state, _ = process.next(state, train)
    weights, found = process.get_model_weights(state), {}
    for name, (x, y) in {"all": test.pooled(), **{h: test[h] for h in test}}.items():
        exact = roc_auc_score(y, process.model.predict(weights, x))
        found[name] = [round(process.model.evaluate(weights, x, y)["auc"], 5), round(float(exact), 5)]
    return found


def codings(seeds: int = 15) -> dict[str, list[float]]:
    """Note 0012: mean AUC of the pooled model over hospitals, by the coding of chest_pain; seeds 0-4, and all."""
    reached: dict[str, list[float]] = {"plain code": [], "asymptomatic": [], "one column a code": []}
    for seed in range(seeds):
        train, test = sf.data.heart_disease(seed=seed)
        raw_train, raw_test = sf.data.heart_disease(seed=seed, raw=True)
        for name, scores in reached.items():

            def coded(x: Any, raw: Any, name: str = name) -> Any:
                pain = raw[:, [2]]
                columns = {"plain code": (pain - 3.25) / 0.95, "asymptomatic": x[:, [2]]}
                return np.concatenate([np.delete(x, 2, 1), columns.get(name, pain == np.arange(1, 5))], axis=1)

            x = np.concatenate([coded(train[h][0], raw_train[h][0]) for h in train])
            fitted = LogisticRegression(max_iter=2000).fit(x, np.concatenate([train[h][1] for h in train]))
            each = [
                roc_auc_score(test[h][1], fitted.decision_function(coded(test[h][0], raw_test[h][0]))) for h in test
            ]
            scores.append(float(np.mean(each)))
    return {name: [round(float(np.mean(s[:5])), 3), round(float(np.mean(s)), 3)] for name, s in reached.items()}


def main() -> None:
    figures = {"planning": planning(), "plan_bytes": plan_bytes(), "auc_histogram_exact": areas(), "codings": codings()}
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
