"""The family of federated averaging on both runtimes: the same state, client memory and metrics."""

import functools
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

spec = importlib.util.spec_from_file_location("contract_rounds", Path(__file__).with_name("rounds.py"))
rounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rounds)

RUNTIMES = (sf.Simulation(), sf.Loopback())
CLASSES = 3
SIZES = {"a": 9, "single": 1, "empty": 0, "d": 14}


def rows():
    """Ragged clients of six features, one of them without any row and one with a single one."""
    draw = np.random.default_rng(0)
    return {
        k: (draw.normal(size=(n, 6)).astype(np.float32), draw.integers(0, CLASSES, n).astype(np.int32))
        for k, n in SIZES.items()
    }


def functions():
    return sf.models.from_functions(
        lambda key: {"w": jnp.zeros((6, CLASSES)), "b": jnp.zeros(CLASSES)},
        lambda p, x: x @ p["w"] + p["b"],
        optax.softmax_cross_entropy_with_integer_labels,
        {"accuracy": sf.metrics.accuracy},
    )


def keras_dense():
    """With a normalisation layer: its statistics are a part of their own beside what the algorithm sends."""

    def build():
        layers = [keras.layers.Input((6,)), keras.layers.BatchNormalization(), keras.layers.Dense(CLASSES)]
        return keras.Sequential(layers)

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return sf.models.from_keras(build, loss=loss, metrics=[keras.metrics.SparseCategoricalAccuracy()])


MODELS = {"functions": functions, "keras": keras_dense}
CLIENTS = {"sgd": lambda: optax.sgd(0.1), "adam": lambda: optax.adam(0.02)}
SERVERS = {"sgd": lambda: optax.sgd(1.0), "adam": lambda: optax.adam(0.02)}
AGGREGATORS = {
    "mean": sf.aggregators.mean,
    "clip, mean": lambda: sf.chain(rounds.adaptive_clip(), sf.aggregators.mean()),
}
FAMILY = {
    "fed_sgd": lambda model, client, server, **options: sf.learning.fed_sgd(model, server, **options),
    "fed_prox": lambda model, client, server, **options: sf.learning.fed_prox(model, client, server, mu=0.5, **options),
    "scaffold": sf.learning.scaffold,
    "fed_nova": sf.learning.fed_nova,
    "fed_dyn": lambda model, client, server, **options: sf.learning.fed_dyn(
        model, client, server, alpha=0.5, **options
    ),
    "local_layers": lambda model, *optimizers, **options: sf.learning.local_layers(
        model, *optimizers, local=lambda name: name.endswith(("b", "bias")), **options
    ),
    "fed_rep": lambda model, *optimizers, **options: sf.learning.local_layers(
        model, *optimizers, local=lambda name: name.endswith(("b", "bias")), head_steps=2, **options
    ),
    "fed_bn": lambda model, *optimizers, **options: sf.learning.fed_bn(
        model, *optimizers, local="b" if model.names is None else None, **options
    ),
    "ditto": lambda model, *optimizers, **options: sf.learning.ditto(model, *optimizers, mu=0.5, **options),
    "q_fed_avg": lambda model, *optimizers, **options: sf.learning.q_fed_avg(
        model, *optimizers, q=1.5, lipschitz=5.0, **options
    ),
    "ifca": lambda model, *optimizers, **options: sf.learning.ifca(model, *optimizers, clusters=2, **options),
}
PLAIN, CLIPPED = "mean", "clip, mean"
# Every pair of (client, server, aggregator) is there for functions and Keras together.
MATRIX = [
    *[("functions", name, "sgd", "adam", CLIPPED) for name in FAMILY],
    *[("functions", name, "adam", "sgd", PLAIN) for name in ("fed_prox", "scaffold", "fed_dyn")],
    ("keras", "fed_sgd", "sgd", "sgd", PLAIN),  # has no client optimizer
    ("keras", "fed_prox", "adam", "adam", CLIPPED),
    ("keras", "scaffold", "adam", "sgd", CLIPPED),
    ("keras", "fed_nova", "sgd", "sgd", PLAIN),
    ("keras", "fed_dyn", "adam", "adam", PLAIN),
    ("functions", "fed_rep", "adam", "sgd", PLAIN),
    ("functions", "ditto", "adam", "sgd", PLAIN),
    ("keras", "local_layers", "adam", "adam", PLAIN),
    ("keras", "fed_bn", "sgd", "sgd", CLIPPED),
    ("keras", "ditto", "sgd", "adam", CLIPPED),
    ("keras", "q_fed_avg", "adam", "sgd", PLAIN),
    ("keras", "ifca", "sgd", "adam", PLAIN),
]


@functools.cache
def model_of(name):
    return MODELS[name]()


def made(name, model="functions", client="sgd", server="sgd", aggregator=PLAIN, **options):
    parts = model_of(model), CLIENTS[client](), SERVERS[server]()
    default = sf.Batching(size=4, epochs=1 if name == "fed_sgd" else 2, drop_remainder=model == "keras")
    return FAMILY[name](*parts, aggregator=AGGREGATORS[aggregator](), **{"batching": default, **options})


@pytest.mark.parametrize(("model", "name", "client", "server", "aggregator"), MATRIX, ids=lambda v: v)
def test_runtimes_agree(model, name, client, server, aggregator):
    """Under a clip one client is not finite from the start: it is left out, and remembers nothing."""
    data = rows()
    if aggregator == CLIPPED:
        data["d"] = (data["d"][0] * np.nan, data["d"][1])
    process = made(name, model, client, server, aggregator)
    agreement = assert_runtimes_agree(process, data, *RUNTIMES, rounds=2)
    assert agreement.weights < 1e-5


@pytest.mark.parametrize("name", ["scaffold", "fed_dyn"])
def test_a_state_moves_between_runtimes_with_its_memory(name):
    """One round here and one there is two rounds here: c, h and the clients' memory come along."""
    process, data = made(name), rows()
    here, there = (process.on(runtime) for runtime in RUNTIMES)
    cohorts = [["a", "d"], ["d", "single"], ["a", "empty", "single"]]
    stayed = moved = process.initialize(clients=6)
    for number, cohort in enumerate(cohorts):
        stayed, _ = here.next(stayed, data, clients=cohort)
        moved, _ = (there if number % 2 else here).next(moved, data, clients=cohort)
    assert set(stayed.clients) == set(moved.clients) == set(SIZES)
    for k in SIZES:
        for a, b in zip(stayed.clients[k][0].work.values(), moved.clients[k][0].work.values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=k)
    for part in stayed.algorithm.own[0]:
        np.testing.assert_allclose(stayed.algorithm.own[0][part], moved.algorithm.own[0][part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_rounds_are_lawful(name):
    process = made(name, aggregator="clip, mean")
    params = process.model.init(sf.keys.typed(sf.keys.root(0)))
    line = sf.testing.check_round(process.round, params, (np.zeros((4, 6), np.float32), np.zeros(4, np.int32)))
    assert line.startswith("phase 0:")
