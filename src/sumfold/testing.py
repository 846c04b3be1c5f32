"""Checks for people who write their own rounds, stages and runtimes; Sumfold's own are held to them.

Each takes the thing itself and raises an `AssertionError` or a Sumfold error that says what is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.batching import Batching
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.cohort import Cohort
from sumfold.core.driver import Runtime, State, begin, nothing, play, server_of, step
from sumfold.core.exported import each_half, traced
from sumfold.core.group import Group, add, maximum, minimum, modular, stack
from sumfold.core.pure import check_calls, check_repeatable
from sumfold.core.round import Batch, Measured, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.data import Federation
from sumfold.errors import CompositionError
from sumfold.learning.process import Process
from sumfold.simulation.canonical import canonical, rewrites
from sumfold.tree import Tree

__all__ = ["Agreement", "assert_runtimes_agree", "check_round", "check_runtime", "check_stage"]


class Agreement(NamedTuple):
    """How far runtimes were apart, at most.

    Attributes:
        weights: largest absolute difference of a parameter.
        metrics: largest absolute difference of a metric.

    Example:
        >>> Agreement(weights=0.0, metrics=0.0).weights
        0.0
    """

    weights: float
    metrics: float


def assert_runtimes_agree(
    process: Process,
    client_data: Any,
    *runtimes: Runtime,
    rounds: int = 5,
    seed: int = 0,
    clients: Any = None,
    rtol: float = 2e-5,
    atol: float = 2e-6,
    metrics_tol: float = 1e-5,
) -> Agreement:
    """Run the same rounds on several runtimes and compare state, client memory and metrics after each.

    Args:
        process: the algorithm.
        client_data: as for ``process.next``.
        runtimes: two or more; the first is the reference.
        rounds: how many.
        seed: of ``initialize``.
        clients: ids of the cohort, None for everybody.
        rtol, atol: of every array of the state.
        metrics_tol: of floating metrics, relative and absolute; counts must be equal.

    Returns:
        The largest differences seen.

    Raises:
        AssertionError: naming the runtime, the round and the array or metric that differs.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
        >>> data = {"a": (np.ones((3, 2)), np.ones(3)), "b": (np.eye(2), np.zeros(2))}
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> assert_runtimes_agree(process, data, sf.Simulation(), sf.Loopback(), rounds=2).weights < 1e-6
        True
    """
    assert len(runtimes) >= 2, "give two runtimes or more"
    bound = [process.on(runtime) for runtime in runtimes]
    states = [process.initialize(seed=seed)] * len(bound)
    largest = Agreement(0.0, 0.0)
    for number in range(rounds):
        outputs = [p.next(s, client_data, clients=clients) for p, s in zip(bound, states, strict=True)]
        states = [output.state for output in outputs]
        for runtime, output in zip(runtimes[1:], outputs[1:], strict=True):
            where = f"{type(runtime).__name__} against {type(runtimes[0]).__name__}, round {number}"
            weights = _compare(outputs[0].state, output.state, rtol, atol, where)
            metrics = _compare_metrics(outputs[0].metrics, output.metrics, metrics_tol, where)
            largest = Agreement(max(largest.weights, weights), max(largest.metrics, metrics))
    return largest


def _compare(a: Tree, b: Tree, rtol: float, atol: float, where: str) -> float:
    assert tree.specs(a) == tree.specs(b), f"{where}: the states have other arrays"
    largest = 0.0
    for spec, x, y in zip(tree.specs(a), jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        exact = not jnp.issubdtype(jnp.result_type(x), jnp.inexact)
        ours, theirs = np.asarray(x, np.float64), np.asarray(y, np.float64)
        rough, fine = (0.0, 0.0) if exact else (rtol, atol)
        np.testing.assert_allclose(theirs, ours, rough, fine, err_msg=f"{where}: {spec.path}")
        largest = max(largest, float(np.abs(ours - theirs).max(initial=0.0)))
    return largest


def _compare_metrics(a: Any, b: Any, tolerance: float, where: str) -> float:
    if isinstance(a, dict):
        assert a.keys() == b.keys(), f"{where}: metrics {sorted(a)} and {sorted(b)}"
        return max((_compare_metrics(a[k], b[k], tolerance, f"{where}: {k}") for k in a), default=0.0)
    if isinstance(a, int):
        assert a == b, f"{where}: {a} and {b}"
        return 0.0
    np.testing.assert_allclose(b, a, rtol=tolerance, atol=tolerance, err_msg=where)
    return float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0.0))


def check_round(round: Round, params: Tree, examples: Tree) -> str:
    """Trace a whole round on shapes alone and report what flows.

    Nothing runs, but for one step of a phase with convolutions or pooling, where `examples` are arrays: on a CPU
    these are computed in another form than written, and both forms must give the same.

    Args:
        round: the algorithm.
        params: what its `init` takes.
        examples: one batch of examples, arrays or shapes.

    Returns:
        One line a phase: types at the server, at the clients, after Σ.

    Raises:
        CompositionError: when `step` changes the type of the carry, a phase changes the type of the state, parts and
            stages do not match, client work calls back into Python or is another program each time it is traced, or a
            step differs from its fast form.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> print(check_round(process.round, jnp.zeros(2), (np.ones((4, 2)), np.ones(4))))
        phase 0: 2 arrays@server -> 2 arrays@clients -> update: 2 arrays Σ add -> 2 arrays@server
    """
    state = begin(round, params, 0)
    lines: list[str] = []

    def sigma(i: int, briefing: Briefing, kept: Tree) -> tuple[Any, Tree]:
        phase, half = round.phases[i], client_half(round.phases[i])
        start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
        key = keys.typed(jnp.zeros(2, jnp.uint32))
        carry = half.init(start, key)
        rows = len(jax.tree.leaves(examples)[0])
        batch = Batch(tree.zeros_like(examples), jnp.ones(rows, bool))
        after = carry if half.step is None else half.step(start, carry, batch, key)
        _same_type(carry, after, f"the carry of phase {i}: step must keep what init made")
        upload, keeping = half.finish(start, after, key)
        _same_type(start.memory, keeping.memory, f"the client memory of phase {i}")
        sums = ", ".join(
            f"{part}: {len(jax.tree.leaves(value))} arrays Σ {(phase.aggregate[part].group or add).kind}"
            for part, value in upload.parts.items()
        )
        message = len(jax.tree.leaves(briefing))
        at_server = len(jax.tree.leaves(state.algorithm))
        lines.append(
            f"phase {i}: {at_server} arrays@server -> {message} arrays@clients -> {sums or 'metrics only'} -> "
            f"{at_server} arrays@server"
        )
        return [nothing(phase, briefing, kept, 1)], tree.zeros_like(keeping.kept)

    def run(algorithm: Tree, stages: Tree) -> tuple[Tree, Tree]:
        after, held, *_ = play(round, server_of(round), algorithm, stages, state.seed, jnp.int32(0), sigma, ())
        return after, held

    after, held = jax.eval_shape(run, state.algorithm, state.stages)
    _same_type(state.algorithm, after, "the algorithm's state")
    _same_type(state.stages, held, "the stages' memory")
    batch = Batch(tree.shapes(examples), tree.shape((len(jax.tree.leaves(examples)[0]),), bool))
    for half, made in each_half(round, [client_half(phase) for phase in round.phases], state, batch):
        programs = traced(half, made)
        check_calls(programs, prints=True)
        check_repeatable(programs, traced(half, made), "the same numbers in every process")
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(examples)):
        _fast_steps_agree(round, state, examples)
    return "\n".join(lines)


def _fast_steps_agree(round: Round, state: State, examples: Tree) -> None:
    """One step of each phase as it is written and as a CPU computes it, from the state given."""
    if jax.default_backend() != "cpu":
        return
    key = keys.typed(jnp.zeros(2, jnp.uint32))
    given = jax.tree.map(lambda leaf: jnp.asarray(tree.canonical(leaf)), examples)
    batch = Batch(given, jnp.ones(len(jax.tree.leaves(given)[0]), bool))

    def sigma(i: int, briefing: Briefing, kept: Tree) -> tuple[Any, Tree]:
        phase, half = round.phases[i], client_half(round.phases[i])
        start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(batch.mask.size))
        carry = half.init(start, key)
        if half.step is not None and rewrites(half.step, start, carry, batch, key):
            after, other = (jax.jit(step)(start, carry, batch, key) for step in (half.step, canonical(half.step)))
            _same_change(carry, after, other, f"the step of phase {i}")
        keeping = half.finish(start, carry, key)[1]
        return [nothing(phase, briefing, kept, 1)], keeping.kept

    play(round, server_of(round), state.algorithm, state.stages, state.seed, jnp.int32(0), sigma, ())


def _same_change(before: Tree, after: Tree, other: Tree, what: str) -> None:
    """Whether two forms of a step agree: to a thousandth of what it changes, and to rounding."""
    limits: Any = jnp.finfo
    leaves = zip(*map(jax.tree.leaves, (before, after, other)), strict=True)
    for spec, (start, a, b) in zip(tree.specs(after), leaves, strict=True):
        if not jnp.issubdtype(a.dtype, jnp.floating) or not a.size:
            continue
        old, written, fast = (np.asarray(array, np.float64) for array in (start, a, b))
        limit = 1e-3 * np.abs(written - old).max() + 16 * float(limits(a.dtype).eps) * np.abs(written).max()
        apart = np.abs(written - fast).max()
        if apart > limit or np.isnan(written).any() != np.isnan(fast).any():
            raise CompositionError(
                "SF-COMP-038",
                f"{what} gives another {spec.path} in the form in which a CPU computes it: {apart:.2g} apart",
                f"what it gives as it is written, to {limit:.2g}",
                "report it as a bug of Sumfold, with the model and these examples",
            )


def _same_type(before: Tree, after: Tree, what: str) -> None:
    for a, b in zip(tree.specs(before), tree.specs(after), strict=False):
        if a != b:
            raise CompositionError(
                "SF-COMP-031",
                f"{what} became {b.path} {b.dtype}{list(b.shape)}",
                f"{a.path} {a.dtype}{list(a.shape)}, as before",
                "keep shapes and dtypes; cast with astype",
            )
    if tree.structure(before) != tree.structure(after):
        raise CompositionError(
            "SF-COMP-031",
            f"{what} became {tree.structure(after)}",
            f"{tree.structure(before)}",
            "return the same structure",
        )


def check_stage(stage: Stage, value: Tree, *, clients: int = 5, rtol: float = 1e-5) -> Tree:
    """Run a stage over a few random clients, in two orders and in two halves, and check that it is lawful.

    Args:
        stage: the stage or chain, from a `Contribution` to a result.
        value: one client's value, arrays or shapes.
        clients: how many.
        rtol: by which results of other orders may differ.

    Returns:
        The result for these clients.

    Raises:
        AssertionError: when the order or grouping of clients matters, a total differs from the group's zero in type,
            a memory changes its type, or encoding is not a pure function.

    Example:
        >>> import sumfold as sf
        >>> check_stage(sf.aggregators.mean(), {"w": jnp.zeros(3)})["w"].shape
        (3,)
    """
    shapes, group = tree.shapes(value), stage.group or add
    server, memory = tree.strong(stage.init(shapes)), tree.strong(stage.memory(shapes))
    public, run = stage.share(server), keys.typed(np.zeros(2, np.uint32))

    def contribution(client: int) -> Contribution:
        key = keys.derive(run, purpose="value", client=client)
        drawn = [_random(leaf, jax.random.fold_in(key, i)) for i, leaf in enumerate(jax.tree.leaves(shapes))]
        return Contribution(tree.unflatten(tree.structure(shapes), drawn), jnp.float32(client + 1))

    def encoded(client: int) -> Tree:
        key = keys.derive(run, purpose="encode", client=client)
        uploaded, after = stage.encode(public, memory, contribution(client), key)
        again, _ = stage.encode(public, memory, contribution(client), key)
        _equal(uploaded, again, 0.0, "encode is not a pure function of its arguments")
        assert tree.specs(after) == tree.specs(memory), "encode changes the type of the client's memory"
        return uploaded

    uploads = [encoded(client) for client in range(clients)]

    def total(order: list[int]) -> Tree:
        result = group.zero(uploads[0], clients)
        for client in order:
            before = tree.specs(result)
            result = group.accumulate(result, uploads[client], jnp.int32(client))
            assert tree.specs(result) == before, "accumulate changes the type of the total"
        return result

    whole = total(list(range(clients)))
    _equal(whole, total(list(reversed(range(clients)))), rtol, "the order of clients changes the total")
    halves = group.merge(total(list(range(clients // 2))), total(list(range(clients // 2, clients))))
    _equal(whole, halves, rtol, "merging two halves differs from summing all")
    result, after, _ = stage.decode(server, whole, keys.derive(run, purpose="decode"))
    assert tree.specs(after) == tree.specs(server), "decode changes the type of the server's memory"
    return result


def _random(leaf: Any, key: Any) -> Any:
    if jnp.issubdtype(leaf.dtype, jnp.inexact):
        return jax.random.normal(key, leaf.shape, leaf.dtype)
    return jax.random.randint(key, leaf.shape, 0, 7, jnp.int32).astype(leaf.dtype)


def _equal(a: Tree, b: Tree, rtol: float, message: str) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x, np.float64), np.asarray(y, np.float64), rtol, rtol, err_msg=message)


def check_runtime(runtime: Runtime) -> None:
    """Hold a runtime to the contract: every sum that it offers, memory, `kept`, counting, non-finite clients.

    The rounds here need no model; their results are compared with plain Python.

    Raises:
        AssertionError: saying which rule was broken.

    Example:
        >>> import sumfold as sf
        >>> check_runtime(sf.Simulation())
    """
    rows = [np.array([1.0, 2.0], np.float32), np.array([5.0], np.float32), np.zeros(0, np.float32)]
    federation = Federation.from_clients(dict(zip("abc", rows, strict=True)))
    bad = Federation.from_clients({"a": rows[0], "b": np.array([np.nan], np.float32), "c": rows[1]})
    totals = np.array([row.sum() for row in rows])
    expected: dict[str, tuple[Group, Any]] = {
        "add": (add, totals.sum()),
        "min": (minimum, totals.min()),
        "max": (maximum, totals.max()),
        "modular": (modular(7), totals.sum() % 7),
        "stack": (stack, totals),
    }
    for kind, (group, value) in expected.items():
        if kind not in runtime.groups:
            continue
        round = _counting(group)
        run, state = runtime.bind(round), begin(round, (), 0)
        for number in range(2):
            state, metrics = step(run, state, Cohort(federation, np.arange(3)))
            got = (
                np.asarray(state.algorithm["total"])[: np.size(value)] if kind == "stack" else state.algorithm["total"]
            )
            np.testing.assert_allclose(np.asarray(got, np.float64), value, err_msg=f"the sum {kind!r} of {totals}")
            assert metrics["client_work"] == {"num_clients": 3, "num_non_finite_clients": 0, "rows": 3}, metrics
            seen = {client: int(jax.tree.leaves(state.clients[client])[0]) for client in state.clients}
            assert seen == dict.fromkeys("abc", number + 1), f"client memory after {number + 1} rounds: {seen}"
        before = state
        state, metrics = step(run, state, Cohort(bad, np.arange(3)))
        assert metrics["client_work"] == {"num_clients": 2, "num_non_finite_clients": 1, "rows": 3}, metrics
        assert int(jax.tree.leaves(state.clients["b"])[0]) == 2, "a client that was not counted must keep its memory"
        assert int(jax.tree.leaves(before.clients["a"])[0]) == 2, "an older state must stay as it was"


def _counting(group: Group) -> Round:
    """Two phases: sum each client's rows under `group`, then report in the second what was kept of the first."""
    dtype = jnp.uint32 if group.kind == "modular" else jnp.float32

    def add_up(task: Task, total: Any, batch: Batch, key: Any) -> Any:
        return total + jnp.where(batch.mask, batch.examples, 0.0).sum()

    def first(task: Task, total: Any, key: Any) -> Report:
        return Report({"finite": Contribution(total, jnp.float32(1))}, (), task.memory + 1, kept=total)

    def second(task: Task, carry: Any, key: Any) -> Report:
        metrics = {"rows": task.rows}
        return Report({"total": Contribution(task.kept.astype(dtype), jnp.float32(1))}, metrics, task.memory + 1)

    def finalize(state: Tree, results: Any, measured: Measured, key: Any) -> tuple[Tree, dict[str, Any]]:
        if "total" not in results:
            return state, {}
        result = results["total"].values if group.kind == "stack" else results["total"]
        counts = {
            "num_clients": measured.num_clients,
            "num_non_finite_clients": measured.num_non_finite_clients,
        }
        kept = jnp.zeros(8, dtype).at[: len(result)].set(result) if group.kind == "stack" else result
        return {"total": kept}, {"client_work": {**counts, "rows": measured.sums["rows"]}}

    plain = Stage(lambda p, m, given, k: (given.value, m), lambda s, t, k: (t, s, {}))
    work = Work(lambda task, key: jnp.float32(0), add_up, first, Batching(size=1), lambda message: jnp.int32(0))
    other = work._replace(finish=second)
    shape = (8,) if group.kind == "stack" else ()
    return Round(
        f"counting by {group.kind}",
        lambda params, key: {"total": jnp.zeros(shape, dtype)},
        (
            Phase(lambda state, key: (), work, {"finite": plain}, finalize),
            Phase(lambda state, key: (), other, {"total": plain._replace(group=group)}, finalize),
        ),
    )
