"""A computation of your own, written as a Round: exact linear regression over all clients, in a single round.

    (Σ XᵀX) w = Σ Xᵀy            both are sums over rows, so w is what all clients' rows together would give

python examples/own_round.py
"""

import jax.numpy as jnp
import numpy as np

import sumfold as sf
from sumfold.aggregators import sum as total

SIZE = len(sf.data.HEART_FEATURES) + 1  # one weight a column, and the intercept


# A client folds over its own batches: `init`, a `step` for every batch, `finish`.


def begin(task, key):
    return {"xx": jnp.zeros((SIZE, SIZE)), "xy": jnp.zeros(SIZE)}


def add_batch(task, sums, batch, key):
    x, y = batch.examples
    x = jnp.concatenate([x, jnp.ones((len(x), 1))], axis=1)
    x = jnp.where(batch.mask[:, None], x, 0.0)  # the last places of a short batch repeat a row: they must not count
    return {"xx": sums["xx"] + x.T @ x, "xy": sums["xy"] + x.T @ y.astype(x.dtype)}


def report(task, sums, key):
    part = sf.Contribution(sums, weight=jnp.float32(1))
    return sf.Report({"sums": part}, metrics={"num_examples": task.rows})


# The server sends nothing, receives the sums, and solves.


def send(state, key):
    return ()


def solve(state, results, measured, key):
    sums = results["sums"]
    return jnp.linalg.solve(sums["xx"], sums["xy"]), {"client_work": measured.sums}


regression = sf.Round(
    name="linear_regression",
    init=lambda params, key: jnp.zeros(SIZE),
    phases=(sf.Phase(send, sf.Work(begin, add_batch, report), {"sums": total()}, solve),),
)


def main():
    hospitals, _ = sf.data.heart_disease(seed=0)

    # Types first: what flows from the server to the clients and back. Nothing runs.
    print(sf.testing.check_round(regression, (), hospitals["cleveland"]))

    # The same record on two runtimes: one compiled program, and client by client through exported programs and bytes.
    process = sf.Process(regression)
    weights = {}
    for runtime in (sf.Simulation(), sf.Loopback()):
        state, metrics = process.on(runtime).next(process.initialize(), hospitals)
        weights[type(runtime).__name__] = np.asarray(state.algorithm)
        print(f"{metrics['client_work']['num_examples']} patients on {type(runtime).__name__}")

    # What all rows in one place would give. Only this line looks at them.
    x, y = hospitals.pooled()
    weights["all rows"] = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]

    print(f"\n{'':20}" + "".join(f"{name:>12}" for name in weights))
    for i, column in enumerate((*sf.data.HEART_FEATURES, "intercept")):
        print(f"{column:20}" + "".join(f"{values[i]:12.5f}" for values in weights.values()))
    return weights


if __name__ == "__main__":
    main()
