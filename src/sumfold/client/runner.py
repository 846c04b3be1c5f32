"""A client's side of a round: load a plan, check it, run it over the client's own batches, answer.

Knows neither the algorithm nor the server's classes: only programs, types and bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax import export
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.batching import Batching, plan, plan_ready
from sumfold.core.client import client_key
from sumfold.core.exported import loaded
from sumfold.core.host import Failure
from sumfold.errors import WireError
from sumfold.tree import Spec, Tree
from sumfold.wire import codec
from sumfold.wire.messages import Assignment, PlanManifest, Report
from sumfold.wire.plan import content_id, leaves_match

__all__ = ["Answer", "Runner"]


Own: TypeAlias = Callable[[Sequence[Any], Sequence[Any], keys.HostKey], "list[Any] | Failure"]
"""(leaves of the briefing, of the memory, key) -> leaves of the carry, or why there are none."""


class Answer(NamedTuple):
    """What a client sends, and what it keeps: flat leaves, to commit only if the answer was counted.

    Attributes:
        report: bytes for the server.
        memory: leaves, for the next round.
        kept: leaves, for the round's next phase.
    """

    report: bytes
    memory: list[Any]
    kept: list[Any]


class Runner:
    """A loaded plan.

    Args:
        plan: the bytes that the server sent.

    Raises:
        WireError: when a program's types are not those that the manifest states.
    """

    def __init__(self, plan: bytes) -> None:
        self.id = content_id(plan)
        self.manifest, _ = codec.decode(plan, PlanManifest, lambda _: ())
        try:
            self.batching = Batching(*self.manifest.batching)
            programs = loaded(self.manifest.programs)
        except Exception as error:  # what a decoder meets in a peer's bytes, it raises
            raise WireError(
                "SF-WIRE-012",
                f"a plan that does not load: {type(error).__name__}: {error}",
                "programs that export_plan serialised, and a possible batching",
                "do not run this plan; ask the server for a new one",
            ) from error
        _check_types(self.manifest, programs)
        self.call: dict[str, Callable[..., Any]] = {name: jax.jit(p.call) for name, p in programs.items()}

    def run(
        self,
        assignment: bytes,
        examples: Tree,
        *,
        batch_sizes: NDArray[np.int64] | None = None,
        memory: Sequence[Any] | None = None,
        kept: Sequence[Any] = (),
        own: Own | None = None,
    ) -> Answer | Failure:
        """One phase of one round.

        Args:
            assignment: bytes from the server.
            examples: the client's rows, a tree of arrays with one leading axis.
            batch_sizes: lengths of ready-made batches; None for examples.
            memory: leaves from the last counted round, None for a client never seen.
            kept: leaves from the round's previous phase.
            own: the client's own function, where the plan is one for host work.

        Returns:
            The answer; or why there is none, where the client's own function failed.

        Raises:
            WireError: for bytes that are not an assignment of this plan.
        """
        head, briefing = codec.decode(assignment, Assignment, lambda _: self.manifest.briefing)
        if head.plan != self.id or head.phase != self.manifest.phase:
            raise WireError(
                "SF-WIRE-010",
                f"an assignment for the plan {head.plan}, phase {head.phase}",
                f"the plan {self.id}, phase {self.manifest.phase}",
                "fetch the plan that the assignment names",
            )
        leaves = [tree.canonical(leaf) for leaf in jax.tree.leaves(examples)]
        rows = len(leaves[0]) if leaves else 0
        if memory is None:
            memory = self.call["fresh"](briefing, list(kept))
        start = [*briefing, *memory, *kept, np.int32(rows)]
        code = np.uint32(head.client)
        key = [
            jax.random.key_data(
                client_key(keys.typed(np.array(head.seed, np.uint32)), head.phase, np.int32(head.round), code)
            )
        ]
        carry = self.call["init"](start, key)
        if rows and self.manifest.host:
            assert own is not None, "a plan for host work needs the client's own function"
            seed = (head.seed[0] << 32) | head.seed[1]
            carry = own(briefing, memory, keys.HostKey(seed, head.round, head.phase, head.client))
            if isinstance(carry, Failure):
                return carry
        elif rows:
            for t, index in enumerate(self._batches(head, rows, batch_sizes)):
                mask = index >= 0
                filled = np.where(mask, index, index[0])
                batch = [*(leaf[filled] for leaf in leaves), mask]
                carry = self.call["step"](start, carry, batch, key, [np.int32(t)])
        upload, keeping, finite, valid = self.call["finish"](start, carry, key)
        counted = bool(finite) and bool(valid)
        report = Report(head.round, head.phase, head.client, bool(finite), bool(valid))
        split = len(self.manifest.memory)
        return Answer(
            codec.encode(report, [np.asarray(a) for a in upload] if counted else []),
            keeping[:split],
            keeping[split:],
        )

    def _batches(self, head: Assignment, rows: int, batch_sizes: NDArray[np.int64] | None) -> NDArray[np.int64]:
        width = self.manifest.batch[-1].shape[0]
        if batch_sizes is not None:
            return plan_ready([batch_sizes]).batches(width)
        one, code = np.array([rows], np.int64), np.array([head.client], np.uint32)
        return plan(one, code, self.batching, np.array(head.seed, np.uint32), head.round).batches(width)


def _check_types(manifest: PlanManifest, programs: dict[str, export.Exported]) -> None:
    key, number = Spec("key", (2,), "uint32"), Spec("number", (), "int32")
    start = [*manifest.briefing, *manifest.memory, *manifest.kept, number]
    expected = {
        "fresh": ([*manifest.briefing, *manifest.kept], list(manifest.memory)),
        "init": ([*start, key], list(manifest.carry)),
        "step": ([*start, *manifest.carry, *manifest.batch, key, number], list(manifest.carry)),
        "finish": (
            [*start, *manifest.carry, key],
            [*manifest.upload, *manifest.keeping, Spec("", (), "bool"), Spec("", (), "bool")],
        ),
    }
    if not manifest.batch:
        del expected["step"]
    for name in expected.keys() | programs.keys():
        program, (inputs, outputs) = programs.get(name), expected.get(name, ([], []))
        if (
            program is None
            or name not in expected
            or not leaves_match(inputs, program.in_avals)
            or not leaves_match(outputs, program.out_avals)
        ):
            raise WireError(
                "SF-WIRE-011",
                f"a plan whose program {name!r} is missing, unknown or of other types than its manifest says",
                "the programs that the manifest states, and no other",
                "do not run this plan; ask the server for a new one",
            )
