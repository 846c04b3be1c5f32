"""A computation of your own, written as a Round: exact linear regression over all clients, in a single round.

    (Σ XᵀX) w = Σ Xᵀy            both sums over all rows of all clients, so w is what the pooled rows would give

python examples/own_round.py
"""

import jax.numpy as jnp
import numpy as np

import sumfold as sf
from sumfold.aggregators import sum as total

FEATURES = sf.data.HEART_FEATURES


# A client folds over its own batches: `init`, a `step` for every batch, `finish`.


def begin(task, key):
    size = len(FEATURES) + 1
    return {"xx": jnp.zeros((size, size)), "xy": jnp.zeros(size)}


def add_batch(task, sums, batch, key):
    x, y = batch.examples
    x = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)
    x = jnp.where(batch.mask[:, None], x, 0.0)  # where a batch is short, its last places must not count
    return {"xx": sums["xx"] + x.T @ x, "xy": sums["xy"] + x.T @ y.astype(x.dtype)}


def report(task, sums, key):
    part = sf.Contribution(sums, weight=jnp.float32(1))
    return sf.Report({"sums": part}, metrics={"num_examples": task.rows})


# The server sends nothing, adds up what comes, and solves.


def send(state, key):
    return ()


def solve(state, results, measured, key):
    sums = results["sums"]
    return jnp.linalg.solve(sums["xx"], sums["xy"]), {"client_work": measured.sums}


regression = sf.Round(
    name="linear_regression",
    init=lambda params, key: jnp.zeros(len(FEATURES) + 1),
    phases=(sf.Phase(send, sf.Work(begin, add_batch, report), {"sums": total()}, solve),),
)


def main():
    hospitals, _ = sf.data.heart_disease(seed=0)
    print(sf.testing.check_round(regression, (), hospitals["cleveland"]))

    # The same record on two runtimes: compiled as one program, and client by client through exported programs and bytes.
    process = sf.Process(regression)
    for runtime in (sf.Simulation(), sf.Loopback()):
        state, metrics = process.on(runtime).next(process.initialize(), hospitals)
        print(f"{type(runtime).__name__:11}", np.asarray(state.algorithm).round(3), metrics["client_work"])

    # What the pooled rows give. Only this last line looks at them.
    x, y = hospitals.pooled()
    pooled = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    print(f"{'pooled rows':11}", pooled.round(3))
    return np.asarray(state.algorithm), pooled


if __name__ == "__main__":
    main()
