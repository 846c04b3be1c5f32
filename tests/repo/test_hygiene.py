"""What must not be in any file: a machine's paths, a package index's address, notes to oneself."""

import re
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.tiny

# Absolute paths into a machine; an address such as https://host/home/ is not one.
MACHINE = re.compile(r"(?<![\w.:/~$}-])/(?:work|tmp|home|root|Users|private|mnt)/\w")
INDEX = re.compile(r"\bpypi\.(?:org|io)\b|pythonhosted\.org|--(?:extra-)?index-url|--find-links")
NOTES = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HACK)\b")


@pytest.fixture(scope="module")
def texts(root: Path) -> dict[str, str]:
    """Every text file that is, or would be, under version control."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=root, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    found = {}
    for name in filter(None, names):
        try:
            found[name] = (root / name).read_text("utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # a picture; a file that was deleted and not yet committed; a submodule
    return found


def lines(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:100]}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_path_of_a_machine(texts: dict[str, str]) -> None:
    assert lines(texts, MACHINE) == []


def test_no_address_of_a_package_index(texts: dict[str, str]) -> None:
    others = {name: text for name, text in texts.items() if name != "tests/repo/test_hygiene.py"}
    assert lines(others, INDEX) == []


def test_no_notes_to_oneself(texts: dict[str, str]) -> None:
    source = {name: text for name, text in texts.items() if name.startswith("src/")}
    assert lines(source, NOTES) == []
