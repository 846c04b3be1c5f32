"""Buffers of large totals go from round to round, and nobody sees it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.simulation import in_place, memory, spare


@pytest.fixture
def everything_is_large(monkeypatch):
    monkeypatch.setattr(spare, "_LARGE", 0)
    monkeypatch.setattr(in_place, "_SMALL", 1)


def federation():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(60, 5)).astype(np.float32)
    return sf.Federation.from_arrays(x, x[:, :1], offsets=np.arange(13) * 5)


def process(streams=2, algorithm=sf.learning.fed_avg):
    model = sf.models.from_functions(lambda key: {"w": jnp.ones((5, 1))}, lambda p, x: x @ p["w"], optax.squared_error)
    return algorithm(model, optax.sgd(0.1), batching=sf.Batching(2)).on(
        sf.Simulation(streams=streams, kernel="sequential")
    )


def states(made, rounds=4):
    state, kept = made.initialize(), []
    for _ in range(rounds):
        state, _ = made.next(state, federation())
        kept.append(state)
    return [made.get_model_weights(state)["w"] for state in kept]  # read when the last round has ended


@pytest.mark.parametrize("algorithm", [sf.learning.fed_avg, sf.learning.scaffold, sf.learning.mime])
def test_rounds_are_the_same_and_earlier_states_stay(algorithm, monkeypatch):
    if algorithm is sf.learning.mime:
        algorithm = lambda model, optimizer, batching: sf.learning.mime(model, optimizer, batching=batching)
    plain = states(process(algorithm=algorithm))
    monkeypatch.setattr(spare, "_LARGE", 0)
    jax.tree.map(np.testing.assert_array_equal, plain, states(process(algorithm=algorithm)))


@pytest.mark.usefixtures("everything_is_large")
def test_the_buffers_are_those_of_the_round_before():
    made, at = process(), []
    state = made.initialize()
    for _ in range(3):
        state, _ = made.next(state, federation())
        kept = made._run.spare._kept
        at.append({place: [a.unsafe_buffer_pointer() for a in jax.tree.leaves(parts)] for place, parts in kept.items()})
    assert sorted(at[0]) == [(0, 0), (0, 1)]
    assert at[1] == at[2]


def test_small_totals_are_not_kept():
    made = process()
    made.next(made.initialize(), federation())
    assert made._run.spare._kept == {}


def summing():
    """A phase whose state is the sum itself."""
    work = sf.Work(
        init=lambda task, key: jnp.zeros(3),
        step=lambda task, total, batch, key: total + batch.examples[0].sum(),
        finish=lambda task, total, key: sf.Report({"sum": sf.Contribution(total, jnp.float32(1))}),
        batching=sf.Batching(5, shuffle=False),
    )
    return sf.Phase(
        lambda state, key: state,
        work,
        {"sum": sf.aggregators.sum()},
        lambda state, results, measured, key: (results["sum"], {}),
    )


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("streams", [1, 2])
def test_a_state_that_is_the_sum_itself_stays(streams):
    made = sf.Process(sf.Round("sums", lambda params, key: jnp.zeros(3), (summing(),))).on(
        sf.Simulation(streams=streams)
    )
    first, _ = made.next(made.initialize(), federation())
    made.next(first, federation())
    made.next(first, federation(), clients=range(3))
    assert np.isfinite(np.asarray(first.algorithm)).all()


@pytest.mark.usefixtures("everything_is_large")
def test_a_state_that_is_the_sum_itself_stays_beside_host_work():
    """One stream, and the server's programs by themselves: what was summed may be handed on as it is."""

    def told(message, data, key, memory):
        return sf.Report({"one": sf.Contribution(np.ones(3, np.float32), weight=1.0)}, {}, memory)

    hosted = sf.Phase(
        lambda state, key: state, sf.HostWork(told), {"one": sf.aggregators.mean()}, lambda state, *_: (state, {})
    )
    made = sf.Process(sf.Round("both", lambda params, key: jnp.zeros(3), (hosted, summing())))
    made = made.on(sf.Simulation(host=sf.Workers(1)))
    first, _ = made.next(made.initialize(), federation())
    before = np.asarray(first.algorithm).copy()
    made.next(first, federation())
    made.next(first, federation(), clients=range(3))
    np.testing.assert_array_equal(np.asarray(first.algorithm), before)


def weights(state):
    (leaf,) = (leaf for leaf in jax.tree.leaves(state.algorithm) if leaf.shape == (5, 1))
    return leaf


def after(made, state, rounds, keep=lambda state: None):
    """The states' addresses and values, round by round; of each state only what `keep` returns is kept."""
    at, values, kept = [], [], []
    for _ in range(rounds):
        state, _ = made.next(state, federation())
        at.append(weights(state).unsafe_buffer_pointer())
        values.append(np.array(weights(state), copy=True).tolist())
        kept.append(keep(state))
    return at, values, kept


@pytest.mark.usefixtures("everything_is_large")
def test_a_state_that_the_caller_let_go_is_written_over():
    made = process()
    at, values, _ = after(made, made.initialize(), 6)
    assert len(set(at)) == 2
    assert at[2:] == at[:-2]
    assert values == after(process(), made.initialize(), 6, lambda state: state)[1]


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(
    "keep",
    [
        lambda state: state,
        lambda state: [jax.tree.leaves(state.algorithm)],
        lambda state: np.asarray(weights(state)),
        lambda state: memoryview(np.asarray(weights(state))),
        lambda state: np.from_dlpack(weights(state)),
        lambda state: jax.device_put(weights(state), jax.devices()[0]),
        lambda state: weights(state).addressable_data(0),
    ],
    ids=["states", "arrays", "views", "memory", "dlpack", "put where it is", "its shard"],
)
def test_what_the_caller_keeps_of_a_state_stays_as_it_is(keep):
    made = process()
    _, values, kept = after(made, made.initialize(), 5, keep)
    for value, held in zip(values, kept, strict=True):
        if isinstance(held, list):
            (held,) = (leaf for leaf in held[0] if leaf.shape == (5, 1))
        held = held if hasattr(held, "shape") and not isinstance(held, tuple) else weights(held)
        assert np.asarray(held).tolist() == value


@pytest.mark.usefixtures("everything_is_large")
def test_a_caller_may_go_back_to_an_earlier_state():
    made = process()
    first, _ = made.next(made.initialize(), federation())
    second, _ = made.next(first, federation())
    again, _ = made.next(first, federation())
    third, _ = made.next(second, federation())
    assert np.asarray(weights(again)).tolist() == np.asarray(weights(second)).tolist()
    assert np.asarray(weights(third)).tolist() == after(process(), made.initialize(), 3)[1][-1]


@pytest.mark.usefixtures("everything_is_large")
def test_no_state_is_kept_where_memory_is_short(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 100)
    made = process()
    after(made, made.initialize(), 3)
    assert [former._made for former in made._run.closing._former] == [type(made._run.closing._former[0]._made)()]


@pytest.mark.usefixtures("everything_is_large")
def test_a_state_may_move_to_another_device():
    made = process()
    state, (here, there) = made.initialize(), jax.devices()[:2]
    state = state._replace(algorithm=jax.device_put(state.algorithm, here))
    for _ in range(3):
        state, _ = made.next(state, federation())
    state = state._replace(algorithm=jax.device_put(state.algorithm, there))
    for _ in range(3):
        state, _ = made.next(state, federation())
    assert weights(state).devices() == {there}
    assert np.asarray(weights(state)).tolist() == after(process(), made.initialize(), 6)[1][-1]
