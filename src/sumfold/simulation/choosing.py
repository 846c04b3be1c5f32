"""Which kernel, how many lanes and how many streams an algorithm gets: chosen once, before its first round.

By rule wherever the rule is clear, by a short trial in between, and as the user says where they say it. The choice
fixes the order of sums, so it is stored in checkpoints and adopted by whoever goes on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sumfold.core.batching import Batching
from sumfold.core.cohort import Cohort
from sumfold.core.driver import State, opened
from sumfold.simulation import memory
from sumfold.simulation.ahead import Begun
from sumfold.simulation.choice import (
    GIVEN,
    Choice,
    as_given,
    clear,
    convolves,
    fitting,
    lane_bytes,
    lanes_by_rule,
    narrowed,
)
from sumfold.simulation.cores import affordable, cores
from sumfold.simulation.placement import shortened
from sumfold.simulation.trials import faster, mark

if TYPE_CHECKING:
    from sumfold.simulation.bound import Bound

__all__ = ["adopted", "chosen", "streams_of"]

_log = logging.getLogger("sumfold")

_WORTHWHILE = 1000.0
"""Microseconds of computation for each stream; to start a second, wait for it and add its totals takes half of that."""

_TRIAL_STEPS = 2048
"""Client steps of a trial: some ten milliseconds of a model that is small enough to need one."""


def chosen(bound: Bound, state: State, cohort: Cohort, batchings: Sequence[Batching]) -> Choice:
    """Kernel and lanes for this algorithm, with fewer lanes where so many copies of the model do not fit."""
    return _affordable(bound, _by_rule(bound, state, cohort, batchings), state)


def _by_rule(bound: Bound, state: State, cohort: Cohort, batchings: Sequence[Batching]) -> Choice:
    """Kernel and lanes for this algorithm, once."""
    options, platform = bound.options, bound.devices[0].platform
    streams = options.streams or (affordable(cores(), bound.parameters) if platform == "cpu" else 1)
    if bound.hosted or options.deterministic or options.kernel == "sequential":
        return Choice("sequential", 0, streams, GIVEN if options.kernel else "rule")
    if options.lanes:
        return Choice("lanes", int(options.lanes), streams, GIVEN)
    number, size = bound.placement.total(cohort) // (streams * bound.gang.size), bound.parameters
    wanted = lanes_by_rule(size, platform)
    if options.kernel == "lanes":
        return Choice("lanes", wanted or 4, streams, "kernel given")
    evenness = bound.placement.evenness(cohort, batchings) if platform != "cpu" else None
    if not fitting(wanted, number, evenness) or (platform == "cpu" and convolves(bound.round, state, cohort)):
        return Choice("sequential", 0, streams, "rule")
    if clear(size, platform) or not options.autotune or bound.gang.size > 1:
        return Choice("lanes", wanted, streams, "rule")
    return _tried(bound, state, cohort, batchings, wanted, streams, evenness)


def _affordable(bound: Bound, choice: Choice, state: State) -> Choice:
    """The choice, with fewer lanes where so many copies of the model do not fit any process's device."""
    if not choice.lanes:
        return choice
    free = memory.free(bound.devices[0])
    if bound.gang.size > 1:  # all choose alike
        free = min(int(some) for some in bound.gang.gathered(np.int64(1 << 62 if free is None else free)))
    made = narrowed(choice, lane_bytes(bound.round, bound.halves, state), free)
    if made != choice:
        now = f"{made.lanes} lanes" if made.lanes else "one client after the other"
        _log.warning("%s lanes do not fit the device (%s): going on with %s", choice.lanes, made.why, now)
    return made


def _tried(
    bound: Bound,
    state: State,
    cohort: Cohort,
    batchings: Sequence[Batching],
    wanted: int,
    streams: int,
    evenness: float | None,
) -> Choice:
    """The faster of both kernels on the first clients of the first phase: the only place that looks at a clock."""
    seats = bound.placement.seats(cohort, batchings, streams)

    def seconds(abreast: int) -> float:
        begun = Begun(state, cohort, seats, abreast, range(streams), [[]] * streams)
        plans, steps = shortened(bound._plans(0, begun, [0], bound._rooms(0, begun))[0], _TRIAL_STEPS)
        standing = opened(state.algorithm, state.stages)
        briefing = bound.server.brief(0, standing, state.seed, np.int32(state.round))
        memories, seen = bound.recall.rows(state, [], seats.slots)
        examples = bound.placement.examples(cohort.data, bound._device(0))
        given = ((), np.ones(seats.slots, bool), plans, examples, memories[0], seen, state.seed, np.int32(0))
        taken = []
        for _ in range(3):  # the first compiles
            began = time.perf_counter()
            bound._summed(0, 0, bound._rows(0, briefing, (), seats.total), seats.total, briefing, *given)
            taken.append(time.perf_counter() - began)
        return min(taken[1:]) / max(steps, 1)

    about = bound.devices[0].platform, bound.devices[0].device_kind, streams, batchings[0]
    known = mark(bound.round, bound.halves, state, cohort, batchings[0], about)
    best, why = faster(known, (0, fitting(wanted, seats.total // streams, evenness)), seconds)
    return Choice("lanes" if best else "sequential", wanted if best else 0, streams, why)


def streams_of(bound: Bound, state: State, cohort: Cohort, batchings: Sequence[Batching], choice: Choice) -> int:
    """How many streams the cohort is worth: a function of what it computes, never of what was measured."""
    if bound.hosted:
        return 1
    most = min(choice.streams * len(bound.devices), max(len(cohort.positions), 1))
    if most == 1 or bound.options.streams or bound.options.devices or bound.gang.size > 1:
        return most
    work = sum(bound.placement.work(cohort, batching, bound.parameters, choice.lanes) for batching in batchings)
    return int(min(most, max(work // _WORTHWHILE, 1)))


def adopted(bound: Bound, chosen: Mapping[str, Any]) -> list[str]:
    """Go on with what an interrupted run chose; what the user asks for now comes first.

    Returns:
        What a person should know.
    """
    if bound.options.deterministic:
        return []
    asked = bound.options
    before = Choice(*(chosen[field] for field in Choice._fields))
    bound.choice = as_given(before, asked.kernel, asked.lanes)._replace(streams=asked.streams or before.streams)
    here = {"platform": bound.devices[0].platform, "devices": len(bound.devices)}
    here |= {"streams": asked.streams or (cores() if here["platform"] == "cpu" else before.streams)}
    there = {name: before.streams if name == "streams" else chosen[name] for name in here}
    if bound.choice[:3] == before[:3] and here == there:
        return []
    return [
        f"the rounds so far ran with {there}, kernel {before.kernel}, lanes {before.lanes}, here is {here}: "
        f"going on with kernel {bound.choice.kernel}, lanes {bound.choice.lanes}, streams {bound.choice.streams}, and "
        "equal to rounding; only deterministic=True gives the same bytes on any machine"
    ]
