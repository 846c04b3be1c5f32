"""The checks for people who write their own find what is wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import testing
from sumfold.core import fold

MODEL = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
PROCESS = sf.learning.fed_avg(MODEL, optax.sgd(0.1))
DATA = {
    "a": (np.ones((3, 2), np.float32), np.ones(3, np.float32)),
    "b": (np.eye(2, dtype=np.float32), np.zeros(2, np.float32)),
}
SIMULATION = sf.Simulation()


def altered(change):
    """A simulation whose outcomes are changed afterwards."""

    @dataclasses.dataclass(frozen=True)
    class Altered:
        groups = SIMULATION.groups

        def bind(self, round):
            run = SIMULATION.bind(round)
            return lambda state, cohort: change(run(state, cohort))

    return Altered()


def shifted(outcome, by=1e-3):
    return outcome._replace(algorithm=jax.tree.map(lambda a: a + jnp.asarray(by, a.dtype), outcome.algorithm))


def one_more(outcome):
    train = outcome.metrics["client_work"]["train"]
    changed = {**train, "num_examples": train["num_examples"] + 1}
    return outcome._replace(
        metrics={**outcome.metrics, "client_work": {**outcome.metrics["client_work"], "train": changed}}
    )


def test_runtimes_that_agree():
    found = testing.assert_runtimes_agree(PROCESS, DATA, SIMULATION, altered(lambda o: o), rounds=2)
    assert found == testing.Agreement(0.0, 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [(shifted, r"Altered against Simulation, round 0: .*trainable"), (one_more, r"round 0: .*num_examples: 5 and 6")],
)
def test_runtimes_that_differ(change, words):
    with pytest.raises(AssertionError, match=rf"(?s){words}"):
        testing.assert_runtimes_agree(PROCESS, DATA, SIMULATION, altered(change), rounds=1)


def test_two_runtimes_are_needed():
    with pytest.raises(AssertionError, match=r"two runtimes"):
        testing.assert_runtimes_agree(PROCESS, DATA, SIMULATION)


def test_check_runtime_finds_a_runtime_that_forgets():
    testing.check_runtime(SIMULATION)
    with pytest.raises(AssertionError, match=r"client memory"):
        testing.check_runtime(altered(lambda o: o._replace(clients=sf.ClientStore())))
    with pytest.raises(AssertionError, match=r"the sum"):
        testing.check_runtime(altered(lambda o: shifted(o, 1)))


VALUE = {"w": jnp.zeros(3)}


def stage(**changes):
    return sf.Stage(
        **{"encode": lambda p, m, given, k: (given.value, m), "decode": lambda s, t, k: (t, s, {}), **changes}
    )


CALLS = []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encode": lambda p, m, g, k: (CALLS.append(1), (g.value["w"] + len(CALLS), m))[1]}, r"not a pure function"),
        ({"encode": lambda p, m, g, k: (g.value, jnp.float32(1))}, r"the type of the client's memory"),
        ({"decode": lambda s, t, k: (t, jnp.float32(1), {})}, r"the type of the server's memory"),
        (
            {"group": fold({"w": jnp.zeros(3)}, lambda t, v: {"w": t["w"] / 2 + v["w"]}, lambda a, b: a)},
            r"the order of clients",
        ),
        (
            {"group": fold({"w": jnp.zeros(3)}, lambda t, v: {"w": t["w"] + v["w"]}, lambda a, b: a)},
            r"merging two halves",
        ),
        (
            {
                "group": fold(
                    {"w": jnp.zeros(())}, lambda t, v: {"w": t["w"] + v["w"].sum() * jnp.ones(1)}, lambda a, b: a
                )
            },
            r"the type of the total",
        ),
    ],
)
def test_check_stage_finds_what_is_unlawful(changes, words):
    assert testing.check_stage(stage(), VALUE)["w"].shape == (3,)
    with pytest.raises(AssertionError, match=words):
        testing.check_stage(stage(**changes), VALUE)


def test_check_round_finds_types_that_change():
    round = PROCESS.round
    phase = round.phases[0]
    batch = (np.ones((4, 2), np.float32), np.ones(4, np.float32))
    assert testing.check_round(round, jnp.zeros(2), batch).startswith("phase 0: ")
    finalize = lambda s, r, m, k: (s._replace(round=jnp.float32(0)), {})
    with pytest.raises(sf.CompositionError, match=r"the algorithm's state became round float32.*int32.*SF-COMP-031"):
        testing.check_round(round._replace(phases=(phase._replace(finalize=finalize),)), jnp.zeros(2), batch)
    step = lambda task, carry, batch, key: (carry,)
    changed = phase._replace(work=phase.work._replace(step=step))
    with pytest.raises(sf.CompositionError, match=r"the carry of phase 0.*became"):
        testing.check_round(round._replace(phases=(changed,)), jnp.zeros(2), batch)


def test_check_round_compares_a_step_with_its_fast_form(monkeypatch):
    def predict(w, x):
        x = jax.lax.conv_general_dilated(x, w["filter"], (1, 1), "SAME")  # channels first
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID").sum((1, 2, 3))

    init = lambda key: {"filter": jax.random.normal(key, (3, 2, 3, 3))}
    model = sf.models.from_functions(init, predict, lambda o, y: (o - y) ** 2)
    round = sf.learning.mime(model, optax.sgd(0.01), optax.sgd(1.0)).round  # two phases
    drawn = np.random.default_rng(0)
    batch = (drawn.standard_normal((4, 2, 6, 6), np.float32), drawn.standard_normal(4, np.float32))
    params = model.init(jax.random.key(0))
    assert len(testing.check_round(round, params, batch).split("\n")) == 2

    def wrong(step):
        return lambda start, carry, *rest: jax.tree.map(
            lambda a, b: b + (b - a) / 8 if b.dtype == jnp.float32 else b, carry, step(start, carry, *rest)
        )

    monkeypatch.setattr(testing, "canonical", wrong)
    with pytest.raises(
        sf.CompositionError,
        match=r"(?s)the step of phase 0 gives another .* in the form in which a CPU.*apart.*report it.*SF-COMP-038",
    ):
        testing.check_round(round, params, batch)
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), batch)
    assert testing.check_round(round, params, shapes).startswith("phase 0")
