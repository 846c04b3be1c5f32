"""Algorithms, and the loop that trains with them."""

from sumfold.learning import callbacks as callbacks
from sumfold.learning import sampling as sampling
from sumfold.learning.compare import Comparison as Comparison
from sumfold.learning.compare import compare as compare
from sumfold.learning.ditto import ditto as ditto
from sumfold.learning.evaluate_clients import evaluate_clients as evaluate_clients
from sumfold.learning.fed_avg import fed_avg as fed_avg
from sumfold.learning.fed_bn import fed_bn as fed_bn
from sumfold.learning.fed_dyn import fed_dyn as fed_dyn
from sumfold.learning.fed_eval import fed_eval as fed_eval
from sumfold.learning.fed_nova import fed_nova as fed_nova
from sumfold.learning.fed_prox import fed_prox as fed_prox
from sumfold.learning.fed_sgd import fed_sgd as fed_sgd
from sumfold.learning.fine_tune import FineTuning as FineTuning
from sumfold.learning.fine_tune import fine_tune as fine_tune
from sumfold.learning.history import History as History
from sumfold.learning.ifca import ifca as ifca
from sumfold.learning.kmeans import kmeans as kmeans
from sumfold.learning.local_layers import local_layers as local_layers
from sumfold.learning.mime import mime as mime
from sumfold.learning.mime import mime_lite as mime_lite
from sumfold.learning.process import Output as Output
from sumfold.learning.process import Process as Process
from sumfold.learning.q_fed_avg import q_fed_avg as q_fed_avg
from sumfold.learning.scaffold import scaffold as scaffold
from sumfold.learning.train import train as train

__all__ = [
    "Comparison",
    "FineTuning",
    "History",
    "Output",
    "Process",
    "callbacks",
    "compare",
    "ditto",
    "evaluate_clients",
    "fed_avg",
    "fed_bn",
    "fed_dyn",
    "fed_eval",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "fine_tune",
    "ifca",
    "kmeans",
    "local_layers",
    "mime",
    "mime_lite",
    "q_fed_avg",
    "sampling",
    "scaffold",
    "train",
]
