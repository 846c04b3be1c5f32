"""What a model is to Sumfold: how weights begin, what they predict, and what one example costs.

A model's weights are of three kinds, and each has one rule:

- *trainable*: floating and complex arrays that have a gradient. Trained on clients, averaged as the part `update`.
- *statistics*: floating arrays that training changes without a gradient, such as the moving averages of batch
  normalisation. Averaged as a part of their own.
- *constants*: integers, booleans and all other arrays. They stay as the server has them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.foreign import foreign
from sumfold.core.round import Batch
from sumfold.errors import DataError, SumfoldError, TypeMismatchError, user_facing
from sumfold.keys import Key
from sumfold.models.metrics import Metric, one_per_example, ratio
from sumfold.models.pieces import at_once, bytes_per_row
from sumfold.tree import Tree

__all__ = ["Applied", "Examples", "Model", "Parts"]

_CHUNK = 8192
"""Rows that an evaluation computes at once at most; fewer where they need much memory."""


class Parts(NamedTuple):
    """A model's weights by what happens to them; see the module."""

    trainable: Tree
    statistics: Tree
    constants: Tree


class Applied(NamedTuple):
    """What a model makes of a batch.

    Attributes:
        outputs: [B, …].
        statistics: as training leaves them; unchanged when predicting.
        penalty: float32[], what the model's own regularisers add to the loss.
    """

    outputs: Tree
    statistics: Tree
    penalty: Array | float = 0.0


class Examples(NamedTuple):
    """A batch as a model sees it: features, labels, and the weight of each row, float32[B], 0 for padding."""

    x: Tree
    y: Tree
    weight: Float[Array, " b"]

    @classmethod
    def of(cls, batch: Batch) -> Examples:
        """Unpack ``(x, y)``, ``(x, y, weight)`` or a dict with these names; padding becomes the first row's copy.

        The copies matter: junk in a padded row, NaN included, would reach the gradient as 0 · NaN.

        Raises:
            DataError: when the entry has no features and labels, or its weights are not one a row.
        """
        x, y, weight = unpack(batch.examples)
        weight = None if weight is None else row_weights(weight, len(batch.mask))

        def fill(a: Array) -> Array:
            return jnp.where(batch.mask.reshape(-1, *[1] * (a.ndim - 1)), a, a[:1])

        x, y = jax.tree.map(fill, (x, y))
        ones = batch.mask.astype(jnp.float32)
        return cls(x, y, ones if weight is None else jnp.where(batch.mask, weight.astype(jnp.float32), 0.0))


def unpack(examples: Tree) -> tuple[Tree, Tree, Any]:
    """(x, y, weight or None) of a client's examples.

    Raises:
        DataError: when the entry has no features and labels.
    """
    if isinstance(examples, Mapping) and {"x", "y"} <= set(examples) <= {"x", "y", "weight"}:
        return examples["x"], examples["y"], examples.get("weight")
    if isinstance(examples, (tuple, list)) and len(examples) in {2, 3}:
        return examples[0], examples[1], examples[2] if len(examples) == 3 else None
    kind = f"a dict with {sorted(examples)}" if isinstance(examples, Mapping) else f"a {type(examples).__name__}"
    kind = "one array" if hasattr(examples, "shape") else kind
    raise DataError(
        "SF-DATA-051",
        f"client examples as {kind}",
        "(x, y), (x, y, example_weight) or a dict with x and y",
        "give a model its features and labels in this form",
    )


def row_weights(weight: Any, rows: int) -> Any:
    """Example weights as [rows]; [rows, 1] is taken as that.

    Raises:
        DataError: for any other shape.
    """
    shape = jnp.shape(weight) if hasattr(weight, "shape") else None
    if shape in {(rows,), (rows, 1)}:
        return weight.reshape(rows)
    raise DataError(
        "SF-DATA-056",
        f"an example_weight that is {f'of shape {list(shape)}' if shape is not None else f'a {type(weight).__name__}'} "
        f"for {rows} rows",
        f"one weight per row, shape [{rows}]",
        "a third array next to x and y is the weight of each row: put further features into x, as a tuple or a dict",
    )


@dataclass(frozen=True, eq=False)
class Model:
    """Weights, predictions and per-example losses; made by `from_functions`, `from_keras`, `from_flax`, ….

    Attributes:
        name: for `explain` and error messages.
        template: `Parts` of shapes and dtypes (`jax.ShapeDtypeStruct`).
        init: key -> weights, in the form that the user knows.
        split: weights -> `Parts`.
        join: `Parts` -> weights.
        apply: (parts, x, key or None) -> `Applied`; a key means training.
        loss: (outputs, y) -> loss of each example, [B].
        metrics: name -> `Metric`.
        coupled: why examples of one batch see each other in training, or None: padding would change results.
        names: `Parts` of the weights' names in the template's structure, where the framework gives them; None where
            their paths in the weights are their names.
        layers: () -> the class of the layer that a weight belongs to, by the weight's name, where it is known.

    Example:
        >>> from sumfold.models import from_functions
        >>> model = from_functions(
        ...     init=lambda key: jnp.zeros(3),
        ...     predict=lambda w, x: x @ w,
        ...     loss=lambda outputs, y: (outputs - y) ** 2,
        ... )
        >>> model.evaluate(model.init(jax.random.key(0)), np.ones((4, 3), np.float32), np.ones(4, np.float32))
        {'loss': 1.0, 'num_examples': 4}
    """

    name: str
    template: Parts
    init: Callable[[Key], Tree]
    split: Callable[[Tree], Parts]
    join: Callable[[Parts], Tree]
    apply: Callable[[Parts, Tree, Key | None], Applied]
    loss: Callable[[Tree, Tree], Any]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    coupled: str | None = None
    names: Parts | None = None
    layers: Callable[[], Mapping[str, type]] = dict

    def __repr__(self) -> str:
        return f"Model({self.name})"

    # -- what algorithms use ------------------------------------------------------------------------

    def objective(
        self, trainable: Tree, rest: Parts, examples: Examples, key: Key
    ) -> tuple[Float[Array, ""], tuple[Tree, dict[str, Tree]]]:
        """The weighted mean loss of one batch, and (statistics, sums of loss and metrics): what is differentiated."""
        applied = foreign(self.apply)(rest._replace(trainable=trainable), examples.x, key)
        losses = self._losses(applied.outputs, examples)
        total = examples.weight.sum()
        weighted = jnp.where(examples.weight > 0, losses * examples.weight, 0.0).sum()
        value = weighted / jnp.where(total > 0, total, 1.0) + jnp.asarray(applied.penalty, jnp.float32)
        return value, (applied.statistics, self._sums(weighted, total, applied.outputs, examples))

    def gradient(self, trainable: Tree, rest: Parts, batch: Batch, key: Key) -> tuple[Tree, Tree, dict[str, Tree]]:
        """(gradient, statistics, sums of loss and metrics) of one batch in training."""
        function = jax.grad(self.objective, has_aux=True, holomorphic=False)
        gradient, (statistics, sums) = function(trainable, rest, Examples.of(batch), key)
        return gradient, statistics, sums

    def measure(self, parts: Parts, batch: Batch) -> dict[str, Tree]:
        """Sums of loss and metrics of one batch, predicting."""
        examples = Examples.of(batch)
        outputs = foreign(self.apply)(parts, examples.x, None).outputs
        losses = self._losses(outputs, examples)
        weighted = jnp.where(examples.weight > 0, losses * examples.weight, 0.0).sum()
        return self._sums(weighted, examples.weight.sum(), outputs, examples)

    def zero(self) -> dict[str, Tree]:
        """The sums of loss and metrics over no example."""
        zeros = {name: metric.zero for name, metric in self.metrics.items()}
        zeros["loss"] = (np.float32(0), np.float32(0))
        return dict(tree.zeros_like(zeros))

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Array]:
        """Loss and metrics out of their sums; 0 where nothing was measured."""
        return {
            "loss": ratio(sums["loss"]),
            **{name: jnp.asarray(foreign(m.finish)(sums[name])) for name, m in self.metrics.items()},
        }

    def _losses(self, outputs: Tree, examples: Examples) -> Float[Array, " b"]:
        return one_per_example(foreign(self.loss)(outputs, examples.y), examples.weight, "the loss")

    def _sums(self, weighted: Array, total: Array, outputs: Tree, examples: Examples) -> dict[str, Tree]:
        outputs = jax.lax.stop_gradient(outputs)
        measured = {
            name: foreign(metric.measure)(outputs, examples.y, examples.weight) for name, metric in self.metrics.items()
        }
        return jax.lax.stop_gradient({"loss": (weighted, total), **measured})

    # -- what people use ----------------------------------------------------------------------------

    @user_facing
    def predict(self, weights: Tree, x: Tree) -> Any:
        """The model's outputs for rows `x`, as NumPy arrays [N, …].

        Args:
            weights: as `init`, ``process.get_model_weights`` or `sumfold.models.load` give them.
            x: features with a leading axis of rows; nested lists of numbers are taken as arrays.

        Raises:
            TypeMismatchError: when the model does not take such features.
        """
        parts = self.split(weights)
        x = _arrays(x, "x")
        return jax.tree.map(np.asarray, self._ran(self._predict, f"x {describe(x)}", parts, x))

    @user_facing
    def evaluate(self, weights: Tree, x: Tree, y: Tree, example_weight: Any = None) -> dict[str, Any]:
        """Loss and metrics over rows, as plain numbers, with ``num_examples``.

        Args:
            weights: as for `predict`.
            x: features with a leading axis of rows.
            y: labels, as many.
            example_weight: weight of each row, [N]; None counts each once.

        Raises:
            DataError: when x, y and weights differ in length, or weights are not one a row.
            TypeMismatchError: when the model or its loss do not take such rows.
        """
        parts = self.split(weights)
        examples: tuple[Any, ...] = (_arrays(x, "x"), _arrays(y, "y"))
        if example_weight is not None:
            examples = (*examples, _arrays(example_weight, "example_weight"))
        lengths = {len(leaf) for leaf in jax.tree.leaves(examples)}
        if len(lengths) != 1:
            raise DataError(
                "SF-DATA-052",
                f"arrays of {sorted(lengths)} rows",
                "x and y of one length",
                "check how they were cut",
            )
        rows = lengths.pop()
        if rows == 0:
            return {"loss": 0.0, **dict.fromkeys(self.metrics, 0.0), "num_examples": 0}
        if example_weight is not None:
            examples = (*examples[:2], row_weights(examples[2], rows))
        what = f"x {describe(examples[0])} and y {describe(examples[1])}"
        width = at_once(rows, self._largest(parts, examples), _CHUNK)
        total, before = self.zero(), list[Any]()
        for begin in range(0, rows, width):
            index = np.arange(begin, begin + width)
            # Slices are views: the only copy of the rows is the one on the device.
            whole = slice(begin, begin + width) if begin + width <= rows else np.minimum(index, rows - 1)
            batch = Batch(_take(examples, whole), index < rows)
            for sums in before:  # no more than two pieces lie there at a time
                sums.block_until_ready()
            before = jax.tree.leaves(total) if begin else []
            total = self._ran(self._measure, what, total, parts, batch)
        return {
            **{k: v.tolist() for k, v in jax.device_get(self._finish(total)).items()},
            "num_examples": rows,
        }

    def _ran(self, function: Callable[..., Any], what: str, *args: Any) -> Any:
        """What a compiled function returns; if it cannot even be traced, the error that says what came."""
        try:
            return function(*args)
        except SumfoldError:
            raise
        except Exception:
            try:
                jax.eval_shape(function, *args)
            except Exception as error:
                raise self._misfit(what, error) from error
            raise

    def _misfit(self, what: str, error: Exception) -> TypeMismatchError:
        return TypeMismatchError(
            "SF-TYPE-002",
            f"{self.name} failed on {what}: {_first_line(error)}",
            "examples of the shapes that the model and its loss take",
            "compare the model's input with the data; the model's own error is shown before this one",
        )

    @functools.cached_property
    def _predict(self) -> Callable[[Parts, Tree], Tree]:
        return jax.jit(lambda parts, x: foreign(self.apply)(parts, x, None).outputs)

    @functools.cached_property
    def _finish(self) -> Callable[[dict[str, Tree]], dict[str, Array]]:
        return jax.jit(self.finish)

    @functools.cached_property
    def _measure(self) -> Callable[[dict[str, Tree], Parts, Batch], dict[str, Tree]]:
        return jax.jit(lambda total, parts, batch: tree.add(total, self.measure(parts, batch)))

    @functools.cached_property
    def measure_each(self) -> Callable[[Parts, Batch], dict[str, Array]]:
        """(`Parts`, batches with a leading axis) -> loss and metrics of each batch, compiled."""
        return jax.jit(jax.vmap(lambda parts, batch: self.finish(self.measure(parts, batch)), (None, 0)))

    @functools.cached_property
    def _known(self) -> dict[Any, int]:
        return {}

    def _largest(self, parts: Parts, examples: Tree) -> int:
        """Bytes for each row of the largest intermediate array when such examples are measured."""
        at = tree.structure(examples), *((a.shape[1:], a.dtype) for a in jax.tree.leaves(examples))
        if at not in self._known:

            def arguments(rows: int) -> tuple[Parts, Batch]:
                some = jax.tree.map(lambda a: tree.shape((rows, *a.shape[1:]), a.dtype), examples)
                return tree.shapes(parts), Batch(some, tree.shape((rows,), bool))

            try:
                self._known[at] = bytes_per_row(self.measure, arguments)
            except Exception:  # the evaluation itself fails next, and says why
                return 1
        return self._known[at]

    # -- what checks data before anything runs --------------------------------------------------------

    def check(self, parts: Parts, batch: Batch) -> Tree:
        """Trace one training step on shapes alone; the outputs' shapes, to compare labels with.

        Raises:
            TypeMismatchError: when the model refuses such examples, naming their types; or when the loss or a
                metric is not per example.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        seen: list[Tree] = []

        def run(parts: Parts, batch: Batch, key: Key) -> Any:
            examples = Examples.of(batch)
            outputs = foreign(self.apply)(parts, examples.x, key).outputs
            seen.append(tree.shapes(outputs))
            return self.gradient(parts.trainable, parts, batch, key)

        try:
            jax.eval_shape(run, parts, batch, key)
        except SumfoldError:
            raise
        except Exception as error:
            x, y, _ = unpack(batch.examples)
            raise self._misfit(f"a batch of x {describe(x)} and y {describe(y)}", error) from error
        return seen[0]


def _arrays(given: Tree, name: str) -> Tree:
    """A tree of NumPy arrays with a leading axis of rows, in JAX's dtypes; lists of numbers are arrays.

    Raises:
        DataError: for what is no array of numbers with rows.
    """

    def written_out(node: Any) -> bool:
        while isinstance(node, list) and node:
            node = node[0]
        return isinstance(node, (bool, int, float, complex, np.generic)) or (isinstance(node, list) and not node)

    def array(leaf: Any) -> NDArray[Any]:
        try:
            made = np.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise DataError(
                "SF-DATA-009", f"{name} is no regular array ({error})", "rows of the same shape", "pad or cut the rows"
            ) from error
        if not (jnp.issubdtype(made.dtype, np.number) or made.dtype == np.bool_):
            raise DataError(
                "SF-DATA-007", f"{name} has dtype {made.dtype}", "numbers or booleans", "encode categories as integers"
            )
        if made.ndim == 0:
            raise DataError(
                "SF-DATA-008", f"{name} is a single number", "an axis of rows first", "for one row write x[None]"
            )
        return tree.canonical(made)

    return jax.tree.map(array, given, is_leaf=lambda node: isinstance(node, list) and written_out(node))


def _take(examples: Tree, rows: NDArray[np.int64] | slice) -> Tree:
    return jax.tree.map(lambda a: a[rows], examples)


def describe(examples: Tree) -> str:
    """Types of a tree in short: ``float32[32, 10]``."""
    named = tree.specs(examples)
    return ", ".join((f"{s.path}: " if len(named) > 1 else "") + f"{s.dtype}{list(s.shape)}" for s in named)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def partition(weights: Tree, belongs: Callable[[Any], bool]) -> tuple[Tree, Tree]:
    """(leaves that belong, the others), each in the tree's own structure with None for the missing."""
    return (
        jax.tree.map(lambda a: a if belongs(a) else None, weights),
        jax.tree.map(lambda a: None if belongs(a) else a, weights),
    )


def combine(*trees: Tree) -> Tree:
    """The reverse of `partition`: at each place the leaf that is not None."""
    return jax.tree.map(
        lambda *leaves: next((a for a in leaves if a is not None), None), *trees, is_leaf=lambda a: a is None
    )


def is_inexact(leaf: Any) -> bool:
    """Whether a leaf is floating or complex: what can have a gradient or a mean."""
    return bool(jnp.issubdtype(jnp.result_type(leaf), jnp.inexact))
