"""Which kernel runs a cohort: by rule where the case is clear, otherwise by a short trial.

The sequential stream needs one copy of the model and no padding; its price is the overhead of a loop for every step.
Lanes share that overhead among L clients, at L copies of the model and of its gradient: they win while those fit the
cache, and lose beyond, and they turn convolutions into grouped ones that a CPU computes ten times slower. An
accelerator idles in most of a step of one client: there they win for all models measured, the more the better, and what
bounds their number is memory and the longest client (docs/design/0027-accelerators.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Start, client_half
from sumfold.core.cohort import Cohort, batch_shapes
from sumfold.core.driver import State
from sumfold.core.exported import each_half, forms
from sumfold.core.round import Round
from sumfold.simulation import memory
from sumfold.tree import Tree

__all__ = [
    "GIVEN",
    "Choice",
    "as_given",
    "clear",
    "convolves",
    "fitting",
    "lane_bytes",
    "lanes_by_rule",
    "model_size",
    "narrowed",
]

GIVEN = "given"
"""How `Choice.why` begins where the user said how many lanes there are, however many clients."""

_CACHE = 1 << 17
"""Parameters of all lanes together that still fit the second-level cache of a core with their gradients."""

_TINY, _SMALL = 1 << 10, 1 << 15
"""Parameters below which lanes always win on a CPU, and above which they never did."""

_ABREAST, _TOGETHER = 1024, 1 << 28
"""Lanes on an accelerator at most, and parameters of all of them together."""

_VAST = 1 << 23
"""Parameters of a model of which a few clients may fill an accelerator: there a trial decides."""


class Choice(NamedTuple):
    """What the engine chose for an algorithm; a checkpoint stores it, since it fixes the order of sums.

    Attributes:
        kernel: ``sequential`` or ``lanes``.
        lanes: how many, 0 for the sequential stream.
        streams: at most, on each device.
        why: for people.

    Example:
        >>> Choice("sequential", 0, 2, "given").kernel
        'sequential'
    """

    kernel: str
    lanes: int
    streams: int
    why: str


def lanes_by_rule(parameters: int, platform: str) -> int:
    """How many lanes are worth trying for a model; 0 for none.

    Args:
        parameters: of the model.
        platform: ``cpu`` or an accelerator.

    Example:
        >>> lanes_by_rule(610, "cpu"), lanes_by_rule(8_000, "cpu"), lanes_by_rule(1_000_000, "cpu")
        (128, 16, 0)
        >>> lanes_by_rule(610, "gpu"), lanes_by_rule(1_000_000, "gpu")
        (1024, 256)
    """
    if platform != "cpu":
        return _power_of_two(max(min(_TOGETHER // max(parameters, 1), _ABREAST), 4))
    return 0 if parameters > _SMALL else _power_of_two(max(min(_CACHE // max(parameters, 1), 128), 4))


def fitting(lanes: int, clients: int, evenness: float | None = None) -> int:
    """So many lanes, or fewer for a stream of few clients.

    With less than four clients a lane too much of a CPU's time is padding. On an accelerator a step takes as long with
    few lanes as with many, and no stream is shorter than its longest client: it gets the lanes that are all busy until
    that one ends.

    Args:
        lanes: at most.
        clients: of the stream.
        evenness: on an accelerator, the mean client's steps over the longest's.

    Example:
        >>> fitting(128, 1000), fitting(128, 100), fitting(128, 10)
        (128, 16, 0)
        >>> fitting(128, 100, 1.0), fitting(128, 100, 0.5), fitting(128, 10, 0.3)
        (100, 50, 0)
    """
    most = _power_of_two(min(lanes, clients // 4)) if evenness is None else min(lanes, math.ceil(clients * evenness))
    return most if most >= 4 else 0


def clear(parameters: int, platform: str) -> bool:
    """Whether the rule alone decides."""
    return not _TINY < parameters <= _SMALL if platform == "cpu" else parameters <= _VAST


def model_size(round: Round, state: State) -> int:
    """Parameters of the message that every client receives in the first phase."""
    message = jax.eval_shape(round.phases[0].broadcast, state.algorithm, keys.typed(state.seed))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(message))


def convolves(round: Round, state: State, cohort: Cohort) -> bool:
    """Whether a client's step has convolutions, as its author wrote it."""
    batch, phase = batch_shapes(cohort.data, 2), round.phases[0]
    half = client_half(phase)
    if half.step is None or batch is None:
        return False
    public = {part: stage.share(state.stages[0][part]) for part, stage in phase.aggregate.items()}
    briefing = Briefing(jax.eval_shape(phase.broadcast, state.algorithm, keys.typed(state.seed)), public)
    made = forms(half, briefing, (), batch)
    start = Start(made.briefing, made.memory, made.kept, tree.shape((), "int32"))
    return "conv_general_dilated" in str(jax.make_jaxpr(half.step)(start, made.carry, batch, keys.typed(state.seed)))


def narrowed(choice: Choice, bytes_each: int, free: int | None) -> Choice:
    """The choice with as many lanes as fit the device: halved until they do, in the end one client after the other.

    Args:
        choice: what would be best.
        bytes_each: of one lane.
        free: bytes that the device has left; None where it does not tell.

    Example:
        >>> narrowed(Choice("lanes", 64, 2, "given"), 1 << 20, 100 << 20)
        Choice(kernel='lanes', lanes=16, streams=2, why='given 64 lanes, 128 MiB in 2 streams, and 50 MiB fit')
        >>> narrowed(Choice("lanes", 64, 1, "rule"), 1 << 30, 1 << 30).kernel
        'sequential'
    """
    budget, together = memory.for_lanes(free), bytes_each * choice.streams
    lanes = memory.lanes_within(choice.lanes, together, budget)
    if lanes == choice.lanes or budget is None:
        return choice
    streams = "one stream" if choice.streams == 1 else f"{choice.streams} streams"
    needed = f"{memory.told(together * choice.lanes)} in {streams}, and {memory.told(budget)} fit"
    why = f"{choice.why} {choice.lanes} lanes, {needed}"
    return Choice("lanes" if lanes else "sequential", lanes, choice.streams, why)


def as_given(before: Choice, kernel: str | None, lanes: int | None) -> Choice:
    """What an interrupted run chose, with what the user asks for now; lanes that did not fit then are not tried again.

    Example:
        >>> before = Choice("lanes", 16, 2, "given 64 lanes, 128 MiB in 2 streams, and 50 MiB fit")
        >>> as_given(before, None, 64) == before, as_given(before, None, 8).lanes
        (True, 8)
    """
    if not kernel and not lanes:
        return before
    if lanes and before.why.startswith(f"{GIVEN} {lanes} lanes, "):
        return before
    return Choice(kernel or "lanes", int(lanes or before.lanes or 0), before.streams, GIVEN)


def lane_bytes(round: Round, halves: Sequence[ClientHalf], state: State) -> int:
    """Bytes of one lane in the phase that needs most: its carry before and after a step, and a gradient.

    What a step computes in between comes on top; see `sumfold.simulation.memory`.
    """
    made = [forms for _, forms in each_half(round, halves, state, None)]
    return max(2 * _bytes(some.carry) + _bytes(some.briefing.message) for some in made)


def _bytes(shapes: Tree) -> int:
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1) if number else 0
