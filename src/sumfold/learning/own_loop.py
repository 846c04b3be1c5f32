"""Algorithms over models that bring their own training loop: the loop takes the place of the fold over batches.

Everything else of an algorithm stays as it is: what clients begin with, what they report, the sums, the server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold.core.batching import Batching
from sumfold.core.round import Task
from sumfold.errors import CompositionError
from sumfold.keys import HostKey
from sumfold.learning.optimizers import ClientOptimizer
from sumfold.models.host import HostModel, Pull, Trainer
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["OwnEvaluation", "OwnLoop", "check_steps", "check_visible", "no_client_optimizer"]


class OwnLoop:
    """What a client runs: from the weights that it begins with to a `Local`.

    Args:
        trainer: the framework's side.
        start: task -> the weights that a client begins with.
        pull: the hyperparameter of the message that pulls towards the server's weights, or None.
        batching: how examples become batches.
        local: makes the algorithm's record of a client's run.
    """

    def __init__(
        self,
        trainer: Trainer,
        start: Callable[[Task], Parts],
        pull: str | None,
        batching: Batching,
        local: Callable[..., Any],
    ) -> None:
        self.trainer, self.start, self.pull, self.batching, self.local = trainer, start, pull, batching, local

    def __repr__(self) -> str:
        """As `explain` shows it."""
        return f"{type(self.trainer).__name__}.fit"

    def __call__(self, message: Any, data: Tree, key: HostKey, memory: Tree) -> Any:
        """Train on what one client holds."""
        rows = len(jax.tree.leaves(data)[0])
        parts: Parts = jax.tree.map(np.asarray, self.start(Task(message, memory, (), rows)))
        pull = None
        if self.pull is not None:
            pull = Pull(float(message.own_hparams[self.pull]), message.model.trainable)
        fitted = self.trainer.fit(parts, data, key, self.batching, pull)
        examples, batches = np.int32(fitted.num_examples), np.int32(fitted.num_batches)
        return self.local(fitted.trainable, fitted.statistics, (), fitted.sums, examples, batches, ())


class OwnEvaluation:
    """What a client runs to measure weights; `used` and `local` as in `fed_eval`."""

    def __init__(self, trainer: Trainer, used: Callable[[Parts, Tree], Parts], local: Callable[..., Any]) -> None:
        self.trainer, self.used, self.local = trainer, used, local

    def __repr__(self) -> str:
        """As `explain` shows it."""
        return f"{type(self.trainer).__name__}.measure"

    def __call__(self, message: Parts, data: Tree, key: HostKey, memory: Tree) -> Any:
        """Measure on what one client holds."""
        parts: Parts = jax.tree.map(np.asarray, self.used(message, memory))
        sums, examples, batches = self.trainer.measure(parts, data)
        return self.local(sums, np.int32(examples), np.int32(batches))


def check_visible(algorithm: str, model: Model, sees_gradients: bool, pull: str | None) -> None:
    """Refuse an algorithm that looks into each step, with a model whose steps nobody sees.

    Args:
        algorithm: its name.
        model: any model.
        sees_gradients: whether the algorithm needs the gradient of each step.
        pull: the hyperparameter of a pull towards the server's weights, if that is all that it adds.

    Raises:
        CompositionError: naming the algorithm and the model.
    """
    if not isinstance(model, HostModel) or not sees_gradients or (pull is not None and model.owns_step):
        return
    raise CompositionError(
        "SF-COMP-112",
        f"{algorithm} needs the gradient of each local step, and {model.name} brings its own training loop",
        "a model whose steps Sumfold takes itself",
        "use from_functions, from_flax, from_keras or from_equinox; or one of fed_avg, fed_nova, local_layers, fed_bn, "
        "fine_tune; or fed_prox with a from_torch model that has a loss and an optimizer",
    )


def check_steps(model: Model, batching: Batching) -> None:
    """Refuse to tell a user's own loop how long to train: it decides that itself.

    Raises:
        CompositionError: for epochs or max_steps.
    """
    if isinstance(model, HostModel) and model.counts and (batching.epochs != 1 or batching.max_steps is not None):
        raise CompositionError(
            "SF-COMP-113",
            f"{batching} for {model.name}, which is trained by a fit of the user's own",
            "size, shuffle and drop_remainder only: each pass over the loader is an epoch, and fit makes the passes",
            "loop over the loader several times inside fit",
        )


def no_client_optimizer(given: Any, model: HostModel) -> ClientOptimizer:
    """What stands for the client optimizer of a model that has its own.

    Raises:
        CompositionError: when one is given besides.
    """
    if given is not None:
        raise CompositionError(
            "SF-COMP-111",
            f"client_optimizer as a {type(given).__name__}, and {model.name} brings its own",
            "no client_optimizer: the model's own loop has one",
            "leave it out, and pass server_optimizer=… by name",
        )
    return ClientOptimizer(
        lambda params: {},
        lambda params, hparams, round: (),
        lambda gradient, state, params, round: (params, state),
        lambda params, hparams, round: {},
    )


OWN = "the model brings its own optimizer: change it there"
"""What `get_hparams` says of such a model's clients."""


def weight_rows(model: Model, rows: Any, num_examples: Any) -> Any:
    """How many examples a client counts for: the rows that it holds, or what its own loop said."""
    return jnp.asarray(num_examples) if isinstance(model, HostModel) and model.counts else rows
