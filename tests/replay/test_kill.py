"""A program that is killed at any instant and started again ends with the bytes of one that never was.

SUMFOLD_KILLS=20 kills each program that many times instead of a few.
"""

import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")

ROUNDS = 30
KILLS = {"fed_avg": 4, "scaffold": 4, "torch": 2}
if "SUMFOLD_KILLS" in os.environ:
    KILLS = dict.fromkeys(KILLS, int(os.environ["SUMFOLD_KILLS"]))

PROGRAM = """
import hashlib, json, sys, time
import jax, jax.numpy as jnp, numpy as np, optax
import sumfold as sf
from sumfold import tree

def functions():
    return sf.models.from_functions(
        lambda key: {"w": jax.random.normal(key, (4, 3)), "b": jnp.zeros(3)},
        lambda p, x: x @ p["w"] + p["b"],
        optax.softmax_cross_entropy_with_integer_labels,
        {"accuracy": sf.metrics.accuracy},
    )

def fed_avg():
    return sf.learning.fed_avg(functions(), optax.adam(0.01), optax.adam(0.05), batching=batching)

def scaffold():
    return sf.learning.scaffold(functions(), optax.sgd(0.05), batching=batching)

def torch():
    import torch
    model = sf.models.from_torch(
        lambda: torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.2),
                                    torch.nn.Linear(8, 3)),
        torch.nn.CrossEntropyLoss(reduction="none"),
        lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        {"accuracy": sf.metrics.accuracy},
    )
    process = sf.learning.fed_avg(model, server_optimizer=optax.adam(0.05), batching=batching)
    return process.on(sf.Simulation(host=sf.Workers(1)))

batching = sf.Batching(size=4, drop_remainder=True)
draw = np.random.default_rng(0)
data = {f"client {i}": (draw.normal(size=(n, 4)).astype("f"), draw.integers(0, 3, n))
        for i, n in enumerate([9, 4, 17, 0, 6, 12])}
process = globals()[sys.argv[1]]()
def say(event):
    print("round", event.round, flush=True)
    time.sleep(0.01)
print("begin", flush=True)
history = sf.train(process, data, rounds=int(sys.argv[3]), clients_per_round=3, seed=2, checkpoint=sys.argv[2],
                   evaluate=data["client 2"], evaluate_every=7, callbacks=[say], progress=False)
leaves, _ = jax.tree_util.tree_flatten_with_path((history.state, dict(history.state.clients)))
digest = hashlib.blake2b(digest_size=16)
for path, leaf in leaves:
    digest.update(f"{tree.name(path)} {np.asarray(leaf).dtype}{np.shape(leaf)}".encode() + np.asarray(leaf).tobytes())
digest.update(json.dumps([history.metrics, history.evaluations], sort_keys=True).encode())
print("end", digest.hexdigest(), len(history.metrics), len(history.state.clients), flush=True)
"""


class Run:
    """The program, running; its lines come as they are printed."""

    def __init__(self, name, folder, environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, name, str(folder), str(ROUNDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines = queue.Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.put(line.split())
        self.lines.put(None)

    def until(self, wanted):
        """The last line that was printed when `wanted(line)` holds or the program ended."""
        last = None
        while (line := self.lines.get(timeout=240)) is not None:
            last = line
            if wanted(line):
                break
        return last

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.finish()

    def finish(self):
        self.reader.join()
        self.process.stdout.close()
        err = self.process.stderr.read()
        self.process.stderr.close()
        return err


def ended(name, folder, environment):
    run = Run(name, folder, environment)
    last = run.until(lambda line: line[0] == "end")
    run.process.wait()
    err = run.finish()
    assert last is not None, err
    assert last[0] == "end", err
    return last


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Compiled programs outlive each start: what takes time is what is tested."""
    cache = tmp_path_factory.mktemp("compiled")
    settings = {"JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    return {**os.environ, **settings, "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_the_final_bytes_of_a_program_that_was_killed(name, tmp_path, environment):
    """At random instants: between rounds, within one, while a state is saved, and while the program starts."""
    if name == "torch":
        pytest.importorskip("torch")
    expected = ended(name, tmp_path / "undisturbed", environment)
    assert expected[2:] == [str(ROUNDS), "6" if name == "scaffold" else "0"]  # rounds, clients with a memory
    draw, killed, folder = random.Random(name), 0, tmp_path / "killed"
    for i, instant in enumerate(sorted(draw.uniform(0, ROUNDS - 3) for _ in range(KILLS[name]))):
        run = Run(name, folder, environment)
        if i % 4 == 3:
            last = run.until(lambda line: line[0] == "begin")
            time.sleep(draw.uniform(0, 0.3))
        else:
            last = run.until(lambda line, instant=instant: line[0] == "round" and int(line[1]) + 1 >= instant)
            time.sleep(draw.uniform(0, 0.04))
        killed += run.process.poll() is None
        run.kill()
        assert last is not None
    assert killed >= KILLS[name] / 2
    print(f"{name}: killed {killed} times")
    assert ended(name, folder, environment) == expected
