"""What the tests of the repository itself look at: its folders, its sources, its public modules."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """Every module of Sumfold with its text, by path: ``{"sumfold/core/round.py": …}``."""
    files = sorted((ROOT / "src").rglob("*.py"))
    return {path.relative_to(ROOT / "src").as_posix(): path.read_text("utf-8") for path in files}
