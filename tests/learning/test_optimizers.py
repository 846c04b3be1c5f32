"""Optimizers of optax and Keras, on clients and on the server, and schedules by round."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tree
from sumfold.learning.optimizers import as_client_optimizer, as_optimizer, is_schedule

# Keras reads its own variables the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.float32(0.5)}
GRADIENTS = [{"w": jnp.array([0.5, 1.0]), "b": jnp.float32(-1)}, {"w": jnp.array([-0.5, 2.0]), "b": jnp.float32(3)}]
OPTAX = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "nesterov": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adagrad": optax.adagrad(0.1),
    "adam": optax.adam(0.1),
    "yogi": optax.yogi(0.1),
    "adamw": optax.adamw(0.1),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1)),
}


def keras_optimizer(name, *args, **kwargs):
    return getattr(pytest.importorskip("keras").optimizers, name)(*args, **kwargs)


def run(optimizer, params=PARAMS):
    state = optimizer.init(params)
    for gradient in GRADIENTS:
        params, state = optimizer.update(gradient, state, params)
    return params


@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", OPTAX)
def test_optax_is_optax(name):
    params, state = PARAMS, OPTAX[name].init(PARAMS)
    for gradient in GRADIENTS:
        updates, state = OPTAX[name].update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    got = run(as_optimizer(OPTAX[name], "client_optimizer"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("keras_name", "options", "same"),
    [
        ("SGD", {"learning_rate": 0.1}, "sgd"),
        ("SGD", {"learning_rate": 0.1, "momentum": 0.9}, "momentum"),
        ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}, "nesterov"),
        ("Adam", {"learning_rate": 0.1, "epsilon": 1e-8}, "adam"),
    ],
)
def test_keras_is_optax(keras_name, options, same):
    got = run(as_optimizer(keras_optimizer(keras_name, **options), "client_optimizer"))
    expected = run(as_optimizer(OPTAX[same], "client_optimizer"))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_the_users_keras_object_is_never_touched():
    given = keras_optimizer("Adam", 0.1)
    before = [np.asarray(v.value) for v in given.variables]
    optimizer = as_optimizer(given, "client_optimizer")
    run(optimizer)
    assert [np.asarray(v.value).tolist() for v in given.variables] == [b.tolist() for b in before]
    assert not given.built
    np.testing.assert_array_equal(run(optimizer)["w"], run(optimizer)["w"])


def test_keras_state_is_arrays_and_keeps_its_type():
    optimizer = as_optimizer(keras_optimizer("Adam", 0.1), "client_optimizer")
    state = optimizer.init(PARAMS)
    _, after = optimizer.update(GRADIENTS[0], state, PARAMS)
    assert tree.specs(state) == tree.specs(after)


def test_keras_with_a_schedule_of_its_own_shows_no_rate():
    keras = pytest.importorskip("keras")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = as_optimizer(keras.optimizers.SGD(schedule), "client_optimizer")
    assert optimizer.read(optimizer.init(PARAMS)) == {}
    got = run(optimizer)
    np.testing.assert_allclose(got["b"], 0.5 + 0.1 * 1 - 0.05 * 3, rtol=1e-5)


# ---------------------------------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("kind", ["optax", "optax in a chain", "keras"])
def test_hyperparameters_can_be_read_and_written(kind):
    given = {
        "optax": lambda: optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        "optax in a chain": lambda: optax.chain(
            optax.clip(10.0), optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        ),
        "keras": lambda: keras_optimizer("SGD", 0.1),
    }[kind]()
    optimizer = as_optimizer(given, "server_optimizer")
    state = optimizer.init(PARAMS)
    assert float(optimizer.read(state)["learning_rate"]) == pytest.approx(0.1)
    changed = optimizer.write(state, {"learning_rate": jnp.float32(0.5)})
    assert tree.specs(changed) == tree.specs(state)
    assert float(optimizer.read(changed)["learning_rate"]) == 0.5
    params, _ = optimizer.update(GRADIENTS[0], changed, PARAMS)
    np.testing.assert_allclose(params["w"], PARAMS["w"] - 0.5 * GRADIENTS[0]["w"], rtol=1e-6)
    assert float(optimizer.read(state)["learning_rate"]) == pytest.approx(0.1), "writing must not change the old state"


def test_closed_numbers_are_not_read():
    optimizer = as_optimizer(optax.adam(0.1), "server_optimizer")
    assert optimizer.read(optimizer.init(PARAMS)) == {}


# ---------------------------------------------------------------------------------------- schedules


def test_what_is_a_schedule():
    assert is_schedule(lambda r: optax.sgd(0.1))
    assert is_schedule(lambda r, decay=0.5: optax.sgd(0.1 * decay))
    for other in (
        optax.sgd,
        optax.adam,
        lambda: 1,
        lambda a, b: 1,
        optax.sgd(0.1),
        optax.GradientTransformation,
        3,
        "sgd",
    ):
        assert not is_schedule(other), other


def test_a_schedule_sees_the_round_and_reports_its_rate():
    client = as_client_optimizer(lambda r: optax.inject_hyperparams(optax.sgd)(learning_rate=0.5 / (1.0 + r)))
    assert client.hparams(PARAMS) == {}

    @jax.jit
    def at(round):
        with jax.numpy_dtype_promotion("standard"):
            params, _ = client.update(GRADIENTS[0], client.init(PARAMS, {}, round), PARAMS, round)
            return params["b"], client.rate(PARAMS, {}, round)

    for round, rate in ((0, 0.5), (1, 0.25), (4, 0.1)):
        b, shown = at(jnp.int32(round))
        assert float(b) == pytest.approx(0.5 + rate)
        assert float(shown["client_learning_rate"]) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, "client_optimizer is None"),
        ("sgd", "client_optimizer is a str"),
        (0.1, "client_optimizer is a float"),
        (optax.sgd, "client_optimizer is a function.*not a class or function"),
        (lambda: optax.sgd(0.1), "client_optimizer is a function.*not a class or function"),
        (optax.GradientTransformation, "client_optimizer is a type.*not a class or function"),
        (object(), "client_optimizer is a object"),
    ],
    ids=["none", "str", "number", "maker", "no argument", "class", "object"],
)
def test_what_is_no_optimizer(given, words):
    with pytest.raises(sf.CompositionError, match=rf"{words}.*SF-COMP-020") as caught:
        as_client_optimizer(given)
    assert "optax.sgd(0.1)" in str(caught.value)


def test_a_keras_class_is_not_an_optimizer():
    keras = pytest.importorskip("keras")
    with pytest.raises(sf.CompositionError, match=r"is a .*pass the optimizer itself"):
        as_client_optimizer(keras.optimizers.SGD)


def test_a_schedule_is_for_clients_and_must_return_an_optimizer():
    with pytest.raises(sf.CompositionError, match=r"server_optimizer is a function"):
        as_optimizer(lambda r: optax.sgd(0.1), "server_optimizer")
    client = as_client_optimizer(lambda r: 0.1)
    with pytest.raises(sf.CompositionError, match=r"client_optimizer\(round\) is a float"):
        client.init(PARAMS, {}, jnp.int32(0))


# ---------------------------------------------------------------------------------------- schedules of their own

SUM_OF_SQUARES = sf.models.from_functions(
    lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
ROWS = [(np.ones((4, 2), np.float32), np.ones(4, np.float32))]


def test_what_a_schedule_computes_is_reported_and_cannot_be_set():
    scheduled = optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.0, 10), b1=0.8)
    optimizer = as_optimizer(scheduled, "server_optimizer")
    state = optimizer.init(PARAMS)
    shown = optimizer.read(state)
    assert "learning_rate" not in shown
    assert float(shown["b1"]) == pytest.approx(0.8)
    assert float(optimizer.rate(state)) == pytest.approx(0.1)
    same = optimizer.write(state, {"learning_rate": jnp.float32(9)})
    assert [np.asarray(a).tolist() for a in jax.tree.leaves(same)] == [
        np.asarray(a).tolist() for a in jax.tree.leaves(state)
    ]

    process = sf.learning.fed_avg(SUM_OF_SQUARES, scheduled, scheduled)
    state = process.initialize()
    for group in ("client_work", "finalizer"):
        with pytest.raises(sf.CompositionError, match=rf"{group}.learning_rate.*schedule.*SF-COMP-022"):
            process.set_hparams(state, {group: {"learning_rate": 0.5}})
    state = process.set_hparams(state, {"client_work": {"b1": 0.5}})
    assert process.get_hparams(state)["client_work"]["b1"] == 0.5
    _, metrics = process.next(state, ROWS)
    assert float(metrics["client_work"]["client_learning_rate"]) == pytest.approx(0.1)


def test_the_rate_of_a_schedule_alone_is_that_of_the_step():
    process = sf.learning.fed_avg(
        SUM_OF_SQUARES, optax.inject_hyperparams(optax.sgd)(learning_rate=optax.constant_schedule(0.1))
    )
    state = process.initialize()
    assert "schedule" in process.get_hparams(state)["client_work"]["unseen"]
    after, metrics = process.next(state, ROWS)
    assert float(metrics["client_work"]["client_learning_rate"]) == pytest.approx(0.1)
    np.testing.assert_allclose(process.get_model_weights(after), 0.1 * 2 * np.ones(2), rtol=1e-6)


def test_numbers_of_one_name_are_told_apart():
    scale = optax.inject_hyperparams(optax.scale)
    scheduled = scale(optax.constant_schedule(-1.0))
    optimizer = as_optimizer(optax.chain(scale(0.1), scheduled, scale(0.2)), "client_optimizer")
    state = optimizer.init(PARAMS)
    assert {k: round(float(v), 6) for k, v in optimizer.read(state).items()} == {"step_size": 0.1, "step_size_3": 0.2}
    changed = optimizer.write(state, {"step_size_3": jnp.float32(0.5)})
    assert {k: round(float(v), 6) for k, v in optimizer.read(changed).items()} == {"step_size": 0.1, "step_size_3": 0.5}
    params, _ = optimizer.update(GRADIENTS[0], changed, PARAMS)
    np.testing.assert_allclose(params["b"], 0.5 + 0.1 * 0.5, rtol=1e-6)


def test_a_keras_schedule_says_so_and_is_reported():
    keras = pytest.importorskip("keras")
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 1, 0.5)
    optimizer = as_optimizer(keras.optimizers.SGD(schedule), "client_optimizer")
    state = optimizer.init(PARAMS)
    assert float(optimizer.rate(state)) == pytest.approx(0.1)
    _, state = optimizer.update(GRADIENTS[0], state, PARAMS)
    assert float(jax.jit(optimizer.rate)(state)) == pytest.approx(0.05)

    process = sf.learning.fed_avg(SUM_OF_SQUARES, keras.optimizers.SGD(schedule), keras.optimizers.SGD(schedule))
    state = process.initialize()
    for shown in process.get_hparams(state).values():
        assert "own schedule" in shown["unseen"]
        assert "Keras to" not in shown["unseen"]
    _, metrics = process.next(state, ROWS)
    assert float(metrics["client_work"]["client_learning_rate"]) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["wrapper", "factor"])
def test_keras_optimizers_that_scale_the_loss_are_refused(kind):
    keras = pytest.importorskip("keras")
    given = keras.optimizers.SGD(0.1, loss_scale_factor=None if kind == "wrapper" else 8.0)
    if kind == "wrapper":
        given = keras.optimizers.LossScaleOptimizer(given)
    with pytest.raises(sf.CompositionError, match=r"scales the loss.*SF-COMP-035"):
        as_client_optimizer(given)
