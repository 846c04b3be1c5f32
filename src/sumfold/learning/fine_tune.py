"""Fine-tuning, measured: what clients reach with a model, and after some steps of their own.

    client    w_k ← ClientOpt(w, ∇ loss(w; b)) for some batches b of its training rows
    metrics   Σ_k measure(w; test rows of k)   and   Σ_k measure(w_k; test rows of k)

The evaluation after "personalisation" of Wang et al. 2019 ("Federated Evaluation of On-device Personalization"); that
federated averaging suits it is shown by Jiang et al. 2019. Three rounds: an evaluation, a training that sends no part
and whose result is what the client remembers, and an evaluation of that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.driver import Runtime
from sumfold.core.round import Batch, HostWork, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_model
from sumfold.learning.fed_eval import evaluating, fed_eval
from sumfold.learning.optimizers import as_client_optimizer
from sumfold.learning.own_loop import OwnLoop, check_steps, no_client_optimizer
from sumfold.learning.process import Process
from sumfold.models.host import HostModel
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["FineTuning", "fine_tune"]

_ROOM = 1 << 28
"""Bytes of clients' weights that are held at once; more clients than fit are trained and measured in turn."""


class Tuned(NamedTuple):
    """What a client remembers from its training to its evaluation: its weights."""

    trainable: Tree
    statistics: Tree


class Local(NamedTuple):
    """A client's run."""

    weights: Tuned
    optimizer: Tree
    num_batches: Int[Array, ""]


def _as_sent(task: Task) -> Parts:
    weights: Parts = task.message
    return weights


def _tuned(message: Parts, memory: Tuned) -> Parts:
    return message._replace(trainable=memory.trainable, statistics=memory.statistics)


def _fitted(
    trainable: Tree, statistics: Tree, optimizer: Tree, sums: Tree, examples: Any, batches: Any, own: Tree
) -> Local:
    """What a model's own loop ends with, as a client's run."""
    return Local(Tuned(trainable, statistics), optimizer, batches)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FineTuning:
    """An evaluation of weights before and after fine-tuning on each client; made by `fine_tune`.

    Attributes:
        before: evaluates the weights as they are.
        training: fine-tunes them.
        after: evaluates what came of it.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
        >>> sf.learning.fine_tune(model, optax.sgd(0.1))
        FineTuning(function on Simulation)
    """

    before: Process
    training: Process
    after: Process
    _kept: dict[int, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        assert self.before.model is not None
        return f"FineTuning({self.before.model.name} on {type(self.before.runtime).__name__})"

    @user_facing
    def on(self, runtime: Runtime | Any) -> FineTuning:
        """The same evaluation on another runtime.

        Raises:
            CompositionError: for something that is no runtime.
        """
        on_it = {name: getattr(self, name).on(runtime) for name in ("before", "training", "after")}
        return dataclasses.replace(self, **on_it)

    @user_facing
    def explain(self, train: Any = None, test: Any = None) -> str:
        """What the clients of the three rounds receive, compute and send; the data as for `Process.explain`."""
        return "\n\n".join([self.before.explain(test), self.training.explain(train), self.after.explain(test)])

    @user_facing
    def __call__(self, weights: Any, train: Any, test: Any, *, seed: int | Any = 0) -> dict[str, Any]:
        """Measure the test rows, train on the training rows, and measure the test rows again, at every client.

        A client whose training is not finite is left out of the numbers after it, and counted.

        Args:
            weights: the model's, such as ``process.get_model_weights(state)``.
            train, test: federations of the same clients; as for ``process.next``.
            seed: of the order of the training rows, and of dropout.

        Returns:
            ``{"loss", each metric, "fine_tuned_loss", "fine_tuned_" each metric, "num_examples", "num_clients",
            "num_non_finite_clients"}``, over the test rows of all clients together; and each client's own under
            ``clients`` if it was built so.

        Raises:
            CompositionError: when train and test have other clients.
            StateError: for weights that are not the model's.
        """
        trained_on, tested_on = (as_federation(data, None, self._kept)[0] for data in (train, test))
        _check(trained_on, tested_on)
        before, training, after = (
            process.set_model_weights(process.initialize(seed), weights)
            for process in (self.before, self.training, self.after)
        )
        now = self.before.next(before, tested_on).metrics["client_work"]["eval"]
        single: dict[Any, Any] = {}
        abreast = max(1, _ROOM // max(1, tree.nbytes(self.training.round.phases[0].work.memory(training.algorithm))))
        for place in range(0, max(len(tested_on), 1), abreast):
            ids = list(tested_on.ids[place : place + abreast])
            tuned = self.training.next(training, trained_on, clients=ids).state.clients
            finite = [client for client in ids if client in tuned]
            after, metrics = self.after.next(after._replace(clients=tuned), tested_on, clients=finite)
            single |= metrics["client_work"]["eval"].get("clients", {})
        later = metrics["client_work"]["eval"]["total_rounds_metrics"]
        reached = {
            **self._both(now, later),
            "num_clients": now["num_clients"],
            "num_non_finite_clients": len(tested_on) - later["num_clients"],
        }
        if "clients" not in now:
            return reached
        return {**reached, "clients": {k: self._both(of, single.get(k)) for k, of in now["clients"].items()}}

    def _both(self, now: Mapping[str, Any], later: Mapping[str, Any] | None) -> dict[str, Any]:
        assert self.before.model is not None
        names = ["loss", *self.before.model.metrics]
        tuned = {} if later is None else {f"fine_tuned_{name}": later[name] for name in names}
        return {**{name: now[name] for name in names}, **tuned, "num_examples": now["num_examples"]}


def _check(train: Federation, test: Federation) -> None:
    """Refuse federations of different clients."""
    if set(train.ids) == set(test.ids):
        return
    other = sorted(set(train.ids) ^ set(test.ids), key=str)
    raise CompositionError(
        "SF-COMP-086",
        f"{len(train)} clients to train on and {len(test)} to test on; {other[0]!r} is among one of them only",
        "the same clients in both",
        "split each client's rows: train, test = federation.split(0.8)",
    )


@user_facing
def fine_tune(
    model: Model, client_optimizer: Any = None, *, batching: Batching | Any = None, per_client: bool | Any = False
) -> FineTuning:
    """An evaluation of what clients gain by training a model further on their own rows.

    Called with weights and two federations of the same clients, training and test rows, it gives loss and metrics over
    all test rows, before and after; nothing but sums of metrics leaves a client, and nothing is kept.

    Args:
        model: from ``sumfold.models``.
        client_optimizer: as in `fed_avg`, for the fine-tuning; left out for a model that brings its own.
        batching: of the training rows: ``sf.Batching(size=32, max_steps=10)`` is ten steps. Default `Batching()`.
        per_client: also give each client's own numbers, under ``clients``; they then leave the clients as they are, as
            in `fed_eval`. A client whose training is not finite has only those before it.

    Raises:
        CompositionError: for an optimizer, batching or `per_client` that cannot be used.

    Source: Wang et al. 2019 ("Federated Evaluation of On-device Personalization"); Jiang et al. 2019.

    Example:
        One step halves the distance of each client's optimum.

        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> clients = {"a": (np.ones(4), 2 * np.ones(4)), "b": (np.ones(2), -2 * np.ones(2))}
        >>> evaluation = fine_tune(model, optax.sgd(0.25), batching=sf.Batching(size=4, max_steps=1))
        >>> reached = evaluation(jnp.float32(0), train=clients, test=clients)
        >>> reached["loss"], reached["fine_tuned_loss"], reached["num_examples"]
        (4.0, 1.0, 6)
    """
    check_model(model, own_loop=True)
    own_loop = model if isinstance(model, HostModel) else None
    client = no_client_optimizer(client_optimizer, own_loop) if own_loop else as_client_optimizer(client_optimizer)

    def remembered(message: Parts) -> Tuned:
        return Tuned(message.trainable, message.statistics)

    def begin(task: Task, key: Key) -> Local:
        server: Parts = task.message
        hparams = client.hparams(server.trainable)
        return Local(remembered(server), client.init(server.trainable, hparams, jnp.int32(0)), jnp.int32(0))

    def train(task: Task, local: Local, batch: Batch, key: Key) -> Local:
        weights = local.weights
        rest = task.message._replace(statistics=weights.statistics)
        gradient, statistics, _ = model.gradient(weights.trainable, rest, batch, key)
        trainable, optimizer = client.update(gradient, local.optimizer, weights.trainable, jnp.int32(0))
        return Local(Tuned(trainable, statistics), optimizer, local.num_batches + 1)

    def report(task: Task, local: Local, key: Key) -> Report:
        return Report(parts={}, metrics={"num_batches": local.num_batches}, memory=local.weights)

    def finalize(state: Parts, results: Mapping[str, Any], counted: Measured, key: Key) -> tuple[Parts, Metrics]:
        return state, {"client_work": {"fine_tune": {"num_batches": counted.sums["num_batches"]}}}

    chosen = own_loop.batching if own_loop and own_loop.batching and batching is None else batching_for(model, batching)
    work: Work | HostWork = Work(begin, train, report, chosen, remembered)
    if own_loop:
        check_steps(own_loop, chosen)
        work = HostWork(OwnLoop(own_loop.trainer, _as_sent, None, chosen, _fitted), begin, report, chosen, remembered)
    training = Process(
        Round(
            "fine_tune",
            lambda weights, key: model.split(weights),
            (Phase(lambda state, key: state, work, {}, finalize),),
        ),
        model=model,
        batching=batching,
        parts=lambda state: state,
        with_parts=lambda state, parts: parts,
    )

    before = fed_eval(model, per_client=per_client)
    return FineTuning(before, training, evaluating("fine_tuned", model, None, per_client, remembered, _tuned))
