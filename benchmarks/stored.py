"""A federation of a million clients in a file: writing it, opening it, and reading some of it.

    python benchmarks/stored.py [--clients 1000000] [--rows 5] [--features 8] [--rounds 20]

Clients are named by strings and hold a few rows each. Prints JSON: seconds to save, the file's size, and of a fresh
process the seconds to open it, what its resident memory grew by (Linux), the seconds to read one client and a subset of
1000, and the median round of `sumfold.train` with 100 clients, the first left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf


def resident() -> float:
    """MB of memory that is resident."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines["VmRSS"].split()[0]) * 1024 / 1e6


def made(clients: int, rows: int, features: int) -> sf.Federation:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients * rows, features)).astype(np.float32)
    y = draw.integers(0, 3, clients * rows).astype(np.int32)
    starts = np.arange(clients, dtype=np.int64) * rows
    ids = tuple([f"client-{k}" for k in range(clients)])
    return sf.Federation(ids, (x, y), starts, np.full(clients, rows, np.int64))


def written(path: str, federation: sf.Federation) -> dict[str, Any]:
    begin = time.perf_counter()
    federation.save(path)
    return {"save_s": round(time.perf_counter() - begin, 2), "file_MB": round(os.path.getsize(path) / 1e6, 1)}


def read(path: str, rounds: int) -> dict[str, Any]:
    """What a process sees that has nothing but the file."""
    jnp.zeros(1).block_until_ready()
    sf.Federation.from_sqlite  # noqa: B018  imports what it needs
    before, begin = resident(), time.perf_counter()
    federation = sf.Federation.from_sqlite(path)
    opened, grown = time.perf_counter() - begin, resident() - before
    draw = np.random.default_rng(1)
    places = draw.choice(len(federation), 1100, replace=False).tolist()
    names = [federation.ids[place] for place in places]
    begin = time.perf_counter()
    for name in names[:100]:
        federation[name]
    one = (time.perf_counter() - begin) / 100
    begin = time.perf_counter()
    federation.subset(names[100:])
    some = time.perf_counter() - begin
    features = federation[names[0]][0].shape[1]
    model = sf.models.from_functions(
        lambda key: jnp.zeros((features, 3)),
        lambda params, x: x @ params,
        optax.softmax_cross_entropy_with_integer_labels,
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1))
    ends = [time.perf_counter()]

    def record(event: Any) -> None:
        ends.append(time.perf_counter())

    sf.train(process, federation, rounds=rounds, clients_per_round=100, callbacks=[record], progress=False)
    return {
        "open_s": round(opened, 3),
        "open_grown_MB": round(grown, 1),
        "one_client_ms": round(1e3 * one, 3),
        "subset_of_1000_ms": round(1e3 * some, 1),
        "round_of_100_ms": round(1e3 * statistics.median(np.diff(ends)[1:]), 1),
        "after_all_grown_MB": round(resident() - before, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("clients", 1_000_000), ("rows", 5), ("features", 8), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.read:
        print(json.dumps(read(given.read, given.rounds)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "clients.sqlite")
        about = {name: getattr(given, name) for name in ("clients", "rows", "features")}
        about |= written(path, made(given.clients, given.rows, given.features))
        run = [sys.executable, __file__, "--read", path, "--rounds", str(given.rounds)]
        done = subprocess.run(run, check=True, capture_output=True, text=True)
        print(json.dumps({**about, **json.loads(done.stdout), "jax": jax.__version__}, indent=2))


if __name__ == "__main__":
    main()
