"""Every algorithm on both runtimes: the same state, client memory and metrics, under every kind of stage.

Algorithms that take `aggregator=` are run with each of `STAGES`; what is left out, and why, is in `SKIPPED`. Keras
models, whose statistics are a part of their own, and other optimizers are run with some.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import numpy as np
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

spec = importlib.util.spec_from_file_location("contract_family", Path(__file__).with_name("family.py"))
family = importlib.util.module_from_spec(spec)
spec.loader.exec_module(family)
CELLS = family.CELLS
CLIPPED = family.CLIPPED
FAMILY = family.FAMILY
OPTIMIZERS = family.OPTIMIZERS
PLAIN = family.PLAIN
SIZES = family.SIZES
SKIPPED = family.SKIPPED
STAGES = family.STAGES
linear = family.linear
made = family.made
numbers = family.numbers
rounds = family.rounds
rows = family.rows

RUNTIMES = (sf.Simulation(), sf.Loopback())


@pytest.mark.parametrize(("name", "stage"), CELLS, ids=lambda v: v)
def test_runtimes_agree_under_every_stage(name, stage):
    """Under a clip one client is not finite from the start: it is left out, and remembers nothing.

    A second round uses what clients remember, of the algorithm and of error feedback.
    """
    data = numbers()
    if stage == CLIPPED:
        data["d"] = (data["d"][0] * np.nan, data["d"][1])
    again = 2 if stage in (PLAIN, "top-k, mean") else 1
    agreement = assert_runtimes_agree(made(name, "linear", aggregator=stage), data, *RUNTIMES, rounds=again)
    assert agreement.weights < 1e-5


@pytest.mark.parametrize(("model", "name", "client", "server", "aggregator"), OPTIMIZERS, ids=lambda v: v)
def test_runtimes_agree_with_other_optimizers_and_models(model, name, client, server, aggregator):
    data = rows()
    if aggregator == CLIPPED:
        data["d"] = (data["d"][0] * np.nan, data["d"][1])
    process = made(name, model, client, server, aggregator)
    agreement = assert_runtimes_agree(process, data, *RUNTIMES, rounds=2)
    assert agreement.weights < 1e-5


@pytest.mark.parametrize("stage", ["sum", "sum, fixed point"])
def test_runtimes_agree_on_kmeans(stage):
    """Its stage is the sum; centroids of an integer sum, as behind masks, are those of the plain one."""
    points = {k: x for k, (x, _) in numbers().items()}
    process = plain = sf.learning.kmeans(2, 3, batching=sf.Batching(size=4, shuffle=False))
    if stage != "sum":
        (phase,) = process.round.phases
        exact = {"points": sf.chain(sf.aggregators.sum(), rounds.fixed_point())}
        process = dataclasses.replace(process, round=process.round._replace(phases=(phase._replace(aggregate=exact),)))
    assert_runtimes_agree(process, points, *RUNTIMES, rounds=2)
    (state, _), (expected, _) = (p.next(p.initialize(), points) for p in (process, plain))
    for name, value in plain.get_model_weights(expected).items():
        np.testing.assert_allclose(process.get_model_weights(state)[name], value, atol=1e-4)


def test_what_is_skipped_is_there():
    assert set(SKIPPED) < {(name, stage) for name in FAMILY for stage in STAGES}


@pytest.mark.parametrize("name", ["scaffold", "fed_dyn"])
def test_a_state_moves_between_runtimes_with_its_memory(name):
    """One round here and one there is two rounds here: c, h and the clients' memory come along."""
    process, data = made(name), rows()
    here, there = (process.on(runtime) for runtime in RUNTIMES)
    cohorts = [["a", "d"], ["d", "single"], ["a", "empty", "single"]]
    stayed = moved = process.initialize(clients=6)
    for number, cohort in enumerate(cohorts):
        stayed, _ = here.next(stayed, data, clients=cohort)
        moved, _ = (there if number % 2 else here).next(moved, data, clients=cohort)
    assert set(stayed.clients) == set(moved.clients) == set(SIZES)
    for k in SIZES:
        for a, b in zip(stayed.clients[k][0].work.values(), moved.clients[k][0].work.values(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=k)
    for part in stayed.algorithm.own[0]:
        np.testing.assert_allclose(stayed.algorithm.own[0][part], moved.algorithm.own[0][part], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FAMILY)
def test_rounds_are_lawful(name):
    process = made(name, aggregator="clip, mean")
    params = process.model.init(sf.keys.typed(sf.keys.root(0)))
    line = sf.testing.check_round(process.round, params, (np.zeros((4, 6), np.float32), np.zeros(4, np.int32)))
    assert line.startswith("phase 0:")
