"""Federated computations without a model: rounds whose result is a statistic."""

from sumfold.analytics.moments import Moments as Moments
from sumfold.analytics.moments import moments as moments

__all__ = ["Moments", "moments"]
