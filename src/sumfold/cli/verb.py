"""How every verb ends: its exit code, its one line of error, and the JSON document that ``--json`` asks for."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeAlias

import typer

from sumfold.errors import CompositionError, SumfoldError

__all__ = ["DONE", "FAILED", "INTERRUPTED", "LOST", "WRONG_USE"]
__all__ += ["Json", "Outcome", "complain", "exit_code", "verb", "writable"]

DONE, FAILED, WRONG_USE, UNREACHABLE, LOST, INTERRUPTED = 0, 1, 2, 4, 75, 130
"""Exit codes; `LOST` is that of one of many processes that ends because another one is gone."""

_WRONG = {"SF-PROC-001", "SF-PROC-003", "SF-PROC-004", "SF-PROC-005"}
"""Errors about what was asked for, not about what came of it."""

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Write JSON to standard output, and nothing else there.")]


class Outcome(NamedTuple):
    """How a verb ended: what ``--json`` writes, and the exit code.

    Where there are `lines`, ``--json`` writes JSON lines: those, and the document as the last one.
    """

    document: Mapping[str, Any]
    code: int = DONE
    lines: Sequence[Mapping[str, Any]] | None = None


def verb(function: Callable[..., Outcome]) -> Callable[..., None]:
    """A function with an `as_json` option as a command.

    With ``--json`` all that it prints goes to standard error, a user's own ``print`` included, and its document
    alone to standard output. Sumfold's errors become one line; those under ``SF-CLI`` are wrong use.
    """

    @functools.wraps(function)
    def command(**options: Any) -> None:
        as_json = options["as_json"]
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            outcome = _ended(function, options)
        if as_json and outcome.code != LOST:  # who starts the processes tells what became of them
            indent = 1 if outcome.lines is None else None
            for document in (*(outcome.lines or ()), outcome.document):
                typer.echo(json.dumps(_finite(document), indent=indent, allow_nan=False, ensure_ascii=False))
        raise typer.Exit(outcome.code)

    return command


def writable(folder: Path) -> None:
    """Make a folder for results, if needed, before any work is done for them.

    Raises:
        CompositionError: when it cannot be made or written to (SF-CLI-001).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CompositionError(
            "SF-CLI-001", f"--out {folder}: {error.strerror}", "a folder to write to", "choose another --out"
        ) from error


def complain(text: str) -> None:
    """One red line on standard error."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(" ".join(text.split()), style="bold red"), soft_wrap=True)


def _ended(function: Callable[..., Outcome], options: Mapping[str, Any]) -> Outcome:
    try:
        return function(**options)
    except KeyboardInterrupt:
        complain("interrupted")
        return Outcome({"error": {"type": "KeyboardInterrupt", "message": "interrupted"}}, INTERRUPTED)
    except SumfoldError as error:
        message = ": ".join([*getattr(error, "__notes__", ()), str(error)])
        complain(message)
        document = {"type": type(error).__name__, "code": error.code, "message": message}
        return Outcome({"error": document}, exit_code(error))


def exit_code(error: BaseException) -> int:
    """What a command ends with."""
    if not isinstance(error, SumfoldError):
        return INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
    if error.code.startswith("SF-CLI-") or error.code in _WRONG:
        return WRONG_USE
    return {"SF-PROC-010": UNREACHABLE, "SF-PROC-021": LOST, "SF-PROC-022": LOST}.get(error.code, FAILED)


def _finite(value: Any) -> Any:
    """The same value with null for the numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
