"""Algorithms, and the loop that trains with them."""

from sumfold.learning import callbacks as callbacks
from sumfold.learning.fed_avg import fed_avg as fed_avg
from sumfold.learning.fed_dyn import fed_dyn as fed_dyn
from sumfold.learning.fed_eval import fed_eval as fed_eval
from sumfold.learning.fed_nova import fed_nova as fed_nova
from sumfold.learning.fed_prox import fed_prox as fed_prox
from sumfold.learning.fed_sgd import fed_sgd as fed_sgd
from sumfold.learning.history import History as History
from sumfold.learning.mime import mime as mime
from sumfold.learning.mime import mime_lite as mime_lite
from sumfold.learning.process import Output as Output
from sumfold.learning.process import Process as Process
from sumfold.learning.scaffold import scaffold as scaffold
from sumfold.learning.train import train as train

__all__ = [
    "History",
    "Output",
    "Process",
    "callbacks",
    "fed_avg",
    "fed_dyn",
    "fed_eval",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "mime",
    "mime_lite",
    "scaffold",
    "train",
]
