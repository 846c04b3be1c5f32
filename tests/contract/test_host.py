"""Host models under every algorithm that takes them, every kind of aggregation, on both runtimes."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

torch = pytest.importorskip("torch")

spec = importlib.util.spec_from_file_location("contract_rounds", Path(__file__).with_name("rounds.py"))
rounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rounds)

RUNTIMES = (sf.Simulation(host=sf.Workers(2)), sf.Loopback())
SIZES = {"a": 9, "single": 1, "empty": 0, "d": 14}
CLASSES = 3


def rows():
    draw = np.random.default_rng(0)
    return {
        k: (draw.normal(size=(n, 6)).astype(np.float32), draw.integers(0, CLASSES, n).astype(np.int32))
        for k, n in SIZES.items()
    }


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


@functools.cache
def model():
    return sf.models.from_torch(
        lambda: torch.nn.Linear(6, CLASSES),
        torch.nn.CrossEntropyLoss(reduction="none"),
        sgd,
        {"accuracy": sf.metrics.accuracy},
    )


def sparse(k=4):
    """Top-k with error feedback over all leaves together."""

    def encode(public, memory, given, key):
        owed = jax.tree.map(lambda a, b: a + b, given.value, memory)
        flat = jnp.concatenate([jnp.abs(leaf).reshape(-1) for leaf in jax.tree.leaves(owed)])
        threshold = jnp.sort(flat)[-k]
        sent = jax.tree.map(lambda a: jnp.where(jnp.abs(a) >= threshold, a, 0.0), owed)
        return sf.Contribution(sent, given.weight), jax.tree.map(lambda a, b: a - b, owed, sent)

    zeros = lambda shapes: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    return sf.Stage(encode, lambda s, t, key: (t, s, {}), memory=zeros, group=None)


def median():
    """Coordinate by coordinate, of clients that weigh something: it needs each client's own value."""

    def encode(public, memory, given, key):
        return jax.tree.map(lambda a: jnp.where(given.weight > 0, a, jnp.nan), given.value), memory

    def decode(state, stacked, key):
        def middle(values):
            present = stacked.present.reshape(-1, *[1] * (values.ndim - 1))
            return jnp.nanmedian(jnp.where(present, values, jnp.nan), axis=0)

        return jax.tree.map(middle, stacked.values), state, {}

    from sumfold.core import stack

    return sf.Stage(encode, decode, group=stack)


AGGREGATORS = {
    "mean": sf.aggregators.mean,
    "top-k, clip, mean": lambda: sf.chain(sparse(), rounds.adaptive_clip(), sf.aggregators.mean()),
    "median": median,
}
FAMILY = {
    "fed_avg": sf.learning.fed_avg,
    "fed_prox": functools.partial(sf.learning.fed_prox, mu=0.5),
    "fed_nova": sf.learning.fed_nova,
}


@pytest.mark.parametrize("aggregator", AGGREGATORS)
@pytest.mark.parametrize("name", FAMILY)
def test_runtimes_agree(name, aggregator):
    """One client's rows are not finite: it is left out and remembers nothing, on both."""
    data = rows()
    data["nan"] = (data["d"][0] * np.nan, data["d"][1])
    process = FAMILY[name](
        model(),
        server_optimizer=optax.adam(0.02),
        aggregator=AGGREGATORS[aggregator](),
        batching=sf.Batching(size=4, epochs=2),
    )
    agreement = assert_runtimes_agree(process, data, *RUNTIMES, rounds=2)
    assert agreement.weights < 1e-5
    state, metrics = process.on(RUNTIMES[0]).next(process.initialize(), data)
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert "failed" not in metrics["client_work"]
    assert "nan" not in state.clients


@pytest.mark.parametrize("per_client", [False, True], ids=["sums", "per client"])
def test_evaluation_agrees(per_client):
    process = sf.learning.fed_eval(model(), per_client=per_client)
    assert_runtimes_agree(process, rows(), *RUNTIMES, rounds=2)


@pytest.mark.parametrize("name", FAMILY)
def test_rounds_are_lawful(name):
    process = FAMILY[name](model())
    params = process.model.init(sf.keys.typed(sf.keys.root(0)))
    line = sf.testing.check_round(process.round, params, (np.zeros((4, 6), np.float32), np.zeros(4, np.int32)))
    assert line.startswith("phase 0:")
