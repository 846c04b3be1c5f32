"""Optimizers as two pure functions, out of optax transforms, Keras optimizers, or a schedule by round."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array

from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError
from sumfold.tree import Tree

__all__ = ["ClientOptimizer", "Hparams", "Optimizer", "as_client_optimizer", "as_optimizer"]

Hparams: TypeAlias = dict[str, Array]

CLOSED = "closed over by the optimizer: build it with optax.inject_hyperparams or Keras to read and set its values"
"""What `get_hparams` says of an optimizer whose numbers cannot be seen."""


class Optimizer(NamedTuple):
    """An optimizer without a memory of its own.

    Attributes:
        init: params -> state.
        update: (gradient, state, params) -> (params, state).
        read: state -> hyperparameters by name; empty when they are closed over.
        write: (state, hyperparameters) -> state.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    read: Callable[[Tree], Hparams]
    write: Callable[[Tree, Hparams], Tree]


def as_optimizer(given: Any, role: str, round: ArrayLike | None = None) -> Optimizer:
    """An `Optimizer` from an optax transform, a Keras optimizer, or ``fn(round)`` that returns an optax transform.

    Args:
        given: what the user passed.
        role: its argument's name, for messages.
        round: int32[], the round for a schedule; None where a schedule cannot be used.

    Raises:
        CompositionError: for anything else, saying what came.
    """
    if isinstance(given, optax.GradientTransformation):
        return _from_optax(given)
    if _is_keras(given):
        return _from_keras(given)
    if is_schedule(given) and round is not None:
        try:
            made = foreign(given)(round)
        except jax.errors.ConcretizationTypeError as error:
            raise CompositionError(
                "SF-COMP-027",
                f"{role}(round) decides by Python's if, int or float on a round that is traced",
                "arithmetic on the round: one program serves every round",
                "use jnp.where(round < 10, 0.1, 0.01), or a schedule of optax",
            ) from error
        if isinstance(made, optax.GradientTransformation):
            return _from_optax(made)
        raise _refusal(made, f"{role}(round)")
    raise _refusal(given, role)


def is_schedule(given: Any) -> bool:
    """Whether this is a function of the round."""
    if not callable(given) or isinstance(given, (type, optax.GradientTransformation)):
        return False
    try:
        required = [p for p in inspect.signature(given).parameters.values() if p.default is p.empty]
    except (TypeError, ValueError):
        return False
    # optax.sgd itself also has one required parameter: it makes an optimizer out of a rate, not out of a round
    return len(required) == 1 and required[0].name != "learning_rate" and not _is_keras(given)


def _refusal(given: Any, role: str) -> CompositionError:
    what = "None" if given is None else f"a {type(given).__name__}"
    advice = "for example optax.sgd(0.1) or keras.optimizers.SGD(0.1)"
    if inspect.isclass(given) or (callable(given) and not is_schedule(given)):
        advice = "pass the optimizer itself, not a class or function that makes it; " + advice
    return CompositionError(
        "SF-COMP-020",
        f"{role} is {what}",
        "an optax transform, a Keras 3 optimizer or, for clients, fn(round) -> optax transform",
        advice,
    )


def _from_optax(transform: optax.GradientTransformation) -> Optimizer:
    def update(gradient: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        updates, state = foreign(transform.update)(gradient, state, params)
        return foreign(optax.apply_updates)(params, updates), state

    def injected(state: Tree) -> list[Any]:
        nodes = jax.tree.leaves(state, is_leaf=lambda s: hasattr(s, "hyperparams"))
        return [node for node in nodes if hasattr(node, "hyperparams")]

    def read(state: Tree) -> Hparams:
        found: Hparams = {}
        for node in injected(state):
            found.update({k: v for k, v in node.hyperparams.items() if jnp.ndim(v) == 0})
        return found

    def write(state: Tree, hparams: Hparams) -> Tree:
        def set_in(node: Any) -> Any:
            if not hasattr(node, "hyperparams"):
                return node
            known = {
                k: jnp.asarray(hparams[k]).astype(jnp.result_type(v)) if k in hparams else v
                for k, v in node.hyperparams.items()
            }
            return node._replace(hyperparams=known)

        return jax.tree.map(set_in, state, is_leaf=lambda s: hasattr(s, "hyperparams"))

    return Optimizer(foreign(transform.init), update, read, write)


def _is_keras(given: Any) -> bool:
    return hasattr(given, "stateless_apply") and hasattr(given, "get_config") and not inspect.isclass(given)


def _from_keras(given: Any) -> Optimizer:
    """A fresh copy of the user's object is built for the shapes at hand; only its ``stateless_apply`` is used."""
    import keras

    with warnings.catch_warnings():
        # Keras reads its own variables through NumPy's old array protocol here.
        warnings.simplefilter("ignore", DeprecationWarning)
        configuration = given.get_config()

    def built(params: Tree) -> Any:
        own = type(given).from_config(configuration)
        variables = [
            keras.Variable(np.zeros(jnp.shape(p), jnp.result_type(p)), name=f"p{i}")
            for i, p in enumerate(jax.tree.leaves(params))
        ]
        own.build(variables)
        return own

    def names(own: Any) -> dict[str, int]:
        return {
            v.path.split("/")[-1]: i
            for i, v in enumerate(own.variables)
            if v.path.split("/")[-1] == "learning_rate" and not isinstance(configuration.get("learning_rate"), dict)
        }

    def init(params: Tree) -> Tree:
        with jax.ensure_compile_time_eval():
            values = [np.asarray(v.value) for v in built(params).variables]
        return [jnp.asarray(value) for value in values]

    def update(gradient: Tree, state: Tree, params: Tree) -> tuple[Tree, Tree]:
        leaves, structure = jax.tree.flatten(params)
        with jax.ensure_compile_time_eval():
            own = built(params)
        new, state = foreign(own.stateless_apply)(state, jax.tree.leaves(gradient), leaves)
        return jax.tree.unflatten(structure, new), list(state)

    with jax.ensure_compile_time_eval():
        places = names(built(jnp.zeros(())))

    def read(state: Tree) -> Hparams:
        return {name: state[i] for name, i in places.items()}

    def write(state: Tree, hparams: Hparams) -> Tree:
        state = list(state)
        for name, i in places.items():
            if name in hparams:
                state[i] = jnp.asarray(hparams[name]).astype(state[i].dtype)
        return state

    return Optimizer(init, update, read, write)


class ClientOptimizer(NamedTuple):
    """An optimizer as clients use it: begun anew each round, its rate perhaps a function of the round.

    Attributes:
        hparams: params -> what `get_hparams` reads and `set_hparams` writes, kept on the server; {} for a schedule.
        init: (params, hparams, round) -> state.
        update: (gradient, state, params, round) -> (params, state).
        rate: (params, hparams, round) -> {"client_learning_rate": …}, or {} when it cannot be read.
    """

    hparams: Callable[[Tree], Hparams]
    init: Callable[[Tree, Hparams, Array], Tree]
    update: Callable[[Tree, Tree, Tree, Array], tuple[Tree, Tree]]
    rate: Callable[[Tree, Hparams, Array], Hparams]


def as_client_optimizer(given: Any, role: str = "client_optimizer") -> ClientOptimizer:
    """A `ClientOptimizer` from an optax transform, a Keras optimizer, or ``fn(round)``.

    Raises:
        CompositionError: for anything else.
    """
    scheduled = is_schedule(given)
    if not scheduled:
        as_optimizer(given, role)

    def at(round: Array) -> Optimizer:
        return as_optimizer(given, role, round)

    def hparams(params: Tree) -> Hparams:
        return {} if scheduled else at(jnp.int32(0)).read(at(jnp.int32(0)).init(params))

    def init(params: Tree, values: Hparams, round: Array) -> Tree:
        optimizer = at(round)
        return optimizer.write(optimizer.init(params), values)

    def rate(params: Tree, values: Hparams, round: Array) -> Hparams:
        read = at(round).read(init(params, values, round))
        return {"client_learning_rate": read["learning_rate"]} if "learning_rate" in read else {}

    return ClientOptimizer(hparams, init, lambda g, s, p, round: at(round).update(g, s, p), rate)
