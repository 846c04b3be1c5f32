"""The front door: an algorithm bound to a runtime, with the data that people have.

A process holds no result. Its state comes in and goes out; what it remembers between calls are caches.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.batching import Batching
from sumfold.core.driver import Cohort, Outcome, Runtime, State, begin, recognise, step
from sumfold.core.group import add
from sumfold.core.round import Batch, Metrics, Round
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, DataError, user_facing
from sumfold.learning.explain import explain
from sumfold.models.model import Model, Parts, describe, unpack
from sumfold.simulation import Simulation
from sumfold.tree import Tree

__all__ = ["Output", "Process", "batching_for"]


class Output(NamedTuple):
    """What `Process.next` returns.

    Attributes:
        state: for the next round; the one passed in stays usable.
        metrics: plain dicts of plain numbers under ``distributor``, ``client_work``, ``aggregator``, ``finalizer``.

    Example:
        >>> Output(state=None, metrics={}).metrics
        {}
    """

    state: State
    metrics: Metrics


def check_model(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        CompositionError: saying which adapter makes one.
    """
    if not isinstance(model, Model):
        raise CompositionError(
            "SF-COMP-028",
            f"model is a {type(model).__name__}",
            "a sumfold Model",
            "make one with sf.models.from_functions, from_keras, from_flax or from_equinox",
        )


def batching_for(model: Model, batching: Any) -> Batching:
    """The batching of examples; a model whose examples see each other must drop short batches.

    Raises:
        CompositionError: when a short or padded batch would change such a model's results.
    """
    if batching is not None and not isinstance(batching, Batching):
        raise CompositionError(
            "SF-COMP-023",
            f"batching={batching!r}",
            "a sumfold.Batching",
            "write sf.Batching(size=32, epochs=1)",
        )
    if model.coupled and batching is not None and (not batching.drop_remainder or batching.size is None):
        raise CompositionError(
            "SF-COMP-024",
            f"{model.coupled} with {batching}",
            "batches of one size: padding a short batch would change what such a layer computes",
            "use sf.Batching(size=…, drop_remainder=True), or a layer that looks at one example at a time, "
            "such as group or layer normalisation",
        )
    return batching or Batching()


def _closed(state: Tree, values: Any = None) -> Any:
    return {}


@dataclass(frozen=True, eq=False, repr=False)
class Process:
    """A federated algorithm on a runtime; made by `sumfold.learning.fed_avg` and its siblings.

    Attributes:
        round: the algorithm.
        model: the model that it trains, or None.
        batching: as the caller gave it; None leaves ready-made batches as they are.
        parts, with_parts: read and replace the model's `Parts` in the algorithm's state.
        hparams, with_hparams: read and replace its hyperparameters.
        runtime: where it runs.

    Example:
        >>> import jax.numpy as jnp, optax, sumfold as sf
        >>> model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
        >>> sf.learning.fed_avg(model, optax.sgd(0.1))
        Process(fed_avg of function on Simulation)
    """

    round: Round
    model: Model | None = None
    batching: Batching | None = None
    parts: Callable[[Tree], Parts] | None = None
    with_parts: Callable[[Tree, Parts], Tree] | None = None
    hparams: Callable[[Tree], Metrics] = _closed
    with_hparams: Callable[[Tree, Metrics], Tree] = lambda state, values: state
    runtime: Runtime = field(default_factory=Simulation)

    def __repr__(self) -> str:
        of = f" of {self.model.name}" if self.model else ""
        return f"Process({self.round.name}{of} on {type(self.runtime).__name__})"

    def _repr_html_(self) -> str:
        groups = {
            part: (stage.group or add).kind for phase in self.round.phases for part, stage in phase.aggregate.items()
        }
        rows = {
            "algorithm": self.round.name,
            "model": self.model.name if self.model else "none",
            "runtime": type(self.runtime).__name__,
            "batches": ", ".join(str(phase.work.batching) for phase in self.round.phases),
            "leaves a client": ", ".join(f"{part} ({kind})" for part, kind in groups.items()) + " and metrics, as sums",
        }
        cells = "".join(f"<tr><th>{k}</th><td>{html.escape(v)}</td></tr>" for k, v in rows.items())
        return f"<table>{cells}</table>"

    # -- training -------------------------------------------------------------------------------------

    @user_facing
    def initialize(self, seed: int = 0, clients: int | None = None) -> State:
        """The state before round 0.

        Args:
            seed: everything random in the run is a function of it.
            clients: the population's size, for algorithms that need it.
        """
        state = begin(self.round, self._params(seed), seed)
        self.__dict__.setdefault("_template", _shapes(state))
        return state

    @user_facing
    def next(self, state: Any, client_data: Any, clients: Iterable[Any] | None = None) -> Output:
        """One round.

        Args:
            state: of `initialize`, of an earlier `next`, or loaded; it stays usable.
            client_data: a `Federation`, a mapping id -> entry, or a sequence of entries; see `sumfold.data`.
            clients: ids of this round's cohort; None is everybody.

        Raises:
            StateError: for a state of another algorithm or model.
            DataError, TypeMismatchError: for data that the model cannot take, or an invalid weight.
        """
        state = recognise(self.round, self._template, state)
        federation, positions = as_federation(client_data, clients, self._kept)
        self._check(federation, state)
        after, metrics = step(self._run, state, Cohort(federation, positions))
        return Output(after, metrics)

    @user_facing
    def on(self, runtime: Runtime) -> Process:
        """The same algorithm on another runtime; states move freely between them."""
        return dataclasses.replace(self, runtime=runtime)

    # -- weights and hyperparameters ------------------------------------------------------------------

    @user_facing
    def get_model_weights(self, state: Any) -> Any:
        """The model's weights, in the form that the model's adapter documents."""
        state = recognise(self.round, self._template, state)
        model, parts, _ = self._lens()
        return model.join(parts(state.algorithm))

    @user_facing
    def set_model_weights(self, state: Any, weights: Any) -> State:
        """A state with these weights, everything else unchanged.

        Raises:
            StateError: when names, shapes or dtypes are not the model's.
        """
        mine = recognise(self.round, self._template, state)
        model, _, with_parts = self._lens()
        return mine._replace(algorithm=with_parts(mine.algorithm, tree.strong(model.split(weights))))

    @user_facing
    def get_hparams(self, state: Any) -> Metrics:
        """Hyperparameters that can be read, as plain numbers under ``client_work`` and ``finalizer``.

        Those of an optimizer that closes over them cannot be seen: an entry ``unseen`` says so.
        """
        state = recognise(self.round, self._template, state)
        values: Metrics = self.hparams(state.algorithm)
        return {
            group: {k: v if isinstance(v, str) else np.asarray(v).tolist() for k, v in named.items()}
            for group, named in values.items()
        }

    @user_facing
    def set_hparams(self, state: Any, hparams: Metrics) -> State:
        """A state with these hyperparameters, in the form of `get_hparams`; those left out stay.

        Raises:
            CompositionError: for a name that cannot be set.
        """
        mine = recognise(self.round, self._template, state)
        known = self.hparams(mine.algorithm)
        for group in hparams:
            if group not in known:
                raise CompositionError(
                    "SF-COMP-025",
                    f"set_hparams with {group!r}",
                    f"the groups {sorted(known)}",
                    "see process.get_hparams(state)",
                )
        values = {group: {**known[group], **hparams.get(group, {})} for group in known}
        return mine._replace(algorithm=self.with_hparams(mine.algorithm, values))

    @user_facing
    def explain(self, client_data: Any = None) -> str:
        """What is sent to a client, what it computes, every array that leaves it, and what the server does.

        Args:
            client_data: needed before the first round only; afterwards the element types seen last are used.
        """
        batch = self._seen[0] if self._seen else None
        if client_data is not None:
            batch = self._check(as_federation(client_data, None, self._kept)[0], self._template)
        return explain(repr(self), self.round, self._template, batch)

    # -- caches and checks ----------------------------------------------------------------------------

    def _params(self, seed: int) -> Tree:
        if self.model is None:
            return ()
        return self.model.init(keys.derive(keys.typed(keys.root(seed)), purpose="model"))

    def _lens(self) -> tuple[Model, Callable[[Tree], Parts], Callable[[Tree, Parts], Tree]]:
        if self.model is None or self.parts is None or self.with_parts is None:
            raise CompositionError(
                "SF-COMP-026",
                f"{self.round.name!r} has no model weights",
                "an algorithm that trains a model",
                "read its result from the state or the metrics",
            )
        return self.model, self.parts, self.with_parts

    @functools.cached_property
    def _template(self) -> State:
        """The shapes and dtypes of every state of this algorithm, and its fingerprint."""
        return _shapes(begin(self.round, self._params(0), 0))

    @functools.cached_property
    def _run(self) -> Callable[[State, Cohort], Outcome]:
        return self.runtime.bind(self.round)

    @functools.cached_property
    def _kept(self) -> dict[int, Any]:
        return {}

    @functools.cached_property
    def _checked(self) -> weakref.WeakKeyDictionary[Federation, Batch | None]:
        return weakref.WeakKeyDictionary()

    @functools.cached_property
    def _seen(self) -> list[Batch]:
        """The element types seen last, at most one entry."""
        return []

    def _check(self, federation: Federation, state: State) -> Batch | None:
        """Refuse data that this process cannot take; the shapes of one batch, or None when there are no rows."""
        if federation in self._checked:
            return self._checked[federation]
        batch = self._batch(federation)
        if batch is not None and self.model is not None and self.parts is not None:
            self._check_model(federation, self.model, self.parts(state.algorithm), batch)
        if batch is not None:
            self._seen[:] = [batch]
        self._checked[federation] = batch
        return batch

    def _batch(self, federation: Federation) -> Batch | None:
        """The shapes of a batch as the client's step will see it."""
        ready = federation.batch_sizes
        if ready is not None and self.batching is not None:
            raise DataError(
                "SF-DATA-053",
                f"ready-made batches and {self.batching}",
                "one of the two",
                "leave batching out, or give each client its examples as (x, y)",
            )
        lengths = {int(n) for sizes in ready or () for n in sizes}
        if (
            self.model is not None
            and self.model.coupled
            and (len(lengths) > 1 if ready is not None else self.batching is None)
        ):
            what = f"ready-made batches of {sorted(lengths)} rows" if ready is not None else "the default batching"
            raise CompositionError(
                "SF-COMP-024",
                f"{self.model.coupled} with {what}",
                "batches of one size: padding a short batch would change what such a layer computes",
                "use sf.Batching(size=…, drop_remainder=True), or a layer that looks at one example at a time, "
                "such as group or layer normalisation",
            )
        if not int(federation.counts.sum()):
            return None
        work = self.round.phases[0].work
        width = max(lengths, default=1) if ready is not None else work.batching.width(int(federation.counts.max()))
        shapes = jax.tree.map(
            lambda a: tree.shape((width, *a.shape[1:]), jax.dtypes.canonicalize_dtype(a.dtype)),
            federation.examples,
        )
        return Batch(shapes, tree.shape((width,), bool))

    def _check_model(self, federation: Federation, model: Model, parts: Parts, batch: Batch) -> None:
        outputs = model.check(parts, batch)
        _, y, weight = unpack(federation.examples)
        if weight is not None and (wrong := np.flatnonzero(~(np.asarray(weight) >= 0))).size:
            first = int(wrong[0])
            raise DataError(
                "SF-DATA-055",
                f"an example_weight of {np.asarray(weight).reshape(-1)[first]} at {_owner(federation, first)}",
                "weights of at least 0",
                "look at how the weights were made; 0 leaves a row out",
            )
        if len(jax.tree.leaves(y)) != 1:
            return
        labels: NDArray[Any] = jax.tree.leaves(y)[0]
        classes = outputs[-1]
        if labels.dtype.kind not in "iu" or len(outputs) != labels.ndim + 1 or classes < 2 or not len(labels):
            return
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            wrong = np.flatnonzero(
                (labels < 0).reshape(len(labels), -1).any(1) | (labels >= classes).reshape(len(labels), -1).any(1)
            )
            raise DataError(
                "SF-DATA-054",
                f"labels from {low} to {high} ({describe(y)}; first wrong one: {_owner(federation, int(wrong[0]))})",
                f"class numbers from 0 to {classes - 1}, since the model's outputs have {classes} columns",
                "number the classes from 0; rows to ignore take an example_weight of 0",
            )


def _shapes(state: State) -> State:
    shapes: State = tree.shapes(state)
    return shapes._replace(fingerprint=state.fingerprint, seed=state.seed)


def _owner(federation: Federation, row: int) -> str:
    """Which client holds a row of the flat examples."""
    at = row if federation.order is None else int(np.flatnonzero(federation.order == row)[:1].sum())
    inside = (federation.starts <= at) & (at < federation.starts + federation.counts)
    found = np.flatnonzero(inside)
    return f"client {federation.ids[int(found[0])]!r}" if len(found) else "a client outside this subset"
