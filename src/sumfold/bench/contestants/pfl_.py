"""pfl-research: its own federated averaging on its simulated backend, with PyTorch and the suite's order of batches.

Options: ``processes`` (1; with 2 it starts itself once more, as its documentation says), ``threads`` (all cores, shared
by the processes).
"""

from stopwatch import CORES, ended, enter, gemm, leave, ready

game = enter()

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
import warnings
from importlib.metadata import version

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)

count, rank = game.options.get("processes", 1), int(os.environ.get("PFL_WORKER_RANK", "0"))
others = []
if count > 1 and "PFL_WORKER_RANK" not in os.environ:
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    os.environ["PFL_WORKER_ADDRESSES"] = ",".join(f"localhost:{s.getsockname()[1]}" for s in sockets)
    for s in sockets:
        s.close()
    os.environ["PFL_WORKER_RANK"] = "0"
    for other in range(1, count):
        environment = {**os.environ, "PFL_WORKER_RANK": str(other)}
        others.append(subprocess.Popen([sys.executable, *sys.argv], env=environment, stdout=subprocess.DEVNULL))

import torch
import torch_models
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints, WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

work = game.workload
linear = work.model in {"logistic", "softmax"}
torch.set_num_threads(game.options.get("threads", 1 if linear else max(CORES // count, 1)))
ready(game)

x, y = torch_models.floats(game), torch.from_numpy(game.data.y.astype("int64"))
orders = [[[torch.from_numpy(rows) for rows in client] for client in cohort] for cohort in game.orders()]


class Net(torch.nn.Module):
    """The suite's model with the two methods that pfl asks for."""

    def __init__(self):
        super().__init__()
        made = torch_models.net(work.model, game.weights)
        self.names, self.predict = list(made.weights), made.predict
        self.values = torch.nn.ParameterList([v.detach().clone() for v in made.weights.values()])

    def forward(self, x):
        return self.predict(dict(zip(self.names, self.values, strict=True)), x)

    def loss(self, x, y):
        return torch_models.loss(self(x), y)

    @torch.no_grad()
    def metrics(self, x, y):
        return {"loss": Weighted(self.loss(x, y).item() * len(x), len(x))}


class Client(Dataset):
    """A client whose batches come in the order given; all epochs are one pass."""

    def __init__(self, number, place):
        client = int(game.cohorts[number][place])
        rows = slice(int(game.data.offsets[client]), int(game.data.offsets[client + 1]))
        super().__init__((x[rows], y[rows]), user_id=str(client))
        self.rows = orders[number][place]

    def iter(self, batch_size):
        for rows in self.rows:
            yield [x[rows], y[rows]]


class Clock(TrainingProcessCallback):
    """The end of each round."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        now = time.perf_counter()
        ended(game, now - self.last)
        self.last = now
        return False, Metrics()


class Quiet(FederatedAveraging):
    """Without the measurements before and after training that pfl makes in its first round, which others do not."""

    def get_next_central_contexts(self, *arguments, **options):
        contexts, model, metrics = super().get_next_central_contexts(*arguments, **options)
        for context in contexts or ():
            object.__setattr__(context, "do_evaluation", False)
        return contexts, model, metrics


pairs = [(number, place) for number in game.rounds for place in range(len(game.cohorts[number]))]
longest = {pair: sum(map(len, orders[pair[0]][pair[1]])) for pair in pairs}
queue = iter(pairs + pairs[:1] * 100_000)  # a process that draws ahead needs more than there are
data = FederatedDataset(lambda pair: Client(*pair), lambda: next(queue), longest if count > 1 else None)
net = Net()
model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), 1.0))
clock = Clock()
clock.last = time.perf_counter()
with contextlib.redirect_stdout(sys.stderr):
    Quiet().run(
        NNAlgorithmParams(len(game.cohorts), 10**9, len(game.cohorts[0]), None),
        SimulatedBackend(data, data, [WeightByUser() if work.uniform else WeightByDatapoints()]),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=work.rate, local_batch_size=work.batch),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
for other in others:
    other.wait()
if rank == 0:
    shown, labels = game.evaluation()
    with torch.no_grad():
        loss = net.loss(torch.from_numpy(torch_models.images(shown)), torch.from_numpy(labels).long()).item()
    torch.set_num_threads(CORES)
    leave(game, loss, {"pfl": version("pfl"), "torch": torch.__version__}, gemm(torch_models.product))
