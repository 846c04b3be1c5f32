"""Reading and writing hyperparameters that live in a state."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sumfold.errors import CompositionError
from sumfold.learning.optimizers import Hparams, unseen

__all__ = ["check_numbers", "readable", "written"]

_NOTE = "unseen"


def readable(values: Hparams, optimizer: Any) -> dict[str, Any]:
    """The values as they stand, or a note under ``unseen`` that says why there are none."""
    return dict(values) if values else {_NOTE: unseen(optimizer)}


def written(known: Hparams, given: Mapping[str, Any], group: str) -> Hparams:
    """`known` with the given values.

    Raises:
        CompositionError: for a name that cannot be set, naming those that can.
    """
    given = {name: value for name, value in given.items() if name != _NOTE}
    for name in given:
        if name not in known:
            raise CompositionError(
                "SF-COMP-022",
                f"set_hparams with {group}.{name}",
                f"one of {sorted(known)}" if known else f"a hyperparameter that can be set, and {group} shows none",
                "see process.get_hparams(state); a value that follows a schedule is computed anew in each update, so "
                "setting it would change nothing: change the schedule instead",
            )
    return {name: jnp.asarray(given.get(name, value), jnp.result_type(value)) for name, value in known.items()}


def check_numbers(algorithm: str, values: Mapping[str, Any], *, zero: bool) -> None:
    """Refuse hyperparameters that are no finite numbers above 0, or of at least 0.

    Raises:
        CompositionError: naming the first such.
    """
    for name, value in values.items():
        try:
            number = math.nan if isinstance(value, (bool, str)) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number) or number < 0 or (number == 0 and not zero):
            raise CompositionError(
                "SF-COMP-062",
                f"{algorithm} with {name}={value!r}",
                f"a finite number {'of at least' if zero else 'above'} 0",
                f"try {name}=0.01",
            )
