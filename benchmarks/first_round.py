"""Time from the start of a process to its first finished round, on the demo's data and model; median of fresh runs.

    python benchmarks/first_round.py [--repeats 5]

The first run fills the file cache and does not count. `first_round` compiles everything; `second_start` has its
programs from the compilation cache, in a folder of its own. The machine should be idle.
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

PROGRAM = """
import jax.numpy as jnp, optax, sumfold as sf
train, _ = sf.data.heart_disease()
model = sf.models.from_functions(
    init=lambda key: {"w": jnp.zeros(10), "b": jnp.zeros(())},
    predict=lambda params, x: x @ params["w"] + params["b"],
    loss=optax.sigmoid_binary_cross_entropy,
)
process = sf.learning.fed_avg(model, optax.sgd(0.3), batching=sf.Batching(size=256, epochs=5))
process.next(process.initialize(), train)
"""


def seconds(program: str, cache: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "SUMFOLD_COMPILATION_CACHE": cache})
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, program, cache in (
            ("first_round", PROGRAM, "off"),
            ("second_start", PROGRAM, folder),
            ("import_sumfold", "import sumfold", "off"),
            ("python", "pass", "off"),
        ):
            seconds(program, cache)
            figures[name] = round(statistics.median(seconds(program, cache) for _ in range(repeats)), 3)
    print(json.dumps({"seconds": figures, "repeats": repeats}))


if __name__ == "__main__":
    main()
