"""Reports that are asked as a sum whether they are finite: which stages allow it, and rounds in which one is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.core.client import Briefing
from sumfold.core.stage import Contribution
from sumfold.simulation import spare, trusting

GIVEN = Contribution({"w": jnp.zeros((3, 2)), "b": jnp.zeros(2)}, jnp.float32(1))


def encoding(change):
    """A stage that changes what it is given."""
    return sf.Stage(
        lambda public, memory, given, key: (change(given.value), memory), lambda state, total, key: (total, state, {})
    )


def clipped(value):
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(value)))
    return jax.tree.map(lambda leaf: leaf * jnp.minimum(1, 1 / norm), value)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (lambda value: value, True),
        (clipped, True),
        (lambda value: {"all": jax.tree.map(lambda leaf: -leaf.reshape(-1) / 2 + 1, value)}, True),
        (jax.jit(lambda value: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), value)), True),
        (lambda value: jax.tree.map(lambda leaf: leaf.astype("float4_e2m1fn").astype(jnp.float32), value), False),
        (lambda value: {"w": value["w"]}, False),
        (lambda value: {**value, "b": value["b"] * 0}, False),
        (lambda value: {**value, "b": 1 / value["b"]}, False),
        (lambda value: jax.tree.map(jnp.tanh, value), False),
        (lambda value: jax.tree.map(lambda leaf: jnp.clip(leaf, -1, 1), value), False),
        (lambda value: jax.tree.map(lambda leaf: jnp.round(leaf).astype(jnp.int32).astype(jnp.float32), value), False),
        (lambda value: jax.tree.map(lambda leaf: leaf[:1], value), False),
        (lambda value: jax.tree.map(jnp.nan_to_num, value), False),
        (lambda value: {**value, "w": jnp.where(value["w"] < 9, value["w"], 0)}, False),
    ],
    ids=[
        "as it is", "clipped", "negated", "bfloat16", "four bits", "a part left out", "times nothing", "inverted",
        "squashed", "bounded", "rounded", "sliced", "replaced", "chosen",
    ],
)  # fmt: skip
def test_stages_that_hand_on_what_is_not_finite(change, shown) -> None:
    assert trusting.carries(encoding(change), (), GIVEN) is shown
    if shown:  # each number alone makes what is sent not finite
        for bad in (np.nan, np.inf, -np.inf):
            for name, place in (("w", (2, 1)), ("b", (0,))):
                value = {**GIVEN.value, name: GIVEN.value[name].at[place].set(bad)}
                sent = jax.tree.leaves(jax.jit(change)(value))
                assert not all(bool(jnp.isfinite(leaf).all()) for leaf in sent)


def test_the_mean_is_one_of_them() -> None:
    assert trusting.carries(sf.aggregators.mean(), (), GIVEN)
    assert not trusting.carries(sf.aggregators.mean(), (), GIVEN._replace(value=jnp.zeros(2, jnp.int32)))


SIZE = 64


def sums(memory=False):
    """Clients that report as many numbers as they hold, all the same; in rounds of `BAD` one is not finite."""
    work = sf.Work(
        init=lambda task, key: jnp.float32(0),
        step=lambda task, number, batch, key: number + jnp.where(batch.mask, batch.examples[0], 0).sum(),
        finish=lambda task, number, key: sf.Report(
            {"update": sf.Contribution(task.message * number, jnp.float32(1))},
            memory=(task.memory + number) if memory else (),
        ),
        batching=sf.Batching(1),
        memory=(lambda message: jnp.float32(0)) if memory else (lambda message: ()),
    )
    phase = sf.Phase(
        lambda state, key: state,
        work,
        {"update": sf.aggregators.mean()},
        lambda state, results, measured, key: (
            results["update"],
            {"finalizer": {"counted": measured.num_clients, "left out": measured.num_non_finite_clients}},
        ),
    )
    return sf.Round("sums", lambda params, key: jnp.ones(SIZE), (phase,))


def played(monkeypatch, large, values, memory=False):
    monkeypatch.setattr(spare, "_LARGE", 1 if large else 1 << 60)
    fed = sf.Federation.from_arrays(
        np.float32(values), np.zeros(len(values), np.int32), offsets=np.arange(len(values) + 1)
    )
    process = sf.Process(sums(memory)).on(sf.Simulation(streams=2, kernel="sequential"))
    run, calls = process._run, []
    for name in ("trusted", "phase"):
        program = getattr(run, name)
        setattr(run, name, lambda *given, name=name, program=program: calls.append(name) or program(*given))
    state, metrics = process.next(process.initialize(), fed)
    return state, metrics, calls


@pytest.mark.parametrize("memory", [False, True], ids=["", "with memories"])
@pytest.mark.parametrize("bad", [None, np.nan, np.inf], ids=["all finite", "nan", "inf"])
def test_rounds_are_as_if_every_client_was_asked(monkeypatch, bad, memory) -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    if bad is not None:
        values[3] = bad
    trusted, told, calls = played(monkeypatch, True, values, memory)
    asked, told_asked, others = played(monkeypatch, False, values, memory)
    assert told == told_asked
    assert told["finalizer"] == {"counted": 6 - (bad is not None), "left out": int(bad is not None)}
    jax.tree.map(np.testing.assert_array_equal, trusted.algorithm, asked.algorithm)
    for client in range(6):
        jax.tree.map(np.testing.assert_array_equal, trusted.clients.get(client), asked.clients.get(client))
    again = bad is not None and not memory  # in its memory a client's number is seen at once
    assert sorted(calls) == ["phase"] * again + ["trusted"] * 2  # one stream has the bad client
    assert others == ["phase"] * 2


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("weight", [np.nan, -1.0])
def test_a_client_that_is_not_finite_may_weigh_anything(monkeypatch, value, weight) -> None:
    monkeypatch.setattr(spare, "_LARGE", 0)
    round = sums()
    finish = round.phases[0].work.finish

    def weighed(task, number, key):
        report = finish(task, number, key)
        given = report.parts["update"]._replace(weight=jnp.where(jnp.isfinite(number), 1.0, weight))
        return report._replace(parts={"update": given})

    phase = round.phases[0]._replace(work=round.phases[0].work._replace(finish=weighed))
    fed = sf.Federation.from_arrays(np.float32([1, 2, value, 4]), np.zeros(4, np.int32), offsets=np.arange(5))
    process = sf.Process(round._replace(phases=(phase,))).on(sf.Simulation(streams=2, kernel="sequential"))
    state, metrics = process.next(process.initialize(), fed)
    assert metrics["finalizer"] == {"counted": 3, "left out": 1}
    np.testing.assert_allclose(state.algorithm, np.full(SIZE, 7 / 3), rtol=1e-6)


def test_a_client_that_is_trusted_is_not_read_twice() -> None:
    """The compiled loop asks whether the total is finite, once, and no client."""
    phase = sums().phases[0]
    briefing, kept = Briefing(jax.ShapeDtypeStruct((SIZE,), np.float32), {"update": ()}), ()
    half = trusting.trusting(phase, briefing, kept)
    assert half is not None
    from sumfold.core.client import Start, client_half

    def asks(half) -> int:
        start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
        text = str(jax.make_jaxpr(lambda s: half.finish(s, jnp.float32(1), jax.random.key(0)))(start))
        return sum(f"[{SIZE}]" in line for line in text.splitlines() if "is_finite" in line)

    assert asks(half) == 0
    assert asks(client_half(phase)) == 1
