"""The parts of the reference that the code itself writes, as Markdown, each time the pages are built.

A page asks for one with a line of its own: ``<!-- generated: error_catalog -->``. A page with a line
``<!-- printed -->`` is run, see `executed`.
"""

from __future__ import annotations

import base64
import contextlib
import html
import importlib
import importlib.util
import io
import logging
import os
import pkgutil
import re
import runpy
import tempfile
import types
from pathlib import Path
from typing import Any

import sumfold

REFERENCE = Path(__file__).parent / "reference"
EXAMPLES = Path(__file__).parents[1] / "examples"
WIDTH = 90
PIECE = re.compile(
    r"^(?P<fence>```+)python[ \t]*\n(?P<code>.*?)^(?P=fence)[ \t]*$"
    r"|^<!-- (?:printed|shown: (?P<figure>\w+), (?P<what>[^\n]*)) -->$",
    re.MULTILINE | re.DOTALL,
)


def executed(page: str) -> str:
    """Run a page's Python blocks from top to bottom, in an empty folder, and show what they made.

    A line ``<!-- printed -->`` becomes what the block before it printed, and ``<!-- shown: NAME, what it shows -->``
    the matplotlib figure of that name. Where PyTorch is missing, a page that imports it is shown as it was typed.
    """
    if re.search("^import torch$", page, re.MULTILINE) and importlib.util.find_spec("torch") is None:
        return page
    namespace: dict[str, Any] = {"__name__": "__main__"}
    written = io.StringIO()

    def piece(match: re.Match[str]) -> str:
        if match["code"] is not None:
            written.seek(0)
            written.truncate()
            line = page.count("\n", 0, match.start("code"))
            exec(compile("\n" * line + match["code"], "page", "exec"), namespace)
            return match[0]
        if match["figure"] is None:
            return f"```text\n{written.getvalue().strip()}\n```"
        image = io.BytesIO()
        namespace[match["figure"]].savefig(image, format="png", dpi=150)
        data = base64.b64encode(image.getvalue()).decode()
        return f'<img alt="{html.escape(match["what"])}" src="data:image/png;base64,{data}" style="max-width: 44rem"/>'

    log = logging.getLogger("sumfold")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what a page provokes is no news to whoever builds it
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(written):
            return PIECE.sub(piece, page)
    finally:
        log.setLevel(level)


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


def drift_costs() -> str:
    """The table of bytes that a round of each algorithm sends to a client and back, and leaves with it."""
    import jax.numpy as jnp
    import optax

    model = sumfold.models.from_functions(
        init=lambda key: jnp.zeros(100), predict=lambda w, x: x @ w, loss=lambda outputs, y: (outputs - y) ** 2
    )
    learning, sgd, momentum = sumfold.learning, optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)
    processes = {
        "fed_avg": learning.fed_avg(model, sgd),
        "fed_prox": learning.fed_prox(model, sgd, mu=0.1),
        "fed_nova": learning.fed_nova(model, sgd),
        "scaffold": learning.scaffold(model, sgd),
        "fed_dyn": learning.fed_dyn(model, sgd, alpha=0.1),
        "mime_lite": learning.mime_lite(model, momentum),
        "mime": learning.mime(model, momentum),
    }
    rows = ["| | exchanges | to a client | from a client | stays with it |", "|---|---:|---:|---:|---:|"]
    for name, process in processes.items():
        text = process.explain([(jnp.ones((4, 100)), jnp.ones(4))])
        sent, left = (
            [int(number.replace(",", "")) for number in re.findall(rf"^{title}.*: ([\d,]+) B$", text, re.MULTILINE)]
            for title in ("Sent to every client", "Leaves each client")
        )
        kept = re.findall(r"^Stays with the client, never sent\n((?: .*\n)*)", text, re.MULTILINE)
        stays = sum(int(number.replace(",", "")) for number in re.findall(r"([\d,]+) B$", "".join(kept), re.MULTILINE))
        rows.append(f"| `{name}` | {len(sent)} | {sum(sent):,} | {sum(left):,} | {stays:,} |")
    return "\n".join(rows)


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
