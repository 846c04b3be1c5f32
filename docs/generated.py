"""The parts of the reference that the code itself writes, as Markdown, each time the pages are built.

A page asks for one with a line of its own: ``<!-- generated: error_catalog -->``.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import runpy
import types
from pathlib import Path
from typing import Any

import sumfold

REFERENCE = Path(__file__).parent / "reference"
EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH = 90


def public_names() -> str:
    """Every name of `sumfold.__all__`: a table with links, then those that have no other page."""
    homes: dict[int, str] = {}
    for module in _documented_modules():
        for name, value in _exports(importlib.import_module(module)).items():
            homes.setdefault(id(value), f"{module}.{name}")

    rows, details = [], []
    for name, value in _exports(sumfold).items():
        if isinstance(value, types.ModuleType):
            link = f":py:mod:`sf.{name} <{value.__name__}>`"
        else:
            link = f":py:obj:`sf.{name} <{homes.get(id(value), f'sumfold.{name}')}>`"
            if id(value) not in homes:
                details.append(f".. {_directive(value)}:: {name}")
        rows += [f"   * - {link}", f"     - {_first_line(value)}"]
    table = [".. list-table::", "   :widths: 30 70", "", *rows] if rows else []
    return "\n".join(["```{eval-rst}", ".. py:module:: sumfold", "", *table, "", *details, "```"])


def error_catalog() -> str:
    """The table of every error code, with cause and remedy."""
    for module in pkgutil.walk_packages(sumfold.__path__, "sumfold."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # a module may add its own codes
    from sumfold.errors import CATALOG

    rows = [f"| `{code}` | {_cell(cause)} | {_cell(remedy)} |" for code, (cause, remedy) in sorted(CATALOG.items())]
    return "\n".join(["| code | cause | remedy |", "|---|---|---|", *rows])


def command_line() -> str:
    """What ``--help`` prints for the program and for each verb."""
    try:
        main = importlib.import_module("sumfold.cli.main")
    except ModuleNotFoundError as error:
        if error.name != "sumfold.cli.main":
            raise
        return ""
    # Set before rich and typer look, so that the pages are the same on every machine.
    os.environ |= {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "TERM": "dumb", "NO_COLOR": "1"}
    import typer
    import typer.testing

    verbs = sorted(getattr(typer.main.get_command(main.app), "commands", {}))
    sections = []
    for words in [[], *([verb] for verb in verbs)]:
        shown = typer.testing.CliRunner().invoke(main.app, [*words, "--help"], prog_name="sumfold")
        if shown.exit_code != 0:
            raise RuntimeError(f"sumfold {' '.join(words)} --help failed: {shown.output}")
        text = "\n".join(line.rstrip() for line in shown.output.strip("\n").splitlines())
        sections += [f"## {' '.join(['sumfold', *words])}", "", "```text", text, "```", ""]
    return "\n".join(sections)


def explained() -> str:
    """What ``process.explain()`` prints for the process of ``examples/fed_avg.py``."""
    import optax

    namespace = runpy.run_path(str(EXAMPLES / "fed_avg.py"))
    metrics = {"auc": sumfold.metrics.auc, "accuracy": sumfold.metrics.accuracy}
    functions = (namespace["init"], namespace["predict"], namespace["loss"])
    model = sumfold.models.from_functions(*functions, metrics=metrics)
    process = sumfold.learning.fed_avg(model, optax.sgd(0.05))
    train, _ = sumfold.data.heart_disease()
    return f"```text\n{process.explain(train)}\n```"


def server_optimizers() -> str:
    """The table of three rounds of one weight, by Algorithm 2 of Reddi et al. 2021 and by optax."""
    import jax.numpy as jnp
    import optax

    from sumfold import optimizers

    both = {"b1": 0.9, "b2": 0.99}
    columns = {
        "`fed_adam`": optimizers.fed_adam(0.1, **both, tau=1e-3),
        "`optax.adam`": optax.adam(0.1, **both, eps=1e-3),
        "`fed_yogi`": optimizers.fed_yogi(0.1, **both, tau=1e-3),
        "`optax.yogi`": optax.yogi(0.1, **both, eps=1e-3),
        "`fed_adagrad`": optimizers.fed_adagrad(0.1, tau=1e-3),
        "`optax.adagrad`": optax.adagrad(0.1),
    }
    lines = [["round", *columns], ["---", *("---:" for _ in columns)]]
    weights = dict.fromkeys(columns, jnp.float32(0))
    states = {name: optimizer.init(weights[name]) for name, optimizer in columns.items()}
    for number, change in enumerate((1.0, 0.5, -0.25)):
        for name, optimizer in columns.items():
            update, states[name] = optimizer.update(jnp.float32(-change), states[name], weights[name])
            weights[name] = weights[name] + update
        lines.append([str(number), *(f"{float(weight):.4f}" for weight in weights.values())])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tff_offered() -> str:
    """The table of TFF's names that `sumfold.tff` has, and what each is."""
    from sumfold.tff.names import OFFERED

    homes = {path: f"sf.{path.partition(':')[2]}" for path in OFFERED.values() if path.startswith("sumfold:")}
    rows = [
        f"   * - ``{name}``\n     - :py:obj:`{homes.get(path, name)} <{_home(path)}>`"
        for name, path in sorted(OFFERED.items())
        if ":" in path
    ]
    return "\n".join(["```{eval-rst}", ".. list-table::", "   :widths: 60 40", "", *rows, "```"])


def tff_refused() -> str:
    """The table of TFF's names that `sumfold.tff` answers with an error, and the Sumfold way of each."""
    from sumfold.tff.names import REFUSED

    rows = [f"| `{name}` | {_cell(way)} |" for name, way in sorted(REFUSED.items())]
    return "\n".join(["| name | instead |", "|---|---|", *rows])


def _home(path: str) -> str:
    """Where the object behind a name of TFF's is documented."""
    module, _, attribute = path.partition(":")
    value = getattr(importlib.import_module(module), attribute)
    return f"{getattr(value, '__module__', module)}.{attribute}" if module == "sumfold" else f"{module}.{attribute}"


def _documented_modules() -> list[str]:
    """The modules that have a page of their own."""
    pages = (page.read_text("utf-8") for page in sorted(REFERENCE.glob("*.md")))
    return [name for page in pages for name in re.findall(r"automodule:: ([\w.]+)", page)]


def _exports(module: types.ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in getattr(module, "__all__", ())}


def _directive(value: object) -> str:
    if isinstance(value, type):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if isinstance(value, types.FunctionType) or hasattr(value, "__wrapped__") else "autodata"


def _first_line(value: object) -> str:
    own = isinstance(value, (type, types.ModuleType, types.FunctionType)) or hasattr(value, "__wrapped__")
    paragraph = (value.__doc__ or "").strip().split("\n\n")[0] if own else ""
    return " ".join(paragraph.split())


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
