"""What one of Flower's actors does for a client: the same local training as the other PyTorch contestants."""

from __future__ import annotations

import functools
import sys
from typing import Any


@functools.cache
def _game(arguments: tuple[str, ...], threads: int) -> tuple[Any, ...]:
    """The run, read once in each actor."""
    sys.argv = list(arguments)
    import stopwatch
    import torch
    import torch_models

    torch.set_num_threads(threads)
    game = stopwatch.enter()
    y = torch.from_numpy(game.data.y.astype("int64"))
    return game, torch_models.floats(game), y, torch_models.net(game.workload.model, game.weights)


@functools.cache
def _batches(arguments: tuple[str, ...], threads: int, number: int) -> Any:
    return _game(arguments, threads)[0].order(number).batches()


def train(message: Any, arguments: tuple[str, ...], threads: int, names: tuple[str, ...]) -> Any:
    """One client's round: begin at the server's weights, train, and send the new ones with the number of examples."""
    import torch
    from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

    game, x, y, net = _game(arguments, threads)
    config = message.content["config"]
    number, place = int(config["round"]), int(config["place"])
    with torch.no_grad():
        for name, value in message.content["arrays"].to_torch_state_dict().items():
            net.weights[name].copy_(value)
    for rows in _batches(arguments, threads, number)[place]:
        at = torch.from_numpy(rows)
        net.step(x[at], y[at], game.workload.rate)
    weights = {name: net.weights[name].detach() for name in names}
    weight = game.client_weight(int(game.cohorts[number][place]))
    content = RecordDict({"arrays": ArrayRecord(weights), "metrics": MetricRecord({"num-examples": weight})})
    return Message(content=content, reply_to=message)
