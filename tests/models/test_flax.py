import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import sumfold as sf
from sumfold import tree
from sumfold.core import files
from sumfold.core.foreign import foreign
from sumfold.core.round import Batch
from sumfold.errors import CompositionError, MissingExtraError, StateError, TypeMismatchError
from sumfold.models import from_flax
from sumfold.models.adapter import checked_loss
from sumfold.models.metrics import accuracy
from sumfold.testing import assert_runtimes_agree

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0)
X = ROWS.normal(size=(8, 3)).astype(np.float32)
CLASSES = ROWS.integers(0, 4, 8)
LOSS = optax.softmax_cross_entropy_with_integer_labels


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(jnp.tanh(nn.Dense(5)(x)))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(4)(nn.Dropout(0.5)(x, deterministic=not train))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        x = nn.BatchNorm(use_running_average=not training)(nn.Dense(5)(x))
        count = self.variable("counts", "calls", lambda: jnp.int32(0))
        if training:
            count.value = count.value + 1
        return nn.Dense(4)(x)


class NnxPlain(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 5, rngs=rngs), nnx.Linear(5, 4, rngs=rngs)])

    def __call__(self, x):
        return self.layers[1](jnp.tanh(self.layers[0](x)))


class NnxDropped(NnxPlain):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return super().__call__(self.dropout(x))


class NnxNormed(NnxPlain):
    def __init__(self, rngs):
        super().__init__(rngs)
        self.norm, self.calls = nnx.BatchNorm(3, rngs=rngs), nnx.Variable(jnp.int32(0))

    def __call__(self, x):
        return super().__call__(self.norm(x))


PLAIN = {"linen": Plain(), "nnx": NnxPlain}
DROPPED = {"linen": Dropped(), "nnx": NnxDropped}
NORMED = {"linen": Normed(), "nnx": NnxNormed}
BOTH = pytest.mark.parametrize("api", ["linen", "nnx"])


def of(module, **options):
    return from_flax(module, example=X[:2], loss=LOSS, **options)


def batch(x=X, y=CLASSES, mask=None):
    return Batch((jnp.asarray(x), jnp.asarray(y)), jnp.ones(len(y), bool) if mask is None else jnp.asarray(mask))


def gradient(model, weights, key=KEY, data=None):
    parts = model.split(weights)
    return model.gradient(parts.trainable, parts, data or batch(), key)


def same(a, b, **tolerance):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_allclose(x, y, **{"rtol": 0, "atol": 0, **tolerance})


def differ(a, b):
    return any((np.asarray(x) != np.asarray(y)).any() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_gradient_is_that_of_linen():
    model = of(Plain())
    weights = model.init(KEY)
    theirs = foreign(jax.grad(lambda p: LOSS(Plain().apply(p, X), CLASSES).mean()))(weights)
    same(gradient(model, weights)[0], theirs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.predict(weights, X), foreign(Plain().apply)(weights, X), rtol=1e-5, atol=1e-7)


def test_gradient_is_that_of_nnx():
    model = of(NnxPlain)
    weights = model.init(KEY)
    net = foreign(NnxPlain)(nnx.Rngs(0))
    nnx.update(net, weights)
    theirs = foreign(nnx.grad(lambda net: LOSS(net(X), CLASSES).mean()))(net)
    same(gradient(model, weights)[0], nnx.to_pure_dict(theirs), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(model.predict(weights, X), foreign(net)(X), rtol=1e-5, atol=1e-7)


@BOTH
def test_init_is_seeded(api):
    model = of(DROPPED[api])
    same(model.init(KEY), model.init(KEY))
    assert differ(model.init(KEY), model.init(jax.random.key(4)))


@BOTH
def test_dropout_follows_from_the_key_and_is_off_when_predicting(api):
    model = of(DROPPED[api])
    weights = model.init(KEY)
    same(gradient(model, weights), gradient(model, weights))
    assert differ(gradient(model, weights)[0], gradient(model, weights, jax.random.key(4))[0])
    np.testing.assert_array_equal(model.predict(weights, X), model.predict(weights, X))
    if api == "nnx":
        plain = of(NnxPlain)
        np.testing.assert_array_equal(model.predict(weights, X), plain.predict(weights, X))
        assert set(weights) == {"layers"}  # random state is no weight


@BOTH
def test_masked_rows_change_nothing(api):
    model = of(DROPPED[api], metrics={"accuracy": accuracy})
    weights, results = model.init(KEY), []
    for junk in (0, 7.5, np.nan):
        x, y = X.copy(), CLASSES.copy()
        x[5:], y[5:] = junk, 3
        data = batch(x, y, np.arange(8) < 5)
        results.append((gradient(model, weights, data=data), model.measure(model.split(weights), data)))
    same(results[0], results[1])
    same(results[0], results[2])


@BOTH
def test_batch_normalisation_has_statistics_and_says_so(api):
    model = of(NORMED[api])
    assert "batch" in model.coupled.lower()
    assert of(PLAIN[api]).coupled is None
    weights = model.init(KEY)
    parts = model.split(weights)
    assert len(jax.tree.leaves(parts.statistics)) == 2
    assert [leaf.dtype for leaf in jax.tree.leaves(parts.constants)] == [np.int32]
    _, statistics, _ = gradient(model, weights)
    assert tree.specs(statistics) == tree.specs(parts.statistics)
    assert jax.tree.structure(statistics) == jax.tree.structure(parts.statistics)
    assert differ(statistics, parts.statistics)
    same(foreign(model.apply)(parts, jnp.asarray(X), None).statistics, parts.statistics)

    if api == "linen":
        _, theirs = foreign(Normed().apply)(weights, X, training=True, mutable=["batch_stats", "counts"])
        same(statistics["batch_stats"], theirs["batch_stats"], rtol=1e-6)
    else:
        net = foreign(NnxNormed)(nnx.Rngs(0))
        nnx.update(net, weights)
        net.train()
        foreign(net)(X)
        np.testing.assert_allclose(statistics["norm"]["mean"], net.norm.mean[...], rtol=1e-6)


@BOTH
def test_weights_survive_split_join_and_files(api):
    model = of(NORMED[api])
    weights = model.init(KEY)
    assert tree.specs(model.template) == tree.specs(model.split(weights))
    assert jax.tree.structure(model.template) == jax.tree.structure(model.split(weights))
    same(model.join(model.split(weights)), weights)
    loaded = files.unpack(files.pack(weights), "test")
    same(model.split(loaded), model.split(weights))
    with pytest.raises(StateError, match="SF-STATE-003"):
        model.split(of(PLAIN[api]).init(KEY))


@BOTH
@pytest.mark.parametrize("kind", [PLAIN, DROPPED, NORMED], ids=["plain", "dropout", "norm"])
def test_a_compiled_loop_learns(api, kind):
    model = of(kind[api], metrics={"accuracy": accuracy})
    parts = model.split(model.init(KEY))

    @jax.jit
    def train(trainable, statistics):
        def step(i, carry):
            trainable, rest, _ = carry
            gradient, statistics, sums = model.gradient(trainable, rest, batch(), jax.random.fold_in(KEY, i))
            moved = jax.tree.map(lambda w, g: w - jnp.float32(0.3) * g, trainable, gradient)
            return moved, rest._replace(statistics=statistics), sums

        start = trainable, parts._replace(statistics=statistics), model.zero()
        return jax.lax.fori_loop(0, 60, step, start)

    before = model.evaluate(model.join(parts), X, CLASSES)
    trainable, rest, _ = train(parts.trainable, parts.statistics)
    after = model.evaluate(model.join(rest._replace(trainable=trainable)), X, CLASSES)
    assert after["loss"] < before["loss"]
    assert np.isfinite(after["loss"])


def test_an_nnx_module_is_the_initial_one_whatever_the_seed():
    net = foreign(NnxDropped)(nnx.Rngs(7))
    model = of(net)
    kernel = np.asarray(net.layers[0].kernel[...])
    net.layers[0].kernel[...] = jnp.zeros((3, 5))  # what happens to the user's module later does not matter
    for seed in (0, 1):
        np.testing.assert_array_equal(model.init(jax.random.key(seed))["layers"][0]["kernel"], kernel)


def test_an_nnx_builder_takes_rngs_by_position_or_name():
    def by_name(*, rngs):
        return nnx.Linear(3, 4, rngs=rngs)

    same(of(by_name).init(KEY), of(lambda r: nnx.Linear(3, 4, rngs=r)).init(KEY))


def test_split_rngs_get_keys_of_their_own():
    class Many(nnx.Module):
        def __init__(self, rngs):
            self.net = nnx.Linear(3, 4, rngs=rngs)
            self.rngs = rngs.split(8)

        def __call__(self, x, train=False):
            keys = self.rngs.params.key[...]
            noise = jax.vmap(lambda key: jax.random.normal(key, (4,)))(keys)
            return self.net(x) + noise.mean(0) if train else self.net(x)

    model = of(Many)
    weights = model.init(KEY)
    assert set(weights) == {"net"}
    assert differ(
        foreign(model.apply)(model.split(weights), jnp.asarray(X), KEY).outputs,
        foreign(model.apply)(model.split(weights), jnp.asarray(X), jax.random.key(4)).outputs,
    )


def test_other_streams_of_randomness_are_fed():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x, deterministic):
            noise = 0 if deterministic else jax.random.normal(self.make_rng("noise"), x.shape)
            return nn.Dense(4)(x + noise)

    model = of(Noisy())
    weights = model.init(KEY)
    assert differ(gradient(model, weights)[0], gradient(model, weights, jax.random.key(4))[0])


@BOTH
@pytest.mark.parametrize("kind", [DROPPED, NORMED], ids=["dropout", "norm"])
def test_runtimes_agree(api, kind):
    model = of(kind[api], metrics={"accuracy": accuracy})
    process = sf.learning.fed_avg(
        model, optax.sgd(0.2), batching=sf.Batching(3, epochs=2, drop_remainder=kind is NORMED)
    )
    clients = {"a": (X, CLASSES), "b": (X[:4], CLASSES[:4]), "c": (X[:0], CLASSES[:0])}
    assert_runtimes_agree(process, clients, sf.Simulation(), sf.Loopback())


class Sowing(nn.Module):
    collection: str

    @nn.compact
    def __call__(self, x):
        self.sow(self.collection, "h", x)
        return nn.Dense(4)(x)


def test_intermediates_are_left_out():
    assert set(of(Sowing("intermediates")).init(KEY)) == {"params"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda: from_flax(3, X, LOSS), ["SF-MODEL-013", "int"]),
        (lambda: from_flax(Plain, X, LOSS), ["SF-MODEL-013", "Plain(…)"]),
        (lambda: from_flax(lambda rngs: "net", X, LOSS), ["SF-MODEL-013", "str"]),
        (lambda: checked_loss("mse", "f"), ["SF-MODEL-004", "'mse'"]),
        (lambda: checked_loss(None, "f"), ["SF-MODEL-004", "missing"]),
        (lambda: from_flax(Sowing("losses"), X, LOSS), ["SF-MODEL-014", "losses", "intermediates"]),
    ],
)
def test_refused_with_the_reason(given, words):
    with pytest.raises(CompositionError) as caught:
        given()
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("module", [NnxPlain, nn.Conv(2, (3, 3))], ids=["nnx", "linen"])
def test_an_example_that_does_not_fit_is_named(module):
    with pytest.raises(TypeMismatchError, match=r"float32\[8, 7\].*SF-MODEL-011"):
        from_flax(module, np.ones((8, 7)), LOSS)


def test_without_flax_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax.linen", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[flax\]"):
        from_flax(Plain(), X, LOSS)
