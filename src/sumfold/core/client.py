"""The client half of a phase: the only code that a client executes, encode ∘ finish ∘ step* ∘ init.

Both runtimes run exactly this: the simulator compiles it into its streams, a deployment exports its three
functions. What leaves a client is an `Upload`; what it keeps is a `Keeping`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sumfold import keys, tree
from sumfold.core.host import shaped
from sumfold.core.round import Batch, HostWork, Phase, Report, Task
from sumfold.keys import Key
from sumfold.tree import Leaf, Tree

__all__ = ["Briefing", "ClientHalf", "Keeping", "Memory", "Upload", "client_half", "client_key", "is_finite"]


class Memory(NamedTuple):
    """What a client remembers from round to round for one phase; never sent.

    Attributes:
        work: of the work (SCAFFOLD's control variate).
        stages: by part, of its stage (error feedback).
    """

    work: Tree
    stages: dict[str, Tree]


class Briefing(NamedTuple):
    """What the server sends to every client in one phase, the same bytes.

    Attributes:
        message: of the algorithm.
        public: by part, what its stage shares.
    """

    message: Tree
    public: dict[str, Tree]


class Start(NamedTuple):
    """All that one client's half of a phase starts from."""

    briefing: Briefing
    memory: Memory
    kept: Tree
    rows: Leaf


class Upload(NamedTuple):
    """What leaves a client.

    Attributes:
        parts: by part, the encoded value.
        metrics: tree of sums.
        finite: bool[], whether every number of the report is finite; if not, nothing else counts.
        weights_valid: bool[], whether every weight is finite and not negative.
    """

    parts: dict[str, Tree]
    metrics: Tree
    finite: Leaf
    weights_valid: Leaf


class Keeping(NamedTuple):
    """What stays with the client: its memory for the next round, and `kept` for the next phase."""

    memory: Memory
    kept: Tree


class ClientHalf(NamedTuple):
    """Three programs, and the memory of a client never seen: what a plan exports; no `step` for host work."""

    fresh: Callable[[Briefing, Tree], Memory]
    init: Callable[[Start, Key], Tree]
    step: Callable[[Start, Tree, Batch, Key], Tree] | None
    finish: Callable[[Start, Tree, Key], tuple[Upload, Keeping]]


def client_key(run: Key, phase: int, round: Leaf, client: Leaf) -> Key:
    """The key of one client in one phase of one round."""
    return keys.derive(run, purpose=f"phase {phase}", round=round, client=client)


def report_shapes(phase: Phase, message: Tree, kept: Tree) -> Report:
    """The shapes of a client's report; nothing runs, and no data is needed since `step` keeps the carry's type."""
    report: Report = jax.eval_shape(_reporting(shaped(phase)), message, kept)
    return report


def _reporting(phase: Phase) -> Callable[[Tree, Tree], Report]:
    """What one client reports without a step."""
    work = phase.work

    def run(message: Tree, kept: Tree) -> Report:
        assert work.init is not None
        task = Task(message, work.memory(message), kept, jnp.int32(0))
        key = keys.typed(jnp.zeros(2, jnp.uint32))
        return work.finish(task, tree.strong(work.init(task, key)), key)

    return run


def is_finite(report: Report) -> Leaf:
    """Whether every number of a report is finite, weights aside."""
    values = {part: contribution.value for part, contribution in report.parts.items()}
    return tree.all_finite([values, report.metrics, report.memory, report.kept])


def client_half(phase: Phase, finite_of: Callable[[Report], Leaf] = is_finite) -> ClientHalf:
    """Compose a phase's work with the client halves of its stages.

    Whether a client is finite is decided on the report, before its weight is looked at and before any stage:
    values that are not finite are replaced by zeros so that no stage can be poisoned by them.

    Args:
        phase: of the round.
        finite_of: says of a report whether it is finite; for who finds out about some of it in another way.
    """
    phase = shaped(phase)
    work, stages = phase.work, phase.aggregate
    begin: Callable[[Task, Key], Tree] | None = work.init
    assert begin is not None
    reporting = _reporting(phase)  # one function, so that JAX knows its shapes the second time

    def task(start: Start) -> Task:
        return Task(start.briefing.message, start.memory.work, start.kept, start.rows)

    def fresh(briefing: Briefing, kept: Tree) -> Memory:
        parts = jax.eval_shape(reporting, briefing.message, kept).parts
        return Memory(
            tree.strong(work.memory(briefing.message)),
            {part: tree.strong(stage.memory(parts[part].value)) for part, stage in stages.items()},
        )

    def finish(start: Start, carry: Tree, key: Key) -> tuple[Upload, Keeping]:
        key = keys.at_finish(key)
        report = work.finish(task(start), carry, key)
        finite = finite_of(report)
        weights = [jnp.asarray(c.weight, jnp.float32) for c in report.parts.values()]
        valid = jnp.stack([jnp.isfinite(w) & (w >= 0) for w in weights]).all() if weights else jnp.asarray(True)
        counted = finite & valid
        encoded, remembered = {}, {}
        for i, (part, stage) in enumerate(stages.items()):
            given = report.parts[part]
            value = tree.where(counted, given.value, tree.zeros_like(given.value))
            weight = jnp.where(counted, jnp.asarray(given.weight, jnp.float32), 0.0)
            encoded[part], remembered[part] = stage.encode(
                start.briefing.public[part],
                start.memory.stages[part],
                type(given)(value, weight),
                keys.at_step(key, i),
            )
        metrics = tree.where(counted, report.metrics, tree.zeros_like(report.metrics))
        memory = tree.where(counted, Memory(report.memory, remembered), start.memory)
        return Upload(encoded, tree.strong(metrics), finite, valid), Keeping(memory, report.kept)

    return ClientHalf(
        fresh,
        init=lambda start, key: tree.strong(begin(task(start), keys.at_init(key))),
        step=None
        if isinstance(work, HostWork)
        else lambda start, carry, batch, key: work.step(task(start), carry, batch, key),
        finish=finish,
    )
