"""Sumfold's own code is tested under strict promotion rules; examples in docstrings keep JAX's defaults."""

from collections.abc import Iterator

import pytest


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
