"""What TFF's process builders are given, as `sumfold.learning` takes it."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import jax

from sumfold.core.foreign import foreign
from sumfold.core.stage import Stage
from sumfold.errors import CompositionError, TypeMismatchError
from sumfold.keys import Key
from sumfold.models.keras import built
from sumfold.models.model import Model
from sumfold.tree import Tree

__all__ = ["model_of", "optimizer_of", "refuse", "stage_of"]


def model_of(model_fn: Any) -> Model:
    """The model that a ``model_fn`` makes.

    It is called once here, for the architecture, and once by every ``initialize``, whose weights are all of that one
    call. Keras draws random weights from global generators; each call has them seeded from the key, so that a run's
    seed decides its first weights, and puts them back.

    Args:
        model_fn: a function without arguments that returns a `Model`; or a `Model`.

    Raises:
        TypeMismatchError: when it is, or returns, something else.
    """
    if isinstance(model_fn, Model):
        return model_fn
    if not callable(model_fn) or hasattr(model_fn, "trainable_weights"):
        raise _no_model(f"model_fn is {_kind(model_fn)}")

    def made(key: Key) -> Model:
        model = built(model_fn, key)
        if not isinstance(model, Model):
            raise _no_model(f"model_fn returned {_kind(model)}")
        return model

    def init(key: Key) -> Tree:
        return made(key).init(key)

    return dataclasses.replace(made(jax.random.key(0)), init=foreign(init))


def _no_model(came: str) -> TypeMismatchError:
    return TypeMismatchError(
        "SF-COMP-071",
        came,
        "a function without arguments that returns a model",
        "end it with: return tff.learning.from_keras_model(keras_model, loss=…, input_spec=…), or with any model of "
        "sf.models",
    )


def _kind(given: Any) -> str:
    name = type(given).__name__
    return "None" if given is None else f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def optimizer_of(given: Any) -> Any:
    """The optimizer that an ``optimizer_fn`` returns; what is no function without arguments is taken as it is."""
    if not callable(given) or hasattr(given, "stateless_apply"):
        return given
    try:
        needed = [p for p in inspect.signature(given).parameters.values() if _is_needed(p)]
    except (TypeError, ValueError):
        return given
    return given if needed else given()


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def stage_of(name: str, given: Any) -> Stage | None:
    """The stage given as one of TFF's aggregation arguments.

    Raises:
        CompositionError: for something that is no stage, such as an aggregation factory.
    """
    if given is None or isinstance(given, Stage):
        return given
    raise _unsupported(name, given, "a stage of sf.aggregators, for example sf.aggregators.mean()")


_INSTEAD = {
    "broadcast_process": "leave it out: the model is broadcast as it is",
    "distributor": "leave it out: centroids are broadcast as they are",
    "sum_aggregator": "leave it out: the sums of points are plain sums",
    "client_weight_fn": "pass client_weighting=…, its name since TFF 0.19",
    "full_gradient_aggregator": "leave it out: full gradients are averaged with the clients' weights",
    "measure_timing": "leave it out: time the call of process.next",
    "metrics_aggregator": "leave it out: loss and metrics are summed over clients and finished on the server",
    "model_distributor": "leave it out: the model is broadcast as it is",
}


def refuse(**given: Any) -> None:
    """Refuse the arguments of TFF's that would change a result and have no counterpart.

    Raises:
        CompositionError: for the first that is neither None nor False.
    """
    for name, value in given.items():
        if value is not None and value is not False:
            raise _unsupported(name, value, _INSTEAD[name])


def _unsupported(name: str, given: Any, do: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-072",
        f"{name} is {_kind(given)}",
        "an argument that has a counterpart here",
        do if do.startswith(("leave", "pass")) else f"pass {do}",
    )
