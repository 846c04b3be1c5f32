"""What the compiler made of a round, read as text: no clock decides whether convolutions and pooling stay fast."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation import bound

CANONICAL = {"b01f_01io->b01f"}
POOLING = r"select.and.scatter|reduce_window_(?:sum|max)"
"""Pooling as the user's program has it, by its name in the operations' origin: XLA itself sums by reduce-window too."""
KINDS = ["logistic", "mlp", "cnn", "strided", "pooled"]
DATA = {
    name: (np.random.default_rng(i).random((12, 8, 8, 2), np.float32), np.arange(12, dtype=np.int32) % 10)
    for i, name in enumerate("ab")
}


def compiled_texts(process, data):
    """The text of every program that a round compiles; it asks the backend, so it knows nothing of the engine."""
    client, state = jax.devices()[0].client, process.initialize()  # Flax makes its weights by a forward pass
    before = client.live_executables()
    held = {id(executable) for executable in before}
    output = process.next(state, data)
    new = [executable for executable in client.live_executables() if id(executable) not in held]
    return [module.to_string() for executable in new for module in executable.hlo_modules()], output


def flax_layers(kind):
    nn = pytest.importorskip("flax.linen")
    flat = lambda x: x.reshape(len(x), -1)
    layers = {
        "logistic": [flat],
        "mlp": [flat, nn.Dense(7), nn.relu],
        "cnn": [
            nn.Conv(4, (3, 3)),
            nn.relu,
            nn.Conv(36, (3, 3)),
            nn.relu,
            lambda x: nn.max_pool(x, (2, 2), (2, 2)),
            flat,
        ],
        "strided": [
            nn.Conv(4, (3, 3), strides=(2, 1)),
            nn.relu,
            nn.Conv(6, (3, 3), kernel_dilation=(2, 1), feature_group_count=2),
            nn.relu,
            nn.Conv(6, (3, 3), feature_group_count=6),
            flat,
        ],
        "pooled": [
            nn.Conv(4, (3, 3)),
            lambda x: nn.max_pool(x, (3, 3), (2, 2), "SAME"),
            nn.GroupNorm(2),
            nn.Conv(4, (1, 1)),
            lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
            flat,
        ],
    }

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(10)(nn.Sequential(layers[kind])(x))

    loss = optax.softmax_cross_entropy_with_integer_labels
    return sf.models.from_flax(Net(), example=np.ones((1, 8, 8, 2), np.float32), loss=loss)


def keras_layers(kind):
    keras = pytest.importorskip("keras")
    k = keras.layers

    def build():
        layers = {
            "logistic": [],
            "mlp": [k.Flatten(), k.Dense(7, activation="relu")],
            "cnn": [
                k.Conv2D(4, 3, activation="relu"),
                k.Conv2D(36, 3, activation="relu", padding="same"),
                k.MaxPooling2D(),
            ],
            "strided": [
                k.Conv2D(4, 3, strides=2, activation="relu", padding="same"),
                k.Conv2D(6, 3, dilation_rate=2, groups=2, activation="relu", padding="same"),
                k.DepthwiseConv2D(3),
            ],
            "pooled": [
                k.Conv2D(4, 3, padding="same"),
                k.MaxPooling2D(3, strides=2, padding="same"),
                k.BatchNormalization(),
                k.Conv2D(4, 1),
                k.AveragePooling2D(2),
            ],
        }
        return keras.Sequential([k.Input((8, 8, 2)), *layers[kind], k.Flatten(), k.Dense(10)])

    return sf.models.from_keras(build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def equinox_layers(kind):
    eqx = pytest.importorskip("equinox")
    nn, relu = eqx.nn, jax.nn.relu

    def layers(key):
        keys = iter(jax.random.split(key, 4))
        return {
            "logistic": list,
            "mlp": lambda: [jnp.ravel, nn.Linear(128, 7, key=next(keys)), relu],
            "cnn": lambda: [
                nn.Conv2d(2, 4, 3, padding=1, key=next(keys)),
                relu,
                nn.Conv2d(4, 36, 3, key=next(keys)),
                relu,
                nn.MaxPool2d(2, 2),
            ],
            "strided": lambda: [
                nn.Conv2d(2, 4, 3, stride=2, padding=1, key=next(keys)),
                relu,
                nn.Conv2d(4, 6, 3, dilation=2, groups=2, padding=2, key=next(keys)),
                nn.Conv2d(6, 6, 3, groups=6, padding=1, key=next(keys)),
            ],
            "pooled": lambda: [
                nn.Conv2d(2, 4, 3, padding=1, key=next(keys)),
                nn.MaxPool2d(3, 2, padding=1),
                nn.GroupNorm(2, 4),
                nn.Conv2d(4, 4, 1, key=next(keys)),
                nn.AvgPool2d(2, 2),
            ],
        }[kind]()

    size = {"logistic": 128, "mlp": 7, "cnn": 324, "strided": 96, "pooled": 16}[kind]

    class Net(eqx.Module):
        before: list
        last: eqx.nn.Linear

        def __init__(self, key):
            first, second = jax.random.split(key)
            self.before, self.last = layers(first), nn.Linear(size, 10, key=second)

        def __call__(self, x):
            x = jnp.moveaxis(x, -1, 0)
            for layer in self.before:
                x = layer(x)
            return self.last(x.reshape(-1))

    return sf.models.from_equinox(lambda key: Net(key), loss=optax.softmax_cross_entropy_with_integer_labels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("framework", [flax_layers, keras_layers, equinox_layers], ids=["flax", "keras", "equinox"])
def test_a_compiled_round_is_canonical(framework, kind):
    batching = sf.Batching(size=6, max_steps=2, drop_remainder=True)
    process = sf.learning.fed_avg(framework(kind), optax.sgd(0.1), batching=batching)
    texts, output = compiled_texts(process.on(sf.Simulation(streams=1, kernel="sequential")), DATA)
    text = "\n".join(texts)
    assert "while(" in text, "the steps' loop is among what was read"
    layouts = set(re.findall(r"dim_labels=([^,\s]+)", text))
    assert layouts <= CANONICAL
    assert bool(layouts) == (kind in ("cnn", "strided")), "elsewhere channels are few, and patches are multiplied"
    assert not re.findall(POOLING, text)
    assert "feature_group_count" not in text, "also where the model has groups: they are convolved one by one"
    assert "batch_group_count" not in text
    assert output.metrics["client_work"]["train"]["num_batches"] == 4


def test_without_the_rewriting_the_gate_is_shut(monkeypatch):
    """What is read here does tell: the same round as the user wrote it has layouts that XLA leaves slow."""
    monkeypatch.setattr(bound, "fast", lambda half: half)
    process = sf.learning.fed_avg(equinox_layers("pooled"), optax.sgd(0.1), batching=sf.Batching(size=6))
    texts, _ = compiled_texts(process.on(sf.Simulation(streams=1, kernel="sequential")), DATA)
    text = "\n".join(texts)
    assert not set(re.findall(r"dim_labels=([^,\s]+)", text)) <= CANONICAL
    assert "select_and_scatter" in str(set(re.findall(POOLING, text)))


def test_runtimes_agree_on_convolutions():
    process = sf.learning.fed_avg(equinox_layers("strided"), optax.sgd(0.1), batching=sf.Batching(size=6, max_steps=2))
    sf.testing.assert_runtimes_agree(process, DATA, sf.Simulation(), sf.Loopback(), rounds=1)


def test_a_client_is_added_to_the_sum_in_one_pass():
    """The loop over clients computes a value where it adds it: nothing of its size is written beside the sum."""
    size = 40_000
    model = sf.models.from_functions(
        lambda key: jnp.zeros(size), lambda w, x: x[:, 0] * w.sum(), lambda outputs, y: (outputs - y) ** 2
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(4))
    data = {k: (np.ones((5, 1), np.float32), np.zeros(5, np.float32)) for k in range(4)}
    process = process.on(sf.Simulation(streams=1, kernel="sequential"))
    texts, _ = compiled_texts(process, data)
    whole = max(texts, key=len)
    branches = re.findall(rf"conditional\(.*f32\[{size}\]|= \(?f32\[{size}\][^=]* conditional\(", whole)
    assert not branches, "a branch has what it takes written to memory first"
    assert not re.search(rf"\[{size // 32}\]\S* reduce-window\(", whole), (
        "a reduction in two has its terms written first"
    )
