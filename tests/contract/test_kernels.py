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
KERNELS = {
    "3 streams": sf.Simulation(streams=3, kernel="sequential"),
    "2 devices x 2 lanes": sf.Simulation(devices=2, streams=1, lanes=2),
}
PINNED = {
    "2 devices x 2 streams": sf.Simulation(deterministic=True, devices=2, streams=2),
    "Loopback": sf.Loopback(),
}


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
    assert_runtimes_agree(process, data, REFERENCE, *KERNELS.values(), rounds=2)


@pytest.mark.parametrize("name", ["fed_avg", "scaffold", "mime"])  # nothing to keep, a memory, two phases
def test_a_client_that_is_not_finite_is_left_out_by_every_kernel(name):
    process, data = (make() for make in PROCESSES[name])
    broken = with_a_client_that_is_not_finite(data)
    assert_runtimes_agree(process, broken, REFERENCE, *KERNELS.values(), *PINNED.values(), rounds=2)
    _, metrics = process.on(KERNELS["2 devices x 2 lanes"]).next(process.initialize(), broken)
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1


def bits(state):
    arrays = (state.algorithm, state.stages, dict(state.clients))
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(arrays)]


@pytest.mark.parametrize("name", PROCESSES)
def test_pinned_rounds_agree_in_every_bit(name):
    process, data = (make() for make in PROCESSES[name])
    order = sorted(data)
    results = {}
    for runtime, where in PINNED.items():
        bound, state, told = process.on(where), process.initialize(seed=1), []
        for cohort in (None, order[::-1], order[1:]):
            state, metrics = bound.next(state, data, clients=cohort)
            told.append(metrics)
        results[runtime] = bits(state), told
    first = results.pop("Loopback")
    for runtime, result in results.items():
        assert result[0] == first[0], runtime
        assert result[1] == first[1], runtime


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
