"""The documentation is run: every Python block of the README, the tutorial, how-to and explanation pages.

The blocks of one page share one namespace, from top to bottom, in an empty working folder. A block fenced as
``python notest`` is shown and not run.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs/tutorial").glob("*.md")),
    *sorted((ROOT / "docs/how-to").glob("*.md")),
    *sorted((ROOT / "docs/explanation").glob("*.md")),
]
BLOCK = re.compile(r"^(?P<fence>```+)python[ \t]*\n(?P<code>.*?)^(?P=fence)[ \t]*$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> list[tuple[int, str]]:
    """The blocks to run: the line where each begins, and its code."""
    return [(text.count("\n", 0, match.start("code")) + 1, match["code"]) for match in BLOCK.finditer(text)]


@pytest.mark.jax_defaults
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' get_weights()
@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page.read_text("utf-8"))], ids=lambda page: page.stem
)
def test_every_block_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(re.search(r"^import torch$", code, re.MULTILINE) for _, code in blocks(page.read_text("utf-8"))):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for line, code in blocks(page.read_text("utf-8")):
        # Empty lines in front, so that a traceback points at the line of the page.
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), namespace)


@pytest.mark.tiny
def test_blocks_are_found() -> None:
    text = "a\n```python\nx = 1\n```\n```python notest\ny\n```\n```bash\nls\n```\n"
    text += "````python\nz = '''\n```\n'''\n````\n"
    assert blocks(text) == [(3, "x = 1\n"), (12, "z = '''\n```\n'''\n")]


@pytest.mark.tiny
def test_every_public_module_has_a_reference_page() -> None:
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    listed = set(re.findall(r"automodule:: ([\w.]+)", pages))
    front = {"core", "aggregators", "models", "models.metrics", "data", "data.partition", "learning"}
    front |= {"analytics", "simulation", "testing", "errors"}
    assert {f"sumfold.{name}" for name in front} <= listed
