"""A client's half of a phase as an exported plan: programs in StableHLO and the types of all that crosses.

The programs work on flat lists of leaves, so that nothing of the server's classes is needed to run them. They can do
no I/O. What a client holds is three programs and `fresh`, which makes the memory of a client never seen before.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax import export

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Start, client_half
from sumfold.core.group import add
from sumfold.core.round import Batch, Round
from sumfold.errors import CompositionError
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
    batch = None if half.step is None else batch
    briefing, kept, batch = tree.shapes(briefing), tree.shapes(kept), tree.shapes(batch)
    key = tree.shape((2,), "uint32")
    number = tree.shape((), "int32")
    memory = jax.eval_shape(half.fresh, briefing, kept)
    start = Start(briefing, memory, kept, number)
    carry = jax.eval_shape(lambda s, k: half.init(s, keys.typed(k)), start, key)

    programs = _programs(half, (start, carry, batch))
    inputs: dict[str, tuple[Tree, ...]] = {
        "fresh": (briefing, kept),
        "init": (start, key),
        "finish": (start, carry, key),
    }
    if batch is not None:
        inputs["step"] = (start, carry, batch, key, number)
    with _no_source_locations():
        serialised = {name: _serialised(programs[name], given, platforms) for name, given in inputs.items()}
    upload, keeping = jax.eval_shape(lambda s, c, k: half.finish(s, c, keys.typed(k)), start, carry, key)
    stages, b = round.phases[phase].aggregate, round.phases[phase].work.batching
    manifest = PlanManifest(
        round.name,
        phase,
        briefing=tree.specs(briefing),
        kept=tree.specs(kept),
        memory=tree.specs(memory),
        carry=tree.specs(carry),
        batch=tree.specs(batch),
        upload=tree.specs((upload.parts, upload.metrics)),
        keeping=tree.specs(keeping),
        groups={part: (stage.group or add).kind for part, stage in stages.items()},
        batching=(b.size, b.epochs, b.shuffle, b.max_steps, b.drop_remainder),
        programs=serialised,
        host=half.step is None,
    )
    return codec.encode(manifest)


def _serialised(program: Callable[..., Any], given: Sequence[Tree], platforms: Sequence[str] | None) -> bytes:
    try:
        exported = export.export(jax.jit(program), platforms=platforms)(*map(jax.tree.leaves, given))
        return bytes(exported.serialize())
    except NotImplementedError as error:
        raise CompositionError(
            "SF-COMP-029",
            f"client work that calls back into Python ({error})",
            "an array program that can be sent to a client",
            "take jax.debug.print, pure_callback and io_callback out of the model, loss and metrics",
        ) from error


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Keep file names and lines of the model out of the programs."""
    config: Any = jax.config
    before = config.jax_traceback_in_locations_limit
    config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        config.update("jax_traceback_in_locations_limit", before)


def _programs(half: ClientHalf, shapes: tuple[Start, Tree, Batch | None]) -> dict[str, Callable[..., Any]]:
    """The client half as functions of flat lists of leaves."""
    start_tree, carry_tree, batch_tree = (tree.structure(t) for t in shapes)
    briefing_tree, kept_tree = tree.structure(shapes[0].briefing), tree.structure(shapes[0].kept)
    un = tree.unflatten

    def fresh(briefing: list[Any], kept: list[Any]) -> list[Any]:
        return jax.tree.leaves(half.fresh(un(briefing_tree, briefing), un(kept_tree, kept)))

    def init(start: list[Any], key: list[Any]) -> list[Any]:
        return jax.tree.leaves(half.init(un(start_tree, start), keys.typed(key[0])))

    def step(start: list[Any], carry: list[Any], batch: list[Any], key: list[Any], t: list[Any]) -> list[Any]:
        step_key = keys.at_step(keys.typed(key[0]), t[0])
        assert half.step is not None
        after = half.step(un(start_tree, start), un(carry_tree, carry), un(batch_tree, batch), step_key)
        return jax.tree.leaves(after)

    def finish(start: list[Any], carry: list[Any], key: list[Any]) -> tuple[list[Any], list[Any], Any, Any]:
        upload, keeping = half.finish(un(start_tree, start), un(carry_tree, carry), keys.typed(key[0]))
        return (
            jax.tree.leaves((upload.parts, upload.metrics)),
            jax.tree.leaves(keeping),
            upload.finite,
            upload.weights_valid,
        )

    return {"fresh": fresh, "init": init, "step": step, "finish": finish}


def content_id(plan: bytes) -> str:
    """A plan's name: a digest of its bytes."""
    return hashlib.blake2b(plan, digest_size=16).hexdigest()


def leaves_match(specs: Sequence[Spec], avals: Sequence[Any]) -> bool:
    """Whether a program's types are those of the manifest."""
    return [(s.shape, s.dtype) for s in specs] == [(tuple(a.shape), str(a.dtype)) for a in avals]
