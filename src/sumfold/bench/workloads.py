"""What is computed: data, initial weights, cohorts and the order of batches, the same for every contestant.

All data are drawn with the counter-based generator Philox (Salmon et al. 2011): the stream's key is (suite seed,
workload and purpose), a client's words stand at a fixed place of it, and numbers are made from them by integer
arithmetic. So any client can be made alone, in any order, on any machine. Images are a class's prototype and noise,
text is a Zipf(1.1) unigram mixed with a bigram of the client's own, sizes are clipped log-normal.

The order of a client's rows in one epoch is the order of a hash of (seed, round, client, epoch, row), as
`sumfold.Batching` documents it: Sumfold plans it anew in every round, the others are given it.

Only NumPy and the standard library are used, and nothing of Sumfold: an environment of a peer loads this file by path.
"""

from __future__ import annotations

import gzip
import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "ADAM",
    "SEED",
    "WORKLOADS",
    "Data",
    "Order",
    "Workload",
    "cohorts",
    "load",
    "order",
    "quick",
    "rows_of",
    "weights",
]

SEED = 2026
"""The suite's seed, and the seed of every run in it."""

ADAM = (0.9, 0.99, 0.01, 1e-3)
"""Of the server in ``w6a``: decay of both moments, learning rate, and what is added to the root of the second."""

_CELLS = 2**32
_CHARACTERS = 90
_MIXED = 0.3
"""How many of the words of a text follow its client's own bigram."""


class Workload(NamedTuple):
    """One row of the benchmark.

    Attributes:
        name, title: how it is asked for, and what it is.
        data: ``images``, ``vectors``, ``words``, ``characters`` or ``updates``.
        number: the data's number in the keys of their random streams.
        model: a name that the contestants know.
        population, cohort: clients that there are, and those of one round.
        size: examples of a client: mean, coefficient of variation, least, most.
        batch, epochs, rate: of local training, plain SGD.
        rounds: by default; the first two warm up.
        flops: floating-point operations of one example, forward and backward; 0 where they say nothing.
        shape, classes: of one example, and of its label.
        uniform: clients weigh the same, whatever they hold; else by examples.
        tolerance: by which final losses may differ, relative; rounding grows along a run where units switch on and off.
    """

    name: str
    title: str
    data: str
    number: int
    model: str
    population: int
    cohort: int
    size: tuple[float, float, int, int]
    batch: int
    epochs: int = 1
    rate: float = 0.1
    rounds: int = 12
    flops: float = 0.0
    shape: tuple[int, ...] = ()
    classes: int = 0
    uniform: bool = False
    tolerance: float = 1e-5


class Data(NamedTuple):
    """A population's examples, client k in the rows ``offsets[k]:offsets[k + 1]``; memory-mapped.

    Attributes:
        x: images uint8[N, H, W, C] or uint8[N, D], vectors float32[N, D], text int32[N, T], updates float32[N].
        y: int32[N], or int32[N, T] for text: the following words.
        offsets: int64[K + 1].
    """

    x: NDArray[Any]
    y: NDArray[np.int32]
    offsets: NDArray[np.int64]


class Order(NamedTuple):
    """What the clients of one cohort compute in one round.

    Attributes:
        rows: int64[R], rows of the data as they are taken, client after client.
        sizes: int64[T], rows of each batch.
        steps: int64[K], batches of each client.
    """

    rows: NDArray[np.int64]
    sizes: NDArray[np.int64]
    steps: NDArray[np.int64]

    def batches(self) -> list[list[NDArray[np.int64]]]:
        """For each client its batches, as rows of the data."""
        ends = np.cumsum(self.sizes)
        every = [self.rows[end - size : end] for end, size in zip(ends.tolist(), self.sizes.tolist(), strict=True)]
        last = np.cumsum(self.steps)
        return [every[end - n : end] for end, n in zip(last.tolist(), self.steps.tolist(), strict=True)]


_EMNIST = (197.5, 0.4, 10, 400)
_SOFTMAX = {"data": "vectors", "number": 4, "model": "softmax", "population": 1_000_000, "size": (8, 0, 8, 8)}
_SOFTMAX |= {"batch": 10, "flops": 2_400.0, "shape": (60,), "classes": 10}
_WORDS = {"data": "words", "number": 5, "population": 10_000, "cohort": 50, "size": (40, 0.6, 4, 64), "batch": 16}
_WORDS |= {"rate": 0.3, "rounds": 4, "shape": (20,), "classes": 10_004}

WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        Workload(
            "w1", "logistic regression 784→62, 100 clients × 197 examples, B 20", "images", 1, "logistic", 3_400, 100,
            _EMNIST, 20, rounds=22, flops=0.19e6, shape=(784,), classes=62,
        ),
        Workload(
            "w2", "EMNIST CNN of 1,206,590 parameters, 10 clients × 197 examples, B 20", "images", 1, "emnist_cnn",
            3_400, 10, _EMNIST, 20, rounds=8, flops=71.6e6, shape=(28, 28, 1), classes=62, tolerance=2e-3,
        ),
        Workload(
            "w3", "CIFAR CNN of 1,626,442 parameters, 50 clients × 50 examples, B 10", "images", 3, "cifar_cnn", 1_000,
            50, (50, 0, 50, 50), 10, rounds=6, flops=99.5e6, shape=(32, 32, 3), classes=10, uniform=True,
            tolerance=1e-3,
        ),
        Workload(
            "w3b", "CNN of 62,006 parameters, 100 clients × 500 examples × 5 epochs, B 50", "images", 3, "blitz_cnn",
            100, 100, (500, 0, 500, 500), 50, epochs=5, rounds=4, flops=3.2e6, shape=(32, 32, 3), classes=10,
            tolerance=1e-4,
        ),
        Workload("w4", "softmax 60→10, 1,000 clients × 8 examples, one step each", cohort=1_000, rounds=22, **_SOFTMAX),  # type: ignore[arg-type]
        Workload("w4b", "softmax 60→10, 10,000 clients × 8 examples, one step each", cohort=10_000, **_SOFTMAX),  # type: ignore[arg-type]
        Workload("w4c", "softmax 60→10, 100,000 clients × 8 examples, one step each", cohort=100_000, **_SOFTMAX),  # type: ignore[arg-type]
        Workload(
            "w4d", "softmax 60→10, 1,000,000 clients × 8 examples, one step each", cohort=1_000_000,
            **_SOFTMAX | {"rounds": 6},  # type: ignore[arg-type]
        ),
        Workload(
            "w5", "next word, LSTM of 4,050,748 parameters, 50 clients", model="lstm", flops=20 * 18.5e6,
            **_WORDS,  # type: ignore[arg-type]
        ),
        Workload(
            "w5t", "next word, transformer of 1,962,912 parameters, 50 clients", model="transformer",
            flops=20 * 11.8e6, **_WORDS,  # type: ignore[arg-type]
        ),
        Workload(
            "w6", "mean of 10 updates of 100 M float32", "updates", 6, "mean", 1_000, 10, (1, 0, 1, 1), 1, rounds=5,
            shape=(100_000_000,),
        ),
        Workload(
            "w6a", "FedAdam with 10 updates of 100 M float32", "updates", 6, "adam", 1_000, 10, (1, 0, 1, 1), 1,
            rounds=5, shape=(100_000_000,), tolerance=1e-3,
        ),
        Workload(
            "w6c", "mean of 10 updates of 100 M float32, clipped", "updates", 6, "clipped", 1_000, 10, (1, 0, 1, 1), 1,
            rounds=5, shape=(100_000_000,), tolerance=1e-3,
        ),
        Workload(
            "shakespeare", "next character, two LSTMs of 256, 10 speaking roles, B 4", "characters", 7, "two_lstms", 0,
            10, (0, 0, 0, 0), 4, rate=1.0, rounds=4, flops=80 * 4.9e6, shape=(80,), classes=_CHARACTERS,
            tolerance=1e-3,
        ),
    )
}  # fmt: skip


def quick(workload: Workload) -> Workload:
    """The same work in small: for a look at whether everything runs, not for numbers."""
    cohort = min(workload.cohort, {"w4": 200, "w4b": 500, "w4c": 1_000, "w4d": 2_000}.get(workload.name, 4))
    shape = (1_000_000,) if workload.data == "updates" else workload.shape
    mean, spread, least, most = workload.size
    size = (mean, spread, least, most) if workload.data == "vectors" else (min(mean, 45), spread, least, min(most, 90))
    size = (50, 0, 50, 50) if workload.name == "w3b" else size
    population = min(workload.population, max(4 * cohort, 20))
    return workload._replace(population=population, cohort=cohort, size=size, rounds=4, shape=shape)


# -- words, and numbers out of them


def _words(workload: Workload, purpose: int, client: int, each: int, count: int) -> NDArray[np.uint64]:
    """`count` words of the stream (workload, purpose), from the place where client's begin; `each` are reserved."""
    key = np.array([SEED, workload.number << 8 | purpose], np.uint64)
    return np.random.Philox(counter=client * -(-each // 4), key=key).random_raw(count)


def _integers(words: NDArray[np.uint64], bound: int | NDArray[Any]) -> NDArray[np.int64]:
    """Whole numbers below `bound`, one a word."""
    return ((words >> np.uint64(32)) * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(np.int64)


def _halves(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers in [0, 1), two a word, of 32 bits each."""
    return words.view(np.uint32) / np.float64(_CELLS)


def _sizes(workload: Workload) -> NDArray[np.int64]:
    """Examples of every client: log-normal, clipped."""
    mean, spread, least, most = workload.size
    if spread == 0:
        return np.full(workload.population, int(mean), np.int64)
    u = _halves(_words(workload, 0, 0, 0, workload.population)).reshape(-1, 2)
    normal = np.sqrt(-2 * np.log1p(-u[:, 0])) * np.cos(2 * np.pi * u[:, 1])  # Box and Muller 1958
    deviation = np.sqrt(np.log1p(spread**2))
    drawn = mean * np.exp(deviation * normal - deviation**2 / 2)
    sizes: NDArray[np.int64] = np.clip(np.rint(drawn), least, most).astype(np.int64)
    return sizes


# -- one client's examples


def _labels(workload: Workload, client: int, count: int) -> NDArray[np.int64]:
    """Half of a client's labels are of five classes of its own, half of any."""
    words = _words(workload, 1, client, 1_204, 4 + 3 * count)
    own = _integers(words[:4], workload.classes).sum() + np.arange(5)
    any_, which, coin = words[4:].reshape(3, count)
    picked = own[_integers(which, 5)] % workload.classes
    labels: NDArray[np.int64] = np.where(coin >> np.uint64(63), picked, _integers(any_, workload.classes))
    return labels


def _images(workload: Workload, client: int, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """A class's prototype, an eighth of the range, and noise."""
    y = _labels(workload, client, count)
    pixels = int(np.prod(workload.shape))
    prototypes = _words(workload, 2, 0, 0, workload.classes * pixels // 8).view(np.uint8).reshape(-1, pixels)
    each = 512 * pixels // 8
    noise = _words(workload, 3, client, each, count * pixels // 8).view(np.uint8).reshape(-1, pixels)
    x = noise - (noise >> 3) + (prototypes[y] >> 3)
    return x.reshape(count, *workload.shape), y.astype(np.int32)


def _vectors(workload: Workload, first: int, clients: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Many clients of one size at once: 60 numbers in [-1, 1), some of them shifted by the class."""
    per_client, features = int(workload.size[0]), workload.shape[0]
    each = per_client * (features // 4 + 1)
    words = _words(workload, 4, first, each, clients * each).reshape(clients, per_client, -1)
    y = _integers(words[..., -1], workload.classes)
    quarters = np.ascontiguousarray(words[..., :-1]).view(np.uint16).reshape(-1, features)
    x = quarters.astype(np.float32) * np.float32(2.0**-15) - 1
    flat = y.reshape(-1)
    x[np.arange(len(x)), flat * features // workload.classes] += np.float32(0.5)
    return x, flat.astype(np.int32)


def _sentences(
    workload: Workload, client: int, count: int, table: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Sentences of 21 words: 20 that are read, and those that follow them."""
    length, size = workload.shape[0] + 1, workload.classes
    words = _words(workload, 5, client, 4 + 2 * 64 * length, 4 + 2 * count * length)
    factor, shift = 2 * _integers(words[:1], size // 2)[0] + 1, _integers(words[1:2], size)[0]
    drawn, coins = words[4:].reshape(2, count, length)
    text = table[_integers(drawn, len(table))]
    bigram = (coins >> np.uint64(32)).astype(np.float64) < _MIXED * _CELLS
    for place in range(1, length):
        follows = (text[:, place - 1] * factor + shift) % size
        text[:, place] = np.where(bigram[:, place], follows, text[:, place])
    return text[:, :-1].astype(np.int32), text[:, 1:].astype(np.int32)


def _zipf(size: int) -> NDArray[np.int64]:
    """Words as often as Zipf's law with exponent 1.1 has them, in 2¹⁶ places."""
    mass = np.cumsum(1.0 / np.arange(1, size + 1) ** 1.1)
    table: NDArray[np.int64] = np.searchsorted(mass, (np.arange(65_536) + 0.5) / 65_536 * mass[-1])
    return table


# -- the population


def load(workload: Workload, folder: Path, source: Path | None = None) -> Data:
    """A population's examples, read from the folder; made there when they are not.

    They are in memory as a user's arrays are: pages of a mapped file would cost each contestant a fault where a round
    first meets them.

    Args:
        workload: whose.
        folder: where generated data lie.
        source: the file of plays, for characters: JSON, compressed with gzip, ``{"play/role": [speech, …]}``.
    """
    told = (workload.data, workload.number, workload.population, workload.size, workload.classes, SEED)
    code = hash_of(np.frombuffer(repr((1, told, source and source.stat().st_size)).encode(), np.uint8))[:12]
    place = folder / f"{workload.data}-{code}"
    if not place.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=folder))
        try:
            _write(workload, made, source)
            made.rename(place)
        except OSError:
            if not place.is_dir():  # unless somebody else was quicker
                raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
    x, y, offsets = (np.load(place / f"{name}.npy") for name in Data._fields)
    return Data(x.reshape(len(x), *workload.shape) if workload.data == "images" else x, y, offsets)


def _write(workload: Workload, folder: Path, source: Path | None) -> None:
    if workload.data == "characters":
        if source is None:
            raise FileNotFoundError("the workload shakespeare needs the file of plays: --data shakespeare.json.gz")
        plays = _plays(workload, source)
        np.save(folder / "x.npy", plays.x)
        np.save(folder / "y.npy", plays.y)
        np.save(folder / "offsets.npy", plays.offsets)
        return
    counts = _sizes(workload)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    np.save(folder / "offsets.npy", offsets)
    text, total = workload.data == "words", int(offsets[-1])
    dtype = {"images": np.uint8, "words": np.int32}.get(workload.data, np.float32)
    shape = {"updates": (), "images": (int(np.prod(workload.shape)),)}.get(workload.data, workload.shape)
    x, y = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", of, (total, *inner))
        for name, of, inner in (("x", dtype, shape), ("y", np.int32, shape if text else ()))
    )
    at_once = 10_000 if workload.data == "vectors" else 1
    for first in range(0, workload.population, at_once):
        many = min(at_once, workload.population - first)
        rows = slice(offsets[first], offsets[first + many])
        made = examples(workload, first, many, counts)
        x[rows], y[rows] = made[0].reshape(-1, *shape), made[1]
    x.flush()
    y.flush()


def examples(
    workload: Workload, first: int, many: int, counts: NDArray[np.int64] | None = None
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The examples of `many` clients from number `first` on; of one, unless all clients are of one size."""
    if workload.data == "vectors":
        return _vectors(workload, first, many)
    count = int((_sizes(workload) if counts is None else counts)[first])
    if workload.data == "images":
        return _images(workload, first, count)
    if workload.data == "words":
        if (table := _TABLES.get(workload.classes)) is None:
            table = _TABLES[workload.classes] = _zipf(workload.classes)
        return _sentences(workload, first, count, table)
    u = _halves(_words(workload, 6, first, 1, 1))[:1]  # an update is the model times a number of the client's
    return u.astype(np.float32), np.zeros(1, np.int32)


_TABLES: dict[int, NDArray[np.int64]] = {}


def _plays(workload: Workload, source: Path) -> Data:
    """A role's speeches as one text, in windows of 81 characters; a last short one is left out."""
    roles = {role: "\n".join(speeches) for role, speeches in json.loads(gzip.decompress(source.read_bytes())).items()}
    often = Counter(character for text in roles.values() for character in text)
    known = sorted(often, key=lambda character: (-often[character], character))[: _CHARACTERS - 1]
    code = {character: number + 1 for number, character in enumerate(known)}  # 0 is any other character
    length, x, y, offsets = workload.shape[0], [], [], [0]
    for role in sorted(roles):
        text = np.array([code.get(character, 0) for character in roles[role]], np.int32)
        windows = (len(text) - 1) // length
        if windows == 0:
            continue
        x.append(text[: windows * length].reshape(-1, length))
        y.append(text[1 : windows * length + 1].reshape(-1, length))
        offsets.append(offsets[-1] + windows)
    return Data(np.concatenate(x), np.concatenate(y), np.array(offsets, np.int64))


# -- cohorts, order, weights


def cohorts(workload: Workload, data: Data, rounds: int) -> list[NDArray[np.int64]]:
    """The clients of every round, drawn without replacement; everybody in order where the cohort is the population."""
    population = len(data.offsets) - 1
    if workload.cohort >= population:
        return [np.arange(population)] * rounds
    chosen = []
    for number in range(rounds):
        key = np.array([SEED, workload.number << 8 | 16], np.uint64)
        generator = np.random.Generator(np.random.Philox(counter=number << 64, key=key))
        chosen.append(generator.permutation(population)[: workload.cohort])
    return chosen


def order(workload: Workload, data: Data, clients: Sequence[int] | NDArray[np.int64], number: int) -> Order:
    """What these clients compute in round `number`, from 0."""
    clients = np.asarray(clients, np.int64)
    starts, counts = data.offsets[clients], data.offsets[clients + 1] - data.offsets[clients]
    epochs = workload.epochs
    drawn = _mix(
        np.uint64(0), np.uint64(SEED), number, np.repeat(clients, epochs), np.tile(np.arange(epochs), len(clients))
    )
    lengths = np.repeat(counts, epochs)
    first = np.cumsum(lengths) - lengths
    place = np.arange(int(lengths.sum())) - np.repeat(first, lengths)
    hashed = _stir(np.repeat(_mix(drawn), lengths), place) >> np.uint64(32)
    segment = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths) << np.uint64(32)
    rows = place[np.argsort(segment | hashed, kind="stable")] + np.repeat(np.repeat(starts, epochs), lengths)
    steps = -(-lengths // workload.batch)
    batch = np.arange(int(steps.sum())) - np.repeat(np.cumsum(steps) - steps, steps)
    sizes = np.minimum(np.repeat(lengths, steps) - batch * workload.batch, workload.batch)
    return Order(rows, sizes, steps.reshape(-1, epochs).sum(axis=1))


def _mix(*words: Any) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014), chained over words."""
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for word in words:
        state = _stir(state, word)
    return state


def _stir(state: NDArray[np.uint64], word: Any) -> NDArray[np.uint64]:
    state = state + np.asarray(word).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def rows_of(workload: Workload, data: Data) -> NDArray[np.int64]:
    """The rows on which every contestant evaluates its final weights."""
    few = {"words": 100, "characters": 100}.get(workload.data, 2_000)
    return np.arange(min(few, int(data.offsets[-1])))


_DENSE: dict[str, list[tuple[str, tuple[int, ...]]]] = {
    "logistic": [("w", (784, 62)), ("b", (62,))],
    "softmax": [("w", (60, 10)), ("b", (10,))],
    "emnist_cnn": [
        *(("conv1", (3, 3, 1, 32)), ("conv1_b", (32,)), ("conv2", (3, 3, 32, 64)), ("conv2_b", (64,))),
        *(("dense1", (9216, 128)), ("dense1_b", (128,)), ("dense2", (128, 62)), ("dense2_b", (62,))),
    ],
    "cifar_cnn": [
        *(("conv1", (3, 3, 3, 32)), ("conv1_b", (32,)), ("conv2", (3, 3, 32, 64)), ("conv2_b", (64,))),
        *(("dense1", (12544, 128)), ("dense1_b", (128,)), ("dense2", (128, 10)), ("dense2_b", (10,))),
    ],
    "blitz_cnn": [
        *(("conv1", (5, 5, 3, 6)), ("conv1_b", (6,)), ("conv2", (5, 5, 6, 16)), ("conv2_b", (16,))),
        *(("dense1", (400, 120)), ("dense1_b", (120,)), ("dense2", (120, 84)), ("dense2_b", (84,))),
        *(("dense3", (84, 10)), ("dense3_b", (10,))),
    ],
    "lstm": [
        *(("embedding", (10_004, 96)), ("lstm1_x", (96, 2680)), ("lstm1_h", (670, 2680)), ("lstm1_b", (2680,))),
        *(("dense1", (670, 96)), ("dense1_b", (96,)), ("dense2", (96, 10_004)), ("dense2_b", (10_004,))),
    ],
    "two_lstms": [
        *(("embedding", (90, 8)), ("lstm1_x", (8, 1024)), ("lstm1_h", (256, 1024)), ("lstm1_b", (1024,))),
        *(("lstm2_x", (256, 1024)), ("lstm2_h", (256, 1024)), ("lstm2_b", (1024,))),
        *(("dense", (256, 90)), ("dense_b", (90,))),
    ],
    "transformer": [
        ("embedding", (10_004, 96)),
        *(
            (f"{name}{layer}", shape)
            for layer in range(3)
            for name, shape in (
                *(("qkv", (96, 288)), ("qkv_b", (288,)), ("out", (96, 96)), ("out_b", (96,))),
                *(("norm1_s", (96,)), ("norm1_b", (96,)), ("ff1_", (96, 1536)), ("ff1_b", (1536,))),
                *(("ff2_", (1536, 96)), ("ff2_b", (96,)), ("norm2_s", (96,)), ("norm2_b", (96,))),
            )
        ),
    ],
}
"""The arrays of each model in the layout of most: dense [in, out], convolutions [height, width, in, out], the gates of
an LSTM in the order input, forget, cell, output."""


def weights(workload: Workload) -> dict[str, NDArray[np.float32]]:
    """Initial weights: Glorot and Bengio 2010, uniform; biases 0, scales 1; the forget gate's bias 1."""
    if workload.data == "updates":
        u = _halves(_words(workload, 32, 0, 0, 250_000))
        return {"w": np.resize((u * 2e-3 - 1e-3).astype(np.float32), workload.shape)}
    made = {}
    for number, (name, shape) in enumerate(_DENSE[workload.model]):
        if len(shape) == 1:
            made[name] = np.full(shape, float(name.startswith("norm") and "_s" in name), np.float32)
            if name.startswith("lstm"):
                made[name][shape[0] // 4 : shape[0] // 2] = 1
            continue
        size, field = int(np.prod(shape)), int(np.prod(shape[:-2]))
        limit = np.sqrt(6.0 / (field * (shape[-2] + shape[-1])))
        u = _halves(_words(workload, 32 + number, 0, 0, -(-size // 2)))[:size]
        made[name] = ((2 * u - 1) * limit).astype(np.float32).reshape(shape)
    return made


def hash_of(*arrays: NDArray[Any]) -> str:
    """A digest of arrays with their shapes and dtypes."""
    import hashlib

    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
