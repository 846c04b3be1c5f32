"""Modules of `flax.linen`: functions of a dict of variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from sumfold import tree
from sumfold.core.compiled import at_once
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError
from sumfold.keys import Key
from sumfold.models.adapter import checked_loss, copied, mode, unfit
from sumfold.models.functions import matching
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Applied, Model, Parts, combine, is_inexact, partition
from sumfold.tree import Spec, Tree

__all__: list[str] = []


def from_linen(module: Any, example: Tree, loss: Callable[[Any, Any], Any], metrics: Mapping[str, Any] | None) -> Model:
    """A model from a linen module; see `sumfold.models.from_flax`."""
    name = type(module).__name__
    call = type(module).__call__

    def init(key: Key) -> Tree:
        return copied(dict(module.init(streams(key), example, **mode(call, False))))

    template = shapes(lambda: jax.eval_shape(foreign(init), jax.random.key(0)), name, example)
    collections = sorted(set(template) - {"params"})

    def split(weights: Tree) -> Parts:
        return divide(matching(template, weights))

    def join(parts: Parts) -> Tree:
        params, others = parts.constants
        return {**combine(parts.trainable, params), **combine(parts.statistics, others)}

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        if key is None:
            return Applied(module.apply(join(parts), x, **mode(call, False)), parts.statistics)
        outputs, after = module.apply(join(parts), x, rngs=streams(key), mutable=collections, **mode(call, True))
        statistics, _ = partition({c: after[c] for c in collections if c in after}, is_inexact)
        return Applied(outputs, statistics)

    parts = divide(template)
    trained = shapes(lambda: jax.eval_shape(foreign(apply), parts, example, jax.random.key(0)), name, example)
    if tree.specs(trained.statistics) != tree.specs(parts.statistics):
        raise CompositionError(
            "SF-MODEL-014",
            f"training {name} changes what is in its collections {collections}",
            "collections that keep their shapes",
            'collect what the module sows in "intermediates"',
        )
    return Model(
        name=name,
        template=parts,
        init=at_once(foreign(init)),
        split=split,
        join=join,
        apply=apply,
        loss=checked_loss(loss, "optax.softmax_cross_entropy_with_integer_labels"),
        metrics=as_metrics(metrics),
        coupled="batch normalisation (the collection 'batch_stats')" if "batch_stats" in collections else None,
        layers=lambda: layers(init, tree.specs(template)),
    )


def layers(init: Callable[[Key], Tree], weights: Iterable[Spec]) -> dict[str, type]:
    """The class of the submodule that each weight belongs to, by a trace of `init`."""
    import flax.linen as nn

    found: dict[str, type] = {}

    def note(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        found["/".join(context.module.path)] = type(context.module)
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(foreign(init), jax.random.key(0))
    owners = {spec.path: "/".join(spec.path.split("/")[1:-1]) for spec in weights}
    return {path: found[owner] for path, owner in owners.items() if owner in found}


def streams(key: Key) -> dict[str, Key]:
    """Keys by stream; Flax takes "params" for the streams that are not here."""
    params, dropout = jax.random.split(key)
    return {"params": params, "dropout": dropout}


def shapes(trace: Callable[[], Tree], name: str, example: Tree) -> Tree:
    """What tracing gives, or the error that names the example."""
    from flax.errors import FlaxError

    try:
        return trace()
    except (FlaxError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise unfit(name, example, error) from error


def divide(variables: Tree) -> Parts:
    """Parameters are trained, floats of other collections averaged; the constants are those of both."""
    params = {c: v for c, v in variables.items() if c == "params"}
    others = {c: v for c, v in variables.items() if c != "params"}
    trainable, fixed_params = partition(params, is_inexact)
    statistics, fixed = partition(others, is_inexact)
    return Parts(trainable, statistics, (fixed_params, fixed))
