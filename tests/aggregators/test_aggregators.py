"""mean and sum through a whole round, on both runtimes."""

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

CLIENTS = {"a": (2.0, 1.0), "b": (6.0, 3.0), "c": (100.0, 0.0)}


def sums_of(stage, value=lambda x: x[0]):
    def step(task, carry, batch, key):
        return carry + jnp.where(batch.mask[:, None], batch.examples, 0.0).sum(0)

    def finish(task, carry, key):
        return sf.Report({"it": sf.Contribution(value(carry), carry[1])})

    work = sf.Work(lambda task, key: jnp.zeros(2), step, finish, sf.Batching(size=1))
    finalize = lambda state, results, measured, key: (results["it"], {})
    return sf.Process(
        sf.Round("aggregate", lambda p, k: jnp.float32(0), (sf.Phase(lambda s, k: (), work, {"it": stage}, finalize),))
    )


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    ("stage", "all_", "none"),
    [(sf.aggregators.mean(), 5.0, np.nan), (sf.aggregators.sum(), 8.0, 0.0)],
    ids=["mean", "sum"],
)
def test_a_round(stage, all_, none, runtime):
    process = sums_of(stage).on(runtime)
    data = {k: np.array([v], np.float32) for k, v in CLIENTS.items()}
    state, _ = process.next(process.initialize(), data)
    assert float(state.algorithm) == all_
    nobody, _ = process.next(state, data, clients=["c"])
    np.testing.assert_equal(float(nobody.algorithm), none)


def test_only_the_folder_names_are_public():
    assert sf.aggregators.__all__ == ["mean", "sum"]
