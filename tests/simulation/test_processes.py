"""Many processes: how they find each other and part, what they compute together, and what happens when one is lost."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np
import pytest

import sumfold as sf
from sumfold.core.cohort import Cohort
from sumfold.simulation import hired
from sumfold.simulation.gang import Alone, gang_of
from sumfold.simulation.hired import first_cause
from sumfold.simulation.launched import Numbered, launched
from sumfold.simulation.rollcall import answer

ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}

# What every process runs, and this one as well.
WORK = """
import jax, jax.numpy as jnp, numpy as np, optax
import sumfold as sf

draw = np.random.default_rng(0)
rows = [1, 50, 7, 8, 23, 2, 41, 14, 5, 0, 33]
fed = sf.Federation.from_clients(
    {f"c{i}": (draw.normal(size=(n, 3)).astype("f4"), draw.normal(size=n).astype("f4")) for i, n in enumerate(rows)}
)
model = sf.models.from_functions(
    lambda key: {"w": jnp.zeros(3), "b": jnp.zeros(())},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
)
batching = sf.Batching(size=7, epochs=2)
scaffold = sf.learning.scaffold(model, optax.sgd(0.05), optax.sgd(1.0), batching=batching)
cohorts = [list(fed.ids)[:7], list(fed.ids)[3:], list(fed.ids)[::3]]

def median(message, data, key, memory):
    x, y = data
    return sf.Report({"m": sf.Contribution(np.median(y).astype("f4"), weight=1.0)}, {}, memory + 1)

medians = sf.Round(
    "medians",
    lambda params, key: np.float32(0),
    (
        sf.Phase(
            lambda state, key: state,
            sf.HostWork(median, memory=lambda message: np.int32(0)),
            {"m": sf.aggregators.mean()},
            lambda state, results, measured, key: (results["m"], {}),
        ),
    ),
)

def middle(state, stacked, key):
    heard = lambda leaf: stacked.present.reshape(-1, *[1] * (leaf.ndim - 1))
    return jax.tree.map(lambda v: jnp.nanmedian(jnp.where(heard(v), v, jnp.nan), axis=0), stacked.values), state, {}

robust = sf.Stage(lambda public, memory, given, key: (given.value, memory), middle, group=sf.core.stack, name="median")
stacked = sf.learning.fed_avg(model, optax.sgd(0.05), batching=batching, aggregator=robust)

def trained(process):
    state = process.initialize(seed=3)
    for cohort in cohorts:
        state, metrics = process.next(state, fed, clients=cohort)
    return state
"""

TOGETHER = """
import json, sys
import sumfold as sf
address, rank, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
runtime = sf.Processes(2, coordinator=address, rank=rank, deadline=60, devices=2, streams=1)
from work import *

ours = trained(scaffold.on(runtime))
pinned = trained(scaffold.on(sf.Processes(devices=2, streams=1, deterministic=True)))
hosted = trained(sf.Process(medians).on(sf.Processes(host=sf.Workers(1))))
medians_of_all = trained(stacked.on(runtime))
sf.save(f"{folder}/state-{rank}", {"ours": ours, "pinned": pinned, "hosted": hosted, "stacked": medians_of_all})

gang = runtime.gang
ragged = gang.gathered({"a": np.arange(rank + 1), "b": jnp.float32(rank), "none": np.zeros((0, 2))})
parts = {"w": jnp.full(3, 0.5) * (rank + 1), "n": np.int32([2**31 - 1 - rank, -5]), "none": np.zeros((0, 2), "f4")}
summed = gang.summed({**parts, "half": jnp.bfloat16([1.5]), "words": np.uint64([2**63 + 2**40 * rank])})
ragged_sum = []
for shape in (rank + 1, 2):
    try:
        ragged_sum.append(gang.summed(np.ones(shape, "f4")).tolist())
    except sf.ProcessError as error:
        ragged_sum.append("disagree on what they sum: process 0 has 1 arrays of 1 numbers" in str(error))
text = gang._network.sum.lower(jax.ShapeDtypeStruct((2, 8), "f4", sharding=gang._network.apart)).compile().as_text()
apart = []
for rates in ((0.1 + 0.1 * rank, 1.0), (0.1, 1.0 + rank)):  # programs that the state does not tell apart
    process = sf.learning.fed_avg(model, *map(optax.sgd, rates), batching=batching).on(runtime)
    try:
        process.next(process.initialize(), fed)
    except sf.ProcessError as error:
        apart.append(str(error).partition(": process 0 has ")[0])
found = {
    "apart": apart,
    "service": jax.distributed.is_initialized(),
    "summed": [[str(leaf.dtype), leaf.astype(leaf.dtype).tolist()] for leaf in jax.tree.leaves(summed)],
    "ragged sum": ragged_sum,
    "collectives": [text.count(f" {name}(") for name in ("all-reduce", "all-gather")],
    "devices": len(jax.devices()),
    "runtime": repr(runtime),
    "ragged": [[tree["a"].tolist(), float(tree["b"])] for tree in ragged],
    "told": gang.told(b"news" if rank == 0 else b"").decode(),
}
print(json.dumps(found))
"""

# A script without a main guard, which starts its own processes; it comes from standard input.
SCRIPT = """
import os, signal, sys
sys.path.insert(0, os.getcwd())
from work import *

runtime = sf.Processes(2, deterministic=True)
process = scaffold.on(runtime)
state = trained(process)
members = process._run.hired.members
after, _ = process.next(state, fed)
os.kill(members[1].process.pid, signal.SIGKILL)
again, _ = process.next(state, fed)
same = [np.array_equal(a, b) for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(again), strict=True)]
assert len(again.clients) == 11 and all(same)
sf.save("state", state)

ones = lambda n: (np.ones((n, 3), "f4"), np.full(n, np.nan if n == 23 else 1, "f4"))
poisoned = {f"c{i}": ones(n) for i, n in enumerate(rows)}
profiles = [
    sf.train(scaffold.on(on), poisoned, rounds=2, progress=False).profile() for on in (runtime, sf.Simulation())
]
print("steps", *[profile.steps for profile in profiles])
assert profiles[0].executables + profiles[0].cached > 1 and profiles[0].bytes_per_round > 0, profiles[0]

def refused(process):
    try:
        process.next(process.initialize(), fed)
    except Exception as error:
        print(type(error).__name__, error, *getattr(error, "__notes__", ()))

class Other:  # comes out as something else
    rate = 0.5
    def __reduce__(self):
        return (Other.other, ())
    def other():
        one = Other()
        one.rate = 0.25
        return one

def of(predict):
    loss = lambda outputs, y: (outputs - y) ** 2
    return sf.learning.fed_avg(sf.models.from_functions(lambda key: jnp.zeros(3), predict, loss), optax.sgd(0.1))

other, lock = Other(), __import__("threading").Lock()
refused(of(lambda w, x: x @ w * (lock is not None)).on(runtime))
refused(of(lambda w, x: x @ w * other.rate).on(runtime))
"""

# A job of the command line; in the evaluation after one round it may kill its own process, once.
JOB = """
import os, pathlib, signal
import jax.numpy as jnp, numpy as np, optax, sumfold as sf

def build(mark=None, victim=1):
    model = sf.models.from_functions(lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
    draw = np.random.default_rng(0)
    clients = {i: (draw.normal(size=(9 + i, 3)), draw.normal(size=9 + i)) for i in range(8)}

    def test(weights):
        test.calls += 1
        if mark and test.calls == 3 and int(os.environ["SUMFOLD_RANK"]) == victim and not os.path.exists(mark):
            pathlib.Path(mark).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return {"first": float(weights[0])}

    test.calls = 0
    return sf.learning.fed_avg(model, optax.sgd(0.1)), clients, test
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# -- together


@pytest.fixture(scope="module")
def alone() -> dict:
    """What one process computes."""
    names: dict = {}
    exec(compile(WORK, "work.py", "exec"), names)
    trained, scaffold = names["trained"], names["scaffold"]
    return {
        "ours": trained(scaffold),
        "pinned": trained(scaffold.on(sf.Simulation(deterministic=True))),
        "hosted": trained(sf.Process(names["medians"])),
        "stacked": trained(names["stacked"]),
    }


def test_two_processes_of_two_devices_compute_what_one_does(tmp_path, alone) -> None:
    (tmp_path / "work.py").write_text(WORK, "utf-8")
    (tmp_path / "together.py").write_text(TOGETHER, "utf-8")
    address = f"127.0.0.1:{free_port()}"
    options = {"env": ENVIRONMENT, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [
        subprocess.Popen([sys.executable, tmp_path / "together.py", address, str(rank), tmp_path], **options)
        for rank in range(2)
    ]
    said = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], "\n".join(errors for _, errors in said)
    assert said[0][0] == said[1][0], "standard output holds the program's own words alone"
    assert json.loads(said[0][0]) == {
        "apart": [f"the processes disagree on the {who}'s step" for who in ("client", "server")],
        "service": False,  # whose heartbeat would end all of them when one is stopped for a while
        "summed": [
            ["bfloat16", [3.0]],
            ["int32", [-3, -10]],  # as int32 adds: 2 · (2³¹ − 1) − 1 wraps around
            ["float32", []],
            ["float32", [1.5, 1.5, 1.5]],
            ["uint64", [2**40]],
        ],
        "ragged sum": [True, [2.0, 2.0]],
        "collectives": [1, 0],
        "devices": 4,
        "runtime": "Processes(2)",
        "ragged": [[[0], 0.0], [[0, 1], 1.0]],
        "told": "news",
    }
    assert (tmp_path / "state-0").read_bytes() == (tmp_path / "state-1").read_bytes()
    found = sf.load(tmp_path / "state-0")
    for name, state in alone.items():
        assert sorted(found[name].clients) == sorted(state.clients), name
        tolerance = {"rtol": 0, "atol": 2e-6 if name == "ours" else 0}
        for a, b in zip(jax.tree.leaves(found[name]), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a, b, **tolerance, err_msg=name)
    assert len(found["ours"].clients) == 11


def test_a_script_starts_processes_of_its_own(tmp_path, alone) -> None:
    (tmp_path / "work.py").write_text(WORK, "utf-8")
    ended = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    found = sf.load(tmp_path / "state")
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone["pinned"]), strict=True):
        np.testing.assert_array_equal(a, b)
    assert "process 1 was killed by SIGKILL (out of memory?); the round is computed again" in ended.stderr
    assert "the algorithm cannot be sent to other processes: it computes something else there" in ended.stdout
    assert "cannot pickle '_thread.lock' object" in ended.stdout
    steps = next(line for line in ended.stdout.splitlines() if line.startswith("steps ")).split()
    assert steps[1] == steps[2]
    assert int(steps[1]) > 0
    assert ended.stdout.count("SF-PROC-006") == 2


@pytest.mark.parametrize(("size", "told"), [(256 << 20, False), ((256 << 20) + 1, True)])
def test_an_algorithm_that_closes_over_data_is_told_of(monkeypatch, caplog, size, told) -> None:
    class Long(bytes):  # and nothing to hold
        __len__ = lambda self: size

    monkeypatch.setattr(hired, "as_bytes", lambda round: Long())
    monkeypatch.setattr(hired, "program", lambda round, state, data: "")
    fed = sf.Federation.from_clients({"a": (np.ones((3, 2), np.float32), np.ones(3, np.float32))})
    process = sf.Process(sf.Round("nothing", lambda params, key: np.float32(0), ()))
    run = hired.Hired(2, {}, 1.0).bind(process.round)  # no process is started
    run._packed(process.initialize(), Cohort(fed, np.zeros(1, np.int64)))
    assert ("the algorithm takes 256 MiB" in caplog.text) == told
    assert ("does a function of it close over data?" in caplog.text) == told


def test_the_first_cause_of_several_failures() -> None:
    told, own = sf.ProcessError("SF-PROC-022", "process 1 failed", "", ""), LookupError("no such column")
    found = first_cause([(0, told, "…"), (1, own, "line 7")])
    assert found is own
    assert own.__notes__ == ["in process 1:\nline 7"]
    unsent = first_cause([(0, told, "…"), (1, None, "line 8")])
    assert "process 1 failed:\nline 8; needed" in str(unsent)
    assert unsent.code == "SF-PROC-023"


def simulate(*words: object, folder: Path, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sumfold", "simulate", "job.py", "--json", "--rounds", "4", *map(str, words)]
    return subprocess.run(
        command,
        cwd=folder,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_killed_process_changes_no_byte(tmp_path) -> None:
    (tmp_path / "job.py").write_text(JOB, "utf-8")
    calm = simulate("--processes", 2, "--out", "calm", folder=tmp_path)
    assert calm.returncode == 0, calm.stderr
    assert json.loads(calm.stdout)["rounds"] == 4
    words = ("--processes", 2, "--checkpoint", "kept", "--out", "rough", "--set", "mark=killed")
    rough = simulate(*words, folder=tmp_path)
    assert rough.returncode == 0, rough.stderr
    assert "process 1 was killed by SIGKILL" in rough.stderr
    assert "starting again with 2 processes after round 3" in rough.stderr
    assert json.loads(rough.stdout)["rounds"] == 4
    for name in ("weights.safetensors", "history.json"):
        assert (tmp_path / "calm" / name).read_bytes() == (tmp_path / "rough" / name).read_bytes(), name
    entries = [json.loads(line)["round"] for line in (tmp_path / "kept/history.jsonl").read_text().splitlines()]
    assert entries == [0, 1, 2, 3]


def test_a_process_that_fails_ends_all_and_is_heard(tmp_path) -> None:
    (tmp_path / "job.py").write_text(JOB.replace("os.kill(", "raise ValueError('a hole') or os.kill("), "utf-8")
    failed = simulate("--processes", 2, "--set", "mark=hole", folder=tmp_path)
    assert failed.returncode == 1
    assert "job.py failed: ValueError: a hole" in failed.stderr
    assert "process 1" in json.loads(failed.stdout)["error"]["message"]


def test_processes_end_with_the_program_that_started_them(tmp_path) -> None:
    child = "from sumfold.simulation.supervisor import watch_parent as w; import time; w(); print('up', flush=True); "
    parent = (
        "import sys, time; from sumfold.simulation.supervisor import Child; "
        f"one = Child([sys.executable, '-c', {child + 'time.sleep(100)'!r}], {{}}, shown=True, keep=False); "
        "print(one.process.pid, flush=True); time.sleep(100)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as supervisor:
        lines = sorted([supervisor.stdout.readline(), supervisor.stdout.readline()])
        assert lines[1] == "up\n"
        supervisor.kill()
        number, until = int(lines[0]), time.monotonic() + 10
        while Path(f"/proc/{number}/cmdline").exists() and Path(f"/proc/{number}/cmdline").read_bytes():
            assert time.monotonic() < until, "it outlived its parent"
            time.sleep(0.05)


# -- who this process is


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4"}, None),  # the batch script, not one of its tasks
        (
            {"SLURM_JOB_ID": "5", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}
            | {"SLURM_STEP_NODELIST": "gpu[07,09-11],cpu1"},
            Numbered(2, 4, 0, "gpu07:61445"),
        ),
        (
            {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"},
            Numbered(1, 2, 1, None),
        ),
        ({"PMI_RANK": "0", "PMI_SIZE": "3"}, Numbered(0, 3, None, None)),
        (
            {"SUMFOLD_RANK": "1", "SUMFOLD_PROCESSES": "2", "SUMFOLD_COORDINATOR": "h:1", "PMI_RANK": "0"},
            Numbered(1, 2, None, "h:1"),
        ),
    ],
    ids=["nobody", "batch script", "slurm", "open mpi", "mpich", "sumfold"],
)
def test_launchers_number_their_processes(environment, expected) -> None:
    assert launched(environment) == expected


def test_mpi_on_one_machine_agrees_on_an_address() -> None:
    given = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-7@1"}
    found = [launched({**given, "OMPI_COMM_WORLD_RANK": str(rank)}) for rank in range(2)]
    assert found[0].coordinator == found[1].coordinator
    assert found[0].coordinator.startswith("127.0.0.1:6")


def test_alone() -> None:
    runtime = sf.Processes(1)
    assert isinstance(runtime.gang, Alone)
    assert gang_of(sf.Simulation()).size == 1
    assert gang_of(runtime).gathered({"a": 1}) == [{"a": 1}]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ({"processes": 0}, "SF-PROC-001", "processes as a whole number of at least 1"),
        ({"processes": 2, "rank": 2}, "SF-PROC-001", "a whole number from 0, less than processes"),
        ({"coordinator": "node1"}, "SF-PROC-001", "'host:port'"),
        ({"deadline": 0}, "SF-PROC-001", "a number of seconds above 0"),
        ({"rank": 1}, "SF-PROC-001", "processes and coordinator too"),
        ({"devices": 99, "processes": 1, "lanes": "x"}, "SF-SIM-001", "lanes"),
        ({}, "SF-PROC-003", "write sf.Processes(2), or start it as: sumfold simulate job.py --processes 2"),
    ],
    ids=["processes", "rank", "coordinator", "deadline", "rank alone", "lanes", "no launcher"],
)
def test_options_that_cannot_be(options, code, said) -> None:
    with pytest.raises(sf.CompositionError) as info:
        sf.Processes(**options)
    assert info.value.code == code
    assert said in str(info.value)


def test_an_option_that_there_is_not() -> None:
    with pytest.raises(TypeError, match=r"Processes\(\) got an unexpected keyword argument 'foo'"):
        sf.Processes(2, foo=1)


def test_jax_must_not_have_been_used_before() -> None:
    address, said = f"127.0.0.1:{free_port()}", []
    hello = {"cores": 1, "sumfold": version("sumfold"), "jax": jax.__version__}
    jax.devices()

    def other():
        roll, _ = answer(address, 1, 2, hello, 10.0)
        with pytest.raises(sf.ProcessError) as info:
            roll.meet({"kind": "facts"})
        roll.close()
        said.append(str(info.value))

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(sf.ProcessError, match=r"sf\.Processes\(\) as the first thing") as info:
        sf.Processes(2, coordinator=address, rank=0, deadline=10)
    thread.join(timeout=20)
    assert info.value.code == "SF-PROC-002"
    assert "process 0 failed: ProcessError: JAX was used before" in said[0]


def test_another_number_than_the_launcher_started(monkeypatch) -> None:
    monkeypatch.setenv("SUMFOLD_RANK", "0")
    monkeypatch.setenv("SUMFOLD_PROCESSES", "3")
    with pytest.raises(sf.CompositionError, match=r"Processes\(2\) among 3 processes") as info:
        sf.Processes(2)
    assert info.value.code == "SF-PROC-005"
    with pytest.raises(sf.CompositionError, match="nothing that says where process 0 is") as info:
        sf.Processes(3)
    assert info.value.code == "SF-PROC-004"
