"""Federated averaging written in the language is the library's own, on all ways to run it."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

FILE = Path(__file__).parents[2] / "examples" / "language_fed_avg.py"
pytestmark = pytest.mark.jax_defaults


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("example_language_fed_avg", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of_the_library(example, data, rounds):
    """The weights after each round."""
    model = sf.models.from_functions(example.init, example.predict, example.loss)
    process = sf.learning.fed_avg(model, example.CLIENT, example.SERVER)
    state, after = process.initialize(), []
    for _ in range(rounds):
        state, _ = process.next(state, data)
        after.append(process.get_model_weights(state))
    return after


def test_the_example_says_that_they_are_equal(example, capsys):
    apart = example.main()
    assert len(apart) == 3
    assert max(apart.values()) < 1e-6
    printed = capsys.readouterr().out
    assert "sf.learning.fed_avg" in printed
    assert printed.count("apart by") == 3
    body = FILE.read_text("utf-8")
    algorithm = body[body.index("def init") : body.index("def clients")]
    assert len([line for line in algorithm.splitlines() if line.strip()]) <= 40


@pytest.mark.parametrize("way", ["called", "Simulation"])  # the loopback, after all three: above
def test_equal_after_each_of_three_rounds(example, way):
    data = example.clients(seed=3, size=4)
    run = example.averaging_round
    run = run if way == "called" else run.on(getattr(sf, way)())
    weights = example.init(None)
    for library in of_the_library(example, data, 3):
        weights = run(weights, data)
        for name in library:
            np.testing.assert_allclose(weights[name], library[name], rtol=0, atol=1e-6, err_msg=name)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(library)) > 0.05, "it has learnt something"


@pytest.mark.parametrize("runtime", [None, sf.Simulation()], ids=["called", "Simulation"])
def test_a_client_without_batches_changes_nothing(example, runtime):
    data = example.clients()
    run = example.averaging_round if runtime is None else example.averaging_round.on(runtime)
    alone, with_empty = run(example.init(None), data), run(example.init(None), {**data, "empty": []})
    for name in alone:
        np.testing.assert_allclose(with_empty[name], alone[name], rtol=0, atol=1e-7)


def test_one_broadcast_and_one_aggregation(example):
    plan = example.averaging_round.program.plan
    assert len(plan.clients) == 1
    (exchange,) = plan.clients
    model = [np.shape(leaf) for leaf in jax.tree.leaves(example.init(None))]
    assert sorted(v.aval.shape for _, v in exchange.received) == sorted(model)
    assert sorted(v.aval.shape for e in exchange.sums for v in e.invars) == sorted([*model, ()])  # and the weight
    assert exchange.kept == []


def test_the_same_model_trains_alone(example):
    """One client that holds everything: plain SGD, by hand."""
    data = {"all": [batch for batches in example.clients().values() for batch in batches]}
    weights = example.init(None)
    for x, y in data["all"]:
        gradient = jax.grad(lambda w, x=x, y=y: example.loss(example.predict(w, jnp.asarray(x)), y).mean())(weights)
        weights = jax.tree.map(lambda w, g: w - 0.5 * g, weights, gradient)
    result = example.averaging_round(example.init(None), data)
    for name, expected in weights.items():
        np.testing.assert_allclose(result[name], expected, rtol=2e-5, atol=1e-6)
