"""Client work on Ray, with the few calls of Ray's stood in for: the numbers of our own workers, and tasks that die."""

import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf

DRAW = np.random.default_rng(0)
ROWS = {name: DRAW.normal(size=(n, 3)).astype("f") for name, n in {"a": 5, "b": 3, "empty": 0, "c": 8, "d": 2}.items()}


def plain(message, data, key, memory):
    return sf.Report({"update": sf.Contribution(message + data.mean(0), len(data))})


def once(run, host):
    def finalize(state, results, measured, key):
        return results["update"], {"client_work": {"clients": measured.num_clients}}

    phase = sf.Phase(lambda state, key: state, sf.HostWork(run), {"update": sf.aggregators.mean()}, finalize)
    process = sf.Process(sf.Round("by hand", lambda params, key: jnp.zeros(3), (phase,)))
    process = process.on(sf.Simulation(host=host))
    return process.next(process.initialize(seed=1), ROWS)


def test_ray_that_is_not_installed_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sf.MissingExtraError, match=r"pip install 'sumfold\[ray\]'"):
        sf.Ray()


class FakeRay(types.ModuleType):
    """The few calls that are made of Ray, run at once in this process."""

    def __init__(self):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayError=type("RayError", (Exception,), {}))
        self.crashed = type("WorkerCrashedError", (self.exceptions.RayError,), {})
        self.put_in, self.cancelled, self.begun, self.deaths = [], [], [], {}
        self.last_first = True

    def is_initialized(self):
        return bool(self.begun)

    def init(self, **options):
        self.begun.append(options)

    def cluster_resources(self):
        return {"CPU": 5.0}

    def put(self, value):
        self.put_in.append(value)
        return ("stored", len(self.put_in) - 1)

    def remote(self, function):
        def start(run, message, asked):
            stored = [self.put_in[run[1]], self.put_in[message[1]]]
            return (len(asked.data), lambda: function(*stored, asked))

        return types.SimpleNamespace(options=lambda **given: types.SimpleNamespace(remote=start))

    def wait(self, tasks, num_returns):
        ready = tasks[-num_returns:] if self.last_first else tasks[:num_returns]
        return ready, [task for task in tasks if task not in ready]

    def get(self, task):
        rows, run = task
        if self.deaths.get(rows, 0):
            self.deaths[rows] -= 1
            raise self.crashed("the process died")
        return run()

    def cancel(self, task, force):
        self.cancelled.append(task[0])


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", fake)
    return fake


def test_the_numbers_of_ray_are_those_of_workers(ray):
    expected, _ = once(plain, sf.Workers(2))
    state, metrics = once(plain, sf.Ray("auto", cpus=2))
    assert np.asarray(state.algorithm).tobytes() == np.asarray(expected.algorithm).tobytes()
    assert metrics["client_work"] == {"clients": 5}
    assert len(ray.put_in) == 2
    assert ray.begun[0]["address"] == "auto"


def test_a_task_of_ray_that_dies_is_started_once_more(ray):
    ray.deaths = {3: 1, 8: 2}
    _, metrics = once(plain, sf.Ray())
    why = "its task on Ray ended with WorkerCrashedError"
    assert metrics["client_work"] == {
        "clients": 4,
        "failed": {"c": f"{why}, twice"},
        "retried": {"b": why, "c": why},
    }


def test_an_error_in_the_round_cancels_the_tasks_of_ray(ray):
    ray.last_first = False
    with pytest.raises(sf.WorkError, match="SF-HOST-003"):
        once(lambda *given: None, sf.Ray(cpus=1))
    assert ray.cancelled
