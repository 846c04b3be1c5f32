"""Federated evaluation: the model's metrics over the clients' own examples, as sums.

    metrics  ←  finish( Σ_k Σ_{batches b of client k} measure(w; b) )

The same Round as training, whose report has no part but its metrics. Only when single clients are asked for, each
client's own sums leave it too, as a part that is stacked instead of summed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.group import Stacked, stack
from sumfold.core.round import Batch, HostWork, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import CompositionError, user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_model
from sumfold.learning.own_loop import OwnEvaluation
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.models.host import HostModel
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["fed_eval"]


class Server(NamedTuple):
    """The model, and what all rounds so far have measured."""

    model: Parts
    total: Measured


class Local(NamedTuple):
    """What a client has measured so far."""

    sums: dict[str, Tree]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


@user_facing
def fed_eval(model: Model, *, batching: Batching | Any = None, per_client: bool | Any = False) -> Process:
    """Evaluate a model on clients; weights enter by ``set_model_weights``.

    ``metrics["client_work"]["eval"]`` holds loss, metrics and counts of this round, again under
    ``current_round_metrics``, and of all rounds since ``initialize`` under ``total_rounds_metrics``.

    Args:
        model: from ``sumfold.models``.
        batching: default ``Batching(shuffle=False)``; ready-made batches are used as they are. Batches larger than what
            most clients hold cost time, since short ones are padded.
        per_client: also give each client's own loss, metrics and number of examples, under ``clients`` by its id. Then
            these values leave every client as they are, which `Process.explain` says, and a runtime that offers only
            sums refuses it. A client that is not finite is not among them.

    Raises:
        CompositionError: for a batching or `per_client` that cannot be used.

    Example:
        >>> import jax.numpy as jnp, numpy as np, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(1), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = fed_eval(model)
        >>> clients = [(np.ones(3), np.ones(3)), (np.ones(1), 3 * np.ones(1))]
        >>> state, metrics = process.next(process.initialize(), clients)
        >>> metrics["client_work"]["eval"]["loss"], metrics["client_work"]["eval"]["num_examples"]
        (1.0, 4)
        >>> process = fed_eval(model, per_client=True)
        >>> _, metrics = process.next(process.initialize(), clients)
        >>> metrics["client_work"]["eval"]["clients"]
        {0: {'loss': 0.0, 'num_examples': 3}, 1: {'loss': 4.0, 'num_examples': 1}}
    """
    return evaluating("fed_eval", model, batching, per_client)


def evaluating(
    name: str,
    model: Model,
    batching: Batching | Any,
    per_client: bool | Any,
    memory: Callable[[Parts], Tree] = lambda message: (),
    used: Callable[[Parts, Tree], Parts] = lambda message, memory: message,
) -> Process:
    """The evaluation of this name; its clients may use other weights than they receive.

    Args:
        name: the algorithm's.
        model, batching, per_client: as in `fed_eval`.
        memory: the server's weights -> what a client remembers that was never seen.
        used: (the server's weights, what a client remembers) -> the weights that are measured.
    """
    check_model(model, own_loop=True)
    if not isinstance(per_client, bool):
        raise CompositionError(
            "SF-COMP-096",
            f"an evaluation with per_client={per_client!r}",
            "True or False",
            "True gives every client's own metrics, in Simulation and Loopback",
        )

    def init(weights: Tree, key: Key) -> Server:
        none = jnp.int32(0)
        sums = {**model.zero(), "num_examples": none, "num_batches": none}
        return Server(model.split(weights), Measured(sums, none, none))

    def broadcast(state: Server, key: Key) -> Parts:
        return state.model

    def begin(task: Task, key: Key) -> Local:
        return Local(model.zero(), jnp.int32(0), jnp.int32(0))

    def measure(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        sums = tree.add(local.sums, model.measure(used(task.message, task.memory), batch))
        return Local(sums, local.num_examples + batch.mask.sum(dtype=jnp.int32), local.num_batches + 1)

    def report(task: Task, local: Local, key: Key) -> Report:
        counts = {"num_examples": local.num_examples, "num_batches": local.num_batches}
        own = {"clients": Contribution({**local.sums, "num_examples": local.num_examples}, jnp.float32(1))}
        return Report(own if per_client else {}, {**local.sums, **counts}, task.memory)

    def finalize(state: Server, results: Mapping[str, Any], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        total: Measured = tree.add(state.total, measured)
        now = summary(model, measured)
        both = {"current_round_metrics": now, "total_rounds_metrics": summary(model, total)}
        single = {"clients": _of_each(model, results["clients"])} if per_client else {}
        return state._replace(total=total), {"client_work": {"eval": {**now, **both, **single}}}

    model = dataclasses.replace(model, coupled=None)  # predicting, no example sees another
    chosen = Batching(shuffle=False) if batching is None else batching_for(model, batching)
    stages = {"clients": _individuals()} if per_client else {}
    work: Work | HostWork = Work(begin, measure, report, chosen, memory)
    if isinstance(model, HostModel):
        work = HostWork(OwnEvaluation(model.trainer, used, Local), begin, report, chosen, memory)
    return Process(
        Round(name, init, (Phase(broadcast, work, stages, finalize),)),
        model=model,
        batching=batching,
        parts=lambda state: state.model,
        with_parts=lambda state, parts: state._replace(model=parts),
        personal=lambda state, memory: state.model if memory is None else used(state.model, memory),
        by_client=_named if per_client else None,
    )


# -- single clients


def _individuals() -> Stage:
    """No sum: the value of each client, in its place."""
    return Stage(
        encode=lambda public, memory, given, key: (given.value, memory),
        decode=lambda state, stacked, key: (stacked, state, {}),
        group=stack,
        name="every client's own",
    )


def _of_each(model: Model, stacked: Stacked) -> Metrics:
    """Finished metrics as arrays over the places of the cohort, and which places are a client that was counted."""
    finished = jax.vmap(model.finish)(stacked.values)
    return {"values": {**finished, "num_examples": stacked.values["num_examples"]}, "present": stacked.present}


def _named(metrics: Metrics, ids: list[Any]) -> Metrics:
    """The arrays over places as a dict of dicts by client; a runtime may have more places than clients."""
    values = metrics["client_work"]["eval"]
    of_each, present = values["clients"]["values"], values["clients"]["present"]
    clients = {
        client: {name: value[place] for name, value in of_each.items()}
        for place, client in enumerate(ids)
        if present[place]
    }
    return {**metrics, "client_work": {**metrics["client_work"], "eval": {**values, "clients": clients}}}
