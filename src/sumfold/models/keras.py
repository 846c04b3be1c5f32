"""Keras 3 models on the JAX backend.

A Keras model is an object with variables. Here it is used as a function: its variables are replaced by values for
the time of a call (`keras.StatelessScope`), and what the call assigned to them is read back. Seeds of dropout are
variables too, but no weights: they get a fresh value from the key of every step, and nobody averages them.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sumfold import tree
from sumfold.core.files import remember
from sumfold.core.foreign import foreign
from sumfold.errors import CompositionError, StateError, missing_extra, user_facing
from sumfold.keys import Key
from sumfold.models.adapter import checked_loss, copied
from sumfold.models.functions import matching
from sumfold.models.keras_metrics import as_keras_metrics, of_keras, same_rank
from sumfold.models.model import Applied, Model, Parts, combine, is_inexact
from sumfold.tree import Tree

__all__ = ["KerasWeights", "from_keras"]


@remember
class KerasWeights(NamedTuple):
    """A Keras model's weights, in Keras's order.

    Attributes:
        trainable: values of ``keras_model.trainable_weights``.
        non_trainable: values of ``keras_model.non_trainable_weights``, such as moving averages; no seeds.

    Example:
        >>> import keras
        >>> net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
        >>> KerasWeights([jnp.array([[1.0], [2.0]])], []).assign_to(net)
        >>> net.predict(np.array([[1.0, 1.0]]), verbose=0).tolist()
        [[3.0]]
    """

    trainable: list[Any]
    non_trainable: list[Any]

    def assign_to(self, keras_model: Any) -> None:
        """Write these values into a Keras model of the same architecture.

        Raises:
            StateError: when the model's weights have other shapes.
        """
        variables = [*keras_model.trainable_weights, *keras_model.non_trainable_weights]
        values = [*self.trainable, *self.non_trainable]
        have, given = [tuple(v.shape) for v in variables], [tuple(np.shape(v)) for v in values]
        if have != given:
            raise StateError(
                "SF-MODEL-012",
                f"weights of shapes {given}",
                f"those of {keras_model.name!r}: {have}",
                "assign to a model of the architecture that was trained",
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(jnp.array(value))


@user_facing
def from_keras(keras_model: Any, loss: Any = None, metrics: Any = None) -> Model:
    """A model from Keras 3; weights come back as `KerasWeights`, with ``.assign_to(keras_model)``.

    Non-trainable weights that a call in training assigns (moving statistics) are averaged; all others, such as those of
    frozen layers, stay as the server has them and are not sent back.

    The loss of an example with several values (a sequence, an image) is their mean, over unmasked places; Keras metrics
    count masked places like all others. The model's own losses (``kernel_regularizer``, ``add_loss``) are added in
    training. Seeds of dropout and its like follow from the run's seed.

    Args:
        keras_model: a built model, whose weights of this moment are the initial ones whatever the seed; or a function
            without arguments that returns one, called anew for every initialisation with a seed of its own.
        loss: a Keras loss or its name, or a function (outputs, y) -> loss of each example; None is the compiled loss.
        metrics: a list, or a dict by name, of Keras metrics, their names (``"accuracy"``), functions
            (outputs, y) -> value of each example, and `sumfold.metrics.Metric`. Those of ``compile`` are not taken.
            Keras's own functions are called as Keras does, with (y_true, y_pred).

    Raises:
        MissingExtraError: when Keras is not installed.
        CompositionError: when Keras runs on another backend; for a model that is not built or carries state from
            batch to batch; for a loss or metric that is no sum over examples.

    Example:
        >>> import keras
        >>> def build():
        ...     return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="softmax")])
        >>> model = from_keras(build, "sparse_categorical_crossentropy", metrics=["accuracy"])
        >>> weights = model.init(jax.random.key(0))
        >>> [w.shape for w in weights.trainable]
        [(3, 2), (2,)]
        >>> sorted(model.evaluate(weights, np.ones((4, 3)), np.zeros(4, int)))
        ['accuracy', 'loss', 'num_examples']
    """
    keras = on_jax()
    is_model = isinstance(keras_model, keras.layers.Layer)
    if not is_model and not callable(keras_model):
        raise no_model(keras_model)
    reference = keras_model if is_model else built(keras_model, jax.random.key(0))
    check(keras, reference)

    trainable, non_trainable = list(reference.trainable_weights), list(reference.non_trainable_weights)
    weights = {id(v) for v in non_trainable}
    seeds = [v for v in reference.non_trainable_variables if id(v) not in weights]
    template = tree.shapes(KerasWeights([v.value for v in trainable], [v.value for v in non_trainable]))
    averaged = assigned(keras, reference)
    start = values_of(reference) if is_model else None

    def init(key: Key) -> KerasWeights:
        values: KerasWeights = copied(start) if start is not None else values_of(built(keras_model, key))
        return values

    def split(weights: Tree) -> Parts:
        return divide(matching(template, weights), averaged)

    def join(parts: Parts) -> KerasWeights:
        return KerasWeights(list(parts.trainable), list(combine(parts.statistics, parts.constants)))

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        values = combine(parts.statistics, parts.constants)
        replaced = [
            *zip(trainable, parts.trainable, strict=True),
            *zip(non_trainable, values, strict=True),
            *zip(seeds, seed_values(seeds, key), strict=True),
        ]
        with keras.StatelessScope(state_mapping=replaced, collect_losses=True) as scope:
            outputs = reference(x, training=key is not None)
            own = {id(loss): jnp.asarray(loss, jnp.float32).sum() for loss in reference.losses}
        if key is None:
            return Applied(outputs, parts.statistics)
        after = [scope.get_current_value(v) for v in non_trainable]
        statistics = [None if a is None else b for a, b in zip(parts.statistics, after, strict=True)]
        return Applied(outputs, statistics, sum(own.values(), jnp.float32(0)))

    return Model(
        name=reference.name,
        template=divide(template, averaged),
        init=foreign(init),
        split=split,
        join=join,
        apply=apply,
        loss=as_loss(keras, loss, reference),
        metrics=as_keras_metrics(keras, metrics, reference),
        coupled=coupling(keras, reference),
        names=named(trainable, non_trainable, divide(template, averaged), reference),
        layers=lambda: {
            name_of(variable, reference): type(layer)
            for layer in layers_of(reference)
            for variable in (*layer._trainable_variables, *layer._non_trainable_variables)
        },
    )


def on_jax() -> Any:
    """The module `keras`, if it runs on JAX."""
    try:
        import keras
    except ModuleNotFoundError as error:
        if error.name == "keras":
            raise missing_extra("keras", "keras") from None
        raise other_backend(str(error.name)) from None
    if keras.backend.backend() != "jax":
        raise other_backend(keras.backend.backend())
    return keras


def other_backend(name: str) -> CompositionError:
    """The error for Keras on a backend other than JAX."""
    return CompositionError(
        "SF-MODEL-001",
        f"Keras runs on {name!r}",
        "Keras 3 on its JAX backend",
        'set KERAS_BACKEND=jax in the environment, or os.environ["KERAS_BACKEND"] = "jax" in the first line of the '
        "program: it counts only before the first import of keras",
    )


def no_model(given: Any) -> CompositionError:
    """The error for something that is no Keras model."""
    return CompositionError(
        "SF-MODEL-002",
        f"a {type(given).__name__}",
        "a built Keras 3 model, or a function without arguments that returns one",
        "pass the model, or a function that builds it",
    )


def built(builder: Callable[[], Any], key: Key) -> Any:
    """What the builder returns under a seed from the key; Python's and NumPy's global generators stay as they are."""
    seed = int(jax.random.bits(key, dtype=jnp.uint32))
    with seeded(seed):
        return foreign(builder)()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Keras initialisers draw their seeds from Python's global generator, custom ones perhaps from NumPy's."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def check(keras: Any, model: Any) -> None:
    """Refuse what is no model, is not built, or remembers one batch in the next."""
    if not isinstance(model, keras.layers.Layer):
        raise no_model(model)
    if not model.built:
        raise CompositionError(
            "SF-MODEL-003",
            f"the Keras model {model.name!r} has no weights yet",
            "a built model",
            "begin it with keras.Input(shape), or call it once on a batch",
        )
    for layer in layers_of(model):
        if getattr(layer, "stateful", False):
            raise CompositionError(
                "SF-MODEL-005",
                f"layer {layer.name!r} with stateful=True",
                "layers that start every batch afresh",
                "leave stateful out: a client's batches are drawn in random order",
            )


def layers_of(model: Any) -> list[Any]:
    """The model and all layers in it, however deep."""
    return list(model._flatten_layers())


def coupling(keras: Any, model: Any) -> str | None:
    """Why examples of one batch see each other in training, or None."""
    for layer in layers_of(model):
        call = getattr(inspect.unwrap(type(layer).call), "__code__", None)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable:
            return f"BatchNormalization layer {layer.name!r}"
        if isinstance(layer, (keras.layers.MixUp, keras.layers.CutMix)):
            return f"{type(layer).__name__} layer {layer.name!r}"
        if getattr(layer, "activity_regularizer", None) is not None:
            return f"the activity regularizer of layer {layer.name!r}"
        if call is not None and "add_loss" in call.co_names:
            return f"add_loss in layer {layer.name!r}"
    return None


def values_of(model: Any) -> KerasWeights:
    """Copies of a model's weights."""
    values: KerasWeights = copied(
        KerasWeights([v.value for v in model.trainable_weights], [v.value for v in model.non_trainable_weights])
    )
    return values


def divide(weights: KerasWeights, averaged: list[bool]) -> Parts:
    """What is not trainable is averaged if it is floating and training assigns it, and stays otherwise."""
    values = weights.non_trainable
    belongs = [seen and is_inexact(a) for a, seen in zip(values, averaged, strict=True)]
    return Parts(
        weights.trainable,
        [a if own else None for a, own in zip(values, belongs, strict=True)],
        [None if own else a for a, own in zip(values, belongs, strict=True)],
    )


def name_of(variable: Any, model: Any) -> str:
    """A variable's path below the model: ``dense_1/kernel``."""
    return str(variable.path).removeprefix(f"{model.name}/")


def named(trainable: list[Any], non_trainable: list[Any], template: Parts, model: Any) -> Parts:
    """The names of a model's weights, where the template has them."""
    others = [name_of(variable, model) for variable in non_trainable]
    return Parts(
        [name_of(variable, model) for variable in trainable],
        [None if leaf is None else name for leaf, name in zip(template.statistics, others, strict=True)],
        [None if leaf is None else name for leaf, name in zip(template.constants, others, strict=True)],
    )


def assigned(keras: Any, model: Any) -> list[bool]:
    """For each of a model's non-trainable weights, whether a call in training assigns it.

    The call is traced, not run. Where the model does not say what it takes, weights that were made as trainable count
    as not assigned, and all others as assigned.
    """
    variables = list(model.non_trainable_weights)
    if not variables:
        return []
    for size in (2, 64):
        with contextlib.suppress(Exception):  # whatever a model raises on an input that was only guessed
            x = inputs_of(keras, model, size)
            return traced_assignments(keras, model, variables, x)
    frozen = {id(v) for layer in layers_of(model) for v in layer._trainable_variables}
    still = [layer for layer in layers_of(model) if keeps_still(keras, layer)]
    fixed = {id(v) for layer in still for v in layer.weights}
    return [id(v) not in frozen | fixed for v in variables]


def keeps_still(keras: Any, layer: Any) -> bool:
    """Whether a layer of Keras's has floating weights that are not trained and that training does not assign."""
    frozen = isinstance(layer, keras.layers.BatchNormalization) and not layer.trainable
    return frozen or isinstance(layer, keras.layers.Normalization)


def inputs_of(keras: Any, model: Any, size: int) -> Tree:
    """Shapes of one batch of a model's inputs; axes of any length get this one.

    Raises:
        Exception: of any kind, when the model does not say what it takes.
    """

    def example(one: Any) -> Any:
        return tree.shape(
            tuple(size if n is None else n for n in one.shape), keras.backend.standardize_dtype(one.dtype)
        )

    if isinstance(model, keras.Sequential):
        return example(model.inputs[0])
    if getattr(model, "inputs", None):
        return jax.tree.map(example, model.input)
    shape = model.get_build_config()["input_shape"]
    return tree.shape(tuple(size if n is None else n for n in shape), keras.backend.floatx())


def traced_assignments(keras: Any, model: Any, variables: list[Any], x: Tree) -> list[bool]:
    """Which of the variables a call in training on such a batch assigns."""
    seen: list[bool] = []

    def run(values: list[Array], x: Tree) -> None:
        mapping = list(zip(model.variables, values, strict=True))
        with keras.StatelessScope(state_mapping=mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in variables]
            model(x, training=True)
            after = [scope.get_current_value(v) for v in variables]
        seen[:] = [a is not b for a, b in zip(before, after, strict=True)]

    jax.eval_shape(foreign(run), [tree.shape(tuple(v.shape), v.dtype) for v in model.variables], x)
    return seen


def seed_values(seeds: list[Any], key: Key | None) -> list[Array]:
    """One value for each seed variable; zeros when predicting."""
    if key is None:
        return [jnp.zeros(v.shape, v.dtype) for v in seeds]
    return [
        jax.random.bits(jax.random.fold_in(key, i), tuple(v.shape), jnp.uint32).astype(v.dtype)
        for i, v in enumerate(seeds)
    ]


def as_loss(keras: Any, loss: Any, model: Any) -> Callable[[Any, Any], Any]:
    """(outputs, y) -> loss of each example; a loss by name or from ``compile`` is called as Keras does."""
    by_keras = loss is None or isinstance(loss, str)
    if loss is None:
        loss = getattr(model, "loss", None)
    example = 'keras.losses.SparseCategoricalCrossentropy() or "sparse_categorical_crossentropy"'
    if isinstance(loss, str):
        with contextlib.suppress(ValueError):
            loss = keras.losses.get(loss)
    if inspect.isclass(loss) and issubclass(loss, keras.losses.Loss):
        loss = loss()
    if isinstance(loss, keras.losses.Loss):
        call, dtype = loss.call, loss.dtype
    elif callable(loss) and (by_keras or of_keras(loss)):
        call, dtype = loss, keras.backend.floatx()
    else:
        return checked_loss(loss, example)
    if len(getattr(model, "outputs", None) or ()) > 1:
        raise CompositionError(
            "SF-MODEL-007",
            f"a Keras loss for {model.name!r}, which has {len(model.outputs)} outputs",
            "a function (outputs, y) -> loss of each example",
            "add the losses of the outputs in a function",
        )
    return per_example_loss(call, dtype)


def per_example_loss(call: Callable[[Any, Any], Any], dtype: str) -> Callable[[Any, Any], Any]:
    """A Keras loss before its reduction, averaged over all but the first axis where its mask allows."""
    from keras.src.backend import get_keras_mask

    def loss(outputs: Any, y: Any) -> Any:
        given = get_keras_mask(outputs)
        y, outputs = same_rank(y, outputs)
        values = call(y.astype(dtype), outputs.astype(dtype))
        if values.ndim < 2:
            return values
        mask = jnp.ones(values.shape, bool)
        for part in (given, get_keras_mask(values)):
            if part is not None and part.ndim <= values.ndim:
                mask &= part.reshape(*part.shape, *[1] * (values.ndim - part.ndim)).astype(bool)
        rest = tuple(range(1, values.ndim))
        return jnp.where(mask, values, 0).sum(rest) / jnp.maximum(mask.sum(rest), 1)

    return loss
