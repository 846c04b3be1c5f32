"""Reading and writing hyperparameters that live in a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from sumfold.errors import CompositionError
from sumfold.learning.optimizers import Hparams, unseen

__all__ = ["readable", "written"]

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
