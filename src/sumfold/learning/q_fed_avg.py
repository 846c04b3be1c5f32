"""q-FedAvg: clients on which the model does worse count more, so that none is left far behind.

    minimise    Σ_k p_k F_k(w)^{q+1} / (q + 1)            q = 0: the mean loss;     q → ∞: the largest
    client      Δ_k = F_k^q · Δw_k     with Δw_k = L (w − w_k)          F_k: its loss at the w that it received
                h_k = q F_k^{q−1} ‖Δw_k‖² + L F_k^q
    server      w ← ServerOpt(w, Σ p_k Δ_k / Σ p_k h_k)                 SGD with rate 1: the paper's step

Li et al. 2020 ("Fair resource allocation in federated learning"), equation 2 and Algorithm 2. The step is a weighted
mean, of Δ_k / h_k = F_k (w − w_k) / (F_k + q L ‖w − w_k‖²) with weights p_k h_k, so a client sends what it sends in
federated averaging: one value, one weight, two sums. A factor that is common to all h_k cancels; F_k^{q−1} is taken
of F_k over the cohort's mean loss, so that a large q neither overflows nor vanishes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Task, Work
from sumfold.core.stage import Contribution, Stage
from sumfold.errors import CompositionError, user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_model
from sumfold.learning.fed_avg import Local, Server, Variant, averaging
from sumfold.learning.hparams import check_numbers
from sumfold.learning.optimizers import ClientOptimizer, Hparams, as_client_optimizer
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.metrics import ratio
from sumfold.models.model import Model, Parts
from sumfold.tree import Tree

__all__ = ["q_fed_avg"]

_LEAST = 1e-10
"""A loss of 0 counts as this: F^{q−1} is infinite there for q < 1."""


@user_facing
def q_fed_avg(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    q: float | Any,
    lipschitz: float | Any = None,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging that makes the clients' losses more even: the larger q, the more.

    A round has two exchanges with the same clients: each first measures its loss at the weights it received, over all
    its rows, predicting and without the model's regularisers, and keeps it; then it trains. Losses must not be
    negative; a client whose loss is, is left out as not finite.

    Args:
        model, client_optimizer, server_optimizer, batching: as in `fed_avg`.
        q: q ≥ 0; 0 is `fed_avg`, the paper's experiments use 0.001 to 5.
        lipschitz: the constant L > 0, an estimate of how fast gradients change; the larger, the shorter the steps.
            None is 1 / learning rate of the client optimizer, the paper's choice, where it can be read: of Keras
            optimizers and of ``optax.inject_hyperparams(optax.sgd)(0.1)``, not of ``optax.sgd(0.1)``.
        weighting: p_k; ``"examples"`` is the paper's n_k / n, for cohorts that are drawn uniformly.
        aggregator: the stage of the part ``update``, which is Δ_k / h_k with the weight p_k h_k; default mean.

    Raises:
        CompositionError: as `fed_avg`; for q or L out of range, or without L where the rate cannot be read.

    Source: Li et al. 2020, Algorithm 2.

    Example:
        The second client's loss is larger, so the model goes its way; with q = 0 it would be 0.1.

        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
        >>> process = q_fed_avg(model, optax.sgd(0.05), q=1.0, lipschitz=20.0, batching=sf.Batching(size=None))
        >>> clients = [(np.ones(2), -np.ones(2)), (np.ones(2), 3 * np.ones(2))]
        >>> state, _ = process.next(process.initialize(), clients)
        >>> round(float(process.get_model_weights(state)), 4)
        0.2167
    """
    check_model(model)
    client = as_client_optimizer(client_optimizer)
    hparams = {"q": q} if lipschitz is None else {"q": q, "lipschitz": lipschitz}
    _check(hparams)
    if lipschitz is None:
        _check_rate(client, model)

    def constant(task: Task) -> Array:
        message = task.message
        if lipschitz is not None:
            return jnp.asarray(message.own_hparams["lipschitz"], jnp.float32)
        rate = client.rate(message.model.trainable, message.hparams, message.round)["client_learning_rate"]
        rate = jnp.asarray(rate, jnp.float32)
        return jnp.where(rate > 0, 1 / rate, 0.0)  # with rate 0 nobody moves, whatever L

    def report(task: Task, local: Local, update: Contribution) -> tuple[dict[str, Contribution], Tree]:
        power, loss = task.message.own_hparams["q"], task.kept
        squared = sum((jnp.vdot(leaf, leaf).real for leaf in jax.tree.leaves(update.value)), start=jnp.float32(0))
        height = loss + power * constant(task) * squared
        relative = loss / jnp.maximum(task.message.own, _LEAST)
        shortened = tree.scale(loss / height, update.value)
        weight = jnp.where(update.weight > 0, update.weight * relative ** (power - 1) * height, 0.0)
        return {"update": Contribution(shortened, weight)}, ()

    variant = Variant(
        "q_fed_avg",
        hparams=hparams,
        check=_check,
        state=lambda trainable: jnp.float32(0),  # the cohort's mean loss, at the weights it received
        share=lambda own: own,
        report=report,
        before=(_losses(model, batching_for(model, batching)),),
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


def _losses(model: Model, batching: Batching) -> Phase:
    """The first exchange: every client measures F_k at w and keeps it; the server learns the sum over all rows."""

    def measure(task: Task, pair: Tree, batch: Batch, key: Key) -> Tree:
        parts: Parts = task.message
        return tree.add(pair, model.measure(parts, batch)["loss"])

    def keep(task: Task, pair: Tree, key: Key) -> Report:
        loss: Float[Array, ""] = ratio(pair)
        return Report({}, {"loss": pair}, kept=jnp.where(loss < 0, jnp.nan, jnp.maximum(loss, _LEAST)))

    def finalize(state: Server, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Server, Metrics]:
        return state._replace(own=ratio(measured.sums["loss"])), {}

    # One look at each row; predicting, a short batch changes nothing.
    once = batching._replace(epochs=1, max_steps=None, shuffle=False, drop_remainder=False)
    work = Work(lambda task, key: (jnp.float32(0), jnp.float32(0)), measure, keep, once)
    return Phase(lambda state, key: state.model, work, {}, finalize)


def _check(hparams: Mapping[str, Any]) -> None:
    check_numbers("q_fed_avg", {name: value for name, value in hparams.items() if name == "q"}, zero=True)
    check_numbers("q_fed_avg", {name: value for name, value in hparams.items() if name != "q"}, zero=False)


def _check_rate(client: ClientOptimizer, model: Model) -> None:
    """Refuse a client optimizer whose learning rate cannot be read.

    Raises:
        CompositionError: saying how it can.
    """

    def read(trainable: Tree) -> Hparams:
        return client.rate(trainable, client.hparams(trainable), jnp.int32(0))

    if not jax.eval_shape(read, model.template.trainable):
        raise CompositionError(
            "SF-COMP-090",
            "q_fed_avg with a client optimizer whose learning rate cannot be read",
            "the constant L, which is 1 / learning rate in the paper",
            "pass lipschitz=1 / rate, or the optimizer as optax.inject_hyperparams(optax.sgd)(0.1)",
        )
