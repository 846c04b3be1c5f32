"""Rounds fused into stretches, and rounds planned ahead: the same numbers, and fewer calls."""

import collections
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core import Contribution, Stage
from sumfold.learning.callbacks import EarlyStopping
from sumfold.simulation.ahead import Ahead
from sumfold.simulation.fused import STRETCH, Fused

FEATURES = 5
BATCHING = sf.Batching(size=4)
MODEL = sf.models.from_functions(
    lambda key: 0.1 * jax.random.normal(key, (FEATURES, 3)),
    lambda w, x: x @ w,
    optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": lambda outputs, y: (outputs.argmax(-1) == y).astype(jnp.float32)},
)


def federation(clients, most=12, seed=0):
    draw = np.random.default_rng(seed)
    sizes = draw.integers(1, most, clients)
    x = draw.normal(size=(int(sizes.sum()), FEATURES)).astype(np.float32)
    y = draw.integers(0, 3, len(x)).astype(np.int32)
    return sf.Federation.from_arrays(x, y, offsets=np.concatenate([[0], np.cumsum(sizes)]))


FED = federation(20)


def clipping():
    """Each client's change, cut to a norm that the server halves in each round, and noise in what the server makes."""

    def encode(norm, memory, given, key):
        size = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(given.value)))
        factor = jnp.minimum(jnp.float32(1), norm / size)
        return Contribution(jax.tree.map(lambda leaf: leaf * factor, given.value), given.weight), memory

    def decode(norm, total, key):
        noise = jnp.float32(0.01) * jax.random.normal(key)
        return jax.tree.map(lambda leaf: leaf + noise, total), norm * jnp.float32(0.5), {"norm": norm}

    clip = Stage(encode, decode, init=lambda shapes: jnp.float32(1), share=lambda norm: norm, group=None)
    return sf.chain(clip, sf.aggregators.mean())


ALGORITHMS = {
    "fed_avg, Adam": lambda: sf.learning.fed_avg(MODEL, optax.sgd(0.1), optax.adam(0.05), batching=BATCHING),
    "fed_avg, clipped, with noise": lambda: sf.learning.fed_avg(
        MODEL, optax.adam(0.1), optax.sgd(1.0, momentum=0.9), batching=BATCHING, aggregator=clipping()
    ),
    "fed_prox, a rate by round": lambda: sf.learning.fed_prox(
        MODEL, lambda number: optax.sgd(0.1 / (1.0 + number)), mu=0.3, batching=BATCHING
    ),
    "mime": lambda: sf.learning.mime(MODEL, optax.sgd(0.1, momentum=0.9), batching=BATCHING),
}


def adam(**options):
    return ALGORITHMS["fed_avg, Adam"]().on(sf.Simulation(**options))


def train(process, data=FED, **options):
    return sf.train(process, data, **{"rounds": 40, "clients_per_round": 6, "progress": False, **options})


def bytes_of(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def same(a, b):
    return bytes_of(a.state) == bytes_of(b.state) and (a.metrics, a.evaluations) == (b.metrics, b.evaluations)


@pytest.fixture(scope="module")
def process():
    return adam()


@pytest.fixture
def stretches(monkeypatch):
    """How many rounds each call of a program had, in the order of the calls."""
    lengths = []
    outcomes = Fused.outcomes

    def counted(self, taken):
        lengths.append(len(taken))
        yield from outcomes(self, taken)

    monkeypatch.setattr(Fused, "outcomes", counted)
    return lengths


# -- fused


@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_fused_run_is_the_fold_of_next(name, stretches):
    process = ALGORITHMS[name]()
    history = train(process, seed=3)
    assert (sum(stretches), max(stretches)) == (40, STRETCH)
    assert len(stretches) <= 8, "less than one call for five rounds"
    state, draw = process.initialize(seed=3), sf.sampling.uniform(6)
    for number, measured in enumerate(history.metrics):
        generator = sf.keys.generator(state.seed, purpose="cohort", round=number)
        state, metrics = process.next(
            state, FED, clients=draw(sf.sampling.Draw(FED.ids, FED.counts, number, generator))
        )
        assert jax.tree.structure(metrics) == jax.tree.structure(measured)
        np.testing.assert_allclose(jax.tree.leaves(metrics), jax.tree.leaves(measured), rtol=1e-5, atol=1e-6)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(state.algorithm))
    for mine, theirs in zip(jax.tree.leaves(history.state), jax.tree.leaves(state), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-6 * max(largest, 1))
    assert [leaf.dtype for leaf in jax.tree.leaves(history.state)] == [leaf.dtype for leaf in jax.tree.leaves(state)]


def test_one_executable_serves_stretches_of_all_lengths(stretches):
    process = adam()
    train(process, rounds=1)
    compiled, names = [], "/jax/core/compile/backend_compile_duration"

    def heard(event, seconds, **about):
        compiled.extend([about["fun_name"]] if event == names else [])

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        for rounds in (2, 3, 7, 16, 40):
            train(process, rounds=rounds)
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
    assert set(stretches) >= {1, 2, 4, 8, STRETCH}
    assert process._run.fused.program._cache_size() == 1
    assert process._run.compiled._cache_size() == 0, "no second program for rounds that come alone"
    assert compiled == []


def test_cohorts_that_grow_begin_a_new_stretch(process, stretches):
    draw = np.random.default_rng(5)
    cohorts = [draw.choice(20, size, replace=False).tolist() for size in [2] * 9 + [20] * 9 + [3] * 9]
    history = train(process, clients_per_round=None, cohorts=cohorts, rounds=27)
    counted = [entry["client_work"]["train"]["num_clients"] for entry in history.metrics]
    assert counted == [2] * 9 + [20] * 9 + [3] * 9
    assert sum(stretches) == 27
    assert len(stretches) < 15


@pytest.mark.parametrize(("every", "killed"), [(1, 4), (3, 1), (3, 6), (50, 3)])
def test_a_run_killed_anywhere_ends_in_the_same_bytes(process, tmp_path, every, killed, monkeypatch):
    """It is killed in a stretch, goes on elsewhere, and is killed once more."""
    options = {"checkpoint_every": every, "evaluate": FED, "evaluate_every": 7, "rounds": 33}
    whole = train(process, checkpoint=tmp_path / "whole", **options)
    outcomes = Fused.outcomes
    calls = []

    class Killed(BaseException):
        pass

    def dying(self, taken):
        calls.append(len(taken))
        yield from outcomes(self, taken)
        if len(calls) == killed:
            raise Killed  # before its rounds are told

    monkeypatch.setattr(Fused, "outcomes", lambda self, taken: iter(list(dying(self, taken))))
    for _ in range(2):
        with pytest.raises(Killed):
            train(process, checkpoint=tmp_path / "killed", **options)
        calls.clear()
    monkeypatch.undo()
    assert same(train(process, checkpoint=tmp_path / "killed", **options), whole)
    assert same(train(process, evaluate=FED, evaluate_every=7, rounds=33), whole)
    for file in ("round-00000033.safetensors", "history.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "killed" / file).read_bytes()


def test_ctrl_c_stops_after_the_stretch_saved(process, tmp_path, monkeypatch):
    outcomes = Fused.outcomes

    def pressing(self, taken):
        if len(taken) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        yield from outcomes(self, taken)

    monkeypatch.setattr(Fused, "outcomes", pressing)
    stopped = train(process, checkpoint=tmp_path, checkpoint_every=100)
    assert (stopped.stopped, len(stopped.metrics)) == ("interrupted", 15)
    monkeypatch.undo()
    rest = train(process, checkpoint=tmp_path, checkpoint_every=100)
    assert same(rest, train(process))


def test_the_bytes_do_not_depend_on_who_watches(process, stretches):
    seen = []
    quiet = train(process)
    assert max(stretches) == STRETCH
    stretches.clear()
    watched = train(process, callbacks=[lambda event: seen.append((event.round, int(event.state.round)))])
    assert set(stretches) == {1}
    assert seen == [(number, number + 1) for number in range(40)]
    stretches.clear()
    evaluated = train(process, evaluate=FED)
    assert set(stretches) == {1}
    assert bytes_of(evaluated.state) == bytes_of(watched.state) == bytes_of(quiet.state)
    stretches.clear()
    assert [entry["round"] for entry in train(process, evaluate=FED, evaluate_every=10).evaluations] == [9, 19, 29, 39]
    assert max(stretches) > 4
    stopped = train(process, evaluate=FED, callbacks=[EarlyStopping(patience=1, min_delta=100)])
    assert len(stopped.metrics) == 2


def invalid(metrics):
    """A weight that is negative at the client with eleven rows."""
    return jnp.where(metrics["num_examples"] == 11, jnp.float32(-1), jnp.float32(1))


@pytest.mark.jax_defaults
def test_an_error_in_a_stretch_is_that_of_its_round(tmp_path):
    clients = {name: (np.ones((5, FEATURES), np.float32), np.zeros(5, np.int32)) for name in "abc"}
    clients["eleven"] = (np.ones((11, FEATURES), np.float32), np.zeros(11, np.int32))
    clients = sf.Federation.from_clients(clients)
    process = sf.learning.fed_avg(MODEL, optax.sgd(0.1), batching=BATCHING, weighting=invalid)
    cohorts = [["a", "b"] for _ in range(20)]
    whole = train(process, clients, cohorts=cohorts, clients_per_round=None, rounds=20)
    for bad in (0, 1, 12, 15):
        wrong = cohorts.copy()
        wrong[bad] = ["a", "eleven"]
        folder = tmp_path / str(bad)
        options = {"clients_per_round": None, "rounds": 20, "checkpoint": folder, "checkpoint_every": 50}
        with pytest.raises(sf.DataError, match=r"client 'eleven' reported a weight.*SF-DATA-050"):
            train(process, clients, cohorts=wrong, **options)
        assert (folder / f"round-{bad:08d}.safetensors").exists() == (bad > 0)
        assert same(train(process, clients, cohorts=cohorts, **options), whole)


@pytest.mark.jax_defaults
def test_a_rate_that_becomes_nan_in_a_stretch_names_its_round(tmp_path):
    sgd = optax.inject_hyperparams(optax.sgd)
    process = sf.learning.fed_avg(MODEL, lambda r: sgd(jnp.where(r >= 11, jnp.nan, 0.1)), batching=BATCHING)
    with pytest.raises(sf.CompositionError, match="the client learning rate of round 11 is nan"):
        train(process, checkpoint=tmp_path, checkpoint_every=50)
    assert same(train(process, rounds=11, checkpoint=tmp_path), train(process, rounds=11))


@pytest.mark.parametrize(
    "made",
    [
        lambda: sf.learning.scaffold(MODEL, optax.sgd(0.1), batching=BATCHING),
        lambda: adam(deterministic=True),
        lambda: adam(streams=2),
        lambda: sf.learning.fed_avg(
            sf.models.from_functions(lambda key: jnp.zeros((FEATURES, 20_000)), lambda w, x: x @ w, MODEL.loss),
            optax.sgd(0.1),
            batching=BATCHING,
        ),
        lambda: adam().on(sf.Loopback()),
    ],
    ids=["client memory", "deterministic", "two streams", "a larger model", "loopback"],
)
def test_rounds_that_need_the_host_are_not_fused(made, stretches):
    process = made()
    history = train(process, rounds=4)
    assert stretches == []
    state = process.initialize()
    for number in range(4):
        generator = sf.keys.generator(state.seed, purpose="cohort", round=number)
        clients = np.sort(generator.choice(20, 6, replace=False, shuffle=False))
        state, metrics = process.next(state, FED, clients=clients)
        assert metrics == history.metrics[number]
    assert bytes_of(state) == bytes_of(history.state)


def test_the_profile_of_a_fused_run_counts_every_round(process):
    history = train(process, rounds=37)
    profile = history.profile()
    told = [entry["client_work"]["train"] for entry in history.metrics]
    assert profile.rounds == 37
    assert profile.clients == sum(entry["num_clients"] for entry in told) == 37 * 6
    assert profile.steps == sum(entry["num_batches"] for entry in told)
    assert sum(profile.seconds.values()) == pytest.approx(profile.total, rel=1e-6)


# -- cohorts before their turn


def test_what_a_user_wrote_is_called_in_its_turn(process, stretches):
    order = []

    def policy(draw):
        order.append(draw.round)
        return draw.ids[:3]

    def watch(event):
        if event.kind == "round_end":
            order.append(f"after {event.round}")

    expected = [entry for number in range(6) for entry in (number, f"after {number}")]
    train(process, clients_per_round=None, cohorts=policy, rounds=6, callbacks=[watch])
    assert order == expected
    order.clear()

    def generated():
        for number in range(6):
            order.append(number)
            yield [0, 1, 2]

    train(process, clients_per_round=None, cohorts=generated(), rounds=6, callbacks=[watch])
    assert order == expected
    order.clear()
    available = sf.sampling.available(lambda number: order.append(number) or [0, 1, 2])
    train(process, clients_per_round=None, cohorts=available, rounds=6, callbacks=[watch])
    assert order == expected
    stretches.clear()
    train(process, clients_per_round=None, cohorts=policy, rounds=6)
    assert set(stretches) == {1}


@pytest.mark.parametrize(
    "policy",
    [
        sf.sampling.uniform(3),
        sf.sampling.weighted(3),
        sf.sampling.poisson(0.3),
        sf.sampling.fixed([1, 2]),
        sf.sampling.available({number: [True] * 40 for number in range(9)}, k=4),
    ],
    ids=repr,
)
def test_the_policies_of_the_library_may_be_called_early(policy, process, stretches):
    early = train(process, clients_per_round=None, cohorts=policy, rounds=20)
    assert len(stretches) < 15
    assert same(train(process, clients_per_round=None, cohorts=lambda draw: policy(draw), rounds=20), early)


def test_a_list_that_a_callback_changes_is_read_in_its_turn(process):
    cohorts = [[0, 1] for _ in range(6)]

    def change(event):
        if event.kind == "round_end" and event.round == 1:
            cohorts[2].append(2)  # in place
            cohorts[3] = [0, 1, 2, 3]

    history = train(process, clients_per_round=None, cohorts=cohorts, rounds=6, callbacks=[change])
    assert [entry["client_work"]["train"]["num_clients"] for entry in history.metrics] == [2, 2, 3, 4, 2, 2]


def test_a_trace_that_ends_is_an_error_of_its_round(process, tmp_path):
    policy = sf.sampling.available({number: [True] * 13 for number in range(20)}, k=4)
    with pytest.raises(sf.DataError, match="in round 13"):
        train(process, clients_per_round=None, cohorts=policy, checkpoint=tmp_path, checkpoint_every=50)
    assert (tmp_path / "round-00000013.safetensors").exists()


# -- planned ahead

MANY = federation(900, most=9)


@pytest.fixture(scope="module")
def two():
    return adam(streams=2)


@pytest.fixture
def idle(monkeypatch):
    """A machine with more cores than streams."""
    monkeypatch.setattr(sf.simulation.ahead, "_cores", lambda: 64)


@pytest.mark.parametrize(("count", "early"), [(2, 0), (3, 3)])
def test_nobody_plans_ahead_where_every_core_computes_a_stream(count, early, two, planners, monkeypatch):
    monkeypatch.setattr(sf.simulation.ahead, "_cores", lambda: count)
    train(two, MANY, clients_per_round=600, rounds=4)
    assert planners["sumfold-plan"] == early


@pytest.fixture
def planners(monkeypatch):
    """Which thread planned how many rounds."""
    found = collections.Counter()
    begun = sf.simulation.bound.Bound._begun

    def counted(self, state, cohort):
        found[threading.current_thread().name.rpartition("_")[0] or "main"] += 1
        return begun(self, state, cohort)

    monkeypatch.setattr(sf.simulation.bound.Bound, "_begun", counted)
    return found


@pytest.mark.parametrize(
    "made",
    [
        lambda: adam(streams=2),
        lambda: adam(streams=2, lanes=8),
        lambda: sf.learning.mime(MODEL, optax.sgd(0.1), batching=BATCHING).on(sf.Simulation(streams=2)),
        lambda: sf.learning.scaffold(MODEL, optax.sgd(0.1), batching=BATCHING).on(sf.Simulation(streams=1)),
    ],
    ids=["streams", "lanes", "two phases", "client memory"],
)
@pytest.mark.usefixtures("idle")
def test_plans_made_ahead_give_the_same_bytes(made, planners, monkeypatch):
    process, options = made(), {"clients_per_round": 600, "rounds": 5}
    ahead = train(process, MANY, **options)
    assert planners["sumfold-plan"] == 4, "all but the first"
    assert planners.total() == 5
    planners.clear()
    monkeypatch.setattr(Ahead, "expect", lambda *_: None)
    assert same(train(process, MANY, **options), ahead)
    assert planners.total() == planners["main"] == 5


@pytest.mark.usefixtures("idle")
def test_a_plan_for_another_cohort_is_dropped(two, planners):
    process, cohorts = two, [np.arange(n, n + 600) for n in range(4)]

    def change(event):
        if event.kind == "round_end" and event.round == 1:
            cohorts[2] += 100  # the plan of this cohort may be there already

    history = train(process, MANY, clients_per_round=None, cohorts=cohorts, rounds=4, callbacks=[change])
    assert planners["main"] == 2, "the first, and the one that was changed"
    again = train(process, MANY, clients_per_round=None, cohorts=iter(cohorts), rounds=4)
    assert same(history, again)
    state, _ = process.next(process.initialize(seed=1), MANY, clients=range(600))  # of another seed and round
    assert int(state.round) == 1
    assert not process._run.ahead._made


@pytest.mark.usefixtures("idle")
def test_an_error_while_planning_ahead_belongs_to_its_round(two, monkeypatch):
    process, planned = two, []
    begun = sf.simulation.bound.Bound._begun

    def failing(self, state, cohort):
        planned.append(int(state.round))
        if int(state.round) == 2:
            raise RuntimeError("no plan")
        return begun(self, state, cohort)

    monkeypatch.setattr(sf.simulation.bound.Bound, "_begun", failing)
    rounds = []
    with pytest.raises(RuntimeError, match="no plan"):
        train(process, MANY, clients_per_round=600, rounds=4, callbacks=[lambda event: rounds.append(event.round)])
    assert rounds == [0, 1]
    assert planned.count(2) == 2, "in the thread, and in its turn"
