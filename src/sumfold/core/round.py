"""One idea: training is a fold over rounds, a round is a sum over clients, a client's work is a fold over batches.

    state'  =  finalize(state, decode( Σ_clients encode( work(broadcast(state), data_client) ) ))
    work    =  finish ∘ step* ∘ init                                   over the client's own batches

Everything except Σ is a pure function of arrays, so an *algorithm* is a record of those functions (`Round`) and a
*runtime* is one way to compute Σ. No algorithm knows its runtime; no runtime knows an algorithm.

    server      state ──broadcast──▶ message ─ ─ ─ ─ ─ ─ ─ ─ ─┐                ┌──decode──▶ results ──finalize──▶ state'
                                                              ▼                │
    each client                      init ──▶ step* ──▶ finish ──▶ encode ─ ─ Σ       (─ ─ crosses the network)
                                      ▲ memory, kept, rows       │
                                      └──── memory', kept' ◀─────┘            (never sent)

A report has named *parts*; each is a `Contribution(value, weight)` and goes through a `Stage` of its own: `encode`
on the client (the mean's gives weight · value, and weight), Σ, `decode` on the server (the mean's divides the two
sums). Stages chain: ``aggregator=chain(clip, mean())`` encodes first to last and decodes last to first. Metrics are
sums and add up too.

Who counts: a client whose report holds a number that is not finite is left out of every sum, is counted as
non-finite, and keeps its old memory. A weight that is negative or not finite, of a client that is finite, is an
error after the round. All others are counted, also with weight 0 (a client without rows): they add nothing to a
weighted sum. Where nobody adds anything the mean is 0/0, not finite, and an algorithm's `finalize` leaves its state
as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from sumfold.core.batching import Batching
from sumfold.core.stage import Contribution, Stage
from sumfold.keys import HostKey, Key
from sumfold.tree import Leaf, Tree

__all__ = ["Batch", "HostWork", "Measured", "Phase", "Report", "Round", "Task", "Work"]

State: TypeAlias = Tree
Message: TypeAlias = Tree
Carry: TypeAlias = Tree
Metrics: TypeAlias = dict[str, Any]


class Batch(NamedTuple):
    """One batch of a client's examples.

    Attributes:
        examples: tree of arrays [B, …] as the client holds them, such as ``(x, y)``.
        mask: bool[B], False where the batch is short; those places repeat a real row and must not count.

    Example:
        >>> import jax.numpy as jnp
        >>> Batch((jnp.ones((2, 3)), jnp.ones(2)), jnp.array([True, False])).mask.sum().item()
        1
    """

    examples: Tree
    mask: Leaf


class Task(NamedTuple):
    """All that a client's work starts from; constant while it runs.

    Attributes:
        message: what the server sent, the same to every client.
        memory: the client's own tree from its last counted round, or ``Work.memory(message)``; never sent.
        kept: what this client kept from the round's previous phase, () in the first; never sent.
        rows: int32[], how many examples the client holds, whatever the epochs.

    Example:
        >>> Task(message={"w": 1.0}, memory=(), kept=(), rows=10).rows
        10
    """

    message: Message
    memory: Tree
    kept: Tree
    rows: Leaf


class Report(NamedTuple):
    """What a client's work ends with.

    Attributes:
        parts: name -> `Contribution(value, weight)`; each part has its own weight and its own stage.
        metrics: tree of sums over examples: numbers that add up over clients (a mean is two sums).
        memory: the client's tree for its next round; committed only if the client is counted.
        kept: a tree for this round's next phase.

    Example:
        >>> Report(parts={}, metrics={"num_examples": 3}).memory
        ()
    """

    parts: Mapping[str, Contribution]
    metrics: Tree = ()
    memory: Tree = ()
    kept: Tree = ()


def _no_memory(message: Message) -> Tree:
    return ()


class Work(NamedTuple):
    """What one client does: a fold over its own batches. It sees nobody else.

    Attributes:
        init: (Task, Key) -> carry.
        step: (Task, carry, Batch, Key) -> carry of the same shapes and dtypes.
        finish: (Task, carry, Key) -> Report.
        batching: how the examples become batches; ready-made batches are used as they are.
        memory: message -> the memory of a client never seen before.

    Example:
        Counting examples:

        >>> import jax.numpy as jnp
        >>> count = Work(
        ...     init=lambda task, key: jnp.int32(0),
        ...     step=lambda task, n, batch, key: n + batch.mask.sum(dtype=jnp.int32),
        ...     finish=lambda task, n, key: Report({"n": Contribution(n, jnp.float32(1))}),
        ... )
        >>> count.batching.size
        32
    """

    init: Callable[[Task, Key], Carry]
    step: Callable[[Task, Carry, Batch, Key], Carry]
    finish: Callable[[Task, Carry, Key], Report]
    batching: Batching = Batching()
    memory: Callable[[Message], Tree] = _no_memory


def _as_reported(task: Task, carry: Carry, key: Key) -> Report:
    report: Report = carry
    return report


class HostWork(NamedTuple):
    """Client work that is no array program: a Python function in place of the fold over batches.

    `Simulation` runs it in worker processes, `Loopback` in its own. It may use any library, its globals, closures
    and files; it may be a lambda or defined in a notebook. Whatever the result depends on should come in by its
    arguments. The arrays that it is given are read-only.

    Attributes:
        run: (message, data, `HostKey`, memory) -> carry, all trees of NumPy arrays; `data` is what the client holds,
            such as ``(x, y)``, or a list of those for ready-made batches. By default the carry is its `Report`. It is
            not called for a client without rows.
        init: (Task, Key) -> the carry of a client without rows, an array program: it also says the shapes that `run`
            must return. None: a report whose parts are like the message, with the metrics of the first client.
        finish: (Task, carry, Key) -> Report, an array program; by default the carry is the report.
        batching: for `run` to use, see `Batching.batches`.
        memory: message -> the memory of a client never seen before.

    Example:
        The mean of the clients' medians:

        >>> import numpy as np, sumfold as sf
        >>> def median(message, data, key, memory):
        ...     return sf.Report({"median": sf.Contribution(np.median(data).astype("f"), weight=1.0)})
        >>> one = sf.Phase(
        ...     broadcast=lambda state, key: state,
        ...     work=sf.HostWork(median),
        ...     aggregate={"median": sf.aggregators.mean()},
        ...     finalize=lambda state, results, measured, key: (results["median"], {}),
        ... )
        >>> process = sf.Process(sf.Round("medians", lambda params, key: np.float32(0), (one,))).on(sf.Loopback())
        >>> state, _ = process.next(process.initialize(), [np.array([1.0, 2.0, 9.0]), np.array([4.0])])
        >>> float(state.algorithm)
        3.0
    """

    run: Callable[[Message, Tree, HostKey, Tree], Carry]
    init: Callable[[Task, Key], Carry] | None = None
    finish: Callable[[Task, Carry, Key], Report] = _as_reported
    batching: Batching = Batching()
    memory: Callable[[Message], Tree] = _no_memory


class Measured(NamedTuple):
    """The clients' metrics after Σ, as `Phase.finalize` receives them.

    Attributes:
        sums: the sum over counted clients of `Report.metrics`.
        num_clients: int32[], clients that were counted.
        num_non_finite_clients: int32[], clients left out, in this phase or an earlier one of the round, because a
            number of theirs was not finite: in a part, a metric, the memory or what they keep.

    Example:
        >>> Measured(sums={"loss": 2.0}, num_clients=2, num_non_finite_clients=0).num_clients
        2
    """

    sums: Tree
    num_clients: Leaf
    num_non_finite_clients: Leaf


class Phase(NamedTuple):
    """One exchange between server and clients.

    Attributes:
        broadcast: (state, Key) -> message: server to every client, the same bytes.
        work: what one client does, a `Work` or a `HostWork`.
        aggregate: one stage for each named part of the report.
        finalize: (state, results by part, Measured, Key) -> (state, metrics under ``client_work`` and
            ``finalizer``); a result is not finite when nobody contributed.

    Example:
        >>> Phase._fields
        ('broadcast', 'work', 'aggregate', 'finalize')
    """

    broadcast: Callable[[State, Key], Message]
    work: Work | HostWork
    aggregate: Mapping[str, Stage]
    finalize: Callable[[State, Mapping[str, Tree], Measured, Key], tuple[State, Metrics]]


class Round(NamedTuple):
    """An algorithm: how its state begins, and the exchanges of one round (most have one).

    The phases share one cohort: a client missing in one phase is out of the later ones.

    Attributes:
        name: the algorithm's name; a state belongs to algorithms of this name.
        init: (params, Key) -> state; what `params` is, is between the algorithm and its builder.
        phases: one `Phase` or more.

    Example:
        >>> Round._fields
        ('name', 'init', 'phases')
    """

    name: str
    init: Callable[[Tree, Key], State]
    phases: tuple[Phase, ...]
