"""The front door: whose state is whose, what can be read and set, and where errors end."""

import traceback

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DRAW = np.random.default_rng(0)
DATA = {
    n: (DRAW.normal(size=(k, 3)).astype(np.float32), DRAW.normal(size=k).astype(np.float32))
    for n, k in (("a", 5), ("b", 2))
}


def model(features=3, start=0.0):
    return sf.models.from_functions(
        lambda key: {"w": jnp.full(features, start), "b": jnp.zeros(()), "n": jnp.int32(7)},
        lambda p, x: x @ p["w"] + p["b"],
        lambda outputs, y: (outputs - y) ** 2,
    )


MODEL = model()


def make(client=None, server=None, of=MODEL, **options):
    return sf.learning.fed_avg(of, client or optax.sgd(0.1), server or optax.adam(0.1), **options)


@pytest.fixture(scope="module")
def process():
    return make()


@pytest.fixture(scope="module")
def state(process):
    return process.next(process.initialize(seed=5), DATA).state


def bits(tree_):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves(tree_)]


# ---------------------------------------------------------------------------------------- states


def test_output_unpacks_and_has_names(process):
    output = process.next(process.initialize(), DATA)
    state, metrics = output
    assert output.state is state
    assert output.metrics is metrics
    assert int(state.round) == 1


def test_the_seed_decides_and_any_integer_is_one():
    drawing = make(
        of=sf.models.from_functions(
            lambda key: jax.random.normal(key, (3,)), lambda w, x: x @ w, lambda o, y: (o - y) ** 2
        )
    )
    a, b, again = (drawing.initialize(seed=s) for s in (0, 1, 0))
    assert bits(a) == bits(again)
    assert bits(a.algorithm.model) != bits(b.algorithm.model)
    assert bits(drawing.initialize(seed=-1)) == bits(drawing.initialize(seed=2**64 - 1))


def test_a_state_belongs_to_an_algorithm_not_to_an_object(process, state, tmp_path):
    expected = bits(process.next(state, DATA).state)
    assert bits(make().next(state, DATA).state) == expected
    sf.save(tmp_path / "state", state)
    loaded = sf.load(tmp_path / "state")
    assert bits(make().next(loaded, DATA).state) == expected
    assert bits(loaded) == bits(state)
    assert bits(process.get_model_weights(loaded)) == bits(process.get_model_weights(state))


def test_a_state_holds_arrays_only(state):
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (lambda: make(of=model(4)), r"first difference at model/trainable/w float32\[4\]"),
        (lambda: make(server=optax.sgd(1.0)), r"another algorithm or model: first difference at"),
        (lambda: sf.learning.fed_eval(MODEL), r"a state of another algorithm or model"),
        (
            lambda: make(of=sf.models.from_functions(lambda k: jnp.zeros(3), lambda w, x: x @ w, lambda o, y: o)),
            r"first difference",
        ),
    ],
)
def test_a_state_of_another_algorithm_or_model(process, state, other, words):
    foreign = other().initialize()
    for use in (
        lambda: process.next(foreign, DATA),
        lambda: process.get_model_weights(foreign),
        lambda: process.set_hparams(foreign, {}),
    ):
        with pytest.raises(sf.StateError, match=rf"(?s){words}.*a state of 'fed_avg' for this model.*SF-STATE-002"):
            use()


@pytest.mark.parametrize("wrong", [None, {}, [1, 2], DATA, 3])
def test_what_is_no_state(process, wrong):
    with pytest.raises(
        sf.StateError, match=r"where a state was expected.*next takes \(state, client_data\).*SF-STATE-001"
    ):
        process.next(wrong, DATA)


def test_state_and_data_in_the_wrong_order(process, state):
    with pytest.raises(sf.StateError, match=r"in this order"):
        process.next(DATA, state)


# ---------------------------------------------------------------------------------------- weights


def test_weights_go_round(process, state):
    weights = process.get_model_weights(state)
    assert sorted(weights) == ["b", "n", "w"]
    same = process.set_model_weights(state, weights)
    assert bits(same) == bits(state)
    other = process.set_model_weights(state, {"w": np.ones(3), "b": np.float32(2), "n": np.int32(9)})
    assert process.get_model_weights(other)["n"] == 9
    assert process.get_model_weights(other)["w"].tolist() == [1, 1, 1]
    assert bits(other.algorithm.optimizer) == bits(state.algorithm.optimizer)
    assert bits(process.get_model_weights(state)) == bits(weights)
    assert int(process.next(other, DATA).state.algorithm.model.constants["n"]) == 9


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"w": np.ones(4), "b": np.float32(0), "n": np.int32(0)}, r"'w' float32\[4\].*'w' float32\[3\]"),
        ({"w": np.ones(3), "b": np.int32(0), "n": np.int32(0)}, r"'b' int32.*'b' float32"),
        ({"w": np.ones(3)}, r"'w' float32\[3\].*'b'"),
        (np.ones(3), "weights with"),
    ],
)
def test_weights_of_another_shape(process, state, weights, words):
    with pytest.raises(sf.StateError, match=rf"{words}.*SF-STATE-003"):
        process.set_model_weights(state, weights)


# ---------------------------------------------------------------------------------------- hyperparameters

INJECTED = optax.inject_hyperparams(optax.sgd)


def keras_sgd(rate):
    return pytest.importorskip("keras").optimizers.SGD(rate)


@pytest.mark.parametrize("kind", ["optax", "keras"])
def test_hyperparameters_are_read_set_and_used(kind):
    sgd = {"optax": lambda rate: INJECTED(learning_rate=rate), "keras": keras_sgd}[kind]
    process = make(sgd(0.1), sgd(1.0), batching=sf.Batching(size=None))
    state = process.initialize()
    hparams = process.get_hparams(state)
    assert hparams == {
        "client_work": {"learning_rate": pytest.approx(0.1)},
        "finalizer": {"learning_rate": pytest.approx(1.0)},
    }
    assert type(hparams["client_work"]["learning_rate"]) is float
    changed = process.set_hparams(state, {"client_work": {"learning_rate": 0.05}})
    assert process.get_hparams(changed)["client_work"]["learning_rate"] == pytest.approx(0.05)
    assert process.get_hparams(changed)["finalizer"] == hparams["finalizer"]
    assert process.get_hparams(state) == hparams
    slow, metrics = process.next(changed, DATA)
    fast, shown = process.next(state, DATA)
    assert metrics["client_work"]["client_learning_rate"] == pytest.approx(0.05)
    assert shown["client_work"]["client_learning_rate"] == pytest.approx(0.1)
    np.testing.assert_allclose(
        np.asarray(fast.algorithm.model.trainable["w"]), 2 * np.asarray(slow.algorithm.model.trainable["w"]), rtol=1e-5
    )
    assert process.get_hparams(slow) == process.get_hparams(changed), "what was set stays set"
    still, _ = process.next(process.set_hparams(state, {"finalizer": {"learning_rate": 0.0}}), DATA)
    assert bits(still.algorithm.model) == bits(state.algorithm.model)
    assert bits(process.set_hparams(state, hparams)) == bits(state)


def test_what_is_closed_over_says_so(process):
    state = process.initialize()
    hparams = process.get_hparams(state)
    assert "inject_hyperparams" in hparams["client_work"]["unseen"]
    assert "inject_hyperparams" in hparams["finalizer"]["unseen"]
    assert bits(process.set_hparams(state, hparams)) == bits(state)


@pytest.mark.parametrize(
    ("hparams", "words"),
    [
        (
            {"client_work": {"learning_rate": 0.1}},
            r"client_work\.learning_rate.*can be set, and client_work shows none.*SF-COMP-022",
        ),
        ({"finalizer": {"rate": 0.1}}, r"finalizer\.rate"),
        ({"learning_rate": 0.1}, r"set_hparams with 'learning_rate'.*groups.*client_work.*SF-COMP-025"),
    ],
)
def test_unknown_hyperparameters(process, hparams, words):
    with pytest.raises(sf.CompositionError, match=words):
        process.set_hparams(process.initialize(), hparams)


def test_a_wrong_name_lists_the_right_ones():
    process = make(INJECTED(learning_rate=0.1))
    with pytest.raises(sf.CompositionError, match=r"client_work\.rate.*one of \['learning_rate'\]"):
        process.set_hparams(process.initialize(), {"client_work": {"rate": 0.1}})


# ---------------------------------------------------------------------------------------- cohorts


def test_a_cohort_by_ids(process, state):
    fed = sf.Federation.from_clients(DATA)
    one = process.next(state, fed, clients=["b"])
    assert one.metrics["client_work"]["train"]["num_examples"] == 2
    assert bits(one.state) == bits(process.next(state, {"b": DATA["b"]}).state)
    both = process.next(state, fed)
    assert bits(both.state) == bits(process.next(state, fed, clients=np.array(["a", "b"])).state)
    with pytest.raises(sf.DataError, match=r"SF-DATA-011"):
        process.next(state, fed, clients=["c"])
    with pytest.raises(sf.DataError, match=r"SF-DATA-010"):
        process.next(state, fed, clients=["a", "a"])


def test_repr(process):
    assert repr(process) == "Process(fed_avg of function on Simulation)"
    assert "<table>" in process._repr_html_()


# ---------------------------------------------------------------------------------------- tracebacks


@pytest.mark.parametrize(
    "mistake",
    [
        lambda p, s: p.next(s, 5),
        lambda p, s: p.next(s, [(np.ones((2, 4)), np.ones(2))]),
        lambda p, s: p.next(None, DATA),
        lambda p, s: p.set_model_weights(s, 3.0),
        lambda p, s: p.set_hparams(s, {"nothing": {}}),
        lambda p, s: sf.learning.fed_avg(MODEL, None),
        lambda p, s: sf.Batching(size=0),
    ],
)
def test_the_traceback_ends_at_the_users_line(process, state, mistake):
    with pytest.raises(sf.SumfoldError) as caught:
        mistake(process, state)
    # the tests' own checks of annotations stand in a frame between
    frames = [f for f in traceback.extract_tb(caught.value.__traceback__) if "jaxtyping" not in f.filename]
    assert frames[-1].filename == __file__
    assert frames[-1].line.startswith("lambda p, s:")


def test_a_state_that_remembers_other_clients_is_refused():
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
    process = sf.learning.scaffold(model, optax.sgd(0.1))
    entry = (np.ones(2, np.float32), np.ones(2, np.float32))
    mine = sf.Federation.from_clients({"a": entry, "b": entry, "c": entry})
    state, _ = process.next(process.initialize(), mine)
    process.next(state, mine.subset(["a"]))  # some of the same clients
    process.next(state, sf.Federation.from_clients({"a": entry, "b": entry, "c": entry, "d": entry}))
    with pytest.raises(sf.DataError, match=r"remembers 1 client\(s\).*'c'.*SF-DATA-057"):
        process.next(state, sf.Federation.from_clients({"a": entry, "b": entry}))
    after = process.set_model_weights(process.initialize(), process.get_model_weights(state))
    process.next(after, sf.Federation.from_clients({"x": entry}))
