"""The client half of a phase as exported programs: StableHLO between flat lists of leaves.

Exported once, the same programs run in a deployment's clients, in `Loopback`, and in a simulation that must give the
same bits as they: what XLA makes of a program depends on what stands around it, so one form is pinned.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax import export
from jax.extend.core import ClosedJaxpr

from sumfold import keys, tree
from sumfold.core.client import Briefing, ClientHalf, Keeping, Start, Upload
from sumfold.core.driver import State
from sumfold.core.pure import check_calls, check_kept
from sumfold.core.round import Batch, Round
from sumfold.errors import CompositionError
from sumfold.tree import Tree

__all__ = ["Forms", "each_half", "export_half", "forms", "loaded", "traced"]


_exporting = threading.Lock()


class Forms(NamedTuple):
    """Shapes of all that one client's half takes and gives.

    Attributes:
        briefing, kept, memory, carry, batch, upload, keeping: trees of shapes; ``batch`` is None where the client takes
            no step.
    """

    briefing: Briefing
    kept: Tree
    memory: Tree
    carry: Tree
    batch: Batch | None
    upload: Upload
    keeping: Keeping


def forms(half: ClientHalf, briefing: Briefing, kept: Tree, batch: Batch | None) -> Forms:
    """The shapes that come of these; nothing runs."""
    batch = None if half.step is None else batch
    briefing, kept, batch = tree.shapes(briefing), tree.shapes(kept), tree.shapes(batch)
    key, number = tree.shape((2,), "uint32"), tree.shape((), "int32")
    memory = jax.eval_shape(half.fresh, briefing, kept)
    start = Start(briefing, memory, kept, number)
    carry = jax.eval_shape(lambda s, k: half.init(s, keys.typed(k)), start, key)
    upload, keeping = jax.eval_shape(lambda s, c, k: half.finish(s, c, keys.typed(k)), start, carry, key)
    return Forms(briefing, kept, memory, carry, batch, upload, keeping)


def export_half(half: ClientHalf, forms: Forms, platforms: Sequence[str] | None = None) -> dict[str, bytes]:
    """The programs ``fresh``, ``init``, ``finish``, and ``step`` where there are batches, as bytes.

    ``fresh``: briefing, kept -> memory; ``init``: start, key -> carry; ``step``: start, carry, batch, key, number ->
    carry; ``finish``: start, carry, key -> (upload, keeping, finite, weights valid), where start is briefing, memory,
    kept and the rows held. All are flat lists of leaves.

    Raises:
        CompositionError: for client work that calls back into Python, or has another side effect.
    """
    programs, inputs = _programs(half, forms), _inputs(forms)
    check_calls(_traced(programs, inputs), prints=False)  # JAX exports what it traced here: the functions are the same
    with _no_source_locations():
        return {name: _serialised(programs[name], given, platforms) for name, given in inputs.items()}


def traced(half: ClientHalf, forms: Forms) -> dict[str, ClosedJaxpr]:
    """What `export_half` exports, before it is exported; traced anew each time.

    Raises:
        CompositionError: for client work that uses what was put away in an earlier tracing.
    """
    return _traced(_programs(half, forms), _inputs(forms))


def each_half(
    round: Round, halves: Sequence[ClientHalf], state: State, batch: Batch | None
) -> Iterator[tuple[ClientHalf, Forms]]:
    """The client half of every phase with the shapes that it takes in a round that begins with `state`; nothing runs.

    Args:
        round: the algorithm.
        halves: of its phases.
        state: arrays or shapes.
        batch: the shapes of a batch; None where there is no row.
    """

    def brief(i: int, algorithm: Tree, memories: Tree, seed: Any) -> Briefing:
        phase = round.phases[i]
        public = {part: stage.share(memories[part]) for part, stage in phase.aggregate.items()}
        return Briefing(phase.broadcast(algorithm, keys.typed(seed)), public)

    kept: Tree = ()
    for i, half in enumerate(halves):
        briefing = jax.eval_shape(functools.partial(brief, i), state.algorithm, state.stages[i], state.seed)
        made = forms(half, briefing, kept, batch)
        kept = made.keeping.kept
        yield half, made


def loaded(programs: Mapping[str, bytes]) -> dict[str, export.Exported]:
    """The programs as they were exported, to be called under `jax.jit`."""
    return {name: export.deserialize(bytearray(code)) for name, code in programs.items()}


def _traced(
    programs: Mapping[str, Callable[..., Any]], inputs: Mapping[str, tuple[Tree, ...]]
) -> dict[str, ClosedJaxpr]:
    found = {name: jax.make_jaxpr(programs[name])(*map(jax.tree.leaves, given)) for name, given in inputs.items()}
    check_kept(found)
    return found


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
    """Keep file names and lines of the model out of the programs; one thread at a time, since the setting is global."""
    config: Any = jax.config
    with _exporting:
        before = config.jax_traceback_in_locations_limit
        config.update("jax_traceback_in_locations_limit", 0)
        try:
            yield
        finally:
            config.update("jax_traceback_in_locations_limit", before)


def _start(forms: Forms) -> Start:
    return Start(forms.briefing, forms.memory, forms.kept, tree.shape((), "int32"))


def _inputs(forms: Forms) -> dict[str, tuple[Tree, ...]]:
    """What each program takes."""
    start, key, number = _start(forms), tree.shape((2,), "uint32"), tree.shape((), "int32")
    inputs: dict[str, tuple[Tree, ...]] = {
        "fresh": (forms.briefing, forms.kept),
        "init": (start, key),
        "finish": (start, forms.carry, key),
    }
    if forms.batch is not None:
        inputs["step"] = (start, forms.carry, forms.batch, key, number)
    return inputs


def _programs(half: ClientHalf, forms: Forms) -> dict[str, Callable[..., Any]]:
    """The client half as functions of flat lists of leaves."""
    start_tree, carry_tree, batch_tree = map(tree.structure, (_start(forms), forms.carry, forms.batch))
    briefing_tree, kept_tree = tree.structure(forms.briefing), tree.structure(forms.kept)
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
