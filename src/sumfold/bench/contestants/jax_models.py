"""The workloads' models in JAX, as functions (params, x) -> outputs, with labels' loss of each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

__all__ = ["loss", "predictor"]

Params = dict[str, Any]


def loss(outputs: jax.Array, y: jax.Array) -> jax.Array:
    """Cross entropy of each example; of text, the mean over its places."""
    logits = jax.nn.log_softmax(outputs)
    picked = -jnp.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return picked.reshape(len(y), -1).mean(axis=1)


def predictor(model: str) -> Callable[[Params, jax.Array], jax.Array]:
    """The model of this name."""
    return {
        "logistic": linear,
        "softmax": linear,
        "emnist_cnn": two_convolutions,
        "cifar_cnn": two_convolutions,
        "blitz_cnn": blitz,
        "lstm": lstm,
        "two_lstms": two_lstms,
        "transformer": transformer,
    }[model]


def floats(x: jax.Array) -> jax.Array:
    """Images that came as uint8."""
    return x.astype(jnp.float32) * np.float32(1 / 255) - np.float32(0.5) if x.dtype == jnp.uint8 else x


def linear(p: Params, x: jax.Array) -> jax.Array:
    return floats(x) @ p["w"] + p["b"]


def convolution(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b


def pool(x: jax.Array) -> jax.Array:
    """The largest of each 2 × 2."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def two_convolutions(p: Params, x: jax.Array) -> jax.Array:
    """Two convolutions of 3 × 3, a pooling, two dense layers; without dropout."""
    x = jax.nn.relu(convolution(floats(x), p["conv1"], p["conv1_b"]))
    x = pool(jax.nn.relu(convolution(x, p["conv2"], p["conv2_b"])))
    x = jax.nn.relu(x.reshape(len(x), -1) @ p["dense1"] + p["dense1_b"])
    return x @ p["dense2"] + p["dense2_b"]


def blitz(p: Params, x: jax.Array) -> jax.Array:
    x = pool(jax.nn.relu(convolution(floats(x), p["conv1"], p["conv1_b"])))
    x = pool(jax.nn.relu(convolution(x, p["conv2"], p["conv2_b"])))
    x = jax.nn.relu(x.reshape(len(x), -1) @ p["dense1"] + p["dense1_b"])
    x = jax.nn.relu(x @ p["dense2"] + p["dense2_b"])
    return x @ p["dense3"] + p["dense3_b"]


def _recurrent(p: Params, name: str, x: jax.Array) -> jax.Array:
    """An LSTM over [B, T, D]; what comes in is multiplied for all places at once."""
    hidden = p[f"{name}_h"].shape[0]
    come = jnp.swapaxes(x, 0, 1) @ p[f"{name}_x"] + p[f"{name}_b"]

    def place(state: tuple[jax.Array, jax.Array], come: jax.Array) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = state
        i, f, g, o = jnp.split(come + h @ p[f"{name}_h"], 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zero = jnp.zeros((len(x), hidden), jnp.float32)
    return jnp.swapaxes(lax.scan(place, (zero, zero), come)[1], 0, 1)


def lstm(p: Params, x: jax.Array) -> jax.Array:
    h = _recurrent(p, "lstm1", p["embedding"][x])
    return (h @ p["dense1"] + p["dense1_b"]) @ p["dense2"] + p["dense2_b"]


def two_lstms(p: Params, x: jax.Array) -> jax.Array:
    h = _recurrent(p, "lstm2", _recurrent(p, "lstm1", p["embedding"][x]))
    return h @ p["dense"] + p["dense_b"]


def positions(length: int, width: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Sines and cosines (Vaswani et al. 2017, section 3.5)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, width).astype(np.float32)


def _norm(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift


def transformer(p: Params, x: jax.Array) -> jax.Array:
    """Three layers of eight heads, normalised after each half, with the embedding as the last layer too."""
    batch, length = x.shape
    width, heads = p["embedding"].shape[1], 8
    h = p["embedding"][x] * np.float32(width**0.5) + positions(length, width)
    past = np.tril(np.ones((length, length), bool))
    for n in range(3):
        parts = (h @ p[f"qkv{n}"] + p[f"qkv_b{n}"]).reshape(batch, length, 3, heads, width // heads)
        q, k, v = (parts[:, :, part].swapaxes(1, 2) for part in range(3))
        scores = jnp.where(past, q @ k.swapaxes(-1, -2) * np.float32((width // heads) ** -0.5), -1e30)
        mixed = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(batch, length, width)
        h = _norm(h + mixed @ p[f"out{n}"] + p[f"out_b{n}"], p[f"norm1_s{n}"], p[f"norm1_b{n}"])
        inner = jax.nn.relu(h @ p[f"ff1_{n}"] + p[f"ff1_b{n}"])
        h = _norm(h + inner @ p[f"ff2_{n}"] + p[f"ff2_b{n}"], p[f"norm2_s{n}"], p[f"norm2_b{n}"])
    return h @ p["embedding"].T
