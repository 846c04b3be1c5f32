"""Mixed precision: bfloat16 inside a model, float32 in everything that adds up."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.core.round import Batch
from sumfold.testing import assert_runtimes_agree

CROSS_ENTROPY = optax.softmax_cross_entropy_with_integer_labels


def layered(seen=None):
    """Two layers; `seen` is told every dtype that predict, the loss and the metric meet."""
    seen = {} if seen is None else seen

    def init(key):
        a, b = jax.random.split(key)
        hidden, out = 0.1 * jax.random.normal(a, (64, 32)), 0.1 * jax.random.normal(b, (32, 10))
        return {"a": hidden, "b": out, "c": jnp.zeros(10), "steps": jnp.int32(0)}

    def note(where, *arrays):
        seen.setdefault(where, set()).add(tuple(a.dtype.name for a in arrays))

    def predict(w, x):
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ w["a"])
        outputs = hidden @ w["b"] + w["c"]
        note("predict", x, w["a"], w["steps"], hidden, outputs)
        return outputs

    def loss(outputs, y):
        note("loss", outputs, y)
        return CROSS_ENTROPY(outputs, y)

    def right(outputs, y):
        note("metric", outputs, y)
        return (outputs.argmax(-1) == y).astype(jnp.float32)

    return sf.models.from_functions(init, predict, loss, metrics={"accuracy": right})


def training(model, runtime=None):
    process = sf.learning.fed_avg(model, optax.sgd(0.1, momentum=0.9), batching=sf.Batching(size=10))
    return process if runtime is None else process.on(runtime)


@pytest.fixture(scope="module")
def digits():
    return sf.data.digits(clients=10)


def test_bfloat16_is_inside_predict_and_float32_everywhere_else(digits):
    seen = {}
    model = sf.models.mixed_precision(layered(seen))
    process, evaluation = training(model), sf.learning.fed_eval(model)
    state, metrics = process.next(process.initialize(), digits[0])
    start = evaluation.set_model_weights(evaluation.initialize(), process.get_model_weights(state))
    _, found = evaluation.next(start, digits[1])
    assert seen == {
        "predict": {("bfloat16", "bfloat16", "int32", "bfloat16", "bfloat16")},
        "loss": {("float32", "int32")},
        "metric": {("float32", "int32")},
    }
    assert {a.dtype.name for a in jax.tree.leaves(state.algorithm)} == {"float32", "int32"}
    assert metrics["client_work"]["train"]["num_examples"] == 1437
    pooled = layered().evaluate(process.get_model_weights(state), *digits[1].pooled())
    assert found["client_work"]["eval"]["loss"] == pytest.approx(pooled["loss"], rel=0.01)


def test_gradients_are_those_of_float32_to_three_digits(digits):
    model, rows = layered(), digits[0].pooled()
    parts = model.split(model.init(jax.random.key(0)))
    batch = Batch(jax.tree.map(lambda a: jnp.asarray(a[:64]), rows), jnp.ones(64, bool))

    def gradient(model):
        found, _, sums = jax.jit(model.gradient)(parts.trainable, parts, batch, jax.random.key(1))
        assert {a.dtype.name for a in jax.tree.leaves((found, sums))} == {"float32"}
        return np.concatenate([np.ravel(a) for a in jax.tree.leaves(found)])

    exact, mixed = gradient(model), gradient(sf.models.mixed_precision(model))
    error = np.linalg.norm(mixed - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 1e-2, "a number of bfloat16 has 8 bits: 0.4 % each, less together"


def test_training_reaches_the_loss_of_float32_and_states_fit_both(digits, tmp_path):
    exact, mixed = training(layered()), training(sf.models.mixed_precision(layered()))
    assert "in bfloat16" in mixed.explain()
    run = {"rounds": 15, "seed": 2, "progress": False}
    low = sf.train(mixed, digits[0], checkpoint=tmp_path, **run).state
    with pytest.raises(sf.CheckpointError, match="the program"):  # but a run is resumed as it was begun
        sf.train(exact, digits[0], checkpoint=tmp_path, **run)
    high = sf.train(exact, digits[0], **run).state
    found = [
        p.evaluate(exact.get_model_weights(s), *digits[1].pooled()) for p, s in ((layered(), high), (layered(), low))
    ]
    assert found[0]["accuracy"] > 0.9
    assert found[1]["loss"] == pytest.approx(found[0]["loss"], rel=0.02)
    assert found[1]["accuracy"] == pytest.approx(found[0]["accuracy"], abs=0.02)
    exact.next(low, digits[0])
    mixed.next(high, digits[0])
    np.testing.assert_array_equal(low.fingerprint, high.fingerprint)


def test_the_runtimes_agree(digits):
    """Equal in the pinned kernel; otherwise to what rounding to 8 bits in another order makes of it."""
    process, some = training(sf.models.mixed_precision(layered())), digits[0].subset(digits[0].ids[:3])
    pinned = assert_runtimes_agree(process, some, sf.Loopback(), sf.Simulation(deterministic=True), rounds=1)
    assert max(pinned) == 0, pinned
    kernels = [sf.Simulation(), sf.Simulation(lanes=2)]
    assert_runtimes_agree(process, some, *kernels, rounds=2, rtol=0.01, atol=2e-3, metrics_tol=0.01)


def linen():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Conv(4, (3, 3))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
            return nn.Dense(10)(x.reshape(len(x), -1))

    return sf.models.from_flax(Net(), example=np.ones((1, 8, 8, 1), "f4"), loss=CROSS_ENTROPY)


def nnx():
    from flax import nnx

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv, self.norm = nnx.Conv(1, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, dtype=jnp.bfloat16, rngs=rngs)
            self.out = nnx.Linear(256, 10, rngs=rngs)

        def __call__(self, x):
            return self.out(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))

    return sf.models.from_flax(lambda rngs: Net(rngs), example=np.ones((1, 8, 8, 1), "f4"), loss=CROSS_ENTROPY)


def equinox():
    import equinox as eqx

    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        out: eqx.nn.Linear

        def __init__(self, key):
            self.conv = eqx.nn.Conv2d(1, 4, 3, padding=1, key=key)
            self.out = eqx.nn.Linear(256, 10, key=key)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.conv(x.transpose(2, 0, 1))).reshape(-1))

    return sf.models.from_equinox(Net, loss=CROSS_ENTROPY)


@pytest.mark.parametrize("made", [linen, nnx, equinox], ids=["linen", "nnx", "equinox"])
def test_modules_of_frameworks_multiply_in_bfloat16(digits, made):
    model = sf.models.mixed_precision(made())
    parts = model.split(model.init(jax.random.key(0)))
    x, y = (jnp.asarray(a[:8]) for a in digits[0].pooled())
    apply = foreign(model.apply)
    program = str(jax.make_jaxpr(apply)(parts, x, jax.random.key(0)))
    products = [line for line in program.splitlines() if "dot_general[" in line or "conv_general_dilated[" in line]
    assert len(products) == 2
    assert all(":bf16[" in line for line in products), products
    applied = jax.eval_shape(apply, parts, x, jax.random.key(0))
    assert applied.outputs.dtype == jnp.float32
    assert tree.specs(applied.statistics) == tree.specs(parts.statistics)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=4, drop_remainder=True))
    _, metrics = process.next(process.initialize(), {"a": (np.asarray(x), np.asarray(y))})
    assert 1 < metrics["client_work"]["train"]["loss"] < 5


@pytest.mark.parametrize(
    ("dtype", "needed"),
    [
        ("float16", "bfloat16: small gradients vanish in float16 unless the loss is scaled"),
        (jnp.float32, "needed: bfloat16;"),
        ("half", "vanish in float16"),
        ("bf8", "needed: bfloat16;"),
    ],
    ids=["float16", "float32", "half", "none"],
)
def test_another_dtype_is_refused(dtype, needed):
    with pytest.raises(sf.CompositionError, match=needed) as info:
        sf.models.mixed_precision(layered(), dtype)
    assert info.value.code == "SF-MODEL-038"


def keras_model():
    import keras

    build = lambda: keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    return sf.models.from_keras(build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def sklearn_model():
    from sklearn.linear_model import SGDClassifier

    return sf.models.from_sklearn(SGDClassifier(loss="log_loss"), example=np.ones((2, 3)), classes=[0, 1])


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (keras_model, r'keras\.config\.set_dtype_policy\("mixed_bfloat16"\) before the model is built'),
        (sklearn_model, "whose clients run a training loop of their own"),
        (lambda: layered, "a function"),
    ],
    ids=["keras", "sklearn", "no model"],
)
def test_a_model_that_it_cannot_be_done_for_is_refused(made, said):
    with pytest.raises(sf.CompositionError, match=said) as info:
        sf.models.mixed_precision(made())
    assert info.value.code == "SF-MODEL-037"


def test_the_policy_of_keras_gives_a_model_of_both_precisions():
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras_model()
    finally:
        keras.config.set_dtype_policy(before)
    assert {a.dtype.name for a in model.template.trainable} == {"float32"}
    assert model.predict(model.init(jax.random.key(0)), np.ones((2, 3), "f4")).dtype == jnp.bfloat16
    process = training(model)
    state, metrics = process.next(process.initialize(), {"a": (np.ones((5, 3), "f4"), np.ones(5, "i4"))})
    assert metrics["client_work"]["train"]["loss"] < 5
    assert {a.dtype.name for a in state.algorithm.model.trainable} == {"float32"}
