"""A Keras model, federated: handwritten digits at 20 clients, each of whom mostly sees a few of the ten digits.

python examples/keras_cnn.py            (needs the extras `keras` and `sklearn`)
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before the first import of keras

import keras
import optax

import sumfold as sf


def build():
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )


def main(rounds=50, seed=0):
    model = sf.models.from_keras(
        build, loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    train, test = sf.data.digits(clients=20, alpha=0.3, seed=seed)
    print("rows of each client:", sorted(train.sizes.values()))

    # Half of the clients take part in each round; the server's momentum carries what the others taught it.
    process = sf.learning.fed_avg(
        model,
        client_optimizer=optax.sgd(0.1),
        server_optimizer=optax.sgd(1.0, momentum=0.6),
        batching=sf.Batching(size=16, epochs=2),
    )
    history = sf.train(process, train, rounds=rounds, clients_per_round=10, seed=seed, evaluate=test, evaluate_every=10)

    # For comparison, all rows in one place: a federation of one client, trained the same way.
    pooled = sf.learning.fed_avg(model, client_optimizer=optax.sgd(0.1), batching=sf.Batching(size=16, epochs=2))
    reference = sf.train(
        pooled, [train.pooled()], rounds=max(rounds * 2 // 5, 1), seed=seed, evaluate=test, evaluate_every=rounds
    )

    federated, together = (run.evaluations[-1]["accuracy"] for run in (history, reference))
    print(f"accuracy on the test images: federated {federated:.3f}, all rows in one place {together:.3f}")

    # The weights go back into a Keras model, to be saved or served as any other.
    network = build()
    process.get_model_weights(history.state).assign_to(network)
    return federated, together, network


if __name__ == "__main__":
    main()
