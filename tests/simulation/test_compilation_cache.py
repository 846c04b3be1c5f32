"""Compiled programs on disk: what the second start finds, and what the folder may not do."""

import json
import os
import subprocess
import sys

import pytest

from sumfold.simulation import compilation_cache
from sumfold.simulation.compilation_cache import folder

PROGRAM = """
import collections, json, logging, warnings
logging.basicConfig(level=logging.WARNING)
warnings.simplefilter("error")
import jax, jax.numpy as jnp, numpy as np, optax, sumfold as sf
events = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **about: events.update([event.rpartition("/")[2]]))
compiled = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: compiled.append(about["fun_name"]) if "backend_compile" in event else None
)
model = sf.models.from_functions(lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2)
process = sf.learning.fed_avg(model, optax.sgd(0.1))
state = process.initialize()
process._run  # from here on programs are kept
events.clear()
compiled.clear()
x = np.ones((5, 3), np.float32)
state, _ = process.next(state, {"a": (x, x[:, 0]), "b": (x[:2], x[:2, 1])})
told = {"programs": len(compiled), "found": events["cache_hits"], "written": events["cache_misses"],
        "weights": np.asarray(process.get_model_weights(state)).tolist(),
        "folder": jax.config.jax_compilation_cache_dir}
"""

TRIAL = """
init = lambda key: {"a": jnp.zeros((500, 4)), "b": jnp.zeros(4)}
predict = lambda w, x: jax.nn.relu(x @ w["a"]) @ w["b"]  # a function with a derivative of its own has an address
model = sf.models.from_functions(init, predict, lambda outputs, y: (outputs - y) ** 2)
process = sf.learning.fed_avg(model, optax.adam(0.1), batching=sf.Batching(size=2)).on(sf.Simulation(streams=1))
process.next(process.initialize(), {i: (np.ones((3, 500), np.float32), np.ones(3, np.float32)) for i in range(64)})
told |= process._run.chosen()
"""


def start(more="", **environment):
    clean = {k: v for k, v in os.environ.items() if "CACHE" not in k and k != "XLA_FLAGS"}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM + more + "print(json.dumps(told))"],
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout), run.stderr


def test_the_second_start_compiles_nothing_of_the_round(tmp_path):
    home = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "1"}
    first, said = start(TRIAL, **home)
    second, _ = start(TRIAL, **home | {"PYTHONHASHSEED": "2"})
    assert said == ""
    assert first["folder"].startswith(str(tmp_path / "sumfold" / "jax"))
    assert os.stat(first["folder"]).st_mode & 0o077 == 0, "what is run belongs to the user alone"
    assert first["written"] == first["programs"] > 0 == first["found"]
    assert second["found"] == second["programs"] == first["programs"]
    assert second["weights"] == first["weights"]
    assert second["why"] == f"as measured before: {first['why']}"
    assert second["lanes"] == first["lanes"]


def test_a_folder_that_cannot_be_written_only_warns(tmp_path):
    (tmp_path / "file").write_text("no folder")
    ran, said = start(SUMFOLD_COMPILATION_CACHE=str(tmp_path / "file"))
    assert ran["folder"] is None
    assert ran["programs"] > 0
    assert "no compilation cache in" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"XDG_CACHE_HOME": "/caches"}, "/caches/sumfold/jax"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/me"}, "/me/.cache/sumfold/jax"),
        ({"SUMFOLD_COMPILATION_CACHE": "~/here", "HOME": "/me"}, "/me/here"),
        ({"SUMFOLD_COMPILATION_CACHE": "OFF"}, None),
    ],
    ids=["standard", "relative", "chosen", "off"],
)
def test_where_programs_are_kept(monkeypatch, environment, expected):
    for name in ("XDG_CACHE_HOME", "SUMFOLD_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (None if folder() is None else str(folder())) == expected


def test_a_cache_that_the_user_configured_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("SUMFOLD_COMPILATION_CACHE", str(tmp_path / "unused"))
    compilation_cache.switch_on.cache_clear()
    assert compilation_cache.switch_on() is None, "these tests have one of their own"
    assert not (tmp_path / "unused").exists()


def test_the_entries_used_least_recently_go_once_a_day(tmp_path):
    machine = tmp_path / "machine"
    machine.mkdir()
    for day in range(4):
        entry = machine / f"program-{day}"
        entry.write_bytes(bytes(100))
        os.utime(entry, (1000 * day, 1000 * (3 - day)))
    os.utime(machine / "program-0", (9000, 0))  # written first, and used last
    compilation_cache._sweep(tmp_path, limit=200)
    left = sorted(path.name for path in machine.iterdir())
    assert left == ["program-0", "program-3"]
    compilation_cache._sweep(tmp_path, limit=0)
    assert sorted(path.name for path in machine.iterdir()) == left, "not twice a day"
    compilation_cache._sweep(tmp_path, limit=0, now=(tmp_path / "swept").stat().st_mtime + 100_000)
    assert not list(machine.iterdir())
