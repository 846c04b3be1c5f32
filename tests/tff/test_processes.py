"""Process builders under TFF's names: numbers of a model w·x on two clients, and a script as it is written."""

import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tff
from sumfold.errors import CompositionError, TypeMismatchError

WEIGHTED = [1.3, 1.755, 1.91425]
UNWEIGHTED = [1.0, 1.5, 1.75]
HALF = [0.65, 1.08875, 1.384906]
SPEC = ((None, 1), np.float32), ((None, 1), np.float32)


def column(*values):
    return np.array(values, np.float32)[:, None]


CLIENTS = [[(column(1), column(2))], [(column(2, 2, 2), column(4, 4, 4))]]


def model_fn(initializer="zeros", **more):
    net = keras.Sequential([keras.layers.Dense(1, use_bias=False, kernel_initializer=initializer)])
    return tff.learning.from_keras_model(net, loss=keras.losses.MeanSquaredError(), input_spec=SPEC, **more)


def keras_sgd(rate):
    return lambda: keras.optimizers.SGD(learning_rate=rate)


def weights_over(process, rounds=3, clients=CLIENTS, state=None):
    state, found = process.initialize() if state is None else state, []
    for _ in range(rounds):
        state, metrics = process.next(state, clients)
        found.append(float(process.get_model_weights(state).trainable[0][0, 0]))
    return found, metrics


# -- the tutorial's program ------------------------------------------------------------------------------


class Batched:
    """What a ``tf.data.Dataset`` looks like to us: an iterable of batches with an element_spec."""

    def __init__(self, x, y, size):
        self.x, self.y, self.size = x, y, size

    def __iter__(self):
        for begin in range(0, len(self.x), self.size):
            yield self.x[begin : begin + self.size], self.y[begin : begin + self.size]

    @property
    def element_spec(self):
        return TensorSpec([None, 4], DType("float32")), TensorSpec([None, 1], DType("float32"))


class DType:
    def __init__(self, name):
        self.as_numpy_dtype = np.dtype(name).type


class TensorSpec:
    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, dtype


def population(seed=0, clients=3):
    random = np.random.default_rng(seed)
    truth = np.array([[1.0], [-2.0], [0.5], [0.0]], np.float32)
    xs = [random.normal(size=(n, 4)).astype(np.float32) for n in range(8, 8 + 4 * clients, 4)]
    return [(x, x @ truth + 1) for x in xs]


def lists(x, y):
    return [(x[:5], y[:5]), (x[5:], y[5:])]


@pytest.mark.jax_defaults
@pytest.mark.parametrize("unbuilt", [True, False])
@pytest.mark.parametrize(
    ("make", "batches"), [(lists, 6), (lambda x, y: Batched(x, y, 5), 9)], ids=["lists", "datasets"]
)
def test_the_tutorials_program(make, batches, unbuilt, capsys):
    client_data = [make(x, y) for x, y in population()]
    spec = Batched(*population()[0], 5).element_spec

    def model_fn():
        layers = [keras.layers.Dense(1)] if unbuilt else [keras.Input((4,)), keras.layers.Dense(1)]
        return tff.learning.from_keras_model(
            keras.Sequential(layers),
            loss=keras.losses.MeanSquaredError(),
            input_spec=spec,
            metrics=[keras.metrics.MeanAbsoluteError()],
        )

    iterative_process = tff.learning.build_federated_averaging_process(
        model_fn,
        client_optimizer_fn=lambda: keras.optimizers.SGD(learning_rate=0.1),
        server_optimizer_fn=lambda: keras.optimizers.SGD(learning_rate=1.0),
    )
    state = iterative_process.initialize()
    losses = []
    for round_num in range(10):
        state, metrics = iterative_process.next(state, client_data)
        print(f"round {round_num}, metrics={metrics}")
        losses.append(metrics["client_work"]["train"]["loss"])
    assert losses[-1] < 0.05 * losses[0]
    train = metrics["client_work"]["train"]
    assert (train["num_examples"], train["num_batches"], train["num_clients"]) == (36, batches, 3)
    assert train["mean_absolute_error"] > 0
    assert "round 9" in capsys.readouterr().out
    weights = iterative_process.get_model_weights(state)
    assert np.abs(np.asarray(weights.trainable[0])[:, 0] - [1, -2, 0.5, 0]).max() < 0.2


def test_the_tutorials_program_with_tf_data():
    tf = pytest.importorskip("tensorflow")
    client_data = [tf.data.Dataset.from_tensor_slices((x, y)).batch(5) for x, y in population()]

    def model_fn():
        return tff.learning.from_keras_model(
            keras.Sequential([keras.layers.Dense(1)]),
            loss=keras.losses.MeanSquaredError(),
            input_spec=client_data[0].element_spec,
        )

    process = tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1), keras_sgd(1.0))
    _, metrics = process.next(process.initialize(), client_data)
    assert metrics["client_work"]["train"]["num_examples"] == 36


# -- numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", ["classic", "algorithm"])
@pytest.mark.parametrize("sgd", [keras_sgd, lambda rate: lambda: optax.sgd(rate), optax.sgd, "build_sgdm"])
@pytest.mark.parametrize(
    ("options", "server", "expected"),
    [
        ({}, None, WEIGHTED),
        ({"client_weighting": "NUM_EXAMPLES"}, 1.0, WEIGHTED),
        ({"client_weighting": "UNIFORM"}, 1.0, UNWEIGHTED),
        ({}, 0.5, HALF),
    ],
)
def test_federated_averaging(build, sgd, options, server, expected):
    sgd = tff.learning.optimizers.build_sgdm if sgd == "build_sgdm" else sgd
    builder = {
        "classic": tff.learning.build_federated_averaging_process,
        "algorithm": tff.learning.algorithms.build_weighted_fed_avg,
    }[build]
    options = {name: getattr(tff.learning.ClientWeighting, value) for name, value in options.items()}
    process = builder(model_fn, sgd(0.1), *([] if server is None else [sgd(server)]), **options)
    assert isinstance(process, sf.Process)
    found, metrics = weights_over(process)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert set(metrics) == {"distributor", "client_work", "aggregator", "finalizer"}


def test_metrics_of_the_third_round():
    _, metrics = weights_over(tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1)))
    train = metrics["client_work"]["train"]
    assert train["loss"] == pytest.approx(0.195081, abs=1e-6)
    assert (train["num_examples"], train["num_batches"]) == (4, 2)
    assert metrics["finalizer"]["update_non_finite"] == 0


def test_unweighted():
    found, _ = weights_over(tff.learning.algorithms.build_unweighted_fed_avg(model_fn, keras_sgd(0.1)))
    np.testing.assert_allclose(found, UNWEIGHTED, rtol=1e-6)


def test_a_weighting_function_sees_the_clients_metrics():
    process = tff.learning.algorithms.build_weighted_fed_avg(
        model_fn, keras_sgd(0.1), client_weighting=lambda outputs: outputs["num_examples"] ** 2
    )
    found, _ = weights_over(process, rounds=1)
    assert found[0] == pytest.approx((0.4 * 1 + 1.6 * 9) / 10)


def test_an_aggregator_is_a_stage():
    for builder, name in [
        (tff.learning.build_federated_averaging_process, "model_update_aggregation_factory"),
        (tff.learning.build_federated_averaging_process, "aggregation_process"),
        (tff.learning.algorithms.build_weighted_fed_avg, "model_aggregator"),
    ]:
        found, _ = weights_over(builder(model_fn, keras_sgd(0.1), **{name: sf.aggregators.mean()}))
        np.testing.assert_allclose(found, WEIGHTED, rtol=1e-6)


def test_what_is_harmless_is_ignored():
    process = tff.learning.build_federated_averaging_process(
        model_fn, keras_sgd(0.1), use_experimental_simulation_loop=True, loop_implementation="DATASET_REDUCE"
    )
    assert weights_over(process, rounds=1)[0][0] == pytest.approx(1.3)


def test_evaluation():
    training = tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1))
    state = training.initialize()
    state, _ = training.next(state, CLIENTS)
    weights = training.get_model_weights(state)
    process = tff.learning.algorithms.build_fed_eval(lambda: model_fn(metrics=[keras.metrics.MeanSquaredError]))
    evaluated = process.set_model_weights(process.initialize(), weights)
    evaluated, metrics = process.next(evaluated, CLIENTS)
    loss = (0.7**2 + 3 * 1.4**2) / 4
    for group in ("current_round_metrics", "total_rounds_metrics"):
        measured = metrics["client_work"]["eval"][group]
        assert measured["loss"] == pytest.approx(loss)
        assert measured["mean_squared_error"] == pytest.approx(loss)
        assert measured["num_examples"] == 4
    evaluation = tff.learning.build_federated_evaluation(model_fn)
    assert evaluation(weights, CLIENTS)["eval"]["loss"] == pytest.approx(loss)
    assert evaluation(weights, CLIENTS[:1])["eval"]["num_examples"] == 1


# -- the schedule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["build_sgdm", optax.sgd, lambda rate: optax.sgd(rate)])
def test_a_learning_rate_by_round(optimizer):
    optimizer = tff.learning.optimizers.build_sgdm if optimizer == "build_sgdm" else optimizer
    process = tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule(
        model_fn, lambda round: 0.1 / (1 + round), optimizer
    )
    state, w = process.initialize(), 0.0
    for round_num in range(3):
        rate = 0.1 / (1 + round_num)
        state, metrics = process.next(state, CLIENTS)
        w += (1 * rate * 2 * (2 - w) + 3 * rate * 2 * 2 * 2 * (2 - w)) / 4
        assert metrics["client_work"]["client_learning_rate"] == pytest.approx(rate)
        assert float(process.get_model_weights(state).trainable[0][0, 0]) == pytest.approx(w)


def test_a_schedule_that_cannot_be_traced_is_refused_when_it_is_built():
    build = tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule
    with pytest.raises(CompositionError, match=r"decides by Python's if.*SF-COMP-027"):
        build(model_fn, lambda round: 0.1 if round < 10 else 0.01, optax.sgd)
    with pytest.raises(CompositionError, match=r"is a SGD; needed: an optax transform.*build_sgdm"):
        build(model_fn, lambda round: 0.1, lambda rate: keras.optimizers.SGD(rate))


# -- initial weights -------------------------------------------------------------------------------------


def test_initial_weights_are_those_of_one_call_and_follow_from_the_seed():
    made = []

    def counted():
        made.append(keras.Sequential([keras.layers.Dense(3), keras.layers.Dense(1)]))
        return tff.learning.from_keras_model(made[-1], keras.losses.MeanSquaredError(), SPEC)

    process = tff.learning.build_federated_averaging_process(counted, keras_sgd(0.1))
    assert len(made) == 1
    first = process.get_model_weights(process.initialize())
    assert len(made) == 2
    for mine, own in zip(first.trainable, made[-1].trainable_weights, strict=True):
        np.testing.assert_array_equal(mine, own.value)
    again = process.get_model_weights(process.initialize())
    other = process.get_model_weights(process.initialize(seed=1))
    np.testing.assert_array_equal(first.trainable[0], again.trainable[0])
    assert (np.asarray(first.trainable[0]) != np.asarray(other.trainable[0])).any()


def test_a_model_made_outside_keeps_its_weights():
    net = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    net.set_weights([np.array([[0.25]], np.float32)])

    def model_fn():
        return tff.learning.models.from_keras_model(net, keras.losses.MeanSquaredError(), SPEC)

    process = tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1))
    for seed in (0, 1):
        assert process.get_model_weights(process.initialize(seed=seed)).trainable[0].tolist() == [[0.25]]


def test_a_model_of_another_kind():
    model = sf.models.from_functions(lambda key: np.float32(0), lambda w, x: w * x, lambda o, y: (o - y)[:, 0] ** 2)
    for given in (model, lambda: model):
        process = tff.learning.algorithms.build_weighted_fed_avg(given, optax.sgd(0.1))
        state, _ = process.next(process.initialize(), CLIENTS)
        assert float(process.get_model_weights(state)) == pytest.approx(1.3)


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (lambda: 3, "model_fn returned an int"),
        (lambda: None, "model_fn returned None"),
        (lambda: keras.Sequential([keras.layers.Dense(1)]), "model_fn returned a Sequential"),
        (keras.Sequential([keras.layers.Dense(1)]), "model_fn is a Sequential"),
        (3, "model_fn is an int"),
        (None, "model_fn is None"),
    ],
)
def test_a_model_fn_must_return_a_model(given, came):
    for build in (
        lambda: tff.learning.build_federated_averaging_process(given, keras_sgd(0.1)),
        lambda: tff.learning.algorithms.build_weighted_fed_avg(given, keras_sgd(0.1)),
        lambda: tff.learning.algorithms.build_fed_eval(given),
    ):
        with pytest.raises(TypeError, match=came) as raised:
            build()
        assert isinstance(raised.value, TypeMismatchError)
        assert raised.value.code == "SF-COMP-071"


@pytest.mark.parametrize("given", [None, "sgd", lambda: None, lambda: 3, lambda: "sgd"])
def test_an_optimizer_fn_must_return_an_optimizer(given):
    with pytest.raises(CompositionError, match=r"client_optimizer is .*SF-COMP-020"):
        tff.learning.build_federated_averaging_process(model_fn, given)
    if given is not None:
        with pytest.raises(CompositionError, match=r"server_optimizer is .*SF-COMP-020"):
            tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1), given)


@pytest.mark.parametrize(
    ("name", "do"),
    [
        ("client_weight_fn", "pass client_weighting="),
        ("broadcast_process", "leave it out"),
        ("metrics_aggregator", "leave it out"),
        ("aggregation_process", "pass a stage of sf.aggregators"),
        ("model_update_aggregation_factory", "pass a stage of sf.aggregators"),
    ],
)
def test_an_argument_without_counterpart(name, do):
    with pytest.raises(CompositionError, match=rf"{name} is an object; needed: .*{do}.*SF-COMP-072"):
        tff.learning.build_federated_averaging_process(model_fn, keras_sgd(0.1), **{name: object()})


def test_timing_and_distributors_have_no_counterpart():
    build = tff.learning.algorithms.build_weighted_fed_avg
    with pytest.raises(CompositionError, match="measure_timing"):
        build(model_fn, keras_sgd(0.1), measure_timing=True)
    with pytest.raises(CompositionError, match="model_distributor"):
        tff.learning.algorithms.build_fed_eval(model_fn, model_distributor=object())
    with pytest.raises(TypeError, match="unexpected keyword"):
        build(model_fn, keras_sgd(0.1), no_such_argument=1)
    with pytest.raises(CompositionError, match="SF-COMP-021"):
        build(model_fn, keras_sgd(0.1), client_weighting="heavy")


def test_fed_prox_has_the_right_sign():
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
    one, three = (np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))
    client_data = [[one, one], [three, three]]  # two local steps each
    numbers = {}
    for mu in (0.0, 1.0):
        process = tff.learning.algorithms.build_weighted_fed_prox(lambda: model, mu, lambda: optax.sgd(0.05))
        state = process.initialize()
        numbers[mu] = []
        for _ in range(3):
            state, _ = process.next(state, client_data)
            numbers[mu].append(float(process.get_model_weights(state)))
    np.testing.assert_allclose(numbers[0.0], [1.055, 1.553487, 1.789023], rtol=1e-6)
    np.testing.assert_allclose(numbers[1.0], [1.0225, 1.522247, 1.766498], rtol=1e-6)


def test_fed_sgd_with_its_default_is_one_full_step():
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
    process = tff.learning.algorithms.build_fed_sgd(lambda: model)
    state, weights = process.initialize(), []
    for _ in range(3):
        state, _ = process.next(state, [[(np.ones(1), 2 * np.ones(1))], [(2 * np.ones(3), 4 * np.ones(3))]])
        weights.append(float(process.get_model_weights(state)))
    np.testing.assert_allclose(weights, [1.3, 1.755, 1.91425], rtol=1e-6)
