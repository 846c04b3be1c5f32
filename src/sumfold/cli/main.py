"""The program ``sumfold``: its verbs, put together. What a verb needs is imported when it runs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sumfold import __version__
from sumfold.cli.bench import bench
from sumfold.cli.demo import demo
from sumfold.cli.doctor import doctor
from sumfold.cli.simulate import simulate

__all__ = ["app", "main"]

app = typer.Typer(
    name="sumfold",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"sumfold {__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def sumfold(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Federated learning: written once, simulated fast, exported for real clients.

    Start with: sumfold demo
    """
    del version


for _verb in (demo, simulate, bench, doctor):
    app.command()(_verb)


def main() -> None:
    """Run the command line on this process's arguments."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without ± or ✓ shows something else instead
    app(prog_name="sumfold")
