"""Models from plain functions."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

KEY = jax.random.key(0)


def linear(**changes):
    parts = {
        "init": lambda key: {"w": np.zeros(2), "b": 0.0, "n": 3, "flag": True},
        "predict": lambda p, x: x @ p["w"] + p["b"],
        "loss": lambda outputs, y: (outputs - y) ** 2,
    }
    return sf.models.from_functions(**{**parts, **changes})


def test_weights_come_back_as_inits_own_tree():
    model = linear()
    weights = model.init(KEY)
    assert {k: str(v.dtype) for k, v in weights.items()} == {
        "w": "float32",
        "b": "float32",
        "n": "int32",
        "flag": "bool",
    }
    assert not any(leaf.weak_type for leaf in weights.values())
    back = model.join(model.split(weights))
    assert jax.tree.structure(back) == jax.tree.structure(weights)
    parts = model.split(weights)
    assert [k for k, v in parts.trainable.items() if v is not None] == ["b", "w"]
    assert [k for k, v in parts.constants.items() if v is not None] == ["flag", "n"]


def test_weights_from_a_file_are_taken():
    model = sf.models.from_functions(lambda key: [jnp.zeros(2), (jnp.ones(1),)], lambda p, x: x @ p[0], lambda o, y: o)
    assert jax.tree.structure(model.join(model.split((np.ones(2, np.float32), [np.ones(1, np.float32)])))) == (
        jax.tree.structure([0, (0,)])
    )


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"w": np.zeros(3), "b": 0.0, "n": 3, "flag": True}, r"'w' float32\[3\].*'w' float32\[2\]"),
        ({"w": np.zeros(2), "b": 0, "n": 3, "flag": True}, r"'b' int32\[\].*'b' float32\[\]"),
        ({"w": np.zeros(2), "b": 0.0, "n": 3, "flag": True, "z": 1.0}, r"5 arrays.*4 arrays"),
        ({"w": np.zeros(2)}, r"'w'.*'b'"),
        (np.zeros(2), "weights with"),
    ],
)
def test_weights_of_another_model(weights, words):
    with pytest.raises(sf.StateError, match=rf"(?s){words}.*SF-STATE-003"):
        linear().split(weights)


@pytest.mark.parametrize("role", ["init", "predict", "loss"])
@pytest.mark.parametrize("wrong", [None, "mse", np.zeros(2)])
def test_what_is_no_function(role, wrong):
    with pytest.raises(sf.CompositionError, match=rf"{role} is a {type(wrong).__name__}.*a function.*SF-COMP-014"):
        linear(**{role: wrong})


def test_metrics_that_are_no_dict():
    with pytest.raises(sf.CompositionError, match=r"metrics as a list"):
        linear(metrics=[sf.metrics.accuracy])


def test_the_name():
    def my_network(params, x):
        return x

    assert linear(predict=my_network).name == "my_network"
    assert repr(linear()) == "Model(function)"


def test_an_example_is_checked_now():
    linear(example=np.ones((4, 2)))
    with pytest.raises((TypeError, ValueError)):
        linear(example=np.ones((4, 3)))


def test_a_key_is_given_only_to_those_that_take_one():
    seen = []

    def predict(params, x, *, key=None):
        seen.append(key is not None)
        return x @ params["w"]

    model = linear(predict=predict)
    parts = model.split(model.init(KEY))
    x = jnp.ones((2, 2))
    model.apply(parts, x, None)
    model.apply(parts, x, KEY)
    assert seen == [False, True]
    linear().apply(linear().split(linear().init(KEY)), x, KEY)


@pytest.mark.parametrize("leaf", ["relu", None.__class__, object()], ids=["str", "type", "object"])
def test_init_returns_arrays(leaf):
    with pytest.raises(sf.CompositionError, match=r"init returned a tree with a .*SF-COMP-036"):
        linear(init=lambda key: {"w": np.zeros(2), "b": 0.0, "activation": leaf})


def test_a_key_without_default_is_refused():
    with pytest.raises(sf.CompositionError, match=r"key=None.*SF-COMP-037"):
        linear(predict=lambda p, x, key: x @ p["w"])


def test_an_example_that_predict_does_not_take():
    with pytest.raises(sf.TypeMismatchError, match=r"x float32\[4, 3\].*SF-TYPE-002"):
        linear(example=np.ones((4, 3), np.float32))


def test_large_weights_are_drawn_by_one_program():
    def init(key):
        first, second = jax.random.split(key)
        return {"w": 0.1 * jax.random.normal(first, (200, 100)), "v": jax.random.normal(second, (7, 5)) + offset}

    offset = np.float32(2)
    model = sf.models.from_functions(init, lambda p, x: x @ p["w"], lambda outputs, y: outputs.sum(-1))
    key = jax.random.key(3)
    for _ in range(2):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), model.init(key), init(key))
        offset += 1  # what it reads besides the key counts at every call


def test_large_weights_take_one_program_and_small_ones_none_of_their_own():
    from jax._src import test_util  # the counter of JAX's own tests

    def model(side):
        shapes = ((side, 101), (side, 103), (side, 107))
        return sf.models.from_functions(
            lambda key: [jax.random.normal(k, s) * 0.1 for k, s in zip(jax.random.split(key, 3), shapes, strict=True)],
            lambda p, x: x @ p[0],
            lambda outputs, y: outputs.sum(-1),
        )

    for side, programs in ((113, (1, 1)), (3, (4, 99))):
        made, key = model(side), jax.random.key(1)
        with test_util.count_jit_and_pmap_lowerings() as count:
            made.init(key)
        assert programs[0] <= count() <= programs[1], side


SENT = """
import cloudpickle, jax, sumfold as sf
model = sf.models.from_functions(
    lambda key: {"w": jax.random.normal(key, (200, 100))}, lambda p, x: x @ p["w"], lambda outputs, y: outputs.sum(-1)
)
model.init(jax.random.key(0))
print(cloudpickle.loads(cloudpickle.dumps(model)).init(jax.random.key(0))["w"].shape)
"""


def test_a_model_can_be_sent_when_its_weights_were_drawn():
    pytest.importorskip("cloudpickle")
    told = subprocess.run([sys.executable, "-c", SENT], capture_output=True, text=True, check=True)
    assert told.stdout == "(200, 100)\n"
