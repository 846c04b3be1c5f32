"""Federated averaging by hand in PyTorch: one process, clients one after the other.

Options: ``threads`` (all cores; one for models so small that threads cost more than they bring), ``device`` (of the
arithmetic; data and orders lie there before the clock starts).
"""

from stopwatch import CORES, enter, gemm, leave, ready, turn

game = enter()

import torch
import torch_models

torch.set_num_threads(game.options.get("threads", 1 if game.workload.model in {"logistic", "softmax"} else CORES))
place = torch.device(game.options.get("device", "cpu"))
ready(game)

x, y = torch_models.floats(game).to(place), torch.from_numpy(game.data.y.astype("int64")).to(place)
net = torch_models.net(game.workload.model, game.weights, torch_models.room(game.weights, place))
server, total = net.flat.clone(), torch.zeros_like(net.flat)
orders = [[[torch.from_numpy(rows).to(place) for rows in client] for client in cohort] for cohort in game.orders()]

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
        torch_models.finished(place)

net.flat.copy_(server)
shown, labels = game.evaluation()
with torch.no_grad():
    outputs = net.predict(net.weights, torch.from_numpy(torch_models.images(shown)).to(place))
    loss = torch_models.loss(outputs, torch.from_numpy(labels).long().to(place))
torch.set_num_threads(CORES)
peak = gemm(torch_models.product) if place.type == "cpu" else None
leave(game, loss.item(), {"torch": torch.__version__}, peak, device=torch_models.named(place))
