"""What must be settled before the first import of JAX or Sumfold, for tests and docstrings alike.

It lies beside both `src` and `tests`, because pytest reads a conftest for the folders below it only.
"""

import functools
import importlib
import os
import pkgutil
import sys
import weakref
from pathlib import Path
from types import CellType, FunctionType
from typing import Any, ParamSpecArgs, ParamSpecKwargs

if "jax" in sys.modules or "sumfold" in sys.modules:
    raise RuntimeError("jax or sumfold was imported before conftest.py could set the tests' environment")

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["KERAS_BACKEND"] = "jax"
os.environ["MPLBACKEND"] = "agg"
# Two devices, so that code that shards is tested on any machine.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2".strip()
# Compiled programs outlive the run, and subprocesses share them: the second run of the suite is faster.
# Sumfold leaves a cache alone that is set here, and so the tests the home folder.
# A damaged entry only warns, and pyproject.toml lets that one warning pass: the program is compiled again.
# Every program is kept, however small: most are, and the same in many tests, above all those of a client's half.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jaxtyping
import pytest
from jaxtyping import jaxtyped

_checked: dict[Any, Any] = {}


def _hashable(annotation: Any) -> Any:
    """`*args: P.args` has no hash of its own."""
    return repr(annotation) if isinstance(annotation, ParamSpecArgs | ParamSpecKwargs) else annotation


def _with(function: Any, **cells: Any) -> Any:
    """The function, with these in place of what its names outside stand for."""
    names = zip(function.__code__.co_freevars, function.__closure__, strict=True)
    closure = tuple(CellType(cells[name]) if name in cells else cell for name, cell in names)
    made = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    made.__kwdefaults__ = function.__kwdefaults__
    return made


def _template(checked: Any) -> tuple[Any, Any] | None:
    """What jaxtyping made of a function, without the function; None where it is made otherwise than is known here."""
    names = getattr(checked, "__code__", None) and checked.__code__.co_freevars
    if not names or not {"fn", "wrapped_fn_impl", "wrapped_fn_holder"} <= set(names):
        return None
    called = dict(zip(names, checked.__closure__, strict=True))["wrapped_fn_impl"].cell_contents
    if "fn" not in called.__code__.co_freevars:
        return None
    return _with(checked, fn=None, wrapped_fn_impl=None, wrapped_fn_holder=None), _with(called, fn=None)


def once(function: Any = None, *, typechecker: Any) -> Any:
    """`jaxtyping.jaxtyped`, whose checks of a signature are made once for each function's place in the source.

    The hook asks for them for every function, also of one that is defined anew whenever the function around it runs,
    as most of Sumfold's are. Most of the time of a traced round went into making such checks again. Whatever a check
    may depend on is in the key; what is kept knows no function, and so keeps nothing alive that one closes over.
    """
    if function is None:
        return functools.partial(once, typechecker=typechecker)
    if not isinstance(function, FunctionType):
        return jaxtyped(function, typechecker=typechecker)
    annotations = tuple((name, _hashable(of)) for name, of in function.__annotations__.items())
    defaults = function.__defaults__, tuple((function.__kwdefaults__ or {}).items())
    key = id(function.__code__), function.__module__, function.__qualname__, annotations, defaults, typechecker
    try:
        _, template = _checked.get(key, (None, None))
    except TypeError:  # an annotation or a default that is no key
        return jaxtyped(function, typechecker=typechecker)
    if template is None:
        checked = jaxtyped(function, typechecker=typechecker)
        _checked[key] = function.__code__, _template(checked)  # with the code, whose number is then no other's
        return checked
    outside, inside = template
    holder: list[Any] = []
    checked = functools.wraps(function)(
        _with(outside, fn=function, wrapped_fn_impl=_with(inside, fn=function), wrapped_fn_holder=holder)
    )
    holder.append(weakref.ref(checked))
    return checked


# The hook puts `jaxtyping.jaxtyped` before every function.
jaxtyping.__dict__["jaxtyped"] = once

# From here on every function of Sumfold checks its annotations, shapes and dtypes included, when called.
jaxtyping.install_import_hook("sumfold", "beartype.beartype")

# Scripts that are started in environments of their own, and import what those have.
collect_ignore = ["src/sumfold/bench/contestants"]

# How long a draw takes says something about the machine's other work, not about the code.
hypothesis.settings.register_profile("sumfold", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("sumfold")


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Import every module of Sumfold, before pytest imports the files whose docstrings it runs.

    A module that is loaded already is taken as it is; otherwise pytest would put it in its package's namespace, where
    a function of the same name belongs (learning.fed_avg). The process that only hands tests to others collects
    nothing, and is spared some seconds of imports.
    """
    if isinstance(collector, pytest.Session):
        for module in pkgutil.walk_packages(importlib.import_module("sumfold").__path__, "sumfold."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
