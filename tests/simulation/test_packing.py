"""Who runs where: even, without loss, and a function of the step counts alone."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumfold import keys
from sumfold.core.batching import Batching, plan
from sumfold.simulation.choice import fitting, lanes_by_rule
from sumfold.simulation.lanes import course
from sumfold.simulation.packing import cut, spread

costs = st.lists(st.integers(1, 60), max_size=40).map(lambda c: np.array(c, np.int64))


@given(costs, st.integers(1, 7))
def test_no_bin_is_further_than_one_job_above_the_mean(cost, bins):
    load = np.bincount(spread(cost, bins), cost, bins)
    assert len(load) == bins
    assert load.sum() == cost.sum()
    assert load.max() <= cost.sum() / bins + cost.max(initial=0)


@pytest.mark.parametrize("spread_of_sizes", [0.4, 1.0])
@pytest.mark.parametrize("bins", [2, 8, 64])
def test_many_jobs_fill_the_bins_evenly(bins, spread_of_sizes):
    draw = np.random.default_rng(0)
    cost = np.maximum(draw.lognormal(3, spread_of_sizes, 5000), 1).astype(np.int64)
    load = np.bincount(spread(cost, bins), cost, bins)
    assert load.max() < 1.02 * load.mean() + cost.max() * (bins > 8)


def test_packing_does_not_look_at_anything_but_costs():
    cost = np.array([3, 1, 4, 1, 5, 9, 2, 6], np.int64)
    assert spread(cost, 3).tolist() == spread(cost.copy(), 3).tolist() == [1, 1, 2, 2, 2, 0, 0, 1]


@given(costs, st.integers(1, 5))
def test_a_cut_keeps_neighbours_together(cost, bins):
    chosen = cut(cost, bins)
    assert (np.diff(chosen) >= 0).all()
    assert ((chosen >= 0) & (chosen < bins)).all()
    load = np.bincount(chosen, cost, bins)
    assert load.max(initial=0) <= cost.sum() / bins + cost.max(initial=0)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=25), st.integers(1, 6), st.integers(1, 3))
def test_every_step_of_every_client_is_taken_once_in_its_order(counts, width, epochs):
    batching = Batching(size=4, epochs=epochs)
    made = plan(np.array(counts), keys.codes(range(len(counts))), batching, keys.root(0), 0)
    room = int(np.maximum(made.steps, 1).sum())
    laid = course(made, width, room, single=False)
    seen = {}
    for t in range(int(laid.length)):
        for lane in range(width):
            client = int(laid.client[t, lane])
            if client < 0:
                assert not laid.last[t, lane]
                continue
            steps = seen.setdefault(client, [])
            assert laid.step[t, lane] == len(steps), "a client's steps follow each other in one lane"
            steps.append((lane, int(laid.batch[t, lane]), bool(laid.last[t, lane])))
    assert sorted(seen) == list(range(len(counts)))
    for client, steps in seen.items():
        assert len({lane for lane, *_ in steps}) == 1
        assert [last for *_, last in steps] == [False] * (len(steps) - 1) + [True]
        first, number = int(made.start[client]), int(made.steps[client])
        assert [batch for _, batch, _ in steps] == (list(range(first, first + number)) if number else [-1])
    assert (laid.client[int(laid.length) :] == -1).all()


@pytest.mark.parametrize("spread_of_sizes", [0.4, 1.0])
def test_lanes_waste_little(spread_of_sizes):
    draw = np.random.default_rng(1)
    counts = np.clip(draw.lognormal(5, spread_of_sizes, 1000), 10, 4000).astype(np.int64)
    made = plan(counts, keys.codes(range(1000)), Batching(size=20), keys.root(0), 0)
    laid = course(made, 32, int(made.steps.sum()), single=False)
    waste = int(laid.length) * 32 / made.steps.sum() - 1
    assert waste < (0.03 if spread_of_sizes < 1 else 0.25)


def test_the_rule_for_lanes():
    assert [lanes_by_rule(n, "cpu") for n in (100, 610, 4_000, 30_000, 48_670, 1_000_000)] == [128, 128, 32, 4, 0, 0]
    assert [lanes_by_rule(n, "gpu") for n in (100, 1_000_000, 1 << 40)] == [1024, 256, 4]
    assert [fitting(128, n) for n in (1, 15, 16, 100, 512, 10_000)] == [0, 0, 4, 16, 128, 128]
    assert [fitting(128, n, 0.5) for n in (1, 6, 7, 100, 10_000)] == [0, 0, 4, 50, 128]


def test_a_plan_has_no_python_object_for_each_client():
    """The operations of a plan: calls into Python code do not grow with the clients."""

    def calls(clients):
        counts, codes, number = np.full(clients, 8), np.arange(clients, dtype=np.uint32), 0

        def count(frame, event, argument):
            nonlocal number
            number += event == "call"

        sys.setprofile(count)
        try:
            made = plan(counts, codes, Batching(size=4), keys.root(0), 0)
            course(made, 8, 2 * clients, single=False)
        finally:
            sys.setprofile(None)
        return number

    few, many = calls(1_000), calls(20_000)
    assert many <= few + 20
