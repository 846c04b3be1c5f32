"""The algorithms of the learning family, built small: what the contract suites run."""

import functools
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax.numpy as jnp
import keras
import numpy as np
import optax

import sumfold as sf

spec = importlib.util.spec_from_file_location("contract_rounds", Path(__file__).with_name("rounds.py"))
rounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rounds)

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
