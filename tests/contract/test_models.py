"""Every model adapter under every algorithm and aggregator, on both runtimes, with the same numbers."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox
import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

CLASSES = 3
cross_entropy = optax.softmax_cross_entropy_with_integer_labels
METRICS = {"accuracy": sf.metrics.accuracy}


def images(seed=0):
    """Ragged clients of 8×8 images, one of them without any."""
    draw = np.random.default_rng(seed)
    return {
        name: (draw.normal(size=(n, 8, 8, 1)).astype(np.float32), draw.integers(0, CLASSES, n).astype(np.int32))
        for name, n in {"a": 9, "b": 4, "c": 0, "d": 14}.items()
    }


def functions():
    def init(key):
        return {"w": 0.1 * jax.random.normal(key, (64, CLASSES)), "b": jnp.zeros(CLASSES), "scale": jnp.int32(2)}

    def predict(params, x, key=None):
        flat = x.reshape(len(x), -1)
        if key is not None:
            flat = flat * jax.random.bernoulli(key, 0.8, flat.shape)
        return flat @ params["w"] * params["scale"] + params["b"]

    return sf.models.from_functions(init, predict, cross_entropy, METRICS)


def keras_cnn():
    def build():
        return keras.Sequential(
            [
                keras.layers.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, activation="relu", kernel_regularizer=keras.regularizers.L2(1e-3)),
                keras.layers.MaxPooling2D(2),
                keras.layers.Flatten(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(CLASSES),
            ]
        )

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return sf.models.from_keras(build, loss=loss, metrics=[keras.metrics.SparseCategoricalAccuracy()])


def keras_batch_norm():
    def build():
        return keras.Sequential(
            [
                keras.layers.Input((8, 8, 1)),
                keras.layers.Conv2D(4, 3, use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.Flatten(),
                keras.layers.Dense(CLASSES),
            ]
        )

    return sf.models.from_keras(build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, train: bool = False):
        x = flax.linen.Conv(4, (3, 3))(x)
        x = flax.linen.relu(x).reshape(len(x), -1)
        x = flax.linen.Dropout(0.2, deterministic=not train)(x)
        return flax.linen.Dense(CLASSES)(x)


def linen():
    return sf.models.from_flax(Linen(), example=np.zeros((1, 8, 8, 1), np.float32), loss=cross_entropy, metrics=METRICS)


class Nnx(flax.nnx.Module):
    def __init__(self, rngs):
        self.conv = flax.nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.dropout = flax.nnx.Dropout(0.2, rngs=rngs)
        self.dense = flax.nnx.Linear(256, CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.dropout(flax.nnx.relu(self.conv(x)).reshape(len(x), -1)))


def nnx():
    example = np.zeros((1, 8, 8, 1), np.float32)
    return sf.models.from_flax(lambda rngs: Nnx(rngs), example=example, loss=cross_entropy, metrics=METRICS)


class Equinox(equinox.Module):
    conv: equinox.nn.Conv2d
    dropout: equinox.nn.Dropout
    dense: equinox.nn.Linear

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.conv = equinox.nn.Conv2d(1, 4, 3, key=a)
        self.dropout = equinox.nn.Dropout(0.2)
        self.dense = equinox.nn.Linear(4 * 6 * 6, CLASSES, key=b)

    def __call__(self, x, key=None):
        x = jax.nn.relu(self.conv(jnp.moveaxis(x, -1, 0))).reshape(-1)
        return self.dense(self.dropout(x, key=key))


def equinox_module():
    return sf.models.from_equinox(lambda key: Equinox(key), loss=cross_entropy, metrics=METRICS)


MODELS = {
    "functions": functions,
    "keras": keras_cnn,
    "keras, batch norm": keras_batch_norm,
    "linen": linen,
    "nnx": nnx,
    "equinox": equinox_module,
}
RUNTIMES = (sf.Simulation(), sf.Loopback())


@pytest.mark.parametrize("name", MODELS)
def test_fed_avg_agrees(name):
    model = MODELS[name]()
    batching = sf.Batching(size=4, epochs=2, drop_remainder=model.coupled is not None)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=batching)
    assert_runtimes_agree(process, images(), *RUNTIMES, rounds=5)


@pytest.mark.parametrize("name", ["functions", "keras"])
def test_fed_eval_agrees(name):
    process = sf.learning.fed_eval(MODELS[name](), batching=sf.Batching(size=8, shuffle=False))
    assert_runtimes_agree(process, images(), *RUNTIMES, rounds=2)


@pytest.mark.parametrize("server", ["adam", "yogi", "adagrad", "momentum", "keras adam"])
def test_server_optimizers_agree(server):
    optimizer = {
        "adam": optax.adam(0.01),
        "yogi": optax.yogi(0.01),
        "adagrad": optax.adagrad(0.01),
        "momentum": optax.sgd(0.5, momentum=0.9),
        "keras adam": keras.optimizers.Adam(0.01),
    }[server]
    process = sf.learning.fed_avg(
        functions(),
        keras.optimizers.SGD(0.1, momentum=0.9),
        optimizer,
        weighting="uniform",
        batching=sf.Batching(size=4),
    )
    assert_runtimes_agree(process, images(), *RUNTIMES, rounds=5)


# The mean by examples is in `test_fed_avg_agrees`, the uniform one in `test_server_optimizers_agree`.
@pytest.mark.parametrize(
    ("weighting", "aggregator"), [("examples", "sum"), ("uniform", "sum"), ("by loss", "mean"), ("by loss", "sum")]
)
def test_aggregators_and_weightings_agree(weighting, aggregator):
    weigh = (lambda metrics: 1.0 / (1.0 + metrics["loss"])) if weighting == "by loss" else weighting
    process = sf.learning.fed_avg(
        functions(),
        optax.sgd(0.05),
        weighting=weigh,
        aggregator=getattr(sf.aggregators, aggregator)(),
        batching=sf.Batching(size=None, epochs=2),
    )
    assert_runtimes_agree(process, images(), *RUNTIMES, rounds=5)


def test_a_linear_model_with_sgd_agrees_to_a_millionth():
    draw = np.random.default_rng(0)
    data = {
        k: (draw.normal(size=(n, 5)).astype(np.float32), draw.normal(size=n).astype(np.float32))
        for k, n in {"a": 3, "b": 11, "c": 20}.items()
    }
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros(5), "b": jnp.zeros(())}, lambda p, x: x @ p["w"] + p["b"], lambda o, y: (o - y) ** 2
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.05), batching=sf.Batching(size=4, epochs=3))
    assert_runtimes_agree(process, data, *RUNTIMES, rtol=1e-6, atol=1e-6)


def test_ready_made_batches_agree():
    data = {k: [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)] for k, (x, y) in images().items()}
    process = sf.learning.fed_avg(functions(), optax.sgd(0.1))
    assert_runtimes_agree(process, data, *RUNTIMES, rounds=3)


def test_non_finite_clients_agree():
    data = images()
    data["a"] = (data["a"][0] * np.nan, data["a"][1])
    process = sf.learning.fed_avg(functions(), optax.sgd(0.1), optax.adam(0.1))
    assert_runtimes_agree(process, data, *RUNTIMES, rounds=3)
