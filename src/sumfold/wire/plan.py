"""A client's half of a phase as an exported plan: programs in StableHLO and the types of all that crosses.

The programs work on flat lists of leaves, so that nothing of the server's classes is needed to run them. They can do
no I/O. What a client holds is three programs and `fresh`, which makes the memory of a client never seen before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import jax

from sumfold import tree
from sumfold.core.client import Briefing, client_half
from sumfold.core.exported import export_half, forms
from sumfold.core.group import add
from sumfold.core.round import Batch, Round
from sumfold.simulation.canonical import fast
from sumfold.tree import Spec, Tree
from sumfold.wire import codec
from sumfold.wire.messages import PlanManifest

__all__ = ["content_id", "export_plan"]


def export_plan(
    round: Round,
    phase: int,
    briefing: Briefing,
    kept: Tree,
    batch: Batch | None,
    platforms: Sequence[str] | None = None,
) -> bytes:
    """Export one phase's client half for one batch width.

    Args:
        round: the algorithm.
        phase: the phase's number.
        briefing, kept, batch: arrays or shapes of what the client will have; ``batch`` None makes a plan that takes
            no step, for a client without examples when no example has been seen.
        platforms: for example ``("cpu", "cuda")``; default this process's.

    Returns:
        The plan's bytes, a message without arrays; see `sumfold.wire.messages.PlanManifest`.
    """
    half = client_half(round.phases[phase])
    if "cpu" in (platforms or (jax.default_backend(),)):
        half = fast(half)
    made = forms(half, briefing, kept, batch)
    stages, b = round.phases[phase].aggregate, round.phases[phase].work.batching
    manifest = PlanManifest(
        round.name,
        phase,
        briefing=tree.specs(made.briefing),
        kept=tree.specs(made.kept),
        memory=tree.specs(made.memory),
        carry=tree.specs(made.carry),
        batch=tree.specs(made.batch),
        upload=tree.specs((made.upload.parts, made.upload.metrics)),
        keeping=tree.specs(made.keeping),
        groups={part: (stage.group or add).kind for part, stage in stages.items()},
        batching=(b.size, b.epochs, b.shuffle, b.max_steps, b.drop_remainder),
        programs=export_half(half, made, platforms),
        host=half.step is None,
    )
    return codec.encode(manifest)


def content_id(plan: bytes) -> str:
    """A plan's name: a digest of its bytes."""
    return hashlib.blake2b(plan, digest_size=16).hexdigest()


def leaves_match(specs: Sequence[Spec], avals: Sequence[Any]) -> bool:
    """Whether a program's types are those of the manifest."""
    return [(s.shape, s.dtype) for s in specs] == [(tuple(a.shape), str(a.dtype)) for a in avals]
