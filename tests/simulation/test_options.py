"""The options of Simulation: what is refused, what is chosen, and that a resumed run chooses the same again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation import choosing, compilation_cache, trials


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
    assert "Simulation(lanes=4, " in str(caught.value)


def test_the_option_that_was_given_is_named():
    with pytest.raises(sf.CompositionError, match=r"Simulation\(kernel='lanes', deterministic=True\)"):
        sf.Simulation(kernel="lanes", deterministic=True)


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

        monkeypatch.setattr(choosing.time, "perf_counter", clock)
        made = process(features=2000, streams=1)
        first = chosen(made, fed)
        assert first["kernel"] == kernel
        assert "µs a client step" in first["why"]
        monkeypatch.setattr(choosing.time, "perf_counter", lambda: pytest.fail("tried twice"))
        assert chosen(made, fed) == first
    monkeypatch.setattr(choosing.time, "perf_counter", lambda: pytest.fail("autotune is off"))
    assert chosen(process(features=2000, streams=1, autotune=False), fed)["kernel"] == "lanes"


def test_what_a_trial_measured_is_kept_on_disk(monkeypatch, tmp_path):
    """Each tick of the clock is longer than the one before, so that what is first tried is faster."""
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: tmp_path)
    fed, ticks = federation(64, features=2000), []

    def clock():
        ticks.append(len(ticks) ** 2)
        return ticks[-1]

    monkeypatch.setattr(choosing.time, "perf_counter", clock)
    first = chosen(process(features=2000, streams=1), fed)
    assert first["kernel"] == "sequential"
    (file,) = tmp_path.iterdir()
    assert sorted(json.loads(file.read_text("utf-8"))["seconds a client step, by lanes"]) == ["0", "16"]
    monkeypatch.setattr(choosing.time, "perf_counter", lambda: pytest.fail("tried again"))
    assert chosen(process(features=2000, streams=1), fed) == {**first, "why": f"as measured before: {first['why']}"}


def test_a_trial_is_known_by_what_makes_it_fast_or_slow(monkeypatch):
    class Known(Exception):
        pass

    def stop(mark, tried, seconds):
        raise Known(mark)

    monkeypatch.setattr(choosing, "faster", stop)
    fed = federation(64, features=2000)

    def mark(loss=lambda outputs, y: (outputs - y) ** 2, optimizer=None, size=2, streams=1, clients=fed):
        model = sf.models.from_functions(lambda key: jnp.zeros(2000), lambda w, x: x @ w, loss)
        made = sf.learning.fed_avg(model, optimizer or optax.sgd(0.05), batching=sf.Batching(size=size))
        with pytest.raises(Known) as info:
            made.on(sf.Simulation(streams=streams)).next(made.initialize(), clients)
        return str(info.value)

    same = [mark(), mark(), mark(clients=federation(70, features=2000))]
    assert len(set(same)) == 1
    others = [mark(size=3), mark(optimizer=optax.adam(0.05)), mark(streams=2), mark(loss=lambda o, y: jnp.abs(o - y))]
    monkeypatch.setattr(trials, "version", lambda name: "0.0.0")
    others.append(mark())
    assert len({*same, *others}) == 6


def test_a_file_of_a_trial_that_is_damaged_is_written_again(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: tmp_path)
    file, asked = tmp_path / "trial-a.json", []

    def faster():
        asked.clear()
        return trials.faster("a", (0, 8), lambda lanes: asked.append(lanes) or 3e-6 - lanes * 1e-7)

    assert faster() == (8, "µs a client step: no lanes 3.0, 8 lanes 2.2")
    whole = file.read_bytes()
    assert faster() == (8, "as measured before: µs a client step: no lanes 3.0, 8 lanes 2.2")
    assert asked == []
    for damaged in (
        b"",
        b"\xff",
        b"[1]",
        whole[:-3],
        whole.replace(b"3e-06", b"null"),
        whole.replace(b"3e-06", b"NaN"),
    ):
        file.write_bytes(damaged)
        assert faster()[0] == 8
        assert asked == [0, 8], damaged
    assert file.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [file], "nothing half written stays"


@pytest.mark.parametrize("folder", [None, "file"], ids=["switched off", "not to be written"])
def test_a_trial_needs_no_folder(monkeypatch, tmp_path, folder):
    (tmp_path / "file").touch()
    monkeypatch.setattr(compilation_cache, "switch_on", lambda: folder and tmp_path / folder)
    assert trials.faster("a", (0, 8), lambda lanes: 3e-6 - lanes * 1e-7)[0] == 8
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


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
