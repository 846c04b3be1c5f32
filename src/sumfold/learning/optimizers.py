"""Optimizers as two pure functions, out of optax transforms, Keras optimizers, or a schedule by round."""

from __future__ import annotations

import inspect
import itertools
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

CLOSED = (
    "closed over by the optimizer, or computed by a schedule: build it with optax.inject_hyperparams or Keras, and "
    "numbers, to read and set its values"
)
"""What `get_hparams` says of an optimizer whose numbers cannot be seen."""

SCHEDULED = "computed by the optimizer's own schedule: the rate follows it; change the schedule instead"
"""What `get_hparams` says of a Keras optimizer with a schedule."""

BY_ROUND = "a function of the round: change the function instead"
"""What `get_hparams` says of ``fn(round)``."""


class Optimizer(NamedTuple):
    """An optimizer without a memory of its own.

    Attributes:
        init: params -> state.
        update: (gradient, state, params) -> (params, state).
        read: state -> hyperparameters that can be set, by name; without those that a schedule computes anew in each
            update; empty when they are closed over.
        write: (state, hyperparameters) -> state.
        rate: state -> the learning rate of the next update, by a schedule or not; None when it cannot be read.
    """

    init: Callable[[Tree], Tree]
    update: Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]
    read: Callable[[Tree], Hparams]
    write: Callable[[Tree, Hparams], Tree]
    rate: Callable[[Tree], Array | None]


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

    def read(state: Tree) -> Hparams:
        return {one.name: one.value for one in _injected(state) if not one.computed}

    def write(state: Tree, hparams: Hparams) -> Tree:
        names = {(one.node, one.key): one.name for one in _injected(state) if not one.computed}
        places = itertools.count()

        def set_in(node: Any) -> Any:
            if not _is_injected(node):
                return node
            place = next(places)
            given = {k: hparams[n] for k in node.hyperparams if (n := names.get((place, k))) in hparams}
            cast = {k: jnp.asarray(v).astype(jnp.result_type(node.hyperparams[k])) for k, v in given.items()}
            return node._replace(hyperparams={**node.hyperparams, **cast})

        return jax.tree.map(set_in, state, is_leaf=_is_injected)

    def rate(state: Tree) -> Array | None:
        return next((one.value for one in _injected(state) if one.key == "learning_rate"), None)

    return Optimizer(foreign(transform.init), update, read, write, rate)


class _Injected(NamedTuple):
    """A number in the state of `optax.inject_hyperparams`.

    Attributes:
        name: as `get_hparams` shows it: its own, with _2, _3, … where nodes before it have the same.
        node, key: where it is.
        value: as it stands.
        computed: whether each update computes it anew from a schedule, whatever stands there.
    """

    name: str
    node: int
    key: str
    value: Array
    computed: bool


def _is_injected(node: Any) -> bool:
    return hasattr(node, "hyperparams")


def _injected(state: Tree) -> list[_Injected]:
    """Every number of every `optax.inject_hyperparams`, in the state's order, under names that differ."""
    nodes = [node for node in jax.tree.leaves(state, is_leaf=_is_injected) if _is_injected(node)]
    own = {key for node in nodes for key in node.hyperparams}
    found: dict[str, _Injected] = {}
    for place, node in enumerate(nodes):
        for key, value in node.hyperparams.items():
            if jnp.ndim(value) == 0:
                numbered = (f"{key}_{n}" for n in itertools.count(2) if f"{key}_{n}" not in own)
                name = next(name for name in itertools.chain([key], numbered) if name not in found)
                computed = key in (getattr(node, "hyperparams_states", None) or {})
                found[name] = _Injected(name, place, key, value, computed)
    return list(found.values())


def _is_keras(given: Any) -> bool:
    return hasattr(given, "stateless_apply") and hasattr(given, "get_config") and not inspect.isclass(given)


def _from_keras(given: Any) -> Optimizer:
    """A fresh copy of the user's object is built for the shapes at hand; only its ``stateless_apply`` is used."""
    import keras

    if hasattr(given, "inner_optimizer") or getattr(given, "loss_scale_factor", None):
        raise CompositionError(
            "SF-COMP-035",
            f"a Keras {type(given).__name__} that scales the loss",
            "an optimizer that takes gradients as they are: the loss is not scaled here, so its updates would be tiny",
            "pass its inner optimizer, or leave loss_scale_factor out",
        )
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
            if v.path.split("/")[-1] == "learning_rate" and not _has_schedule(given)
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

    def rate(state: Tree) -> Array | None:
        if not _has_schedule(given):
            return read(state).get("learning_rate")
        with jax.ensure_compile_time_eval():
            own = built(jnp.zeros(()))
        step = next(i for i, v in enumerate(own.variables) if v is own.iterations)
        with keras.StatelessScope(state_mapping=[(own.iterations, state[step])]):
            return jnp.asarray(foreign(lambda: own.learning_rate)(), jnp.float32)

    return Optimizer(init, update, read, write, rate)


def _has_schedule(given: Any) -> bool:
    """Whether a Keras optimizer's rate is a `LearningRateSchedule`."""
    import keras

    return isinstance(getattr(given, "_learning_rate", None), keras.optimizers.schedules.LearningRateSchedule)


def unseen(given: Any) -> str:
    """Why an optimizer shows no hyperparameter."""
    if is_schedule(given):
        return BY_ROUND
    return SCHEDULED if _is_keras(given) and _has_schedule(given) else CLOSED


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
        used = at(round).rate(init(params, values, round))
        return {} if used is None else {"client_learning_rate": used}

    return ClientOptimizer(hparams, init, lambda g, s, p, round: at(round).update(g, s, p), rate)
