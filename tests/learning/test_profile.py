"""Profiles from times that the tests give; no clock is read but to see that nothing is lost."""

import pickle

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning.history import History
from sumfold.learning.profile import Timing, profile_of

MODEL = sf.models.from_functions(
    lambda key: jnp.zeros((6, 4)), lambda w, x: x @ w, optax.softmax_cross_entropy_with_integer_labels
)
DRAW = np.random.default_rng(0)
CLIENTS = {
    name: (DRAW.normal(size=(n, 6)).astype(np.float32), DRAW.integers(0, 4, n).astype(np.int32))
    for name, n in (("a", 9), ("b", 4), ("c", 1))
}
METRICS = {"client_work": {"train": {"num_clients": 10, "num_batches": 30}}}


def profile(seconds, counts=None, every=None, rounds=10, **options):
    every = {"evaluation": 1, "checkpoint": 1, **(every or {})}
    seconds = {name: float(value) for name, value in seconds.items()}
    timing = Timing(rounds, sum(seconds.values()), seconds, counts or {}, every, **options)
    return profile_of(timing, 5, [METRICS] * rounds)


def test_the_table():
    counts = {"steps 0": 200, "steps 1": 100, "lane steps": 400, "bytes": 25_000, "executables": 3, "cached": 2}
    shown = profile({"clients": 6.0, "compile": 2.0, "evaluation": 1.0, "mystery": 1.0, "memory": 0.0}, counts)
    assert str(shown).splitlines() == [
        "rounds 5 to 14, those of this start: 10.00 s",
        "  clients' steps                6.00 s   60 %",
        "  compiling                     2.00 s   20 %",
        "  evaluation                    1.00 s   10 %",
        "  mystery                       1.00 s   10 %",
        "38 client steps/s, 12 clients/s; padding 25 %",
        "3 programs compiled, 2 from the compilation cache; 2.5 kB to the devices a round",
    ]
    assert shown._asdict()["steps_per_second"] == 300 / 8
    assert shown._repr_html_().startswith("<pre>rounds 5")


@pytest.mark.parametrize(
    ("seconds", "counts", "every", "said"),
    [
        ({"clients": 6.1, "evaluation": 3.9}, {}, {}, "39 % of time in evaluation: evaluate_every=10"),
        ({"clients": 6, "evaluation": 4}, {}, {"evaluation": 5}, "40 % of time in evaluation: evaluate_every=50"),
        ({"clients": 7, "checkpoint": 3}, {}, {}, "30 % of time in checkpoints: checkpoint_every=10"),
        ({"clients": 3, "checkpoint": 3, "evaluation": 4}, {}, {}, "40 % of time in evaluation: evaluate_every=10"),
        ({"clients": 6, "callbacks": 4}, {}, {}, "40 % of time in callbacks: do less there, or only every few rounds"),
        (
            {"clients": 6, "data": 4},
            {},
            {},
            "40 % of time placing data: pass the same Federation to every round, in memory",
        ),
        ({"clients": 6, "plan": 4}, {}, {}, "40 % of time in planning: larger batches, for fewer and longer steps"),
        (
            {"clients": 10},
            {"steps 0": 60, "lane steps": 100},
            {},
            "padding 40 %: more clients a round, or fewer lanes in sf.Simulation",
        ),
        (
            {"clients": 2, "compile": 8},
            {"executables": 3},
            {},
            "compile time dominates: more rounds share it, and the next start has its programs from the compilation "
            "cache",
        ),
        (
            {"clients": 2, "compile": 8},
            {"executables": 50},
            {},
            "compile time dominates: 50 programs in 10 rounds; use one Federation, and cohorts of one size",
        ),
        (
            {"clients": 2, "compile": 8},
            {"executables": 0, "cached": 3},
            {},
            "compile time dominates: every program came from the compilation cache, and what remains is JAX tracing "
            "the algorithm",
        ),
        ({"clients": 0.2, "compile": 0.8}, {}, {}, None),
        ({"clients": 8, "evaluation": 1, "compile": 1}, {"steps 0": 99, "lane steps": 100}, {}, None),
    ],
    ids=[
        *("evaluation", "from what it is", "checkpoints", "the costliest", "callbacks", "data", "plan", "padding"),
        *("compiling", "many shapes", "from the cache", "a moment", "all is well"),
    ],
)
def test_one_line_of_advice(seconds, counts, every, said):
    shown = profile(seconds, counts, every)
    assert shown.advice == said
    assert str(shown).endswith(said) if said else "dominates" not in str(shown)


def test_advice_where_the_cache_is_off():
    shown = profile({"clients": 1, "compile": 4}, {"executables": 2}, cache=False)
    assert (
        shown.advice
        == "compile time dominates: the compilation cache is off; with it, the next start would compile nothing"
    )


@pytest.fixture(scope="module")
def process():
    return sf.learning.fed_avg(MODEL, optax.sgd(0.1), batching=sf.Batching(size=2))


def test_a_run_is_measured(process, monkeypatch):
    monkeypatch.setattr("sumfold.learning.profile.gemm_peak", lambda: 1e9)
    seen = []
    history = sf.train(
        process,
        CLIENTS,
        rounds=3,
        evaluate=CLIENTS,
        progress=False,
        callbacks=[lambda e: seen.append(e.history.timing)],
    )
    shown = history.profile()
    assert (shown.first, shown.rounds, shown.clients) == (0, 3, 9)
    assert shown.steps == 3 * (5 + 2 + 1)
    assert {"clients", "evaluation", "plan", "callbacks", "cohorts", "compile"} <= set(shown.seconds)
    assert sum(shown.seconds.values()) == pytest.approx(shown.total, rel=1e-3)
    assert min(shown.seconds.values()) > 0
    assert [timing.rounds for timing in seen] == [1, 1, 2, 2, 3, 3]
    # Forward and the gradient of w: two products of 2 × 6 and 6 × 4 a step. Lanes are no reason to count otherwise.
    assert shown.flops_per_second == pytest.approx(2 * 2 * 2 * 6 * 4 * shown.steps / shown.seconds["clients"])
    assert "GFLOP/s in clients' steps" in str(shown)
    assert shown.bytes_per_round > 0


def test_a_second_run_is_measured_alone(process):
    first, second = (sf.train(process, CLIENTS, rounds=2, progress=False).profile() for _ in range(2))
    assert first.steps == second.steps == 16
    assert second.executables == second.cached == 0
    assert second.bytes_per_round == first.bytes_per_round


def test_a_resumed_run_has_the_profile_of_this_start(process, tmp_path):
    def run(rounds):
        return sf.train(process, CLIENTS, rounds=rounds, checkpoint=tmp_path / "run", progress=False)

    run(2)
    history = run(5)
    shown = history.profile()
    assert (shown.first, shown.rounds, shown.clients) == (2, 3, 9)
    assert "checkpoint" in shown.seconds
    assert str(shown).startswith("rounds 2 to 4, those of this start: ")
    assert len(history.metrics) == 5
    assert str(run(5).profile()) == "no round was trained in this start"


def test_another_runtime_has_rounds_alone(process):
    history = sf.train(process.on(sf.Loopback()), CLIENTS, rounds=1, progress=False)
    shown = history.profile()
    assert shown.seconds["rounds"] > 0
    assert shown.steps == 8
    assert shown.peak is None
    assert str(shown).startswith("round 0: ")


def test_a_history_can_be_pickled_with_its_profile(process):
    history = sf.train(process, CLIENTS, rounds=1, progress=False)
    again = pickle.loads(pickle.dumps(history)).profile()
    assert again.seconds == history.profile().seconds
    assert again.flops_per_second is None


def test_two_phases_are_counted_each_for_itself(monkeypatch):
    monkeypatch.setattr("sumfold.learning.profile.gemm_peak", lambda: 1e9)
    mime = sf.learning.mime(MODEL, optax.sgd(0.1), optax.sgd(1.0), batching=sf.Batching(size=2))
    shown = sf.train(mime, CLIENTS, rounds=1, progress=False).profile()
    assert shown.steps > 8, "the full gradient's steps count too"
    assert shown.flops_per_second is not None


def test_a_history_made_by_hand_has_none():
    state = sf.State(np.int32(0), np.zeros(2, np.uint32), (), (), sf.ClientStore(), np.zeros(4, np.uint32))
    with pytest.raises(
        sf.CompositionError, match=r"a history without measured times.*sf\.train returned.*SF-TRAIN-042"
    ):
        History(state, [], []).profile()
