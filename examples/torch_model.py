"""A PyTorch module and the loop that trains it, federated: handwritten digits at 20 clients.

python examples/torch_model.py            (needs the extras `torch` and `sklearn`)

Clients train in worker processes, which never import this file: no ``if __name__ == "__main__"`` is needed for them.
"""

import torch

import sumfold as sf


def build():
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


# Your own loop: nothing in it knows of federations. It returns how many examples it used, which is the client's weight.
def fit(module, loader):
    optimizer, n = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9), 0
    for x, y in loader:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
        n += len(x)
    return n


def main(rounds=30, seed=0):
    model = sf.models.from_torch(
        build,
        fit=fit,
        loss=torch.nn.CrossEntropyLoss(reduction="none"),  # to measure with, one value for each example
        metrics={"accuracy": lambda outputs, y: (outputs.argmax(1) == y).float()},
    )
    train, test = sf.data.digits(clients=20, alpha=0.3, seed=seed)
    process = sf.learning.fed_avg(model, server_optimizer=sf.optimizers.fed_adam(0.02), batching=sf.Batching(size=16))
    history = sf.train(process, train, rounds=rounds, clients_per_round=10, seed=seed, evaluate=test, evaluate_every=10)
    for entry in history.evaluations:
        print(f"after round {entry['round']}: accuracy {entry['accuracy']:.3f} on the test images")

    # The weights go back into a module, to be saved or served as any other.
    network = process.get_model_weights(history.state).assign_to(build())
    x, y = test.pooled()
    with torch.no_grad():
        accuracy = float((network(torch.tensor(x)).argmax(1).numpy() == y).mean())
    print(f"in PyTorch: {accuracy:.3f}")
    return history, accuracy


if __name__ == "__main__":
    main()
