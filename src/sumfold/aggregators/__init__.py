"""Stages of aggregation; each is one file, in the form of `sumfold.core.Stage`."""

from sumfold.aggregators.mean import Weighted as Weighted
from sumfold.aggregators.mean import mean as mean
from sumfold.aggregators.sum import sum as sum

__all__ = ["mean", "sum"]
