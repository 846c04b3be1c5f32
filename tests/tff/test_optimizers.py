"""TFF's optimizers against their textbook recursions in NumPy."""

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

from sumfold import tff
from sumfold.errors import CompositionError

opt = tff.learning.optimizers
GRADIENTS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
START = np.array([1.0, -2.0, 0.5], np.float32)


def run(transform):
    w = {"w": jnp.asarray(START)}
    state = transform.init(w)
    for gradient in GRADIENTS:
        updates, state = transform.update({"w": jnp.asarray(gradient)}, state, w)
        w = optax.apply_updates(w, updates)
    return np.asarray(w["w"]), state


def sgd(rate, momentum=0.0, nesterov=False):
    w, v = START.astype(float), 0.0
    for g in GRADIENTS:
        v = momentum * v + g
        w = w - rate * (g + momentum * v if nesterov else v)
    return w


def moments(rate, b1=0.9, b2=0.999, eps=1e-7, start=0.0, yogi=False, decay=0.0):
    w, a, s = START.astype(float), 0.0, start
    for t, g in enumerate(GRADIENTS, 1):
        a = b1 * a + (1 - b1) * g
        s = s + (1 - b2) * np.sign(g**2 - s) * g**2 if yogi else b2 * s + (1 - b2) * g**2
        w = w - rate * (np.sqrt(1 - b2**t) / (1 - b1**t) * a / (np.sqrt(s) + eps) + decay * w)
    return w


def adagrad(rate, start=0.1, eps=1e-7):
    w, s = START.astype(float), start
    for g in GRADIENTS:
        s = s + g**2
        w = w - rate * g / np.sqrt(s + eps)
    return w


def rmsprop(rate, decay=0.9, eps=1e-7):
    w, s = START.astype(float), 0.0
    for g in GRADIENTS:
        s = decay * s + (1 - decay) * g**2
        w = w - rate * g / (np.sqrt(s) + eps)
    return w


def adafactor(rate, decay=0.8, eps1=1e-30, eps2=1e-3, threshold=1.0, relative=True):
    w, v = START.astype(float), 0.0
    rms = lambda a: np.sqrt((a**2).mean())
    for t, g in enumerate(GRADIENTS, 1):
        beta = 1 - t**-decay
        v = beta * v + (1 - beta) * (g**2 + eps1)
        u = g / np.sqrt(v)
        u = u / max(1.0, rms(u) / threshold)
        w = w - (min(rate, t**-0.5) if relative else rate) * max(eps2, rms(w)) * u
    return w


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (opt.build_sgdm(), sgd(0.01)),
        (opt.build_sgdm(0.1), sgd(0.1)),
        (opt.build_sgdm(learning_rate=0.1, momentum=0.9), sgd(0.1, 0.9)),
        (opt.build_sgdm(0.1, 0.0), sgd(0.1)),
        (opt.build_sgdm(0.1, 0.9, nesterov=True), sgd(0.1, 0.9, True)),
        (opt.build_adam(0.1), moments(0.1)),
        (opt.build_adam(0.1, beta_1=0.5, beta_2=0.9, epsilon=0.1), moments(0.1, 0.5, 0.9, 0.1)),
        (opt.build_adamw(0.1, weight_decay=0.2), moments(0.1, decay=0.2)),
        (opt.build_yogi(0.1), moments(0.1, eps=1e-3, start=1e-6, yogi=True)),
        (opt.build_yogi(0.1, initial_preconditioner_value=0.5), moments(0.1, eps=1e-3, start=0.5, yogi=True)),
        (opt.build_adagrad(0.1), adagrad(0.1)),
        (opt.build_adagrad(0.1, initial_preconditioner_value=1.0, epsilon=0.1), adagrad(0.1, 1.0, 0.1)),
        (opt.build_rmsprop(0.1), rmsprop(0.1)),
        (opt.build_rmsprop(0.1, decay=0.5, epsilon=0.1), rmsprop(0.1, 0.5, 0.1)),
        (opt.build_adafactor(0.5), adafactor(0.5)),
        (opt.build_adafactor(2.0, beta_2_decay=-0.5, clip_threshold=0.5), adafactor(2.0, 0.5, threshold=0.5)),
        (opt.build_adafactor(2.0, relative_step=False, epsilon_2=5.0), adafactor(2.0, eps2=5.0, relative=False)),
    ],
)
def test_the_recursion(made, expected):
    np.testing.assert_allclose(run(made)[0], expected, rtol=2e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: opt.build_sgdm(0.1, nesterov=True),
        lambda: opt.build_sgdm(-0.1),
        lambda: opt.build_sgdm(0.1, 1.5),
        lambda: opt.build_adam(0.1, beta_1=1.5),
        lambda: opt.build_adam(0.1, epsilon=-1.0),
        lambda: opt.build_adamw(0.1, weight_decay=-1.0),
        lambda: opt.build_yogi(0.1, initial_preconditioner_value=-1.0),
        lambda: opt.build_adagrad(-1.0),
        lambda: opt.build_rmsprop(0.1, decay=2.0),
        lambda: opt.build_adafactor(0.1, beta_2_decay=0.5),
    ],
)
def test_a_number_out_of_range_is_a_value_error(make):
    with pytest.raises(ValueError, match="SF-COMP-076") as raised:
        make()
    assert isinstance(raised.value, CompositionError)


@pytest.mark.parametrize("name", ["sgdm", "adam", "adamw", "yogi", "adagrad", "rmsprop", "adafactor"])
def test_on_server_and_clients_with_hyperparameters_that_can_be_set(name):
    build = getattr(opt, f"build_{name}")

    def model_fn():
        net = keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        spec = ((None, 1), np.float32), ((None, 1), np.float32)
        return tff.learning.from_keras_model(net, keras.losses.MeanSquaredError(), spec)

    process = tff.learning.algorithms.build_weighted_fed_avg(model_fn, build(0.1), build(0.2))
    state = process.initialize()
    hparams = process.get_hparams(state)
    assert hparams["client_work"]["learning_rate"] == pytest.approx(0.1)
    assert hparams["finalizer"]["learning_rate"] == pytest.approx(0.2)
    clients = [[(np.ones((2, 1), np.float32), 3 * np.ones((2, 1), np.float32))]]
    after, metrics = process.next(state, clients)
    assert metrics["client_work"]["client_learning_rate"] == pytest.approx(0.1)
    assert process.get_model_weights(after).trainable[0][0, 0] > 1
    still = process.set_hparams(state, {"finalizer": {"learning_rate": 0.0}})
    after, _ = process.next(still, clients)
    weight = process.get_model_weights(after).trainable[0][0, 0]
    assert weight == pytest.approx(1.0, abs=2e-5 if name == "adamw" else 0)


def test_no_weights_at_all():
    for made in (opt.build_sgdm(0.1), opt.build_adam(0.1)):
        updates, _ = made.update({}, made.init({}), {})
        assert updates == {}
