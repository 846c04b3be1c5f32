"""Several algorithms on the same data, with the same seeds and the same cohorts: what one differs by, and how surely.

A difference between two algorithms means something only beside the spread that chance alone causes. So each is
trained once for each of several seeds; a seed decides the initial weights, the cohort of every round and the order of
the examples, for all algorithms alike.
"""

from __future__ import annotations

import html
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sumfold.core import files
from sumfold.data.clients import as_federation
from sumfold.errors import CompositionError, missing_extra, user_facing
from sumfold.learning.callbacks import Event
from sumfold.learning.checks import check_seed
from sumfold.learning.history import History, encoded, headline, scalars
from sumfold.learning.process import Process
from sumfold.learning.progress import shown
from sumfold.learning.sampling import Policy
from sumfold.learning.train import check_counts, evaluation
from sumfold.learning.train import train as train_once

__all__ = ["Comparison", "compare"]

TRAINING = "training loss"
"""The name of the clients' own loss, beside the metrics of evaluations."""


@user_facing
def compare(
    processes: Mapping[str, Process] | Any,
    train: Any,
    *,
    rounds: int,
    seeds: int | Sequence[int] | Any = 5,
    evaluate: Any = None,
    evaluate_clients: Any = None,
    evaluate_every: int = 1,
    clients_per_round: int | None = None,
    cohorts: Policy | Iterable[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Comparison:
    """Train several algorithms with `sumfold.train`, each with several seeds, on the same cohorts.

    That every process can be evaluated is checked before the first run. Ctrl-C stops after the round; the runs that
    were finished are returned.

    Args:
        processes: name -> algorithm.
        train: client data, as `sumfold.train` takes it; or ``fn(seed)`` that returns client data or a tuple
            ``(client data, data to evaluate)``, where the partition or the split is to vary with the seed too.
        rounds: of each run.
        seeds: how many, 0 … n − 1, or the seeds themselves.
        evaluate, evaluate_every, clients_per_round, cohorts: as `sumfold.train` takes them.
        evaluate_clients: instead of `evaluate`, client data, as `sumfold.train` takes it: each client's own weights on
            its own rows, which is fair to personalised algorithms and clusters. True measures so what ``train(seed)``
            returned as its second.
        checkpoint: a folder; each run has its own in it, by name and seed. The same call again goes on; evaluations
            that a folder has already stay as they were made.
        progress: show a bar over all runs on a terminal, plain lines elsewhere; False prints nothing.

    Raises:
        CompositionError: for names, processes or seeds that cannot be used.
        DataError, TypeMismatchError, CheckpointError: as `sumfold.train`.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     lambda key: jnp.float32(0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
        ... )
        >>> x = np.ones(2, np.float32)
        >>> processes = {name: sf.learning.fed_avg(model, optax.sgd(rate)) for name, rate in (("a", 0.1), ("b", 0.3))}
        >>> data = {"one": (x, x), "two": (x, 3 * x)}
        >>> sf.compare(processes, data, rounds=3, seeds=2, evaluate=(x, 2 * x), progress=False)
        Comparison(2 algorithms, 2 seeds, 3 rounds)
    """
    _check_processes(processes)
    chosen = _seeds(seeds)
    check_counts(rounds=(rounds, 0))
    if isinstance(cohorts, Iterator):
        cohorts = list(itertools.islice(cohorts, rounds))
    histories: dict[str, dict[int, History]] = {name: {} for name in processes}
    runs = len(chosen) * len(processes)
    with shown(runs * rounds, 0, progress) as display:
        for place, seed in enumerate(chosen):
            federation, test, own = _data(train, evaluate, evaluate_clients, seed)
            if not place:
                for process in processes.values():
                    evaluation(process, test, own)
            for turn, (name, process) in enumerate(processes.items()):
                before = (place * len(processes) + turn) * rounds
                history = train_once(
                    process,
                    federation,
                    rounds=rounds,
                    clients_per_round=clients_per_round,
                    seed=seed,
                    evaluate=test,
                    evaluate_clients=own,
                    evaluate_every=evaluate_every,
                    cohorts=cohorts,
                    checkpoint=None if checkpoint is None else Path(checkpoint) / _folder(name) / f"seed-{seed}",
                    callbacks=[_reporter(display.done, before, f"{name}, seed {seed}")],
                    progress=False,
                )
                if history.stopped == "interrupted":
                    return Comparison(histories, rounds, "interrupted")
                histories[name][seed] = history
    return Comparison(histories, rounds)


def _check_processes(processes: Any) -> None:
    advice = 'write {"FedAvg": sf.learning.fed_avg(…), "SCAFFOLD": sf.learning.scaffold(…)}'
    if not isinstance(processes, Mapping) or not processes:
        came = "no process" if isinstance(processes, Mapping) else f"processes as a {type(processes).__name__}"
        raise CompositionError("SF-COMP-102", came, "a dict name -> process", advice)
    for name, process in processes.items():
        if not isinstance(name, str) or not name.strip():
            raise CompositionError("SF-COMP-102", f"the name {name!r}", "a string that is not empty", advice)
        if not isinstance(process, Process):
            raise CompositionError(
                "SF-COMP-102", f"{name!r} is a {type(process).__name__}", "a sumfold Process", advice
            )


def _seeds(seeds: Any) -> list[int]:
    number = isinstance(seeds, (int, np.integer)) and not isinstance(seeds, bool)
    listed = isinstance(seeds, Iterable) and not isinstance(seeds, (str, bytes, Mapping))
    chosen: list[Any] = list(range(int(seeds)) if number else seeds) if number or listed else []
    if not chosen or len(set(chosen)) < len(chosen):
        raise CompositionError(
            "SF-COMP-103",
            f"seeds={seeds!r}",
            "how many, at least 1, or different whole numbers",
            "write seeds=5, or seeds=[0, 1, 2, 3, 4]",
        )
    for seed in chosen:
        check_seed(seed)
    return [int(seed) for seed in chosen]


def _data(train: Any, evaluate: Any, evaluate_clients: Any, seed: int) -> tuple[Any, Any, Any]:
    """What to train on with this seed, to evaluate, and to evaluate by client.

    Client data becomes a federation once, for all algorithms.
    """
    given = train(seed) if callable(train) else train
    pair = callable(train) and isinstance(given, tuple) and len(given) == 2
    by_client, evaluate_clients = evaluate_clients is True, None if evaluate_clients is False else evaluate_clients
    others = evaluate is not None or (evaluate_clients is not None and not by_client)
    if pair and others:
        name = "evaluate" if evaluate is not None else "evaluate_clients"
        raise CompositionError(
            "SF-COMP-104",
            f"{name}, and train(seed) that returns a pair",
            "one place that the data to evaluate comes from",
            f"leave {name} out, or return client data alone; evaluate_clients=True measures the second of the pair "
            "by client",
        )
    if by_client and not pair:
        raise CompositionError(
            "SF-COMP-089",
            "evaluate_clients=True, and train that is no function which returns a pair",
            "client data; or True, where train(seed) returns a pair of client data and data to evaluate",
            "write evaluate_clients=test",
        )
    if not pair:
        return as_federation(given, None, {})[0], evaluate, evaluate_clients
    federation, test = as_federation(given[0], None, {})[0], given[1]
    return (federation, None, test) if by_client else (federation, test, None)


def _folder(name: str) -> str:
    """The name as that of a folder, on any system and inside the one it belongs to."""
    unusual = r'[<>:"/\\|?*%\x00-\x1f]|^[. ]|[. ]$'
    return re.sub(unusual, lambda found: f"%{ord(found[0]):02X}", name)


def _reporter(done: Callable[[int, int, str], None], before: int, name: str) -> Callable[[Event], None]:
    def report(event: Event) -> None:
        if event.kind == "round_end":
            numbers = "  ".join(f"{key} {value:.4g}" for key, value in headline(event.metrics).items())
            clients = event.metrics.get("client_work", {}).get("train", {}).get("num_clients", 0)
            done(before + event.round + 1, int(clients), f"{name}  {numbers}")

    return report


class _Target(NamedTuple):
    """A value that a metric of the evaluations is to reach."""

    metric: str
    value: float
    low: bool

    def __str__(self) -> str:
        return f"rounds to {self.metric} {'≤' if self.low else '≥'} {self.value:g}"


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """The result of `sumfold.compare`.

    Attributes:
        histories: name -> seed -> `History`.
        rounds: that each run was to have; a checkpoint folder may have held more.
        stopped: ``"interrupted"`` after Ctrl-C, with the runs that were finished until then; else None.

    Example:
        >>> from sumfold.core.driver import State
        >>> state = State(np.int32(1), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
        >>> def run(x):
        ...     return History(state, [{"client_work": {"train": {"loss": x}}}], [{"round": 0, "accuracy": 1 - x}])
        >>> comparison = Comparison({"FedAvg": {0: run(0.5), 1: run(0.25)}, "FedProx": {0: run(0.4), 1: run(0.2)}}, 1)
        >>> print(comparison.table(target={"accuracy": 0.7}))
        algorithm  training loss             accuracy  rounds to accuracy ≥ 0.7
        FedAvg     0.3750 ± 0.1768    0.6250 ± 0.1768       1.0 (1 of 2 seeds)
        FedProx    0.3000 ± 0.1414    0.7000 ± 0.1414       1.0 (1 of 2 seeds)
        mean ± sample standard deviation over 2 seeds, after 1 round
    """

    histories: Mapping[str, Mapping[int, History]]
    rounds: int
    stopped: Literal["interrupted"] | None = None

    @user_facing
    def table(
        self,
        target: Mapping[str, float] | tuple[Any, ...] | Any = None,
        *,
        metrics: Sequence[str] | str | Any = None,
    ) -> str:
        """The algorithms' last numbers, as aligned text: mean ± sample standard deviation over the seeds.

        Numbers in dicts within an evaluation (``"per_client": {…}``) have a column only by name.

        Args:
            target: ``{"accuracy": 0.9}`` or ``("accuracy", 0.9)``: a column with the number of rounds until an
                evaluation first reaches the value, over the seeds that did. A metric whose name has "loss" or "error"
                in it is to fall to the value, others are to rise to it; ``("perplexity", 20, "min")`` says so itself,
                as does ``"max"``.
            metrics: which columns, in this order: metrics of the evaluations and ``"training loss"``; None is all.

        Raises:
            CompositionError: for a metric that the runs do not have.
        """
        names: Sequence[str] = [TRAINING, *self._names()]
        if metrics is not None:
            names = [metrics] if isinstance(metrics, str) else metrics
            if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
                raise CompositionError(
                    "SF-COMP-087", f"metrics={metrics!r}", "a list of names", 'write metrics=["training loss", "auc"]'
                )
            for name in names:
                self._check_metric(name, f"a column for {name!r}")
        chosen = _targets(target)
        for one in chosen:
            self._check_metric(one.metric, f"a target for {one.metric!r}")
        heads, rows = self._cells(list(names), chosen)
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
            for line in (heads, *rows)
        ]
        return "\n".join([*lines, self._caption()])

    @user_facing
    def to_frame(self) -> Any:
        """A pandas data frame: a row for each algorithm, seed and round, with the columns of `History.to_frame`.

        Raises:
            MissingExtraError: without pandas.

        Example:
            >>> Comparison({}, 0).to_frame().empty
            True
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_extra("pandas", "all") from error
        frames = {(name, seed): run.to_frame() for name, runs in self.histories.items() for seed, run in runs.items()}
        return pandas.concat(frames, names=["algorithm", "seed"]) if frames else pandas.DataFrame()

    @user_facing
    def plot(self, metric: str | None = None) -> Any:
        """A matplotlib figure: each algorithm's mean by round, and a band of one standard deviation around it.

        Args:
            metric: one metric of the evaluations, or ``"training loss"``; None is a panel for each.

        Raises:
            CompositionError: for a metric that the runs do not have.
            MissingExtraError: without matplotlib.

        Example:
            >>> figure = Comparison({}, 0).plot()
            >>> figure.axes[0].get_ylabel()
            'training loss'
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise missing_extra("matplotlib", "plot") from error
        names = [TRAINING, *self._names()]
        if metric is not None:
            self._check_metric(metric, f"plot({metric!r})")
            names = [metric]
        columns = min(3, len(names))
        rows = math.ceil(len(names) / columns)
        size = (5.4, 4.0) if len(names) == 1 else (1.2 + 3.6 * columns, 0.4 + 3.2 * rows)
        figure = Figure(figsize=size, layout="constrained")
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            for number, (label, runs) in enumerate(self.histories.items()):
                by_round, means, deviations = _by_round(runs.values(), name)
                style = ("-", "--", ":", "-.")[number // 10 % 4]
                axes.plot(by_round, means, style, color=f"C{number % 10}", label=label, linewidth=1.4)
                edges = means - deviations, means + deviations
                axes.fill_between(by_round, *edges, color=f"C{number % 10}", alpha=0.18, linewidth=0)
            axes.set_xlabel("round")
            axes.set_ylabel(name.replace("_", " "))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if handles:
            places = min(len(labels), 3 * columns, 6)
            figure.legend(handles, labels, frameon=False, loc="outside upper center", ncols=places)
        # Notebooks show pyplot's figures by themselves, and others by this.
        vars(figure)["_repr_png_"] = lambda: _png(figure)
        return figure

    @user_facing
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write metrics and evaluations of every run to a JSON file, whole or not at all.

        NaN and infinities, which JSON has not, are null; ``not_finite`` then lists where they were.

        Raises:
            CheckpointError: when the file cannot be written; an older file of this name is untouched.

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/comparison.json"
            >>> Comparison({"FedAvg": {}}, 10).save(path)
            >>> json.loads(Path(path).read_text())
            {'rounds': 10, 'stopped': None, 'algorithms': {'FedAvg': {}}}
        """
        algorithms = {
            name: {
                str(seed): {"metrics": history.metrics, "evaluations": history.evaluations}
                for seed, history in runs.items()
            }
            for name, runs in self.histories.items()
        }
        document = encoded({"rounds": self.rounds, "stopped": self.stopped, "algorithms": algorithms})
        text = json.dumps(document, indent=1, allow_nan=False, ensure_ascii=False)
        files.write(Path(path), text.encode() + b"\n")

    def __repr__(self) -> str:
        words = [
            _count(len(self.histories), "algorithm"),
            _count(len(self._seeds()), "seed"),
            self._length(),
        ]
        return f"Comparison({', '.join([*words, *([self.stopped] if self.stopped else [])])})"

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        heads, rows = self._cells([TRAINING, *self._names()], [])
        head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        caption = html.escape(f"{self!r}: {self._caption()}")
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _seeds(self) -> list[int]:
        return list(dict.fromkeys(seed for runs in self.histories.values() for seed in runs))

    def _names(self, nested: bool = False) -> list[str]:
        """The metrics of the evaluations, in their order; those in dicts within them only if `nested`."""
        runs = [history for runs in self.histories.values() for history in runs.values()]
        made = [entry for run in runs for entry in run.evaluations]
        if not nested:
            made = [{k: v for k, v in entry.items() if not isinstance(v, Mapping)} for entry in made]
        return list(dict.fromkeys(name for entry in made for name in scalars(entry)))

    def _check_metric(self, metric: str, came: str) -> None:
        names = [TRAINING, *self._names()]
        if metric not in names and metric not in self._names(nested=True):
            raise CompositionError(
                "SF-COMP-106",
                f"{came}, and the metrics {names}",
                "a metric that the runs have",
                "name one of those; pass evaluate=test to sf.compare for metrics of a test set",
            )

    def _cells(self, names: list[str], targets: list[_Target]) -> tuple[list[str], list[list[str]]]:
        """The table's head and rows, as text."""
        many = len({len(runs) for runs in self.histories.values()}) > 1
        rows = []
        for algorithm, runs in self.histories.items():
            last = [_spread([v for run in runs.values() for _, v in _series(run, name)[-1:]]) for name in names]
            reached = [_reached(list(runs.values()), target) for target in targets]
            rows.append([algorithm, *last, *reached, *([str(len(runs))] if many else [])])
        return ["algorithm", *names, *map(str, targets), *(["seeds"] if many else [])], rows

    def _caption(self) -> str:
        number = len(self._seeds())
        over = f"mean ± sample standard deviation over {number} seeds" if number > 1 else _count(number, "seed")
        return f"{over}, after {self._length()}" + (", interrupted" if self.stopped else "")

    def _length(self) -> str:
        """How many rounds the runs have, in words."""
        lengths = {int(history.state.round) for runs in self.histories.values() for history in runs.values()}
        low, high = min(lengths, default=self.rounds), max(lengths, default=self.rounds)
        return _count(high, "round") if low == high else f"{low} to {high} rounds"


# -- numbers of runs


def _series(history: History, name: str) -> list[tuple[int, float]]:
    """(round, value) of one metric; of the training loss where a round had an example."""
    if name != TRAINING:
        made = [(entry["round"], scalars(entry)) for entry in history.evaluations]
        return [(number, values[name]) for number, values in made if name in values]
    trained = [(history.first + place, metrics) for place, metrics in enumerate(history.metrics)]
    there = [(number, headline(metrics)) for number, metrics in trained if _examples(metrics)]
    return [(number, values["loss"]) for number, values in there if "loss" in values]


def _examples(metrics: Mapping[str, Any]) -> bool:
    groups = [group for group in metrics.get("client_work", {}).values() if isinstance(group, Mapping)]
    return any(group.get("num_examples", 1) for group in groups)


def _by_round(runs: Iterable[History], name: str) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """The rounds that have the metric, and its mean and deviation over the runs in each."""
    found: dict[int, list[float]] = {}
    for run in runs:
        for number, value in _series(run, name):
            found.setdefault(number, []).append(value)
    numbers = sorted(found)
    means = [float(np.mean(found[number])) for number in numbers]
    return np.array(numbers, np.int64), np.array(means), np.array([_deviation(found[number]) for number in numbers])


def _deviation(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 and np.isfinite(values).all() else 0.0


def _spread(values: Sequence[float]) -> str:
    """Mean ± deviation, as text: four digits of the mean, and the deviation to the same place."""
    if not values:
        return "–"
    mean = float(np.mean(values))
    size = math.floor(math.log10(abs(mean))) if math.isfinite(mean) and mean else -1
    places = f".{max(3 - size, 0)}f" if -4 <= size <= 5 else ".3e"
    deviates = len(values) > 1 and math.isfinite(mean)
    return f"{mean:{places}}" + (f" ± {_deviation(values):{places}}" if deviates else "")


# -- targets


def _targets(target: Any) -> list[_Target]:
    if target is None:
        return []
    return [_target(one) for one in (target.items() if isinstance(target, Mapping) else [target])]


def _target(given: Any) -> _Target:
    parts: list[Any] = [*given, None] if isinstance(given, (tuple, list)) and len(given) in (2, 3) else [None] * 3
    metric, value, mode = parts[:3]
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)
    if not isinstance(metric, str) or not number or mode not in (None, "min", "max"):
        raise CompositionError(
            "SF-COMP-105",
            f"target={given!r}",
            'a metric and a number, such as {"accuracy": 0.9} or ("perplexity", 20, "min")',
            "name a metric of the evaluations and the value that it should reach",
        )
    falls = any(word in metric.lower() for word in ("loss", "error"))
    return _Target(metric, float(value), mode == "min" if mode else falls)


def _reached(runs: Sequence[History], target: _Target) -> str:
    """Rounds until the target, over the runs that reach it, and how many those are if not all."""
    counts = []
    for run in runs:
        series = _series(run, target.metric)
        hit = (n for n, v in series if (v <= target.value if target.low else v >= target.value))
        counts.append(next(hit, None))
    there = [number + 1.0 for number in counts if number is not None]
    if not there:
        return f"0 of {_count(len(runs), 'seed')}"
    text = f"{np.mean(there):.1f}" + (f" ± {_deviation(there):.1f}" if len(there) > 1 else "")
    return text if len(there) == len(runs) else f"{text} ({len(there)} of {_count(len(runs), 'seed')})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
