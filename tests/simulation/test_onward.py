"""Going on with a run on another runtime: announced where bytes may differ, and nowhere else."""

import itertools
import logging

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation.onward import announced, described

CLIENTS = [(np.ones((n, 2), "f4"), np.ones(n, "f4")) for n in (3, 1, 4)]
MODEL = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2)
PROCESS = sf.learning.fed_avg(MODEL, optax.sgd(0.1), batching=sf.Batching(size=2))


def test_each_change_of_the_runtime_is_one_line_in_the_log(tmp_path, caplog) -> None:
    pinned = sf.Simulation(deterministic=True)
    runtimes = [sf.Simulation(), pinned, sf.Loopback(), sf.Processes(1), sf.Simulation(), sf.Loopback(), pinned]
    said = []
    for rounds, runtime in enumerate(runtimes, 1):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "sumfold"):
            sf.train(PROCESS.on(runtime), CLIENTS, rounds=rounds, checkpoint=tmp_path, progress=False)
        said.append([record.getMessage().partition(": ")[0] for record in caplog.records])
    change = "the rounds so far were computed by {}, from here on it is {}".format
    assert said == [
        [],
        [change("Simulation()", "Simulation(deterministic=True)")],
        [],
        [change("Loopback()", "Processes(1)")],
        [],
        [change("Simulation()", "Loopback()")],
        [],
    ]


def test_the_number_of_processes_is_announced_unless_bits_are_pinned() -> None:
    def lines(a, b):
        return announced(described(a, PROCESS.round), described(b, PROCESS.round))

    free = [sf.Simulation(), sf.Processes(2), sf.Processes(3)]
    for a, b in itertools.permutations(free, 2):
        assert len(lines(a, b)) == 1
    assert "by Processes(2), from here on it is Processes(3)" in lines(*free[1:])[0]
    pinned = [sf.Simulation(deterministic=True), sf.Processes(2, deterministic=True), sf.Loopback()]
    for a, b in itertools.product(pinned, repeat=2):
        assert lines(a, b) == []
    assert "by Processes(2, deterministic=True), from here on it is Processes(2)" in lines(pinned[1], free[1])[0]


def test_what_an_older_checkpoint_does_not_say_is_not_compared() -> None:
    assert announced({}, described(sf.Processes(2), PROCESS.round)) == []


@pytest.mark.parametrize("runtime", [sf.Processes(2), sf.Simulation(deterministic=True)], ids=["processes", "pinned"])
def test_python_functions_give_the_same_on_every_engine(runtime) -> None:
    phase = PROCESS.round.phases[0]._replace(work=sf.HostWork(lambda message, data, key, memory: None))
    hosted = PROCESS.round._replace(phases=(phase,))
    assert announced(described(sf.Simulation(), hosted), described(runtime, hosted)) == []
