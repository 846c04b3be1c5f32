"""FedJAX: its own federated averaging on its jit backend, with batches in the suite's order.

Two names that it uses are gone from JAX and are put back first. Where clients differ in size a short batch is padded
with a mask, so that one program serves all; FedJAX's own way would fill it with other rows, which is more work.
"""

from stopwatch import enter, gemm, leave, ready, turn

game = enter()

import warnings

warnings.simplefilter("ignore")

import jax
import jax.numpy as jnp

jax.tree_map = jax.tree.map
jnp.NINF = -jnp.inf

import fedjax
import jax_models
import numpy as np

ready(game)

work, x, y = game.workload, game.floats(game.data.x), np.asarray(game.data.y)
ragged = work.size[1] > 0 or work.data == "characters"


class Client(fedjax.ClientDataset):
    """A client whose batches come in the order given."""

    def __init__(self, client, batches):
        rows = slice(game.data.offsets[client], game.data.offsets[client + 1])
        super().__init__({"x": x[rows], "y": y[rows]})
        self.batches = batches

    def shuffle_repeat_batch(self, hparams=None, **kwargs):
        for rows in self.batches:
            if not ragged:
                yield {"x": x[rows], "y": y[rows]}
                continue
            filled = np.resize(rows, work.batch)
            mask = np.arange(work.batch) < len(rows)
            yield {"x": x[filled], "y": y[filled], fedjax.EXAMPLE_MASK_KEY: mask}


predict = jax_models.predictor(work.model)
algorithm = fedjax.algorithms.fed_avg.federated_averaging(
    fedjax.grad(lambda params, batch, rng: jax_models.loss(predict(params, batch["x"]), batch["y"])),
    fedjax.optimizers.sgd(work.rate),
    fedjax.optimizers.sgd(1.0),
    fedjax.ShuffleRepeatBatchHParams(batch_size=work.batch, num_epochs=work.epochs),
)
orders = game.orders()
key = jax.random.PRNGKey(0)
state = algorithm.init({name: jnp.asarray(a) for name, a in game.weights.items()})
for number in game.rounds:
    clients = [
        (client, Client(client, batches), key)
        for client, batches in zip(game.cohorts[number].tolist(), orders[number], strict=True)
    ]
    with turn(game):
        state, _ = algorithm.apply(state, clients)
        jax.block_until_ready(state.params)

shown, labels = game.evaluation()
loss = jax_models.loss(predict(state.params, jnp.asarray(shown)), jnp.asarray(labels)).mean()
multiply = jax.jit(jnp.matmul)


def product(a, b):
    left, right = jnp.asarray(a), jnp.asarray(b)
    return lambda: multiply(left, right).block_until_ready()


leave(game, float(loss), {"fedjax": "0.0.17", "jax": jax.__version__}, gemm(product))
