"""Federated averaging: the numbers of the contract, its edge rules, and every kind of optimizer, weight and entry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

# reference/tff.md A35: scalar model w·x, squared error, client 1 holds (1, 2), client 2 three times (2, 4)
SCALAR = sf.models.from_functions(
    lambda key: jnp.float32(0.0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
)
TWO = {"one": (np.ones(1), 2 * np.ones(1)), "three": (2 * np.ones(3), 4 * np.ones(3))}
FULL = sf.Batching(size=None)
NAN = (np.array([np.nan]), np.ones(1))
EMPTY = (np.zeros(0), np.zeros(0))
ZEROS = {"loss": 0.0, "num_examples": 0, "num_batches": 0}


def two_clients(server=None, **options):
    return sf.learning.fed_avg(SCALAR, optax.sgd(0.1), server or optax.sgd(1.0), **{"batching": FULL, **options})


PLAIN = two_clients()


def course(process, rounds=3, data=TWO, **options):
    """The model after each round, and the last metrics."""
    state, weights = process.initialize(), []
    for _ in range(rounds):
        state, metrics = process.next(state, data, **options)
        weights.append(float(process.get_model_weights(state)))
    return weights, metrics


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1.3, 1.755, 1.91425]),
        ({"weighting": "uniform"}, [1.0, 1.5, 1.75]),
        ({"server": optax.sgd(0.5)}, [0.65, 1.08875, 1.384906]),
        ({"weighting": lambda m: m["num_examples"]}, [1.3, 1.755, 1.91425]),
        ({"weighting": lambda m: jnp.where(m["num_examples"] > 1, 1.0, 0.0)}, [1.6, 1.92, 1.984]),
    ],
    ids=["examples", "uniform", "server rate", "function", "zero weight"],
)
def test_a35(options, expected, runtime):
    weights, _ = course(two_clients(**options).on(runtime))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_a38_metrics():
    _, first = course(PLAIN, 1)
    assert first["client_work"]["train"]["loss"] == pytest.approx(13.0)
    _, metrics = course(PLAIN)
    assert metrics.keys() == {"distributor", "client_work", "aggregator", "finalizer"}
    assert metrics["client_work"]["train"] == {
        "loss": pytest.approx(0.195081, rel=1e-5),
        "num_examples": 4,
        "num_batches": 2,
        "num_clients": 2,
        "num_non_finite_clients": 0,
    }
    assert (metrics["distributor"], metrics["aggregator"], metrics["finalizer"]) == ({}, {}, {"update_non_finite": 0})
    import json

    assert json.loads(json.dumps(metrics)) == metrics
    assert type(metrics["client_work"]["train"]["num_examples"]) is int


# ---------------------------------------------------------------------------------------- edge rules (A39)

MOMENTUM = two_clients(optax.adam(0.1))
SUMMING = two_clients(optax.sgd(0.1, momentum=0.9), aggregator=sf.aggregators.sum())


def leaves(state):
    return [np.asarray(a).tobytes() for a in jax.tree.leaves((state.algorithm.model, state.algorithm.optimizer))]


def test_a_client_that_is_not_finite_is_left_out_and_counted():
    with_it, metrics = course(PLAIN, data={**TWO, "bad": NAN})
    np.testing.assert_allclose(with_it, [1.3, 1.755, 1.91425], rtol=1e-6)
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert metrics["client_work"]["train"]["num_clients"] == 2
    assert metrics["client_work"]["train"]["num_examples"] == 4
    assert metrics["client_work"]["train"]["loss"] == pytest.approx(0.195081, rel=1e-5)
    infinite, _ = course(PLAIN, data={**TWO, "bad": (np.array([np.inf]), np.ones(1))})
    assert infinite == with_it


@pytest.mark.parametrize("process", [PLAIN, MOMENTUM, SUMMING], ids=["plain", "adam", "sum"])
@pytest.mark.parametrize(
    ("data", "clients", "counted", "non_finite"),
    [
        ({**TWO, "bad": NAN, "worse": NAN}, ["bad", "worse"], 0, 2),
        (TWO, [], 0, 0),
        ({**TWO, "none": EMPTY, "nothing": EMPTY}, ["none", "nothing"], 2, 0),
        ({**TWO, "bad": NAN, "none": EMPTY}, ["none", "bad"], 1, 1),
        ([], None, 0, 0),
        ({"none": EMPTY}, None, 1, 0),
    ],
    ids=["non-finite", "empty cohort", "empty clients", "both", "no client at all", "no row at all"],
)
def test_when_nothing_valid_remains(process, data, clients, counted, non_finite):
    state, _ = process.next(process.initialize(), TWO)
    before = leaves(state)
    after, metrics = process.next(state, data, clients=clients)
    assert leaves(after) == before
    assert metrics["finalizer"] == {"update_non_finite": 1}
    expected = {**ZEROS, "num_clients": counted, "num_non_finite_clients": non_finite}
    assert metrics["client_work"]["train"] == expected
    assert leaves(state) == before
    assert int(after.round) == 2
    again, metrics = process.next(state, TWO)
    assert metrics["finalizer"] == {"update_non_finite": 0}
    assert leaves(again) != before


def test_a_total_weight_of_zero_is_no_update():
    process = two_clients(weighting=lambda m: 0.0)
    state = process.initialize()
    after, metrics = process.next(state, TWO)
    assert leaves(after) == leaves(state)
    assert metrics["finalizer"] == {"update_non_finite": 1}
    assert metrics["client_work"]["train"]["num_clients"] == 2


INVALID = {3: -1.0, 5: np.nan, 7: np.inf, 9: -np.inf}


def by_rows(metrics):
    """A weight of its own for each number of rows."""
    rows = np.array(list(INVALID), np.int32)
    return jnp.where(rows == metrics["num_examples"], np.array(list(INVALID.values()), np.float32), 0.1).sum()


@pytest.fixture(scope="module")
def invalid():
    return two_clients(weighting=by_rows)


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
def test_an_invalid_weight_names_the_client_and_loses_nothing(invalid, runtime):
    process = invalid.on(runtime)
    state = process.initialize()
    data = {**TWO, **{f"bad {n}": (np.ones(n), np.ones(n)) for n in INVALID if n > 3}}
    before = leaves(state)
    for client in [name for name in data if name != "one"]:
        words = rf"client '{client}' reported a weight that is negative or not finite.*SF-DATA-050"
        with pytest.raises(sf.DataError, match=words):
            process.next(state, data, clients=["one", client])
    with pytest.raises(sf.DataError, match=r"client 'bad 9' reported"):
        process.next(state, data, clients=["bad 9", "three"])
    assert leaves(state) == before
    after, _ = process.next(state, data, clients=["one"])
    assert float(process.get_model_weights(after)) == pytest.approx(0.4)


def test_finiteness_is_decided_before_the_weight():
    process = two_clients(weighting=lambda m: m["loss"])
    state, metrics = process.next(process.initialize(), {**TWO, "bad": NAN})
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert np.isfinite(float(process.get_model_weights(state)))


def test_a_weight_is_not_asked_of_a_client_without_a_step():
    process = two_clients(weighting=lambda m: 1.0 / m["num_batches"] - 0.0)
    state, metrics = process.next(process.initialize(), {**TWO, "none": EMPTY})
    assert float(process.get_model_weights(state)) == pytest.approx(1.0)
    assert metrics["client_work"]["train"]["num_clients"] == 3


# ---------------------------------------------------------------------------------------- batches and entries


def test_a_client_with_fewer_rows_than_a_batch_takes_no_step():
    process = two_clients(batching=sf.Batching(size=3, drop_remainder=True))
    weights, metrics = course(process, 1)
    assert weights == [pytest.approx(1.6)]
    assert metrics["client_work"]["train"]["num_examples"] == 3
    assert metrics["client_work"]["train"]["num_batches"] == 1
    assert metrics["client_work"]["train"]["num_clients"] == 2
    assert metrics["client_work"]["train"]["loss"] == pytest.approx(16)


def test_weights_are_rows_held_whatever_is_processed():
    """One step each, of 1 and of 2 rows (max_steps); the client of three rows still weighs 3."""
    weights, metrics = course(two_clients(batching=sf.Batching(size=2, epochs=5, max_steps=1)), 1)
    assert weights == [pytest.approx(1.3)]
    assert metrics["client_work"]["train"]["num_examples"] == 3
    _, twice = course(two_clients(batching=sf.Batching(size=None, epochs=2)), 1)
    assert twice["client_work"]["train"]["num_examples"] == 8
    assert twice["client_work"]["train"]["num_batches"] == 4


ENTRIES = {
    "tuple": lambda x, y: (x, y),
    "dict": lambda x, y: {"x": x, "y": y},
    "weights of one": lambda x, y: (x, y, np.ones(len(y))),
    "dict with weights": lambda x, y: {"x": x, "y": y, "weight": np.ones(len(y), np.float32)},
    "jax": lambda x, y: (jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)),
    "lists": lambda x, y: (x.tolist(), y.tolist()),
    "ready-made": lambda x, y: [(x, y)],
}


@pytest.mark.parametrize("form", ENTRIES)
def test_entries(form):
    process = PLAIN if form != "ready-made" else two_clients(batching=None)
    data = {client: ENTRIES[form](x, y) for client, (x, y) in TWO.items()}
    for given in (data, list(data.values()), tuple(data.values()), sf.Federation.from_clients(data)):
        np.testing.assert_allclose(course(process, data=given)[0], [1.3, 1.755, 1.91425], rtol=1e-6)


def test_example_weights_are_honoured():
    """A row of weight 0 has no say in the gradient and none in the loss; the client still holds it."""
    x, y, weight = np.array([1.0, 50.0]), np.array([2.0, -70.0]), np.array([1.0, 0.0])
    weights, metrics = course(PLAIN, 1, {"one": (x, y, weight)})
    assert weights == [pytest.approx(0.4)]
    assert metrics["client_work"]["train"]["loss"] == pytest.approx(4.0)
    assert metrics["client_work"]["train"]["num_examples"] == 2
    weights, _ = course(PLAIN, 1, {"one": (np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([3.0, 1.0]))})
    assert weights == [pytest.approx(0.1 * (3 * 4 + 1 * 16) / 4)]


@pytest.mark.parametrize("bad", [-1.0, np.nan])
def test_example_weights_that_are_none(bad):
    with pytest.raises(sf.DataError, match=r"an example_weight of .* at client 'b'.*SF-DATA-055"):
        PLAIN.next(PLAIN.initialize(), {"a": (*TWO["one"], np.ones(1)), "b": (*TWO["one"], np.array([bad]))})


def test_a_batching_and_ready_made_batches():
    with pytest.raises(sf.DataError, match=r"ready-made batches and Batching.*leave batching out.*SF-DATA-053"):
        PLAIN.next(PLAIN.initialize(), {"one": [TWO["one"]]})


# ---------------------------------------------------------------------------------------- optimizers


def keras_optimizer(name, *args, **kwargs):
    return getattr(pytest.importorskip("keras").optimizers, name)(*args, **kwargs)


def by_hand(server, rounds=3):
    """A36: the server's optimizer acts on the negative mean change of A35, 1.3 · (2 − w) / 2, as a gradient."""
    w, weights = jnp.float32(0), []
    state = server.init(w)
    for _ in range(rounds):
        updates, state = server.update(-0.65 * (2 - w), state, w)
        w = optax.apply_updates(w, updates)
        weights.append(float(w))
    return weights


@pytest.mark.jax_defaults
@pytest.mark.parametrize(
    "server",
    [optax.sgd(1.0, momentum=0.9), optax.adagrad(0.3), optax.adam(0.3), optax.yogi(0.3)],
    ids=["momentum", "adagrad", "adam", "yogi"],
)
def test_server_optimizers_of_optax(server):
    weights, _ = course(two_clients(server))
    np.testing.assert_allclose(weights, by_hand(server), rtol=1e-5)
    assert weights[2] != pytest.approx(1.91425)


@pytest.mark.jax_defaults
def test_keras_on_the_server_and_on_clients():
    np.testing.assert_allclose(course(two_clients(keras_optimizer("SGD", 1.0)))[0], [1.3, 1.755, 1.91425], rtol=1e-6)
    adam = keras_optimizer("Adam", 0.3, epsilon=1e-8)
    np.testing.assert_allclose(course(two_clients(adam))[0], by_hand(optax.adam(0.3)), rtol=1e-5)
    clients = sf.learning.fed_avg(SCALAR, keras_optimizer("SGD", 0.1), batching=FULL)
    weights, metrics = course(clients)
    np.testing.assert_allclose(weights, [1.3, 1.755, 1.91425], rtol=1e-6)
    assert metrics["client_work"]["client_learning_rate"] == pytest.approx(0.1)
    keras_adam = sf.learning.fed_avg(SCALAR, keras_optimizer("Adam", 0.1, epsilon=1e-8), batching=sf.Batching(2, 3))
    optax_adam = sf.learning.fed_avg(SCALAR, optax.adam(0.1), batching=sf.Batching(2, 3))
    np.testing.assert_allclose(course(keras_adam)[0], course(optax_adam)[0], rtol=1e-5)


def test_client_optimizers_begin_anew_each_round():
    momentum = sf.learning.fed_avg(SCALAR, optax.sgd(0.1, momentum=0.9), batching=FULL)
    np.testing.assert_allclose(course(momentum)[0], [1.3, 1.755, 1.91425], rtol=1e-6)


@pytest.mark.parametrize("readable", [True, False])
def test_a_schedule_by_round(readable):
    rates = optax.exponential_decay(0.1, transition_steps=1, decay_rate=0.5)
    sgd = optax.inject_hyperparams(optax.sgd) if readable else optax.sgd
    process = sf.learning.fed_avg(SCALAR, lambda r: sgd(rates(r)), batching=FULL)
    expected, w = [], 0.0
    for rate in (0.1, 0.05, 0.025):
        w += 6.5 * rate * (2 - w)
        expected.append(w)
    weights, metrics = course(process)
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    shown = metrics["client_work"].get("client_learning_rate")
    assert shown == (pytest.approx(0.025) if readable else None)
    assert "a function of the round" in process.get_hparams(process.initialize())["client_work"]["unseen"]


def test_a_constant_schedule_is_the_optimizer():
    process = sf.learning.fed_avg(SCALAR, lambda r: optax.sgd(0.1), batching=FULL)
    assert course(process)[0] == course(PLAIN)[0]


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sf.learning.fed_avg(SCALAR), r"client_optimizer is None.*optax transform"),
        (lambda: sf.learning.fed_avg(SCALAR, "sgd"), r"client_optimizer is a str"),
        (lambda: sf.learning.fed_avg(SCALAR, optax.sgd), r"not a class or function that makes it"),
        (lambda: sf.learning.fed_avg(SCALAR, optax.sgd(0.1), None), r"server_optimizer is None"),
        (lambda: two_clients(weighting="foo"), r"weighting='foo'.*\"uniform\".*SF-COMP-021"),
        (lambda: two_clients(weighting=["examples"]), r"weighting=\['examples'\]"),
        (lambda: two_clients(weighting=None), r"weighting=None"),
        (lambda: two_clients(batching=32), r"batching=32.*sf\.Batching\(size=32.*SF-COMP-023"),
        (lambda: sf.learning.fed_eval(SCALAR, batching=32), r"batching=32.*SF-COMP-023"),
    ],
)
def test_what_cannot_be_built(make, words):
    with pytest.raises(sf.CompositionError, match=words):
        make()


def linear(**changes):
    parts = {
        "init": lambda key: jnp.zeros((2, 3)),
        "predict": lambda w, x: x @ w,
        "loss": optax.softmax_cross_entropy_with_integer_labels,
    }
    return sf.learning.fed_avg(sf.models.from_functions(**{**parts, **changes}), optax.sgd(0.1))


X, LABELS = np.ones((4, 2), np.float32), np.array([0, 1, 2, 1])


def raises(words):
    def predict(w, x):
        raise ValueError(words)

    return predict


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": lambda o, y: jnp.mean(o)}, r"the loss returned shape \(\).*before any mean.*SF-TYPE-001"),
        ({"loss": lambda o, y: o}, r"the loss returned shape \(8, 3\) for a batch of 8.*one value per example"),
        ({"metrics": {"mine": lambda o, y: o}}, r"the metric 'mine' returned shape \(8, 3\)"),
        ({"init": lambda key: jnp.zeros((5, 3))}, r"failed on a batch of x float32\[8, 2\].*SF-TYPE-002"),
        ({"predict": raises("no such layer")}, r"failed on a batch.*ValueError: no such layer"),
        ({"predict": lambda w, x: x["image"] @ w}, r"failed on a batch of x float32\[8, 2\]"),
    ],
)
def test_models_that_do_not_fit_the_data(changes, words):
    process = linear(**changes)
    state = process.initialize()
    with pytest.raises(sf.TypeMismatchError, match=words):
        process.next(state, [(X, LABELS)])


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.array([0, 1, 3, 1]), r"labels from 0 to 3.*client 'b'.*from 0 to 2.*3 columns"),
        (np.array([0, -1, 2, 1]), r"labels from -1 to 2.*client 'b'"),
    ],
)
def test_labels_outside_the_classes_name_the_client(labels, words):
    process = linear()
    with pytest.raises(sf.DataError, match=rf"{words}.*SF-DATA-054"):
        process.next(process.initialize(), {"a": (X, LABELS), "b": (X, labels)})


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (5, "SF-DATA-001"),
        (np.ones((3, 2)), "SF-DATA-001"),
        ("abc", "SF-DATA-001"),
        ((n for n in [(X, LABELS)]), "SF-DATA-001"),
        ([5], "SF-DATA-002"),
        ([(X, LABELS[:3])], "SF-DATA-003"),
        ([(X, LABELS), (X[:, :1], LABELS)], "SF-DATA-005"),
        ([(X, np.array(["a", "b", "c", "d"]))], "SF-DATA-007"),
        ([(X, np.array([0, 1, None, 2], object))], "SF-DATA-007"),
        ([iter([])], "SF-DATA-014"),
        ([(X, LABELS), [(X, LABELS)]], "SF-DATA-013"),
        ([X], "SF-DATA-051"),
        ([{"x": X, "label": LABELS}], "SF-DATA-051"),
    ],
    ids=lambda v: v if isinstance(v, str) and v.startswith("SF") else "",
)
def test_client_data_that_cannot_be_used(data, code):
    process = linear()
    state = process.initialize()
    with pytest.raises(sf.DataError, match=code):
        process.next(state, data)


def test_a_coupled_model_needs_batches_of_one_size():
    import dataclasses

    coupled = dataclasses.replace(SCALAR, coupled="batch normalisation")
    with pytest.raises(sf.CompositionError, match=r"batch normalisation.*drop_remainder=True.*SF-COMP-024"):
        sf.learning.fed_avg(coupled, optax.sgd(0.1), batching=sf.Batching(size=2))
    process = sf.learning.fed_avg(coupled, optax.sgd(0.1))
    with pytest.raises(sf.CompositionError, match=r"batch normalisation with the default batching"):
        process.next(process.initialize(), TWO)
    with pytest.raises(sf.CompositionError, match=r"ready-made batches of \[1, 3\] rows"):
        process.next(process.initialize(), {k: [v] for k, v in TWO.items()})
    dropping = sf.learning.fed_avg(coupled, optax.sgd(0.1), batching=sf.Batching(size=1, drop_remainder=True))
    assert dropping.next(dropping.initialize(), TWO).metrics["client_work"]["train"]["num_batches"] == 4
    evaluating = sf.learning.fed_eval(coupled)
    assert evaluating.next(evaluating.initialize(), TWO).metrics["client_work"]["eval"]["num_examples"] == 4
