"""The workloads' models in PyTorch, as functions (weights, x) -> outputs, over views of one flat buffer.

That is how a careful person writes it for speed: no module or optimizer object in the inner loop, one copy to begin a
client, one update for all weights. Layouts are PyTorch's own: convolutions
[out, in, height, width], images [B, C, H, W].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from stopwatch import Game

__all__ = ["Net", "finished", "floats", "images", "loss", "named", "net", "predictor", "product", "room", "to_torch"]

Weights = dict[str, Tensor]


class Net(NamedTuple):
    """Weights as views of one buffer.

    Attributes:
        flat: float32[P].
        weights: by name, leaves that want gradients.
        predict: (weights, x) -> outputs.
    """

    flat: Tensor
    weights: Weights
    predict: Callable[[Weights, Tensor], Tensor]

    def step(self, x: Tensor, y: Tensor, rate: float) -> None:
        """One step of SGD."""
        values = list(self.weights.values())
        gradients = torch.autograd.grad(loss(self.predict(self.weights, x), y), values)
        with torch.no_grad():
            torch._foreach_add_(values, gradients, alpha=-rate)


def net(model: str, start: dict[str, NDArray[np.float32]], flat: Tensor | None = None) -> Net:
    """A model with these weights, in the buffer given or a new one."""
    arrays = {name: torch.from_numpy(np.ascontiguousarray(to_torch(model, name, a))) for name, a in start.items()}
    if flat is None:
        flat = torch.empty(sum(a.numel() for a in arrays.values()))
    weights, at = {}, 0
    for name, a in arrays.items():
        view = flat[at : at + a.numel()].view(a.shape)
        view.copy_(a)
        weights[name] = view.detach().requires_grad_()
        at += a.numel()
    return Net(flat, weights, predictor(model))


def room(start: dict[str, NDArray[np.float32]], place: torch.device) -> Tensor:
    """A buffer for a model's weights."""
    return torch.empty(sum(a.size for a in start.values()), device=place)


def finished(place: torch.device) -> None:
    """Wait for what was asked of a device."""
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def named(place: torch.device) -> str:
    """What a GPU calls itself; of the CPU the machine tells."""
    return torch.cuda.get_device_name(place) if place.type == "cuda" else ""


def to_torch(model: str, name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """One array of `workloads.weights` in PyTorch's layout."""
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if name.startswith("lstm") and array.ndim == 2:
        return array.T
    if name == "dense1" and model.endswith("_cnn"):  # rows of height, width, channel become channel, height, width
        channels = 16 if model == "blitz_cnn" else 64
        side = int((len(array) // channels) ** 0.5)
        return array.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(array.shape)
    return array


def images(x: NDArray[Any]) -> NDArray[Any]:
    """Images as PyTorch has them."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


def floats(game: Game, rows: slice = slice(None)) -> Tensor:
    """The population's examples as a tensor; images decoded once, before the clock starts."""
    x = game.data.x[rows]
    if x.dtype != np.uint8:
        return torch.from_numpy(np.asarray(x))
    made = torch.empty((len(x), *images(x[:1]).shape[1:]))
    for first in range(0, len(x), 4096):
        made[first : first + 4096] = torch.from_numpy(images(game.floats(x[first : first + 4096])))
    return made


def loss(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean cross entropy over examples, and over the places of text."""
    return functional.cross_entropy(outputs.reshape(-1, outputs.shape[-1]), y.reshape(-1))


def product(a: NDArray[np.float32], b: NDArray[np.float32]) -> Callable[[], object]:
    """PyTorch's matrix product, for `stopwatch.gemm`."""
    left, right = torch.from_numpy(a), torch.from_numpy(b)
    return lambda: torch.mm(left, right)


def predictor(model: str) -> Callable[[Weights, Tensor], Tensor]:
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


def linear(p: Weights, x: Tensor) -> Tensor:
    return torch.addmm(p["b"], x, p["w"])


def two_convolutions(p: Weights, x: Tensor) -> Tensor:
    """Two convolutions of 3 × 3, a pooling, two dense layers; without dropout."""
    x = functional.relu(functional.conv2d(x, p["conv1"], p["conv1_b"]))
    x = functional.max_pool2d(functional.relu(functional.conv2d(x, p["conv2"], p["conv2_b"])), 2)
    x = functional.relu(torch.addmm(p["dense1_b"], x.flatten(1), p["dense1"]))
    return torch.addmm(p["dense2_b"], x, p["dense2"])


def blitz(p: Weights, x: Tensor) -> Tensor:
    x = functional.max_pool2d(functional.relu(functional.conv2d(x, p["conv1"], p["conv1_b"])), 2)
    x = functional.max_pool2d(functional.relu(functional.conv2d(x, p["conv2"], p["conv2_b"])), 2)
    x = functional.relu(torch.addmm(p["dense1_b"], x.flatten(1), p["dense1"]))
    x = functional.relu(torch.addmm(p["dense2_b"], x, p["dense2"]))
    return torch.addmm(p["dense3_b"], x, p["dense3"])


def _recurrent(p: Weights, name: str, x: Tensor) -> Tensor:
    """PyTorch's own LSTM; its second bias, which others do not have, stays zero."""
    hidden = p[f"{name}_h"].shape[1]
    zero = x.new_zeros(1, len(x), hidden)
    arrays = [p[f"{name}_x"], p[f"{name}_h"], p[f"{name}_b"], x.new_zeros(4 * hidden)]
    out: Tensor = torch.lstm(x, (zero, zero), arrays, True, 1, 0.0, True, False, True)[0]
    return out


def lstm(p: Weights, x: Tensor) -> Tensor:
    h = _recurrent(p, "lstm1", functional.embedding(x, p["embedding"]))
    return (h @ p["dense1"] + p["dense1_b"]) @ p["dense2"] + p["dense2_b"]


def two_lstms(p: Weights, x: Tensor) -> Tensor:
    h = _recurrent(p, "lstm2", _recurrent(p, "lstm1", functional.embedding(x, p["embedding"])))
    return h @ p["dense"] + p["dense_b"]


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines (Vaswani et al. 2017, section 3.5)."""
    angle = np.arange(length)[:, None] / 10_000 ** (np.arange(0, width, 2) / width)
    return torch.from_numpy(np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, width).astype(np.float32))


def transformer(p: Weights, x: Tensor) -> Tensor:
    """Three layers of eight heads, normalised after each half, with the embedding as the last layer too."""
    batch, length = x.shape
    width, heads = p["embedding"].shape[1], 8
    h = functional.embedding(x, p["embedding"]) * width**0.5 + positions(length, width).to(x.device)
    for n in range(3):
        parts = (h @ p[f"qkv{n}"] + p[f"qkv_b{n}"]).view(batch, length, 3, heads, width // heads)
        q, k, v = (parts[:, :, part].transpose(1, 2) for part in range(3))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        h = functional.layer_norm(
            h + mixed @ p[f"out{n}"] + p[f"out_b{n}"], (width,), p[f"norm1_s{n}"], p[f"norm1_b{n}"]
        )
        inner = functional.relu(h @ p[f"ff1_{n}"] + p[f"ff1_b{n}"])
        h = functional.layer_norm(
            h + inner @ p[f"ff2_{n}"] + p[f"ff2_b{n}"], (width,), p[f"norm2_s{n}"], p[f"norm2_b{n}"]
        )
    return h @ p["embedding"].T
