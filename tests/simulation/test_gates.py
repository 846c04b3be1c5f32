"""What makes rounds fast, asserted without a clock: programs compiled, arrays alive, bytes sent."""

import collections
import contextlib
import gc
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.cohort import room

FEATURES, CLASSES = 12, 5
MODEL = sf.models.from_functions(
    lambda key: jnp.zeros((FEATURES, CLASSES)), lambda w, x: x @ w, optax.softmax_cross_entropy_with_integer_labels
)
BATCHING = sf.Batching(size=4)
RUNTIMES = {
    "whole": sf.Simulation(streams=1, kernel="sequential"),
    "side by side": sf.Simulation(streams=2, kernel="sequential"),
    "lanes": sf.Simulation(streams=2, lanes=4),
    "deterministic": sf.Simulation(streams=2, deterministic=True),
}
PROGRAMS = {"whole": 1, "side by side": 3, "lanes": 3}
"""Of a round: all of it, or what is sent, Σ, and the server's end."""


def federation(clients, seed=0, most=24):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, most, clients)
    x = draw.normal(size=(int(sizes.sum()), FEATURES)).astype(np.float32)
    y = draw.integers(0, CLASSES, len(x)).astype(np.int32)
    return sf.Federation.from_arrays(x, y, offsets=np.concatenate([[0], np.cumsum(sizes)]))


def fed_avg():
    return sf.learning.fed_avg(MODEL, optax.sgd(0.1), optax.adam(0.01), batching=BATCHING)


def scaffold():
    return sf.learning.scaffold(MODEL, optax.sgd(0.1), batching=BATCHING)


FED = federation(60)


@contextlib.contextmanager
def compiling():
    """The names of all programs that JAX compiles, or takes out of its cache on disk, inside and outside of spans."""
    found = []

    def heard(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(about["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


@pytest.mark.parametrize(
    ("algorithm", "runtime"),
    [*((fed_avg, name) for name in RUNTIMES), (scaffold, "side by side")],
    ids=[*RUNTIMES, "with memories"],
)
def test_nothing_is_compiled_from_the_second_round_on(algorithm, runtime):
    process, draw = algorithm().on(RUNTIMES[runtime]), np.random.default_rng(1)
    state = process.initialize()
    state, _ = process.next(state, FED, clients=draw.choice(60, 10, replace=False))
    with compiling() as programs:
        for _ in range(6):
            state, _ = process.next(state, FED, clients=draw.choice(60, 10, replace=False))
    assert programs == []


@pytest.mark.parametrize("runtime", PROGRAMS)
def test_the_first_round_compiles_a_program_a_part(runtime):
    process = fed_avg().on(RUNTIMES[runtime])
    process.next(process.initialize(), FED, clients=range(10))
    counts = process._run.meter.snapshot()["counts"]
    assert counts["executables"] + counts.get("cached", 0) <= PROGRAMS[runtime]


def test_changing_cohorts_share_a_grid_of_executables():
    process, draw = fed_avg().on(RUNTIMES["whole"]), np.random.default_rng(2)
    state, sizes = process.initialize(), draw.integers(1, 60, 40)
    with compiling() as programs:
        for size in sizes:
            state, _ = process.next(state, FED, clients=draw.choice(60, size, replace=False))
    grid = {room(int(size)) for size in sizes}
    most = max(collections.Counter(programs).values())
    assert len(grid) > 8
    assert most <= len(grid) < len(set(sizes.tolist())), "neighbouring sizes share, and smaller ones use larger places"


def test_one_huge_client_beside_all_others_needs_no_other_executable():
    sizes = [200, *[2] * 9, *[20] * 10]
    x = np.ones((sum(sizes), FEATURES), np.float32)
    fed = sf.Federation.from_arrays(x, np.zeros(len(x), np.int32), offsets=np.cumsum([0, *sizes]))
    process = fed_avg().on(sf.Simulation(streams=2, kernel="sequential"))
    state, _ = process.next(process.initialize(), fed, clients=range(10, 20))
    with compiling() as programs:
        process.next(state, fed, clients=range(10))
    assert not programs


@pytest.mark.parametrize("algorithm", [fed_avg, scaffold], ids=["fed_avg", "scaffold"])
def test_twenty_rounds_leave_no_arrays_behind(algorithm):
    process, draw = algorithm(), np.random.default_rng(3)
    alive = []

    def look(event):
        if event.kind == "round_end" and event.round in {2, 22}:
            gc.collect()
            arrays = jax.live_arrays()
            alive.append((len(arrays), sum(a.nbytes for a in arrays)))

    cohorts = [draw.choice(60, 10, replace=False).tolist() for _ in range(23)]
    sf.train(process, FED, rounds=23, cohorts=cohorts, evaluate=FED, callbacks=[look], progress=False)
    assert alive[0] == alive[1], "after 23 rounds as after three"


def test_a_run_holds_one_state_and_not_its_first(tmp_path):
    side = 300
    model = sf.models.from_functions(
        lambda key: jax.random.normal(key, (FEATURES, side)), lambda w, x: x @ w, lambda o, y: o.sum(-1)
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=BATCHING)
    alive = []

    def look(event):
        if event.round < 2:
            return
        gc.collect()
        alive.append(sum(a.shape == (FEATURES, side) for a in jax.live_arrays()))

    gc.collect()
    for folder in (None, tmp_path / "run"):
        sf.train(process, FED, rounds=3, clients_per_round=4, callbacks=[look], progress=False, checkpoint=folder)
        assert max(alive) == 1
        alive.clear()


def sent(fed, rounds=5, clients=10):
    process = fed_avg().on(RUNTIMES["side by side"])
    state, draw = process.initialize(), np.random.default_rng(4)
    found = []
    for _ in range(rounds):
        before = process._run.meter.snapshot()["counts"].get("bytes", 0)
        state, _ = process.next(state, fed, clients=draw.choice(60, clients, replace=False))
        found.append(process._run.meter.snapshot()["counts"]["bytes"] - before)
    return found


def test_a_round_sends_row_numbers_and_no_rows():
    few, many = sent(FED), sent(federation(600))
    rows = 10 * 24  # of the ten largest clients
    assert max(few) <= 4 * (2 * rows + 2 * rows // 4 * 2 + 2 * 10 * 8), "row numbers, batches, and clients, with room"
    assert max(few) < rows * FEATURES * 4, "less than the rows themselves"
    assert max(many) <= 1.5 * max(few), "whatever the size of the federation"
    assert len(set(few)) == 1, "shapes stay"


START = """
import json
import jax, jax.numpy as jnp, numpy as np, optax
programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: programs.append(about["fun_name"]) if "backend_compile" in event else None
)
import sumfold as sf
model = sf.models.from_functions(lambda key: np.zeros((12, 5), np.float32), lambda w, x: x @ w,
                                 optax.softmax_cross_entropy_with_integer_labels)
process = sf.learning.fed_avg(model, optax.sgd(0.1))
x = np.ones((20, 12), np.float32)
process.next(process.initialize(), {"a": (x, np.zeros(20, np.int32)), "b": (x[:3], np.ones(3, np.int32))})
print(json.dumps(programs))
"""


def test_a_first_start_compiles_few_programs():
    run = subprocess.run([sys.executable, "-c", START], env=os.environ, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    programs = json.loads(run.stdout)
    assert len(programs) <= 8, programs
