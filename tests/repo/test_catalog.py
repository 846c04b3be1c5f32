"""Every code raised is catalogued, every catalogued code is raised, every class is documented."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator

import pytest

import sumfold
from sumfold import errors

pytestmark = pytest.mark.tiny

CODE = re.compile(r"SF-[A-Z]+-\d{3}")


def raised(source: str) -> Iterator[str]:
    """The codes that a file passes on: constants that are neither a key of a dict nor an index."""
    tree = ast.parse(source)
    keys = {id(key) for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    indices = {id(node.slice) for node in ast.walk(tree) if isinstance(node, ast.Subscript)}
    for node in ast.walk(tree):
        text = node.value if isinstance(node, ast.Constant) and id(node) not in keys | indices else None
        if isinstance(text, str) and CODE.fullmatch(text):
            yield text


@pytest.fixture(scope="module")
def catalog() -> dict[str, errors.Entry]:
    for module in pkgutil.walk_packages(sumfold.__path__, "sumfold."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)  # a module may add its own codes
    return errors.CATALOG


def test_every_code_is_catalogued_and_raised(sources: dict[str, str], catalog: dict[str, errors.Entry]) -> None:
    used = {code: path for path, text in sources.items() for code in raised(text)}
    unknown = {code: path for code, path in used.items() if code not in catalog}
    assert not unknown, f"not in CATALOG: {unknown}"
    unused = sorted(set(catalog) - set(used))
    assert not unused, f"in CATALOG, but raised nowhere: {unused}"


def test_every_entry_says_cause_and_remedy(catalog: dict[str, errors.Entry]) -> None:
    assert [code for code in catalog if not CODE.fullmatch(code)] == []
    assert [code for code, entry in catalog.items() if not (entry.cause.strip() and entry.remedy.strip())] == []


def test_every_class_is_exported_drawn_and_documented() -> None:
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    tree = [cls for cls in classes if issubclass(cls, errors.SumfoldError)]
    for cls in tree:
        assert cls.__name__ in errors.__all__
        assert cls.__name__ in (errors.__doc__ or ""), f"{cls.__name__} is not drawn at the top of errors.py"
        assert ">>>" in (cls.__doc__ or ""), f"{cls.__name__} has no example"


def test_no_error_class_hides_elsewhere(catalog: dict[str, errors.Entry]) -> None:
    pending, elsewhere = [errors.SumfoldError], []
    while pending:
        below = pending.pop().__subclasses__()
        pending += below
        elsewhere += [
            cls for cls in below if cls.__module__.startswith("sumfold") and cls.__module__ != errors.__name__
        ]
    assert not elsewhere, f"defined outside errors.py: {elsewhere}"
