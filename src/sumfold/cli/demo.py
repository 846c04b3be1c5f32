"""``sumfold demo``: four hospitals train a model together; a table, a picture, and what they say."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sumfold.cli.verb import Json, Outcome, complain, verb, writable
from sumfold.errors import MissingExtraError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from sumfold.cli.hospitals import Experiment

__all__ = ["demo", "document", "table", "words"]

_TITLES = {"auc": "AUC", "accuracy": "accuracy"}
_HEADS = {"own": "own", "others": "others'", "federated": "federated", "pooled": "pooled"}
_CLOSE, _FEW = 0.01, 10


@verb
def demo(
    out: Annotated[Path, typer.Option(help="Folder for curve.png and history.json.", metavar="DIR")] = Path(
        "sumfold-demo"
    ),
    seeds: Annotated[int, typer.Option(min=1, help="How many splits into training and test patients.")] = 5,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of federated training.")] = 50,
    as_json: Json = False,
) -> Outcome:
    """Train on the heart disease data of four hospitals, which may not share patients.

    Compares each hospital's own model, the other hospitals' models, the
    federated and the pooled model, on test patients that no training saw.

    Example: sumfold demo --seeds 5 --out sumfold-demo
    """
    del as_json
    from rich.console import Console

    began = time.perf_counter()
    writable(out)
    console = Console(highlight=False)
    experiment = _run(seeds, rounds)
    files = _write(experiment, out)
    _show(console, experiment)
    console.print(f"\n[dim]{', '.join(files)} · {time.perf_counter() - began:.1f} s[/dim]")
    return Outcome({**document(experiment), "files": files})


def _run(seeds: int, rounds: int) -> Experiment:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = TextColumn("four hospitals train"), BarColumn(), TextColumn("split {task.completed}/{task.total}")
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=seeds)
        from sumfold.cli import hospitals

        return hospitals.run(seeds, rounds, done=lambda seed: bar.update(task, completed=seed + 1))


# -- files


def _write(experiment: Experiment, out: Path) -> list[str]:
    """Write history.json and curve.png; the paths written."""
    from sumfold.cli.curve import draw
    from sumfold.core import files

    history = out / "history.json"
    whole = {**document(experiment), "curve": _curve(experiment)}
    files.write(history, json.dumps(whole, indent=1).encode() + b"\n")
    try:
        figure = draw(experiment)
    except MissingExtraError as error:
        complain(f"no curve.png: {error}")
        return [str(history)]
    figure.savefig(out / "curve.png", dpi=140)
    return [str(out / "curve.png"), str(history)]


def document(experiment: Experiment) -> dict[str, Any]:
    """All numbers but the curve's: hospitals, scores by seed, and their means and deviations over seeds."""
    from sumfold.cli.hospitals import MODELS

    names = [hospital.name for hospital in experiment.hospitals]
    scores = [
        {"seed": seed, "hospital": name, "model": model}
        | {measure: float(values[seed, m, h]) for measure, values in experiment.scores.items()}
        for seed in range(len(experiment.scores["auc"]))
        for h, name in enumerate(names)
        for m, model in enumerate(MODELS)
    ]
    summary = {
        measure: {
            model: {
                row: {"mean": float(values.mean()), "deviation": float(values.std())}
                for row, values in _rows(experiment, measure, model)
            }
            for model in MODELS
        }
        for measure in experiment.scores
    }
    return {
        "seeds": len(experiment.scores["auc"]),
        "rounds": experiment.rounds,
        "hospitals": [vars(hospital) for hospital in experiment.hospitals],
        "summary": summary,
        "scores": scores,
    }


def _curve(experiment: Experiment) -> list[dict[str, Any]]:
    """The federated model by seed and round, from the untrained one on; each measure by hospital."""
    names = [hospital.name for hospital in experiment.hospitals]
    return [
        {"seed": seed, "round": number}
        | {m: dict(zip(names, values[seed, number].tolist(), strict=True)) for m, values in experiment.curve.items()}
        for seed in range(len(experiment.scores["auc"]))
        for number in range(experiment.rounds + 1)
    ]


def _rows(experiment: Experiment, measure: str, model: str) -> Iterator[tuple[str, Any]]:
    """(hospital, its values over seeds), and at last the mean over hospitals."""
    values = experiment.of(measure, model)
    for place, hospital in enumerate(experiment.hospitals):
        yield hospital.name, values[:, place]
    yield "mean", values.mean(axis=1)


# -- what is printed


def _show(console: Console, experiment: Experiment) -> None:
    console.print(table(experiment))
    console.print(
        "Measured on test patients that no training saw. [bold]own[/bold]: the hospital's own model. "
        "[bold]others'[/bold]: the mean over the other hospitals' own models. [bold]pooled[/bold]: all patients in "
        "one place, for comparison only. For the federated model no patient left a hospital for anything: the means "
        "and deviations that scale its inputs came from a federated round too.\n",
        style="dim",
    )
    for line in words(experiment):
        console.print(f"• {line}", markup=False)


def table(experiment: Experiment) -> Table:
    """AUC and accuracy of the four models, mean ± deviation over seeds, the best of each row in bold."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("", no_wrap=True)
    shown.add_column("train/test", justify="right")
    for head in _HEADS.values():
        shown.add_column(head, justify="right", no_wrap=True)
    sizes = {hospital.name: f"{hospital.train}/{hospital.test}" for hospital in experiment.hospitals}
    sizes["mean"] = ""
    for measure, title in _TITLES.items():
        shown.add_row(f"[cyan]{title}[/cyan]")
        columns = [dict(_rows(experiment, measure, model)) for model in _HEADS]
        for name, size in sizes.items():
            last = name == "mean"
            shown.add_row(name, size, *_cells([column[name] for column in columns]), end_section=last)
    return shown


def _cells(values: list[Any]) -> list[str]:
    means = [round(float(value.mean()), 3) for value in values]
    cells = []
    for mean, value in zip(means, values, strict=True):
        text = f"[bold]{mean:.3f}[/bold]" if mean == max(means) else f"{mean:.3f}"
        cells.append(text + (f" [dim]±{value.std():.3f}[/dim]".replace("±0.", "±.") if len(value) > 1 else ""))
    return cells


def words(experiment: Experiment) -> list[str]:
    """What federating buys and what it does not, out of this run's numbers."""
    return [
        line for line in (_bought(experiment), _together(experiment), _knows(experiment), _unsure(experiment)) if line
    ]


def _bought(experiment: Experiment) -> str:
    own, federated = (experiment.of("auc", model) for model in ("own", "federated"))
    gain = (federated - own).mean(axis=0)
    place = int(gain.argmax())
    if gain[place] <= 0:
        return "Federating bought nothing in this run: every hospital's own model has the better AUC."
    better, splits = int((federated > own)[:, place].sum()), len(own)
    return (
        f"Federating buys {experiment.hospitals[place].name} the most: AUC {federated[:, place].mean():.3f} instead "
        f"of {own[:, place].mean():.3f} with its own model"
        + (f", better in {better} of {splits} splits." if splits > 1 else ".")
    )


def _together(experiment: Experiment) -> str:
    own, others, federated, pooled = (float(experiment.of("auc", model).mean()) for model in _HEADS)
    line = f"The mean AUC is {federated:.3f} federated, {own:.3f} own, {others:.3f} others', {pooled:.3f} pooled: "
    if federated < pooled - _CLOSE:
        return line + f"after {experiment.rounds} rounds the federated model is not yet as good as the pooled one."
    return line + "nothing was lost by leaving the patients where they are."


def _knows(experiment: Experiment) -> str | None:
    own, federated = (experiment.of("accuracy", model).mean(axis=0) for model in ("own", "federated"))
    place = int((own - federated).argmax())
    if own[place] <= federated[place]:
        return None
    hospital = experiment.hospitals[place]
    line = (
        f"It does not buy everything: in {hospital.name} the own model has the better accuracy, {own[place]:.3f} "
        f"against {federated[place]:.3f}."
    )
    common = max(hospital.ill, 1 - hospital.ill)
    if common > 0.8:
        line += (
            f" {common:.0%} of its patients are {'ill' if hospital.ill > 0.5 else 'healthy'}; its own model knows that."
        )
    if hospital.unmeasured:
        line += f" And all of its patients lack {' and '.join(hospital.unmeasured)}."
    return line


def _unsure(experiment: Experiment) -> str | None:
    place = min(range(len(experiment.hospitals)), key=lambda k: experiment.hospitals[k].rarest)
    hospital, reached = experiment.hospitals[place], experiment.of("auc", "federated")[:, place]
    if hospital.rarest >= _FEW:
        return None
    moves = f", and it moves by ±{reached.std():.2f} from split to split" if len(reached) > 1 else ""
    return (
        f"{hospital.name}'s AUC is a rough number: {hospital.rarest} of its {hospital.test} test patients are "
        f"{'healthy' if hospital.ill > 0.5 else 'ill'}{moves}."
    )
