"""What must be settled before the first import of JAX or Sumfold, for tests and docstrings alike.

It lies beside both `src` and `tests`, because pytest reads a conftest for the folders below it only.
"""

import importlib
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
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

import beartype
import hypothesis
import pytest
from jaxtyping import install_import_hook

_checkers: dict[Any, Any] = {}


def _hashable(annotation: Any) -> Any:
    """`*args: P.args` has no hash of its own."""
    return repr(annotation) if isinstance(annotation, ParamSpecArgs | ParamSpecKwargs) else annotation


def once(function: Any) -> Any:
    """Beartype's check of a signature, made once for each function's place in the source.

    The hook asks for a check of every function, also of one that is defined anew whenever the function around it
    runs, as most of Sumfold's are; what it hands over is a signature without the body. Most of the time of a traced
    round went into making such checks again. Whatever a check may depend on is in the key.
    """
    code = getattr(function, "__code__", None)
    if code is None:
        return beartype.beartype(function)
    kinds = code.co_varnames, code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    annotations = tuple((name, _hashable(of)) for name, of in function.__annotations__.items())
    defaults = function.__defaults__, tuple((function.__kwdefaults__ or {}).items())
    key = function.__module__, function.__qualname__, kinds, annotations, defaults
    try:
        if key not in _checkers:
            _checkers[key] = beartype.beartype(function)
    except TypeError:  # an annotation or a default that is no key
        return beartype.beartype(function)
    return _checkers[key]


# The hook takes a name, which it imports.
sys.modules["checks"] = ModuleType("checks")
sys.modules["checks"].__dict__["once"] = once

# From here on every function of Sumfold checks its annotations, shapes and dtypes included, when called.
install_import_hook("sumfold", "checks.once")

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
