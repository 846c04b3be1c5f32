"""Client work in Python: what our workers cost beside `multiprocessing` (spawn) and loky, on the same trivial function.

    python benchmarks/host.py [--clients 400] [--workers 2] [--repeats 5]

Milliseconds a client, with workers that are running already; the medians of some rounds. Then the time of the first
round, in which workers start; whether each way takes a closure, and a program from standard input; and a round of 8
clients with a message of 10 million parameters, with the bytes that were written to share it. In the last, each of the
others sends its message with every task, as their interfaces have it. loky is measured if it is installed. The machine
should be idle.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import sumfold as sf
from sumfold.simulation import workers

LARGE = 10_000_000


def trivial(message: Any, data: Any, key: Any, memory: Any) -> sf.Report:
    return sf.Report({"update": sf.Contribution(np.float32(data.sum()), 1.0)})


def plain(data: np.ndarray) -> np.float32:
    """The same for a pool: no message, no key, no report."""
    return np.float32(data.sum())


def with_message(message: np.ndarray, data: np.ndarray) -> np.float32:
    return np.float32(message[0] + data.sum())


def large(message: Any, data: Any, key: Any, memory: Any) -> Any:
    return {"sum": np.float32(message[0] + data.sum())}


def process(run: Callable[..., Any], size: int, workers: int, **options: Any) -> Any:
    one = sf.Phase(
        broadcast=lambda state, key: state,
        work=sf.HostWork(run, **options),
        aggregate={"update": sf.aggregators.mean()},
        finalize=lambda state, results, measured, key: (state, {}),
    )
    begin = lambda params, key: jnp.zeros(size) if size else jnp.float32(0)  # noqa: E731
    round = sf.Round("bench", begin, (one,))
    return sf.Process(round).on(sf.Simulation(host=sf.Workers(workers)))


def timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def median(call: Callable[[], Any], repeats: int) -> float:
    return statistics.median(timed(call) for _ in range(repeats))


def overhead(clients: int, count: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a client, and seconds of the first call."""
    rows = [np.ones(8, np.float32) for _ in range(clients)]
    ours = process(trivial, 0, count)
    state = ours.initialize()
    first = {"sumfold": timed(lambda: ours.next(state, rows[:count]))}
    ours.next(state, rows)
    each = {"sumfold": median(lambda: ours.next(state, rows), repeats)}
    loopback = ours.on(sf.Loopback())
    loopback.next(state, rows[:4])
    each["sumfold, Loopback"] = median(lambda: loopback.next(state, rows[: clients // 4]), 1) * 4

    def begin_spawn() -> Any:
        pool = multiprocessing.get_context("spawn").Pool(count)
        pool.map(plain, rows[:count], chunksize=1)
        return pool

    held: list[Any] = []
    first["spawn"] = timed(lambda: held.append(begin_spawn()))
    each["spawn"] = median(lambda: held[0].map(plain, rows, chunksize=1), repeats)
    held[0].terminate()
    held[0].join()
    try:
        import loky
    except ImportError:
        pass
    else:
        executor = loky.ProcessPoolExecutor(count)
        first["loky"] = timed(lambda: list(executor.map(plain, rows[:count])))
        each["loky"] = median(lambda: list(executor.map(plain, rows)), repeats)
        executor.shutdown(kill_workers=True)
    return {
        "first_s": {k: round(v, 2) for k, v in first.items()},
        "ms_a_client": {k: round(1e3 * v / clients, 3) for k, v in each.items()},
    }


def ten_million(count: int, repeats: int) -> dict[str, Any]:
    """Seconds a round of 8 clients, and bytes written to share 40 MB."""
    written: list[int] = []
    save = workers.save_file

    def counted(path: Path, given: Any) -> Any:
        result = save(path, given)
        written.append(path.stat().st_size)
        return result

    workers.save_file = counted
    zero = lambda task, key: {"sum": jnp.float32(0)}  # noqa: E731
    finish = lambda task, carry, key: sf.Report(  # noqa: E731
        {"update": sf.Contribution(carry["sum"], jnp.float32(1))}
    )
    ours = process(large, LARGE, count, init=zero, finish=finish)
    state, rows = ours.initialize(), [np.ones(8, np.float32) for _ in range(8)]
    ours.next(state, rows)
    written.clear()
    seconds = {"sumfold": median(lambda: ours.next(state, rows), repeats)}
    told = {"clients": 8, "bytes_written_a_round": sum(written) // repeats, "files_a_round": len(written) / repeats}
    workers.save_file = save
    trained = process(echo, LARGE, count)
    trained.next(trained.initialize(), rows)
    seconds["sumfold, every client returns 10 M too"] = median(lambda: trained.next(state, rows), repeats)
    task = functools.partial(with_message, np.zeros(LARGE, np.float32))
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.map(plain, rows)
        seconds["spawn"] = median(lambda: pool.starmap(with_message, [(task.args[0], r) for r in rows], 1), repeats)
    try:
        import loky
    except ImportError:
        pass
    else:
        executor = loky.ProcessPoolExecutor(count)
        list(executor.map(plain, rows))
        seconds["loky"] = median(lambda: list(executor.map(task, rows)), repeats)
        executor.shutdown(kill_workers=True)
    return {**told, "seconds": {k: round(v, 3) for k, v in seconds.items()}}


def echo(message: Any, data: Any, key: Any, memory: Any) -> sf.Report:
    return sf.Report({"update": sf.Contribution(message + np.float32(1), 1.0)})


CLOSURE = """
def main():
    factor = 2.0
    run = lambda data: factor * data.sum()
    rows = [np.ones(3), np.ones(5)]
    {use}
"""
FUNCTION = """
def run(data):
    return 2.0 * data.sum()
rows = [np.ones(3), np.ones(5)]
def main():
    {use}
"""
USES = {
    "sumfold": """import sumfold as sf, jax.numpy as jnp
    work = lambda message, data, key, memory: sf.Report({"u": sf.Contribution(np.float32(run(data)), 1.0)})
    phase = sf.Phase(lambda s, k: s, sf.HostWork(work), {"u": sf.aggregators.mean()}, lambda s, r, m, k: (r["u"], {}))
    process = sf.Process(sf.Round("r", lambda p, k: jnp.float32(0), (phase,)))
    process = process.on(sf.Simulation(host=sf.Workers(1)))
    assert float(process.next(process.initialize(), rows).state.algorithm) == 8""",
    "spawn": """import multiprocessing
    with multiprocessing.get_context("spawn").Pool(1) as pool: assert sum(pool.map_async(run, rows).get(20)) == 16""",
    "loky": """import loky
    assert sum(loky.ProcessPoolExecutor(1).map(run, rows)) == 16""",
}


def takes() -> dict[str, dict[str, bool]]:
    """Whether a closure in a script works, and a function of a program that comes from standard input."""
    told: dict[str, dict[str, bool]] = {}
    for name, use in USES.items():
        closure, function = (
            f"import numpy as np\n{text.replace('{use}', use)}\nif __name__ == '__main__':\n    main()\n"
            for text in (CLOSURE, FUNCTION)
        )
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.py"
            script.write_text(closure)
            told[name] = {
                "closure in a script": _works([str(script)], ""),
                "program from standard input": _works(["-"], function),
            }
    return told


def _works(arguments: list[str], text: str) -> bool:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    ran = subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        ran.communicate(text, timeout=60)
    except subprocess.TimeoutExpired:  # a pool whose processes die on the way starts them for ever
        os.killpg(ran.pid, 9)
        ran.wait()
    return ran.returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    told = {
        "workers": given.workers,
        **overhead(given.clients, given.workers, given.repeats),
        "ten_million": ten_million(given.workers, given.repeats),
        "takes": takes(),
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
