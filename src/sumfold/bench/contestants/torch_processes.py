"""Federated averaging by hand in PyTorch: as many processes as cores, each with one thread, kept for all rounds.

Every process trains its share of the cohort (longest first, to the least loaded) from weights in shared memory into a
total of its own in shared memory; the first adds the totals up. Data are read by all without a copy.
"""

from stopwatch import CORES, enter, gemm, leave, ready, turn

game = enter()

import os
from multiprocessing import get_context

import torch
import torch_models

torch.set_num_threads(1)
count = game.options.get("processes", CORES)
ready(game)

x, y = torch_models.floats(game), torch.from_numpy(game.data.y.astype("int64"))
net = torch_models.net(game.workload.model, game.weights)
server = net.flat.clone().share_memory_()
totals = torch.zeros(count, len(server)).share_memory_()
orders = [[[torch.from_numpy(rows) for rows in client] for client in cohort] for cohort in game.orders()]


def share(number):
    """For each process, which of the cohort it trains."""
    mine, load = [[] for _ in range(count)], [0] * count
    for place in sorted(range(len(orders[number])), key=lambda place: -len(orders[number][place])):
        least = load.index(min(load))
        mine[least].append(place)
        load[least] += len(orders[number][place])
    return mine


shares = [share(number) for number in game.rounds]
weights = [[game.client_weight(client) for client in cohort] for cohort in game.cohorts]


def train(number, rank):
    total = totals[rank].zero_()
    whole = sum(weights[number])
    for place in shares[number][rank]:
        net.flat.copy_(server)
        for rows in orders[number][place]:
            net.step(x[rows], y[rows], game.workload.rate)
        total.add_(net.flat, alpha=weights[number][place] / whole)


context = get_context("fork")  # the data, the orders and the model are there already
begin, end = [context.Semaphore(0) for _ in range(count)], context.Semaphore(0)
for rank in range(1, count):
    if os.fork() == 0:
        for number in game.rounds:
            begin[rank].acquire()
            train(number, rank)
            end.release()
        os._exit(0)

for number in game.rounds:
    with turn(game):
        for rank in range(1, count):
            begin[rank].release()
        train(number, 0)
        for _ in range(1, count):
            end.acquire()
        torch.sum(totals, 0, out=server)

net.flat.copy_(server)
shown, labels = game.evaluation()
with torch.no_grad():
    loss = torch_models.loss(
        net.predict(net.weights, torch.from_numpy(torch_models.images(shown))), torch.from_numpy(labels).long()
    )
torch.set_num_threads(CORES)
leave(game, loss.item(), {"torch": torch.__version__}, gemm(torch_models.product))
