"""A program as a `Round`: its pieces become the phases that every runtime runs.

The server's pieces are `init`, `broadcast` and `finalize`; a client's piece is its work. A client's arguments are its
rows: one row at least, the first of which holds what is no sequence, and an element of each sequence a row. So a fold
over a sequence is the fold over rows that every client's work is, one step an element. Where one fold needs the result
of another, the rows are read again: an epoch for each level.

    level(fold) = 1 + the highest level of the folds that its constants and its zero depend on, from 0

Σ is the group of each sum; a count, a mean, a secure sum and a fold of the user's need nothing else.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Literal

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import CompositionError
from sumfold.keys import Key
from sumfold.language.evaluate import Sources
from sumfold.language.interpret import SEQUENCES, Rows, Rules, interpret, read, take
from sumfold.language.placements import CLIENTS
from sumfold.language.plan import Client
from sumfold.language.primitives import sequence_map_p, sequence_reduce_p
from sumfold.language.tracing import Program
from sumfold.language.types import FederatedType
from sumfold.tree import Leaf, Tree

__all__ = ["Remembered", "check_splits", "split"]


class Remembered(NamedTuple):
    """The algorithm's state of a split program.

    Attributes:
        values: the server's variables that are needed later, in the plan's order; zeros until they are known.
        failed: int32[checks], how many members violated each check of the plan, in order.
    """

    values: list[Leaf]
    failed: Leaf


class Fold(NamedTuple):
    """One fold over an argument's sequence.

    Attributes:
        equation: the sequence_reduce.
        sequence: which of the client's sequences it reads.
        maps: the sequence_map equations between, in order.
        level: which reading of the rows it is done in.
        early: whether it can begin before the first row is read.
    """

    equation: Any
    sequence: int
    maps: list[Any]
    level: int
    early: bool

    @property
    def captured(self) -> list[Any]:
        """The variables that its local programs close over: the maps', then its own."""
        number = self.equation.params["number"]
        own = self.equation.invars[1 : len(self.equation.invars) - number]
        return [v for e in self.maps for v in e.invars[1:]] + list(own)

    @property
    def zeros(self) -> list[Any]:
        """The variables of its zero."""
        return list(self.equation.invars[len(self.equation.invars) - self.equation.params["number"] :])


def check_splits(program: Program, name: str) -> None:
    """Refuse what a runtime cannot run.

    Raises:
        CompositionError: for client values that would be returned, and sequences without a placement.
    """
    for output in program.outputs:
        if isinstance(output.type, FederatedType) and output.type.placement is CLIENTS:
            raise CompositionError(
                "SF-COMP-056",
                f"the computation {name!r} returns {output.type}: a value of each client",
                "results at the server: on a runtime nothing but aggregates leaves a client",
                "sum or average it first, or call it without .on(), which keeps all clients in this process",
            )
    if program.sources.unplaced:
        raise CompositionError(
            "SF-COMP-057",
            f"the computation {name!r} takes a sequence that is not at the clients",
            "sequences at the clients",
            "declare it as type_at_clients(SequenceType(…)), or call the computation without .on()",
        )


def split(program: Program, name: str, dense: bool) -> Round:
    """The round of a program.

    Args:
        program: traced, for sizes that are known.
        name: the round's.
        dense: whether every row holds an element of every sequence, so that steps need not look.

    Raises:
        CompositionError: when it returns clients' values.
    """
    check_splits(program, name)
    plan, sources = program.plan, program.sources
    constants = dict(zip(program.closed.jaxpr.constvars, program.closed.consts, strict=True))
    offsets, number = [], 0
    for t, server in enumerate(plan.servers):
        offsets.append(number)
        number += len(server.checks) + (len(plan.clients[t].checks) if t < len(plan.clients) else 0)

    def remember(env: dict[Any, Any], before: list[Leaf] | None, failed: Leaf) -> Remembered:
        held = before or [jnp.zeros(v.aval.shape, v.aval.dtype) for v in plan.carried]
        values = [tree.strong(jnp.asarray(env[v])) if v in env else h for v, h in zip(plan.carried, held, strict=True)]
        return Remembered(values, failed)

    def stated(t: int, env: dict[Any, Any], failed: Leaf) -> Leaf:
        for i, (variable, _) in enumerate(plan.servers[t].checks):
            failed = failed.at[offsets[t] + i].set(read(env, variable).astype(jnp.int32))
        return failed

    def init(params: list[Leaf], key: Key) -> Remembered:
        env = {**constants, **dict(zip(sources.server, [jnp.asarray(p) for p in params], strict=True))}
        interpret(plan.servers[0].equations, env, SEQUENCES)
        return remember(env, None, stated(0, env, jnp.zeros(number, jnp.int32)))

    def phase(p: int) -> Phase:
        piece = plan.clients[p]
        kept_before = plan.clients[p - 1].kept if p else []
        labels = [f"{i} {e.params['label']}" for i, e in enumerate(piece.sums)]

        def broadcast(state: Remembered, key: Key) -> list[Leaf]:
            env = {**constants, **dict(zip(plan.carried, state.values, strict=True))}
            return [read(env, given) for given, _ in piece.received]

        def finalize(
            state: Remembered, results: Mapping[str, Any], measured: Measured, key: Key
        ) -> tuple[Remembered, Metrics]:
            env = {**constants, **dict(zip(plan.carried, state.values, strict=True))}
            for label, equation in zip(labels, piece.sums, strict=True):
                env.update(zip(equation.outvars, [*results[label], measured.num_clients], strict=True))
            interpret(plan.servers[p + 1].equations, env, SEQUENCES)
            failed = state.failed
            if piece.checks:
                at = offsets[p] + len(plan.servers[p].checks)
                failed = failed.at[at : at + len(piece.checks)].set(measured.sums["failed_checks"])
            counts = {
                "num_clients": measured.num_clients,
                "num_non_finite_clients": measured.num_non_finite_clients,
            }
            return remember(env, state.values, stated(p + 1, env, failed)), {"client_work": counts}

        stages = {label: _stage(e) for label, e in zip(labels, piece.sums, strict=True)}
        work = _Work(piece, sources, constants, kept_before, labels, dense).work()
        return Phase(broadcast, work, stages, finalize)

    return Round(name, init, tuple(phase(p) for p in range(len(plan.clients))))


def _stage(equation: Any) -> Stage:
    def encode(public: Tree, memory: Tree, given: Contribution, key: Key) -> tuple[Tree, Tree]:
        return given.value, memory

    def decode(state: Tree, total: Tree, key: Key) -> tuple[Tree, Tree, Metrics]:
        return total, state, {}

    return Stage(encode, decode, group=equation.params["group"], name=equation.params["label"])


class _Carry(NamedTuple):
    """What a client carries from row to row.

    Attributes:
        step: int32[], rows read so far.
        single: the arguments that are no sequences, from the first row.
        captured: for each fold, what its local programs close over.
        totals: for each fold, its total so far.
    """

    step: Leaf
    single: list[Leaf]
    captured: list[list[Leaf]]
    totals: list[list[Leaf]]


class _Work(NamedTuple):
    """A client's piece as the fold over rows."""

    piece: Client
    sources: Sources
    constants: dict[Any, Any]
    kept_before: list[Any]
    labels: list[str]
    dense: bool

    def work(self) -> Work:
        folds = self.folds()
        levels = max((fold.level + 1 for fold in folds), default=0)

        def init(task: Task, key: Key) -> _Carry:
            single = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in self.sources.single]
            nothing = [[jnp.zeros(v.aval.shape, v.aval.dtype) for v in fold.zeros] for fold in folds]
            env = self._variables(task, _Carry(jnp.int32(0), single, [], nothing), folds, 0)
            begun = [_begun(f, env) if f.early else tree.zeros_like(_begun(f, env)) for f in folds]
            return _Carry(jnp.int32(0), single, [captured for captured, _ in begun], [zeros for _, zeros in begun])

        def step(task: Task, carry: _Carry, batch: Batch, key: Key) -> _Carry:
            row = self._row([a[0] for a in batch.examples])
            is_first = carry.step == 0
            single = [jnp.where(is_first, new, old) for new, old in zip(row.single, carry.single, strict=True)]
            carry = carry._replace(single=single)
            runs = [functools.partial(self._read, level, folds, task, row) for level in range(levels)]
            if len(runs) == 1:
                carry = runs[0](carry)
            elif runs:
                carry = lax.switch(carry.step // jnp.maximum(task.rows, 1), runs, carry)
            return carry._replace(step=carry.step + 1)

        def finish(task: Task, carry: _Carry, key: Key) -> Report:
            env = self._variables(task, carry, folds, levels)
            parts = {
                label: Contribution([jnp.asarray(read(env, v)) for v in e.invars], jnp.float32(1))
                for label, e in zip(self.labels, self.piece.sums, strict=True)
            }
            failed = [read(env, v).astype(jnp.int32) for v, _ in self.piece.checks]
            metrics = {"failed_checks": jnp.stack(failed)} if failed else {}
            return Report(parts, metrics, kept=[tree.strong(jnp.asarray(env[v])) for v in self.piece.kept])

        # Without a fold the first row says all.
        max_steps = None if levels else 1
        return Work(init, step, finish, Batching(size=1, epochs=max(levels, 1), shuffle=False, max_steps=max_steps))

    def folds(self) -> list[Fold]:
        """The folds over the client's sequences, in order."""
        makers = {v: e for e in self.piece.equations for v in e.outvars}
        level: dict[Any, int] = {}
        folds = []
        for equation in self.piece.equations:
            here = max((level.get(v, 0) for v in equation.invars if not isinstance(v, Literal)), default=0)
            if equation.primitive is sequence_reduce_p:
                base: Any = equation.invars[0]
                maps: list[Any] = []
                while base in makers and makers[base].primitive is sequence_map_p:
                    maps.insert(0, makers[base])
                    base = makers[base].invars[0]
                if base in self.sources.sequences:
                    fold = Fold(equation, self.sources.sequences.index(base), maps, here, early=False)
                    folds.append(fold._replace(early=here == 0 and not self._reads_single(fold, makers)))
                    here += 1
            level.update(dict.fromkeys(equation.outvars, here))
        return folds

    def _variables(self, task: Task, carry: _Carry, folds: list[Fold], level: int) -> dict[Any, Any]:
        """All variables of the piece, as far as the folds below this level tell."""
        env = {**self.constants}
        env.update(zip([v for _, v in self.piece.received], task.message, strict=True))
        env.update(zip(self.kept_before, task.kept, strict=True))
        env.update(zip(self.sources.single, carry.single, strict=True))
        env.update(dict.fromkeys(self.sources.sequences))
        done = {id(f.equation): total for f, total in zip(folds, carry.totals, strict=True) if f.level < level}
        interpret(self.piece.equations, env, _rules(done))
        return env

    def _read(self, level: int, folds: list[Fold], task: Task, row: _Row, carry: _Carry) -> _Carry:
        """One row into the folds of one level; those that could not begin before the first row begin here."""
        mine = [i for i, fold in enumerate(folds) if fold.level == level]
        late = [i for i in mine if not folds[i].early]
        captured, totals = list(carry.captured), list(carry.totals)
        if late:

            def begin() -> Any:
                env = self._variables(task, carry, folds, level)
                return [_begun(folds[i], env) for i in late]

            known = [(captured[i], totals[i]) for i in late]
            begun = lax.cond(carry.step == level * task.rows, begin, lambda: known)
            for i, now in zip(late, begun, strict=True):
                captured[i], totals[i] = now
        for i in mine:
            totals[i] = self._advance(folds[i], row, captured[i], totals[i])
        return carry._replace(captured=captured, totals=totals)

    def _reads_single(self, fold: Fold, makers: dict[Any, Any]) -> bool:
        """Whether what a fold closes over, or its zero, depends on an argument that is no sequence."""
        seen: set[Any] = set()
        stack = [v for v in [*fold.captured, *fold.zeros] if not isinstance(v, Literal)]
        while stack:
            v = stack.pop()
            if v in seen:
                continue
            seen.add(v)
            stack += [u for u in makers[v].invars if not isinstance(u, Literal)] if v in makers else []
        return bool(seen & set(self.sources.single))

    def _row(self, leaves: list[Leaf]) -> _Row:
        """One row's leaves by what they are; see `sumfold.language.rows`."""
        rest = leaves[len(self.sources.single) :]
        sequences = []
        for v in self.sources.sequences:
            shapes = self.sources.shapes[v]
            arrays = [rest.pop(0) for _ in shapes[0]]
            kind = rest.pop(0) if len(shapes) > 1 else None
            sequences.append((arrays, kind, None if self.dense else rest.pop(0)))
        return _Row(leaves[: len(self.sources.single)], sequences)

    def _advance(self, fold: Fold, row: _Row, captured: list[Leaf], total: list[Leaf]) -> list[Leaf]:
        """One element into a fold's total, if this row has one."""
        arrays, kind, present = row.sequences[fold.sequence]
        maps: list[Any] = []
        rest = list(captured)
        for e in fold.maps:
            number = len(e.invars) - 1
            maps.append((e.params["bodies"], tuple(rest[:number])))
            del rest[:number]
        shapes = self.sources.shapes[self.sources.sequences[fold.sequence]]
        rows = Rows((), None, shapes, None, None, tuple(maps))

        def more(total: list[Leaf]) -> list[Leaf]:
            return take(rows, kind, arrays, fold.equation.params["bodies"], rest, total)

        if present is None:
            return more(total)
        result: list[Leaf] = lax.cond(present, more, lambda total: total, total)
        return result


class _Row(NamedTuple):
    """One row: the arguments that are no sequences, and of each sequence (arrays, kind, whether it has an element)."""

    single: list[Leaf]
    sequences: list[tuple[list[Leaf], Leaf | None, Leaf | None]]


def _begun(fold: Fold, env: dict[Any, Any]) -> tuple[list[Leaf], list[Leaf]]:
    """What a fold closes over, and its zero."""
    captured = [tree.strong(read(env, v)) for v in fold.captured]
    return captured, [tree.strong(read(env, v)) for v in fold.zeros]


def _rules(done: dict[int, list[Leaf]]) -> Rules:
    """Folds over arguments' sequences give the totals that are known, or their zeros; other sequences are at hand."""

    def reduce(equation: Any, inputs: list[Any]) -> list[Any]:
        if inputs[0] is not None:
            return SEQUENCES[sequence_reduce_p](equation, inputs)
        return list(done.get(id(equation), inputs[len(inputs) - equation.params["number"] :]))

    def mapped(equation: Any, inputs: list[Any]) -> list[Any]:
        return [None] if inputs[0] is None else SEQUENCES[sequence_map_p](equation, inputs)

    return {**SEQUENCES, sequence_reduce_p: reduce, sequence_map_p: mapped}
