"""``sumfold bench``: how fast Sumfold is here, beside hand-written PyTorch and every peer that is installed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sumfold.cli.verb import DONE, FAILED, Json, Outcome, complain, verb, writable
from sumfold.errors import CompositionError

if TYPE_CHECKING:
    from sumfold.bench.measure import Plan, Row

__all__ = ["bench"]

_USUAL = ("w1", "w2", "w4")


@verb
def bench(
    workload: Annotated[
        list[str] | None, typer.Option(help=f"What to compute; may be repeated. Default: {' '.join(_USUAL)}.")
    ] = None,
    contestant: Annotated[
        list[str] | None, typer.Option(help="Who competes; may be repeated. Default: all that can run here.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Fresh processes for each contestant.")] = 3,
    rounds: Annotated[int | None, typer.Option(min=3, help="Rounds of each run; the first two warm up.")] = None,
    peers: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The peers' environments. Default: ~/.cache/sumfold-bench.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Generated data. Default: ~/.cache/sumfold-bench/data.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="FILE", help="The plays, for the workload shakespeare.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="For Sumfold: of sf.Simulation, or loop=train, examples=uint8."),
    ] = None,
    platform: Annotated[
        str, typer.Option(help="Where to compute: cpu, or cuda for the first GPU and those who can use it.")
    ] = "cpu",
    limit: Annotated[float, typer.Option(min=1, help="Seconds for one run.")] = 600,
    quick: Annotated[bool, typer.Option("--quick", help="Small populations: does everything run?")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="Write the tables here, and each run's line beside it.")
    ] = None,
    as_json: Json = False,
) -> Outcome:
    """Compare Sumfold with peers on equal work: the same data, weights, cohorts and order of batches.

    Every run is a process of its own, and a row counts only if its final loss agrees. With --json it writes JSON
    lines: one a run, then one with the tables.

    Example: sumfold bench --workload w1 --workload w4 --repeats 5 --out RESULTS.md
    """
    plan = _plan(workload, contestant, repeats, rounds, peers, cache, data, option, limit, quick, platform)
    if out is not None:
        writable(out.parent)
    absent = _absent(plan, named=bool(contestant))
    lines = _measure(plan, out)
    if not lines:
        complain("nothing to run: no contestant that is installed does these workloads")
        return Outcome({"missing": absent}, FAILED)
    from sumfold.bench.table import tables

    found = tables(lines, plan.quick)
    if not as_json:
        _show(found)
    lost = any(row.note for rows in found.values() for row in rows if row.title.startswith("Sumfold"))
    last = {"missing": absent, "tables": {name: [row._asdict() for row in rows] for name, rows in found.items()}}
    return Outcome(last, FAILED if lost else DONE, lines)


def _plan(
    workload: Sequence[str] | None,
    contestant: Sequence[str] | None,
    repeats: int,
    rounds: int | None,
    peers: Path | None,
    cache: Path | None,
    data: Path | None,
    option: Sequence[str] | None,
    limit: float,
    quick: bool,
    platform: str,
) -> Plan:
    """What the user typed, checked."""
    from sumfold.bench.measure import Plan
    from sumfold.bench.peers import CONTESTANTS, PLATFORMS, folder
    from sumfold.bench.workloads import WORKLOADS

    for given, known, name, code in (
        (workload, WORKLOADS, "workload", "SF-CLI-009"),
        (contestant, CONTESTANTS, "contestant", "SF-CLI-010"),
        ((platform,), PLATFORMS, "platform", "SF-CLI-038"),
    ):
        if unknown := [one for one in given or () if one not in known]:
            raise CompositionError(code, f"--{name} {unknown[0]}", f"one of {', '.join(known)}", "check the spelling")
    wanted = tuple(dict.fromkeys(workload or _USUAL))
    if "shakespeare" in wanted and (data is None or not data.is_file()):
        raise CompositionError(
            "SF-CLI-011",
            f"--data {data}" if data else "the workload shakespeare without --data",
            'the file of plays: JSON compressed with gzip, {"play/role": [speech, …]}',
            "add --data shakespeare.json.gz, or leave this workload out",
        )
    if wrong := [one for one in option or () if not one.partition("=")[0].isidentifier() or "=" not in one]:
        raise CompositionError(
            "SF-CLI-012", f"--option {wrong[0]}", "name=value", "write for example --option streams=2"
        )
    names = contestant or [name for name, one in CONTESTANTS.items() if one.usual]
    return Plan(
        wanted,
        tuple(dict.fromkeys(names)),
        repeats,
        rounds,
        (peers or folder()).expanduser().absolute(),
        (cache or folder() / "data").expanduser().absolute(),
        data.absolute() if data and "shakespeare" in wanted else None,
        quick,
        tuple(option or ()),
        limit,
        platform,
    )


def _absent(plan: Plan, named: bool) -> dict[str, str]:
    """Who cannot run here and how to change it, said once before the start."""
    from sumfold.bench.peers import CONTESTANTS, missing

    named_ = (CONTESTANTS[name] for name in plan.contestants)
    able = [one.name for one in named_ if set(one.workloads) & set(plan.workloads) and plan.platform in one.platforms]
    absent = dict(missing(able, plan.environments))
    for name, command in absent.items():
        sys.stderr.write(f"not installed: {name}. To get it: {command}\n")
    if absent and named:
        sys.stderr.write("\n")
    return absent


def _measure(plan: Plan, out: Path | None) -> list[dict[str, Any]]:
    """All runs; each is told when it ends, and with `out` kept at once."""
    from sumfold.bench.measure import machine, measured
    from sumfold.bench.table import page

    lines: list[dict[str, Any]] = []
    for line in measured(plan):
        lines.append(line)
        told = line.get("error") or f"{1e3 * sorted(line['seconds'])[len(line['seconds']) // 2]:.3g} ms a round"
        sys.stderr.write(f"{line['workload']} {line['contestant']} {line['repeat'] + 1}/{plan.repeats}: {told}\n")
        sys.stderr.flush()
        if out is not None:
            kept = "".join(json.dumps(one) + "\n" for one in lines)
            out.with_suffix(".jsonl").write_text(kept, "utf-8")
            command = shlex.join(["sumfold", *sys.argv[1:]])
            out.write_text(page(lines, machine(), command, plan.quick), "utf-8")
    return lines


def _show(found: dict[str, list[Row]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from sumfold.bench.workloads import WORKLOADS

    console = Console(highlight=False)
    for name, rows in found.items():
        table = Table(
            box=box.SIMPLE_HEAD, pad_edge=False, title=f"{name}: {WORKLOADS[name].title}", title_justify="left"
        )
        table.add_column("contestant")
        for head in ("round, ms", "first, s", "peak", "MiB", "final loss"):
            table.add_column(head, justify="right")
        table.add_column("")
        for row in rows:
            cells = (
                "" if row.round_ms is None else f"{row.round_ms:,.4g}",
                "" if row.first_s is None else f"{row.first_s:.2f}",
                "" if row.peak_share is None else f"{100 * row.peak_share:.0f} %",
                "" if row.memory_mib is None else f"{row.memory_mib:,.0f}",
                "" if row.loss is None else f"{row.loss:.6g}",
            )
            table.add_row(row.title, *cells, Text(row.note))
        console.print(table)
