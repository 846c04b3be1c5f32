"""What every contestant shares: its arguments, the clock, and the one line of JSON that it ends with.

Started as ``PYTHON contestants/NAME.py --workload w1 --rounds 12 …``. A contestant calls `enter` first, `ready` when
its libraries are loaded, runs each round inside `turn`, and ends with `leave`. A turn ends when the new weights are
there. Only NumPy and the standard library are used: environments of peers load this file from beside the script.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sumfold.bench import workloads
else:
    sys.path.append(str(Path(__file__).resolve().parents[1]))
    import workloads

__all__ = ["CORES", "Game", "ended", "enter", "gemm", "leave", "ready", "triad", "turn", "workloads"]

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_SIDE = 2048


class Game(NamedTuple):
    """One run of one contestant.

    Attributes:
        workload, data, weights: what is computed, as `workloads` makes it.
        cohorts: the clients of each round.
        options: the contestant's own, by name.
        seconds: of each round, filled by `turn`.
        marks: other times, in seconds.
    """

    workload: workloads.Workload
    data: workloads.Data
    weights: dict[str, NDArray[np.float32]]
    cohorts: list[NDArray[np.int64]]
    options: dict[str, Any]
    seconds: list[float]
    marks: dict[str, float]

    @property
    def rounds(self) -> range:
        """The rounds' numbers."""
        return range(len(self.cohorts))

    def order(self, number: int) -> workloads.Order:
        """What the cohort of a round computes."""
        return workloads.order(self.workload, self.data, self.cohorts[number], number)

    def orders(self) -> list[list[list[NDArray[np.int64]]]]:
        """For each round, for each client of it, the rows of its batches: made before the clock starts."""
        return [self.order(number).batches() for number in self.rounds]

    def evaluation(self) -> tuple[NDArray[Any], NDArray[np.int32]]:
        """The examples on which the final weights are compared."""
        rows = workloads.rows_of(self.workload, self.data)
        return self.floats(self.data.x[rows]), np.asarray(self.data.y[rows])

    def floats(self, x: NDArray[Any]) -> NDArray[Any]:
        """Images as float32 in [-1/2, 1/2]; everything else as it is."""
        if x.dtype != np.uint8:
            return np.asarray(x)
        scaled: NDArray[np.float32] = np.multiply(x, np.float32(1 / 255), dtype=np.float32)
        scaled -= np.float32(0.5)
        return scaled

    def client_weight(self, client: int) -> float:
        """What a client counts in the mean."""
        if self.workload.uniform:
            return 1.0
        return float(self.data.offsets[client + 1] - self.data.offsets[client])


def enter() -> Game:
    """Read the arguments and make the data ready."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", choices=list(workloads.WORKLOADS), required=True)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "sumfold-bench" / "data")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    began = time.perf_counter()
    workload = workloads.WORKLOADS[given.workload]
    workload = workloads.quick(workload) if given.quick else workload
    data = workloads.load(workload, given.folder, given.data)
    game = Game(
        workload,
        data,
        workloads.weights(workload),
        workloads.cohorts(workload, data, given.rounds or workload.rounds),
        dict(map(_option, given.option)),
        [],
        {"data_s": time.perf_counter() - began},
    )
    game.marks["entered"] = time.perf_counter()
    return game


def _option(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value.lower() if value in {"True", "False"} else value)
    except ValueError:
        return name, None if value == "None" else value


def ready(game: Game) -> None:
    """The contestant's libraries are loaded."""
    now = time.perf_counter()
    game.marks["import_s"] = now - game.marks.pop("entered")
    game.marks["prepare_s"] = -now


@contextlib.contextmanager
def turn(game: Game) -> Iterator[None]:
    """One round; it must end with the new weights computed."""
    began = time.perf_counter()
    yield
    ended(game, time.perf_counter() - began)


def ended(game: Game, seconds: float) -> None:
    """A round that took so long ends now; for contestants that keep the loop to themselves."""
    game.seconds.append(seconds)
    if len(game.seconds) == 1:
        game.marks["prepare_s"] += time.perf_counter() - seconds
        started = float(os.environ.get("SUMFOLD_BENCH_STARTED", "0"))
        game.marks["to_first_round_s"] = time.time() - started if started else 0.0


def gemm(multiply: Callable[[NDArray[np.float32], NDArray[np.float32]], Callable[[], object]]) -> float:
    """The peak of this process in GFLOP/s: the best of some products of two float32[2048, 2048] on all cores.

    Args:
        multiply: takes two arrays and returns what multiplies them once and waits for the result.
    """
    a = np.linspace(-1, 1, _SIDE * _SIDE, dtype=np.float32).reshape(_SIDE, _SIDE)
    return 2 * _SIDE**3 / _best(multiply(a, a.T.copy()), 8) / 1e9


def triad(game: Game, add: Callable[[NDArray[np.float32], NDArray[np.float32]], Callable[[], object]]) -> float:
    """The memory's speed in GB/s by this process: a + 3 b in a's place, two arrays read and one written.

    Source: McCalpin 1995, *Memory bandwidth and machine balance* (STREAM).

    Args:
        game: whose weights' size the arrays have.
        add: takes two arrays and returns what computes it once and waits for the result.
    """
    size = game.weights["w"].size
    once = add(np.zeros(size, np.float32), np.ones(size, np.float32))
    return 12 * size / _best(once, 4) / 1e9


def _best(once: Callable[[], object], times: int) -> float:
    """Seconds of the fastest, after one that warms up."""
    once()
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        once()
        taken.append(time.perf_counter() - began)
    return min(taken)


def leave(
    game: Game,
    loss: float,
    versions: dict[str, str],
    peak: float | None = None,
    examples: list[int] | None = None,
    steps: list[int] | None = None,
    **more: object,
) -> None:
    """Write the line.

    Args:
        game: the run.
        loss: of the final weights on `Game.evaluation`.
        versions: of the libraries that computed.
        peak: `gemm` with the contestant's own product.
        examples, steps: of each round as the contestant counted them; left out where it was given them.
        more: anything else to keep.
    """
    if examples is None or steps is None:
        orders = [game.order(number) for number in game.rounds]
        examples, steps = [len(order.rows) for order in orders], [len(order.sizes) for order in orders]
    line = {
        "contestant": Path(sys.argv[0]).stem.rstrip("_"),
        "workload": game.workload.name,
        "rounds": len(game.seconds),
        "cohort": len(game.cohorts[0]),
        "seconds": [round(seconds, 6) for seconds in game.seconds],
        "loss": float(loss),
        "examples": sum(examples),
        "examples_by_round": examples,
        "steps": sum(steps),
        "gemm_gflops": peak,
        "options": game.options,
        "versions": {"python": sys.version.split()[0], "numpy": np.__version__, **versions},
        **{name: round(value, 4) for name, value in game.marks.items()},
        **more,
    }
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
