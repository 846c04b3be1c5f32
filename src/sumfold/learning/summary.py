"""The metrics of a round, out of the summed metrics of its clients."""

from __future__ import annotations

from sumfold.core.round import Measured, Metrics
from sumfold.models.model import Model

__all__ = ["summary"]


def summary(model: Model, measured: Measured) -> Metrics:
    """Loss and metrics finished, and the counts: of rows processed, of batches, of clients."""
    return {
        **model.finish(measured.sums),
        "num_examples": measured.sums["num_examples"],
        "num_batches": measured.sums["num_batches"],
        "num_clients": measured.num_clients,
        "num_non_finite_clients": measured.num_non_finite_clients,
    }
