"""Memory and time of a round whose rule needs every client's update, in copies of the stack of all updates.

    python benchmarks/block.py [--clients 100] [--parameters 5000000] [--rule pieces|whole] [--streams 2]

The rule is the coordinate-wise median, written with `sumfold.core.by_coordinate` and
`sumfold.core.sorted_rows`, or over the whole stack at once. The
figure is what the process's resident memory grew to while the second round ran, read from /proc (Linux): the stack
itself, the blocks of the streams and all that the rule takes.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf
from sumfold import core

FEATURES = 1_000


def resident(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) * 1024


def median(whole: bool) -> core.Stage:
    """The coordinate-wise median of the clients that were counted (Yin et al. 2018, Algorithm 1)."""

    def encode(public: Any, memory: Any, given: Any, key: Any) -> Any:
        return given.value, memory

    def of_stack(values: Any, present: Any) -> Any:
        return jnp.nanmedian(jnp.where(present.reshape(-1, *[1] * (values.ndim - 1)), values, jnp.nan), axis=0)

    def of_piece(values: Any, present: Any) -> Any:
        ordered, number = core.sorted_rows(jnp.where(present[:, None], values, jnp.nan)), present.sum()
        return (ordered[(number - 1) // 2] + ordered[number // 2]) / 2

    def decode(state: Any, stacked: Any, key: Any) -> Any:
        if whole:
            return jax.tree.map(lambda a: of_stack(a, stacked.present), stacked.values), state, {}
        return core.by_coordinate(of_piece, stacked), state, {}

    return core.Stage(encode, decode, group=core.stack, name="median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--parameters", type=int, default=5_000_000)
    parser.add_argument("--rule", choices=("pieces", "whole"), default="pieces")
    parser.add_argument("--streams", type=int)
    asked = parser.parse_args()
    clients, classes = asked.clients, asked.parameters // FEATURES

    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients, FEATURES)).astype(np.float32)
    y = draw.integers(0, classes, clients).astype(np.int32)
    federation = sf.Federation.from_arrays(x, y, offsets=np.arange(clients + 1))
    model = sf.models.from_functions(
        init=lambda key: jnp.zeros((FEATURES, classes)),
        predict=lambda w, x: x @ w,
        loss=optax.softmax_cross_entropy_with_integer_labels,
    )
    rule = median(asked.rule == "whole")
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=1), aggregator=rule)
    process = process.on(sf.Simulation(streams=asked.streams))
    state, _ = process.next(process.initialize(), federation)  # places the data and compiles

    gc.collect()  # JAX lets go of the first round's stack with the next garbage
    stack = 4 * clients * classes * FEATURES
    Path("/proc/self/clear_refs").write_text("5")  # the peak of resident memory starts again from here
    before, began = resident("VmRSS"), time.perf_counter()
    state, _ = process.next(state, federation)
    taken = time.perf_counter() - began
    print(
        json.dumps(
            {
                "clients": clients,
                "parameters": classes * FEATURES,
                "rule": asked.rule,
                "stack_bytes": stack,
                "resident_growth_stacks": round((resident("VmHWM") - before) / stack, 2),
                "seconds": round(taken, 2),
                "jax": jax.__version__,
            }
        )
    )


if __name__ == "__main__":
    main()
