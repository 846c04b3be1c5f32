"""The program itself: help, version, quick start, and how verbs end."""

import json
import subprocess
import sys

import pytest

import sumfold as sf
from sumfold.cli.verb import Outcome, verb

from .conftest import program

VERBS = ("demo", "simulate", "bench", "doctor")


def test_help_lists_the_verbs(sumfold) -> None:
    result = sumfold("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in VERBS)


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_shows_an_example_and_offers_json(sumfold, name) -> None:
    result = sumfold(name, "--help")
    assert result.exit_code == 0
    assert f"Example: sumfold {name}" in result.stdout
    assert "--json" in result.stdout


def test_version(sumfold) -> None:
    assert sumfold("--version").stdout.strip() == f"sumfold {sf.__version__}"


def test_an_unknown_verb_is_wrong_use(sumfold) -> None:
    assert sumfold("fly").exit_code == 2
    assert sumfold().exit_code == 2


def test_help_loads_nothing_heavy() -> None:
    code = "import sumfold.cli.main, sys; print({'jax', 'numpy', 'matplotlib', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_python_m_sumfold(tmp_path) -> None:
    running = program("doctor", "--json", folder=tmp_path)
    printed, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert json.loads(printed)["ok"] is True


def test_a_terminal_without_these_letters(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    running = program("doctor", folder=tmp_path)
    _, complaint = running.communicate(timeout=60)
    assert running.returncode == 0, complaint


def test_numbers_that_json_has_not_become_null(capsys) -> None:
    @verb
    def measured(as_json: bool = False) -> Outcome:
        del as_json
        return Outcome({"loss": float("nan"), "all": [1.0, float("inf")]})

    with pytest.raises(Exception) as ended:  # noqa: PT011
        measured(as_json=True)
    assert ended.value.exit_code == 0
    assert json.loads(capsys.readouterr().out) == {"loss": None, "all": [1.0, None]}
