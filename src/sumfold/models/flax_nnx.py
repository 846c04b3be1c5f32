"""Modules of `flax.nnx`: objects that hold variables, taken apart and put together again around every call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError
from sumfold.keys import Key
from sumfold.models.adapter import checked_loss, copied, mode, takes, unfit
from sumfold.models.functions import matching
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Applied, Model, Parts, combine, is_inexact
from sumfold.tree import Spec, Tree

__all__: list[str] = []


def from_nnx(module: Any, example: Tree, loss: Callable[[Any, Any], Any], metrics: Mapping[str, Any] | None) -> Model:
    """A model from an nnx module, or a function ``rngs -> module``; see `sumfold.models.from_flax`."""
    from flax import nnx

    given = isinstance(module, nnx.Module)

    def make(rngs: Any) -> Any:
        made = foreign(module)(rngs=rngs) if takes(module, "rngs") else foreign(module)(rngs)
        if not isinstance(made, nnx.Module):
            raise CompositionError(
                "SF-MODEL-013",
                f"a function that returned a {type(made).__name__}",
                "a flax.linen module, a flax.nnx module, or a function rngs -> nnx module",
                "return an nnx.Module",
            )
        return made

    def plain(state: Any) -> Tree:
        return nnx.to_pure_dict(state)

    def values(module: Any) -> Tree:
        return copied(plain(nnx.state(module, nnx.Not(nnx.RngState))))

    reference = module if given else nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    graph, random, state = nnx.split(reference, nnx.RngState, ...)
    template, random, structure = tree.shapes(plain(state)), tree.shapes(random), jax.tree.structure(state)
    learns = plain(of_kind(state, nnx.Param))
    start = values(module) if given else None
    name, call = type(reference).__name__, type(reference).__call__

    def init(key: Key) -> Tree:
        return copied(start) if given else values(make(nnx.Rngs(key)))

    def split(weights: Tree) -> Parts:
        return divide(matching(template, weights), learns)

    def join(parts: Parts) -> Tree:
        return combine(*parts)

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        training = key is not None
        seeds = reseeded(random, jax.random.key(0) if key is None else key)
        own = nnx.merge(graph, seeds, jax.tree.unflatten(structure, jax.tree.leaves(join(parts))))
        (own.train if training else own.eval)()
        outputs = own(x, **mode(call, training))
        if not training:
            return Applied(outputs, parts.statistics)
        nnx.pop(own, nnx.Intermediate)
        after = plain(nnx.state(own, nnx.Not(nnx.RngState)))
        return Applied(outputs, divide(after, learns).statistics)

    parts = divide(template, learns)
    try:
        jax.eval_shape(foreign(apply), parts, example, jax.random.key(0))
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise unfit(name, example, error) from error
    averaged = any(jax.tree.leaves(of_kind(state, nnx.BatchStat)))
    return Model(
        name=name,
        template=parts,
        init=foreign(init),
        split=split,
        join=join,
        apply=apply,
        loss=checked_loss(loss, "optax.softmax_cross_entropy_with_integer_labels"),
        metrics=as_metrics(metrics),
        coupled="batch normalisation (nnx.BatchStat)" if averaged else None,
        layers=lambda: layers(reference, tree.specs(template)),
    )


def layers(module: Any, weights: Iterable[Spec]) -> dict[str, type]:
    """The class of the submodule that each weight belongs to."""
    from flax import nnx

    found = {
        "/".join(map(str, path)): type(node) for path, node in nnx.iter_graph(module) if isinstance(node, nnx.Module)
    }
    owners = {spec.path: spec.path.rpartition("/")[0] for spec in weights}
    return {path: found[owner] for path, owner in owners.items() if owner in found}


def of_kind(state: Any, kind: type) -> Any:
    """The state's structure with, for each array, whether its variable is of this kind."""
    from flax import nnx

    return jax.tree.map(
        lambda variable: jax.tree.map(lambda _: isinstance(variable, kind), variable),
        state,
        is_leaf=lambda node: isinstance(node, nnx.Variable),
    )


def reseeded(random: Any, key: Key) -> Any:
    """Random state with a key of its own at every place, and all counts zero."""
    leaves, structure = jax.tree.flatten(random)

    def fresh(place: int, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.zeros(leaf.shape, leaf.dtype)
        own = jax.random.fold_in(key, place)
        return jax.random.split(own, leaf.shape) if leaf.shape else own

    return jax.tree.unflatten(structure, [fresh(i, leaf) for i, leaf in enumerate(leaves)])


def divide(weights: Tree, learns: Tree) -> Parts:
    """Floating parameters are trained, other floats averaged, the rest stays."""

    def part(belongs: Callable[[Any, bool], bool]) -> Tree:
        return jax.tree.map(lambda a, learnt: a if belongs(a, learnt) else None, weights, learns)

    return Parts(
        trainable=part(lambda a, learnt: learnt and is_inexact(a)),
        statistics=part(lambda a, learnt: not learnt and is_inexact(a)),
        constants=part(lambda a, _: not is_inexact(a)),
    )
