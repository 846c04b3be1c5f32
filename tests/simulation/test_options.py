"""The options of Simulation: what is refused, what is chosen, and that a resumed run chooses the same again."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation import bound as bound_module


def federation(clients, features=4, rows=6):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients * rows, features)).astype(np.float32)
    return sf.Federation.from_arrays(x, x[:, 0] - x[:, 1], offsets=np.arange(clients + 1) * rows)


def process(features=4, **options):
    model = sf.models.from_functions(
        lambda key: jnp.zeros(features), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
    )
    made = sf.learning.fed_avg(model, optax.sgd(0.05), batching=sf.Batching(size=2))
    return made.on(sf.Simulation(**options))


@pytest.mark.parametrize(
    ("option", "value", "needed"),
    [
        ("devices", 0, "a whole number of at least 1"),
        ("streams", -1, "a whole number of at least 1"),
        ("streams", 1.5, "a whole number of at least 1"),
        ("lanes", True, "a whole number of at least 1"),
        ("kernel", "lane", "'sequential', 'lanes' or None"),
        ("deterministic", "yes", "True or False"),
        ("autotune", None, "True or False"),
    ],
)
def test_an_option_that_is_none(option, value, needed):
    with pytest.raises(sf.CompositionError, match=needed) as caught:
        sf.Simulation(**{option: value})
    assert caught.value.code == "SF-SIM-001"
    assert f"{option}={value!r}" in str(caught.value)


def test_more_devices_than_there_are():
    with pytest.raises(sf.CompositionError, match="at most 2, the devices that JAX finds here") as caught:
        process(devices=3).next(process().initialize(), federation(2))
    assert caught.value.code == "SF-SIM-002"


@pytest.mark.parametrize("other", [{"deterministic": True}, {"kernel": "sequential"}], ids=str)
def test_lanes_exclude_what_adds_in_another_order(other):
    with pytest.raises(sf.CompositionError, match="lanes or the other") as caught:
        sf.Simulation(lanes=4, **other)
    assert caught.value.code == "SF-SIM-003"


def chosen(made, fed):
    made.next(made.initialize(), fed)
    return made._run.chosen()


def test_a_tiny_model_with_many_clients_gets_lanes_and_a_few_clients_do_not():
    assert chosen(process(streams=1), federation(600))["lanes"] == 128
    assert chosen(process(streams=1), federation(8))["kernel"] == "sequential"
    assert chosen(process(streams=1, kernel="sequential"), federation(600))["kernel"] == "sequential"
    assert chosen(process(streams=1, lanes=5), federation(8))["lanes"] == 5


def test_a_model_with_convolutions_gets_no_lanes_on_a_cpu():
    kernel = jnp.full((3, 3, 1, 2), 0.1)
    numbers = ("NHWC", "HWIO", "NHWC")
    model = sf.models.from_functions(
        lambda key: {"k": kernel},
        lambda p, x: jax.lax.conv_general_dilated(x, p["k"], (1, 1), "SAME", dimension_numbers=numbers).mean((1, 2, 3)),
        lambda outputs, y: (outputs - y) ** 2,
    )
    x = np.ones((80, 4, 4, 1), np.float32)
    fed = sf.Federation.from_arrays(x, np.zeros(80, np.float32), offsets=np.arange(41) * 2)
    made = sf.learning.fed_avg(model, optax.sgd(0.05), batching=sf.Batching(size=2)).on(sf.Simulation(streams=1))
    assert chosen(made, fed)["kernel"] == "sequential"


def test_between_the_clear_cases_a_trial_decides_once(monkeypatch):
    """The clock is a fake: what is last tried is faster, then what is first tried."""
    fed = federation(64, features=2000)
    for slower_first, kernel in ((True, "lanes"), (False, "sequential")):
        ticks, now = iter(range(10_000)), [0.0]

        def clock(ticks=ticks, now=now, slower_first=slower_first):
            now[0] += 1.0 if (next(ticks) < 6) == slower_first else 0.001
            return now[0]

        monkeypatch.setattr(bound_module.time, "perf_counter", clock)
        made = process(features=2000, streams=1)
        first = chosen(made, fed)
        assert first["kernel"] == kernel
        assert "µs a client step" in first["why"]
        monkeypatch.setattr(bound_module.time, "perf_counter", lambda: pytest.fail("tried twice"))
        assert chosen(made, fed) == first
    monkeypatch.setattr(bound_module.time, "perf_counter", lambda: pytest.fail("autotune is off"))
    assert chosen(process(features=2000, streams=1, autotune=False), fed)["kernel"] == "lanes"


def test_a_resumed_run_chooses_what_was_chosen(tmp_path):
    fed = federation(80)
    run = {"rounds": 4, "checkpoint": tmp_path, "progress": False}
    undisturbed = sf.train(process(streams=1, lanes=3), fed, rounds=4, progress=False)
    sf.train(process(streams=1, lanes=3), fed, **{**run, "rounds": 2})
    again = process(streams=1)
    resumed = sf.train(again, fed, **run)
    assert again._run.chosen()["lanes"] == 3
    before, after = (jax.tree.leaves(history.state.algorithm) for history in (undisturbed, resumed))
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(before, after, strict=True))


def test_a_resumed_run_says_that_it_goes_on_in_another_way(tmp_path, caplog):
    fed = federation(80)
    sf.train(process(streams=1, lanes=3), fed, rounds=2, checkpoint=tmp_path, progress=False)
    sf.train(process(streams=2, lanes=4), fed, rounds=4, checkpoint=tmp_path, progress=False)
    assert "lanes 3, here is" in caplog.text
    assert "going on with kernel lanes, lanes 4, streams 2" in caplog.text


def test_streams_are_used_where_they_are_worth_it():
    made = process()
    seats = []
    plan = made._run.placement.seats
    made._run.placement.seats = lambda *a, **k: seats.append(plan(*a, **k)) or seats[-1]
    small, large = federation(4), federation(3000)
    state = made.initialize()
    made.next(state, small)
    made.next(state, large)
    assert len(seats[0].places) == 1
    assert len(seats[-1].places) == made._run.choice.streams


def test_the_first_two_rounds_compile_and_no_later_one_does():
    from jax._src import test_util  # the counter of JAX's own tests

    fed, made = federation(3000), process(streams=2)
    state = made.initialize()
    draw = np.random.default_rng(1)
    for _ in range(2):
        state, _ = made.next(state, fed, clients=draw.choice(3000, 1000, replace=False))
    with test_util.count_jit_and_pmap_lowerings() as count:
        for _ in range(5):
            state, _ = made.next(state, fed, clients=draw.choice(3000, 1000, replace=False))
    assert count() == 0
