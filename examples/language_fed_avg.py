"""Federated averaging, written by hand in the language, and the library's own: one result.

python examples/language_fed_avg.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sumfold as sf

# A logistic model of five columns: how it starts, what it predicts, and one loss for every example.


def init(key):
    return {"w": jnp.zeros(5), "b": jnp.zeros(())}


def predict(weights, x):
    return x @ weights["w"] + weights["b"]


def loss(outputs, y):
    return optax.sigmoid_binary_cross_entropy(outputs, y)


CLIENT, SERVER = optax.sgd(0.5), optax.sgd(1.0)


def moved(optimizer, weights, state, gradient):
    updates, state = optimizer.update(gradient, state, weights)
    return optax.apply_updates(weights, updates), state


def train(weights, batches):
    """One client: a step for each of its batches; its change, and the examples that it saw."""

    def step(carry, batch):
        (x, y), (now, state, examples) = batch, carry
        gradient = jax.grad(lambda w: loss(predict(w, x), y).mean())(now)
        return *moved(CLIENT, now, state, gradient), examples + y.shape[0]

    after, _, examples = sf.sequence_reduce(batches, (weights, CLIENT.init(weights), 0), step)
    return jax.tree.map(jnp.subtract, after, weights), examples


def apply(weights, change):
    """The server: its gradient is the negative mean change."""
    return moved(SERVER, weights, SERVER.init(weights), jax.tree.map(jnp.negative, change))[0]


MODEL = sf.StructType([("w", sf.TensorType(np.float32, (5,))), ("b", np.float32)])
BATCH = sf.StructType([sf.TensorType(np.float32, (None, 5)), sf.TensorType(np.float32, (None,))])


@sf.federated_computation(sf.type_at_server(MODEL), sf.type_at_clients(sf.SequenceType(BATCH)))
def averaging_round(weights, batches):
    change, examples = sf.federated_map(train, (sf.federated_broadcast(weights), batches))
    return sf.federated_map(apply, (weights, sf.federated_mean(change, examples)))


def clients(seed=0, size=8):
    """Clients with 3 … 35 examples each, cut into batches of 8; the last one may be shorter."""
    draw = np.random.default_rng(seed)
    rows = [3, 16, 8, 35, 19]
    data = {}
    for k, n in enumerate(rows):
        x = draw.normal(k / 5, 1.0, (n, 5)).astype(np.float32)
        y = (x.sum(axis=1) + draw.normal(size=n) > k).astype(np.float32)
        data[f"client {k}"] = [(x[i : i + size], y[i : i + size]) for i in range(0, n, size)]
    return data


def main(rounds=3):
    data = clients()
    process = sf.learning.fed_avg(sf.models.from_functions(init, predict, loss), CLIENT, SERVER)
    state = process.initialize()
    for _ in range(rounds):
        state, _ = process.next(state, data)
    library = process.get_model_weights(state)
    print(f"{'sf.learning.fed_avg':30}", np.round(library["w"], 5), np.round(library["b"], 5))

    apart = {}
    for runtime in (None, sf.Simulation(), sf.Loopback()):
        run = averaging_round if runtime is None else averaging_round.on(runtime)
        weights = init(None)
        for _ in range(rounds):
            weights = run(weights, data)
        name = "in the language, " + ("called" if runtime is None else type(runtime).__name__)
        apart[name] = max(float(np.abs(library[leaf] - weights[leaf]).max()) for leaf in library)
        print(f"{name:30}", np.round(weights["w"], 5), np.round(weights["b"], 5), f"apart by {apart[name]:.1e}")

    print()
    print(averaging_round.type_signature)
    return apart


if __name__ == "__main__":
    main()
