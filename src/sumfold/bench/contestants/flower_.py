"""Flower: its own strategy for federated averaging in its simulation (Ray), with PyTorch and the suite's batches.

There are as many virtual nodes as clients in a cohort, and a message tells a node which client it is: a registry of
the whole population would cost Flower more. Telemetry is off. Options: ``actors`` (as many as cores), ``threads`` (1 an
actor).
"""

from stopwatch import CORES, ended, enter, gemm, leave, ready

game = enter()

import os

os.environ |= {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "FLWR_UPDATE_CHECK": "0"}

import contextlib
import logging
import sys
import time
import warnings
from collections import OrderedDict
from importlib.metadata import version
from pathlib import Path

warnings.simplefilter("ignore")
here = str(Path(__file__).resolve().parent)
os.environ["PYTHONPATH"] = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])  # for the actors

import torch
import torch_models
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

ready(game)
logging.getLogger("flwr").setLevel(logging.ERROR)
actors, threads = game.options.get("actors", CORES), game.options.get("threads", 1)
start = torch_models.net(game.workload.model, game.weights)
names, arguments = tuple(start.weights), tuple(sys.argv)
client_app = ClientApp()


@client_app.train()
def train(message, context):
    """One client's local training, in an actor."""
    import flower_client

    return flower_client.train(message, arguments, threads, names)


class Timed(FedAvg):
    """Federated averaging that tells each node its client, and reads the clock."""

    def configure_train(self, server_round, arrays, config, grid):
        self.began = time.perf_counter()
        messages = list(super().configure_train(server_round, arrays, config, grid))
        for place, message in enumerate(messages):
            own = ConfigRecord({"round": server_round - 1, "place": place})
            message.content = RecordDict({"arrays": message.content["arrays"], "config": own})
        return messages

    def aggregate_train(self, server_round, replies):
        told = super().aggregate_train(server_round, replies)
        ended(game, time.perf_counter() - self.began)
        return told


final = {}
server_app = ServerApp()


@server_app.main()
def main(grid, context):
    initial = OrderedDict((name, value.detach()) for name, value in start.weights.items())
    nodes = len(game.cohorts[0])
    strategy = Timed(1.0, 0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    told = strategy.start(grid, ArrayRecord(initial), num_rounds=len(game.cohorts), timeout=600)
    final.update(told.arrays.to_torch_state_dict())


with contextlib.redirect_stdout(sys.stderr):
    run_simulation(
        server_app,
        client_app,
        len(game.cohorts[0]),
        backend_config={
            "init_args": {"num_cpus": actors, "logging_level": "ERROR", "log_to_driver": False},
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
        },
    )
shown, labels = game.evaluation()
with torch.no_grad():
    outputs = start.predict(final, torch.from_numpy(torch_models.images(shown)))
loss = torch_models.loss(outputs, torch.from_numpy(labels).long()).item()
torch.set_num_threads(CORES)
leave(
    game,
    loss,
    {"flwr": version("flwr"), "ray": version("ray"), "torch": torch.__version__},
    gemm(torch_models.product),
)
