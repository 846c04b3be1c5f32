"""How much a client counts, in TFF's words."""

from __future__ import annotations

import enum
from typing import Any

__all__ = ["ClientWeighting", "weighting_of"]


class ClientWeighting(enum.Enum):
    """The two usual weights of a client in the mean.

    Example:
        >>> weighting_of(ClientWeighting.UNIFORM)
        'uniform'
    """

    NUM_EXAMPLES = 0
    UNIFORM = 1


def weighting_of(given: Any) -> Any:
    """`sumfold.learning.fed_avg`'s ``weighting``; a function is taken as it is, None is by examples."""
    known = {None: "examples", ClientWeighting.NUM_EXAMPLES: "examples", ClientWeighting.UNIFORM: "uniform"}
    return known[given] if given is None or isinstance(given, ClientWeighting) else given
