"""Three programs written for TensorFlow Federated: the import line changed, Keras and NumPy in place of TensorFlow.

python examples/tff_programs.py
"""

import os

os.environ.setdefault("KERAS_BACKEND", "jax")  # before Keras is first imported

import keras
import numpy as np

from sumfold import tff

# 1. A mean of the clients' updates. Each entry of the list is one client; its structure comes back.


@tff.federated_computation
def federated_averaging(model_weights):
    return tff.federated_mean(model_weights, weight=None)


# 2. The same, weighted.


@tff.federated_computation
def weighted_federated_averaging(model_weights, weights):
    return tff.federated_weighted_mean(model_weights, weights)


CLIENT_UPDATES = [
    [np.float32(0.1), np.float32(0.2)],
    [np.float32(0.3), np.float32(0.1)],
    [np.float32(0.2), np.float32(0.3)],
]
CLIENT_WEIGHTS = [1.0, 2.0, 0.5]

# 3. The high-level API. Clients hold batches (x, y); the labels follow y = 2 x₀ - x₁ + 0.5.


def client_batches(batches):
    draw = np.random.default_rng(batches)
    x = draw.normal(size=(batches, 16, 2)).astype(np.float32)
    return [(rows, (rows @ [[2.0], [-1.0]] + 0.5).astype(np.float32)) for rows in x]


def model_fn():
    return tff.learning.from_keras_model(
        keras.Sequential([keras.layers.Dense(1)]),
        loss=keras.losses.MeanSquaredError(),
        input_spec=(((None, 2), np.float32), ((None, 1), np.float32)),
    )


def main(num_rounds=5):
    aggregated_update = federated_averaging(CLIENT_UPDATES)
    print(federated_averaging.type_signature)
    print("uniform ", np.round(aggregated_update, 4))

    weighted_update = weighted_federated_averaging(CLIENT_UPDATES, CLIENT_WEIGHTS)
    print(weighted_federated_averaging.type_signature)
    print("weighted", np.round(weighted_update, 4))

    # Leaves are NumPy arrays and scalars, so an update is added to Keras's weights as it is.
    keras.utils.set_random_seed(0)
    global_model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]).get_weights()
    new_global_model = [global_model[i] + weighted_update[i] for i in range(len(global_model))]
    print("moved   ", [np.round(new - old, 4).ravel() for new, old in zip(new_global_model, global_model, strict=True)])

    client_data = [client_batches(n) for n in (4, 1, 7)]
    iterative_process = tff.learning.build_federated_averaging_process(
        model_fn,
        client_optimizer_fn=lambda: keras.optimizers.SGD(learning_rate=0.1),
        server_optimizer_fn=lambda: keras.optimizers.SGD(learning_rate=1.0),
    )
    state = iterative_process.initialize()
    for round_num in range(num_rounds):
        state, metrics = iterative_process.next(state, client_data)
        print("round {:2d}, metrics={}".format(round_num, metrics["client_work"]["train"]))
    trained = iterative_process.get_model_weights(state)
    print("trained ", [np.round(np.asarray(weight), 2).ravel() for weight in trained.trainable])
    return aggregated_update, weighted_update, metrics


if __name__ == "__main__":
    main()
