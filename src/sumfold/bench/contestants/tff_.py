"""TensorFlow Federated: its own federated averaging on its default runtime, with the suite's order of batches.

Models are given as plain functions (`FunctionalModel`); the clients' batches are made before the clock starts.
"""

from stopwatch import enter, gemm, leave, ready, turn

game = enter()

import functools
import os
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
warnings.simplefilter("ignore")

import numpy as np
import tensorflow as tf
import tensorflow_federated as tff

ready(game)
work, x, y = game.workload, game.floats(game.data.x), np.asarray(game.data.y)


def convolutions(p, x, sizes):
    for name, pool in sizes:
        x = tf.nn.relu(tf.nn.conv2d(x, p[name], 1, "VALID") + p[f"{name}_b"])
        x = tf.nn.max_pool2d(x, 2, 2, "VALID") if pool else x
    return tf.reshape(x, [tf.shape(x)[0], p["dense1"].shape[0]])


def predict(p, x):
    if work.model in {"logistic", "softmax"}:
        return x @ p["w"] + p["b"]
    if work.model == "blitz_cnn":
        x = convolutions(p, x, [("conv1", True), ("conv2", True)])
        x = tf.nn.relu(x @ p["dense1"] + p["dense1_b"])
        return tf.nn.relu(x @ p["dense2"] + p["dense2_b"]) @ p["dense3"] + p["dense3_b"]
    x = convolutions(p, x, [("conv1", False), ("conv2", True)])
    return tf.nn.relu(x @ p["dense1"] + p["dense1_b"]) @ p["dense2"] + p["dense2_b"]


def loss(outputs, y):
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, outputs))


names = list(game.weights)


def trained(weights):
    return dict(zip(names, weights[0], strict=True))


@tf.function
def predict_on_batch(weights, features, training=True):
    return predict(trained(weights), features)


@tf.function
def loss_of(output, label, sample_weight=None):
    return loss(output, label)


model = tff.learning.models.FunctionalModel(
    initial_weights=(tuple(game.weights.values()), ()),
    predict_on_batch_fn=predict_on_batch,
    loss_fn=loss_of,
    input_spec=(tf.TensorSpec((None, *x.shape[1:]), tf.float32), tf.TensorSpec((None,), tf.int32)),
)
build = (
    tff.learning.algorithms.build_unweighted_fed_avg if work.uniform else tff.learning.algorithms.build_weighted_fed_avg
)
process = build(
    model,
    client_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=work.rate),
    server_optimizer_fn=tff.learning.optimizers.build_sgdm(learning_rate=1.0),
)


def dataset(batches):
    """A client's rows in the order in which they are taken, in batches; epoch after epoch."""
    rows, each = np.concatenate(batches), sum(map(len, batches)) // work.epochs
    epochs = [rows[at : at + each] for at in range(0, len(rows), each)]
    parts = [tf.data.Dataset.from_tensor_slices((x[part], y[part])).batch(work.batch) for part in epochs]
    return functools.reduce(lambda before, after: before.concatenate(after), parts)


clients = [[dataset(batches) for batches in cohort] for cohort in game.orders()]
state = process.initialize()
for number in game.rounds:
    with turn(game):
        told = process.next(state, clients[number])
        state = told.state
weights = process.get_model_weights(state).trainable
shown, labels = game.evaluation()
final = float(loss(predict(dict(zip(names, weights, strict=True)), tf.constant(shown)), tf.constant(labels)))


def product(a, b):
    left, right = tf.constant(a), tf.constant(b)
    return lambda: tf.matmul(left, right).numpy()


leave(game, final, {"tff": tff.__version__, "tensorflow": tf.__version__}, gemm(product))
