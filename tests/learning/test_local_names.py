"""Which weights are local: names, patterns and layers by framework, and what is refused."""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import pytest
from flax import nnx

import sumfold as sf
from sumfold.learning.fed_bn import is_normalisation, normalising
from sumfold.learning.local_layers import chosen, names_of

X = np.ones((4, 6), np.float32)
LOSS = optax.softmax_cross_entropy_with_integer_labels


class Linen(nn.Module):
    def setup(self):
        self.first = nn.BatchNorm(use_running_average=False)
        self.rest = [nn.LayerNorm(), nn.Dense(3)]

    def __call__(self, x):
        for layer in (self.first, *self.rest):
            x = layer(x)
        return x


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.BatchNorm(6, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(6, 3, rngs=rngs), nnx.RMSNorm(3, rngs=rngs)])

    def __call__(self, x):
        return self.rest[1](self.rest[0](self.first(x)))


class Module(eqx.Module):
    first: eqx.nn.LayerNorm
    rest: list

    def __init__(self, key):
        self.first, self.rest = eqx.nn.LayerNorm(6), [eqx.nn.Linear(6, 3, key=key)]

    def __call__(self, x):
        return self.rest[0](self.first(x))


def keras_net():
    block = keras.Sequential([keras.layers.GroupNormalization(2), keras.layers.Dense(4, name="inner")], name="block")
    layers = [
        keras.Input((6,)),
        keras.layers.BatchNormalization(name="first"),
        block,
        keras.layers.Dense(3, name="head"),
    ]
    return keras.Sequential(layers)


FRAMEWORKS = {
    "keras": lambda: sf.models.from_keras(keras_net, keras.losses.SparseCategoricalCrossentropy(from_logits=True)),
    "linen": lambda: sf.models.from_flax(Linen(), X, LOSS),
    "nnx": lambda: sf.models.from_flax(Nnx, X, LOSS),
    "equinox": lambda: sf.models.from_equinox(lambda key: Module(key), LOSS),
    "functions": lambda: sf.models.from_functions(
        lambda key: {"dense": jnp.zeros((6, 3)), "batch_norm_1": {"scale": jnp.ones(6)}, "step": jnp.int32(0)},
        lambda p, x: (x * p["batch_norm_1"]["scale"]) @ p["dense"],
        LOSS,
    ),
}
NORMALISATION = {
    "keras": {
        *(f"first/{name}" for name in ("gamma", "beta", "moving_mean", "moving_variance")),
        *(f"block/group_normalization/{name}" for name in ("gamma", "beta")),
    },
    "linen": {
        *(f"params/{layer}/{name}" for layer in ("first", "rest_0") for name in ("scale", "bias")),
        *(f"batch_stats/first/{name}" for name in ("mean", "var")),
    },
    "nnx": {*(f"first/{name}" for name in ("scale", "bias", "mean", "var")), "rest/1/scale"},
    "equinox": {"first/weight", "first/bias"},
    "functions": {"batch_norm_1/scale"},
}


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_fed_bn_finds_normalisation_layers_by_their_kind(framework):
    model = FRAMEWORKS[framework]()
    found = {name.replace("group_normalization_1", "group_normalization") for name in normalising(model)}
    assert found == NORMALISATION[framework]
    process = sf.learning.fed_bn(model, optax.sgd(0.1), batching=sf.Batching(size=2, drop_remainder=True))
    state = process.initialize()
    before = process.get_model_weights(state)
    clients = {k: (X + np.arange(4, dtype=np.float32)[:, None] * (k + 1), np.array([0, 1, 2, 0])) for k in range(2)}
    state, metrics = process.next(state, clients)
    assert metrics["finalizer"]["update_non_finite"] == 0
    own, server = process.get_client_weights(state, 0), process.get_model_weights(state)
    names = jax.tree.leaves(names_of(model))
    ours, theirs, start = (jax.tree.leaves(model.split(w)) for w in (own, server, before))
    for name, mine, servers, first in zip(names, ours, theirs, start, strict=True):
        if name.replace("group_normalization_1", "group_normalization") in found:
            assert np.array_equal(servers, first), name
        else:
            assert np.array_equal(mine, servers), name
    moved = [not np.array_equal(mine, first) for mine, first in zip(ours, start, strict=True)]
    assert sum(moved) > len(found) / 2


def test_a_model_that_brings_its_own_loop_keeps_layers_too():
    torch = pytest.importorskip("torch")

    def build():
        return torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))

    model = sf.models.from_torch(build, torch.nn.CrossEntropyLoss(), lambda params: torch.optim.SGD(params, 0.1))
    names = {"1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert normalising(model) == names
    assert marked(model, "2") == {"2.weight", "2.bias"}
    process = sf.learning.fed_bn(model, batching=sf.Batching(size=2)).on(sf.Loopback())
    before = process.get_model_weights(process.initialize())
    clients = {k: (X * np.arange(k, 4 + k, dtype=np.float32)[:, None], np.array([0, 1, 2, 0])) for k in range(2)}
    state, _ = process.next(process.initialize(), clients)
    one, two, server = (process.get_client_weights(state, k) for k in (0, 1, "never seen"))
    for name in {*before} - {"1.num_batches_tracked"}:
        assert np.array_equal(server[name], before[name]) == (name in names), name
        assert np.array_equal(one[name], two[name]) == (name not in names), name
    with pytest.raises(sf.CompositionError, match=r"brings its own training loop.*SF-COMP-110"):
        sf.learning.local_layers(model, local="2", head_steps=2)


@pytest.mark.parametrize(
    ("name", "layer", "expected"),
    [
        ("params/BatchNorm_0/scale", None, True),
        ("layer1/0/bn1/weight", None, True),
        ("encoder/layer_norm/weight", None, True),
        ("my_norm/scale", None, True),
        ("enormous/kernel", None, False),
        ("normal/kernel", None, False),
        ("norm", None, False),
        ("norm/kernel", nn.Dense, False),
        ("first/scale", nn.GroupNorm, True),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_a_normalisation_layer_by_its_class_or_name(name, layer, expected):
    assert is_normalisation(name, layer) is expected


def marked(model, local):
    names, is_local = names_of(model), chosen(model, local)
    return {
        name
        for name, own in zip(jax.tree.leaves(names), jax.tree.leaves(is_local), strict=True)
        if own and name in jax.tree.leaves((names.trainable, names.statistics))
    }


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("params/rest_1", {"params/rest_1/kernel", "params/rest_1/bias"}),
        ("params/rest_1/bias", {"params/rest_1/bias"}),
        (["params/rest_*", "batch_stats"], None),
        ("*/scale", {"params/first/scale", "params/rest_0/scale"}),
        (lambda name: name.endswith("var"), {"batch_stats/first/var"}),
    ],
    ids=["beginning", "name", "list", "pattern", "function"],
)
def test_names_of_flax(local, expected):
    beginnings = ("params/rest_", "batch_stats")
    model = FRAMEWORKS["linen"]()
    if expected is None:
        expected = {name for name in jax.tree.leaves(names_of(model)) if name.startswith(beginnings)}
        assert len(expected) == 6
    assert marked(model, local) == expected


def test_names_of_keras_are_those_of_its_variables():
    model = FRAMEWORKS["keras"]()
    assert marked(model, "head") == {"head/kernel", "head/bias"}
    assert marked(model, "block/inner") == {"block/inner/kernel", "block/inner/bias"}
    assert marked(model, ["first/moving_*"]) == {"first/moving_mean", "first/moving_variance"}


REFUSED = {
    "no such name": ("dense/kernel", r"local='dense/kernel'.*'batch_norm_1/scale', 'dense'.*SF-COMP-080"),
    "one of two": (["dense", "head"], r"local='head'.*SF-COMP-080"),
    "a part of a word": ("den", r"local='den'.*SF-COMP-080"),
    "a constant": ("step", r"local='step'.*SF-COMP-080"),
    "none": ([], r"chooses no weight.*SF-COMP-080"),
    "a function that takes none": (lambda name: False, r"chooses no weight.*SF-COMP-080"),
    "a number": (1, r"local=1; needed: a name or pattern.*SF-COMP-081"),
    "numbers": ([1], r"local=\[1\].*SF-COMP-081"),
    "nothing": (None, r"local=None.*SF-COMP-081"),
    "all": ("*", r"every trainable weight is local.*SF-COMP-082"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_choice_that_is_refused(case):
    local, message = REFUSED[case]
    with pytest.raises(sf.CompositionError, match=message):
        sf.learning.local_layers(FRAMEWORKS["functions"](), optax.sgd(0.1), local=local)


@pytest.mark.parametrize("steps", [-1, 1.5, True, None, "2"])
def test_head_steps_is_a_number_of_steps(steps):
    with pytest.raises(sf.CompositionError, match=r"head_steps=.*whole number of at least 0.*SF-COMP-083"):
        sf.learning.local_layers(FRAMEWORKS["functions"](), optax.sgd(0.1), local="dense", head_steps=steps)


def test_head_steps_need_something_to_train():
    batching = sf.Batching(size=2, drop_remainder=True)
    with pytest.raises(sf.CompositionError, match=r"head_steps=2, and .* statistics only.*SF-COMP-084"):
        sf.learning.local_layers(
            FRAMEWORKS["linen"](), optax.sgd(0.1), local="batch_stats", head_steps=2, batching=batching
        )


def test_a_model_without_normalisation_is_refused_unless_the_weights_are_named():
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros(6), "b": jnp.zeros(())}, lambda p, x: x @ p["w"] + p["b"], LOSS
    )
    with pytest.raises(sf.CompositionError, match=r"no normalisation layer was found.*'b', 'w'.*SF-COMP-085"):
        sf.learning.fed_bn(model, optax.sgd(0.1))
    assert sf.learning.fed_bn(model, optax.sgd(0.1), local="b").round.name == "fed_bn"
