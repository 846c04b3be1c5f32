"""Federated averaging by hand in PyTorch: one process, clients one after the other.

Options: ``threads`` (all cores; one for models so small that threads cost more than they bring).
"""

from stopwatch import CORES, enter, gemm, leave, ready, turn

game = enter()

import torch
import torch_models

torch.set_num_threads(game.options.get("threads", 1 if game.workload.model in {"logistic", "softmax"} else CORES))
ready(game)

x, y = torch_models.floats(game), torch.from_numpy(game.data.y.astype("int64"))
net = torch_models.net(game.workload.model, game.weights)
server, total = net.flat.clone(), torch.zeros_like(net.flat)
orders = [[[torch.from_numpy(rows) for rows in client] for client in cohort] for cohort in game.orders()]

for number in game.rounds:
    with turn(game):
        total.zero_()
        weights = [game.client_weight(client) for client in game.cohorts[number]]
        share = 1 / sum(weights)
        for batches, weight in zip(orders[number], weights, strict=True):
            net.flat.copy_(server)
            for rows in batches:
                net.step(x[rows], y[rows], game.workload.rate)
            total.add_(net.flat, alpha=weight * share)
        server.copy_(total)

net.flat.copy_(server)
shown, labels = game.evaluation()
with torch.no_grad():
    loss = torch_models.loss(
        net.predict(net.weights, torch.from_numpy(torch_models.images(shown))), torch.from_numpy(labels).long()
    )
torch.set_num_threads(CORES)
leave(game, loss.item(), {"torch": torch.__version__}, gemm(torch_models.product))
