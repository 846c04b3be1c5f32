"""FedBN: every client keeps its own normalisation layers.

    client    (w_k, n_k) ← ClientOpt((w, n_k), ∇ loss(w_k, n_k; b))       n: scale, shift and moving statistics
    server    w ← ServerOpt(w, − mean (w − w_k))

Li et al. 2021 ("FedBN: Federated Learning on Non-IID Features via Local Batch Normalization"), Algorithm 1: federated
averaging that skips batch normalisation. It is `local_layers` with these layers; layer and group normalisation are
taken too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax

from sumfold.core.batching import Batching
from sumfold.core.stage import Stage
from sumfold.errors import CompositionError, user_facing
from sumfold.learning.checks import check_model
from sumfold.learning.local_layers import chosen, keeping, listed, names_of
from sumfold.learning.process import Process
from sumfold.learning.weighting import Weighting
from sumfold.models.model import Model

__all__ = ["fed_bn"]

_CLASS = re.compile(r"(Batch|Layer|Group|Instance|RMS)_?Norm", re.IGNORECASE)
_WORD = re.compile(r"(.*_)?(bn|((batch|layer|group|instance|rms)_?)?norm(alization|alisation)?)_?\d*", re.IGNORECASE)


@user_facing
def fed_bn(
    model: Model,
    client_optimizer: Any = None,
    server_optimizer: Any = optax.sgd(1.0),  # noqa: B008 - an immutable pair of functions
    *,
    local: str | Sequence[str] | Callable[[str], bool] | Any = None,
    weighting: Weighting | Any = "examples",
    aggregator: Stage | Any = None,
    batching: Batching | Any = None,
) -> Process:
    """Federated averaging whose clients keep their normalisation layers, for clients whose features differ.

    Scale, shift and moving statistics of these layers never leave a client; see `local_layers`. They are found by the
    class of the layer where the framework tells it (Keras, Flax, Equinox, PyTorch), else by its name: ``BatchNorm_0``,
    ``layer_norm``, ``bn1``.

    Args:
        model, client_optimizer, server_optimizer, weighting, aggregator, batching: as in `fed_avg`; batch normalisation
            needs ``Batching(drop_remainder=True)``.
        local: the local weights, if they are not to be found; as in `local_layers`.

    Raises:
        CompositionError: when the model has no normalisation layer, and as `local_layers`.

    Source: Li et al. 2021, Algorithm 1.

    Example:
        >>> import flax.linen as nn, numpy as np, optax, sumfold as sf
        >>> class Net(nn.Module):
        ...     @nn.compact
        ...     def __call__(self, x):
        ...         return nn.Dense(2)(nn.LayerNorm()(x))
        >>> loss = optax.softmax_cross_entropy_with_integer_labels
        >>> model = sf.models.from_flax(Net(), example=np.ones((1, 3), np.float32), loss=loss)
        >>> process = fed_bn(model, optax.sgd(0.1))
        >>> state, _ = process.next(process.initialize(), {"a": (np.eye(3), np.array([0, 1, 1]))})
        >>> {name: sorted(state.clients["a"][0].work.trainable["params"][name]) for name in ["LayerNorm_0"]}
        {'LayerNorm_0': ['bias', 'scale']}
    """
    check_model(model, own_loop=True)
    is_local = chosen(model, normalising(model).__contains__ if local is None else local)
    options = {"weighting": weighting, "aggregator": aggregator, "batching": batching}
    return keeping("fed_bn", model, is_local, client_optimizer, server_optimizer, 0, **options)


def normalising(model: Model) -> set[str]:
    """The names of all weights of normalisation layers.

    Raises:
        CompositionError: when there is none.
    """
    layers, names = model.layers(), names_of(model)
    known = jax.tree.leaves((names.trainable, names.statistics))
    found = {name for name in known if is_normalisation(name, layers.get(name))}
    if not found:
        raise CompositionError(
            "SF-COMP-085",
            f"{model.name}, in which no normalisation layer was found",
            "a model with batch, layer or group normalisation",
            f"name its weights: local=[…] out of {listed(known)}",
        )
    return found


def is_normalisation(name: str, layer: type | None) -> bool:
    """Whether a weight of this name, in a layer of this class if that is known, belongs to a normalisation layer."""
    if layer is not None:
        return any(_CLASS.search(cls.__name__) for cls in layer.__mro__)
    return any(_WORD.fullmatch(word) for word in re.split(r"[/.]", name)[:-1])
