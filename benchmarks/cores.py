"""What a machine's processor cores give together, by programs that share nothing: the limit of any speed-up.

    python benchmarks/cores.py [--seconds 2]

One process on one core, then one on every core at once, each multiplying its own small matrices, its own large ones,
or adding vectors within its own first cache. Two "cores" of a virtual machine may be two hardware threads of one core,
whatever they are called; then two processes are not nearly twice as fast as one, and no simulator can be.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np


def task(kind: str) -> tuple[Callable[[], Any], int]:
    """Something to repeat, and its floating-point operations."""
    if kind == "vectors":
        a = np.zeros(4096, np.float32)
        return lambda: [np.add(a, a, out=a) for _ in range(200)], 200 * a.size
    side = {"small products": 64, "large products": 384}[kind]
    times = 50 if side == 64 else 1
    b = np.ones((side, side), np.float32)
    return lambda: [b @ b for _ in range(times)], times * 2 * side**3


def measured(kind: str, core: int, seconds: float, results: Any) -> None:
    """Operations a second on one core."""
    os.sched_setaffinity(0, {core})
    repeat, operations = task(kind)
    repeat()
    began, number = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        repeat()
        number += 1
    results.put(number * operations / (time.perf_counter() - began))


def together(kind: str, cores: list[int], seconds: float) -> float:
    """Operations a second of all these cores."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=measured, args=(kind, core, seconds, results)) for core in cores]
    for process in processes:
        process.start()
    total = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return float(total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2)
    seconds = parser.parse_args().seconds
    cores = sorted(os.sched_getaffinity(0))
    for kind in ("small products", "large products", "vectors"):
        one, all_ = together(kind, cores[:1], seconds), together(kind, cores, seconds)
        row = {"kind": kind, "cores": len(cores), "one_gflops": one / 1e9, "all_gflops": all_ / 1e9}
        print(json.dumps(row | {"times": round(all_ / one, 2)}))


if __name__ == "__main__":
    os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # read by those that are spawned
    main()
