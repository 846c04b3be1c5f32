import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tree
from sumfold.core import files
from sumfold.core.foreign import foreign
from sumfold.core.round import Batch
from sumfold.errors import CompositionError, MissingExtraError, StateError
from sumfold.models import from_equinox
from sumfold.models.metrics import accuracy
from sumfold.testing import assert_runtimes_agree

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(8, 3)).astype(np.float32)
CLASSES = ROWS.integers(0, 4, 8)
LOSS = optax.softmax_cross_entropy_with_integer_labels


class Net(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    last: eqx.nn.Linear
    offsets: jax.Array
    name: str = eqx.field(static=True, default="net")

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(3, 5, key=a), eqx.nn.Linear(5, 4, key=b)
        self.dropout, self.offsets = eqx.nn.Dropout(0.5), jnp.arange(4)

    def __call__(self, x, *, key=None):
        return self.last(self.dropout(jnp.tanh(self.first(x)), key=key)) + self.offsets


def mlp(key):
    return eqx.nn.MLP(3, 4, 5, 1, key=key)


def batch(x=X, y=CLASSES, mask=None):
    return Batch((jnp.asarray(x), jnp.asarray(y)), jnp.ones(len(y), bool) if mask is None else jnp.asarray(mask))


def gradient(model, weights, key=KEY, data=None):
    parts = model.split(weights)
    return model.gradient(parts.trainable, parts, data or batch(), key)


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0, **tolerance})


def differ(a, b):
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_gradient_is_that_of_equinox():
    model = from_equinox(mlp, LOSS, {"accuracy": accuracy})
    weights = model.init(KEY)

    @eqx.filter_grad
    def theirs(net):
        return LOSS(jax.vmap(net)(X), CLASSES).mean()

    same(gradient(model, weights)[0], eqx.filter(foreign(theirs)(weights), eqx.is_array), rtol=1e-5, atol=1e-7)
    result = model.evaluate(weights, X, CLASSES)
    assert 0 <= result["accuracy"] <= 1
    assert result["num_examples"] == 8


def test_weights_are_the_module():
    model = from_equinox(Net, LOSS)
    weights = model.init(KEY)
    assert isinstance(weights, Net)
    assert weights.name == "net"
    same(eqx.filter(weights, eqx.is_array), eqx.filter(foreign(Net)(KEY), eqx.is_array))
    inference = eqx.nn.inference_mode(weights)
    np.testing.assert_allclose(model.predict(weights, X), foreign(jax.vmap(inference))(X), rtol=1e-6)


def test_integers_stay_and_floats_are_trained():
    model = from_equinox(Net, LOSS)
    parts = model.split(model.init(KEY))
    assert [leaf.dtype for leaf in jax.tree.leaves(parts.constants)] == [np.int32]
    assert len(jax.tree.leaves(parts.trainable)) == 4
    assert parts.statistics == ()
    assert tree.specs(model.template) == tree.specs(parts)
    assert jax.tree.structure(model.template) == jax.tree.structure(parts)


def test_weights_survive_split_join_and_files():
    for build in (mlp, Net):
        model = from_equinox(build, LOSS)
        weights = model.init(KEY)
        back = model.join(model.split(weights))
        assert jax.tree.structure(back) == jax.tree.structure(weights)
        same(eqx.filter(back, eqx.is_array), eqx.filter(weights, eqx.is_array))
        loaded = files.unpack(files.pack(eqx.filter(weights, eqx.is_array)), "test")
        assert not isinstance(loaded, eqx.Module)
        same(model.split(loaded), model.split(weights))
    whole = files.unpack(files.pack(weights), "test")  # with Python's numbers, such as a dropout's rate
    same(model.split(whole), model.split(weights))


def test_dropout_follows_from_the_key_and_each_row_has_its_own():
    model = from_equinox(Net, LOSS)
    weights = model.init(KEY)
    same(gradient(model, weights)[0], gradient(model, weights)[0])
    assert differ(gradient(model, weights)[0], gradient(model, weights, jax.random.key(4))[0])
    np.testing.assert_array_equal(model.predict(weights, X), model.predict(weights, X))
    alike = jnp.ones((8, 3))
    outputs = foreign(model.apply)(model.split(weights), alike, KEY).outputs
    assert len(np.unique(outputs, axis=0)) > 1
    wider = foreign(model.apply)(model.split(weights), jnp.ones((13, 3)), KEY).outputs
    np.testing.assert_allclose(wider[:8], outputs, rtol=1e-6)  # products of more rows may be summed in another order


def test_masked_rows_change_nothing():
    model = from_equinox(Net, LOSS, {"accuracy": accuracy})
    weights, results = foreign(Net)(KEY), []
    for junk in (0, 7.5, np.nan):
        x, y = X.copy(), CLASSES.copy()
        x[5:], y[5:] = junk, 3
        data = batch(x, y, np.arange(8) < 5)
        results.append((gradient(model, weights, data=data), model.measure(model.split(weights), data)))
    same(results[0], results[1])
    same(results[0], results[2])


def test_a_module_is_the_initial_one_whatever_the_seed():
    net = mlp(KEY)
    model = from_equinox(net, LOSS)
    for seed in (0, 1):
        weights = model.init(jax.random.key(seed))
        same(eqx.filter(weights, eqx.is_array), eqx.filter(net, eqx.is_array))
        assert weights.layers[0].weight is not net.layers[0].weight


def test_a_key_without_default_is_given_when_predicting_too():
    class Noisy(eqx.Module):
        net: eqx.nn.Linear

        def __call__(self, x, key):
            return self.net(x) + jax.random.normal(key, (4,))

    model = from_equinox(lambda key: Noisy(eqx.nn.Linear(3, 4, key=key)), LOSS)
    weights = model.init(KEY)
    np.testing.assert_array_equal(model.predict(weights, X), model.predict(weights, X))


def test_structured_features():
    class Two(eqx.Module):
        net: eqx.nn.Linear

        def __call__(self, x):
            return self.net(jnp.concatenate([x["a"], x["b"][None]]))

    model = from_equinox(lambda key: Two(eqx.nn.Linear(3, 4, key=key)), LOSS)
    x = {"a": X[:, :2], "b": X[:, 2]}
    assert model.evaluate(model.init(KEY), x, CLASSES)["num_examples"] == 8


def test_weights_of_another_model_are_refused():
    model = from_equinox(mlp, LOSS)
    deeper, wider = foreign(eqx.nn.MLP)(3, 4, 5, 2, key=KEY), foreign(eqx.nn.MLP)(3, 4, 6, 1, key=KEY)
    for other in (deeper, wider, {"w": jnp.zeros(3)}):
        with pytest.raises(StateError, match="SF-STATE-003"):
            model.split(other)
    without_bias = from_equinox(lambda key: eqx.nn.Linear(3, 4, use_bias=False, key=key), LOSS)
    with pytest.raises(StateError, match="SF-STATE-003"):
        without_bias.split(foreign(eqx.nn.Linear)(3, 4, key=KEY))


def test_runtimes_agree():
    model = from_equinox(Net, LOSS, {"accuracy": accuracy})
    process = sf.learning.fed_avg(model, optax.sgd(0.2), batching=sf.Batching(3, epochs=2))
    clients = {"a": (X, CLASSES), "b": (X[:4], CLASSES[:4]), "c": (X[:0], CLASSES[:0])}
    assert_runtimes_agree(process, clients, sf.Simulation(), sf.Loopback())


def normalised(key):
    return eqx.nn.Sequential([eqx.nn.Linear(3, 4, key=key), eqx.nn.BatchNorm(4, "batch", mode="ema")])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: from_equinox(3, LOSS), ["SF-MODEL-015", "int"]),
        (lambda: from_equinox(lambda key: "net", LOSS), ["SF-MODEL-015", "str"]),
        (lambda: from_equinox(normalised, LOSS), ["SF-MODEL-016", "GroupNorm", "LayerNorm"]),
        (
            lambda: from_equinox(lambda key: eqx.nn.make_with_state(normalised)(key), LOSS),
            ["SF-MODEL-016", "GroupNorm"],
        ),
        (lambda: from_equinox(lambda key: (mlp(key), None), LOSS), ["SF-MODEL-015", "tuple"]),
    ],
)
def test_refused_with_the_reason(given, words):
    with pytest.raises(CompositionError) as caught:
        given()
    assert [word for word in words if word not in str(caught.value)] == []


def test_without_equinox_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "equinox", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[equinox\]"):
        from_equinox(mlp, LOSS)
