"""The Loopback runtime: every client one by one, through the real wire encoding and the real exported plan.

One process, no network: what it proves is that a deployment computes the same numbers. Each message is encoded to
bytes and decoded again; each client runs programs that were serialised and loaded, and sees nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.client.runner import Answer, Runner
from sumfold.core.client import Briefing, Keeping, Start, Upload, client_half
from sumfold.core.cohort import Cohort, batch_shapes, widths
from sumfold.core.driver import Outcome, State, Totals, check_groups, nothing, play
from sumfold.core.group import KINDS, add
from sumfold.core.round import Batch, Phase, Round
from sumfold.errors import WireError
from sumfold.tree import Spec, Tree
from sumfold.wire import codec
from sumfold.wire.messages import Assignment, PlanManifest, Report
from sumfold.wire.plan import export_plan

__all__ = ["Loopback"]


@dataclass(frozen=True)
class Loopback:
    """Every client one after the other in this process, through bytes and exported programs: for tests and debugging.

    Example:
        >>> "add" in Loopback().groups
        True
    """

    @property
    def groups(self) -> frozenset[str]:
        """Every kind of sum."""
        return KINDS

    def bind(self, round: Round) -> Callable[[State, Cohort], Outcome]:
        """Prepare an algorithm; see `sumfold.core.driver.Runtime`."""
        check_groups(round, self)
        return _Bound(round)


class _Bound:
    """One algorithm's server half, compiled piece by piece, and the plans that its clients have loaded."""

    def __init__(self, round: Round) -> None:
        self.round = round
        self.server = round._replace(phases=tuple(_compiled(phase) for phase in round.phases))
        self.runners: dict[tuple[Any, ...], Runner] = {}
        self.accumulate = jax.jit(self._accumulate, static_argnums=0)

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        places = len(cohort.positions)
        shapes: list[_Shapes] = []
        memories: list[dict[int, Tree]] = []

        def sigma(i: int, briefing: Briefing, carried: dict[int, list[Any]]) -> tuple[Totals, dict[int, list[Any]]]:
            phase, kept_before = self.round.phases[i], shapes[-1].kept if shapes else ()
            shapes.append(_Shapes.of(phase, briefing, kept_before, widths(cohort.data, phase.work.batching)))
            now = shapes[-1]
            totals = nothing(self.round, i, briefing, now.kept_before, places)
            kept: dict[int, list[Any]] = {}
            memories.append({})
            for place, kept_before in carried.items():
                answer, runner, asked = self._ask(i, now, briefing, state, cohort, place, kept_before)
                head, leaves = codec.decode(answer.report, Report, functools.partial(_arrays_of, runner.manifest))
                if (head.round, head.phase, head.client) != (asked.round, asked.phase, asked.client):
                    raise WireError(
                        "SF-WIRE-013",
                        f"a report of client {head.client}, round {head.round}, phase {head.phase}",
                        f"client {asked.client}, round {asked.round}, phase {asked.phase}",
                        "a report counts for its own assignment only",
                    )
                if head.finite and head.weights_valid:
                    parts, metrics = tree.unflatten(now.upload, leaves)
                    totals = self.accumulate(i, totals, parts, metrics, np.int32(place))
                    memories[i][place] = tree.unflatten(now.memory, [np.asarray(a) for a in answer.memory])
                    kept[place] = answer.kept
                elif head.finite:
                    totals = totals._replace(invalid=np.minimum(totals.invalid, np.int32(place)))
                else:
                    totals = totals._replace(num_non_finite_clients=totals.num_non_finite_clients + np.int32(1))
            return totals, kept

        algorithm, stages, metrics, invalid, counted = play(
            self.server,
            state.algorithm,
            state.stages,
            keys.typed(state.seed),
            np.int32(state.round),
            sigma,
            {place: [] for place in range(places)},
        )
        remembered = {
            cohort.client(place): tuple(of_phase[place] for of_phase in memories)
            for place in counted
            if any(now.memory.num_leaves for now in shapes)
        }
        return Outcome(algorithm, stages, state.clients.commit(remembered), metrics, invalid)

    def _ask(
        self,
        i: int,
        shapes: _Shapes,
        briefing: Briefing,
        state: State,
        cohort: Cohort,
        place: int,
        kept: list[Any],
    ) -> tuple[Answer, Runner, Assignment]:
        """Send one client its assignment and let it run, as a network would."""
        position = int(cohort.positions[place])
        data, client = cohort.data, cohort.client(place)
        runner = self._runner(i, briefing, shapes.kept_before, batch_shapes(data, int(shapes.widths[position])))
        head = Assignment(runner.id, int(state.round), i, (int(state.seed[0]), int(state.seed[1])), keys.code(client))
        held = state.clients.get(client)
        answer = runner.run(
            codec.encode(head, [np.asarray(leaf) for leaf in jax.tree.leaves(briefing)]),
            data.take(position),
            batch_sizes=None if data.batch_sizes is None else data.batch_sizes[position],
            memory=None if held is None else jax.tree.leaves(held[i]),
            kept=kept,
        )
        return answer, runner, head

    def _runner(self, i: int, briefing: Briefing, kept: Tree, batch: Batch | None) -> Runner:
        """The loaded plan for batches of this width and these element types; exported at first need."""
        at = (i, tree.specs(batch))
        if at not in self.runners:
            self.runners[at] = Runner(export_plan(self.round, i, briefing, kept, batch))
        return self.runners[at]

    def _accumulate(self, i: int, totals: Totals, parts: dict[str, Tree], metrics: Tree, place: Any) -> Totals:
        return totals._replace(
            parts={
                part: (stage.group or add).accumulate(totals.parts[part], parts[part], place)
                for part, stage in self.round.phases[i].aggregate.items()
            },
            metrics=tree.add(totals.metrics, metrics),
            num_clients=totals.num_clients + jnp.int32(1),
        )


class _Shapes(NamedTuple):
    """Structures of what clients of one phase send and keep: the server's knowledge, the client needs none of it."""

    kept_before: Tree
    kept: Tree
    memory: Any
    upload: Any
    widths: NDArray[np.int64]

    @classmethod
    def of(cls, phase: Phase, briefing: Briefing, kept: Tree, widths: NDArray[np.int64]) -> _Shapes:
        half = client_half(phase)

        def run(briefing: Briefing, kept: Tree) -> tuple[Upload, Keeping]:
            start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
            key = keys.typed(jnp.zeros(2, jnp.uint32))
            return half.finish(start, half.init(start, key), key)

        upload, keeping = jax.eval_shape(run, briefing, kept)
        structures = tree.structure(keeping.memory), tree.structure((upload.parts, upload.metrics))
        return cls(kept, keeping.kept, *structures, widths)


def _arrays_of(manifest: PlanManifest, report: Report) -> tuple[Spec, ...]:
    return manifest.upload if report.finite and report.weights_valid else ()


def _compiled(phase: Phase) -> Phase:
    """The server's functions of a phase, each compiled once."""
    stages = {
        part: stage._replace(share=jax.jit(stage.share), decode=jax.jit(stage.decode))
        for part, stage in phase.aggregate.items()
    }
    return phase._replace(broadcast=jax.jit(phase.broadcast), aggregate=stages, finalize=jax.jit(phase.finalize))
