"""Jobs to simulate, and one short demo that all tests look at."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sumfold.cli import hospitals
from sumfold.cli.main import app

JOB = """
import jax.numpy as jnp, numpy as np, optax, sumfold as sf

print("the job's own print")

def build(learning_rate=0.1, clients: int = 3):
    model = sf.models.from_functions(
        lambda key: jnp.float32(0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
    )
    x = np.ones(2, np.float32)
    process = sf.learning.fed_avg(model, optax.sgd(learning_rate))
    return process, {str(i): (x, 2 * x) for i in range(clients)}, (x, 2 * x)

def needs(data, more=1): ...
def number(): return 3
def pair(): return 3, []
def crash(): return 1 / 0
def leave(): raise SystemExit(0)

def words():
    process, _, _ = build()
    return process, [(np.ones(1), np.array(["ill"]))]

def silly():
    return sf.learning.fed_avg(build()[0].model, "sgd"), []

def late():
    def loss(outputs, y):
        raise RuntimeError("only in training")
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, loss)
    return sf.learning.fed_avg(model, optax.sgd(0.1)), [(np.ones(1), np.ones(1))]
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.py"
    path.write_text(JOB, "utf-8")
    return path


@pytest.fixture(scope="session")
def experiment() -> hospitals.Experiment:
    return hospitals.run(seeds=2, rounds=3)


@pytest.fixture
def sumfold() -> Callable[..., Result]:
    """The command line in this process."""
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words], prog_name="sumfold")


def program(*words: object, folder: Path, **options: object) -> subprocess.Popen:
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "sumfold", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env={**os.environ, "COLUMNS": "100"}, **pipes, **options)
