"""Which clients take part in a round."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from sumfold.errors import DataError, user_facing

__all__ = ["build_uniform_sampling_fn"]


def build_uniform_sampling_fn(
    sample_range: Iterable[Any], replace: bool = False, random_seed: int | None = None
) -> Callable[..., list[Any]]:
    """A function (round, size) -> clients drawn uniformly; a function of the round alone, given a seed.

    Args:
        sample_range: what to draw from, such as ``client_data.client_ids``.
        replace: whether one client may be drawn twice in a round.
        random_seed: None draws one now.

    Example:
        >>> sample = build_uniform_sampling_fn(["a", "b", "c"], random_seed=0)
        >>> len(set(sample(0, 2))), sample(1, 2) == sample(1, 2)
        (2, True)
    """
    population = list(sample_range)
    entropy = secrets.randbits(64) if random_seed is None else random_seed

    @user_facing
    def sample(round_num: int, size: int) -> list[Any]:
        if size < 0 or (size and not population) or (size > len(population) and not replace):
            raise DataError(
                "SF-COMP-079",
                f"a sample of {size} out of {len(population)} clients",
                f"from 0 to {len(population)} of them",
                "ask for fewer, or pass replace=True",
            )
        random = np.random.default_rng((entropy, int(round_num)))
        return [population[i] for i in random.choice(len(population), size, replace)] if size else []

    return sample
