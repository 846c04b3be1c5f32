"""``sumfold simulate``: train what a file of the user's own builds."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import inspect
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from sumfold.cli.many import Many, distributed, failed, member, start, taking_part
from sumfold.cli.verb import DONE, FAILED, INTERRUPTED, Json, Outcome, complain, verb, writable
from sumfold.errors import CompositionError, MissingExtraError, SumfoldError

if TYPE_CHECKING:
    from sumfold.learning.history import History
    from sumfold.learning.process import Process

__all__ = ["simulate"]


class Job(NamedTuple):
    """What `build` returned."""

    process: Process
    train: Any
    test: Any = None


@verb
def simulate(
    job: Annotated[str, typer.Argument(metavar="JOB.py[:build]", help="A file, and the function to call.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="An argument of build, a Python literal; may be repeated."),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds, those of earlier starts included.")] = 10,
    clients_per_round: Annotated[int | None, typer.Option(min=1, help="Drawn each round; all, if left out.")] = None,
    seed: Annotated[int, typer.Option(help="Everything random is a function of it.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Save after each round, and go on from there when started again.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for history.json, curve.png and weights.safetensors.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Share the work among so many processes; see also --launcher.")
    ] = None,
    launcher: Annotated[
        str, typer.Option(metavar="NAME", help="Who starts the processes: local, slurm, mpi or ray.")
    ] = "local",
    restarts: Annotated[
        int | None,
        typer.Option(min=0, help="How often to start again when a process is lost; 3 with --checkpoint, else 0."),
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where process 0 is, if no launcher says it.")
    ] = None,
    rank: Annotated[int | None, typer.Option(min=0, help="Which process this is, if no launcher says it.")] = None,
    deadline: Annotated[float, typer.Option(min=0.001, help="Seconds that processes wait for each other.")] = 600.0,
    as_json: Json = False,
) -> Outcome:
    """Train what the function build of a file returns: (process, train) or (process, train, test).

    Ctrl-C stops after the round; what was trained is kept.

    Example: sumfold simulate heart.py --set learning_rate=0.1 --rounds 50 --out runs/heart
    """
    path, name = _target(job)
    values = _values(settings or ())
    if out is not None:
        writable(out)
    many = Many(processes, launcher, restarts, coordinator, rank, deadline)
    if not member(many) and (launcher != "local" or (processes or 1) > 1):
        return start(many, checkpoint, as_json)
    began = time.perf_counter()
    with taking_part(many) if member(many) else contextlib.nullcontext(0) as number:
        try:
            build = _function(path, name)
            _check_settings(build, values)
            made = _job(build(**values), name)
            if member(many):
                made = made._replace(process=distributed(made.process, deadline))
            history = _train(made, rounds, clients_per_round, seed, checkpoint, progress=not as_json and not number)
        except SumfoldError as error:
            if line := _line(error.__traceback__, path):
                error.add_note(f"{path.name}, line {line}")
            _show_own(error.__cause__, path)
            raise
        except (Exception, SystemExit) as error:
            failed(error)
            return _crashed(error, path)
    if number:
        return Outcome({}, INTERRUPTED if history.stopped == "interrupted" else DONE)
    files = _write(made.process, history, out) if out is not None else []
    _show(history, files, checkpoint)
    document = _document(history) | {"files": files, "seconds": round(time.perf_counter() - began, 3)}
    return Outcome(document, INTERRUPTED if history.stopped == "interrupted" else DONE)


# -- what the user typed


def _target(job: str) -> tuple[Path, str]:
    """The file and the function's name of ``JOB.py[:build]``."""
    before, _, after = job.rpartition(":")
    path, name = (before, after) if before and after.isidentifier() else (job, "build")
    if not Path(path).is_file():
        raise CompositionError(
            "SF-CLI-002", f"no file {path!r}", "a Python file with a function build", "check the path"
        )
    return Path(path).resolve(), name


def _values(settings: Iterable[str]) -> dict[str, Any]:
    """``name=value`` as a dict; what is no Python literal is a string."""
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.isidentifier():
            raise CompositionError(
                "SF-CLI-003", f"--set {setting!r}", "name=value", "write for example --set learning_rate=0.1"
            )
        values[name] = _value(text)
    return values


def _value(text: str) -> Any:
    if text.lower() in {"true", "false"}:
        return text.lower() == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check_settings(build: Callable[..., Any], values: Mapping[str, Any]) -> None:
    parameters = inspect.signature(build).parameters.values()
    named = {p.name: p for p in parameters if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}}
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    offered = ", ".join(str(p) for p in named.values()) or "none"
    if unknown := sorted(set(values) - set(named)) if not takes_all else []:
        raise CompositionError(
            "SF-CLI-004",
            f"--set {unknown[0]}",
            f"a parameter of {build.__name__}: {offered}",
            "check the spelling, or add the parameter",
        )
    if missing := [p.name for p in named.values() if p.default is p.empty and p.name not in values]:
        raise CompositionError(
            "SF-CLI-005",
            f"no value for {', '.join(missing)}",
            f"one for every parameter of {build.__name__} that has no default: {offered}",
            f"add --set {missing[0]}=…",
        )


# -- the user's file


def _function(path: Path, name: str) -> Callable[..., Any]:
    """The function of that name in the file, which is run as a module of its own."""
    spec = importlib.util.spec_from_file_location(f"_job_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise CompositionError("SF-CLI-006", f"{path.name}", "a Python file", "give it a name that ends in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up there
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        functions = {key: value for key, value in vars(module).items() if inspect.isfunction(value)}
        defined = sorted(key for key, value in functions.items() if value.__module__ == spec.name)
        raise CompositionError(
            "SF-CLI-007",
            f"{path.name} has no function {name!r}",
            "a function that returns (process, train) or (process, train, test)",
            f"name one of {defined} as {path.name}:NAME" if defined else f"define {name}() in {path.name}",
        )
    return function  # type: ignore[no-any-return]


def _job(built: Any, name: str) -> Job:
    from sumfold.learning.process import Process

    if not isinstance(built, tuple) or len(built) not in {2, 3} or not isinstance(built[0], Process):
        kinds = ", ".join(type(part).__name__ for part in built) if isinstance(built, tuple) else None
        raise CompositionError(
            "SF-CLI-008",
            f"{name} returned {f'({kinds})' if kinds is not None else f'a value of type {type(built).__name__}'}",
            "(process, train) or (process, train, test), with a process such as sf.learning.fed_avg(…)",
            f"end {name} with: return process, train, test",
        )
    return Job(*built)


def _train(
    job: Job, rounds: int, clients_per_round: int | None, seed: int, checkpoint: Path | None, progress: bool
) -> History:
    import sumfold as sf

    return sf.train(
        job.process,
        job.train,
        rounds=rounds,
        clients_per_round=clients_per_round,
        seed=seed,
        evaluate=job.test,
        checkpoint=checkpoint,
        progress=progress,
    )


def _crashed(error: BaseException, path: Path) -> Outcome:
    """The traceback of the user's own code, from its first line in the file on."""
    first = _own(error, path)
    inside = isinstance(error, SyntaxError) or first is not None
    _write_trace(error, first if inside else error.__traceback__)
    complain(f"{path.name} failed: {type(error).__name__}: {error}")
    return Outcome({"error": {"type": type(error).__name__, "message": str(error)}}, FAILED)


def _show_own(error: BaseException | None, path: Path) -> None:
    """The traceback of what made Sumfold refuse the job, if it came out of the user's file."""
    first = None if error is None else _own(error, path)
    if error is not None and first is not None:
        _write_trace(error, first)


def _own(error: BaseException, path: Path) -> TracebackType | None:
    """An error's traceback from its first line in the user's file on; None for one that did not come through it."""
    first = error.__traceback__
    while first is not None and first.tb_frame.f_code.co_filename != str(path):
        first = first.tb_next
    return first


def _write_trace(error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write("".join(traceback.format_exception(type(error), error, trace)))


def _line(trace: TracebackType | None, path: Path) -> int | None:
    """The last line of the user's file that an error came through."""
    lines = [number for frame, number in traceback.walk_tb(trace) if frame.f_code.co_filename == str(path)]
    return lines[-1] if lines else None


# -- what came out


def _write(process: Process, history: History, out: Path) -> list[str]:
    """weights.safetensors, history.json and curve.png; the paths written."""
    import sumfold as sf

    files = []
    if process.model is not None:
        sf.save(out / "weights.safetensors", process.get_model_weights(history.state))
        files.append("weights.safetensors")
    history.save(out / "history.json")
    files.append("history.json")
    try:
        history.plot().savefig(out / "curve.png", dpi=140)
        files.append("curve.png")
    except MissingExtraError as error:
        complain(f"no curve.png: {error}")
    return [str(out / file) for file in files]


def _document(history: History) -> dict[str, Any]:
    return {
        "rounds": int(history.state.round),
        "stopped": history.stopped,
        "metrics": history.metrics[-1] if history.metrics else None,
        "evaluation": history.evaluations[-1] if history.evaluations else None,
    }


def _show(history: History, files: list[str], checkpoint: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from sumfold.learning.history import headline, scalars

    trained = headline(history.metrics[-1]) if history.metrics else {}
    tested = scalars(history.evaluations[-1]) if history.evaluations else {}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"after {history.state.round} rounds")
    table.add_column("training", justify="right")
    if tested:
        table.add_column("test", justify="right")
    for name in dict.fromkeys([*trained, *tested]):
        cells = [f"{part[name]:.4f}" if name in part else "" for part in ([trained, tested] if tested else [trained])]
        table.add_row(name, *cells)
    console = Console(highlight=False)
    console.print(table)
    if history.stopped:
        onward = "; the same command goes on from there" if checkpoint else ""
        console.print(f"{history.stopped.capitalize()} after {history.state.round} rounds{onward}.", markup=False)
    if files:
        console.print(", ".join(files), markup=False, soft_wrap=True)
