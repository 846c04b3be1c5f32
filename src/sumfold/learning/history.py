"""What a run leaves behind: its state, the metrics of every round, and the evaluations."""

from __future__ import annotations

import functools
import html
import io
import itertools
import json
import math
import operator
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sumfold.core import files
from sumfold.core.driver import State
from sumfold.errors import CompositionError, missing_extra, user_facing

if TYPE_CHECKING:
    from sumfold.learning.profile import Profile, Timing

__all__ = ["History", "decoded", "encoded", "entries", "flat", "headline", "measured", "plain", "scalars"]

_SHOWN = 20


@dataclass(frozen=True, eq=False, repr=False)
class History:
    """The result of `sumfold.train`.

    Attributes:
        state: after the last round; `process.next` and `process.get_model_weights` take it.
        metrics: one dict a round, from round 0, those of earlier starts included.
        evaluations: one dict an evaluation, ``{"round": …, "loss": …, …}``.
        stopped: ``"callback"``, ``"interrupted"`` (Ctrl-C), or None when all rounds were trained.
        timing: what `profile` is made of.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     lambda key: jnp.float32(0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
        ... )
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> data = [(np.ones(1, np.float32), 2 * np.ones(1, np.float32))]
        >>> sf.train(process, data, rounds=3, progress=False)
        History(3 rounds, loss 1.6384)
    """

    state: State
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    stopped: Literal["callback", "interrupted"] | None = None
    timing: Timing | None = None

    @property
    def first(self) -> int:
        """The number of the round that ``metrics[0]`` is of; 0, unless the run began with a later state."""
        return int(self.state.round) - len(self.metrics)

    @user_facing
    def to_frame(self) -> Any:
        """A pandas data frame: one row a round, one column a number, such as ``client_work/train/loss``.

        Evaluations are the columns ``evaluation/…``, empty in rounds without one.

        Raises:
            MissingExtraError: without pandas.

        Example:
            >>> state = State(np.int32(1), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
            >>> metrics = {"client_work": {"train": {"loss": 0.5}}}
            >>> frame = History(state, [metrics], [{"round": 0, "loss": 0.6}]).to_frame()
            >>> list(frame.columns)
            ['client_work/train/loss', 'evaluation/loss']
        """
        try:
            import pandas
        except ImportError as error:
            raise missing_extra("pandas", "all") from error
        made = {entry["round"]: entry for entry in self.evaluations}
        rows = [
            {**flat(metrics), **flat({"evaluation": measured(made.get(self.first + i, {}))})}
            for i, metrics in enumerate(self.metrics)
        ]
        numbers = range(self.first, int(self.state.round))
        return pandas.DataFrame(rows, index=pandas.Index(numbers, name="round"))

    @user_facing
    def plot(self) -> Any:
        """A matplotlib figure: loss and each metric by round, with the evaluations over them.

        It needs no window: ``history.plot().savefig("curve.png")``; a notebook shows it.

        Raises:
            MissingExtraError: without matplotlib.

        Example:
            >>> state = State(np.int32(1), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
            >>> figure = History(state, [{"client_work": {"train": {"loss": 0.5}}}], []).plot()
            >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
            ('round', 'loss')
        """
        try:
            from matplotlib.figure import Figure
            from matplotlib.ticker import MaxNLocator
        except ImportError as error:
            raise missing_extra("matplotlib", "plot") from error
        trained = [(self.first + i, headline(metrics)) for i, metrics in enumerate(self.metrics)]
        evaluated = [(entry["round"], scalars(entry)) for entry in self.evaluations]
        names = list(dict.fromkeys(name for _, values in (*trained, *evaluated) for name in values)) or ["loss"]
        columns = min(3, len(names))
        rows = math.ceil(len(names) / columns)
        figure = Figure(figsize=(1.2 + 3.6 * columns, 3.2 * rows), layout="constrained")
        for place, name in enumerate(names):
            axes = figure.add_subplot(rows, columns, place + 1)
            for label, series, style in (("training, at clients", trained, "C0-"), ("evaluation", evaluated, "C1o-")):
                points = [(number, values[name]) for number, values in series if name in values]
                if points:
                    axes.plot(*zip(*points, strict=True), style, label=label, markersize=3, linewidth=1.4)
            axes.set_xlabel("round")
            axes.set_ylabel(name.replace("_", " "))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            if axes.lines:
                axes.legend(frameon=False)
        # Notebooks show pyplot's figures by themselves, and others by this.
        vars(figure)["_repr_png_"] = lambda: _png(figure)
        return figure

    @user_facing
    def profile(self) -> Profile:
        """Where the time of this start went: ``print(history.profile())``.

        What earlier starts of the run took is not known. Asking takes about half a second, for a matrix product to
        compare with.

        Raises:
            CompositionError: for a history that `sumfold.train` did not return.

        Example:
            >>> from sumfold.learning.profile import Timing
            >>> state = State(np.int32(2), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
            >>> timing = Timing(2, 4.0, {"clients": 2.0, "evaluation": 2.0}, {"steps 0": 6}, {"evaluation": 1})
            >>> History(state, [{}, {}], [], timing=timing).profile().advice
            '50 % of time in evaluation: evaluate_every=20'
        """
        if self.timing is None:
            raise CompositionError(
                "SF-TRAIN-042",
                "a history without measured times",
                "one that sf.train returned",
                "profile the run itself: print(sf.train(…).profile())",
            )
        from sumfold.learning.profile import profile_of

        rounds = self.timing.rounds
        return profile_of(self.timing, int(self.state.round) - rounds, self.metrics[len(self.metrics) - rounds :])

    @user_facing
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write metrics and evaluations to a JSON file, whole or not at all; the state is `sumfold.save`'s.

        Numbers that JSON has not (NaN, infinities) become null in the file; here they stay what they are.

        Raises:
            CheckpointError: when the file cannot be written; an older file of this name is untouched.

        Example:
            >>> import tempfile
            >>> state = State(np.int32(0), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
            >>> path = tempfile.mkdtemp() + "/run.json"
            >>> History(state, [], []).save(path)
            >>> json.loads(Path(path).read_text())
            {'rounds': 0, 'first': 0, 'stopped': None, 'metrics': [], 'evaluations': []}
        """
        document = {
            "rounds": int(self.state.round),
            "first": self.first,
            "stopped": self.stopped,
            "metrics": self.metrics,
            "evaluations": self.evaluations,
        }
        text = json.dumps(_finite(document), indent=1, allow_nan=False, ensure_ascii=False)
        files.write(Path(path), text.encode() + b"\n")

    def __repr__(self) -> str:
        words = [_count(len(self.metrics), "round")]
        words += [f"{name} {value:.5g}" for name, value in (headline(self.metrics[-1]) if self.metrics else {}).items()]
        words += [_count(len(self.evaluations), "evaluation")] if self.evaluations else []
        words += ["stopped by a callback" if self.stopped == "callback" else "interrupted"] if self.stopped else []
        return f"History({', '.join(words)})"

    def _repr_html_(self) -> str:
        made = {entry["round"]: scalars(entry) for entry in self.evaluations}
        places = np.unique(np.linspace(0, len(self.metrics) - 1, min(_SHOWN, len(self.metrics))).round().astype(int))
        rows = [(self.first + i, headline(self.metrics[i]), made.get(self.first + i, {})) for i in places.tolist()]
        trained = list(dict.fromkeys(name for _, values, _ in rows for name in values))
        evaluated = list(dict.fromkeys(name for _, _, values in rows for name in values))
        heads = ["round", *trained, *(f"evaluation: {name}" for name in evaluated)]
        lines = [
            [str(number), *(_cell(values, name) for name in trained), *(_cell(found, name) for name in evaluated)]
            for number, values, found in rows
        ]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in line) + "</tr>" for line in lines)
        caption = html.escape(repr(self))
        return f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def flat(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, names joined by ``/``.

    Example:
        >>> flat({"client_work": {"train": {"loss": 0.5}}, "round": 3})
        {'client_work/train/loss': 0.5, 'round': 3}
    """
    found: dict[str, Any] = {}
    for name, value in metrics.items():
        path = f"{prefix}{name}"
        found.update(flat(value, f"{path}/") if isinstance(value, Mapping) else {path: value})
    return found


def entries(history: History, since: int) -> Iterator[dict[str, Any]]:
    """The rounds of a history from place `since` on, each with its evaluation: lines of a history file.

    Example:
        >>> state = State(np.int32(1), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
        >>> list(entries(History(state, [{"finalizer": {}}], [{"round": 0, "loss": 0.5}]), 0))
        [{'round': 0, 'metrics': {'finalizer': {}}, 'evaluation': {'loss': 0.5}}]
    """
    begin = history.first + since
    recent = itertools.takewhile(lambda entry: entry["round"] >= begin, reversed(history.evaluations))
    made = {entry["round"]: measured(entry) for entry in recent}
    for place in range(since, len(history.metrics)):
        number = history.first + place
        yield {"round": number, "metrics": history.metrics[place], "evaluation": made.get(number)}


def encoded(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of a history file in JSON's own numbers: null for NaN and infinities, and where they were.

    Example:
        >>> encoded({"round": 0, "metrics": {"loss": math.inf}})
        {'round': 0, 'metrics': {'loss': None}, 'not_finite': [[['metrics', 'loss'], 'inf']]}
    """
    places = [[path, str(value)] for path, value in _not_finite(entry, [])]
    return {**_finite(entry), "not_finite": places} if places else entry


def decoded(entry: dict[str, Any]) -> dict[str, Any]:
    """The entry that `encoded` was given, so that a run that goes on has the history of one that ran through.

    Example:
        >>> decoded({"round": 0, "metrics": {"loss": None}, "not_finite": [[["metrics", "loss"], "inf"]]})
        {'round': 0, 'metrics': {'loss': inf}}
    """
    for (*way, last), word in entry.pop("not_finite", []):
        functools.reduce(operator.getitem, way, entry)[last] = float(word)
    return entry


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a round that people look at: the clients' loss and metrics, without counts.

    Example:
        >>> headline({"client_work": {"train": {"loss": 0.5, "num_examples": 9}}, "finalizer": {}})
        {'loss': 0.5}
    """
    groups = [group for group in metrics.get("client_work", {}).values() if isinstance(group, Mapping)]
    return {name: value for group in groups for name, value in scalars(group).items()}


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of an evaluation or of a group of metrics, flat, loss first, without counts and the round.

    Example:
        >>> scalars({"round": 3, "loss": 0.5, "num_examples": 9, "histogram": [1, 2]})
        {'loss': 0.5}
    """
    counts = ("num_", "round")
    found = [
        (name, float(value))
        for name, value in flat(values).items()
        if isinstance(value, (int, float)) and not name.rpartition("/")[2].startswith(counts)
    ]
    return dict(sorted(found, key=lambda item: item[0] != "loss"))


def plain(value: Any) -> Any:
    """The same value as JSON gives it back: dicts, lists, strings and Python numbers.

    Raises:
        TypeError, ValueError: for what is neither these nor an array.

    Example:
        >>> plain({"auc": np.float32(0.5), "n": (1, 2)})
        {'auc': 0.5, 'n': [1, 2]}
    """
    return json.loads(json.dumps(value, default=_as_list))


def _as_list(value: Any) -> Any:
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"a {type(value).__name__}")
    return array.tolist()


def measured(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``History.evaluations`` without its round.

    Example:
        >>> measured({"round": 3, "loss": 0.5})
        {'loss': 0.5}
    """
    return {name: value for name, value in entry.items() if name != "round"}


def _cell(values: Mapping[str, float], name: str) -> str:
    return f"{values[name]:.5g}" if name in values else ""


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _not_finite(value: Any, path: list[str | int]) -> Iterator[tuple[list[str | int], float]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _not_finite(inner, [*path, key])
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
