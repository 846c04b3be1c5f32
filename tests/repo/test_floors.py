"""A module imports only from lower floors, from its own package, or from one to the left on its own floor."""

import ast
from collections.abc import Iterator

import pytest

pytestmark = pytest.mark.tiny

FLOORS = [
    ("errors", "tree", "keys", "aligned"),
    ("core",),
    ("aggregators", "privacy", "models", "data"),
    ("simulation",),
    ("learning", "language", "analytics"),
    ("wire", "secagg"),
    ("client", "server"),
    ("bench", "cli", "dashboard", "tff"),
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
RANK = {name: (floor, place) for floor, names in enumerate(FLOORS) for place, name in enumerate(names)}
FRONT_DOORS = {"__init__", "__main__", "testing"}  # they may import everything, and nothing imports them
TOP = len(FLOORS) - 1  # except here: what a user types, a command may type

EFFECTS = {"asyncio", "sqlite3", "starlette", "uvicorn", "httpx", "sqlalchemy"}
FIRST_WITH_EFFECTS = FLOOR["wire"]
ALLOWED = {("sumfold/data/sqlite.py", "sqlite3")}


def imports(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Every name that a file imports, with its line: at the top, in functions, under ``TYPE_CHECKING``."""
    package = path.split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            origin = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def violations(path: str, text: str) -> list[str]:
    """The imports of one file that point up or sideways, and effects where none may be."""
    own = path.split("/")[1].removesuffix(".py")
    if own in FRONT_DOORS:
        return []
    if own not in FLOOR:
        return [f"{path}: {own} is on no floor"]
    found = []
    for line, name in imports(path, text):
        package, target = [*name.split("."), ""][:2]
        if package == "sumfold" and target != own:
            # What is on no floor is a name of the front door, which lies above all of them.
            allowed = RANK[target] < RANK[own] if target in FLOOR else FLOOR[own] == TOP
        else:
            allowed = package not in EFFECTS or FLOOR[own] >= FIRST_WITH_EFFECTS or (path, package) in ALLOWED
        if not allowed:
            found.append(f"{path}:{line}: {own} (floor {FLOOR[own]}) imports {name}")
    return found


def test_every_import_points_down(sources: dict[str, str]) -> None:
    found = [line for path, text in sources.items() for line in violations(path, text)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "text", "count"),
    [
        ("sumfold/core/round.py", "from sumfold import errors, tree\nfrom sumfold.core import stage", 0),
        (
            "sumfold/core/round.py",
            "from . import stage\nfrom .. import keys\nfrom ..errors import DataError",
            0,
        ),
        ("sumfold/core/round.py", "from ..learning import fed_avg", 1),
        ("sumfold/core/round.py", "from .. import learning, data", 2),
        ("sumfold/core/round.py", "import sumfold", 1),
        ("sumfold/core/round.py", "from sumfold import train", 1),
        (
            "sumfold/core/round.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import sumfold.models",
            1,
        ),
        ("sumfold/models/__init__.py", "def f():\n    from sumfold.data import digits", 1),
        ("sumfold/tree.py", "import sumfold.keys", 1),
        ("sumfold/analytics/moments.py", "from sumfold.learning.process import Process", 0),
        ("sumfold/learning/process.py", "from sumfold.analytics import moments", 1),
        ("sumfold/data/federation.py", "import sqlite3", 1),
        ("sumfold/data/sqlite.py", "import sqlite3", 0),
        ("sumfold/simulation/engine.py", "from asyncio import Queue\nimport httpx, numpy", 2),
        ("sumfold/server/app.py", "import asyncio, sqlalchemy.orm\nfrom sumfold.wire import codec", 0),
        ("sumfold/server/app.py", "from sumfold.client import agent", 0),
        ("sumfold/client/agent.py", "from sumfold.server import app", 1),
        ("sumfold/cli/demo.py", "import sumfold as sf\nfrom sumfold import train\nimport sumfold.server", 0),
        ("sumfold/cli/demo.py", "from sumfold import tff", 1),
        ("sumfold/testing.py", "import sumfold.server, asyncio", 0),
        ("sumfold/helpers.py", "import os", 1),
    ],
)
def test_the_rule_itself(path: str, text: str, count: int) -> None:
    assert len(violations(path, text)) == count
