"""The picture of ``sumfold demo``: the federated model by round, against the models that do not federate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sumfold.errors import missing_extra

if TYPE_CHECKING:
    from sumfold.cli.hospitals import Experiment

__all__ = ["draw"]

_LINES = {
    "own": ("its own model", "#d97706", (0, (4, 2))),
    "others": ("the other hospitals' models", "#b0413e", (0, (1, 1.5))),
    "pooled": ("pooled: all patients in one place", "#374151", (0, (7, 2))),
}
_FEDERATED = "#1d4ed8"
_PANELS = {"loss": "log loss on test patients (lower is better)", "auc": "AUC on test patients (higher is better)"}


def draw(experiment: Experiment) -> Any:
    """A matplotlib figure: loss and AUC by round, the mean over hospitals; the band is the deviation over seeds.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (measure, label) in zip(panels, _PANELS.items(), strict=True):
        _panel(axes, experiment, measure)
        axes.set_title(label, loc="left", fontsize=11)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    seeds = len(experiment.scores["auc"])
    over = f"mean over {seeds} splits, band: one deviation" if seeds > 1 else "one split"
    figure.suptitle(
        f"Four hospitals train together: mean over hospitals, {over}", x=0.012, ha="left", fontsize=13, weight="bold"
    )
    return figure


def _panel(axes: Any, experiment: Experiment, measure: str) -> None:
    curve = experiment.curve[measure].mean(axis=-1)  # [seed, round]
    first = 1 if measure == "auc" else 0  # an untrained model ranks nobody: its AUC of 0.5 would squeeze the rest
    rounds = np.arange(first, experiment.rounds + 1)
    middle, spread = curve.mean(axis=0)[first:], curve.std(axis=0)[first:]
    axes.fill_between(rounds, middle - spread, middle + spread, color=_FEDERATED, alpha=0.13, linewidth=0)
    axes.plot(rounds, middle, color=_FEDERATED, linewidth=2.4, label="federated, by round", zorder=3)
    for model, (label, color, dashes) in _LINES.items():
        level = float(experiment.of(measure, model).mean())
        axes.axhline(level, color=color, linestyle=dashes, linewidth=1.6, label=label)
    axes.set_xlim(first, experiment.rounds)
    axes.set_xlabel("round")
    axes.grid(alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
