"""Worker processes: the same bytes whatever their number, replaced when they die, and nothing left when they end."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.simulation import pipe, workers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need POSIX")

WORKERS = sf.Workers(2)
SIMULATION = sf.Simulation(host=WORKERS)
DRAW = np.random.default_rng(0)
ROWS = {name: DRAW.normal(size=(n, 3)).astype("f") for name, n in {"a": 5, "b": 3, "empty": 0, "c": 8, "d": 2}.items()}


def mean_of(run, **options):
    """The mean of what `run` gives; the state becomes it."""

    def finalize(state, results, measured, key):
        kept = jnp.where(jnp.isfinite(results["update"]).all(), results["update"], state)
        return kept, {"client_work": {"clients": measured.num_clients}}

    work = sf.HostWork(run, **options)
    phase = sf.Phase(lambda state, key: state, work, {"update": sf.aggregators.mean()}, finalize)
    return sf.Process(sf.Round("by hand", lambda params, key: jnp.zeros(3), (phase,)))


def report(value, weight=1.0):
    return sf.Report({"update": sf.Contribution(value, weight)})


def once(process, runtime=SIMULATION, data=ROWS, **options):
    process = process.on(runtime)
    return process.next(process.initialize(seed=1), data, **options)


def plain(message, data, key, memory):
    return report(message + data.mean(0), len(data))


def crew():
    return WORKERS.open()


# -- the description


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "2"], ids=str)
def test_numbers_of_processes_and_threads_are_checked(value):
    words = rf"Workers\(processes={re.escape(repr(value))}\); needed: a whole number of at least 1; try Workers\(2\)"
    with pytest.raises(sf.CompositionError, match=words) as caught:
        sf.Workers(value)
    assert caught.value.code == "SF-HOST-010"
    with pytest.raises(sf.CompositionError, match=r"Workers\(threads=.*SF-HOST-010"):
        sf.Workers(2, threads=value)


def test_one_crew_for_one_description():
    assert sf.Workers(2).open() is sf.Workers(2).open()
    assert sf.Workers(2) == WORKERS
    assert sf.Workers(2).open().size == 2


# -- the same bytes


def test_the_same_bytes_for_one_two_and_three_workers_and_loopback():
    """Clients end in another order than they began, for the first are the slowest."""

    def run(message, data, key, memory):
        time.sleep(0.2 if len(data) == 5 else 0.0)
        noise = key.generator().normal(size=3).astype("f")
        return report(message + data.mean(0) + noise, len(data))

    process, results = mean_of(run), []
    runtimes = [*(sf.Simulation(host=sf.Workers(n)) for n in (1, 2, 3)), sf.Loopback()]
    for runtime in runtimes:
        bound = process.on(runtime)
        state = bound.initialize(seed=5)
        for _ in range(2):
            state, _ = bound.next(state, ROWS)
        results.append(np.asarray(state.algorithm))
    for n in (1, 3):
        sf.Workers(n).close()
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    np.testing.assert_allclose(
        results[3], results[0], rtol=1e-6, atol=1e-7
    )  # other programs sum them, in the same order


def test_the_message_is_written_once_a_round_and_the_function_sent_once_a_worker(monkeypatch):
    written, sent = [], []
    monkeypatch.setattr(workers, "save_file", lambda *given: written.append(given[0]) or pipe.save_file(*given))
    monkeypatch.setattr(workers, "send", lambda *given: sent.append(given[1]) or pipe.send(*given))
    process = mean_of(lambda message, data, key, memory: report(message + data.mean(0))).on(SIMULATION)
    state, many = process.initialize(), dict.fromkeys(range(12), ROWS["a"])
    for _ in range(3):
        state, _ = process.next(state, many)
    jobs, clients = ([s for s in sent if s[0] == kind] for kind in ("job", "client"))
    assert len(written) == 3
    assert len(clients) == 36
    assert len(jobs) <= 3 * 2  # one worker may do a whole round
    assert sum(job[2] is not None for job in jobs) <= 2
    assert [path.exists() for path in written] == [False, False, True]
    assert not any(isinstance(leaf, np.ndarray) and leaf.size > 3 * 8 for s in jobs for leaf in s)


def test_workers_have_the_threads_they_are_given_and_the_environment_of_the_program(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "some-folder")

    def run(message, data, key, memory):
        told = [os.environ["OMP_NUM_THREADS"] == "3", os.environ["PYTHONPATH"] == "some-folder", os.getppid() == parent]
        return report(np.array(told, "f"))

    parent, three = os.getpid(), sf.Workers(1, threads=3)
    state, _ = once(mean_of(run), sf.Simulation(host=three))
    three.close()
    assert np.asarray(state.algorithm).tolist() == [1, 1, 1]


# -- what cannot be sent


def test_a_closure_that_cannot_be_pickled_runs_on_loopback_only(tmp_path):
    lock, file = threading.Lock(), (tmp_path / "out").open("w")

    def locked(message, data, key, memory):
        with lock:
            return report(data.mean(0))

    def writing(message, data, key, memory):
        file.write("x")
        return report(data.mean(0))

    class Stubborn:
        def __reduce__(self):
            raise KeyError("stays here")

    stubborn = Stubborn()
    for run in (locked, writing, lambda *given: report(np.zeros(3)) if stubborn else None):
        with pytest.raises(sf.WorkError, match=r"the function .* cannot be sent: .*run it on sf\.Loopback") as caught:
            once(mean_of(run))
        assert caught.value.code == "SF-HOST-005"
        assert int(once(mean_of(run), sf.Loopback()).state.round) == 1
    file.close()


def test_a_result_that_cannot_be_pickled():
    def run(message, data, key, memory):
        return {"lock": threading.Lock()}

    with pytest.raises(
        sf.WorkError, match=r"(?s)cannot be sent between processes:\nTraceback.*TypeError: cannot pickle"
    ) as e:
        once(mean_of(run, init=lambda task, key: report(jnp.zeros(3), jnp.float32(1))))
    assert e.value.code == "SF-HOST-005"
    assert int(once(mean_of(plain)).state.round) == 1


def test_a_module_that_fails_in_a_worker_is_told(tmp_path, monkeypatch):
    """Importable here by its entry in sys.modules, and there it raises."""
    (tmp_path / "only_here.py").write_text(
        "import os\nif 'SUMFOLD_HERE' not in os.environ: raise RuntimeError('not here')\n"
        "def run(message, data, key, memory): raise AssertionError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("SUMFOLD_HERE", "1")
    import only_here

    monkeypatch.delenv("SUMFOLD_HERE")
    fresh = sf.Workers(1, threads=2)
    try:
        with pytest.raises(sf.WorkError, match=r"RuntimeError: not here.*SF-HOST-005"):
            once(mean_of(only_here.run), sf.Simulation(host=fresh))
    finally:
        fresh.close()
        del sys.modules["only_here"]


def test_arrays_cross_as_they_are():
    bfloat16 = np.arange(6, dtype=jnp.bfloat16).reshape(2, 3)
    given = {
        "bfloat16": bfloat16,
        "scalar": np.float32(2),
        "zero-dimensional": np.array(3.0),
        "none": np.zeros((0, 4), "f"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "strided": np.arange(10)[::3],
        "bool": np.array([True, False]),
        "int4": np.arange(3).astype(jnp.int4),
    }
    here, there = Pipe()
    pipe.send(here, given)
    head, sizes = pipe.save_file(Path(crew().folder) / "test", given)
    for came in (pipe.receive(there), pipe.load_file(Path(crew().folder) / "test", head, sizes)):
        for name, array in given.items():
            assert came[name].dtype == array.dtype, name
            np.testing.assert_array_equal(np.asarray(came[name], "d"), np.asarray(array, "d"), err_msg=name)
    head, sizes = pipe.save_file(Path(crew().folder) / "test", {"nothing": ()})
    assert pipe.load_file(Path(crew().folder) / "test", head, sizes) == {"nothing": ()}
    here.close(), there.close()


def test_maps_of_files_are_sent_by_name_where_that_is_asked_for(tmp_path):
    whole = np.arange(600_000, dtype=np.float32).reshape(-1, 3)
    np.save(tmp_path / "whole.npy", whole)
    there = np.load(tmp_path / "whole.npy", mmap_mode="r")
    for given in (there, there[7:], np.asarray(there)[5:].reshape(-1)):
        head, buffers = pipe.packed(given)
        assert len(head) < 1_000
        assert sum(buffer.nbytes for buffer in buffers) == given.nbytes, "as every other array, and not in the pickle"
        head, sizes = pipe.save_file(tmp_path / "copy", given, by_file=True)
        assert not sizes
        came = pipe.load_file(tmp_path / "copy", head, sizes)
        np.testing.assert_array_equal(came, given)
        assert not came.flags.writeable


@pytest.mark.parametrize("kind", ["small", "in strides", "changed here alone", "another file by now", "no file by now"])
def test_other_maps_of_files_are_sent_as_bytes(tmp_path, kind):
    path = tmp_path / "whole.npy"
    np.save(path, np.arange(600_000, dtype=np.float32))
    given = np.load(path, mmap_mode="c" if kind == "changed here alone" else "r")
    if kind == "small":
        given = given[:1000]
    elif kind == "in strides":
        given = given[::2]
    elif kind == "changed here alone":
        given[0] = -1
    else:
        path.unlink()
        if kind == "another file by now":
            np.save(path, np.arange(600_000, dtype=np.float32)[::-1])
    head, sizes = pipe.save_file(tmp_path / "copy", given, by_file=True)
    assert sizes == [given.nbytes]
    np.testing.assert_array_equal(pipe.load_file(tmp_path / "copy", head, sizes), given)


def test_a_worker_keeps_a_bounded_number_of_functions():
    known = {}
    for i in range(40):
        pipe.remember(known, bytes([i]), i)
    assert len(known) <= 16
    assert bytes([39]) in known


# -- workers that die


def dies(marker, how, times=1):
    """A function that ends its process so many times at the client with three rows."""

    def run(message, data, key, memory):
        if len(data) == 3:
            for i in range(times):
                try:
                    with open(f"{marker}-{i}", "x"):
                        how()
                except FileExistsError:
                    continue
        noise = key.generator().normal(size=3)
        return report(message + data.mean(0) + noise, len(data))

    return run


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_replaced_and_its_client_asked_once_more(tmp_path, caplog):
    undisturbed, _ = once(mean_of(dies(tmp_path / "never", kill, 0)))
    process = mean_of(dies(tmp_path / "once", kill)).on(SIMULATION)
    with caplog.at_level("WARNING", "sumfold"):
        state, metrics = process.next(process.initialize(seed=1), ROWS)
    why = "its worker process was killed by SIGKILL (out of memory?)"
    assert metrics["client_work"] == {"clients": 5, "retried": {"b": why}}
    assert np.asarray(state.algorithm).tobytes() == np.asarray(undisturbed.algorithm).tobytes()
    assert "the client is asked again" in caplog.text
    _, metrics = process.next(state, ROWS)
    assert metrics["client_work"] == {"clients": 5}


@pytest.mark.parametrize(
    ("how", "why"),
    [
        (kill, "its worker process was killed by SIGKILL (out of memory?)"),
        (lambda: os._exit(3), "its worker process ended with exit code 3"),
        (os.abort, "its worker process was killed by SIGABRT"),
    ],
    ids=["kill", "exit", "abort"],
)
def test_a_client_whose_worker_dies_twice_has_failed(tmp_path, how, why):
    state, metrics = once(mean_of(dies(tmp_path / "twice", how, 2)))
    assert metrics["client_work"] == {"clients": 4, "failed": {"b": f"{why}, twice"}, "retried": {"b": why}}
    rest = {name: x for name, x in ROWS.items() if name != "b"}
    left_out, _ = once(mean_of(dies(tmp_path / "never", kill, 0)), data=rest)
    assert np.asarray(state.algorithm).tobytes() == np.asarray(left_out.algorithm).tobytes()


def test_all_clients_workers_die():
    with pytest.raises(
        sf.WorkError, match=r"client 'a': its worker process ended with exit code 7, twice.*SF-HOST-001"
    ):
        once(mean_of(lambda *given: os._exit(7)), clients=["a"])


def test_a_worker_killed_from_outside_in_the_middle_of_a_client(tmp_path):
    def run(message, data, key, memory):
        if len(data) == 8 and not marker.exists():
            marker.write_text(str(os.getpid()))
            time.sleep(600)
        return report(data.mean(0), len(data))

    marker = tmp_path / "pid"

    def from_outside():
        while not (marker.exists() and marker.read_text()):
            time.sleep(0.01)
        os.kill(int(marker.read_text()), signal.SIGKILL)

    killer = threading.Thread(target=from_outside, daemon=True)
    killer.start()
    state, metrics = once(mean_of(run))
    killer.join()
    assert list(metrics["client_work"]["retried"]) == ["c"]
    again, _ = once(mean_of(run))
    assert np.asarray(state.algorithm).tobytes() == np.asarray(again.algorithm).tobytes()


def test_idle_workers_killed_between_rounds_leave_no_note():
    process = mean_of(plain).on(SIMULATION)
    state, _ = process.next(process.initialize(), ROWS)
    before = [worker.process.pid for worker in crew().workers]
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    for worker in crew().workers:
        os.waitid(os.P_PID, worker.process.pid, os.WEXITED | os.WNOWAIT)
    state, metrics = process.next(state, ROWS)
    assert metrics["client_work"] == {"clients": 5}
    assert not {worker.process.pid for worker in crew().workers} & set(before)


def test_an_error_in_the_round_leaves_no_worker_in_the_middle_of_a_client():
    """The first result is unusable while another client would take minutes."""

    def run(message, data, key, memory):
        if len(data) == 3:
            time.sleep(600)
        return report(np.zeros(7))

    began = time.monotonic()
    with pytest.raises(sf.WorkError, match="SF-HOST-003"):
        once(mean_of(run))
    state, _ = once(mean_of(plain))
    assert time.monotonic() - began < 60
    assert int(state.round) == 1


def test_a_folder_without_room_is_left_for_another(monkeypatch):
    once(mean_of(plain))
    before, full = crew().folder, [OSError(28, "No space left on device")]
    monkeypatch.setattr(workers, "save_file", lambda *given: _raise(full.pop()) if full else pipe.save_file(*given))
    _, metrics = once(mean_of(plain))
    assert metrics["client_work"] == {"clients": 5}
    assert crew().folder != before
    assert not before.exists()
    told = [Path(f"/proc/{w.process.pid}/cmdline") for w in crew().workers]
    assert all(str(crew().folder) in path.read_text() for path in told if path.exists())


def _raise(error):
    raise error


# -- nothing is left


PROGRAM = """
import json, os, signal, sys, time
import numpy as np, sumfold as sf
def report(value):
    return sf.Report({"update": sf.Contribution(np.float32(value), 1.0)})
def run(message, data, key, memory):
    print("this is no result of the program")
    if data.sum() > 100: time.sleep(600)
    return report(data.sum())
phase = sf.Phase(lambda s, k: s, sf.HostWork(run), {"update": sf.aggregators.mean()},
                 lambda s, results, measured, k: (results["update"], {}))
process = sf.Process(sf.Round("program", lambda params, key: np.float32(0), (phase,)))
host = sf.Workers(2)
process = process.on(sf.Simulation(host=host))
def told():
    crew = host.open()
    print(json.dumps({"pids": [w.process.pid for w in crew.workers], "folder": str(crew.folder)}), flush=True)
def next_round(*values):
    state, _ = process.next(process.initialize(), [np.full(1, v, "f") for v in values])
    return float(state.algorithm)
"""


class Program:
    """A program of its own that tells its workers' process ids and their folder in its first line."""

    def __init__(self, text, tmp_path):
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        self.err = tmp_path / "err"
        with self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM + text],
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                env=environment,
                start_new_session=True,
            )

    def told(self):
        line = self.process.stdout.readline()
        assert line, self.err.read_text()
        self.pids, self.folder = (json.loads(line)[name] for name in ("pids", "folder"))

    def ended(self, seconds=60):
        late = threading.Timer(seconds, self.process.kill)
        late.start()
        with self.process.stdout:
            out = self.process.stdout.read()
        self.process.wait()
        late.cancel()
        return out, self.err.read_text()

    def check_nothing_left(self, seconds):
        until = time.monotonic() + seconds
        while [pid for pid in self.pids if running(pid)] or Path(self.folder).exists():
            assert time.monotonic() < until, f"left: {[p for p in self.pids if running(p)]}, {self.folder}"
            time.sleep(0.05)


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@needs_proc
def test_nothing_is_left_after_a_program_ends(tmp_path):
    program = Program("next_round(1, 3); told(); print(next_round(1, 3))", tmp_path)
    program.told()
    out, err = program.ended()
    assert (program.process.returncode, out) == (0, "2.0\n"), err
    program.check_nothing_left(0)
    assert "this is no result" in err
    assert "Warning" not in err


@needs_proc
def test_nothing_is_left_after_an_interrupt_in_the_middle_of_a_client(tmp_path):
    text = """
next_round(1, 3); told()
try:
    next_round(1, 1000)
except KeyboardInterrupt:
    print("interrupted")
print(next_round(1, 3))
"""
    program = Program(text, tmp_path)
    program.told()
    time.sleep(1.5)
    os.killpg(program.process.pid, signal.SIGINT)
    out, err = program.ended()
    assert (program.process.returncode, out) == (0, "interrupted\n2.0\n"), err
    program.check_nothing_left(0)
    assert "KeyboardInterrupt" not in err  # of a worker that was interrupted too


@needs_proc
def test_an_interrupt_while_workers_start_is_the_programs_alone(tmp_path):
    text = """
import threading
host.open().load(run, np.float32(0))
worker_class = sys.modules["sumfold.simulation.workers"]._Worker
begin = worker_class.__init__
def begun(self, *given):
    begin(self, *given)
    if not first:
        first.append(self)
        print(json.dumps({"pids": [self.process.pid], "folder": str(host.open().folder)}), flush=True)
first = []
worker_class.__init__ = begun
try:
    next_round(1, 3)
except KeyboardInterrupt:
    print("interrupted")
print(next_round(1, 3))
"""
    program = Program(text, tmp_path)
    program.told()
    os.killpg(program.process.pid, signal.SIGINT)
    out, err = program.ended()
    assert out in ("interrupted\n2.0\n", "2.0\n"), err
    assert "KeyboardInterrupt" not in err
    program.check_nothing_left(20)  # one that was being made is nobody's: it ends when it has started


@needs_proc
@pytest.mark.parametrize("busy", [True, False], ids=["busy", "idle"])
def test_workers_end_with_a_program_that_is_killed(tmp_path, busy):
    program = Program(f"next_round(1, 3); told(); {'next_round(1, 1000)' if busy else 'time.sleep(600)'}", tmp_path)
    program.told()
    time.sleep(1.0)
    assert all(map(running, program.pids))
    assert Path(program.folder).exists()
    program.process.kill()
    program.process.wait()
    program.check_nothing_left(5)
    program.process.stdout.close()
    assert not list(tmp_path.glob("sumfold-*"))


@needs_proc
@pytest.mark.filterwarnings("ignore")
def test_a_fork_runs_rounds_of_its_own(tmp_path):
    text = """
import warnings; warnings.simplefilter("ignore")
next_round(1, 3); told()
child = os.fork()
if child == 0:
    mine = next_round(5, 7)
    told()
    print(mine, flush=True)
    os._exit(0)
os.waitpid(child, 0)
print(next_round(1, 3))
"""
    program = Program(text, tmp_path)
    program.told()
    of_parent = program.pids, program.folder
    program.told()
    out, err = program.ended()
    assert out == "6.0\n2.0\n", err
    assert not set(program.pids) & set(of_parent[0])
    program.check_nothing_left(5)
    program.pids, program.folder = of_parent
    program.check_nothing_left(0)
