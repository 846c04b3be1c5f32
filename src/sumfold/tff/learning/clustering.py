"""`sumfold.learning.kmeans` under TFF's name and arguments."""

from __future__ import annotations

from typing import Any

import jax

from sumfold import keys
from sumfold.errors import user_facing
from sumfold.learning import Process, kmeans
from sumfold.learning.checks import check_seed
from sumfold.tff.learning.arguments import refuse

__all__ = ["build_fed_kmeans"]


@user_facing
def build_fed_kmeans(
    num_clusters: Any, data_shape: Any, random_seed: Any = None, distributor: Any = None, sum_aggregator: Any = None
) -> Process:
    """`sumfold.learning.kmeans`, whose initial centroids count as one point each, as TFF's do.

    Args:
        num_clusters: how many centroids.
        data_shape: the shape of a point.
        random_seed: a whole number that fixes the initial centroids; None leaves them to ``initialize(seed)``. The
            numbers drawn are not TFF's.
        distributor, sum_aggregator: have no counterpart.

    Raises:
        CompositionError: as `sumfold.learning.kmeans`; for a seed that is no whole number, and for an argument that has
            no counterpart.

    Example:
        >>> import numpy as np
        >>> process = build_fed_kmeans(2, (3,), random_seed=1)
        >>> state, metrics = process.next(process.initialize(), [[np.ones((4, 3)), np.ones((2, 3))]])
        >>> metrics["client_work"]["train"]["num_examples"]
        6
    """
    refuse(distributor=distributor, sum_aggregator=sum_aggregator)
    process = kmeans(num_clusters, data_shape, pseudo_count=1.0)
    if random_seed is None:
        return process
    check_seed(random_seed)
    assert process.model is not None
    shape = process.model.template.trainable["centroids"].shape
    drawn = jax.random.normal(keys.typed(keys.root(random_seed)), shape)
    return kmeans(num_clusters, data_shape, init=drawn, pseudo_count=1.0)
