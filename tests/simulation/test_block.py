"""Rules that need every client's value: the same stack in blocks of any size, in one copy, in memory or on the disk."""

import logging
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core import Contribution, Phase, Report, Round, Stage, Work, stack
from sumfold.core.rows import Rows
from sumfold.simulation import block, memory, spill
from sumfold.simulation.block import rows_of_a_block, spans
from sumfold.simulation.exchange import spread_rows
from sumfold.simulation.gang import Alone

SIZES = {"a": 5, "b": 1, "c": 0, "d": 13, "broken": 4, "e": 8}
BATCHES = sf.Batching(size=4, epochs=2)
ROW = 3 * 4  # bytes of a client's values
KERNELS = {
    "one stream": sf.Simulation(streams=1, kernel="sequential"),
    "two streams": sf.Simulation(streams=2, kernel="sequential"),
    "lanes": sf.Simulation(streams=1, lanes=2),
    "two streams of lanes": sf.Simulation(streams=2, lanes=2),
}


def clients():
    draw = np.random.default_rng(0)
    made = {name: draw.normal(size=(n, 3)).astype("f4") for name, n in SIZES.items()}
    made["broken"] *= np.nan
    return {name: (x, x.sum(1) + 1) for name, x in made.items()}


def watched(steps=BATCHES):
    """Local SGD whose round keeps every client's update, beside their mean; clients count their rounds."""

    def loss(w, batch):
        x, y = batch.examples
        return jnp.where(batch.mask, (x @ w - y) ** 2, 0.0).sum()

    def step(task, w, batch, key):
        return w - 0.01 * jax.grad(loss)(w, batch)

    def finish(task, w, key):
        update, rows = task.message - w, task.rows.astype(jnp.float32)
        parts = {"each": Contribution(update, rows), "mean": Contribution(update * (1 + task.memory), rows)}
        return Report(parts, {"rows": task.rows}, task.memory + 1)

    def finalize(state, results, measured, key):
        counts = {"clients": measured.num_clients, "left out": measured.num_non_finite_clients}
        told = {"client_work": {**measured.sums, **counts}}
        return {"w": state["w"] - results["mean"], "each": results["each"]}, told

    each = Stage(
        lambda public, m, given, key: (given.value, m), lambda held, total, key: (total, held, {}), group=stack
    )
    work = Work(lambda task, key: task.message, step, finish, steps, memory=lambda message: jnp.float32(0))
    aggregate = {"each": each, "mean": sf.aggregators.mean()}
    start = {"w": jnp.zeros(3), "each": stack.zero(jnp.zeros(3), len(SIZES))}
    phase = Phase(lambda state, key: state["w"], work, aggregate, finalize)
    return sf.Process(Round("watched", lambda params, key: start, (phase,)))


def ran(runtime, rounds=2):
    process, data = watched().on(runtime), clients()
    state = process.initialize()
    for _ in range(rounds):
        state, metrics = process.next(state, data)
    return process, state, metrics


def bits(state):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves((state.algorithm, dict(state.clients)))]


@pytest.fixture(scope="module")
def loopback():
    return ran(sf.Loopback())


@pytest.mark.parametrize("name", KERNELS)
def test_the_stack_is_loopbacks_in_blocks_of_any_size(name, loopback, monkeypatch):
    _, expected, told = loopback
    found, blocks = {}, {}
    for size in (2 if "lanes" in name else 1, 3, 100):
        monkeypatch.setattr(block, "_BYTES", size * ROW)
        process, state, metrics = ran(KERNELS[name])
        of_each = process._run.blocks[0]
        made = of_each.program._cache_size()
        counted, program = [], of_each.program
        of_each.program = lambda *args: counted.append(args[1]) or program(*args)
        process.next(state, clients())
        assert program._cache_size() == made, "one executable for each width of batches, whatever the round"
        found[size], blocks[size] = bits(state), len(counted)
        assert metrics["client_work"] == told["client_work"]
        assert process._run.compiled._cache_size() == 0, "no program that holds the whole stack"
    assert blocks[100] <= blocks[3] < blocks[min(blocks)]
    first, *others = found.values()
    assert all(other == first for other in others), "the size of a block must not change a bit of any part"
    each = state.algorithm["each"]
    np.testing.assert_array_equal(each.present, expected.algorithm["each"].present)
    np.testing.assert_array_equal(each.present, [True, True, True, True, False, True])
    np.testing.assert_allclose(each.values, expected.algorithm["each"].values, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(state.algorithm["w"], expected.algorithm["w"], rtol=1e-5, atol=1e-6)
    assert np.abs(np.asarray(each.values)).sum(1).astype(bool).tolist() == [True, True, False, True, False, True]
    assert {k: float(jax.tree.leaves(v)[0]) for k, v in state.clients.items()} == dict.fromkeys("abcde", 2.0)


def test_clients_of_one_step_in_lanes_fill_the_same_rows(loopback, monkeypatch):
    """Where no client takes two steps, lanes have no state between them."""
    one = sf.Batching(size=None)
    states = []
    for size in (2, 100):
        monkeypatch.setattr(block, "_BYTES", size * ROW)
        process = watched(one).on(KERNELS["lanes"])
        states.append(process.next(process.initialize(), clients()).state)
    process = watched(one).on(sf.Loopback())
    expected = process.next(process.initialize(), clients()).state.algorithm["each"]
    assert bits(states[0]) == bits(states[1])
    np.testing.assert_allclose(states[0].algorithm["each"].values, expected.values, rtol=1e-5, atol=1e-6)


def program_of(clients, side):
    """The compiler's account of the block program of a model of side² parameters, and the bytes of its data."""
    x = np.zeros((clients, side), np.float32)
    federation = sf.Federation.from_arrays(x, np.zeros(clients, np.int32), offsets=np.arange(clients + 1))
    model = sf.models.from_functions(
        lambda key: jnp.zeros((side, side)), lambda w, x: x @ w, lambda p, y: (p**2).sum(-1)
    )
    each = Stage(
        lambda public, m, given, key: (given.value, m),
        lambda held, total, key: (total.values[0], held, {}),
        group=stack,
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=1), aggregator=each)
    process = process.on(sf.Simulation(streams=1, kernel="sequential"))
    state, given = process.initialize(), []
    of_each = process._run.blocks[0]
    program = of_each.program
    of_each.program = lambda *args: given.append(shapes(args)) or program(*args)
    process.next(state, federation)
    account = program.lower(*given[0]).compile().memory_analysis()
    data = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(given[0][4:]))
    return account, data, given[0][0].totals.parts["update"].present.shape[0]


def shapes(args):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), a.dtype), args)


def test_a_block_needs_its_rows_and_six_copies_of_the_model_for_any_number_of_clients():
    side, copy = 200, 4 * 200**2
    for clients in (150, 600):
        account, data, rows = program_of(clients, side)
        assert rows == block._BYTES // copy < clients
        taken = account.argument_size_in_bytes + account.temp_size_in_bytes + account.output_size_in_bytes
        assert account.alias_size_in_bytes >= rows * copy, "a block writes into the rows of the one before"
        assert taken - account.alias_size_in_bytes - data < (rows + 6) * copy


def test_a_rule_reads_the_rows_where_they_were_written():
    rows = Rows({"w": np.zeros((1, 5), np.float32)}, 4)
    rows.put([2], {"w": np.ones((3, 5))}, [True])
    stacked = rows.stacked()
    assert stacked.values["w"].unsafe_buffer_pointer() == rows.values["w"].ctypes.data
    assert stacked.present.tolist() == [False, False, True, False]
    assert stacked.values["w"].sum(1).tolist() == [0, 0, 5, 0]


@pytest.mark.parametrize(
    "runtime", [*KERNELS.values(), sf.Simulation(deterministic=True, streams=2)], ids=[*KERNELS, "pinned"]
)
def test_a_stack_larger_than_memory_goes_through_the_disk(runtime, monkeypatch, tmp_path, caplog):
    _, expected, _ = ran(runtime)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(memory, "for_stacks", lambda free: 10)
    made, mapped = [], spill._mapped
    monkeypatch.setattr(spill, "_mapped", lambda *given: made.append(list(tmp_path.iterdir())) or mapped(*given))
    with caplog.at_level(logging.INFO, "sumfold"):
        _, state, _ = ran(runtime)
    assert made == [[], []], "one file a round, without a name from the beginning"
    assert [*tmp_path.iterdir()] == []
    assert bits(state) == bits(expected)
    told = [record.getMessage() for record in caplog.records if "through a file" in record.getMessage()]
    assert len(told) == 1
    assert str(tmp_path) in told[0]
    assert "of 6 clients take 72 bytes, more than memory has room for (10 bytes)" in told[0]


def test_no_room_on_the_disk_is_said_before_a_client_runs(monkeypatch):
    monkeypatch.setattr(memory, "for_stacks", lambda free: 10)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill, "_mapped", full)
    with pytest.raises(sf.DataError, match=r"values of 6 clients, 72 bytes.*No space left.*SF-SIM-004"):
        ran(KERNELS["one stream"])


def test_blocks_of_a_course_hold_whole_steps():
    """Three lanes: two clients end in the first step, one in the second, three in the third."""
    last = np.array([[1, 1, 0], [0, 0, 1], [1, 1, 1], [0, 0, 0]], bool)
    client = np.array([[0, 1, 2], [3, 4, 2], [3, 4, 5], [-1, -1, -1]])
    course = block.Course(client, client, client, last, np.int32(3))
    plan = block.Clients(*[None] * 6, np.arange(10, 18), *[None] * 3)
    made = list(spans(plan, course, 3))
    assert [(int(span.first), int(span.end), places.tolist()) for span, places in made] == [
        (0, 2, [10, 11, 12]),
        (2, 3, [13, 14, 15]),
    ]
    assert [span.row[:6].tolist() for span, _ in made] == [[0, 1, 2, 0, 0, 0], [0, 1, 2, 0, 1, 2]]


def test_the_size_of_a_block_is_a_function_of_sizes():
    one = np.zeros((1, 1 << 20), np.float32)
    assert [rows_of_a_block(one, 100, width) for width in (1, 8)] == [4, 8]
    assert rows_of_a_block([one] * 8, 100, 1) == 1
    assert rows_of_a_block(np.zeros((1, 10), np.float32), 7, 1) == 7


class Two(Alone):
    """One of two processes that are threads here."""

    size, meeting, said = 2, threading.Barrier(2), {}

    def __init__(self, rank):
        super().__init__()
        self.rank = rank

    def gathered(self, tree):
        self.said[self.rank] = tree
        self.meeting.wait(10)
        both = [self.said[0], self.said[1]]
        self.meeting.wait(10)
        return both


@pytest.mark.parametrize("at_once", [1, 100], ids=["one row at a time", "all at once"])
def test_processes_give_each_other_their_rows(at_once, monkeypatch):
    monkeypatch.setattr("sumfold.simulation.exchange._ROWS", at_once * 2 * 8)
    values = np.arange(10, dtype=np.float32).reshape(5, 2)
    present = np.array([True, False, True, True, True])
    places = [np.array([0, 3]), np.array([], int), np.array([1]), np.array([2, 4])]

    def one(rank):
        rows = {"each": Rows(values, 5)}
        mine = np.concatenate(places[2 * rank : 2 * rank + 2])
        rows["each"].put(mine, values[mine], present[mine])
        spread_rows(Two(rank), rows, places)
        return rows["each"]

    with ThreadPoolExecutor(2) as pool:
        for rows in pool.map(one, range(2)):
            np.testing.assert_array_equal(rows.values, values)
            np.testing.assert_array_equal(rows.present, present)
