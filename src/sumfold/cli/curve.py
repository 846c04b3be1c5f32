"""The picture of ``sumfold demo``: the federated model by round, against the models that do not federate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sumfold.errors import missing_extra

if TYPE_CHECKING:
    from sumfold.cli.hospitals import Experiment

__all__ = ["draw"]

_LINES = {
    "own": ("the hospital's own model", "#d97706", (0, (4, 2))),
    "others": ("the other hospitals' models", "#b0413e", (0, (1, 1.5))),
    "pooled": ("pooled: all patients in one place", "#374151", (0, (7, 2))),
}
_FEDERATED = "#1d4ed8"
_PANELS = {
    "loss": "log loss (lower is better)",
    "auc": "AUC (higher is better)",
    "accuracy": "accuracy (higher is better)",
}


def draw(experiment: Experiment) -> Any:
    """A matplotlib figure: each measure by round, the mean over hospitals; the band is the deviation over splits.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    figure = Figure(figsize=(13, 4.7), layout="constrained")
    for axes, (measure, title) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        _panel(axes, experiment, measure)
        axes.set_title(title, loc="left", fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    splits = len(experiment.scores["auc"])
    over = f"and {splits} splits (band: ± one deviation over splits)" if splits > 1 else "of one split"
    figure.suptitle(
        f"Four hospitals train together: test patients, mean over the hospitals {over}",
        x=0.01,
        ha="left",
        fontsize=13,
    )
    return figure


def _panel(axes: Any, experiment: Experiment, measure: str) -> None:
    curve = experiment.curve[measure].mean(axis=-1)  # [seed, round]
    first = 0 if measure == "loss" else 1  # an untrained model answers the same to all: 0.5 would squeeze the rest
    rounds = np.arange(first, experiment.rounds + 1)
    middle, spread = curve.mean(axis=0)[first:], curve.std(axis=0)[first:]
    axes.fill_between(rounds, middle - spread, middle + spread, color=_FEDERATED, alpha=0.12, linewidth=0)
    axes.plot(
        rounds, middle, color=_FEDERATED, linewidth=2.6, marker="o" if len(rounds) == 1 else "", label="federated"
    )
    for model, (label, color, dashes) in _LINES.items():
        level = float(experiment.of(measure, model).mean())
        axes.axhline(level, color=color, linestyle=dashes, linewidth=1.7, label=label)
    axes.set_xlim(first, max(experiment.rounds, first + 1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("round")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
