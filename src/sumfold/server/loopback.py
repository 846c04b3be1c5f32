"""The Loopback runtime: every client one by one, through the real wire encoding and the real exported plan.

One process, no network: what it proves is that a deployment computes the same numbers. Each message is encoded to
bytes and decoded again; each client runs programs that were serialised and loaded, and sees nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.client.runner import Answer, Runner
from sumfold.core.client import Briefing, Keeping, Start, Upload, client_half
from sumfold.core.cohort import Cohort, batch_shapes, cohort_widths
from sumfold.core.driver import Notes, Outcome, State, Totals, check_groups, compiled_server, play
from sumfold.core.group import KINDS
from sumfold.core.host import Failure, all_failed, attempt, carry_shapes, conformed, held, report_failure, shaped
from sumfold.core.ordered import Ordered
from sumfold.core.round import Batch, HostWork, Phase, Round, Work
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
        self.server = compiled_server(round)
        self.runners: dict[tuple[Any, ...], Runner] = {}
        self.rehearsed: dict[int, Phase] = {}
        self.told = False  # whether a failure's traceback was shown
        self.ordered: dict[int, tuple[Phase, Ordered]] = {}

    def __call__(self, state: State, cohort: Cohort) -> Outcome:
        places = len(cohort.positions)
        shapes: list[_Shapes] = []
        memories: list[dict[int, Tree]] = []
        failed: dict[Any, str] = {}

        def sigma(
            i: int, briefing: Briefing, carried: dict[int, list[Any]]
        ) -> tuple[list[Totals], dict[int, list[Any]]]:
            kept_before = shapes[-1].kept if shapes else ()
            phase = self._rehearsed(i, briefing, kept_before, state, cohort, list(carried))
            shapes.append(_Shapes.of(phase, briefing, kept_before, cohort_widths(cohort, phase.work.batching)))
            now = shapes[-1]
            total = self._ordered(i, phase).begin(briefing, now.kept_before, places)
            kept: dict[int, list[Any]] = {}
            memories.append({})
            failures: dict[int, Failure] = {}
            for place in range(places):
                if place not in carried:
                    total.skip(place)
                    continue
                answer, runner, asked = self._ask(i, phase, now, briefing, state, cohort, place, carried[place])
                if isinstance(answer, Failure):
                    failures[place] = answer
                    report_failure(cohort.client(place), answer, first=not self.told)
                    self.told = True
                    total.skip(place)
                    continue
                head, leaves = codec.decode(answer.report, Report, functools.partial(_arrays_of, runner.manifest))
                if (head.round, head.phase, head.client) != (asked.round, asked.phase, asked.client):
                    raise WireError(
                        "SF-WIRE-013",
                        f"a report of client {head.client}, round {head.round}, phase {head.phase}",
                        f"client {asked.client}, round {asked.round}, phase {asked.phase}",
                        "a report counts for its own assignment only",
                    )
                if head.finite and head.weights_valid:
                    total.take(place, *tree.unflatten(now.upload, leaves))
                    memories[i][place] = tree.unflatten(now.memory, [np.asarray(a) for a in answer.memory])
                    kept[place] = answer.kept
                else:
                    total.skip(place, finite=head.finite, valid=head.weights_valid)
            asked_for = [place for place in carried if cohort.data.counts[cohort.positions[place]]]
            if failures and len(failures) == len(asked_for):
                raise all_failed(cohort.client(asked_for[0]), failures[asked_for[0]], len(failures))
            failed.update({cohort.client(place): failure.reason for place, failure in failures.items()})
            return [total.total()], kept

        algorithm, stages, metrics, invalid, counted = play(
            self.round,
            self.server,
            state.algorithm,
            state.stages,
            state.seed,
            np.int32(state.round),
            sigma,
            {place: [] for place in range(places)},
        )
        remembered = {
            cohort.client(place): tuple(of_phase[place] for of_phase in memories)
            for place in counted
            if any(now.memory.num_leaves for now in shapes)
        }
        return Outcome(algorithm, stages, state.clients.commit(remembered), metrics, invalid, Notes(failed))

    def _rehearsed(
        self, i: int, briefing: Briefing, kept: Tree, state: State, cohort: Cohort, places: list[int]
    ) -> Phase:
        """The phase; where only the client's function knows its report's shapes, one client says them beforehand."""
        phase = self.round.phases[i]
        if isinstance(phase.work, Work) or phase.work.init is not None:
            return phase
        if i not in self.rehearsed:
            shaped_like_message = _Shapes.of(phase, briefing, kept, cohort_widths(cohort, phase.work.batching))
            for place in places:
                own = _Own(phase, shaped_like_message, briefing, cohort, place)
                memory = self._memory(i, state, cohort.client(place), briefing, kept)
                if cohort.data.counts[cohort.positions[place]]:
                    carry = own.result(jax.tree.leaves(briefing), memory, _host_key(i, state, cohort, place))
                    if not isinstance(carry, Failure):
                        arrays = conformed(phase.work, None, carry, phase, briefing.message)
                        self.rehearsed[i] = shaped(phase, tree.shapes(arrays))
                        break
        return self.rehearsed.get(i, phase)

    def _memory(self, i: int, state: State, client: Any, briefing: Briefing, kept: Tree) -> list[Any]:
        if client in state.clients:
            return jax.tree.leaves(state.clients[client][i])
        return jax.tree.leaves(client_half(self.round.phases[i]).fresh(briefing, tree.zeros_like(kept)))

    def _ask(
        self,
        i: int,
        phase: Phase,
        shapes: _Shapes,
        briefing: Briefing,
        state: State,
        cohort: Cohort,
        place: int,
        kept: list[Any],
    ) -> tuple[Answer | Failure, Runner, Assignment]:
        """Send one client its assignment and let it run, as a network would."""
        position = int(cohort.positions[place])
        data, client = cohort.data, cohort.client(place)
        runner = self._runner(i, phase, briefing, shapes.kept_before, batch_shapes(data, int(shapes.widths[position])))
        head = Assignment(runner.id, int(state.round), i, (int(state.seed[0]), int(state.seed[1])), keys.code(client))
        held = state.clients.get(client)
        answer = runner.run(
            codec.encode(head, [np.asarray(leaf) for leaf in jax.tree.leaves(briefing)]),
            data.take(position),
            batch_sizes=None if data.batch_sizes is None else data.batch_sizes[position],
            memory=None if held is None else jax.tree.leaves(held[i]),
            kept=kept,
            own=_Own(phase, shapes, briefing, cohort, place) if isinstance(phase.work, HostWork) else None,
        )
        return answer, runner, head

    def _runner(self, i: int, phase: Phase, briefing: Briefing, kept: Tree, batch: Batch | None) -> Runner:
        """The loaded plan for batches of this width and these element types; exported at first need."""
        batch = None if isinstance(phase.work, HostWork) else batch
        at = (i, tree.specs(batch), id(phase))
        if at not in self.runners:
            phases = (*self.round.phases[:i], phase, *self.round.phases[i + 1 :])
            self.runners[at] = Runner(export_plan(self.round._replace(phases=phases), i, briefing, kept, batch))
        return self.runners[at]

    def _ordered(self, i: int, phase: Phase) -> Ordered:
        """The compiled sums of a phase."""
        if i not in self.ordered or self.ordered[i][0] is not phase:
            self.ordered[i] = phase, Ordered(phase)
        return self.ordered[i][1]


@dataclass(frozen=True)
class _Own:
    """A client's own function between flat leaves, as the runner calls it: the client knows its own structures."""

    phase: Phase
    shapes: _Shapes
    briefing: Briefing
    cohort: Cohort
    place: int

    def __call__(self, briefing: Sequence[Any], memory: Sequence[Any], key: keys.HostKey) -> list[Any] | Failure:
        carry = self.result(briefing, memory, key)
        if isinstance(carry, Failure):
            return carry
        assert isinstance(self.phase.work, HostWork)
        expected = carry_shapes(self.phase, self.briefing, self.shapes.kept_before)
        return jax.tree.leaves(conformed(self.phase.work, expected, carry, self.phase, self.briefing.message))

    def result(self, briefing: Sequence[Any], memory: Sequence[Any], key: keys.HostKey) -> Tree | Failure:
        """What the function returns, or why it does not."""
        assert isinstance(self.phase.work, HostWork)
        message = tree.unflatten(tree.structure(self.briefing), list(briefing)).message
        own = tree.unflatten(self.shapes.memory, list(memory)).work
        data = held(self.cohort.data, int(self.cohort.positions[self.place]))
        return attempt(self.phase.work.run, message, data, key, own)


def _host_key(i: int, state: State, cohort: Cohort, place: int) -> keys.HostKey:
    seed = (int(state.seed[0]) << 32) | int(state.seed[1])
    return keys.HostKey(seed, int(state.round), i, keys.code(cohort.client(place)))


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
