"""What the tests of the language share: ways to run a computation, and what every refusal must be.

A loopback costs a second for each program, most of it to compile: `simulated` is the default, and `everywhere` is for
what only a client's own process shows (each intrinsic once, structures, sizes, dtypes, several exchanges).
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

import sumfold as sf


def agreeing(*runtimes: Callable[[], Any]) -> Callable[..., Any]:
    """Call a computation directly and on these runtimes; the results must agree."""

    def run(comp: Any, *args: Any) -> Any:
        import jax

        first, *others = (way(*args) for way in (comp, *(comp.on(runtime()) for runtime in runtimes)))
        for other in others:
            assert jax.tree.structure(other) == jax.tree.structure(first)
            for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
                assert isinstance(a, np.ndarray | np.generic), "leaves are NumPy's"
                assert isinstance(b, np.ndarray | np.generic), "leaves are NumPy's"
                assert a.dtype == b.dtype
                assert a.shape == b.shape
                np.testing.assert_allclose(a, b, rtol=2e-6)
        return first

    return run


@pytest.fixture(scope="session")
def simulated() -> Callable[..., Any]:
    """Call a computation directly and in a simulation."""
    return agreeing(sf.Simulation)


@pytest.fixture(scope="session")
def everywhere() -> Callable[..., Any]:
    """Call a computation directly, in a simulation and over the loopback."""
    return agreeing(sf.Simulation, sf.Loopback)


@pytest.fixture
def refused() -> Callable[..., AbstractContextManager[None]]:
    """Expect an error of a class and code whose message holds some words, at the line that is marked ``# <-``."""

    @contextmanager
    def expect(kind: type[Exception], code: str, *words: str) -> Iterator[None]:
        with pytest.raises(kind) as caught:
            yield
        error = caught.value
        assert error.code == code, f"{error.code}: {error}"  # type: ignore[attr-defined]
        for word in words:
            assert word in str(error), f"{word!r} is not in: {error}"
        # The import hook of the tests checks types in a frame of its own, which users do not have.
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "jaxtyping" not in f.filename]
        last = frames[-1]
        assert (last.line or "").endswith("# <-"), f"{last.filename}:{last.lineno}: {last.line}"

    return expect
