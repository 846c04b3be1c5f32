"""Every algorithm on both runtimes: the same state, client memory and metrics, under every kind of stage.

Algorithms that take `aggregator=` are run with each of `STAGES`; what is left out, and why, is in `SKIPPED`. Keras
models, whose statistics are a part of their own, and other optimizers are run with some.
"""

import dataclasses
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


def numbers():
    """The same clients with three features and a number to predict."""
    draw = np.random.default_rng(1)
    made = {k: (draw.normal(size=(n, 3)), draw.normal(size=n)) for k, n in SIZES.items()}
    return {k: (x.astype(np.float32), y.astype(np.float32)) for k, (x, y) in made.items()}


def linear():
    return sf.models.from_functions(
        lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(1)},
        lambda p, x: x @ p["w"] + p["b"],
        lambda outputs, y: (outputs - y) ** 2,
    )


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


MODELS = {"linear": linear, "functions": functions, "keras": keras_dense}
CLIENTS = {"sgd": lambda: optax.sgd(0.1), "adam": lambda: optax.adam(0.02)}
SERVERS = {"sgd": lambda: optax.sgd(1.0), "adam": lambda: optax.adam(0.02)}
STAGES = {
    "mean": sf.aggregators.mean,
    "clip, mean": lambda: sf.chain(rounds.adaptive_clip(), sf.aggregators.mean()),
    "top-k, mean": lambda: sf.chain(rounds.top_k(2), sf.aggregators.mean()),
    "median": rounds.median,
    "mean, fixed point": lambda: sf.chain(sf.aggregators.mean(), rounds.fixed_point()),
}
SAME = {
    "fed_prox": "what is sent is fed_avg's: only the gradient of a local step differs",
    "mime_lite": "what is sent is that of mime, in one exchange",
    "fed_rep": "local_layers with another client optimizer",
    "fed_bn": "local_layers, with the leaves found by their layer",
}
"""Algorithms that are run under the mean alone, and why."""
SKIPPED = {
    **{(name, stage): reason for name, reason in SAME.items() for stage in STAGES if stage != "mean"},
    ("q_fed_avg", "median"): "an update is the ratio of two weighted sums, and a median knows no weights",
    ("ifca", "top-k, mean"): "what a client owes a model that it did not choose would be sent with weight 0, and lost",
}
FAMILY = {
    "fed_avg": sf.learning.fed_avg,
    "fed_sgd": lambda model, client, server, **options: sf.learning.fed_sgd(model, server, **options),
    "fed_prox": lambda model, client, server, **options: sf.learning.fed_prox(model, client, server, mu=0.5, **options),
    "scaffold": sf.learning.scaffold,
    "fed_nova": sf.learning.fed_nova,
    "fed_dyn": lambda model, client, server, **options: sf.learning.fed_dyn(
        model, client, server, alpha=0.5, **options
    ),
    "mime": sf.learning.mime,
    "mime_lite": sf.learning.mime_lite,
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
CELLS = [(name, stage) for name in FAMILY for stage in STAGES if (name, stage) not in SKIPPED]
# Every pair of (client, server, aggregator) is there for functions and Keras together.
OPTIMIZERS = [
    ("functions", "fed_prox", "sgd", "adam", CLIPPED),
    ("functions", "fed_dyn", "adam", "sgd", PLAIN),
    ("keras", "fed_sgd", "sgd", "sgd", PLAIN),  # has no client optimizer
    ("keras", "scaffold", "adam", "sgd", CLIPPED),
    ("keras", "mime", "adam", "adam", PLAIN),
    ("keras", "local_layers", "adam", "adam", CLIPPED),
    ("keras", "fed_bn", "sgd", "sgd", CLIPPED),
    ("keras", "ifca", "sgd", "adam", PLAIN),
]


@functools.cache
def model_of(name):
    return MODELS[name]()


def made(name, model="functions", client="sgd", server="sgd", aggregator=PLAIN, **options):
    parts = model_of(model), CLIENTS[client](), SERVERS[server]()
    default = sf.Batching(size=4, epochs=1 if name == "fed_sgd" else 2, drop_remainder=model == "keras")
    return FAMILY[name](*parts, aggregator=STAGES[aggregator](), **{"batching": default, **options})


@pytest.mark.parametrize(("name", "stage"), CELLS, ids=lambda v: v)
def test_runtimes_agree_under_every_stage(name, stage):
    """Under a clip one client is not finite from the start: it is left out, and remembers nothing.

    A second round uses what clients remember, of the algorithm and of error feedback.
    """
    data = numbers()
    if stage == CLIPPED:
        data["d"] = (data["d"][0] * np.nan, data["d"][1])
    again = 2 if stage in (PLAIN, "top-k, mean") else 1
    agreement = assert_runtimes_agree(made(name, "linear", aggregator=stage), data, *RUNTIMES, rounds=again)
    assert agreement.weights < 1e-5


@pytest.mark.parametrize(("model", "name", "client", "server", "aggregator"), OPTIMIZERS, ids=lambda v: v)
def test_runtimes_agree_with_other_optimizers_and_models(model, name, client, server, aggregator):
    data = rows()
    if aggregator == CLIPPED:
        data["d"] = (data["d"][0] * np.nan, data["d"][1])
    process = made(name, model, client, server, aggregator)
    agreement = assert_runtimes_agree(process, data, *RUNTIMES, rounds=2)
    assert agreement.weights < 1e-5


@pytest.mark.parametrize("stage", ["sum", "sum, fixed point"])
def test_runtimes_agree_on_kmeans(stage):
    """Its stage is the sum; centroids of an integer sum, as behind masks, are those of the plain one."""
    points = {k: x for k, (x, _) in numbers().items()}
    process = plain = sf.learning.kmeans(2, 3, batching=sf.Batching(size=4, shuffle=False))
    if stage != "sum":
        (phase,) = process.round.phases
        exact = {"points": sf.chain(sf.aggregators.sum(), rounds.fixed_point())}
        process = dataclasses.replace(process, round=process.round._replace(phases=(phase._replace(aggregate=exact),)))
    assert_runtimes_agree(process, points, *RUNTIMES, rounds=2)
    (state, _), (expected, _) = (p.next(p.initialize(), points) for p in (process, plain))
    for name, value in plain.get_model_weights(expected).items():
        np.testing.assert_allclose(process.get_model_weights(state)[name], value, atol=1e-4)


def test_what_is_skipped_is_there():
    assert set(SKIPPED) < {(name, stage) for name in FAMILY for stage in STAGES}


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
