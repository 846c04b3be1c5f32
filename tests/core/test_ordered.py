"""Sums in an order that is fixed: any cut into runs of places gives the same bits."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sumfold as sf
from sumfold.core.client import Briefing
from sumfold.core.driver import nothing
from sumfold.core.group import maximum
from sumfold.core.ordered import Ordered
from sumfold.core.round import Contribution, Phase, Report, Work
from sumfold.core.stage import Stage


def phase():
    """A phase whose clients report one number in each of two parts, and a metric."""
    work = Work(
        init=lambda task, key: jnp.float32(0),
        step=lambda task, carry, batch, key: carry,
        finish=lambda task, carry, key: Report(
            {part: Contribution(carry, jnp.float32(1)) for part in ("update", "most")}, {"loss": carry}
        ),
    )
    most = Stage(lambda public, memory, given, key: (given.value, memory), lambda held, total, key: (total, held, {}))
    stages = {"update": sf.aggregators.sum(), "most": most._replace(group=maximum)}
    return Phase(lambda state, key: (), work, stages, lambda state, results, counted, key: (state, {}))


PHASE = phase()
ORDERED = Ordered(PHASE)
BRIEFING = Briefing((), {"update": (), "most": ()})


def summed(values, cuts, sent=False):
    zero = nothing(PHASE, BRIEFING, (), len(values))
    runs, edges = [], [0, *sorted(cuts), len(values)]
    for a, b in itertools.pairwise(edges):
        run = ORDERED.begin(BRIEFING, (), len(values))
        for place in range(a, b):
            value = values[place]
            if value is None:
                run.skip(place, finite=place % 2 == 0, valid=False)
            else:
                run.take(
                    place, {"update": jnp.float32(value), "most": jnp.float32(value)}, {"loss": jnp.float32(value)}
                )
        runs.append(ORDERED.received(zero, range(a, b), run.sent(16)) if sent else run)
    return jax.tree.map(lambda a: np.asarray(a).tolist(), ORDERED.total(zero, runs))


values = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6, width=32)), min_size=1, max_size=21)


@settings(max_examples=40)
@given(values, st.data())
def test_any_cut_gives_the_same_bits(values, data):
    whole = summed(values, [])
    cuts = data.draw(st.lists(st.integers(0, len(values)), max_size=4))
    assert summed(values, cuts) == whole
    assert summed(values, cuts, sent=True) == whole
    numbers = [v for v in values if v is not None]
    assert whole.num_clients == len(numbers)
    if numbers:
        np.testing.assert_allclose(whole.parts["most"], max(numbers), atol=1e-37)  # XLA has no subnormal numbers
        np.testing.assert_allclose(whole.metrics["loss"], np.sum(np.float64(numbers)), atol=2.0, rtol=1e-5)


def test_the_order_is_a_tree_over_places():
    """((a + b) + (c + d)) + e, which for these numbers is neither the sum from the left nor the exact one."""
    a, b, c, d, e = (np.float32(x) for x in (1e8, 3.0, -1e8, 5.0, 7.0))
    tree, left = ((a + b) + (c + d)) + e, (((a + b) + c) + d) + e
    assert tree != left
    assert summed([a, b, c, d, e], [2]).parts["update"] == tree


def test_who_is_left_out_is_counted():
    total = summed([None, 1.0, None, None], [1])
    assert (total.num_clients, total.num_non_finite_clients, total.invalid) == (1, 1, 0)


@pytest.mark.parametrize("clients", [1, 2, 1000])
def test_a_run_holds_few_sums(clients):
    run = ORDERED.begin(BRIEFING, (), clients)
    for place in range(clients):
        run.skip(place)
        assert len(run.nodes) <= 2 * clients.bit_length() + 2
