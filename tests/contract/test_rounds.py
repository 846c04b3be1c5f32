"""Every round that presses on a seam, on every runtime: the same state, client memory and metrics."""

import importlib.util
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree, check_round, check_runtime, check_stage

spec = importlib.util.spec_from_file_location("contract_rounds", Path(__file__).with_name("rounds.py"))
rounds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rounds)


def ragged(seed=0):
    draw = np.random.default_rng(seed)
    truth = np.array([1.0, -2.0, 0.5])
    clients = {}
    for name, n in {"a": 5, "b": 1, "c": 0, "d": 13, "e": 8}.items():
        x = draw.normal(size=(n, 3)).astype(np.float32)
        clients[name] = (x, (x @ truth + draw.normal(size=n)).astype(np.float32))
    return clients


def process(make):
    return sf.Process(make())


@pytest.mark.parametrize("name", rounds.ROUNDS)
def test_runtimes_agree(name):
    assert_runtimes_agree(process(rounds.ROUNDS[name]), ragged(), sf.Simulation(), sf.Loopback(), rounds=3)


@pytest.mark.parametrize("name", rounds.ROUNDS)
def test_round_checks(name):
    line = check_round(rounds.ROUNDS[name](), (), (np.zeros((4, 3), np.float32), np.zeros(4, np.float32)))
    assert line.startswith("phase 0:")


@pytest.mark.parametrize("name", rounds.STAGES)
def test_stage_is_lawful(name):
    check_stage(rounds.STAGES[name](), jnp.zeros(3), rtol=1e-4)


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
def test_runtime_is_lawful(runtime):
    check_runtime(runtime)


def test_scaffold_remembers_only_clients_that_were_counted():
    p, data = process(rounds.scaffold), ragged()
    state, _ = p.next(p.initialize(), data, clients=["a", "d"])
    assert set(state.clients) == {"a", "d"}
    broken = {**data, "a": (data["a"][0] * np.nan, data["a"][1])}
    after, _ = p.next(state, broken, clients=["a", "b"])
    assert set(after.clients) == {"a", "b", "d"}
    np.testing.assert_array_equal(after.clients["a"][0].work, state.clients["a"][0].work)
    assert set(state.clients) == {"a", "d"}


def test_scaffold_against_numpy():
    """Three rounds of the paper's recursion, full batches in one step, by hand."""
    make = rounds.scaffold()
    work = make.phases[0].work._replace(batching=sf.Batching(size=None, epochs=4))
    p = sf.Process(make._replace(phases=(make.phases[0]._replace(work=work),)))
    data = {k: v for k, v in ragged().items() if len(v[1])}
    state = p.initialize()
    w, c, own = np.zeros(3), np.zeros(3), {k: np.zeros(3) for k in data}
    for _ in range(3):
        state, _ = p.next(state, data)
        updates, changes, weights = [], [], []
        for k, (x, y) in data.items():
            local = w.copy()
            for _ in range(4):
                gradient = 2 * x.T @ (x @ local - y) / len(y)
                local -= rounds.RATE * (gradient - own[k] + c)
            new = own[k] - c + (w - local) / (4 * rounds.RATE)
            updates.append(w - local), changes.append(new - own[k]), weights.append(len(y))
            own[k] = new
        w = w - np.average(updates, axis=0, weights=weights)
        c = c + np.mean(changes, axis=0)
    np.testing.assert_allclose(state.algorithm["w"], w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.algorithm["extra"], c, rtol=1e-5, atol=1e-5)


def test_a_runtime_refuses_a_sum_that_it_does_not_offer():
    class Secure(sf.Simulation):
        @property
        def groups(self):
            return frozenset({"modular"})

    p = process(lambda: rounds.fed_avg_with(rounds.median(), "median")).on(Secure())
    with pytest.raises(sf.CompositionError, match=r"needs the group 'stack'.*'modular'"):
        p.next(p.initialize(), ragged())


def test_a_bound_is_checked_while_chaining():
    def needs_norm(bound):
        if bound.norm == float("inf"):
            raise sf.CompositionError("SF-COMP-003", "noise without a clip", "a bounded norm", "put clip before")
        return bound

    noise = sf.Stage(lambda p, m, v, k: (v, m), lambda s, t, k: (t, s, {}), bound=needs_norm, group=None)
    with pytest.raises(sf.CompositionError, match="noise without a clip"):
        sf.chain(noise, sf.aggregators.mean())
    sf.chain(rounds.adaptive_clip(), noise, sf.aggregators.mean())


def test_step_that_changes_the_carry_is_refused():
    make = rounds.scaffold()
    phase = make.phases[0]
    bad = phase.work._replace(step=lambda task, carry, batch, key: (carry[0].astype(jnp.bfloat16), carry[1]))
    with pytest.raises(sf.CompositionError, match="the carry of phase 0"):
        check_round(
            make._replace(phases=(phase._replace(work=bad),)),
            (),
            (np.zeros((2, 3), np.float32), np.zeros(2, np.float32)),
        )
