"""One round as a pure step: parts and stages, groups, finiteness, weights, and whose state is whose."""

import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.driver import begin, recognise

ROWS = {"a": np.array([1.0, 2.0], np.float32), "b": np.array([5.0], np.float32)}


def summing(report=None, aggregate=None, name="summing", phases=1, start=0.0):
    def step(task, carry, batch, key):
        return carry + jnp.where(batch.mask, batch.examples, 0.0).sum()

    def finish(task, carry, key):
        return (report or (lambda total: sf.Report({"total": sf.Contribution(total, jnp.float32(1))})))(carry)

    def finalize(state, results, measured, key):
        counts = {"num": measured.num_clients, "bad": measured.num_non_finite_clients}
        return {"total": results["total"]}, {"client_work": counts}

    work = sf.Work(lambda task, key: jnp.float32(0), step, finish, sf.Batching(size=1))
    phase = sf.Phase(lambda s, k: (), work, aggregate or {"total": sf.aggregators.sum()}, finalize)
    return sf.Round(name, lambda p, k: {"total": jnp.float32(start)}, (phase,) * phases)


def test_parts_and_stages_must_match():
    with pytest.raises(
        sf.CompositionError, match=r"reports the parts \['total'\] and has stages for \['other'\].*SF-COMP-004"
    ):
        begin(summing(aggregate={"other": sf.aggregators.sum()}), (), 0)


@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("where", ["part", "metrics", "memory", "kept"])
def test_a_number_that_is_not_finite_anywhere_leaves_the_client_out(runtime, where):
    def report(total):
        bad = jnp.where(total == 5, jnp.nan, 1.0)
        return sf.Report(
            {"total": sf.Contribution(total * bad if where == "part" else total, jnp.float32(1))},
            metrics={"m": bad if where == "metrics" else jnp.float32(1)},
            memory=bad if where == "memory" else jnp.float32(1),
            kept=bad if where == "kept" else jnp.float32(1),
        )

    round = summing(report)
    work = round.phases[0].work._replace(memory=lambda message: jnp.float32(0))
    process = sf.Process(round._replace(phases=(round.phases[0]._replace(work=work),))).on(runtime)
    state, metrics = process.next(process.initialize(), ROWS)
    assert metrics["client_work"] == {"num": 1, "bad": 1}
    assert float(state.algorithm["total"]) == 3.0
    assert list(state.clients) == ["a"]


def test_what_leaves_a_client_that_is_not_counted_is_zeros():
    half = client_half(summing().phases[0])
    import jax

    from sumfold import keys

    start = Start(Briefing((), {"total": ()}), half.fresh(Briefing((), {"total": ()}), ()), (), jnp.int32(1))
    upload, _ = half.finish(start, jnp.float32(jnp.nan), keys.typed(keys.root(0)))
    assert not bool(upload.finite)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(upload.parts))


def test_fingerprints_tell_names_trees_and_shapes_apart():
    template = begin(summing(), (), 0)
    assert recognise(summing(), template, begin(summing(start=3.0), (), 9)).seed.tolist() == [0, 9]
    wider = summing()._replace(init=lambda p, k: {"total": jnp.zeros(2)})
    longer = summing()._replace(init=lambda p, k: {"total": jnp.float32(0), "more": jnp.float32(0)})
    for other in (summing(name="other"), wider, longer):
        with pytest.raises(sf.StateError, match=r"SF-STATE-002"):
            recognise(summing(), template, begin(other, (), 0))


def test_two_phases_run_in_order_over_one_cohort():
    process = sf.Process(summing(phases=2))
    state, metrics = process.next(process.initialize(), ROWS)
    assert float(state.algorithm["total"]) == 8.0
    assert metrics["client_work"] == {"num": 2, "bad": 0}
    assert int(state.round) == 1
