"""What the tests of PyTorch models share: rows, a small module, one way to run a process."""

import numpy as np
import pytest

import sumfold as sf

torch = pytest.importorskip("torch")

nn = torch.nn
SIMULATION = sf.Simulation(host=sf.Workers(2))
RUNTIMES = {"simulation": SIMULATION, "loopback": sf.Loopback()}
both = pytest.mark.parametrize("runtime", RUNTIMES.values(), ids=RUNTIMES)
SIZES = {"a": 9, "b": 3, "empty": 0, "d": 14}
EACH = nn.CrossEntropyLoss(reduction="none")


def rows(shape=(4,), classes=3, weights=False):
    draw = np.random.default_rng(0)

    def client(n):
        x, y = draw.normal(size=(n, *shape)).astype("f"), draw.integers(0, classes, n)
        return (x, y, draw.integers(1, 5, n).astype("f")) if weights else (x, y)

    return {name: client(n) for name, n in SIZES.items()}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def linear():
    return nn.Linear(4, 3)


def model(build=linear, loss=EACH, optimizer=sgd, metrics=None, **options):
    return sf.models.from_torch(build, loss, optimizer, metrics, **options)


def averaging(model, size=4, epochs=2, **options):
    return sf.learning.fed_avg(model, batching=sf.Batching(size, epochs), **options)


def run(process, data, runtime, rounds=1, seed=0, **options):
    process = process.on(runtime)
    state, metrics = process.initialize(seed=seed), {}
    for _ in range(rounds):
        state, metrics = process.next(state, data, **options)
    assert "failed" not in metrics["client_work"], metrics
    return process.get_model_weights(state), metrics["client_work"]["train"], state
