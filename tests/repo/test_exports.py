"""The public surface is what ``__all__`` says: it resolves, is seen, and shows how it is used."""

import importlib
import inspect
import types
from pathlib import Path
from typing import Any

import pytest

import sumfold

PUBLIC = [
    "sumfold",
    "sumfold.aggregators",
    "sumfold.analytics",
    "sumfold.core",
    "sumfold.data",
    "sumfold.data.partition",
    "sumfold.errors",
    "sumfold.learning",
    "sumfold.learning.sampling",
    "sumfold.learning.server_optimizers",
    "sumfold.models",
    "sumfold.models.metrics",
    "sumfold.simulation",
    "sumfold.testing",
    "sumfold.tff",
]

# What the contract promises at the top; the errors have a test of their own.
PROMISED = {
    *("Batching", "Loopback", "Simulation", "callbacks", "data", "learning"),
    *("compare", "load", "metrics", "models", "save", "train"),
}


def exports(module: types.ModuleType) -> dict[str, Any]:
    return {name: getattr(module, name) for name in module.__all__}


def own_documentation(value: object) -> str | None:
    """The docstring of a class or function of Sumfold; None for values, aliases and names of others."""
    routine = inspect.isroutine(value) or hasattr(value, "__wrapped__")
    if not (inspect.isclass(value) or routine) or not (value.__module__ or "").startswith("sumfold"):
        return None
    return value.__doc__ or ""


@pytest.mark.parametrize("name", PUBLIC)
def test_all_is_the_public_surface(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), f"{name} has no docstring"
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert len(module.__all__) == len(set(module.__all__)), f"{name}.__all__ repeats a name"
    missing = [export for export in module.__all__ if not hasattr(module, export)]
    assert not missing, f"{name}.__all__ promises what does not resolve: {missing}"
    hidden = sorted(set(module.__all__) - set(dir(module)))
    assert not hidden, f"dir({name}) lacks {hidden}"


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_shows_an_example(name: str) -> None:
    module = importlib.import_module(name)
    documented = {export: own_documentation(value) for export, value in exports(module).items()}
    bare = [export for export, text in documented.items() if text is not None and ">>>" not in text]
    assert not bare, f"no example (>>>) in the docstring of: {', '.join(f'{name}.{export}' for export in bare)}"


def test_modules_offered_at_the_top_are_tested_here() -> None:
    offered = {value.__name__ for value in exports(sumfold).values() if isinstance(value, types.ModuleType)}
    without = sorted(module for module in offered if not hasattr(importlib.import_module(module), "__all__"))
    assert not without, f"no __all__ in {without}"


def test_the_contract_is_offered() -> None:
    missing = sorted(PROMISED - set(sumfold.__all__))
    assert not missing, f"sumfold.__all__ lacks {missing}"
    assert sumfold.metrics is importlib.import_module("sumfold.models.metrics")


def test_every_error_class_is_offered_at_the_top() -> None:
    errors = importlib.import_module("sumfold.errors")
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert classes <= set(sumfold.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = sumfold.no_such_name


def test_the_package_is_typed() -> None:
    assert (Path(sumfold.__file__).parent / "py.typed").exists()
