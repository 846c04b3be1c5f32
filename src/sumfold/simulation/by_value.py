"""An algorithm as bytes, for processes that never see the program that made it.

cloudpickle takes closures and classes of a script along. It cannot know that two objects belong together which pickle
themselves apart: a Keras model writes itself as an archive, and its variables, which closures hold too, come out as
copies that the model no longer looks at. So Keras's objects are taken as they lie in memory. Since other libraries may
have surprises of the same kind, both ends compare what they make of a round: one client that takes one step, as the
text of the compiler's input.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.cohort import ClientData, batch_shapes
from sumfold.core.driver import State, Totals, nothing, play, server_of
from sumfold.core.group import add
from sumfold.core.round import Round
from sumfold.tree import Tree

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
    halves, batch = [client_half(phase) for phase in round.phases], batch_shapes(data, 2)

    def one(algorithm: Tree, stages: Tree, seed: Any, number: Any, batch: Any) -> Any:
        def sigma(i: int, briefing: Briefing, kept: Tree) -> tuple[list[Totals], Tree]:
            phase, half, key = round.phases[i], halves[i], keys.typed(seed)
            start = Start(briefing, half.fresh(briefing, kept), kept, number)
            carry = half.init(start, key)
            if batch is not None and half.step is not None:
                carry = half.step(start, carry, batch, key)
            upload, keeping = half.finish(start, carry, key)
            totals = nothing(phase, briefing, kept, 1)
            parts = {
                part: (stage.group or add).accumulate(totals.parts[part], upload.parts[part], jnp.int32(0))
                for part, stage in phase.aggregate.items()
            }
            return [totals._replace(parts=parts, metrics=tree.add(totals.metrics, upload.metrics))], keeping.kept

        return play(round, server_of(round), algorithm, stages, seed, number, sigma, ())

    shapes = tree.shapes((state.algorithm, state.stages))
    lowered = jax.jit(one).lower(*shapes, tree.shape((2,), np.uint32), tree.shape((), np.int32), batch)
    return hashlib.blake2b(lowered.as_text().encode(), digest_size=16).hexdigest()
