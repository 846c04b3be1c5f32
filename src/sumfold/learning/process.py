"""The front door: an algorithm bound to a runtime, with the data that people have.

A process holds no result. Its state comes in and goes out; what it remembers between calls are caches.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import keys, tree
from sumfold.core.batching import Batching
from sumfold.core.cohort import Cohort
from sumfold.core.driver import Outcome, Runtime, State, begin, recognise, step
from sumfold.core.group import add
from sumfold.core.round import Batch, Metrics, Round
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, user_facing
from sumfold.learning.checks import (
    Labels,
    check_batches,
    check_labels,
    check_population,
    check_rate,
    check_remembered,
    check_seed,
    labels_of,
)
from sumfold.learning.explain import explain
from sumfold.models.model import Model, Parts
from sumfold.simulation import Simulation
from sumfold.simulation.onward import announced, described
from sumfold.tree import Tree

__all__ = ["Output", "Process"]


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
        with_population: tell the algorithm's state how many clients there are, unless it knows; None where it does
            not matter.
        personal: (the algorithm's state, what a client remembers of the last exchange or None) -> the `Parts` that
            this client itself uses; None where everybody uses the server's.
        labelled: whether clients' examples are ``(x, y)`` for that model; False takes points alone too.
        by_client: (metrics, the cohort's ids) -> the metrics, where they hold one value for each place of the cohort.
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
    with_population: Callable[[Tree, int], Tree] | None = None
    personal: Callable[[Tree, Tree | None], Parts] | None = None
    labelled: bool = True
    by_client: Callable[[Metrics, list[Any]], Metrics] | None = None
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
    def initialize(self, seed: int | Any = 0, clients: int | Any = None) -> State:
        """The state before round 0.

        Args:
            seed: everything random in the run is a function of it.
            clients: the population's size, for algorithms that need it (SCAFFOLD, FedDyn); left out, it is the number
                of clients in the data of the first round.

        Raises:
            CompositionError: for a seed or a number of clients that is no whole number.
        """
        check_seed(seed)
        state = begin(self.round, self._params(seed), seed)
        if clients is not None:
            check_population(clients)
            state = self._populated(state, int(clients))
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
            CompositionError: after a round whose client learning rate can be read, and is not finite.
        """
        return self._next(state, client_data, clients)

    def _next(
        self,
        state: Any,
        client_data: Any,
        clients: Iterable[Any] | None,
        run: Callable[[State, Cohort], Outcome] | None = None,
    ) -> Output:
        """As `next`, by the runtime or another function that has the round."""
        recognise(self.round, self._template, state)
        whole, among = as_federation(client_data, clients, self._kept)
        state = self._own(state, client_data, len(whole))
        return self._one(state, self._cohort(whole, among, state), run)

    def _own(self, state: Any, client_data: Any, population: int) -> State:
        """The state as this algorithm's own, for these clients."""
        state = recognise(self.round, self._template, state)
        if isinstance(client_data, Federation) and state.clients:
            check_remembered(state.clients, client_data, self._met.setdefault(client_data.whole, set()))
        return self._populated(state, population)

    def _cohort(self, whole: Federation, among: NDArray[np.int64], state: State) -> Cohort:
        """The clients of a round, checked."""
        federation, positions = whole.cohort(among)
        self._check(federation, state)
        check_labels(self._checked[federation][1], federation, positions)
        return Cohort(federation, positions, None if whole is federation else (whole, among))

    def _one(self, state: State, cohort: Cohort, run: Callable[[State, Cohort], Outcome] | None = None) -> Output:
        """The round, by the runtime or another function that has it."""
        after, metrics = step(run or self._run, state, cohort)
        check_rate(metrics, int(state.round))
        if self.by_client is not None:
            metrics = self.by_client(metrics, [cohort.client(place) for place in range(len(cohort.positions))])
        return Output(after, metrics)

    @user_facing
    def on(self, runtime: Runtime | Any) -> Process:
        """The same algorithm on another runtime; states move freely between them.

        Raises:
            CompositionError: for something that is no runtime.
        """
        if not isinstance(runtime, Runtime) or isinstance(runtime, type):
            raise CompositionError(
                "SF-COMP-032",
                f"on({runtime!r})",
                "a runtime",
                "write for example process.on(sf.Loopback())",
            )
        return dataclasses.replace(self, runtime=runtime)

    # -- weights and hyperparameters ------------------------------------------------------------------

    @user_facing
    def get_model_weights(self, state: Any) -> Any:
        """The model's weights, in the form that the model's adapter documents."""
        state = recognise(self.round, self._template, state)
        model, parts, _ = self._lens()
        return model.join(parts(state.algorithm))

    @user_facing
    def get_client_weights(self, state: Any, client: Any) -> Any:
        """The weights that one client itself uses, in the form of `get_model_weights`.

        Those of personalised algorithms: the server's weights with the client's own leaves among them
        (`sumfold.learning.local_layers`, `fed_bn`), or its own model (`ditto`). A client that was never seen uses the
        server's weights, and so does every client of other algorithms. Where clients are other machines, what they
        remember is not here.

        Args:
            state: as for `next`.
            client: the client's id.
        """
        state = recognise(self.round, self._template, state)
        model, parts, _ = self._lens()
        if self.personal is None:
            return model.join(parts(state.algorithm))
        held, memory = state.clients.get(client), None
        if held is not None:
            phase = self.round.phases[-1]
            blank = jax.eval_shape(
                lambda a, seed: phase.work.memory(phase.broadcast(a, keys.typed(seed))), state.algorithm, state.seed
            )
            # A memory out of a file has other containers; its leaves are in the same order, the work's first.
            memory = tree.unflatten(tree.structure(blank), jax.tree.leaves(held[-1])[: len(jax.tree.leaves(blank))])
        return model.join(self.personal(state.algorithm, memory))

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
        for group, given in hparams.items():
            if group not in known or not isinstance(given, Mapping):
                raise CompositionError(
                    "SF-COMP-025",
                    f"set_hparams with {group!r} as a {type(given).__name__}",
                    f"the groups {sorted(known)}, each a dict by name",
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

    def _populated(self, state: State, number: int) -> State:
        if self.with_population is None:
            return state
        return state._replace(algorithm=self.with_population(state.algorithm, number))

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

    @property
    def _engine(self) -> dict[str, Any]:
        """What the rounds are computed by, and what the runtime chose; a run that is resumed needs it."""
        return {**described(self.runtime, self.round), **getattr(self._run, "chosen", dict)()}

    def _go_on(self, engine: dict[str, Any]) -> list[str]:
        """Choose again what was chosen, and say where this runtime or this machine is another."""
        adopt = getattr(self._run, "adopt", None)
        return announced(engine, described(self.runtime, self.round)) + (
            list(adopt(engine)) if adopt and "kernel" in engine else []
        )

    @functools.cached_property
    def _run(self) -> Callable[[State, Cohort], Outcome]:
        return self.runtime.bind(self.round)

    @functools.cached_property
    def _kept(self) -> dict[int, Any]:
        return {}

    @functools.cached_property
    def _met(self) -> weakref.WeakKeyDictionary[Federation, set[Any]]:
        """Whom of the remembered clients each federation is known to have."""
        return weakref.WeakKeyDictionary()

    @functools.cached_property
    def _checked(self) -> weakref.WeakKeyDictionary[Federation, tuple[Batch | None, Labels | None]]:
        return weakref.WeakKeyDictionary()

    @functools.cached_property
    def _seen(self) -> list[Batch]:
        """The element types seen last, at most one entry."""
        return []

    def _check(self, federation: Federation, state: State) -> Batch | None:
        """Refuse data that this process cannot take; the shapes of one batch, or None when there are no rows."""
        if federation not in self._checked:
            batch, labels = check_batches(federation, self.round, self.model, self.batching), None
            labelled = self.labelled and federation.in_memory
            if batch is not None and labelled and self.model is not None and self.parts is not None:
                labels = labels_of(federation, self.model, self.parts(state.algorithm), batch)
            if batch is not None:
                self._seen[:] = [batch]
            self._checked[federation] = batch, labels
        return self._checked[federation][0]


def _shapes(state: State) -> State:
    shapes: State = tree.shapes(state)
    return shapes._replace(fingerprint=state.fingerprint, seed=state.seed)
