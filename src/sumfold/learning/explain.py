"""What a client receives, computes and sends, read off the programs themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from sumfold import keys, tree
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.driver import State
from sumfold.core.group import add
from sumfold.core.round import Batch, HostWork, Phase, Round
from sumfold.core.stage import Bound, Stage
from sumfold.models.model import describe
from sumfold.tree import Spec, Tree

__all__ = ["explain"]

_SUMS = {
    "add": "only the sum over clients",
    "modular": "only the sum over clients, modulo an integer",
    "min": "only the smallest over clients",
    "max": "only the largest over clients",
    "fold": "only a fold over clients",
    "stack": "EVERY CLIENT'S OWN VALUE: this rule needs individuals",
}


def explain(title: str, round: Round, state: State, batch: Batch | None) -> str:
    """The text of `Process.explain`, from a state's shapes, and the shapes of one batch or None."""
    lines = [f"{title}: one round, {len(round.phases)} exchange(s) with the same clients"]
    kept: Tree = ()
    for i, phase in enumerate(round.phases):
        briefing = jax.eval_shape(functools.partial(_briefing, phase), state.algorithm, state.stages[i], state.seed)
        if len(round.phases) > 1:
            lines += ["", f"Exchange {i + 1}"]
        text, kept = _phase(phase, state.algorithm, briefing, kept, batch)
        lines += text
    return "\n".join(lines)


def _briefing(phase: Phase, algorithm: Tree, stages: Tree, seed: Tree) -> Briefing:
    public = {part: stage.share(stages[part]) for part, stage in phase.aggregate.items()}
    return Briefing(phase.broadcast(algorithm, keys.typed(seed)), public)


def _phase(
    phase: Phase, algorithm: Tree, briefing: Briefing, kept: Tree, batch: Batch | None
) -> tuple[list[str], Tree]:
    half = client_half(phase)
    key = jax.eval_shape(lambda: keys.typed(jnp.zeros(2, jnp.uint32)))
    rows = tree.shape((), "int32")
    start = Start(briefing, jax.eval_shape(half.fresh, briefing, kept), kept, rows)
    carry = jax.eval_shape(half.init, start, key)
    upload, keeping = jax.eval_shape(half.finish, start, carry, key)

    lines = ["", _title("Sent to every client, the same bytes", (briefing.message, briefing.public))]
    lines += _rows(tree.specs(briefing.message)) + _rows(tree.specs(briefing.public), prefix="public ")
    own = phase.work.run if isinstance(phase.work, HostWork) else None
    lines += ["", "Each client computes, on its own rows" + (" and without I/O" if own is None else "")]
    lines += [f"  init     {_operations(half.init, start, key)} operations, once"] if own is None else []
    if half.step is None:
        name = getattr(own, "__qualname__", None) or repr(own)
        lines += [f"  run      the Python function {name}, once: it may do anything that a program of the client's may"]
    elif batch is None:
        lines += ["  step     once for each batch; explain(client_data) shows its types before the first round"]
    else:
        count = _operations(half.step, start, carry, batch, key)
        lines += [f"  step     {count} operations for each batch of {_examples(batch)}"]
    lines += [f"  finish   {_operations(half.finish, start, carry, key)} operations, once"]
    lines += [f"  batches  {_batches(phase)}"]

    lines += ["", _title("Leaves each client", (upload.parts, upload.metrics))]
    for part, stage in phase.aggregate.items():
        group = (stage.group or add).kind
        lines += [f"  part {part!r}: the algorithm uses {_SUMS[group]} ({group}); {_bounds(stage)}"]
        lines += _rows(tree.specs(upload.parts[part]), indent=4)
    lines += ["  metrics: the algorithm uses only the sum over clients; no bound"]
    lines += _rows(tree.specs(upload.metrics), indent=4)
    if isinstance(phase.work, HostWork) and phase.work.init is None:
        lines += [
            "    and those that the function reports; their sizes are not known beforehand, nor in the total above"
        ]
    lines += ["  and two flags: whether every number is finite, and every weight valid"]
    lines += ["  no row, and nothing else: a client that is not finite sends only the flags"]

    held = [*_rows(tree.specs(keeping.memory)), *_rows(tree.specs(keeping.kept))]
    lines += ["", "Stays with the client, never sent" if held else "Stays with the client: nothing", *held]
    lines += ["", "The server"]
    lines += [f"  decode   {part!r}: {stage.name}" for part, stage in phase.aggregate.items()]
    specs = tree.specs(algorithm)
    lines += [f"  finalize applies the results to its state: {len(specs)} arrays, {_size(tree.nbytes(algorithm))}"]
    return lines, tree.zeros_like(keeping.kept)


def _examples(batch: Batch) -> str:
    examples = batch.examples
    if isinstance(examples, (tuple, list)) and len(examples) in {2, 3}:
        return ", ".join(f"{name} {describe(a)}" for name, a in zip(("x", "y", "weight"), examples, strict=False))
    return describe(examples)


def _title(text: str, arrays: Tree) -> str:
    return f"{text}: {_size(tree.nbytes(arrays))}"


def _rows(specs: Iterable[Spec], indent: int = 2, prefix: str = "") -> list[str]:
    return [
        f"{' ' * indent}{prefix + (s.path or 'value'):<44} {s.dtype + str(list(s.shape)):<20} {_size(s.nbytes):>10}"
        for s in specs
    ]


def _size(nbytes: int) -> str:
    return (
        f"{nbytes:,} B"
        if nbytes < 10_000
        else f"{nbytes / 1e6:,.2f} MB"
        if nbytes >= 1e6
        else f"{nbytes / 1e3:,.1f} kB"
    )


def _batches(phase: Phase) -> str:
    size, epochs, shuffle, max_steps, drop = phase.work.batching
    text = "one full batch" if size is None else f"of {size} rows"
    text += f", {epochs} epoch{'s' * (epochs > 1)}, {'shuffled' if shuffle else 'in order'}"
    text += f", at most {max_steps} steps" if max_steps else ""
    return text + (", a short last batch is left out" if drop else "") + " (ready-made batches: as they are)"


def _bounds(stage: Stage) -> str:
    bound = stage.bound(Bound())
    told = [f"{name} ≤ {value:g}" for name, value in bound._asdict().items() if name != "low" and value < math.inf]
    told += [f"≥ {bound.low:g}"] if bound.low > -math.inf else []
    return "bounds: " + ", ".join(told) if told else "no bound on the values"


def _operations(function: Any, *shapes: Any) -> int:
    return _count(jax.make_jaxpr(function)(*shapes).jaxpr)


def _count(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        inner = [sub for value in equation.params.values() for sub in _jaxprs(value)]
        total += sum(map(_count, inner)) if inner else 1
    return total


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return _jaxprs(value.jaxpr)
    if isinstance(value, (tuple, list)):
        return [sub for item in value for sub in _jaxprs(item)]
    return []
