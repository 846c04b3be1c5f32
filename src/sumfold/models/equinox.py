"""Equinox modules: trees that are called with one example."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, missing_extra, user_facing
from sumfold.keys import Key
from sumfold.models.adapter import checked_loss, copied
from sumfold.models.functions import divide, matching
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Applied, Model, Parts
from sumfold.tree import Tree

__all__ = ["from_equinox"]


@user_facing
def from_equinox(build: Any, loss: Callable[[Any, Any], Any], metrics: Mapping[str, Any] | None = None) -> Model:
    """A model from an Equinox module that maps one example to one output; weights come back as the module itself.

    Floating arrays are trained, other arrays stay, and what is no JAX array is part of the program. The module is
    mapped over a batch with `jax.vmap`; if its ``__call__`` takes ``key``, every example has its own in training. When
    predicting, `equinox.nn.inference_mode` holds. A file takes the arrays alone: ``equinox.filter(weights,
    equinox.is_array)``.

    Args:
        build: key -> module; or a module, which is then the initial one whatever the seed.
        loss: (outputs, y) -> loss of each example, [B].
        metrics: name -> fn(outputs, y) -> value of each example [B], or a `sumfold.metrics.Metric`.

    Raises:
        MissingExtraError: when Equinox is not installed.
        CompositionError: when something is not what it should be, or the module is stateful.

    Example:
        >>> import equinox as eqx, numpy as np
        >>> model = from_equinox(
        ...     lambda key: eqx.nn.Linear(3, "scalar", key=key), loss=lambda outputs, y: (outputs - y) ** 2
        ... )
        >>> weights = model.init(jax.random.key(0))
        >>> weights(np.ones(3)).shape, model.predict(weights, np.ones((4, 3))).shape
        ((), (4,))
    """
    try:
        import equinox as eqx
    except ModuleNotFoundError as error:
        if error.name != "equinox":
            raise
        raise missing_extra("equinox", "equinox") from None
    given = isinstance(build, eqx.Module)
    if not given and not callable(build):
        raise no_module(build)
    reference = build if given else foreign(build)(jax.random.key(0))
    check(eqx, reference)
    arrays, static = eqx.partition(reference, eqx.is_array)
    template, start = tree.shapes(arrays), copied(arrays) if given else None
    known = set(named(reference))
    name, call = type(reference).__name__, type(reference).__call__
    parameter = inspect.signature(call).parameters.get("key")

    def module(parts: Parts) -> Any:
        return eqx.combine(parts.trainable, parts.constants, static)

    def init(key: Key) -> Any:
        return eqx.combine(copied(start if given else eqx.filter(build(key), eqx.is_array)), static)

    def split(weights: Tree) -> Parts:
        return divide(matching(template, arrays_of(template, known, weights)))

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        own = module(parts) if key is not None else eqx.nn.inference_mode(module(parts))
        if parameter is None or (key is None and parameter.default is not parameter.empty):
            return Applied(jax.vmap(own)(x), parts.statistics)
        source = jax.random.key(0) if key is None else key
        rows = jnp.arange(len(jax.tree.leaves(x)[0]), dtype=jnp.uint32)
        # a row's key depends on its place alone, so that padding the batch changes no other row
        keys = jax.vmap(lambda row: jax.random.fold_in(source, row))(rows)
        return Applied(jax.vmap(lambda x, key: own(x, key=key))(x, keys), parts.statistics)

    return Model(
        name=name,
        template=divide(template),
        init=foreign(init),
        split=split,
        join=module,
        apply=apply,
        loss=checked_loss(loss, "optax.softmax_cross_entropy_with_integer_labels"),
        metrics=as_metrics(metrics),
        layers=lambda: layers(reference),
    )


def layers(module: Any) -> dict[str, type]:
    """The class of the submodule that each leaf belongs to."""
    found = {}
    for path, _ in jax.tree_util.tree_flatten_with_path(module)[0]:
        node = module
        for key in path:
            if hasattr(key, "name"):
                owner, node = node, getattr(node, key.name)
                found[tree.name(path)] = type(owner)
            else:
                node = node[key.idx if hasattr(key, "idx") else key.key]
    return found


def named(module: Tree) -> dict[str, Any]:
    """Every leaf by its path."""
    return {tree.name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(module)[0]}


def arrays_of(template: Tree, known: set[str], weights: Tree) -> Tree:
    """The module's arrays out of a module, or out of what a file gave back: its plain numbers do not matter."""
    given, paths = named(weights), [spec.path for spec in tree.specs(template)]
    if set(paths) <= set(given) <= known:
        return jax.tree.unflatten(jax.tree.structure(template), [given[path] for path in paths])
    return jax.tree.map(lambda leaf: leaf if isinstance(leaf, (jax.Array, np.ndarray)) else None, weights)


def no_module(given: Any) -> CompositionError:
    """The error for something that is no Equinox module."""
    return CompositionError(
        "SF-MODEL-015",
        f"a {type(given).__name__}",
        "a function key -> Equinox module, or a module",
        "write from_equinox(lambda key: eqx.nn.MLP(…, key=key), loss)",
    )


def check(eqx: Any, module: Any) -> None:
    """Refuse what is no module, and modules with state."""

    def has_state(node: Any) -> bool:
        return isinstance(node, (eqx.nn.State, eqx.nn.StateIndex))

    if any(has_state(leaf) for leaf in jax.tree.leaves(module, is_leaf=has_state)):
        raise CompositionError(
            "SF-MODEL-016",
            "an Equinox module with state, as BatchNorm has it",
            "a module that maps one example to one output and remembers nothing",
            "use eqx.nn.GroupNorm or eqx.nn.LayerNorm in place of BatchNorm",
        )
    if not isinstance(module, eqx.Module) or not callable(module):
        raise no_module(module)
