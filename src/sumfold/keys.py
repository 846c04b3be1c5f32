"""Randomness is derived, never stored: the only module that makes keys.

A run has one seed. Everything random in it is a function of (seed, round, client, purpose), so a result
does not depend on how clients were packed, on the order in which they ran, or on the runtime. The order of
a client's examples is drawn with a counter-based hash in NumPy (`mix`), because host code plans it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike
from numpy.typing import NDArray

__all__ = ["HostKey", "Key", "code", "codes", "derive", "generator", "root"]

Key: TypeAlias = jax.Array
"""A typed JAX PRNG key (``jax.random.key``)."""

IMPLEMENTATION = "threefry2x32"
_INIT, _FINISH = np.uint32(0xFFFFFFFF), np.uint32(0xFFFFFFFE)


def root(seed: int) -> NDArray[np.uint32]:
    """The run's seed as two words, uint32[2]: what a state stores.

    Args:
        seed: any Python integer; its value modulo 2**64 counts.

    Example:
        >>> root(7)
        array([0, 7], dtype=uint32)
    """
    value = int(seed) % 2**64
    return np.array([value >> 32, value & 0xFFFFFFFF], np.uint32)


def typed(words: ArrayLike) -> Key:
    """The typed key of a seed's two words, uint32[2]."""
    key: Key = jax.random.wrap_key_data(jax.numpy.asarray(words, jax.numpy.uint32), impl=IMPLEMENTATION)
    return key


def derive(run: Key, *, purpose: str, round: ArrayLike | None = None, client: ArrayLike | None = None) -> Key:
    """The key for one purpose, of one round and one client where given.

    Args:
        run: the run's key, `typed` of `root`.
        purpose: a word; different words give independent keys.
        round: the round, an integer or int32[].
        client: the client's `code`, an integer or uint32[].

    Example:
        >>> run = typed(root(0))
        >>> a, b = derive(run, purpose="init"), derive(run, purpose="client", round=3, client=5)
        >>> bool((jax.random.key_data(a) != jax.random.key_data(b)).any())
        True
    """
    key = jax.random.fold_in(run, zlib.crc32(purpose.encode()))
    for part in (round, client):
        if part is not None:
            key = jax.random.fold_in(key, jax.numpy.asarray(part).astype(jax.numpy.uint32))
    return key


def at_init(client: Key) -> Key:
    """The key of a client's `init`."""
    return jax.random.fold_in(client, _INIT)


def at_step(client: Key, step: ArrayLike) -> Key:
    """The key of a client's step number `step`, int32[]."""
    return jax.random.fold_in(client, jax.numpy.asarray(step).astype(jax.numpy.uint32))


def at_finish(client: Key) -> Key:
    """The key of a client's `finish` and of its stages' encoding."""
    return jax.random.fold_in(client, _FINISH)


def code(client: Any) -> int:
    """A client's id as 32 bits: an integer id is its own code, a string's is a hash of its bytes.

    Two strings may share a code; their clients then draw the same order and noise, and nothing breaks.

    Example:
        >>> code(5), code("hungary") == code("hungary")
        (5, True)
    """
    if isinstance(client, (int, np.integer)):
        return int(client) % 2**32
    return int.from_bytes(hashlib.blake2b(str(client).encode(), digest_size=4).digest(), "little")


def codes(clients: Sequence[Any]) -> NDArray[np.uint32]:
    """The codes of many ids, uint32[K]; ranges without a loop.

    Example:
        >>> codes(range(3))
        array([0, 1, 2], dtype=uint32)
    """
    if isinstance(clients, range):
        return (np.arange(clients.start, clients.stop, clients.step, dtype=np.int64) % 2**32).astype(np.uint32)
    return np.fromiter((code(client) for client in clients), np.uint32, len(clients))


def mix(*words: ArrayLike) -> NDArray[np.uint64]:
    """A 64-bit hash of integer words, broadcast over arrays: the finaliser of SplitMix64, chained.

    Source: Steele, Lea and Flood 2014, *Fast splittable pseudorandom number generators*.

    Example:
        >>> mix(1, np.arange(2)).dtype, bool((mix(1, 2) == mix(1, 2)).all())
        (dtype('uint64'), True)
    """
    state: NDArray[np.uint64] = np.zeros(1, np.uint64)
    for word in words:
        state = stir(state, word)
    return state


def stir(state: NDArray[np.uint64], word: ArrayLike) -> NDArray[np.uint64]:
    """One more word of `mix`; a new array."""
    state = state + np.asarray(word).astype(np.uint64)
    state += np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)
    return state


def generator(seed: NDArray[np.uint32], *, purpose: str, round: int = 0) -> np.random.Generator:
    """A NumPy generator for host decisions, such as the cohort of a round.

    Example:
        >>> a = generator(root(0), purpose="cohort", round=1).integers(100)
        >>> bool(a == generator(root(0), purpose="cohort", round=1).integers(100))
        True
    """
    words = mix(seed[0], seed[1], round, zlib.crc32(purpose.encode()))
    return np.random.Generator(np.random.Philox(key=int(words[0])))


class HostKey(NamedTuple):
    """The key of one client in one phase of one round, for client work that is no array program.

    The same client in the same round gets the same key in every process and on every runtime.

    Attributes:
        seed: the run's.
        round, phase: numbers, from 0.
        client: the client's `code`.

    Example:
        >>> key = HostKey(seed=0, round=1, phase=0, client=5)
        >>> key.generator().random() == key.generator().random(), key.number() == key._replace(round=2).number()
        (True, False)
    """

    seed: int
    round: int
    phase: int
    client: int

    def number(self, purpose: str = "work") -> int:
        """An integer below 2**63 to seed another library with, such as ``torch.manual_seed``."""
        words = (*root(self.seed).tolist(), self.round, self.phase, self.client, zlib.crc32(purpose.encode()))
        return int(mix(*words)[0] >> np.uint64(1))

    def generator(self, purpose: str = "work") -> np.random.Generator:
        """A NumPy generator of the client's own."""
        return np.random.Generator(np.random.Philox(key=self.number(purpose)))
