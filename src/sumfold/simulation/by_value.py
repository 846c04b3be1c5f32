"""An algorithm as bytes, for processes that never see the program that made it.

cloudpickle takes closures and classes of a script along. It cannot know that two objects belong together which pickle
themselves apart: a Keras model writes itself as an archive, and its variables, which closures hold too, come out as
copies that the model no longer looks at. So Keras's objects are taken as they lie in memory. Since other libraries may
have surprises of the same kind, both ends compare what they make of a round with one client that takes one step.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from typing import Any

import cloudpickle

from sumfold.core.cohort import ClientData, batch_shapes
from sumfold.core.driver import State
from sumfold.core.program import canonical, one_client
from sumfold.core.round import Round

__all__ = ["algorithm", "as_bytes", "program"]


def as_bytes(round: Round) -> bytes:
    """The algorithm; `algorithm` reads it.

    Raises:
        Exception: of any kind, that an object's own pickling raises.
    """
    _Pickler(data := io.BytesIO(), protocol=5).dump(round)
    return data.getvalue()


def algorithm(data: bytes) -> Round:
    """The reverse of `as_bytes`."""
    round: Round = pickle.loads(data)
    return round


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, and Keras's models and tracked containers are taken as they are."""

    def reducer_override(self, value: Any) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        keras = sys.modules.get("keras.src")
        if keras is not None:
            if isinstance(value, keras.saving.keras_saveable.KerasSaveable):
                return _new, (type(value),), value.__dict__
            tracking = keras.utils.tracking
            if isinstance(value, (tracking.TrackedList, tracking.TrackedDict, tracking.TrackedSet)):
                kind = next(kind for kind in (list, dict, set) if isinstance(value, kind))
                # What it tracks may hold it in turn, so it is made first and filled later.
                return _new, (type(value),), (kind, kind(value), value.__dict__), None, None, _fill
        return super().reducer_override(value)


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


def _fill(value: Any, given: tuple[Any, Any, dict[str, Any]]) -> None:
    kind, items, state = given
    (kind.extend if kind is list else kind.update)(value, items)
    value.__dict__.update(state)


def program(round: Round, state: State, data: ClientData) -> str:
    """A hash of all that a round computes for one client that takes one step, the same in every process.

    Args:
        round: the algorithm.
        state: a state of it; only shapes are used.
        data: client data; only shapes are used.
    """
    text = canonical(one_client(round, state.algorithm, state.stages, batch_shapes(data, 2)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
