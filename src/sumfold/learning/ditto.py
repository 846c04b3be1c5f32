"""Ditto: beside the global model, each client trains one of its own that is pulled towards it.

    client    w_k ← ClientOpt(w_k, ∇ F_k(w_k)),  from w_k = w                            leaves the client
              v_k ← PersonalOpt(v_k, ∇ F_k(v_k) + λ (v_k − w)),  w as it was received    stays with it
    server    w ← ServerOpt(w, − mean (w − w_k))

Li et al. 2021 ("Ditto: Fair and Robust Federated Learning Through Personalization"), Algorithm 1. λ is `mu` here, as in
`fed_prox`: 0 is purely local training, a large one the global model. Personalisation changes nothing of the
global model.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import optax

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Task
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import user_facing
from sumfold.keys import Key
from sumfold.learning.checks import check_model
from sumfold.learning.fed_avg import Local, Message, Variant, averaging
from sumfold.learning.hparams import check_numbers
from sumfold.learning.optimizers import as_client_optimizer
from sumfold.learning.process import Process
from sumfold.learning.summary import summary
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["ditto"]


class Own(NamedTuple):
    """What a client remembers: its own model v_k."""

    trainable: Tree
    statistics: Tree


class Personal(NamedTuple):
    """A client's own model while it trains."""

    model: Own
    optimizer: Tree
    sums: dict[str, Tree]


@user_facing
def ditto(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    mu: Any,
    personal_optimizer: Any = None,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging, and beside it a model of its own at every client, which never leaves it.

    Each batch is used twice: for the step that is sent, and for one of the client's own model. The latter's loss
    and metrics are reported under ``client_work.personal``; it is kept in ``state.clients`` and read by
    ``process.get_client_weights(state, client)``. A client never seen before starts from the weights that it receives.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`.
        mu: the paper's λ, at least 0, how strongly the own model is pulled towards the global one; with SGD, rate · mu
            must stay below 2 for the pull to be stable. It can be read and set: ``client_work.mu``.
        personal_optimizer: of the client's own model, as `client_optimizer`, which is the default; begun anew in each
            round.

    Raises:
        CompositionError: for a mu that is negative or not finite, and as `fed_avg`.

    Source: Li et al. 2021 ("Ditto"), Algorithm 1.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> clients = {"a": (np.ones(1), 2 * np.ones(1)), "b": (np.ones(1), 4 * np.ones(1))}
        >>> process = ditto(model, optax.sgd(0.1), mu=1.0, batching=sf.Batching(size=None, epochs=5))
        >>> state = process.initialize()
        >>> for _ in range(20):
        ...     state, metrics = process.next(state, clients)
        >>> weights = [process.get_model_weights(state), *(process.get_client_weights(state, k) for k in clients)]
        >>> [round(float(w), 2) for w in weights]
        [3.0, 2.33, 3.67]
    """
    check = functools.partial(check_numbers, "ditto", zero=True)
    check({"mu": mu})
    check_model(model)
    personal = as_client_optimizer(
        client_optimizer if personal_optimizer is None else personal_optimizer,
        "client_optimizer" if personal_optimizer is None else "personal_optimizer",
    )

    def begin(task: Task) -> Personal:
        message: Message = task.message
        own: Own = task.memory
        hparams = message.hparams if personal_optimizer is None else personal.hparams(own.trainable)
        return Personal(own, personal.init(own.trainable, hparams, message.round), model.zero())

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Personal:
        message: Message = task.message
        own, optimizer, sums = local.own
        rest = message.model._replace(statistics=own.statistics)
        gradient, statistics, measured = model.gradient(own.trainable, rest, batch, key)
        pull = tree.scale(message.own_hparams["mu"], tree.sub(own.trainable, message.model.trainable))
        trainable, optimizer = personal.update(tree.add(gradient, pull), optimizer, own.trainable, message.round)
        return Personal(Own(trainable, statistics), optimizer, tree.add(sums, measured))

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        return {"update": update}, local.own.model

    def metrics(measured: Measured) -> Metrics:
        sums = {**measured.sums, **measured.sums["personal"]}
        return {"personal": summary(model, measured._replace(sums=sums))}

    variant = Variant(
        "ditto",
        hparams={"mu": float(mu)},
        check=check,
        memory=lambda message: Own(message.model.trainable, message.model.statistics),
        begin=begin,
        beside=train,
        report=report,
        measures=lambda local: {"personal": local.own.sums},
        metrics=metrics,
        personal=lambda server, own: server._replace(trainable=own.trainable, statistics=own.statistics),
    )
    return averaging(
        variant,
        model,
        client_optimizer,
        server_optimizer,
        weighting=weighting,
        aggregator=aggregator,
        batching=batching,
    )
