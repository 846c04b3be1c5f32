"""Layers that stay with the client: FedPer and FedRep.

    client    (w_k, v_k) ← ClientOpt((w, v_k), ∇ loss(w_k, v_k; b))       w leaves the client, v_k never does
    server    w ← ServerOpt(w, − mean (w − w_k))

FedPer trains all weights together: Arivazhagan et al. 2019, Algorithm 1. FedRep trains them in turn: Collins et al.
2021, Algorithm 1: first the head v_k with w frozen, then w with v_k frozen. The first `head_steps` local steps are the
head's, and each of the two has an optimizer of its own that only sees its own steps.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Task
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import CompositionError, user_facing
from sumfold.learning.checks import check_model
from sumfold.learning.fed_avg import Local, Message, Variant, averaging
from sumfold.learning.optimizers import ClientOptimizer, Hparams
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.host import HostModel
from sumfold.models.model import Model, Parts, combine
from sumfold.tree import Tree

__all__ = ["local_layers"]


class Own(NamedTuple):
    """What a client remembers: its local leaves, None for the others."""

    trainable: Tree
    statistics: Tree


class Turns(NamedTuple):
    """A client optimizer that trains the local leaves first: the steps taken, and a state for each group of leaves."""

    step: Int[Array, ""]
    local: Tree
    shared: Tree


@user_facing
def local_layers(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    local: str | Sequence[str] | Callable[[str], bool] | Any,
    head_steps: int | Any = 0,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging of some weights, while the others never leave their client.

    Local weights are kept in ``state.clients`` and are in no part that a client sends; ``process.explain()`` shows what
    is. The server keeps their initial values, from which a client never seen before starts.
    ``process.get_client_weights(state, client)`` gives the model that a client itself uses.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`; `aggregator`
            concerns the shared weights only.
        local: which weights are local: a name, its beginning (``"params/Dense_1"``), a pattern (``"*/bias"``), a list
            of these, or a function name -> bool. Names are the paths in the model's weights (``"b"``,
            ``"params/Dense_1/kernel"``, ``"fc.weight"``), for Keras those of its variables (``"dense_1/kernel"``).
            Moving statistics can be local too.
        head_steps: 0 trains all weights together (FedPer). Otherwise so many local steps train the local weights alone,
            and those that follow the shared weights alone (FedRep); a client that takes no more steps than this
            shares no change.

    Raises:
        CompositionError: when nothing has such a name, nothing or everything would be local, or as `fed_avg`.

    Source: Arivazhagan et al. 2019, Algorithm 1 (FedPer); Collins et al. 2021, Algorithm 1 (FedRep).

    Example:
        Two clients that differ by a constant share the slope.

        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     init=lambda key: {"w": jnp.float32(0), "b": jnp.float32(0)},
        ...     predict=lambda p, x: p["w"] * x + p["b"],
        ...     loss=lambda outputs, y: (outputs - y) ** 2,
        ... )
        >>> x = np.linspace(-1, 1, 9)
        >>> clients = {"low": (x, 2 * x - 5), "high": (x, 2 * x + 5)}
        >>> process = local_layers(model, optax.sgd(0.1), local="b", batching=sf.Batching(size=None, epochs=5))
        >>> state = process.initialize()
        >>> for _ in range(20):
        ...     state, _ = process.next(state, clients)
        >>> {k: round(float(v), 2) for k, v in process.get_client_weights(state, "low").items()}
        {'b': -5.0, 'w': 2.0}
        >>> float(process.get_model_weights(state)["b"])
        0.0
    """
    check_model(model, own_loop=not head_steps)
    is_local = chosen(model, local)
    options = {"weighting": weighting, "aggregator": aggregator, "batching": batching}
    return keeping("local_layers", model, is_local, client_optimizer, server_optimizer, head_steps, **options)


def keeping(
    name: str,
    model: Model,
    is_local: Parts,
    client_optimizer: Any,
    server_optimizer: Any,
    head_steps: Any,
    **options: Any,
) -> Process:
    """The algorithm of this name whose clients keep the leaves that `is_local` marks.

    Args:
        is_local: `Parts` of a bool for each weight; see `chosen`.
        options: weighting, aggregator and batching.
    """
    if not isinstance(head_steps, (int, np.integer)) or isinstance(head_steps, bool) or head_steps < 0:
        raise CompositionError(
            "SF-COMP-083",
            f"head_steps={head_steps!r}",
            "how many of a client's steps train the local weights alone, a whole number of at least 0",
            "leave it out to train all weights together",
        )
    if head_steps and not any(jax.tree.leaves(is_local.trainable)):
        raise CompositionError(
            "SF-COMP-084",
            f"head_steps={head_steps}, and the local weights are statistics only",
            "a local weight that is trained",
            "leave head_steps out, or choose more local weights",
        )

    def optimizer(client: ClientOptimizer) -> ClientOptimizer:
        return in_turns(client, is_local.trainable, int(head_steps)) if head_steps else client

    def own(parts: Parts) -> Own:
        trainable, statistics, _ = only(is_local, parts, True)
        return Own(trainable, statistics)

    def mine(server: Parts, memory: Own) -> Parts:
        return server._replace(
            trainable=combine(memory.trainable, server.trainable),
            statistics=combine(memory.statistics, server.statistics),
        )

    def start(task: Task) -> Parts:
        message: Message = task.message
        return mine(message.model, task.memory)

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        return {"update": update}, own(
            task.message.model._replace(trainable=local.trainable, statistics=local.statistics)
        )

    def marked(trainable: Tree) -> Own:
        # Empty arrays with the names of the local leaves: a state goes on only where the same leaves are local.
        none: Own = jax.tree.map(lambda leaf: jnp.zeros((0,), leaf.dtype), own(model.template))
        return none

    variant = Variant(
        name,
        state=marked,
        memory=lambda message: own(message.model),
        optimizer=optimizer,
        start=start,
        shared=lambda parts: only(is_local, parts, False),
        report=report,
        personal=mine,
    )
    return averaging(variant, model, client_optimizer, server_optimizer, **options)


# -- which leaves are local


def names_of(model: Model) -> Parts:
    """`Parts` of every weight's name, in the structure of the model's template."""
    if model.names is not None:
        return model.names
    structure = tree.structure(model.template)
    if isinstance(model, HostModel):  # its parts are dicts by name
        of_parts = [path[1:] for path, _ in jax.tree_util.tree_flatten_with_path(model.template)[0]]
        words = list(map(tree.name, of_parts))
    else:
        # Each place is a leaf of its own, found again by its identity in the weights as people see them.
        places = [tree.shape((), "int32") for _ in range(structure.num_leaves)]
        joined = jax.tree_util.tree_flatten_with_path(model.join(tree.unflatten(structure, places)))[0]
        known = {id(leaf): tree.name(path) for path, leaf in joined}
        words = [known[id(place)] for place in places]
    named: Parts = tree.unflatten(structure, words)
    return named


def chosen(model: Model, local: Any) -> Parts:
    """`Parts` of a bool for each weight: whether it stays with the client.

    Raises:
        CompositionError: when `local` is of the wrong kind, names nothing, or leaves nothing to share.
    """
    names = names_of(model)
    known = jax.tree.leaves((names.trainable, names.statistics))  # constants never leave anyway
    patterns = [local] if isinstance(local, str) else local
    if callable(patterns):
        matches = {name for name in known if patterns(name)}
    elif isinstance(patterns, Sequence) and all(isinstance(pattern, str) for pattern in patterns):
        for pattern in patterns:
            if not any(is_named(name, pattern) for name in known):
                raise nothing_local(f"local={pattern!r}, which is the name of no weight", known)
        matches = {name for name in known if any(is_named(name, pattern) for pattern in patterns)}
    else:
        raise CompositionError(
            "SF-COMP-081",
            f"local={local!r}",
            "a name or pattern, a list of them, or a function name -> bool",
            f"the weights are {listed(known)}",
        )
    if not matches:
        raise nothing_local("local, which chooses no weight", known)
    is_local: Parts = jax.tree.map(lambda name: name in matches, names)
    if all(jax.tree.leaves(is_local.trainable)):
        raise CompositionError(
            "SF-COMP-082",
            "every trainable weight is local",
            "at least one that is shared: with none, nothing is learnt together",
            f"leave some out of {listed(known)}",
        )
    return is_local


def is_named(name: str, pattern: str) -> bool:
    """Whether a pattern is a weight's name, the beginning of it up to a ``/`` or PyTorch's ``.``, or matches either."""
    ends = [*(found.start() for found in re.finditer(r"[/.]", name)), len(name)]
    return any(fnmatch.fnmatchcase(name[:end], pattern.strip("/")) for end in ends)


def nothing_local(came: str, known: Sequence[str]) -> CompositionError:
    """The error for a choice of nothing, with the names that there are."""
    return CompositionError(
        "SF-COMP-080", came, "the names of weights that stay with the client", f"choose among {listed(known)}"
    )


def listed(names: Sequence[str]) -> str:
    """The names in a message, at most forty."""
    return ", ".join(map(repr, names[:40])) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


def only(is_local: Parts, parts: Parts, wanted: bool) -> Parts:
    """The weights that are local, or that are not; None for the others, and for the constants that never leave."""

    def pick(marks: Tree, leaves: Tree) -> Tree:
        return jax.tree.map(
            lambda mark, leaf: leaf if mark is wanted else None, marks, leaves, is_leaf=lambda node: node is None
        )

    return Parts(
        pick(is_local.trainable, parts.trainable), pick(is_local.statistics, parts.statistics), parts.constants
    )


# -- FedRep's two turns


def in_turns(client: ClientOptimizer, is_local: Tree, head_steps: int) -> ClientOptimizer:
    """The local leaves for the first steps, the others for the rest; what is frozen is not even decayed."""

    def part(leaves: Tree, wanted: bool) -> Tree:
        return jax.tree.map(lambda mark, leaf: leaf if mark is wanted else None, is_local, leaves)

    def init(params: Tree, hparams: Hparams, round: Array) -> Turns:
        states = (client.init(part(params, wanted), hparams, round) for wanted in (True, False))
        return Turns(jnp.int32(0), *states)

    def update(gradient: Tree, state: Turns, params: Tree, round: Array) -> tuple[Tree, Turns]:
        held = {True: (part(params, True), state.local), False: (part(params, False), state.shared)}
        after = {
            wanted: client.update(part(gradient, wanted), before, own, round) for wanted, (own, before) in held.items()
        }
        heads_turn = state.step < head_steps
        local, of_local = tree.where(heads_turn, after[True], held[True])
        shared, of_shared = tree.where(heads_turn, held[False], after[False])
        return combine(local, shared), Turns(state.step + 1, of_local, of_shared)

    return client._replace(init=init, update=update)
