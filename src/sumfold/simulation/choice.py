"""Which kernel runs a cohort: by rule where the case is clear, otherwise by a short trial.

The sequential stream needs one copy of the model and no padding; its price is the overhead of a loop for every step.
Lanes share that overhead among L clients, at L copies of the model and of its gradient: they win while those fit the
cache, and lose beyond, and they turn convolutions into grouped ones that a CPU computes ten times slower.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Start
from sumfold.core.cohort import Cohort, batch_shapes
from sumfold.core.driver import State
from sumfold.core.exported import forms
from sumfold.core.round import Round

__all__ = ["GIVEN", "Choice", "clear", "convolves", "fitting", "lanes_by_rule", "model_size"]

GIVEN = "given"
"""`Choice.why` where the user said how many lanes there are, however many clients."""

_CACHE = 1 << 17
"""Parameters of all lanes together that still fit the second-level cache of a core with their gradients."""

_TINY, _SMALL = 1 << 10, 1 << 15
"""Parameters below which lanes always win on a CPU, and above which they never did."""

_ABREAST = 32
"""Lanes on an accelerator: enough to fill it with clients of a small model."""


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
    """
    if platform != "cpu":
        return _ABREAST
    return 0 if parameters > _SMALL else _power_of_two(max(min(_CACHE // max(parameters, 1), 128), 4))


def fitting(lanes: int, clients: int) -> int:
    """So many lanes, or fewer for a stream of few clients: with less than four clients a lane too much is padding.

    Example:
        >>> fitting(128, 1000), fitting(128, 100), fitting(128, 10)
        (128, 16, 0)
    """
    most = _power_of_two(min(lanes, clients // 4))
    return most if most >= 4 else 0


def clear(parameters: int, platform: str) -> bool:
    """Whether the rule alone decides."""
    return platform == "cpu" and not _TINY < parameters <= _SMALL


def model_size(round: Round, state: State) -> int:
    """Parameters of the message that every client receives in the first phase."""
    message = jax.eval_shape(round.phases[0].broadcast, state.algorithm, keys.typed(state.seed))
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(message))


def convolves(round: Round, half: ClientHalf, state: State, cohort: Cohort) -> bool:
    """Whether a client's step has convolutions."""
    batch = batch_shapes(cohort.data, 2)
    if half.step is None or batch is None:
        return False
    phase = round.phases[0]
    public = {part: stage.share(state.stages[0][part]) for part, stage in phase.aggregate.items()}
    briefing = Briefing(jax.eval_shape(phase.broadcast, state.algorithm, keys.typed(state.seed)), public)
    made = forms(half, briefing, (), batch)
    start = Start(made.briefing, made.memory, made.kept, tree.shape((), "int32"))
    return "conv_general_dilated" in str(jax.make_jaxpr(half.step)(start, made.carry, batch, keys.typed(state.seed)))


def _power_of_two(number: int) -> int:
    return 1 << (number.bit_length() - 1) if number else 0
