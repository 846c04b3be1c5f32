"""Rounds of a tiny model: by `process.next`, and by `sf.train`, which fuses them.

Four hospitals, logistic regression, batches of 16: `python benchmarks/fused.py` prints milliseconds a round as one line
of JSON, the median of seven runs of 300 rounds each.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf

ROUNDS, RUNS = 300, 7


def main() -> None:
    """Measure and print."""
    train, _ = sf.data.heart_disease()
    columns = np.asarray(train.pooled()[0]).shape[1]
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros(columns), "b": jnp.float32(0)},
        lambda p, x: x @ p["w"] + p["b"],
        lambda outputs, y: optax.sigmoid_binary_cross_entropy(outputs, y.astype(jnp.float32)),
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.05), batching=sf.Batching(16))

    def one_by_one() -> None:
        state = process.initialize()
        for _ in range(ROUNDS):
            state, _ = process.next(state, train)
        jax.block_until_ready(state.algorithm)

    def fused() -> None:
        sf.train(process, train, rounds=ROUNDS, progress=False)

    def two_each() -> None:
        sf.train(process, train, rounds=ROUNDS, clients_per_round=2, progress=False)

    found = {function.__name__: _milliseconds(function) for function in (one_by_one, fused, two_each)}
    print(json.dumps({"ms_a_round": found, "rounds": ROUNDS, "runs": RUNS, "jax": jax.__version__}))


def _milliseconds(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return round(statistics.median(taken) / ROUNDS * 1e3, 3)


if __name__ == "__main__":
    main()
