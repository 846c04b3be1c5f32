"""Models that bring their own training loop: PyTorch modules, scikit-learn estimators.

The server's side is arrays, as for every model: `Parts` that are averaged. The client's side is a Python function that
runs where clients' Python functions run (`sumfold.core.HostWork`), so it must be picklable by cloudpickle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.errors import DataError, SumfoldError, TypeMismatchError, user_facing
from sumfold.keys import HostKey
from sumfold.models.metrics import Metric
from sumfold.models.model import Model, Parts, _arrays, describe, row_weights
from sumfold.tree import Tree

__all__ = ["Fitted", "HostModel", "Pull", "Trainer"]

_CHUNK = 1024


class Pull(NamedTuple):
    """A gradient strength · (w − anchor) that is added in each step (FedProx)."""

    strength: float
    anchor: Tree


class Fitted(NamedTuple):
    """What local training ends with, in NumPy.

    Attributes:
        trainable, statistics: the weights.
        sums: of loss and metrics, as `Model.zero` has them.
        num_examples: rows processed, repeats counted; what a user's own loop says it is.
        num_batches: steps taken.
    """

    trainable: Tree
    statistics: Tree
    sums: dict[str, Tree]
    num_examples: int
    num_batches: int


@runtime_checkable
class Trainer(Protocol):
    """What a framework's adapter provides."""

    def fit(self, parts: Parts, data: Tree, key: HostKey, batching: Batching, pull: Pull | None) -> Fitted:
        """Train from these weights on what one client holds."""

    def measure(self, parts: Parts, data: Tree) -> tuple[dict[str, Tree], int, int]:
        """(sums of loss and metrics, rows, batches) of rows or ready-made batches, predicting."""

    def outputs(self, parts: Parts, x: Tree) -> Tree:
        """The model's outputs for rows x, NumPy."""

    def export(self, parts: Parts) -> Any:
        """The framework's own object with these weights."""


@dataclass(frozen=True, eq=False, repr=False)
class HostModel(Model):
    """A model whose training on a client is a Python function; made by `from_torch` and `from_sklearn`.

    Attributes:
        trainer: the framework's side.
        owns_step: whether the adapter takes each step itself, so that it can add a pull towards the server's weights.
        counts: whether a client's number of examples is what its own loop says.
        has_loss: whether a loss is measured.
        labelled: whether clients' examples have labels; False takes points alone too.
        batching: how examples become batches where the caller does not say.
        statistics_are: ``"means"`` to average, or ``"sums"`` that add up over clients (naive Bayes).

    Example:
        >>> HostModel.__mro__[1].__name__
        'Model'
    """

    trainer: Trainer | Any = None
    owns_step: bool = False
    counts: bool = False
    has_loss: bool = True
    labelled: bool = True
    batching: Batching | None = None
    statistics_are: Literal["means", "sums"] = "means"

    @user_facing
    def predict(self, weights: Tree, x: Tree) -> Any:
        """The model's outputs for rows `x`, as NumPy arrays [N, …]; see `Model.predict`."""
        parts, x = self._numpy(weights), _arrays(x, "x")
        return self._asked(f"x {describe(x)}", lambda: self.trainer.outputs(parts, x))

    @user_facing
    def evaluate(self, weights: Tree, x: Tree, y: Tree, example_weight: Any = None) -> dict[str, Any]:
        """Loss and metrics over rows, as plain numbers, with ``num_examples``; see `Model.evaluate`."""
        parts = self._numpy(weights)
        examples: tuple[Any, ...] = (_arrays(x, "x"), _arrays(y, "y"))
        if example_weight is not None:
            examples = (*examples, _arrays(example_weight, "example_weight"))
        lengths = {len(leaf) for leaf in jax.tree.leaves(examples)}
        if len(lengths) != 1:
            raise DataError(
                "SF-DATA-052", f"arrays of {sorted(lengths)} rows", "x and y of one length", "check how they were cut"
            )
        rows = lengths.pop()
        if rows == 0:
            return {**({"loss": 0.0} if self.has_loss else {}), **dict.fromkeys(self.metrics, 0.0), "num_examples": 0}
        if example_weight is not None:
            examples = (*examples[:2], row_weights(examples[2], rows))
        what = f"x {describe(examples[0])} and y {describe(examples[1])}"
        sums, _, _ = self._asked(what, lambda: self.trainer.measure(parts, examples))
        return {
            **{k: np.asarray(v).tolist() for k, v in self.finish(jax.tree.map(jnp.asarray, sums)).items()},
            "num_examples": rows,
        }

    @user_facing
    def export(self, weights: Tree) -> Any:
        """The framework's own object with these weights: a PyTorch module, a fitted scikit-learn estimator.

        Args:
            weights: as `init`, ``process.get_model_weights`` or `sumfold.models.load` give them.
        """
        return self.trainer.export(self._numpy(weights))

    def check(self, parts: Parts, batch: Any) -> Tree:
        """Nothing can be traced: what does not fit shows when a client trains."""
        return None

    def zero(self) -> dict[str, Tree]:
        """The sums of loss and metrics over no example."""
        return self._without(super().zero())

    def finish(self, sums: Mapping[str, Tree]) -> dict[str, Any]:
        """Loss and metrics out of their sums."""
        return self._without(super().finish({"loss": (0.0, 0.0), **sums}))

    def _without(self, of_each: dict[str, Any]) -> dict[str, Any]:
        """Without the loss, where none is measured."""
        return {name: value for name, value in of_each.items() if name != "loss" or self.has_loss}

    def _numpy(self, weights: Tree) -> Parts:
        parts: Parts = jax.tree.map(np.asarray, self.split(weights))
        return parts

    def _asked(self, what: str, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except SumfoldError:
            raise
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            raise TypeMismatchError(
                "SF-TYPE-002",
                f"{self.name} failed on {what}: {type(error).__name__}: {lines[0]}",
                "examples of the shapes that the model and its loss take",
                "compare the model's input with the data; the model's own error is shown before this one",
            ) from error


def no_array_program(*anything: Any) -> NoReturn:
    """What stands in a `HostModel` for the functions of an array program."""
    raise AssertionError("a model that owns its loop was asked for an array program")


class Sums:
    """Loss and metrics while a trainer measures: sums over examples, in NumPy.

    Args:
        metrics: the model's.
    """

    def __init__(self, metrics: dict[str, Metric]) -> None:
        self.metrics = metrics
        self.loss = np.zeros(2, np.float64)
        self.values: dict[str, Tree] = {name: metric.zero for name, metric in metrics.items()}

    def add_loss(self, total: float, weight: float) -> None:
        """The weighted sum of some examples' losses, and their weights together."""
        self.loss += (total, weight)

    def add(self, outputs: Tree, y: Tree, weight: Any, values: Mapping[str, Any]) -> None:
        """One batch: `values` are per-example metrics that the framework computed, by name."""
        for name, metric in self.metrics.items():
            if name in values:
                measured: Tree = (np.sum(values[name] * weight), np.sum(weight))
            else:
                seen, labels = jax.tree.map(jnp.asarray, (outputs, y))
                measured = metric.measure(seen, labels, jnp.asarray(weight, jnp.float32))
            self.values[name] = jax.tree.map(lambda a, b: np.asarray(a) + np.asarray(b), self.values[name], measured)

    def all(self, with_loss: bool = True) -> dict[str, Tree]:
        """In the form of `Model.zero`."""
        loss = (np.float32(self.loss[0]), np.float32(self.loss[1]))
        return {"loss": loss, **self.values} if with_loss else self.values


def chunks(rows: int) -> list[slice]:
    """Slices of a bounded length over so many rows."""
    return [slice(at, at + _CHUNK) for at in range(0, rows, _CHUNK)]


def batches_of(data: Tree) -> list[Tree]:
    """Ready-made batches as they are; rows in slices of a bounded length."""
    if isinstance(data, list):
        return data
    rows = len(jax.tree.leaves(data)[0])
    return [jax.tree.map(lambda a, at=at: a[at], data) for at in chunks(rows)]


def canonical_shapes(weights: Tree) -> Tree:
    """Shapes and dtypes as the server holds them."""
    return jax.tree.map(lambda a: tree.shape(np.shape(a), jax.dtypes.canonicalize_dtype(np.asarray(a).dtype)), weights)
