"""How a loss uses its labels, read off its program, and which labels are refused for it."""

import gc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning.labels import classes_of

OUTPUTS, Y = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
X = np.ones((4, 3), np.float32)


def keras_loss(outputs, y):
    import keras

    return keras.losses.SparseCategoricalCrossentropy(from_logits=True).call(y, outputs)


@pytest.mark.parametrize(
    "loss",
    [
        optax.softmax_cross_entropy_with_integer_labels,
        lambda o, y: -jnp.take_along_axis(jax.nn.log_softmax(o), y[:, None], 1)[:, 0],
        lambda o, y: -(jax.nn.one_hot(y, 3) * o).sum(-1),
        lambda o, y: -o[jnp.arange(4), y],
        lambda o, y: jax.vmap(lambda row, label: -row[label])(o, y),
        lambda o, y: jnp.where(y == 0, 0.0, optax.softmax_cross_entropy_with_integer_labels(o, y)),
        lambda o, y: sum(-o[jnp.arange(2), column] for column in y.reshape(2, 2)),
        keras_loss,
    ],
)
def test_a_loss_that_indexes_knows_its_classes(loss):
    assert classes_of(loss, OUTPUTS, Y) == 3


@pytest.mark.parametrize(
    "loss",
    [
        lambda o, y: (o[:, 0] - y) ** 2,
        lambda o, y: (o[:, 0] - y) ** 2 * jnp.exp(-o[:, 1]) + o[:, 1],
        lambda o, y: optax.sigmoid_binary_cross_entropy(o[:, 0], y),
        lambda o, y: jnp.where(y == 1, o[:, 0], o[:, 1]),
    ],
)
def test_a_loss_that_computes_knows_none(loss):
    assert classes_of(loss, OUTPUTS, Y) is None


@pytest.fixture(scope="module")
def process():
    model = sf.models.from_functions(
        lambda key: jnp.zeros((3, 2)), lambda w, x: x @ w, optax.softmax_cross_entropy_with_integer_labels
    )
    return sf.learning.fed_avg(model, optax.sgd(0.1))


def test_only_clients_that_take_part_are_looked_at(process):
    wrong = np.array([0, 7, 0, 1])
    fed = sf.Federation.from_clients({"a": (X, np.array([0, 1, 0, 1])), "b": (X, wrong), "c": ([], [])})
    state = process.initialize()
    process.next(state, fed, clients=["a", "c"])
    process.next(state, fed.subset(["c", "a"]))
    with pytest.raises(sf.DataError, match="labels from 0 to 7 at client 'b'") as caught:
        process.next(state, fed)
    assert caught.value.code == "SF-DATA-054"


def test_rows_without_weight_may_have_any_label(process):
    y, weight = np.array([0, -1, 1, 0]), np.array([1.0, 0.0, 1.0, 1.0])
    _, metrics = process.next(process.initialize(), [(X, y, weight)])
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 0
    with pytest.raises(sf.DataError, match="labels from -1 to 1 at client 0"):
        process.next(process.initialize(), [(X, y)])


def test_a_negative_weight_names_its_client(process):
    good, bad = (X, np.zeros(4, np.int32), np.ones(4)), (X, np.zeros(4, np.int32), np.array([1.0, -1.0, 1.0, 1.0]))
    process.next(process.initialize(), {"a": good, "b": bad}, clients=["a"])
    with pytest.raises(sf.DataError, match=r"example_weight of -1.0 at client 'b'"):
        process.next(process.initialize(), {"a": good, "b": bad})


def test_iterators_are_kept_only_while_they_can_be_passed_again(process):
    def batches():
        yield X, np.zeros(4, np.int32)

    state, generator = process.initialize(), batches()
    for _ in range(2):
        state, metrics = process.next(state, [generator])
        assert metrics["client_work"]["train"]["num_examples"] == 4
    for _ in range(5):
        state, _ = process.next(state, [iter([(X, np.zeros(4, np.int32))])])
    assert len(process._kept) == 2
    del generator
    gc.collect()
    assert len(process._kept) == 1


def test_data_changed_in_place_is_seen_in_lists(process):
    x, y = X.copy(), np.zeros(4, np.int32)
    first = process.next(process.initialize(), [(x, y)]).state
    y[:] = 1
    second = process.next(process.initialize(), [(x, y)]).state
    assert not np.array_equal(first.algorithm.model.trainable, second.algorithm.model.trainable)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.initialize("a"), "seed='a'"),
        (lambda p: p.initialize(1.5), "seed=1.5"),
        (lambda p: p.on("loopback"), "on.'loopback'"),
        (lambda p: p.on(sf.Loopback), "on.<class"),
        (lambda p: sf.learning.fed_avg(p.model, optax.sgd(0.1), aggregator="median"), "aggregator='median'"),
        (lambda p: sf.learning.fed_avg(p.model, optax.sgd(0.1), aggregator=sf.aggregators.mean), "with parentheses"),
        (lambda p: p.set_hparams(p.initialize(), {"client_work": 0.1}), "as a float"),
    ],
)
def test_wrong_arguments(process, make, message):
    with pytest.raises(sf.CompositionError, match=message):
        make(process)
