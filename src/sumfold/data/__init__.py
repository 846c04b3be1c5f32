"""Client data: federations, ways to partition a data set, and two real ones."""

from sumfold.data import partition
from sumfold.data.digits import digits
from sumfold.data.federation import Federation
from sumfold.data.heart_disease import HEART_FEATURES, heart_disease

__all__ = ["HEART_FEATURES", "Federation", "digits", "heart_disease", "partition"]
