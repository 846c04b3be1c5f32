"""Client data: federations, ways to partition a data set, real and synthetic ones, and a picture of the labels."""

from sumfold.data import partition
from sumfold.data.digits import digits
from sumfold.data.federation import Federation
from sumfold.data.heart_disease import HEART_FEATURES, heart_disease
from sumfold.data.plot import plot_labels
from sumfold.data.synthetic import synthetic_linear

__all__ = [
    "HEART_FEATURES",
    "Federation",
    "digits",
    "heart_disease",
    "partition",
    "plot_labels",
    "synthetic_linear",
]
