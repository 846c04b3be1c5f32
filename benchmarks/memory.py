"""Memory of one round in one stream, in copies of the model: a million parameters, ten thousand clients, one step each.

    python benchmarks/memory.py [--clients 10000]

Two figures. The compiler's own account of the round's program (arguments and results other than the data, and
temporaries), which is exact and the same for any number of clients; and what the process's resident memory grew to
while a later round ran, read from /proc (Linux).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf
from sumfold.core.cohort import Cohort

PARAMETERS = 1_000_000
FEATURES = 1_000


def resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=10_000)
    clients = parser.parse_args().clients

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
    print(
        json.dumps(
            {
                "clients": clients,
                "parameters": PARAMETERS,
                "steps": metrics["client_work"]["train"]["num_batches"],
                "data_copies": round(data / copy, 2),
                "program_copies": round(exact / copy, 2),
                "resident_growth_copies": round(grown / copy, 2),
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
