"""Federated averaging of a linear model by hand in PyTorch, many clients abreast: what an expert writes for one model.

The weights of some clients at a time (option ``abreast``) lie in one tensor, step t of all of them is two batched
products and the gradient of softmax regression in closed form, (softmax(x w + b) − onehot(y)) / B. Clients with the
most steps come first, so that those still at work are a prefix; short batches have rows of weight zero. Option
``device``: of the arithmetic; data and orders lie there before the clock starts.
"""

from stopwatch import CORES, enter, gemm, leave, ready, turn

game = enter()

import numpy as np
import torch
import torch_models

torch.set_num_threads(game.options.get("threads", CORES))
work = game.workload
abreast = game.options.get("abreast", 20 if work.model == "logistic" else 1000)
place = torch.device(game.options.get("device", "cpu"))
ready(game)

x, y = torch_models.floats(game).to(place), torch.from_numpy(game.data.y.astype("int64")).to(place)
w, b = (torch.from_numpy(game.weights[name].copy()).to(place) for name in ("w", "b"))


def prepared(number):
    """For each group of clients: weights, and for each step the rows int64[clients at work, B] and their weights."""
    order = game.order(number)
    ends = np.cumsum(order.sizes)
    first = np.cumsum(order.steps) - order.steps
    counts = np.array([game.client_weight(client) for client in game.cohorts[number].tolist()])
    sorted_ = np.argsort(-order.steps, kind="stable")
    width = int(order.sizes.max())
    groups = []
    for at in range(0, len(sorted_), abreast):
        clients, steps = sorted_[at : at + abreast], []
        for t in range(int(order.steps[clients[0]])):
            batch = first[clients[order.steps[clients] > t]] + t
            within = (ends - order.sizes)[batch][:, None] + np.arange(width)
            live = np.arange(width) < order.sizes[batch][:, None]
            rows = order.rows[np.where(live, within, within[:, :1])]
            share = live / order.sizes[batch][:, None]
            live_share = None if live.all() else torch.from_numpy(share.astype(np.float32)).to(place)
            steps.append((torch.from_numpy(rows).to(place), live_share))
        groups.append((torch.from_numpy((counts[clients] / counts.sum()).astype(np.float32)).to(place), steps))
    return groups


plans = [prepared(number) for number in game.rounds]
for number in game.rounds:
    with turn(game):
        sum_w, sum_b = torch.zeros_like(w), torch.zeros_like(b)
        for share, steps in plans[number]:
            many_w, many_b = w.expand(len(share), *w.shape).clone(), b.expand(len(share), -1).clone()
            for rows, weight in steps:
                k = len(rows)
                at = x[rows]
                p = torch.baddbmm(many_b[:k].unsqueeze(1), at, many_w[:k]).softmax(-1)
                p.scatter_add_(2, y[rows].unsqueeze(-1), p.new_full((1, 1, 1), -1).expand(*rows.shape, 1))
                p = p.mul_(1 / rows.shape[1]) if weight is None else p.mul_(weight.unsqueeze(-1))
                many_w[:k].baddbmm_(at.transpose(1, 2), p, alpha=-work.rate)
                many_b[:k].sub_(p.sum(1), alpha=work.rate)
            sum_w.add_(torch.mv(many_w.flatten(1).T, share).view_as(w))
            sum_b.add_(share @ many_b)
        w, b = sum_w, sum_b
        torch_models.finished(place)

shown, labels = game.evaluation()
loss = torch_models.loss(torch.from_numpy(shown).to(place) @ w + b, torch.from_numpy(labels).long().to(place))
torch.set_num_threads(CORES)
peak = gemm(torch_models.product) if place.type == "cpu" else None
leave(game, loss.item(), {"torch": torch.__version__}, peak, device=torch_models.named(place))
