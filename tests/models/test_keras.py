import random
import sys

import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from keras import layers

import sumfold as sf
from sumfold import tree
from sumfold.core import files
from sumfold.core.foreign import foreign
from sumfold.core.round import Batch
from sumfold.errors import CompositionError, MissingExtraError, StateError
from sumfold.models import from_keras
from sumfold.models.keras import KerasWeights, seeded, values_of
from sumfold.models.metrics import accuracy
from sumfold.models.model import Examples
from sumfold.testing import assert_runtimes_agree

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(8, 3)).astype(np.float32)
CLASSES = ROWS.integers(0, 4, 8)


def dense(units=4, activation="softmax", inside=()):
    return keras.Sequential([keras.Input((3,)), layers.Dense(5, "tanh"), *inside, layers.Dense(units, activation)])


def full(x, y):
    return Batch(jax.tree.map(jnp.asarray, (x, y)), jnp.ones(len(y), bool))


def gradient(model, x=X, y=CLASSES, key=KEY, weights=None):
    parts = model.split(model.init(KEY) if weights is None else weights)
    return model.gradient(parts.trainable, parts, full(x, y), key)


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0, **tolerance})


def predicted(net, x):
    return np.asarray(foreign(net)(x, training=False))


def differ(a, b):
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


# -- what is computed ----------------------------------------------------------------------------------


@pytest.mark.jax_defaults
def test_gradient_is_that_of_keras():
    net = dense()
    loss = keras.losses.SparseCategoricalCrossentropy()
    mine, _, sums = gradient(from_keras(net, loss))

    def mean_loss(values):
        return loss(CLASSES, net.stateless_call(values, [], X)[0])

    value, theirs = jax.value_and_grad(mean_loss)([v.value for v in net.trainable_variables])
    same(mine, theirs, rtol=1e-5, atol=1e-7)
    assert sums["loss"][0] / sums["loss"][1] == pytest.approx(float(value), rel=1e-6)


def test_one_round_of_sgd_is_what_fit_does():
    net = dense()
    model = from_keras(net, "sparse_categorical_crossentropy")
    weights = model.init(KEY)
    step, _, _ = gradient(model)
    net.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        net.fit(X, CLASSES.astype(np.int32), batch_size=8, verbose=0)
    fitted = [v.value for v in net.trainable_variables]
    same([w - jnp.float32(0.1) * g for w, g in zip(weights.trainable, step, strict=True)], fitted, rtol=1e-5, atol=1e-6)
    assert differ(model.init(KEY).trainable, fitted)  # fit changed the user's model, not ours


@pytest.mark.parametrize("inside", [(), (layers.Dropout(0.5),)], ids=["plain", "dropout"])
def test_masked_rows_change_nothing(inside):
    model = from_keras(lambda: dense(inside=inside), "sparse_categorical_crossentropy", ["accuracy"])
    parts = model.split(model.init(KEY))
    results = []
    for junk in (0, 7.5, np.nan):
        x, y = X.copy(), CLASSES.copy()
        x[5:], y[5:] = junk, 0 if np.isnan(junk) else int(junk)
        batch = Batch((jnp.asarray(x), jnp.asarray(y)), jnp.arange(8) < 5)
        results.append((model.gradient(parts.trainable, parts, batch, KEY), model.measure(parts, batch)))
    for other in results[1:]:
        same(results[0], other)


def test_dropout_follows_from_the_key_and_is_off_when_predicting():
    model = from_keras(
        lambda: dense(inside=[layers.Dropout(0.5), layers.GaussianNoise(0.3)]), "sparse_categorical_crossentropy"
    )
    weights = model.init(KEY)
    same(gradient(model, weights=weights), gradient(model, weights=weights))
    assert differ(gradient(model, weights=weights), gradient(model, weights=weights, key=jax.random.key(4)))
    net = dense(inside=[layers.Dropout(0.5), layers.GaussianNoise(0.3)])
    weights.assign_to(net)
    np.testing.assert_allclose(model.predict(weights, X), predicted(net, X), rtol=1e-6)
    np.testing.assert_array_equal(model.predict(weights, X), model.predict(weights, X))


def test_seeds_are_no_weights():
    model = from_keras(lambda: dense(inside=[layers.Dropout(0.5)]), "sparse_categorical_crossentropy")
    assert model.init(KEY).non_trainable == []
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.template))


def test_dropout_in_a_subclassed_model_without_a_training_argument():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.dropout = layers.Dense(4, "softmax"), layers.Dropout(0.5)

        def call(self, x):
            return self.dense(self.dropout(x))

    def build():
        net = Net()
        net(X)
        return net

    model = from_keras(build, "sparse_categorical_crossentropy", ["accuracy"])
    weights = model.init(KEY)
    assert differ(gradient(model, weights=weights), gradient(model, weights=weights, key=jax.random.key(4)))
    assert set(model.evaluate(weights, X, CLASSES)) == {"loss", "accuracy", "num_examples"}


def test_penalty_is_the_models_own_losses():
    plain, regular = (
        dense(),
        keras.Sequential(
            [keras.Input((3,)), layers.Dense(5, "tanh", kernel_regularizer="l2"), layers.Dense(4, "softmax")]
        ),
    )
    values_of(plain).assign_to(regular)
    values = {}
    for name, net in {"plain": plain, "regular": regular}.items():
        model = from_keras(net, "sparse_categorical_crossentropy")
        parts = model.split(model.init(KEY))
        value, (_, sums) = model.objective(parts.trainable, parts, Examples.of(full(X, CLASSES)), KEY)
        values[name] = float(value), float(sums["loss"][0])
    kernel = np.asarray(plain.weights[0].value)
    assert values["regular"][0] - values["plain"][0] == pytest.approx(0.01 * (kernel**2).sum(), rel=1e-4)
    assert values["regular"][1] == values["plain"][1]


def test_batch_normalisation_changes_its_statistics_and_says_so():
    model = from_keras(lambda: dense(inside=[layers.BatchNormalization(name="bn")]), "sparse_categorical_crossentropy")
    assert model.coupled == "BatchNormalization layer 'bn'"
    parts = model.split(model.init(KEY))
    _, statistics, _ = gradient(model)
    assert tree.specs(statistics) == tree.specs(parts.statistics)
    assert differ(statistics, parts.statistics)

    net = dense(inside=[layers.BatchNormalization(name="bn")])
    model.init(KEY).assign_to(net)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        net(X, training=True)
    same(list(statistics), [v.value for v in net.non_trainable_weights], rtol=1e-6)


def test_coupling_is_found_in_nested_models_and_not_in_frozen_ones():
    inner = keras.Sequential([keras.Input((5,)), layers.BatchNormalization()])
    assert from_keras(dense(inside=[inner]), "mse").coupled
    inner.trainable = False
    assert from_keras(dense(inside=[inner]), "mse").coupled is None
    assert from_keras(dense(inside=[layers.LayerNormalization()]), "mse").coupled is None


def test_losses_that_look_at_the_batch_are_coupled():
    class Own(layers.Layer):
        def call(self, x):
            self.add_loss(keras.ops.mean(x))
            return x

    assert (
        "activity regularizer" in from_keras(dense(inside=[layers.Dense(2, activity_regularizer="l2")]), "mse").coupled
    )
    model = from_keras(dense(inside=[Own()]), "sparse_categorical_crossentropy")
    assert "add_loss" in model.coupled
    parts = model.split(model.init(KEY))
    assert float(foreign(model.apply)(parts, jnp.asarray(X), KEY).penalty) != 0


@pytest.mark.parametrize(
    ("net", "x"),
    [
        ([keras.Input((6,)), layers.Embedding(9, 4), layers.LSTM(3), layers.Dense(4)], ROWS.integers(0, 9, (8, 6))),
        (
            [
                keras.Input((6,)),
                layers.Embedding(9, 4),
                layers.GRU(3, dropout=0.2, recurrent_dropout=0.2),
                layers.Dense(4),
            ],
            ROWS.integers(0, 9, (8, 6)),
        ),
        (
            [
                keras.Input((6, 6, 1)),
                layers.Conv2D(2, 3),
                layers.MaxPooling2D(),
                layers.Dropout(0.1),
                layers.Flatten(),
                layers.Dense(4),
            ],
            ROWS.normal(size=(8, 6, 6, 1)).astype(np.float32),
        ),
    ],
    ids=["lstm", "gru", "cnn"],
)
def test_other_architectures_learn(net, x):
    net = foreign(keras.Sequential)(net)
    model = from_keras(net, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    parts = model.split(model.init(KEY))
    step = jax.jit(lambda p, key: model.gradient(p, parts, full(x, CLASSES), key))
    trainable, losses = parts.trainable, []
    for i in range(15):
        gradient, _, sums = step(trainable, jax.random.key(i))
        losses.append(float(sums["loss"][0]))
        trainable = jax.tree.map(lambda w, g: w - jnp.float32(0.3) * g, trainable, gradient)
    assert losses[-1] < losses[0]


# -- weights -------------------------------------------------------------------------------------------


def test_a_model_gives_its_own_weights_whatever_the_seed():
    net = dense()
    model = from_keras(net, "mse")
    same(model.init(KEY), model.init(jax.random.key(9)))
    same(model.init(KEY).trainable, [v.value for v in net.trainable_variables])


def test_a_builder_is_seeded_and_leaves_the_global_generators_alone():
    def build():
        np.random.random()
        return dense()

    model = from_keras(build, "mse")
    first, again, other = model.init(KEY), model.init(KEY), model.init(jax.random.key(9))
    same(first, again)
    assert differ(first, other)

    numpy = np.random.get_state()
    model.init(KEY)
    np.testing.assert_equal(np.random.get_state(), numpy)
    python = random.getstate()  # beartype draws from this generator too, so it is looked at alone
    with seeded(5):
        random.random()
    assert random.getstate() == python


def test_weights_survive_split_join_and_files():
    model = from_keras(lambda: dense(inside=[layers.BatchNormalization(), layers.Normalization()]), "mse")
    weights = model.init(KEY)
    assert tree.specs(model.template) == tree.specs(model.split(weights))
    same(model.join(model.split(weights)), weights)
    loaded = files.unpack(files.pack(weights), "test")
    assert isinstance(loaded, KerasWeights)
    same(model.split(loaded), model.split(weights))


def test_integer_weights_are_constants():
    class Counting(layers.Layer):
        def build(self, shape):
            self.count = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

        def call(self, x):
            self.count.assign_add(1)
            return x

    model = from_keras(dense(inside=[Counting()]), "sparse_categorical_crossentropy")
    parts = model.split(model.init(KEY))
    assert [leaf.dtype for leaf in jax.tree.leaves(parts.constants)] == [np.int32]
    _, statistics, _ = gradient(model)
    assert jax.tree.structure(statistics) == jax.tree.structure(parts.statistics)


def test_assign_to_writes_copies():
    net, model = dense(), from_keras(dense, "mse")
    weights = model.init(KEY)
    weights.assign_to(net)
    same([v.value for v in net.trainable_variables], weights.trainable)
    assert all(v.value is not w for v, w in zip(net.trainable_variables, weights.trainable, strict=True))
    with pytest.raises(StateError, match=r"SF-MODEL-012"):
        weights.assign_to(dense(units=2))


def test_weights_of_another_model_are_refused():
    with pytest.raises(StateError, match="SF-STATE-003"):
        from_keras(dense, "mse").split(from_keras(lambda: dense(7), "mse").init(KEY))


# -- losses --------------------------------------------------------------------------------------------

BINARY = ROWS.integers(0, 2, 8)


@pytest.mark.jax_defaults
@pytest.mark.parametrize(
    ("units", "loss", "y"),
    [
        (4, "sparse_categorical_crossentropy", CLASSES),
        (4, "sparse_categorical_crossentropy", CLASSES[:, None]),
        (4, "categorical_crossentropy", np.eye(4)[CLASSES]),
        (4, keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=2), CLASSES),
        (1, "binary_crossentropy", BINARY),
        (1, keras.losses.BinaryCrossentropy(from_logits=True), BINARY[:, None]),
        (1, keras.losses.BinaryFocalCrossentropy, BINARY),
        (1, "mse", X[:, 0]),
        (1, keras.losses.mean_absolute_error, X[:, :1]),
        (1, keras.losses.Huber(0.5, reduction="sum"), X[:, 0]),
        (3, "mse", X),
    ],
)
def test_losses_are_those_of_keras_for_each_example(units, loss, y):
    net = dense(units, "sigmoid" if units == 1 else "softmax")
    model = from_keras(net, loss)
    outputs = predicted(net, X)
    given = keras.losses.get(loss)
    if not isinstance(given, keras.losses.Loss):
        function = given
        given = type("Own", (keras.losses.Loss,), {"call": lambda self, a, b: function(a, b)})()
    two = y if y.ndim == 2 or units != 1 else y[:, None]
    expected = [float(given(two[i : i + 1], outputs[i : i + 1])) for i in range(8)]
    np.testing.assert_allclose(model.loss(outputs, jnp.asarray(y)), expected, rtol=1e-5, atol=1e-7)
    assert model.evaluate(model.init(KEY), X, y)["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_outputs_of_one_axis_have_one_loss_each():
    net = keras.Sequential([keras.Input((3,)), layers.Dense(1), layers.Flatten(), layers.Reshape(())])
    model = from_keras(net, "mse", ["mae"])
    outputs = model.predict(model.init(KEY), X)
    assert outputs.shape == (8,)
    result = model.evaluate(model.init(KEY), X, X[:, 0])
    assert result["loss"] == pytest.approx(((outputs - X[:, 0]) ** 2).mean(), rel=1e-5)
    assert result["mae"] == pytest.approx(np.abs(outputs - X[:, 0]).mean(), rel=1e-5)


def test_a_sequence_counts_its_unmasked_places():
    net = foreign(keras.Sequential)(
        [
            keras.Input((5,)),
            layers.Embedding(9, 4, mask_zero=True),
            layers.LSTM(3, return_sequences=True),
            layers.Dense(4, "softmax"),
        ]
    )
    model = from_keras(net, "sparse_categorical_crossentropy")
    x, y = np.array([[3, 1, 0, 0, 0], [2, 2, 5, 1, 0]]), np.array([[0, 1, 2, 3, 1], [1, 1, 0, 2, 3]])
    outputs = model.predict(model.init(KEY), x)
    chosen = -np.log(np.take_along_axis(outputs, y[..., None], -1)[..., 0])
    expected = (chosen[0, :2].mean() + chosen[1, :4].mean()) / 2
    assert model.evaluate(model.init(KEY), x, y)["loss"] == pytest.approx(expected, rel=1e-5)
    parts = model.split(model.init(KEY))
    sums = jax.jit(lambda key: model.gradient(parts.trainable, parts, full(x, y), key))(KEY)[2]
    assert float(sums["loss"][0]) / 2 == pytest.approx(expected, rel=1e-5)


def test_a_function_takes_outputs_first():
    model = from_keras(dense, lambda outputs, y: -jnp.log(outputs[jnp.arange(len(y)), y]), {"hits": accuracy})
    weights = model.init(KEY)
    other = from_keras(dense, "sparse_categorical_crossentropy", ["accuracy"])
    a, b = model.evaluate(weights, X, CLASSES), other.evaluate(weights, X, CLASSES)
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["hits"] == b["accuracy"]


def test_a_compiled_model_brings_its_loss():
    net = dense()
    net.compile(loss="sparse_categorical_crossentropy")
    other = from_keras(net, "sparse_categorical_crossentropy")
    model = from_keras(net)
    assert model.evaluate(model.init(KEY), X, CLASSES) == other.evaluate(other.init(KEY), X, CLASSES)
    net.compile(loss=lambda y_true, y_pred: keras.losses.sparse_categorical_crossentropy(y_true, y_pred))
    model = from_keras(net)
    assert model.evaluate(model.init(KEY), X, CLASSES) == other.evaluate(other.init(KEY), X, CLASSES)


# -- in a federation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [False, True], ids=["dropout", "norm"])
def test_runtimes_agree(norm):
    def net():
        return dense(inside=[layers.BatchNormalization() if norm else layers.Dropout(0.2)])

    model = from_keras(net, "sparse_categorical_crossentropy", ["accuracy"])
    process = sf.learning.fed_avg(model, optax.sgd(0.2), batching=sf.Batching(3, epochs=2, drop_remainder=norm))
    clients = {"a": (X, CLASSES), "b": (X[:4], CLASSES[:4]), "c": (X[:0], CLASSES[:0])}
    assert_runtimes_agree(process, clients, sf.Simulation(), sf.Loopback())


# -- refused -------------------------------------------------------------------------------------------


def branches():
    inputs = keras.Input((3,))
    return keras.Model(inputs, [layers.Dense(1)(inputs), layers.Dense(2)(inputs)])


def recurrent():
    return keras.Sequential([keras.Input((4, 2), batch_size=3), layers.LSTM(2, stateful=True, name="memory")])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: from_keras(3, "mse"), ["SF-MODEL-002", "int"]),
        (lambda: from_keras(lambda: "net", "mse"), ["SF-MODEL-002", "str"]),
        (
            lambda: from_keras(keras.Sequential([layers.Dense(1)], name="bare"), "mse"),
            ["SF-MODEL-003", "bare", "Input"],
        ),
        (lambda: from_keras(dense), ["SF-MODEL-004", "missing"]),
        (lambda: from_keras(dense, "no_such_loss"), ["SF-MODEL-004", "no_such_loss"]),
        (lambda: from_keras(dense, 3.0), ["SF-MODEL-004", "float"]),
        (lambda: from_keras(recurrent, "mse"), ["SF-MODEL-005", "memory", "stateful"]),
        (lambda: from_keras(branches, "mse"), ["SF-MODEL-007", "2 outputs"]),
    ],
)
def test_refused_with_the_reason(given, words):
    with pytest.raises(CompositionError) as caught:
        given()
    assert [word for word in words if word not in str(caught.value)] == []


def test_another_backend_is_told_how_to_change(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "tensorflow")
    with pytest.raises(
        CompositionError, match=r"'tensorflow'.*KERAS_BACKEND=jax.*before the first import.*SF-MODEL-001"
    ):
        from_keras(dense, "mse")


def test_without_keras_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[keras\]"):
        from_keras(dense, "mse")


# -- what is frozen --------------------------------------------------------------------------------------


def frozen_net():
    scaled = layers.Normalization(mean=[0.5, 0.0, 1.0], variance=[1.0, 2.0, 3.0])
    adapted = layers.Normalization()
    adapted.adapt(X)
    still = layers.Dense(5, "tanh")
    still.trainable = False
    still_norm = layers.BatchNormalization()
    still_norm.trainable = False
    return keras.Sequential(
        [keras.Input((3,)), adapted, scaled, still, still_norm, layers.BatchNormalization(), layers.Dense(4)]
    )


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.table = layers.Embedding(10, 4)
        self.table.trainable = False
        self.normal = layers.BatchNormalization()
        self.out = layers.Dense(2)

    def call(self, x, training=False):
        return self.out(self.normal(self.table(x), training=training))


def subclassed_net(told=True):
    net = Subclassed()
    foreign(net)(np.ones((2, 5), np.int32))
    if not told:
        net.get_build_config = dict
    return net


@pytest.mark.parametrize(
    ("build", "statistics"),
    [
        (frozen_net, 2),
        (subclassed_net, 2),
        (lambda: subclassed_net(told=False), 2),
        (lambda: keras.Model(i := keras.Input((3,)), layers.SpectralNormalization(layers.Dense(2))(i)), 1),
    ],
    ids=["sequential", "subclassed", "shape unknown", "spectral"],
)
def test_only_what_training_assigns_is_averaged(build, statistics):
    net = foreign(build)()
    template = from_keras(net, "mse").template
    assert len(jax.tree.leaves(template.statistics)) == statistics
    assert len(jax.tree.leaves(template.constants)) == len(net.non_trainable_weights) - statistics


def test_frozen_layers_stay_bit_for_bit_and_are_not_uploaded():
    net = foreign(frozen_net)()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    process = sf.learning.fed_avg(
        from_keras(net, loss), optax.sgd(0.1), batching=sf.Batching(size=4, drop_remainder=True)
    )
    state = process.initialize()
    before = process.get_model_weights(state)
    clients = [(X, CLASSES), (2 * X + 1, CLASSES)]
    leaves = process.explain(clients)
    for _ in range(2):
        state, _ = process.next(state, clients)
    after = process.get_model_weights(state)
    moved = [
        np.asarray(a).tobytes() != np.asarray(b).tobytes()
        for a, b in zip(before.non_trainable, after.non_trainable, strict=True)
    ]
    averaged = {id(v) for v in net.layers[-2].non_trainable_weights}
    assert moved == [id(v) in averaged for v in net.non_trainable_weights]
    assert differ(before.trainable, after.trainable)
    assert leaves.count("statistics/") == sum(moved), leaves
