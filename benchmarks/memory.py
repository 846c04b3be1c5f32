"""Memory of one round in one stream, in copies of the model: a million parameters, ten thousand clients, one step each.

    python benchmarks/memory.py [--clients 10000]
    python benchmarks/memory.py --run train|next --server adam|sgd [--parameters 100000000]

Two figures. The compiler's own account of the round's program (arguments and results other than the data, and
temporaries), which is exact and the same for any number of clients; and what the process's resident memory grew to
while a later round ran, read from /proc (Linux).

With `--run`, of a large model and four clients: by how many copies the process has grown after six rounds of two
streams, its arrays at the end, and the fastest round, as `sf.train` runs them, which may write a state over the one
before, or `process.next`, which may not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf
from sumfold.core.cohort import Cohort
from sumfold.learning.rounds import Rounds

PARAMETERS = 1_000_000
FEATURES = 1_000
ROUNDS = 6


def resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    parser.add_argument("--run", choices=["train", "next"])
    parser.add_argument("--server", choices=["adam", "sgd"], default="adam")
    parser.add_argument("--parameters", type=int, default=100_000_000)
    given = parser.parse_args()
    print(json.dumps(of_run(given.run, given.server, given.parameters) if given.run else of_round(given.clients)))


def of_run(how: str, server: str, parameters: int) -> dict[str, object]:
    x = np.random.default_rng(0).normal(size=(4, FEATURES)).astype(np.float32)
    federation = sf.Federation.from_arrays(x, np.zeros(4, np.int32), offsets=np.arange(5))
    model = sf.models.from_functions(
        init=lambda key: jnp.full((FEATURES, parameters // FEATURES), 1e-3),
        predict=lambda w, x: x @ w,
        loss=lambda outputs, y: jnp.square(outputs).mean(-1),
    )
    optimizer = optax.adam(0.01) if server == "adam" else optax.sgd(1.0)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), optimizer, batching=sf.Batching(size=1))
    process = process.on(sf.Simulation(streams=2))
    before, seconds = resident("VmRSS"), list[float]()

    def one(round: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            began = time.perf_counter()
            answer = round(*args)
            seconds.append(time.perf_counter() - began)
            return answer

        return timed

    if how == "train":
        Rounds.__call__ = one(Rounds.__call__)  # type: ignore[method-assign]
        state = sf.train(process, federation, rounds=ROUNDS, progress=False).state
    else:
        state, following = process.initialize(), one(process.next)
        for _ in range(ROUNDS):
            state, _ = following(state, federation)
    copy = 4 * parameters
    return {
        "run": how,
        "server": server,
        "parameters": parameters,
        "state_copies": round(sum(a.nbytes for a in jax.tree.leaves(state.algorithm)) / copy, 2),
        "resident_peak_copies": round((resident("VmHWM") - before) / copy, 2),
        "live_copies": round(sum(a.nbytes for a in jax.live_arrays()) / copy, 2),
        "round_ms": round(1e3 * min(seconds[1:])),
        "jax": jax.__version__,
    }


def of_round(clients: int) -> dict[str, object]:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients, FEATURES)).astype(np.float32)
    y = draw.integers(0, FEATURES, clients).astype(np.int32)
    federation = sf.Federation.from_arrays(x, y, offsets=np.arange(clients + 1))
    model = sf.models.from_functions(
        init=lambda key: jnp.zeros((FEATURES, PARAMETERS // FEATURES)),
        predict=lambda w, x: x @ w,
        loss=optax.softmax_cross_entropy_with_integer_labels,
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=1))
    process = process.on(sf.Simulation(streams=1))
    state, _ = process.next(process.initialize(), federation)  # places the data and compiles

    copy = 4 * PARAMETERS
    bound = process._run
    begun = bound._begun(state, Cohort(federation, np.arange(clients)))
    plans = tuple(bound._plans(i, begun, [0], bound._rooms(i, begun))[0] for i in range(len(process.round.phases)))
    examples = bound.placement.examples(federation)
    memory, seen = bound.recall.rows(state, [], begun.seats.slots)
    lowered = bound.compiled.lower(
        state.algorithm, state.stages, state.seed, np.int32(1), plans, examples, memory, seen
    )
    account = lowered.compile().memory_analysis()
    data = sum(a.nbytes for a in jax.tree.leaves((plans, examples)))
    exact = account.argument_size_in_bytes - data + account.output_size_in_bytes + account.temp_size_in_bytes

    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again from here
    before = resident("VmRSS")
    state, metrics = process.next(state, federation)
    grown = resident("VmHWM") - before
    return {
        "clients": clients,
        "parameters": PARAMETERS,
        "steps": metrics["client_work"]["train"]["num_batches"],
        "data_copies": round(data / copy, 2),
        "program_copies": round(exact / copy, 2),
        "resident_growth_copies": round(grown / copy, 2),
        "jax": jax.__version__,
    }


if __name__ == "__main__":
    main()
