"""The language: the first call in a fresh process, a call by number of clients, and memory over many calls.

    python benchmarks/language.py [--repeats 15]

`first_call_s` is program 1, a mean of three clients' updates: from after ``import jax`` to its result, the import of
sumfold.tff, the trace and the compilation included; median of fresh processes, of which the first does not count.
`call_ms` is a call of the traced mean of one number at each client, given as a list of floats and as an array, and on
the runtime Simulation. `fold_ms` is a sum over 100 clients with a sequence of 1,000 readings each, whose elements are
the readings, or arrays of 100 of them. `grown_kib` is what resident memory grew by over 1,000 calls with 1,000
clients, after as many calls as fill JAX's own caches (Linux). The machine should be idle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import sumfold as sf

PROGRAM = """
import time
import jax
begin = time.perf_counter()
from sumfold import tff

@tff.federated_computation
def federated_averaging(model_weights):
    return tff.federated_mean(model_weights, weight=None)

federated_averaging([[0.1, 0.2], [0.3, 0.1], [0.2, 0.3]])
print(time.perf_counter() - begin)
"""
CLIENTS = (100, 1_000, 10_000, 100_000)
CALLS, WARM = 1_000, 3_000


@sf.federated_computation
def mean(x: Any) -> Any:
    return sf.federated_mean(x)


@sf.federated_computation(sf.type_at_clients(sf.SequenceType(np.float32)))
def by_reading(readings: Any) -> Any:
    return sf.federated_sum(sf.sequence_sum(readings))


@sf.federated_computation(sf.type_at_clients(sf.SequenceType(sf.TensorType(np.float32, (100,)))))
def by_hundred(readings: Any) -> Any:
    return sf.federated_sum(sf.federated_map(lambda arrays: sf.sequence_sum(arrays).sum(), readings))


def first_call(repeats: int) -> float:
    def run() -> float:
        shown = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
        return float(shown.stdout)

    run()
    return round(statistics.median(run() for _ in range(repeats)), 3)


def milliseconds(function: Callable[[], Any], repeats: int) -> float:
    function()  # traces and compiles
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        taken.append(time.perf_counter() - begin)
    return round(1000 * statistics.median(taken), 2)


def calls(repeats: int) -> dict[str, dict[int, float]]:
    figures: dict[str, dict[int, float]] = {"list": {}, "array": {}, "array_on_simulation": {}}
    on_simulation = mean.on(sf.Simulation())
    for number in CLIENTS:
        array = np.random.default_rng(0).normal(size=number).astype(np.float32)
        listed = array.tolist()
        figures["list"][number] = milliseconds(lambda listed=listed: mean(listed), repeats)
        figures["array"][number] = milliseconds(lambda array=array: mean(array), repeats)
        figures["array_on_simulation"][number] = milliseconds(lambda array=array: on_simulation(array), repeats)
    return figures


def folds(repeats: int) -> dict[str, dict[str, float]]:
    readings = np.random.default_rng(0).normal(size=(100, 1_000)).astype(np.float32)
    given = {by_reading: list(readings), by_hundred: list(readings.reshape(100, 10, 100))}
    figures = {}
    for computation, data in given.items():
        ways = {"direct": computation, "on_simulation": computation.on(sf.Simulation())}
        figures[computation.__name__] = {
            way: milliseconds(lambda run=run, data=data: run(data), repeats) for way, run in ways.items()
        }
    return figures


def resident() -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0])


def growth(call: Callable[[Any], Any]) -> int:
    array = np.ones(1_000, np.float32)
    for _ in range(WARM):
        call(array)
    before = resident()
    for _ in range(CALLS):
        call(array)
    return resident() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    figures = {
        "first_call_s": first_call(min(repeats, 5)),
        "call_ms": calls(repeats),
        "fold_ms": folds(repeats),
        "grown_kib": {"direct": growth(mean), "on_simulation": growth(mean.on(sf.Simulation()))},
        "repeats": repeats,
        "jax": jax.__version__,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
