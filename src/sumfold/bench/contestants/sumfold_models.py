"""The workloads' models for Sumfold: as functions, and the EMNIST CNN written in Flax, Keras and Equinox."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import jax_models
import numpy as np
from numpy.typing import NDArray
from stopwatch import workloads

import sumfold as sf

if TYPE_CHECKING:
    from stopwatch import Game

__all__ = ["final_loss", "process", "product", "shaped"]

_CLIP = 0.05
"""The bound of an update's norm, as a part of the initial weights' norm."""


def process(game: Game, optimizer: Any, written: str) -> sf.Process:
    """Federated averaging, or sums of updates alone."""
    work = game.workload
    if work.data == "updates":
        return _sums(game)
    return sf.learning.fed_avg(
        _model(game, written),
        optimizer,
        weighting="uniform" if work.uniform else "examples",
        batching=sf.Batching(work.batch, epochs=work.epochs),
    )


def shaped(x: NDArray[Any], written: str) -> NDArray[Any]:
    """Images as the framework has them: Equinox wants channels first."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if written == "equinox" else x


def final_loss(game: Game, process: sf.Process, state: sf.State, written: str) -> float:
    """Of the final weights, as every contestant computes it."""
    if process.model is None:
        return float(0.5 * np.mean(np.square(np.asarray(state.algorithm[0], np.float64))))
    x, y = game.evaluation()
    told = process.model.evaluate(process.get_model_weights(state), shaped(x, written), y)
    return float(told["loss"])


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> Callable[[], object]:
    """JAX's matrix product, for `stopwatch.gemm`."""
    left, right = jnp.asarray(a), jnp.asarray(b)
    multiply = jax.jit(jnp.matmul)
    return lambda: multiply(left, right).block_until_ready()


def triad(a: NDArray[np.float32], b: NDArray[np.float32]) -> Callable[[], object]:
    """The sum a + 3 b, for `stopwatch.triad`; in the place of a, as a sum is."""
    held = [jnp.asarray(a)]
    right = jnp.asarray(b)
    add = jax.jit(lambda a, b: a + 3 * b, donate_argnums=0)

    def once() -> object:
        held[0] = add(held[0], right).block_until_ready()
        return held

    return once


def _sums(game: Game) -> sf.Process:
    """A client's update is the weights times a number of its own; the server takes a step by their mean.

    With ``adam`` a step of FedAdam (Reddi et al. 2021, Algorithm 2), by `workloads.ADAM`.
    """
    clip = game.workload.model == "clipped"
    bound = _CLIP * float(np.linalg.norm(game.weights["w"]))

    def encode(public: Any, memory: Any, given: sf.Contribution, key: Any) -> tuple[sf.Contribution, Any]:
        norm = jnp.sqrt(jnp.sum(jnp.square(given.value)))
        return given._replace(value=given.value * jnp.minimum(1, bound / norm)), memory

    def counts(measured: sf.Measured) -> dict[str, Any]:
        return dict.fromkeys(("num_examples", "num_batches"), measured.num_clients)

    clipping = sf.Stage(encode, lambda state, total, key: (total, state, {}), group=None, name="clip")
    mean = sf.aggregators.mean()
    rate = game.workload.rate
    work = sf.Work(
        init=lambda task, key: jnp.float32(0),
        step=lambda task, number, batch, key: number + jnp.where(batch.mask, batch.examples[0], 0).sum(),
        finish=lambda task, number, key: sf.Report(
            {"update": sf.Contribution(task.message * (-rate * number), jnp.float32(1))}
        ),
        batching=sf.Batching(1),
    )
    first, second, rate_of_server, floor = workloads.ADAM

    def finalize(state: tuple[Any, ...], results: Any, measured: sf.Measured, key: Any) -> tuple[Any, Any]:
        (w, *moments), mean_update = state, results["update"]
        if moments:
            m = first * moments[0] + (1 - first) * mean_update
            v = second * moments[1] + (1 - second) * mean_update**2
            mean_update, moments = rate_of_server * m / (jnp.sqrt(v) + floor), [m, v]
        return (w + mean_update, *moments), {"client_work": {"train": counts(measured)}}

    aggregate = {"update": sf.chain(clipping, mean) if clip else mean}
    phase = sf.Phase(lambda state, key: state[0], work, aggregate, finalize)
    start, moments = game.weights["w"], 2 if game.workload.model == "adam" else 0

    def begin(params: Any, key: Any) -> tuple[Any, ...]:
        return jnp.asarray(start), *(jnp.zeros_like(start) for _ in range(moments))

    return sf.Process(sf.Round("sums", begin, (phase,)))


# -- the EMNIST CNN in the frameworks' own words


def _model(game: Game, written: str) -> Any:
    """The workload's model with its initial weights."""
    if written == "functions":
        weights = game.weights  # a function that held the game would take the data along to other processes
        return sf.models.from_functions(
            lambda key: {name: jnp.asarray(a) for name, a in weights.items()},
            jax_models.predictor(game.workload.model),
            jax_models.loss,
        )
    if game.workload.model != "emnist_cnn":
        raise SystemExit(f"model={written} is written for w2 only")
    return {"flax": _flax, "keras": _keras, "equinox": _equinox}[written](game)


def _flax(game: Game) -> Any:
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            x = nn.relu(nn.Conv(32, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Conv(64, (3, 3), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
            x = nn.relu(nn.Dense(128)(x.reshape(len(x), -1)))
            return nn.Dense(62)(x)

    model = sf.models.from_flax(Net(), np.zeros((1, 28, 28, 1), np.float32), jax_models.loss)
    pairs = zip(("Conv_0", "Conv_1", "Dense_0", "Dense_1"), ("conv1", "conv2", "dense1", "dense2"), strict=True)
    w = game.weights
    start = {"params": {ours: {"kernel": w[name], "bias": w[f"{name}_b"]} for ours, name in pairs}}
    return _starting(model, start)


def _keras(game: Game) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    layers = keras.layers
    net = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(32, 3, activation="relu"),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(62),
        ]
    )
    net.set_weights(list(game.weights.values()))
    return sf.models.from_keras(net, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def _equinox(game: Game) -> Any:
    import equinox as eqx

    class Net(eqx.Module):  # type: ignore[misc]
        conv1: Any
        conv2: Any
        pool: Any
        dense1: Any
        dense2: Any

        def __call__(self, x: Any) -> Any:
            x = jax.nn.relu(self.conv2(jax.nn.relu(self.conv1(x))))
            x = jax.nn.relu(self.dense1(self.pool(x).ravel()))
            return self.dense2(x)

    key, w = jax.random.key(0), game.weights
    net = Net(
        eqx.nn.Conv2d(1, 32, 3, key=key),
        eqx.nn.Conv2d(32, 64, 3, key=key),
        eqx.nn.MaxPool2d(2, 2),
        eqx.nn.Linear(9216, 128, key=key),
        eqx.nn.Linear(128, 62, key=key),
    )
    rows = w["dense1"].reshape(12, 12, 64, 128).transpose(2, 0, 1, 3).reshape(9216, 128)
    values = (
        *(w["conv1"].transpose(3, 2, 0, 1), w["conv1_b"].reshape(-1, 1, 1)),
        *(w["conv2"].transpose(3, 2, 0, 1), w["conv2_b"].reshape(-1, 1, 1)),
        *(rows.T, w["dense1_b"], w["dense2"].T, w["dense2_b"]),
    )
    places = lambda net: [  # noqa: E731
        a for layer in (net.conv1, net.conv2, net.dense1, net.dense2) for a in (layer.weight, layer.bias)
    ]
    net = eqx.tree_at(places, net, [jnp.asarray(np.ascontiguousarray(value)) for value in values])
    return sf.models.from_equinox(net, jax_models.loss)


def _starting(model: Any, weights: Any) -> Any:
    """The same model that begins with these weights."""
    return dataclasses.replace(model, init=lambda key: jax.tree.map(jnp.asarray, weights))
