"""The lines of many runs as one page of Markdown: every row, the losing and the void ones too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sumfold.bench.measure import Row, rows
from sumfold.bench.peers import CONTESTANTS
from sumfold.bench.workloads import WORKLOADS, Workload, quick

__all__ = ["page", "tables"]

_HEAD = (
    "| contestant | round, ms | IQR | time / Sumfold's | first round, s | again, s | peak share | memory, MiB "
    "| final loss | |"
)


def tables(lines: Sequence[Mapping[str, Any]], small: bool = False) -> dict[str, list[Row]]:
    """Workload -> its rows, for the workloads that the lines are of."""
    names = dict.fromkeys(line["workload"] for line in lines)
    return {name: _rows(lines, quick(WORKLOADS[name]) if small else WORKLOADS[name]) for name in names}


def _rows(lines: Sequence[Mapping[str, Any]], workload: Workload) -> list[Row]:
    size = workload.shape[0] if workload.data == "updates" else 0
    return rows(lines, workload.name, workload.tolerance, workload.flops, 12.0 * size * workload.cohort)


def page(lines: Sequence[Mapping[str, Any]], machine: Mapping[str, Any], command: str, small: bool = False) -> str:
    """The whole page.

    Args:
        lines: of `sumfold.bench.measure.measured`.
        machine: of `sumfold.bench.measure.machine`.
        command: that makes the page again.
        small: whether the workloads are those of ``--quick``.
    """
    text = ["# Benchmark", "", f"`{command}`", ""]
    if small:
        text += ["Small populations (`--quick`): a look at whether everything runs, no numbers to quote.", ""]
    for name, found in tables(lines, small).items():
        workload = quick(WORKLOADS[name]) if small else WORKLOADS[name]
        text += [f"## {name}: {WORKLOADS[name].title}", ""]
        if small:
            text += [f"Here {workload.cohort} clients of {workload.population}.", ""]
        text += [_HEAD, "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
        ours = next((row.round_ms for row in found if row.title == CONTESTANTS["sumfold"].title and not row.note), None)
        text += [_line(row, ours) for row in found] + [""]
    return "\n".join([*text, *_circumstances(lines, machine), ""])


def _line(row: Row, ours: float | None) -> str:
    ratio = row.round_ms / ours if row.round_ms and ours and not row.note else None
    cells = (
        row.title,
        _number(row.round_ms),
        _number(row.spread_ms),
        _number(ratio),
        _number(row.first_s),
        _number(row.again_s),
        "" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
        "" if row.memory_mib is None else f"{row.memory_mib:.0f}",
        "" if row.loss is None else f"{row.loss:.7g}",
        row.note.replace("|", "/"),
    )
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"


def _circumstances(lines: Sequence[Mapping[str, Any]], machine: Mapping[str, Any]) -> list[str]:
    versions: dict[str, dict[str, None]] = {}
    for line in lines:
        for name, version in line.get("versions", {}).items():
            versions.setdefault(name, {})[version] = None
    devices = dict.fromkeys(line["device"] for line in lines if line.get("device"))
    loads = [line["load"] for line in lines if line.get("load") is not None]
    repeats = 1 + max((line.get("repeat", 0) for line in lines), default=0)
    return [
        "Medians over the rounds after the first two, then over the runs; every run a process of its own, in turns. "
        "IQR: over all rounds counted. A round ends when the new weights are there. *First round* counts from the "
        "start of the process, imports and data included; *again* is the same in later runs, which may find compiled "
        "programs. *Peak share* is of the product of two float32[2048, 2048] measured in the same process by the "
        "contestant's own library; for sums of updates, of three passes over memory at the speed of a STREAM triad. "
        "Memory is the peak of all processes of the run.",
        "",
        f"- repeats: {repeats}; load average before the runs: {min(loads):.2f} to {max(loads):.2f}"
        if loads
        else f"- repeats: {repeats}",
        *(f"- {name.replace('_', ' ')}: {value}" for name, value in machine.items() if value),
        *(f"- device: {device}" for device in devices),
        "- versions: " + ", ".join(f"{name} {' and '.join(found)}" for name, found in sorted(versions.items())),
    ]
