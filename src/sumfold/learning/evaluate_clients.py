"""What each client reaches with its own weights on its own rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sumfold.core.driver import State, recognise
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, user_facing
from sumfold.learning.ifca import Clustered
from sumfold.learning.process import Process
from sumfold.models.model import Model, unpack
from sumfold.tree import Tree

__all__ = ["evaluate_clients", "mean_over_clients", "unlabelled"]

_FULL = 1024
"""Rows from which `Model.evaluate` works in pieces of one size."""


@user_facing
def evaluate_clients(process: Process | Any, state: State | Any, federation: Any) -> dict[Any, dict[str, Any]]:
    """Loss and metrics of each client's own weights on its own rows, by client.

    The weights are those of ``process.get_client_weights``: personal ones after `sumfold.learning.local_layers`,
    `fed_bn` or `ditto`, those of its cluster after `ifca`, else the server's. A client that was never seen uses the
    server's; one that `ifca` has not seen uses the model with the lowest loss on these rows, as it would choose
    itself. Ids are not checked: a client that the training knows by another id counts as never seen.

    These are numbers of single clients, computed here: for simulations, where rows and memories are at hand. Their
    mean, weighted by rows, is what ``sf.train(…, evaluate_clients=…)`` reports.

    Args:
        process: what was trained.
        state: of it.
        federation: the rows to measure on, as for ``process.next``.

    Returns:
        id -> ``{"loss", each metric, "num_examples"}``; zeros for a client without rows.

    Raises:
        CompositionError: for something that is no process, or one without a model.
        StateError: for a state of another algorithm or model.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(1), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> evaluate_clients(process, process.initialize(), {"a": (np.ones(3), np.zeros(3)), "b": ([1.0], [3.0])})
        {'a': {'loss': 1.0, 'num_examples': 3}, 'b': {'loss': 4.0, 'num_examples': 1}}
    """
    if not isinstance(process, Process):
        raise CompositionError(
            "SF-COMP-088",
            f"evaluate_clients of a {type(process).__name__}",
            "an sf.Process, its state and client data, in this order",
            "write evaluate_clients(process, history.state, test); for weights alone, sf.learning.fed_eval measures "
            "them on clients",
        )
    data, _ = as_federation(federation, None, {})
    state = recognise(process.round, process._template, state)
    servers = process.get_model_weights(state)  # refuses what has no model, without clients too
    assert process.model is not None
    found = {}
    for position, client in enumerate(data.ids):
        alone = process.personal is None or client not in state.clients
        weights = servers if alone else process.get_client_weights(state, client)
        found[client] = _measured(process, process.model, weights, data, position)
    return found


def _measured(process: Process, model: Model, weights: Tree, data: Federation, position: int) -> dict[str, Any]:
    """`Model.evaluate` on one client's rows, in powers of two so that few programs serve clients of any size."""
    rows = int(data.counts[position])
    if not rows:
        return {"loss": 0.0, **dict.fromkeys(model.metrics, 0.0), "num_examples": 0}
    given = data.take(position)
    x, y, weight = unpack(given if process.labelled else unlabelled(given))
    width = rows if rows >= _FULL else 1 << (rows - 1).bit_length()
    own = np.arange(width) < rows
    place = np.where(own, np.arange(width), 0)
    weight = np.ones(rows, np.float32) if weight is None else np.asarray(weight, np.float32).reshape(rows)
    x, y = jax.tree.map(lambda a: np.asarray(a)[place], (x, y))
    weight = np.where(own, weight[place], 0)
    if isinstance(model, Clustered) and not model.is_one(weights):
        reached: list[dict[str, Any]] = [model.one.evaluate(each, x, y, weight) for each in weights]
        best = min(reached, key=_loss)
        return {**best, "num_examples": rows}
    return {**model.evaluate(weights, x, y, weight), "num_examples": rows}


def _loss(reached: dict[str, Any]) -> float:
    loss: float = reached["loss"]
    return math.inf if math.isnan(loss) else loss


def unlabelled(examples: Tree) -> Tree:
    """The same entry, and points alone with labels that nobody reads."""
    alone = not isinstance(examples, (tuple, list, Mapping))
    return (examples, np.zeros(len(examples), np.float32)) if alone else examples


def mean_over_clients(reached: Mapping[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of what clients reach, weighted by their rows; those without rows do not enter it.

    Example:
        >>> mean_over_clients({"a": {"loss": 1.0, "num_examples": 3}, "b": {"loss": 5.0, "num_examples": 1}})
        {'loss': 2.0, 'num_examples': 4, 'num_clients': 2}
    """
    there = [values for values in reached.values() if values["num_examples"]]
    rows = [values["num_examples"] for values in there]
    names = [name for name in next(iter(reached.values()), {"loss": 0.0}) if name != "num_examples"]
    means = {
        name: np.average([values[name] for values in there], axis=0, weights=rows).tolist() if there else 0.0
        for name in names
    }
    return {**means, "num_examples": sum(rows), "num_clients": len(there)}
