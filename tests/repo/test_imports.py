"""Importing is cheap, and loads nothing that belongs to another floor. Each case is a fresh interpreter."""

import json
import subprocess
import sys
from functools import cache

HEAVY = {"jax", "jaxlib", "keras", "flax", "equinox", "optax", "matplotlib", "sklearn", "pandas", "torch"}
DATABASE_AND_WEB = {"sqlite3", "sqlalchemy", "starlette", "uvicorn", "httpx", "fastapi", "aiohttp"}
TERMINAL = {"typer", "rich"}


@cache
def loaded(program: str) -> frozenset[str]:
    """The modules in memory after a program, in an interpreter that has run nothing else."""
    code = f"{program}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", f"{program!r} wrote to the terminal: {done.stderr}"
    *printed, modules = done.stdout.splitlines()
    assert not printed, f"{program!r} printed {printed}"
    return frozenset(json.loads(modules))


def packages(program: str) -> set[str]:
    return {name.partition(".")[0] for name in loaded(program)}


def own(program: str) -> set[str]:
    return {name for name in loaded(program) if name.partition(".")[0] == "sumfold"}


def test_import_sumfold_loads_nothing_heavy() -> None:
    assert not packages("import sumfold") & (HEAVY | DATABASE_AND_WEB | TERMINAL)


def test_import_sumfold_loads_almost_nothing_of_its_own() -> None:
    # Counted rather than timed: a clock would measure the machine.
    assert own("import sumfold") <= {"sumfold", "sumfold.errors"}


def test_looking_around_loads_nothing_heavy() -> None:
    assert own("import sumfold; dir(sumfold), sumfold.__all__, sumfold.__doc__") <= {
        "sumfold",
        "sumfold.errors",
    }


def test_catching_an_error_loads_nothing_heavy() -> None:
    assert not packages("import sumfold as sf; sf.SumfoldError, sf.DataError") & HEAVY


def test_learning_loads_no_server_code() -> None:
    program = "import sumfold.learning"
    above = {"server", "client", "wire", "secagg", "cli", "dashboard", "tff", "testing"}
    assert not {name for name in own(program) if name.split(".")[1:2] and name.split(".")[1] in above}
    assert not packages(program) & (DATABASE_AND_WEB | {"typer"})


def test_learning_loads_no_model_library() -> None:
    optional = {"keras", "flax", "equinox", "matplotlib", "sklearn", "pandas", "torch", "tensorboardX"}
    assert not packages("import sumfold.learning, sumfold.models, sumfold.data") & optional
