"""What each client reaches with its own weights on its own rows.

Clients that use the server's weights are measured many at a time, as batches of one shape: their rows padded to a power
of two and masked, since metrics are sums over rows. Those with weights of their own, and large ones, go one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.driver import State, recognise
from sumfold.core.round import Batch
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, user_facing
from sumfold.learning.ifca import Clustered
from sumfold.learning.process import Process
from sumfold.models.host import HostModel
from sumfold.models.model import Model, row_weights, unpack
from sumfold.tree import Tree

__all__ = ["evaluate_clients", "mean_over_clients", "unlabelled"]

_FULL = 1024
"""Rows from which `Model.evaluate` works in pieces of few sizes."""

_ABREAST = 4096
"""Rows of all the clients that are measured at a time, padding included."""


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
    ids = list(data.ids)
    shared = np.array([process.personal is None or client not in state.clients for client in ids], bool)
    found = _abreast(process, process.model, servers, data, np.flatnonzero(shared))
    return {
        client: found[position]
        if position in found
        else _measured(
            process,
            process.model,
            servers if shared[position] else process.get_client_weights(state, client),
            data,
            position,
        )
        for position, client in enumerate(ids)
    }


def _abreast(
    process: Process, model: Model, weights: Tree, data: Federation, positions: NDArray[np.int64]
) -> dict[int, dict[str, Any]]:
    """Of the clients at `positions`, those that were measured many at a time, by position."""
    if isinstance(model, HostModel | Clustered):  # no program, or a choice among models for each client
        return {}
    parts, counts, found = model.split(weights), np.asarray(data.counts), dict[int, dict[str, Any]]()
    for width, some in _of_one_width(counts, positions):
        part, at = data.cohort(some)
        # Clients to spare have no row that counts, so that few programs serve any number of clients.
        rows = np.concatenate([at, np.repeat(at[:1], _clients(width, len(some)) - len(at))])
        own = np.arange(width) < np.where(np.arange(len(rows)) < len(at), part.counts[rows], 0)[:, None]
        place = part.starts[rows][:, None] + np.where(own, np.arange(width), 0)
        place = place if part.order is None else part.order[place]
        taken = jax.tree.map(lambda a, place=place: tree.canonical(np.asarray(a)[place.reshape(-1)]), part.examples)
        x, y, weight = unpack(taken if process.labelled else unlabelled(taken))
        given = (x, y) if weight is None else (x, y, row_weights(weight, own.size))
        batch = Batch(jax.tree.map(lambda a, own=own: a.reshape(*own.shape, *a.shape[1:]), given), own)
        try:
            reached = jax.device_get(model.measure_each(parts, batch))
        except Exception:  # what cannot be done abreast, such as a call to the host, is done one by one or fails there
            return {}
        columns = {name: values.tolist() for name, values in reached.items()}
        for place, position in enumerate(some.tolist()):
            own_values = {name: values[place] for name, values in columns.items()}
            found[position] = {**own_values, "num_examples": int(counts[position])}
    return found


def _of_one_width(counts: NDArray[np.int64], positions: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(width, positions) of clients with rows, whose rows fit into that power of two; as many as go at a time."""
    rows = counts[positions]
    for power in range(_FULL.bit_length() - 1):
        width = 1 << power
        which = positions[(rows <= width) & (rows > width // 2)]
        number = _clients(width, len(which))
        yield from ((width, which[begin : begin + number]) for begin in range(0, len(which), number))


def _clients(width: int, wanted: int) -> int:
    """How many clients of this width go at a time: a power of two."""
    return min(1 << max(wanted - 1, 0).bit_length(), max(_ABREAST // width, 1))


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
