"""Host work on Loopback: in this process, through the real bytes, with a plan that holds no step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.client.runner import Runner
from sumfold.wire import codec
from sumfold.wire.messages import Assignment, PlanManifest

LOOPBACK = sf.Loopback()
ROWS = {"a": np.full((2, 3), 1, "f"), "b": np.full((4, 3), 2, "f"), "empty": np.zeros((0, 3), "f")}


def mean_of(run, aggregate=None, **options):
    def finalize(state, results, measured, key):
        kept = jnp.where(jnp.isfinite(results["update"]).all(), results["update"], state)
        return kept, {"client_work": {"sums": measured.sums, "clients": measured.num_clients}}

    work = sf.HostWork(run, **options)
    aggregate = {"update": aggregate or sf.aggregators.mean()}
    phase = sf.Phase(lambda state, key: state, work, aggregate, finalize)
    return sf.Process(sf.Round("by hand", lambda params, key: jnp.zeros(3), (phase,))).on(LOOPBACK)


def test_everything_crosses_as_bytes_and_the_plan_has_no_step(monkeypatch):
    """The function sees what was decoded, not what the server holds."""
    plans, assigned, reports = [], [], []
    begin, run_one = Runner.__init__, Runner.run

    def loaded(self, plan):
        plans.append(codec.decode(plan, PlanManifest, lambda _: ())[0])
        begin(self, plan)

    def ran(self, assignment, *args, **kwargs):
        answer = run_one(self, assignment, *args, **kwargs)
        assigned.append(assignment), reports.append(answer.report)
        return answer

    monkeypatch.setattr(Runner, "__init__", loaded)
    monkeypatch.setattr(Runner, "run", ran)
    given = []

    def run(message, data, key, memory):
        given.append((message, key))
        return sf.Report({"update": sf.Contribution(message + data.mean(0), len(data))}, {"rows": len(data)})

    process = mean_of(run)
    state, metrics = process.next(process.initialize(seed=9), ROWS)
    np.testing.assert_allclose(state.algorithm, (2 * 1 + 4 * 2) / 6, rtol=1e-6)
    assert metrics["client_work"] == {"sums": {"rows": 6}, "clients": 3}
    (plan,) = plans
    assert plan.host
    assert sorted(plan.programs) == ["finish", "fresh", "init"]
    assert plan.batch == ()
    assert [type(message) for message, _ in given] == [np.ndarray] * 3  # the first client twice: it said the shapes
    heads = [codec.decode(sent, Assignment, lambda _: plan.briefing)[0] for sent in assigned]
    assert {head.client for head in heads} == {sf.keys.code(client) for client in ROWS}
    assert {key.client for _, key in given} == {sf.keys.code("a"), sf.keys.code("b")}
    assert all(key.seed == 9 for _, key in given)
    # The bytes of a report do not grow with the rows.
    assert len({len(report) for report in reports}) == 1


def test_the_rehearsal_skips_clients_that_fail_and_happens_once():
    calls = []

    def run(message, data, key, memory):
        calls.append((key.round, len(data)))
        if len(data) == 2:
            raise ValueError("never")
        return sf.Report({"update": sf.Contribution(data.mean(0), 1.0)}, {"extra": np.ones(2)})

    process = mean_of(run)
    state, metrics = process.next(process.initialize(), ROWS)
    assert metrics["client_work"]["failed"] == {"a": "ValueError: never"}
    assert calls == [(0, 2), (0, 4), (0, 2), (0, 4)]
    state, metrics = process.next(state, ROWS)
    assert calls[4:] == [(1, 2), (1, 4)]
    assert metrics["client_work"]["sums"] == {"extra": [1, 1]}


def test_a_round_before_anybody_had_rows():
    """Shapes come from the message, until a client says more."""

    def run(message, data, key, memory):
        return sf.Report({"update": sf.Contribution(data.mean(0), 1.0)}, {"rows": len(data)})

    process = mean_of(run)
    state, metrics = process.next(process.initialize(), ROWS, clients=["empty"])
    assert metrics["client_work"] == {"sums": (), "clients": 1}
    state, metrics = process.next(state, ROWS, clients=["b"])
    assert metrics["client_work"] == {"sums": {"rows": 4}, "clients": 1}
    assert np.asarray(state.algorithm).tolist() == [2, 2, 2]


def test_a_stage_with_memory_at_the_client():
    """Error feedback beside host work: what a client owes is kept for it, and grows."""

    def encode(public, memory, given, key):
        owed = given.value + memory
        sent = jnp.where(jnp.abs(owed) >= jnp.abs(owed).max(), owed, 0.0)
        return sf.Contribution(sent, given.weight), owed - sent

    stage = sf.Stage(encode, lambda s, t, key: (t, s, {}), memory=lambda a: jnp.zeros(a.shape), group=None)

    def run(message, data, key, memory):
        return sf.Report({"update": sf.Contribution(np.array([1, 2, 4], "f"), 1.0)})

    process = mean_of(run, sf.chain(stage, sf.aggregators.mean()))
    state, seen = process.initialize(), []
    for _ in range(2):
        state, _ = process.next(state, ROWS, clients=["a"])
        seen.append(np.asarray(state.algorithm).tolist())
    assert seen == [[0, 0, 4], [0, 4, 4]]
    assert np.asarray(jax.tree.leaves(state.clients["a"])[0]).tolist() == [2, 0, 0]


def test_an_interrupt_is_the_programs():
    def run(message, data, key, memory):
        raise KeyboardInterrupt

    process = mean_of(run)
    state = process.initialize()
    with pytest.raises(KeyboardInterrupt):
        process.next(state, ROWS)


def test_a_state_moves_between_the_runtimes_with_its_memory():
    def run(message, data, key, memory):
        return sf.Report({"update": sf.Contribution(message + memory, 1.0)}, memory=memory + len(data))

    here = mean_of(run, memory=lambda message: jnp.zeros(3))
    there = here.on(sf.Simulation(host=sf.Workers(1)))
    stayed = moved = here.initialize()
    for number in range(4):
        stayed, _ = here.next(stayed, ROWS)
        moved, _ = (there if number % 2 else here).next(moved, ROWS)
    for a, b in zip(jax.tree.leaves(stayed), jax.tree.leaves(moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert float(stayed.algorithm[0]) > 0
