"""Who takes part in a round: policies that draw a cohort from the seed and the round's number alone.

A policy is a function ``fn(draw) -> ids``, handed to `sumfold.train` as ``cohorts=``. It is given a `Draw` and
must be a function of that: then a run that was killed and goes on draws what it would have drawn. The cohort is a
set; its clients take part in the federation's order.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FunctionType, MethodType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sumfold import keys
from sumfold.core.host import code_identity
from sumfold.data import Federation
from sumfold.errors import DataError, user_facing

__all__ = ["Draw", "Policy", "available", "fixed", "poisson", "uniform", "weighted"]

Int64: TypeAlias = NDArray[np.int64]


class Draw(NamedTuple):
    """What a policy draws from.

    Attributes:
        ids: the federation's, in its order: a sequence of K ids, perhaps a lazy one.
        sizes: int64[K], how many examples each client holds.
        round: the round's number, from 0.
        generator: NumPy's, a function of the run's seed and the round alone.

    Example:
        A policy of one's own: clients with enough rows, each with probability one half.

        >>> import numpy as np
        >>> def large(draw):
        ...     chosen = (draw.sizes >= 10) & (draw.generator.random(len(draw.ids)) < 0.5)
        ...     return [draw.ids[position] for position in np.flatnonzero(chosen)]
        >>> large(Draw(["a", "b"], np.array([3, 5]), round=0, generator=np.random.default_rng(0)))
        []
    """

    ids: Sequence[Any]
    sizes: Int64
    round: int
    generator: np.random.Generator


Policy: TypeAlias = Callable[[Draw], Any]
"""``fn(draw) -> ids``, or one bool for each of ``draw.ids``: a mask."""


# -- ready-made policies


@user_facing
def uniform(k: int | Any) -> Policy:
    """Draw k clients, each set of k as likely as any other; what ``clients_per_round=k`` does.

    Args:
        k: how many, from 1 to the federation's size.

    Raises:
        DataError: for a k that is no whole number of at least 1; when drawing, for one above the federation's size.

    Example:
        >>> policy = uniform(2)
        >>> len(policy(Draw(range(10**6), np.ones(10**6, np.int64), 0, np.random.default_rng(0))))
        2
    """
    return _Uniform(_whole("uniform", k))


@user_facing
def weighted(k: int | Any, weights: str | Any = "examples") -> Policy:
    """Draw k different clients one after the other, in proportion to their weights.

    Each client draws u from (0, 1); the k largest u^(1/w) are the cohort (Algorithm A-Res of Efraimidis and Spirakis
    2006). That is drawing one at a time, in proportion to the weights of those that are left, so a client is *included*
    with a probability that is less than proportional when k is large. Weight 0 is never drawn. The mean over such a
    cohort is not an unbiased one of all: combine with ``weighting="uniform"`` if large clients should not count twice.

    Args:
        k: how many, from 1 to the number of clients with a weight above 0.
        weights: ``"examples"``, how many each holds; a mapping id -> weight with all clients; or an array [K] in the
            order of the federation's ids. Finite and not negative; nobody else may be in a mapping.

    Raises:
        DataError: for such a k or such weights; those of a federation when drawing.

    Source: Efraimidis and Spirakis 2006, *Weighted random sampling with a reservoir*, Algorithm A-Res.

    Example:
        >>> policy = weighted(1, {"a": 0.0, "b": 3.0})
        >>> policy(Draw(["a", "b"], np.ones(2, np.int64), 0, np.random.default_rng(0)))
        ['b']
    """
    k = _whole("weighted", k)
    if isinstance(weights, Mapping):
        truth = next((client for client in weights if _is_truth(client)), None)
        if truth is not None:
            raise _unusable(f"a weight of client {truth!r}, which is no id")
        _numbers(list(weights.values()))
        return _Weighted(k, dict(weights))
    if isinstance(weights, str):
        if weights != "examples":
            raise _unusable(f"weighted({k}, weights={weights!r})")
        return _Weighted(k, weights)
    return _Weighted(k, _numbers(weights))


@user_facing
def poisson(rate: float | Any) -> Policy:
    """Each client takes part with the same probability, whoever else does; what accounting by subsampling assumes.

    The cohort's size varies, and an empty one is legal: that round changes nothing.

    Args:
        rate: the probability, above 0 and at most 1.

    Raises:
        DataError: for another rate.

    Example:
        >>> policy = poisson(0.01)
        >>> len(policy(Draw(range(10**6), np.ones(10**6, np.int64), 0, np.random.default_rng(0))))
        9996
    """
    number = isinstance(rate, (int, float, np.number)) and not isinstance(rate, bool)
    if not number or not 0 < rate <= 1:
        raise DataError(
            "SF-TRAIN-022",
            f"poisson({_short(rate)})",
            "a probability above 0 and at most 1",
            "for about 10 of 1000 clients write poisson(0.01)",
        )
    return _Poisson(float(rate))


@user_facing
def available(trace: Mapping[Any, Any] | Callable[[int], Any] | Any, k: int | Any = None) -> Policy:
    """Those clients that a trace of their availability has in this round, or k of them drawn uniformly.

    Args:
        trace: a mapping id -> list or array of bool or of 0 and 1, one a round (a client without an entry is never
            there); or ``fn(round)`` that returns ids, or bools [K] in the order of the federation's ids.
        k: how many; fewer when fewer are there. None is all of them.

    Raises:
        DataError: for a trace that is neither, or a k that is no whole number of at least 1; when drawing, for a trace
            that ends, a client that the federation does not have, or a k above the federation's size.

    Example:
        >>> night = available({"a": [True, False], "b": [True, True]})
        >>> [night(Draw(["a", "b", "c"], np.ones(3, np.int64), n, np.random.default_rng(0))) for n in (0, 1)]
        [['a', 'b'], ['b']]
    """
    if k is not None:
        k = _whole("available", k)
    if isinstance(trace, Mapping):
        return _Available({client: _read_trace(client, rounds) for client, rounds in trace.items()}, k)
    if not callable(trace):
        raise DataError(
            "SF-TRAIN-024",
            f"available(a {type(trace).__name__})",
            "a mapping id -> list of bool by round, or fn(round) -> ids or a bool array",
            "for an array [clients, rounds] write available(lambda round: array[:, round])",
        )
    return _Available(trace, k)


@user_facing
def fixed(ids: Iterable[Any] | Any) -> Policy:
    """The same clients in every round.

    Args:
        ids: at least one.

    Raises:
        DataError: for no collection of ids, or an empty one.

    Example:
        >>> fixed(["a", "b"])(Draw("abc", np.ones(3, np.int64), 0, np.random.default_rng(0)))
        ['a', 'b']
    """
    listed = _listed(ids) if _is_collection(ids) else None
    truth = next((client for client in listed or [] if _is_truth(client)), None)
    if not listed or truth is not None:
        raise DataError(
            "SF-TRAIN-023",
            f"fixed({_short(ids)})" if truth is None else f"fixed with {truth!r} as an id",
            "at least one client's id, in a list, range or array",
            "write for example fixed(['a', 'b'])",
        )
    return _Fixed(listed)


@dataclass(frozen=True, repr=False)
class _Uniform:
    k: int

    def __repr__(self) -> str:
        return f"uniform({self.k})"

    def __call__(self, draw: Draw) -> Any:
        _check_size(self, self.k, len(draw.ids))
        return picked(draw.ids, _drawn(draw.generator, len(draw.ids), self.k))


@dataclass(frozen=True, repr=False, eq=False)
class _Weighted:
    k: int
    weights: Any
    _memo: list[Any] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"weighted({self.k}, weights={_words(self.weights)})"

    def __call__(self, draw: Draw) -> Any:
        _check_size(self, self.k, len(draw.ids))
        weights = self._of(draw)
        positive = np.flatnonzero(weights)
        if len(positive) < self.k:
            raise DataError(
                "SF-TRAIN-021",
                f"{self} and {len(positive)} of {len(weights)} clients with a weight above 0",
                f"{self.k} that can be drawn",
                "draw fewer, or give more clients a weight",
            )
        # The order of u^(1/w), for any size of w: log w − log(−log u), and −log u is exponential.
        with np.errstate(divide="ignore"):
            ranks = np.log(weights[positive]) - np.log(draw.generator.standard_exponential(len(weights))[positive])
        largest = np.argpartition(ranks, len(ranks) - self.k)[len(ranks) - self.k :]
        return picked(draw.ids, np.sort(positive[largest]))

    def _of(self, draw: Draw) -> NDArray[np.float64]:
        """float64[K]; a mapping is read once for a federation."""
        if isinstance(self.weights, str):
            return np.asarray(draw.sizes, np.float64)
        if not isinstance(self.weights, Mapping):
            if len(self.weights) != len(draw.ids):
                raise _unusable(f"{len(self.weights)} weights for {len(draw.ids)} clients")
            return np.asarray(self.weights, np.float64)
        if not self._memo or self._memo[0] is not draw.ids:
            missing = next((client for client in draw.ids if client not in self.weights), None)
            if missing is not None:
                raise _unusable(f"weights without client {missing!r}")
            if len(self.weights) > len(draw.ids):
                stranger = _stranger(self.weights, draw.ids)
                raise _unusable(f"a weight of client {stranger!r}, whom the federation does not have")
            self._memo[:] = [draw.ids, np.array([self.weights[client] for client in draw.ids], np.float64)]
        found: NDArray[np.float64] = self._memo[1]
        return found


@dataclass(frozen=True, repr=False)
class _Poisson:
    rate: float

    def __repr__(self) -> str:
        return f"poisson({self.rate})"

    def __call__(self, draw: Draw) -> Any:
        return picked(draw.ids, np.flatnonzero(draw.generator.random(len(draw.ids)) < self.rate))


class _Presence(NamedTuple):
    """A mapping of traces, in the order of a federation's ids."""

    ids: Sequence[Any]
    there: NDArray[np.bool_]
    rounds: Int64


@dataclass(frozen=True, repr=False, eq=False)
class _Available:
    trace: Any
    k: int | None
    _memo: list[_Presence] = field(default_factory=list)

    def __repr__(self) -> str:
        of = _words(self.trace) if isinstance(self.trace, Mapping) else named(self.trace)
        return f"available({of}, k={self.k})"

    def __call__(self, draw: Draw) -> Any:
        _check_size(self, self.k or 0, len(draw.ids))
        there = self._by_mapping(draw) if isinstance(self.trace, Mapping) else self._by_function(draw)
        if self.k is None or len(there) <= self.k:
            return there
        return picked(there, _drawn(draw.generator, len(there), self.k))

    def _by_mapping(self, draw: Draw) -> Any:
        if not self._memo or self._memo[0].ids is not draw.ids:
            self._memo[:] = [_presence(self.trace, draw.ids)]
        _, there, rounds = self._memo[0]
        ended = np.flatnonzero(rounds <= draw.round)
        if len(ended):
            raise DataError(
                "SF-TRAIN-024",
                f"a trace of {rounds[ended[0]]} rounds for client {draw.ids[int(ended[0])]!r}, in round {draw.round}",
                "one bool for each round",
                "make the traces longer, or pass fn(round), which may repeat them",
            )
        return picked(draw.ids, np.flatnonzero(there[:, draw.round]) if there.shape[1] else np.zeros(0, np.int64))

    def _by_function(self, draw: Draw) -> Any:
        given = self.trace(draw.round)
        if not _is_collection(given):
            raise _no_collection(f"{self} got a {type(given).__name__} from its trace in round {draw.round}")
        mask = _mask(given)
        if mask is None:
            return given if isinstance(given, range) else _listed(given)
        if mask.shape != (len(draw.ids),):
            raise DataError(
                "SF-TRAIN-024",
                f"{self} got bool{list(mask.shape)} from its trace in round {draw.round}",
                f"bool[{len(draw.ids)}], one for each client",
                "return one bool for each of the federation's ids, or the ids themselves",
            )
        return picked(draw.ids, np.flatnonzero(mask))


@dataclass(frozen=True, repr=False, eq=False)
class _Fixed:
    ids: list[Any]

    def __repr__(self) -> str:
        return f"fixed({_words(self.ids)})"

    def __call__(self, draw: Draw) -> Any:
        return self.ids


# -- how a policy is used


def cohort(policy: Policy, federation: Federation, seed: NDArray[np.uint32], number: int) -> Any:
    """The ids of one round's cohort, in the federation's order.

    Args:
        policy: ``fn(draw) -> ids``.
        federation: whose clients are drawn.
        seed: the run's, uint32[2].
        number: the round.

    Raises:
        DataError: when what the policy returns is neither a collection of ids of the federation, each at most once,
            nor a mask with one bool for each of them.
    """
    generator = keys.generator(seed, purpose="cohort", round=number)
    given = policy(Draw(federation.ids, np.asarray(federation.counts), number, generator))
    if not _is_collection(given):
        raise _no_collection(f"the policy {named(policy)} returned a {type(given).__name__} in round {number}")
    mask = _mask(given)
    if mask is not None and mask.shape != (len(federation),):
        raise DataError(
            "SF-TRAIN-027",
            f"the policy {named(policy)} returned bool{list(mask.shape)} in round {number}",
            f"bool[{len(federation)}], one for each client, or ids",
            "return one bool for each of draw.ids, or the ids themselves",
        )
    try:
        positions = federation.positions(given) if mask is None else np.flatnonzero(mask)
    except DataError as error:
        raise DataError(
            "SF-TRAIN-025",
            f"the policy {named(policy)} returned, in round {number}, {error.came}",
            "ids of the federation, each at most once",
            "return some of draw.ids, for example [draw.ids[position] for position in positions]",
        ) from error
    return picked(federation.ids, np.sort(positions))


def early(policy: Policy) -> bool:
    """Whether a policy depends on the draw alone for sure, and may be called before its turn."""
    known = isinstance(policy, (_Uniform, _Weighted, _Poisson, _Fixed))
    return known or (isinstance(policy, _Available) and isinstance(policy.trace, Mapping))


def picked(ids: Any, positions: Int64) -> Any:
    """The ids at these positions; of a range or an array without a loop.

    Example:
        >>> picked(range(10, 20), np.array([0, 3])), picked(["a", "b"], np.array([1]))
        (array([10, 13]), ['b'])
    """
    if isinstance(ids, range):
        return ids.start + ids.step * np.asarray(positions, np.int64)
    if isinstance(ids, np.ndarray):
        return ids[positions]
    return [ids[position] for position in positions.tolist()]


def named(policy: Any) -> str:
    """A policy in words for messages: its parameters where its repr has them, else its name.

    Example:
        >>> named(uniform(3)), named(lambda draw: draw.ids)
        ('uniform(3)', '<lambda>')
    """
    name = getattr(policy, "__name__", None)
    return name if isinstance(name, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(policy))


def described(policy: Policy) -> str:
    """A policy as a checkpoint knows it, the same in every process under one version of Python.

    ``clients_per_round=k`` and ``uniform(k)`` are the same. A function of the user's is known by its code and what it
    closes over, so that one that was changed is noticed.

    Example:
        >>> described(uniform(3)), described(poisson(0.5))
        ('3', 'drawn by poisson(0.5)')
        >>> described(lambda draw: draw.ids[:1]) == described(lambda draw: draw.ids[:2])
        False
    """
    if isinstance(policy, _Uniform):
        return str(policy.k)
    if isinstance(policy, _Available) and not isinstance(policy.trace, Mapping):
        return f"drawn by available({_known(policy.trace)}, k={policy.k})"
    if isinstance(policy, (_Weighted, _Poisson, _Available, _Fixed)):
        return f"drawn by {policy!r}"
    return f"drawn by {_known(policy)}"


def _known(function: Any) -> str:
    """A user's function by its name and a digest of its code; a method and a callable object with what they hold."""
    if isinstance(function, MethodType):
        code = code_identity((function.__func__, function.__self__))
    else:
        call = type(function).__call__
        code = code_identity((call, function) if isinstance(call, FunctionType) else function)
    return f"{named(function)} {hashlib.blake2b(code.encode(), digest_size=8).hexdigest()}"


def _drawn(generator: np.random.Generator, population: int, k: int) -> Int64:
    return np.sort(generator.choice(population, k, replace=False, shuffle=False))


def _check_size(policy: Any, k: int, population: int) -> None:
    if k > population:
        raise DataError(
            "SF-TRAIN-021",
            f"{policy} of a federation of {population} clients",
            f"at most {population}",
            "draw fewer",
        )


def _is_collection(given: Any) -> bool:
    return isinstance(given, Iterable) and not isinstance(given, (str, bytes))


def _no_collection(came: str) -> DataError:
    return DataError(
        "SF-TRAIN-025",
        came,
        "a list, range or array of ids",
        "return some of draw.ids; an empty list is a round of nobody",
    )


def _whole(name: str, k: Any) -> int:
    if not isinstance(k, (int, np.integer)) or isinstance(k, bool) or k < 1:
        raise DataError(
            "SF-TRAIN-020",
            f"{name}({_short(k)})",
            "a whole number of clients, at least 1",
            f"write for example cohorts=sf.sampling.{name}({'trace, k=10' if name == 'available' else '10'})",
        )
    return int(k)


def _numbers(weights: Any) -> NDArray[np.float64]:
    """float64[K], each finite and not negative, one at least above 0."""
    try:
        array = np.asarray(weights, np.float64)
    except (TypeError, ValueError):
        raise _unusable(f"weights as a {type(weights).__name__}") from None
    if array.ndim != 1:
        raise _unusable(f"weights of shape {list(array.shape)}")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if len(wrong):
        raise _unusable(f"weights with {array[wrong[0]]:g} at place {wrong[0]}")
    if not array.any():
        raise _unusable(f"{len(array)} weights, all 0" if len(array) else "no weights")
    return array


def _unusable(came: str) -> DataError:
    return DataError(
        "SF-TRAIN-026",
        came,
        '"examples", a mapping id -> weight, or an array: one for each client, finite, not negative, not all 0',
        "write for example weighted(10, weights={'a': 1.0, 'b': 2.5})",
    )


def _read_trace(client: Any, rounds: Any) -> NDArray[np.bool_]:
    if _is_truth(client):
        raise _no_trace(f"a trace of client {client!r}, which is no id")
    if isinstance(rounds, (str, bytes)) or not (hasattr(rounds, "__len__") or hasattr(rounds, "__array__")):
        raise _no_trace(f"a {type(rounds).__name__} as the trace of client {client!r}")
    try:
        array = np.asarray(rounds)
    except ValueError as error:
        raise _no_trace(f"the trace of client {client!r}, which is no array ({error})") from error
    if array.ndim != 1:
        shape = f"of shape {list(array.shape)}" if array.ndim else f"as a {type(rounds).__name__}"
        raise _no_trace(f"the trace of client {client!r} {shape}")
    if not array.size:
        return np.zeros(0, bool)
    wrong = np.flatnonzero((array != 0) & (array != 1)) if array.dtype.kind in "biu" else np.zeros(1, np.int64)
    if len(wrong):
        value = array[wrong[0]]
        raise _no_trace(f"{value!s} ({array.dtype}) in round {wrong[0]} of the trace of client {client!r}")
    return array.astype(bool)


def _no_trace(came: str) -> DataError:
    return DataError(
        "SF-TRAIN-024",
        came,
        "a list or array of bool, or of the integers 0 and 1, one a round",
        "pass list(…), for a run that goes on reads it again; or fn(round)",
    )


def _is_truth(value: Any) -> bool:
    return isinstance(value, (bool, np.bool_))


def _mask(given: Any) -> NDArray[np.bool_] | None:
    """The bools of an array or of a list that has nothing else; None for ids."""
    if hasattr(given, "__array__"):
        array = np.asarray(given)
        return array if array.dtype == np.bool_ else None
    whole = isinstance(given, (list, tuple)) and len(given) > 0 and all(map(_is_truth, given))
    return np.array(given, bool) if whole else None


def _stranger(clients: Iterable[Any], ids: Sequence[Any]) -> Any:
    """One who is not in the federation."""
    known = set(ids)
    return next(client for client in clients if client not in known)


def _presence(trace: Mapping[Any, NDArray[np.bool_]], ids: Sequence[Any]) -> _Presence:
    """Read once for a federation: a client without an entry is never there, and its trace never ends."""
    entries = [trace.get(client) for client in ids]
    if sum(entry is not None for entry in entries) < len(trace):
        raise DataError(
            "SF-TRAIN-024",
            f"a trace of client {_stranger(trace, ids)!r}, whom the federation does not have",
            "traces of its clients",
            "look at the spelling and the type of the ids",
        )
    forever = np.iinfo(np.int64).max
    rounds = np.array([forever if entry is None else len(entry) for entry in entries], np.int64)
    there = np.zeros((len(entries), max(map(len, trace.values()), default=0)), bool)
    for place, entry in enumerate(entries):
        if entry is not None:
            there[place, : len(entry)] = entry
    return _Presence(ids, there, rounds)


def _listed(ids: Iterable[Any]) -> list[Any]:
    """As a list; of a set in an order that is the same in every process."""
    if isinstance(ids, (set, frozenset)):
        return sorted(ids, key=repr)
    return np.asarray(ids).tolist() if hasattr(ids, "__array__") else list(ids)


def _short(value: Any) -> str:
    short = value is None or isinstance(value, (int, float, str, np.generic))
    short = short or (isinstance(value, (list, tuple)) and not value)
    return repr(value) if short else f"a {type(value).__name__}"


def _words(value: Any) -> str:
    """What a policy was given, in short, and the same in every process."""
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, Mapping):
        items = [(repr(key), np.asarray(value[key]).tolist()) for key in sorted(value, key=repr)]
    else:
        items = np.asarray(value).tolist()
    text = repr(items)
    if len(text) <= 60 and not isinstance(value, Mapping):
        return text
    return f"{len(items)} values {hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
