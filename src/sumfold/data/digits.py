"""Handwritten digits, dealt out to simulated clients with skewed labels."""

from __future__ import annotations

import numpy as np

from sumfold.data import partition
from sumfold.data.federation import Federation
from sumfold.errors import missing_extra, user_facing


@user_facing
def digits(
    *, clients: int = 20, alpha: float = 0.3, seed: int = 0, fraction: float = 0.8
) -> tuple[Federation, Federation]:
    """Real handwritten digits at `clients` simulated clients: (train, test), split within each client.

    1,797 grey images of 8×8 pixels that come with scikit-learn (no download). x is float32[n, 8, 8, 1], the
    pixel counts 0 … 16 divided by 16, with a channel axis as convolutions want it; y is int32[n], the digit.

    Args:
        clients: how many; the ids are 0 … clients−1.
        alpha: the label skew of `partition.dirichlet`.
        seed: for the partition and the split.
        fraction: of each client's rows for training.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        DataError: what `partition.dirichlet` and `Federation.split` raise.

    Reference:
        Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
        1998, CC BY 4.0 (its test set, as shipped by scikit-learn).

    Example:
        >>> train, test = digits(clients=10)
        >>> train
        Federation(10 clients, 1437 examples, x float32[8,8,1], y int32)
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise missing_extra("scikit-learn", "sklearn") from None
    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 8, 8, 1)
    federation = partition.dirichlet(x, labels.astype(np.int32), clients=clients, alpha=alpha, seed=seed)
    return federation.split(fraction, seed=seed)
