"""Algorithms, and the loop that trains with them."""

from sumfold.learning import callbacks as callbacks
from sumfold.learning.fed_avg import fed_avg as fed_avg
from sumfold.learning.fed_eval import fed_eval as fed_eval
from sumfold.learning.history import History as History
from sumfold.learning.process import Output as Output
from sumfold.learning.process import Process as Process
from sumfold.learning.train import train as train

__all__ = ["History", "Output", "Process", "callbacks", "fed_avg", "fed_eval", "train"]
