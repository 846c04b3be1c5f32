"""One round as a pure step, and the seam to the runtimes: a way to compute Σ.

`play` is the whole algorithm of a federated round, in the order in which it happens. The simulator traces it with
a Σ that is a compiled stream, so that a round is one program; a deployment calls it with a Σ that asks the
network. Nothing else differs between them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.client import Briefing, Start, client_half, report_shapes
from sumfold.core.cohort import Cohort
from sumfold.core.compiled import compiled
from sumfold.core.group import add, stack
from sumfold.core.pure import leaked
from sumfold.core.round import HostWork, Measured, Metrics, Phase, Round
from sumfold.core.store import ClientStore
from sumfold.errors import CompositionError, DataError, StateError
from sumfold.keys import Key
from sumfold.tree import Leaf, Tree

__all__ = ["Notes", "Outcome", "Runtime", "State", "Totals", "begin", "merge", "play", "step"]

NOBODY = np.int32(2**31 - 1)
"""`Totals.invalid` when no client had an invalid weight."""


class State(NamedTuple):
    """All that a run needs to go on: arrays only, passed in and out, never changed in place.

    Attributes:
        round: int32[], the next round's number.
        seed: uint32[2], see `sumfold.keys.root`.
        algorithm: the algorithm's own state.
        stages: for each phase, part -> the server memory of its stage.
        clients: the `ClientStore`, client id -> memory; empty at first.
        fingerprint: uint32[4], of the algorithm's name and the tree, shapes and dtypes of its state.

    Example:
        >>> State._fields
        ('round', 'seed', 'algorithm', 'stages', 'clients', 'fingerprint')
    """

    round: Leaf
    seed: Leaf
    algorithm: Tree
    stages: Tree
    clients: ClientStore
    fingerprint: Leaf


class Totals(NamedTuple):
    """What Σ gives: nothing in it belongs to one client.

    Attributes:
        parts: by part, the total of its stage's group.
        metrics: summed metrics of the counted clients.
        num_clients, num_non_finite_clients: int32[].
        invalid: int32[], the first place whose weight was negative or not finite; `NOBODY` otherwise.
    """

    parts: dict[str, Tree]
    metrics: Tree
    num_clients: Leaf
    num_non_finite_clients: Leaf
    invalid: Leaf


Sigma: TypeAlias = Callable[[int, Briefing, Tree], tuple[Sequence[Totals], Tree]]
"""(phase number, what every client receives, carried) -> (totals, carried): one way to compute Σ.

The totals may be those of several groups of clients; the server merges them in the order given."""


class Notes(NamedTuple):
    """What befell clients whose work is a Python function: client id -> one line.

    Attributes:
        failed: clients that gave no result; they are left out of the round.
        retried: clients whose worker died, and that were asked once more.
    """

    failed: Mapping[Any, str] = {}
    retried: Mapping[Any, str] = {}


class Outcome(NamedTuple):
    """What a runtime makes of one round."""

    algorithm: Tree
    stages: Tree
    clients: ClientStore
    metrics: Metrics
    invalid: Leaf
    notes: Notes = Notes()


@runtime_checkable
class Runtime(Protocol):
    """One way to compute Σ."""

    @property
    def groups(self) -> frozenset[str]:
        """The kinds of `Group` that it can sum."""

    def bind(self, round: Round) -> Callable[[State, Cohort], Outcome]:
        """Prepare an algorithm; the result runs one round of it."""


class Standing(NamedTuple):
    """What the server has between the phases of a round.

    Attributes:
        algorithm: the algorithm's state.
        before, after: the stages' memories, of each phase when the round began and of the phases that have ended.
        metrics: reported so far.
        non_finite: int32[], clients left out so far because a number was not finite.
        invalid: int32[], the first place with an invalid weight so far; `NOBODY` otherwise.
    """

    algorithm: Tree
    before: tuple[dict[str, Tree], ...]
    after: tuple[dict[str, Tree], ...]
    metrics: Metrics
    non_finite: Leaf
    invalid: Leaf


def opened(algorithm: Tree, stages: Tree) -> Standing:
    """What the server has when a round begins."""
    metrics: Metrics = {"distributor": {}, "client_work": {}, "aggregator": {}, "finalizer": {}}
    return Standing(algorithm, stages, (), metrics, np.int32(0), NOBODY)


class Server(NamedTuple):
    """The server's half of a round, cut where the network is.

    Attributes:
        brief: (phase number, standing, seed uint32[2], round int32[]) -> what every client receives.
        close: (phase number, standing, totals, seed, round) -> standing. The totals are those of one or several groups
            of clients, in an order that must not depend on time.
    """

    brief: Callable[[int, Standing, Leaf, Leaf], Briefing]
    close: Callable[[int, Standing, Sequence[Totals], Leaf, Leaf], Standing]


def server_of(round: Round) -> Server:
    """The server's half, to be traced as a part of a larger program."""
    return Server(functools.partial(_brief, round), functools.partial(_close, round))


def compiled_server(round: Round) -> Server:
    """The server's half with each of its two functions compiled, for a Σ that is no program."""
    return Server(*(compiler_of(round)(function, static_argnums=0) for function in server_of(round)))


def compiler_of(round: Round) -> Callable[..., Any]:
    """How the server's half is compiled.

    Where it has every client's values to look through, XLA's highest level of optimisation pays: with the engine's own
    options a median takes five times as long.
    """
    stages = [stage for phase in round.phases for stage in phase.aggregate.values()]
    return jax.jit if any((stage.group or add).kind == stack.kind for stage in stages) else compiled


def play(
    round: Round,
    server: Server,
    algorithm: Tree,
    stages: Tree,
    seed: Leaf,
    number: Leaf,
    sigma: Sigma,
    carried: Tree,
) -> tuple[Tree, Tree, Metrics, Leaf, Tree]:
    """One round: broadcast, Σ, decode, finalize, for each phase in turn.

    Returns:
        (algorithm state, stage memories, metrics, first invalid place, carried).
    """
    standing = opened(algorithm, stages)
    for i in range(len(round.phases)):
        totals, carried = sigma(i, server.brief(i, standing, seed, number), carried)
        standing = server.close(i, standing, totals, seed, number)
    return standing.algorithm, standing.after, standing.metrics, standing.invalid, carried


def _brief(round: Round, i: int, standing: Standing, seed: Leaf, number: Leaf) -> Briefing:
    phase, key = round.phases[i], _server_key(i, seed, number)
    public = {part: stage.share(standing.before[i][part]) for part, stage in phase.aggregate.items()}
    return Briefing(phase.broadcast(standing.algorithm, keys.at_init(key)), public)


def _close(round: Round, i: int, standing: Standing, partial: Sequence[Totals], seed: Leaf, number: Leaf) -> Standing:
    phase, key = round.phases[i], _server_key(i, seed, number)
    totals = functools.reduce(functools.partial(merge, phase), partial)
    metrics = dict(standing.metrics)
    results, memories = {}, {}
    for j, (part, stage) in enumerate(phase.aggregate.items()):
        results[part], memories[part], measured = stage.decode(
            standing.before[i][part], totals.parts[part], keys.at_step(key, j)
        )
        if measured:
            metrics["aggregator"] = {**metrics["aggregator"], part: measured}
    non_finite = standing.non_finite + totals.num_non_finite_clients
    counted = Measured(totals.metrics, totals.num_clients, non_finite)
    algorithm, reported = phase.finalize(standing.algorithm, results, counted, keys.at_finish(key))
    for group, values in reported.items():
        metrics[group] = {**metrics[group], **values}
    invalid = jnp.minimum(standing.invalid, totals.invalid)
    return Standing(algorithm, standing.before, (*standing.after, memories), metrics, non_finite, invalid)


def _server_key(i: int, seed: Leaf, number: Leaf) -> Key:
    return keys.derive(keys.typed(seed), purpose=f"server {i}", round=number)


def merge(phase: Phase, a: Totals, b: Totals) -> Totals:
    """The totals of two groups of clients as one."""
    return Totals(
        {part: (stage.group or add).merge(a.parts[part], b.parts[part]) for part, stage in phase.aggregate.items()},
        tree.add(a.metrics, b.metrics),
        a.num_clients + b.num_clients,
        a.num_non_finite_clients + b.num_non_finite_clients,
        jnp.minimum(a.invalid, b.invalid),
    )


Uploading: TypeAlias = Callable[[Briefing, Tree], tuple[dict[str, Tree], Tree]]
"""(what every client receives, what it has kept) -> the parts and metrics that it uploads without a step."""


def uploading(phase: Phase) -> Uploading:
    """What one client would upload, to be asked for its shapes; kept, so that JAX knows them the second time."""
    half = client_half(phase)

    def upload(briefing: Briefing, kept: Tree) -> tuple[dict[str, Tree], Tree]:
        start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
        key = keys.typed(jnp.zeros(2, jnp.uint32))
        upload, _ = half.finish(start, half.init(start, key), key)
        return upload.parts, upload.metrics

    return upload


def nothing(phase: Phase, briefing: Briefing, kept: Tree, places: int, upload: Uploading | None = None) -> Totals:
    """The totals of nobody: where every Σ starts.

    Args:
        phase: of the round.
        briefing, kept: what every client receives and has kept, arrays or shapes.
        places: of the cohort, for what is stacked.
        upload: `uploading` of the phase, of one who asks again and again.
    """
    parts, metrics = jax.eval_shape(upload or uploading(phase), briefing, kept)
    return Totals(
        {part: (stage.group or add).zero(parts[part], places) for part, stage in phase.aggregate.items()},
        tree.zeros_like(metrics),
        jnp.int32(0),
        jnp.int32(0),
        jnp.asarray(NOBODY),
    )


def begin(round: Round, params: Tree, seed: int) -> State:
    """The state before the first round.

    Args:
        round: the algorithm.
        params: what its `init` takes.
        seed: the run's seed.
    """
    words = keys.root(seed)
    algorithm = tree.strong(round.init(params, keys.derive(keys.typed(words), purpose="init")))
    stages, kept = [], ()
    for i, phase in enumerate(round.phases):
        key = keys.typed(words)
        message = jax.eval_shape(phase.broadcast, tree.shapes(algorithm), key)
        report = report_shapes(phase, message, kept)
        if set(report.parts) != set(phase.aggregate):
            raise CompositionError(
                "SF-COMP-004",
                f"phase {i} of {round.name!r} reports the parts {sorted(report.parts)} "
                f"and has stages for {sorted(phase.aggregate)}",
                "one stage for every part",
                "give `aggregate` a stage for each part that `finish` reports",
            )
        stages.append({p: tree.strong(s.init(report.parts[p].value)) for p, s in phase.aggregate.items()})
        kept = report.kept
    return State(
        np.int32(0),
        words,
        algorithm,
        tuple(stages),
        ClientStore(),
        fingerprint(round, algorithm, tuple(stages)),
    )


def fingerprint(round: Round, algorithm: Tree, stages: Tree) -> NDArray[np.uint32]:
    """uint32[4]: the algorithm's name and the tree, shapes and dtypes of its state."""
    text = repr((round.name, tree.specs(algorithm), tree.specs(stages)))
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), np.uint32)


def recognise(round: Round, template: State, state: Any) -> State:
    """`state` as this algorithm's own, in the structure of `template`.

    A state that was saved and loaded holds plain containers; it is taken when names, shapes and dtypes agree.

    Raises:
        StateError: when it is no state, or belongs to another algorithm or model.
    """
    needed = f"a state of {round.name!r} for this model"
    if not hasattr(state, "fingerprint") or not hasattr(state, "algorithm"):
        raise StateError(
            "SF-STATE-001",
            f"a {type(state).__name__} where a state was expected",
            needed,
            "pass what process.initialize() or process.next() returned; next takes (state, client_data), in this order",
        )
    if np.array_equal(np.asarray(state.fingerprint), template.fingerprint):
        if tree.structure((state.algorithm, state.stages)) == tree.structure((template.algorithm, template.stages)):
            return State(*state)
        algorithm = tree.like(template.algorithm, state.algorithm)
        stages = tree.like(template.stages, state.stages)
        if algorithm is not None and stages is not None:
            return State(*state)._replace(algorithm=algorithm, stages=stages)
    mine, theirs = tree.specs(template.algorithm), tree.specs(state.algorithm)
    differing = [f"{b.path} {b.dtype}{list(b.shape)}" for a, b in zip(mine, theirs, strict=False) if a != b]
    detail = f": first difference at {differing[0]}" if differing else f" of {len(theirs)} arrays"
    raise StateError(
        "SF-STATE-002",
        f"a state of another algorithm or model{detail}",
        needed + (f", with {len(mine)} arrays" if len(mine) != len(theirs) else ""),
        "begin anew with process.initialize(), or build the process that made this state; "
        "weights alone move with set_model_weights",
    )


def step(run: Callable[[State, Cohort], Outcome], state: State, cohort: Cohort) -> tuple[State, Metrics]:
    """Run one round on a runtime and bring its metrics to plain Python.

    Raises:
        DataError: when a client's weight was negative or not finite, naming the client. The state passed in is
            untouched.
        CompositionError: when a value is used that a function put away while it was traced.
    """
    try:
        outcome = run(state, cohort)
    except jax.errors.UnexpectedTracerError as error:  # such as one that `finalize` put away
        raise leaked(error) from error
    invalid = int(outcome.invalid)
    if invalid < NOBODY:
        raise DataError(
            "SF-DATA-050",
            f"client {cohort.client(invalid)!r} reported a weight that is negative or not finite",
            "weights that are finite and at least 0",
            "look at `weighting`; the state passed in is unchanged",
        )
    metrics = jax.tree.map(lambda a: np.asarray(a).tolist(), jax.device_get(outcome.metrics))
    for name, told in outcome.notes._asdict().items():
        if told:
            metrics["client_work"][name] = {str(client): reason for client, reason in told.items()}
    after = state._replace(
        round=np.int32(state.round + 1),
        algorithm=outcome.algorithm,
        stages=outcome.stages,
        clients=outcome.clients,
    )
    return after, metrics


def check_groups(round: Round, runtime: Runtime) -> None:
    """Refuse a round whose stages need a sum that the runtime does not offer.

    Raises:
        CompositionError: naming the part, its group and what the runtime offers.
    """
    for phase in round.phases:
        if isinstance(phase.work, HostWork) and not callable(phase.work.run):
            raise CompositionError(
                "SF-HOST-012",
                f"HostWork({phase.work.run!r}) in {round.name!r}",
                "a function (message, data, key, memory) -> Report",
                "pass the function itself",
            )
        for part, stage in phase.aggregate.items():
            kind = (stage.group or add).kind
            if kind not in runtime.groups:
                raise CompositionError(
                    "SF-COMP-005",
                    f"the part {part!r} of {round.name!r} needs the group {kind!r}",
                    f"one of {sorted(runtime.groups)}, which {type(runtime).__name__} offers",
                    "choose an aggregator that is such a sum, or another runtime",
                )
