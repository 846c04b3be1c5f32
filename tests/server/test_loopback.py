"""Loopback: the same numbers through exported programs and real bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.client.runner import Runner
from sumfold.testing import assert_runtimes_agree
from sumfold.wire import codec
from sumfold.wire.messages import Report

DRAW = np.random.default_rng(0)


def client(n, d=3):
    x = DRAW.normal(size=(n, d)).astype(np.float32)
    return x, (x.sum(1) + DRAW.normal(size=n)).astype(np.float32)


RAGGED = {name: client(n) for name, n in {"a": 7, "b": 1, "c": 0, "d": 12}.items()}
LINEAR = sf.models.from_functions(
    lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
    metrics={"mae": sf.metrics.mean_absolute_error},
)


def noisy(params, x, key=None):
    hidden = jax.nn.relu(x @ params["a"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 0.7, hidden.shape), hidden / 0.7, 0.0)
    return hidden @ params["b"]


NOISY = sf.models.from_functions(
    lambda key: {
        "a": jax.random.normal(key, (3, 5)),
        "b": jnp.ones(5) / 5,
        "table": jnp.arange(4),
        "on": jnp.array([True, False]),
    },
    noisy,
    lambda outputs, y: (outputs - y) ** 2,
)


def agree(process, data=RAGGED, **options):
    return assert_runtimes_agree(process, data, sf.Simulation(), sf.Loopback(), **options)


def test_linear_with_sgd_to_1e6():
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05), batching=sf.Batching(size=4, epochs=2))
    assert agree(process, rtol=1e-6, atol=1e-6).weights <= 1e-6


def test_adam_dropout_and_leaves_that_are_not_trained():
    process = sf.learning.fed_avg(NOISY, optax.adam(0.02), optax.yogi(0.05), batching=sf.Batching(size=4, epochs=2))
    agree(process)
    state = process.initialize()
    after = process.next(state, RAGGED).state
    before, weights = process.get_model_weights(state), process.get_model_weights(after)
    assert weights["table"].tolist() == [0, 1, 2, 3]
    assert weights["on"].tolist() == [True, False]
    assert weights["table"].dtype == jnp.int32
    assert (np.asarray(weights["a"]) != np.asarray(before["a"])).any()


def test_clients_that_are_not_finite_empty_or_drop_their_rows():
    x, y = RAGGED["a"]
    data = {**RAGGED, "nan": (x * np.nan, y)}
    process = sf.learning.fed_avg(
        LINEAR, optax.sgd(0.05), optax.adam(0.1), batching=sf.Batching(size=4, drop_remainder=True)
    )
    agree(process, data, rounds=2)
    agree(process, data, rounds=1, clients=["nan", "c"])
    agree(process, data, rounds=1, clients=[])


def test_full_batches_ready_made_batches_and_evaluation():
    agree(sf.learning.fed_avg(LINEAR, optax.sgd(0.05), batching=sf.Batching(size=None)), rounds=2)
    batches = {k: [(x[i : i + 3], y[i : i + 3]) for i in range(0, len(y), 3)] for k, (x, y) in RAGGED.items()}
    agree(sf.learning.fed_avg(LINEAR, optax.sgd(0.05)), batches, rounds=2)
    agree(sf.learning.fed_eval(LINEAR), rounds=2)


def test_a_state_moves_between_runtimes():
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05))
    other = process.on(sf.Loopback())
    a = process.next(process.next(process.initialize(), RAGGED).state, RAGGED).state
    b = process.next(other.next(process.initialize(), RAGGED).state, RAGGED).state
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6)
    assert "Loopback" in repr(other)
    assert "Simulation" in repr(process)


def test_a_client_whose_weight_is_negative_is_named():
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05), weighting=lambda m: 5.0 - m["num_examples"])
    loopback, state = process.on(sf.Loopback()), process.initialize()
    with pytest.raises(sf.DataError, match=r"client 'a' reported a weight.*SF-DATA-050"):
        loopback.next(state, RAGGED)
    assert int(loopback.next(state, RAGGED, clients=["b"]).state.round) == 1


def tampered(change):
    """Runner.run with a report that was changed on its way."""
    honest = Runner.run

    def run(self, *args, **kwargs):
        answer = honest(self, *args, **kwargs)
        return answer._replace(report=change(self, answer.report))

    return run


def other_shapes(runner, report):
    head, leaves = codec.decode(report, Report, lambda _: runner.manifest.upload)
    return codec.encode(head, [np.append(a, a) for a in leaves])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (other_shapes, "SF-WIRE-008"),
        (lambda runner, report: report[:-3], "SF-WIRE-006"),
        (lambda runner, report: b"", "SF-WIRE-002"),
        (lambda runner, report: codec.encode(Report(0, 0, 0, False, True), [np.ones(2)]), "SF-WIRE-005"),
        (lambda runner, report: codec.encode(Report(0, 0, 0, True, True)), "SF-WIRE-006"),
    ],
)
def test_a_report_that_breaks_the_rules_is_refused(monkeypatch, change, code):
    monkeypatch.setattr(Runner, "run", tampered(change))
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05)).on(sf.Loopback())
    state = process.initialize()
    with pytest.raises(sf.WireError, match=code):
        process.next(state, RAGGED, clients=["a"])
    monkeypatch.undo()
    assert int(process.next(state, RAGGED, clients=["a"]).state.round) == 1
