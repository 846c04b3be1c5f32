"""Marks of what an algorithm computes: the same for the same program, wherever and however often it is built."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.cohort import batch_shapes
from sumfold.core.program import marks

BATCHING = sf.Batching(size=2)
IMAGES = sf.Federation.from_clients({i: (np.zeros((4, 6, 6, 1), "f4"), np.zeros(4, "i4")) for i in range(2)})


def linear(factor=1.0):
    return sf.models.from_functions(
        lambda key: jnp.zeros((36, 3)),
        lambda w, x: x.reshape(len(x), -1) @ w,
        lambda outputs, y: factor * optax.softmax_cross_entropy_with_integer_labels(outputs, y),
    )


def keras_model():
    keras = pytest.importorskip("keras")
    k = keras.layers

    def build():
        layers = [k.Conv2D(2, 3, activation="relu"), k.MaxPooling2D(), k.Dropout(0.3), k.Flatten(), k.Dense(3)]
        return keras.Sequential([k.Input((6, 6, 1)), *layers])

    return sf.models.from_keras(build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def flax_model():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.max_pool(nn.relu(nn.Conv(2, (3, 3))(x)), (2, 2))
            return nn.Dense(3)(x.reshape(len(x), -1))

    loss = optax.softmax_cross_entropy_with_integer_labels
    return sf.models.from_flax(Net(), np.zeros((1, 6, 6, 1), "f4"), loss)


def averaged(model, rate=0.1, server=1.0, batching=BATCHING):
    return sf.learning.fed_avg(model, optax.sgd(rate), optax.sgd(server), batching=batching)


def marked(process):
    return marks(process.round, process._template, batch_shapes(IMAGES, 2))


@pytest.mark.parametrize("model", [linear, keras_model, flax_model], ids=["functions", "keras", "flax"])
def test_what_is_built_twice_has_the_same_marks(model) -> None:
    algorithms = [
        averaged,
        lambda model: sf.learning.scaffold(model, optax.sgd(0.1), batching=BATCHING),
        lambda model: sf.learning.mime(model, optax.sgd(0.1), batching=BATCHING),
    ]
    for made in algorithms:
        assert marked(made(model())) == marked(made(model()))


@pytest.mark.parametrize(
    ("other", "differing"),
    [
        (lambda: averaged(linear(), rate=0.2), {"the client's step"}),
        (lambda: averaged(linear(2.0)), {"the client's step"}),
        (lambda: averaged(linear(), server=0.5), {"the server's step"}),
        (lambda: averaged(linear(), batching=sf.Batching(size=2, epochs=2)), {"the batches"}),
    ],
    ids=["rate", "loss", "server's rate", "epochs"],
)
def test_a_mark_says_which_part_differs(other, differing) -> None:
    mine, theirs = marked(averaged(linear())), marked(other())
    assert {part for part in mine if mine[part] != theirs[part]} == differing


def test_phases_are_told_apart() -> None:
    found = marked(sf.learning.mime(linear(), optax.sgd(0.1), batching=BATCHING))
    assert {"the client's step in phase 0", "the server's step in phase 1"} <= set(found)
    assert all(len(mark) == 16 for mark in found.values())


def test_an_array_that_the_model_closes_over_counts_by_its_values() -> None:
    def scaled(last):
        factors = jnp.asarray([1.0, 2.0, last])
        return sf.models.from_functions(
            lambda key: jnp.zeros((36, 3)),
            lambda w, x: (x.reshape(len(x), -1) @ w) * factors[None],
            optax.softmax_cross_entropy_with_integer_labels,
        )

    one, same, other = (marked(averaged(scaled(last))) for last in (3.0, 3.0, 4.0))
    assert one == same
    assert {part for part in one if one[part] != other[part]} == {"the client's step"}
