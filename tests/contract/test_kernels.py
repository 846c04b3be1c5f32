"""Every algorithm under every kernel, number of streams and lanes: one sum, in other orders; and pinned, in one order.

The reference is the sequential stream. `Simulation(deterministic=True)` and `Loopback` agree in every bit.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree

spec = importlib.util.spec_from_file_location("contract_family", Path(__file__).with_name("family.py"))
family = importlib.util.module_from_spec(spec)
spec.loader.exec_module(family)

REFERENCE = sf.Simulation(streams=1, kernel="sequential")
STREAMS = sf.Simulation(streams=3, kernel="sequential")
LANES = sf.Simulation(streams=2, lanes=2)
LANES_ON_DEVICES = sf.Simulation(devices=2, streams=1, lanes=2)
LOOPBACK = sf.Loopback()
PINNED = sf.Simulation(deterministic=True, streams=2)
PINNED_ON_DEVICES = sf.Simulation(deterministic=True, devices=2, streams=2)
DEVICES = {
    "fed_avg": "nothing is kept",
    "scaffold": "a memory, and a second part",
    "mime": "two phases, and what is kept between them",
    "ifca": "several models, and what is kept is a number",
    "round extremes": "other groups than the sum",
    "round fed_avg with median": "what is stacked",
    "round fed_avg with clip, top-k, mean, fixed point": "the memory of a stage, and the modular group",
}
"""Processes that are run on two devices, and what each has to be moved between them; the others have nothing else.

A device more is the same programs compiled once more, most of what such a test takes.
"""


def processes():
    """Name -> (process, data): the learning family under the mean, and rounds with other groups and stages."""
    made = {name: (lambda name=name: family.made(name, "linear"), family.numbers) for name in family.FAMILY}
    own = {
        f"round {name}": (lambda make=make: sf.Process(make()), family.numbers)
        for name, make in family.rounds.ROUNDS.items()
    }
    return {**made, **own}


PROCESSES = processes()


def with_a_client_that_is_not_finite(data):
    return {**data, "d": (data["d"][0] * np.nan, data["d"][1])}


@pytest.mark.parametrize("name", PROCESSES)
def test_every_kernel_computes_the_same(name):
    process, data = (make() for make in PROCESSES[name])
    lanes = LANES_ON_DEVICES if name in DEVICES else LANES
    assert_runtimes_agree(process, data, REFERENCE, STREAMS, lanes, rounds=2)


@pytest.mark.parametrize("name", ["fed_avg", "scaffold", "mime"])  # nothing to keep, a memory, two phases
def test_a_client_that_is_not_finite_is_left_out_by_every_kernel(name):
    process, data = (make() for make in PROCESSES[name])
    broken = with_a_client_that_is_not_finite(data)
    others = STREAMS, LANES_ON_DEVICES, PINNED_ON_DEVICES, LOOPBACK
    assert_runtimes_agree(process, broken, REFERENCE, *others, rounds=2)
    _, metrics = process.on(LANES_ON_DEVICES).next(process.initialize(), broken)
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1


def bits(state):
    arrays = (state.algorithm, state.stages, dict(state.clients))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]


@pytest.mark.parametrize("name", PROCESSES)
def test_pinned_rounds_agree_in_every_bit(name):
    process, data = (make() for make in PROCESSES[name])
    order = sorted(data)
    results = []
    for runtime in (LOOPBACK, PINNED_ON_DEVICES if name in DEVICES else PINNED):
        bound, state, told = process.on(runtime), process.initialize(seed=1), []
        for cohort in (None, order[::-1], order[1:]):
            state, metrics = bound.next(state, data, clients=cohort)
            told.append(metrics)
        results.append((bits(state), told))
    (expected, expected_metrics), (found, metrics) = results
    assert found == expected
    assert metrics == expected_metrics


def test_what_runs_on_two_devices_is_there():
    assert set(DEVICES) < set(PROCESSES)


def test_the_order_of_the_clients_is_the_only_order_there_is():
    """Five streams, and as many as there are clients: runs of places that are cut elsewhere."""
    process, data = (make() for make in PROCESSES["fed_avg"])
    states = []
    for streams in (1, 2, 3, 4, 5):
        runtime = sf.Simulation(deterministic=True, streams=streams)
        states.append(bits(process.on(runtime).next(process.initialize(), data).state))
    assert all(state == states[0] for state in states)


def test_streams_that_export_at_once_leave_the_settings_of_jax_alone():
    before = jax.config.jax_traceback_in_locations_limit
    process, data = (make() for make in PROCESSES["fed_avg"])
    for _ in range(3):
        process.on(sf.Simulation(deterministic=True, streams=4)).next(process.initialize(), data)
    assert jax.config.jax_traceback_in_locations_limit == before
