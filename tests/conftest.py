"""Sumfold's own code is tested under strict promotion rules; examples in docstrings keep JAX's defaults."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

QUICK = {"aggregators", "analytics", "contract", "data", "language", "learning", "models", "tff"}
"""Folders whose tests say what is computed, within a tolerance, and not in which bits or how fast."""
AS_USERS_DO = {"test_kernels.py"}
"""Files in them that compare bits of different programs."""


@pytest.fixture(autouse=True)
def strict_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse silent promotion of dtypes and ranks, unless the test is marked `jax_defaults`.

    A user's model may promote as JAX allows (``x @ w + b``); Sumfold's code may not. So this is on while
    Sumfold runs, and it is Sumfold that traces the model under JAX's defaults.
    """
    if request.node.get_closest_marker("jax_defaults") is not None:
        yield
        return
    import jax

    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


_OLDER = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _has_older_way() -> bool:
    """Whether this version of JAX has it, and the function, its own, through which all programs get their options."""
    import jax
    from jax._src import compiler

    try:
        jax.jit(lambda x: x + 1, compiler_options=_OLDER)(1)
    except jax.errors.JaxRuntimeError:
        return False
    return hasattr(compiler, "get_compile_options")


@pytest.fixture(autouse=True)
def quick_code(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let XLA write machine code in its older way, where a test asks for values only.

    XLA's optimisation is the same; only each loop is written without an MLIR context of its own, which for programs
    as small as the tests' takes half of the time of compiling, and a quarter of the suite's. All that is about
    the engine (simulation, core, server, wire, command line, docstrings) runs the code that users run.
    """
    path = Path(request.node.path).relative_to(Path(__file__).parent)
    if path.parts[0] not in QUICK or path.name in AS_USERS_DO or not _has_older_way():
        yield
        return
    from jax._src import compiler

    given = compiler.get_compile_options

    def options(*args: Any, **kwargs: Any) -> Any:
        made = given(*args, **kwargs)
        made.env_option_overrides = [*made.env_option_overrides, *_OLDER.items()]
        return made

    with mock.patch.object(compiler, "get_compile_options", options):
        yield
