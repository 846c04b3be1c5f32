"""A step of aggregation, cut where the network is.

A stage has a client half (`encode`) and a server half (`decode`); between them lies the sum of its `group`. Stages
chain like an onion: the client halves run first to last, then Σ, then the server halves last to first.

    client   value ─▶ encode₁ ─▶ encode₂ ─▶ … ─▶ Σ ─▶ … ─▶ decode₂ ─▶ decode₁ ─▶ result   server
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from sumfold.core.group import Group, add
from sumfold.errors import CompositionError, user_facing
from sumfold.keys import Key
from sumfold.tree import Leaf, Tree

__all__ = ["Bound", "Contribution", "Stage", "chain"]


class Contribution(NamedTuple):
    """One part of a client's report, before any stage.

    Attributes:
        value: tree of arrays.
        weight: float32[], finite and not negative.

    Example:
        >>> Contribution(value=[1.0, 2.0], weight=3.0).weight
        3.0
    """

    value: Tree
    weight: Leaf


class Bound(NamedTuple):
    """What is guaranteed of every client's contribution; infinity where nothing is.

    Attributes:
        norm: largest L2 norm of the value.
        weight: largest weight.
        low, high: range of every number.
        cohort: most clients in one sum.

    Example:
        >>> Bound(norm=1.0).weight
        inf
    """

    norm: float = math.inf
    weight: float = math.inf
    low: float = -math.inf
    high: float = math.inf
    cohort: float = math.inf


def _nothing(anything: Any) -> Tree:
    return ()


def _same(bound: Bound) -> Bound:
    return bound


class Stage(NamedTuple):
    """A step of aggregation: pure functions of the server's memory, the client's memory and the values.

    Attributes:
        encode: (public, client memory, value, Key) -> (value to sum, client memory): the client half. The first
            stage of a chain is given the `Contribution`.
        decode: (server memory, total, Key) -> (result, server memory, metrics): the server half.
        init: shapes of the part's value -> server memory (adaptive norms, noise state, counters).
        memory: shapes of the part's value -> the client memory of a client never seen (error feedback).
        share: server memory -> the part of it that clients may see this round.
        bound: Bound -> Bound: what the client half guarantees; raises CompositionError when it needs more than
            it is given. Checked while chaining, not in round 400.
        group: what Σ means; None leaves it to a later stage of the chain.
        name: for `explain`.

    Example:
        Halving on the clients, doubling on the server:

        >>> half = Stage(
        ...     encode=lambda public, memory, value, key: (value * 0.5, memory),
        ...     decode=lambda state, total, key: (total * 2.0, state, {}),
        ... )
        >>> half.encode((), (), 4.0, None)[0]
        2.0
    """

    encode: Callable[[Tree, Tree, Tree, Key], tuple[Tree, Tree]]
    decode: Callable[[Tree, Tree, Key], tuple[Tree, Tree, dict[str, Any]]]
    init: Callable[[Tree], Tree] = _nothing
    memory: Callable[[Tree], Tree] = _nothing
    share: Callable[[Tree], Tree] = _nothing
    bound: Callable[[Bound], Bound] = _same
    group: Group | None = add
    name: str = "a stage of your own"


@user_facing
def chain(*stages: Stage) -> Stage:
    """One stage out of several: client halves first to last, Σ, server halves last to first.

    The group is the last stage's that names one. Each stage's metrics are merged into one dict.

    Raises:
        CompositionError: with no stage, or where a stage needs a bound that those before it do not give.

    Example:
        >>> import jax.numpy as jnp
        >>> half = Stage(lambda p, m, v, k: (v * 0.5, m), lambda s, t, k: (t * 2.0, s, {}))
        >>> float(chain(half, half).encode(((), ()), ((), ()), jnp.float32(4), jax.random.key(0))[0])
        1.0
    """
    if not stages:
        raise CompositionError("SF-COMP-003", "chain() without a stage", "one stage or more", "pass aggregators.mean()")

    def bound(given: Bound) -> Bound:
        for stage in stages:
            given = stage.bound(given)
        return given

    def encode(public: Tree, memory: Tree, value: Tree, key: Key) -> tuple[Tree, Tree]:
        memories = []
        for i, stage in enumerate(stages):
            value, after = stage.encode(public[i], memory[i], value, _fold(key, i))
            memories.append(after)
        return value, tuple(memories)

    def decode(state: Tree, total: Tree, key: Key) -> tuple[Tree, Tree, dict[str, Any]]:
        after, metrics = list(state), {}
        for i, stage in reversed(list(enumerate(stages))):
            total, after[i], measured = stage.decode(state[i], total, _fold(key, i))
            metrics.update(measured)
        return total, tuple(after), metrics

    bound(Bound())
    groups = [stage.group for stage in stages if stage.group is not None]
    return Stage(
        encode=encode,
        decode=decode,
        init=lambda shapes: tuple(stage.init(shapes) for stage in stages),
        memory=lambda shapes: tuple(stage.memory(shapes) for stage in stages),
        share=lambda state: tuple(stage.share(s) for stage, s in zip(stages, state, strict=True)),
        bound=bound,
        group=groups[-1] if groups else add,
        name=" → ".join(stage.name for stage in stages),
    )


def _fold(key: Key, i: int) -> Key:
    return jax.random.fold_in(key, i)
