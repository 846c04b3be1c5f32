"""Sphinx configuration: hand-written pages in MyST Markdown, reference pages made from the code."""

from __future__ import annotations

import importlib.metadata
import os
import re
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("SUMFOLD_COMPILATION_CACHE", "off")  # a build writes nothing outside of its folder
sys.path.insert(0, str(Path(__file__).parent))

import generated

project = "Sumfold"
author = "The Sumfold authors"
copyright = "2026, The Sumfold authors"
release = version = importlib.metadata.version("sumfold")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
# `name` in a docstring links to the name where there is a page for it, and is code where there is none.
default_role = "py:obj"
nitpicky = False
suppress_warnings = [
    "ref.python",  # a short name such as `State` that more than one module has
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "no-value": True, "show-inheritance": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a record are described once, in its docstring

html_theme = "furo"
html_title = "Sumfold"
html_show_sphinx = False
html_copy_source = False


def _fill(app: Any, _page: str, source: list[str]) -> None:
    """Replace each line ``<!-- generated: NAME -->`` by what `generated.NAME()` writes."""

    def section(match: re.Match[str]) -> str:
        app.env.note_dependency(generated.__file__)
        return str(getattr(generated, match[1])())

    source[0] = re.sub(r"^<!-- generated: (\w+) -->$", section, source[0], flags=re.MULTILINE)
    if re.search(r"^<!-- (printed|shown: .*) -->$", source[0], re.MULTILINE):
        app.env.note_dependency(generated.__file__)
        source[0] = generated.executed(source[0])


def _keep_drawings(_app: Any, what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """In a module's docstring an indented block is a drawing or a table: show it as it was typed."""
    if what != "module":
        return
    kept: list[str] = []
    for line in lines:
        before = kept[-1] if kept else ""
        text = next((earlier for earlier in reversed(kept) if earlier.strip()), "")
        starts = line.startswith("    ") and not before.strip() and text[:1].strip() and text[0] not in "-*."
        if starts and not text.rstrip().endswith("::"):
            kept += ["::", ""]
        kept.append(line)
    lines[:] = kept


def _one_each(_app: Any, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Two fields that a docstring describes in one entry, ``low, high: …``, get an entry each."""
    entry = re.compile(r":(ivar|param) (\w+(?:, \w+)+): ")
    for at in range(len(lines) - 1, -1, -1):
        if match := entry.match(lines[at]):
            text = lines[at][match.end() :]
            lines[at : at + 1] = [f":{match[1]} {field}: {text}" for field in match[2].split(", ")]


def _skip_aliases(_app: Any, _what: str, _name: str, member: Any, _skip: bool, _options: Any) -> bool | None:
    """The fields of a named tuple are described in its docstring; Python's "Alias for field number" says nothing."""
    return True if str(getattr(member, "__doc__", "")).startswith("Alias for field number") else None


def _short_defaults(
    _app: Any, _what: str, _name: str, _object: Any, _options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    """A default that only Python can print, ``<function …>``, is shown as dots, so that the rest can be read."""
    return signature and re.sub(r"= <[^,)]*>(?=[,)])", "= ...", signature), returns


def setup(app: Any) -> None:
    """Connect the hooks above."""
    app.connect("autodoc-process-docstring", _one_each, priority=900)  # after napoleon
    app.connect("autodoc-skip-member", _skip_aliases)
    app.connect("autodoc-process-signature", _short_defaults)
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _keep_drawings)
