"""What each client reaches with its own weights on its own rows."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import user_facing
from sumfold.learning.process import Process
from sumfold.models.model import Model, unpack
from sumfold.tree import Tree

__all__ = ["evaluate_clients"]

_FULL = 1024
"""Rows from which `Model.evaluate` works in pieces of one size."""


@user_facing
def evaluate_clients(process: Process, state: Any, federation: Any) -> dict[Any, dict[str, Any]]:
    """Loss and metrics of each client's own weights on its own rows, by client.

    The weights are those of ``process.get_client_weights``: personal ones after `sumfold.learning.local_layers`,
    `fed_bn` or `ditto`, else the server's. These are numbers of single clients, computed here: for simulations,
    where the rows are at hand.

    Args:
        process: what was trained.
        state: of it.
        federation: the rows to measure on, as for ``process.next``.

    Returns:
        id -> ``{"loss", each metric, "num_examples"}``; zeros for a client without rows.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(1), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> evaluate_clients(process, process.initialize(), {"a": (np.ones(3), np.zeros(3)), "b": ([1.0], [3.0])})
        {'a': {'loss': 1.0, 'num_examples': 3}, 'b': {'loss': 4.0, 'num_examples': 1}}
    """
    data, _ = as_federation(federation, None, {})
    process.get_model_weights(state)  # a process without a model, or another's state, is refused also without clients
    assert process.model is not None
    return {
        client: measured(process.model, process.get_client_weights(state, client), data, position)
        for position, client in enumerate(data.ids)
    }


def measured(model: Model, weights: Tree, data: Federation, position: int) -> dict[str, Any]:
    """`Model.evaluate` on one client's rows, in powers of two so that few programs serve clients of any size."""
    rows = int(data.counts[position])
    if not rows:
        return {"loss": 0.0, **dict.fromkeys(model.metrics, 0.0), "num_examples": 0}
    x, y, weight = unpack(data.take(position))
    width = rows if rows >= _FULL else 1 << (rows - 1).bit_length()
    own = np.arange(width) < rows
    place = np.where(own, np.arange(width), 0)
    weight = np.ones(rows, np.float32) if weight is None else np.asarray(weight, np.float32).reshape(rows)
    x, y = jax.tree.map(lambda a: np.asarray(a)[place], (x, y))
    return {**model.evaluate(weights, x, y, np.where(own, weight[place], 0)), "num_examples": rows}
