"""explain(): every array that leaves a client, with dtype, shape, bytes and bounds."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import tree
from sumfold.core import stack

MODEL = sf.models.from_functions(
    lambda key: {"w": jnp.zeros((3, 2)), "b": jnp.zeros(2, jnp.bfloat16), "n": jnp.int32(1)},
    lambda p, x: x @ p["w"] + p["b"],
    optax.softmax_cross_entropy_with_integer_labels,
    metrics={"accuracy": sf.metrics.accuracy},
)
DATA = {"a": (np.ones((5, 3), np.float32), np.zeros(5, np.int32))}


def make(**options):
    return sf.learning.fed_avg(MODEL, optax.inject_hyperparams(optax.sgd)(learning_rate=0.1), **options)


def section(text, begins):
    """The block of lines that begins so, up to the next empty line."""
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(begins))
    stop = next((i for i in range(start, len(lines)) if not lines[i]), len(lines))
    return "\n".join(lines[start:stop])


@pytest.fixture(scope="module")
def text():
    return make(batching=sf.Batching(size=4, epochs=2, max_steps=9)).explain(DATA)


def test_what_is_sent(text):
    sent = section(text, "Sent to every client")
    for array, size in (("float32[3, 2]", 24), ("bfloat16[2]", 4), ("int32[]", 4)):
        assert re.search(rf"{re.escape(array)}\s+{size} B", sent), array
    assert "learning_rate" in sent
    assert "the same bytes" in sent


def test_what_leaves(text):
    leaves = section(text, "Leaves each client")
    listed = re.findall(r"(\w+)(\[[\d, ]*\])\s+(\d+) B", leaves)
    # update: w, b and a weight; metrics: two sums each of loss and accuracy, two counts
    assert len(listed) == 3 + 4 + 2
    assert ("float32", "[3, 2]", "24") in listed
    assert ("bfloat16", "[2]", "4") in listed
    total = int(re.search(r"Leaves each client: ([\d,]+) B", leaves)[1])
    assert total == sum(int(size) for _, _, size in listed) == 24 + 4 + 4 + 16 + 8
    assert "part 'update': the algorithm uses only the sum over clients (add); no bound" in leaves
    assert "nothing else" in leaves


def test_what_is_computed_and_kept(text):
    assert re.search(r"step +\d+ operations for each batch of x float32\[4, 3\], y int32\[4\]", text)
    assert "of 4 rows, 2 epochs, shuffled, at most 9 steps" in text
    assert "Stays with the client: nothing" in text
    assert "The server" in text


def test_before_any_data_and_after_a_round():
    process = make()
    assert "explain(client_data) shows its types" in process.explain()
    process.next(process.initialize(), DATA)
    after = process.explain()
    assert "explain(client_data)" not in after
    assert "float32[8, 3]" in after


def test_bounds_and_rules_that_need_individuals():
    value = lambda public, memory, given, key: (given.value, memory)
    same = lambda state, total, key: (total, state, {})
    bounded = sf.Stage(value, same, bound=lambda b: b._replace(norm=0.5, low=-0.25, high=0.25))
    text = make(aggregator=bounded).explain()
    assert "bounds: norm ≤ 0.5, high ≤ 0.25, ≥ -0.25" in text
    individuals = sf.Stage(
        value, lambda state, total, key: (tree.scale(jnp.float32(1), average(total)), state, {}), group=stack
    )
    assert "EVERY CLIENT'S OWN VALUE" in make(aggregator=individuals).explain()


def average(stacked):
    return jax.tree.map(lambda a: a.mean(0), stacked.values)


def test_memory_that_stays():
    def step(task, carry, batch, key):
        return carry

    def finish(task, carry, key):
        return sf.Report({}, {"n": task.rows}, memory=task.memory + 1.0)

    work = sf.Work(lambda task, key: jnp.float32(0), step, finish, memory=lambda message: jnp.zeros((2, 2)))
    phase = sf.Phase(lambda s, k: (), work, {}, lambda s, r, m, k: (s, {}))
    process = sf.Process(sf.Round("remembering", lambda p, k: jnp.float32(0), (phase,)))
    stays = section(process.explain(), "Stays with the client, never sent")
    assert "float32[2, 2]" in stays
