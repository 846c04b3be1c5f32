"""Algorithms, and the loop that trains with them."""

from sumfold.learning.fed_avg import fed_avg as fed_avg
from sumfold.learning.fed_eval import fed_eval as fed_eval
from sumfold.learning.process import Output as Output
from sumfold.learning.process import Process as Process

__all__ = ["Output", "Process", "fed_avg", "fed_eval"]
