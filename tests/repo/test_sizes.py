"""No file grows past what can be read in one sitting."""

import pytest

pytestmark = pytest.mark.tiny

LINES = 600
ALLOWED: dict[str, int] = {}  # path: its own limit, with the reason beside it


def test_no_source_file_is_long(sources: dict[str, str]) -> None:
    lengths = {path: len(text.splitlines()) for path, text in sources.items()}
    long = {path: lines for path, lines in lengths.items() if lines > ALLOWED.get(path, LINES)}
    assert not long, f"too long; split by what it does: {long}"


def test_the_allow_list_holds_only_what_needs_it(sources: dict[str, str]) -> None:
    idle = [path for path in ALLOWED if len(sources.get(path, "").splitlines()) <= LINES]
    assert not idle, f"no longer needed in ALLOWED: {idle}"
