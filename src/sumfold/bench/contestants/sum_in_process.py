"""The sum of updates by hand, in one process: with NumPy, or with PyTorch (option ``library``).

Every update is made in one buffer and added to the total; nothing else is kept, but the moments of FedAdam.
"""

from stopwatch import CORES, enter, leave, ready, triad, turn, workloads

game = enter()

import numpy as np

library = game.options.setdefault("library", "torch")
versions = {}
if library == "torch":
    import torch

    torch.set_num_threads(game.options.get("threads", CORES))
    versions["torch"] = torch.__version__
ready(game)


def norm(a, part=1 << 16):
    """In parts, since a sum of so many float32 in one loses digits."""
    return sum(float(np.dot(a[i : i + part], a[i : i + part])) for i in range(0, len(a), part)) ** 0.5


numbers, rate = np.array(game.data.x), game.workload.rate
w = game.weights["w"].copy()
total, update = np.zeros_like(w), np.empty_like(w)
adam = game.workload.model == "adam"
m, v = (np.zeros_like(w), np.zeros_like(w)) if adam else (None, None)
first, second, rate_of_server, floor = map(np.float32, workloads.ADAM)
bound = 0.05 * norm(w) if game.workload.model == "clipped" else float("inf")


def with_numpy(clients):
    total.fill(0)
    for client in clients:
        np.multiply(w, -rate * numbers[client], out=update)
        scale = min(1.0, bound / norm(update)) if bound < float("inf") else 1.0
        np.multiply(update, np.float32(scale / len(clients)), out=update)
        np.add(total, update, out=total)
    if adam:
        np.multiply(m, first, out=m)
        np.add(m, np.multiply(total, 1 - first, out=update), out=m)
        np.multiply(np.square(total, out=total), 1 - second, out=total)
        np.add(np.multiply(v, second, out=v), total, out=v)
        np.add(np.sqrt(v, out=total), floor, out=total)
        np.multiply(np.divide(m, total, out=total), rate_of_server, out=total)
    np.add(w, total, out=w)


def with_torch(clients):
    total_, update_, w_ = (torch.from_numpy(a) for a in (total, update, w))
    total_.zero_()
    for client in clients:
        torch.mul(w_, float(-rate * numbers[client]), out=update_)
        scale = (
            min(1.0, bound / float(torch.linalg.vector_norm(torch.linalg.vector_norm(update_.view(-1, 50_000), dim=1))))
            if bound < float("inf")
            else 1.0
        )
        total_.add_(update_, alpha=scale / len(clients))
    if adam:
        m_, v_ = torch.from_numpy(m), torch.from_numpy(v)
        m_.lerp_(total_, float(1 - first))
        v_.mul_(float(second)).addcmul_(total_, total_, value=float(1 - second))
        torch.sqrt(v_, out=total_).add_(float(floor))
        w_.addcdiv_(m_, total_, value=float(rate_of_server))
    else:
        w_.add_(total_)


def add(a, b):
    if library == "torch":
        left, right = torch.from_numpy(a), torch.from_numpy(b)
        return lambda: left.add_(right, alpha=3)
    scaled = np.empty_like(b)
    return lambda: np.add(a, np.multiply(b, np.float32(3), out=scaled), out=a)


work = with_torch if library == "torch" else with_numpy
for number in game.rounds:
    with turn(game):
        work(game.cohorts[number].tolist())

leave(game, float(0.5 * np.mean(np.square(w, dtype=np.float64))), versions, triad_gbs=triad(game, add))
