"""Ways to deal one data set out to simulated clients: every row goes to exactly one client.

Each function returns a `Federation` with the ids 0 … clients−1 that shares the arrays it was given and
leaves no client without a row. A client's rows keep the order they have in the arrays.
"""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.assemble import owned
from sumfold.data.entries import Tree
from sumfold.data.federation import Federation
from sumfold.errors import DataError, user_facing

__all__ = ["dirichlet", "iid", "power_law", "shards"]

Int64 = npt.NDArray[np.int64]


@user_facing
def iid(x: Tree, y: Any = None, *, clients: int = 100, seed: int = 0) -> Federation:
    """Rows dealt out at random, in equal numbers (to within one).

    Args:
        x: [N, …], or a dict or tuple of such arrays.
        y: [N, …], or None.
        clients: how many, at most N.
        seed: another seed gives another partition.

    Raises:
        DataError: more clients than rows (SF-DATA-024), a bad parameter (025).

    Example:
        >>> iid(np.zeros((5, 2)), np.zeros(5, int), clients=2).sizes
        {0: 3, 1: 2}
    """
    examples, rows, rng = _ready(x, y, clients, seed)
    return _dealt(examples, rng.permutation(rows), _even(rows, clients))


@user_facing
def dirichlet(x: Tree, y: Any, *, clients: int = 100, alpha: float, seed: int = 0, min_size: int = 1) -> Federation:
    """Label skew: each label's rows are shared out by a draw from a symmetric Dirichlet over the clients.

    For every label c, independently, p ~ Dirichlet(alpha, …, alpha) over the clients, and client k receives
    the share p_k of the rows of label c, in random order, rounded so that none is lost. Small alpha means few
    clients per label and uneven sizes; large alpha approaches equal shares. Clients that end below `min_size`
    rows get random rows from whichever client has the most at that moment, where the papers draw again until
    all have enough (which for many clients never happens).

    Args:
        x: [N, …], or a dict or tuple of such arrays.
        y: [N] labels.
        clients: how many.
        alpha: the concentration, positive; 0.1 and 0.3 are usual.
        seed: another seed gives another partition.
        min_size: the least rows of a client; ``clients * min_size`` is at most N.

    Raises:
        DataError: too few rows (SF-DATA-024), a bad parameter (025), labels not of one dimension (026).

    Reference:
        Li, Diao, Chen and He, "Federated learning on non-IID data silos", ICDE 2022, "distribution-based
        label imbalance". (Hsu, Qi and Brown, "Measuring the effects of non-identical data distribution",
        2019, draw for every client over the labels instead.)

    Example:
        >>> fed = dirichlet(np.zeros((60, 2)), np.arange(60) % 3, clients=4, alpha=0.1)
        >>> sum(fed.sizes.values())
        60
    """
    if not (isinstance(alpha, int | float | np.number) and 0 < alpha < np.inf):
        raise _parameter("alpha", alpha, "a positive number")
    examples, rows, rng = _ready(x, y, clients, seed, each=min_size, name="min_size")
    labels = _labels(y, rows)
    owner = np.empty(rows, np.int64)
    for label in range(int(labels.max()) + 1):
        members = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(rng.dirichlet(np.full(clients, float(alpha)))) * len(members)).astype(np.int64)
        ends[-1] = len(members)
        owner[members] = np.repeat(np.arange(clients), np.diff(ends, prepend=0))
    return owned(examples, _topped_up(owner, clients, min_size, rng), range(clients))


@user_facing
def shards(x: Tree, y: Any, *, clients: int = 100, shards_per_client: int = 2, seed: int = 0) -> Federation:
    """Few labels per client: rows sorted by label, cut into equal shards, a few shards for each client.

    Args:
        x: [N, …], or a dict or tuple of such arrays.
        y: [N] labels.
        clients: how many; ``clients * shards_per_client`` is at most N.
        shards_per_client: how many shards a client gets; its labels are about as many.
        seed: another seed gives another partition.

    Raises:
        DataError: fewer rows than shards (SF-DATA-024), a bad parameter (025), labels not of one
            dimension (026).

    Reference:
        McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-efficient learning of deep
        networks from decentralized data", AISTATS 2017, §3: rows sorted by digit, 200 shards of 300, and two
        of them for each of 100 clients.

    Example:
        >>> fed = shards(np.zeros((8, 1)), np.array([0, 1, 2, 3] * 2), clients=2, shards_per_client=2)
        >>> [len(set(fed[k][1].tolist())) for k in fed]
        [2, 2]
    """
    examples, rows, rng = _ready(x, y, clients, seed, each=shards_per_client, name="shards_per_client")
    sizes = _even(rows, clients * shards_per_client)
    holder = rng.permutation(np.repeat(np.arange(clients), shards_per_client))
    owner = np.empty(rows, np.int64)
    owner[np.argsort(_labels(y, rows), kind="stable")] = np.repeat(holder, sizes)
    return owned(examples, owner, range(clients))


@user_facing
def power_law(x: Tree, y: Any = None, *, clients: int = 100, exponent: float = 1.0, seed: int = 0) -> Federation:
    """Uneven sizes: client k holds a share of the rows that falls as ``(k + 1) ** -exponent``.

    Each client has one row; the others are shared out by the law, rounded so that none is lost. Client 0 is
    the largest. Which rows a client holds is random.

    Args:
        x: [N, …], or a dict or tuple of such arrays.
        y: [N, …], or None.
        clients: how many, at most N.
        exponent: 0 gives equal sizes, 1 is Zipf's law, more is steeper.
        seed: another seed deals other rows, in the same numbers.

    Raises:
        DataError: more clients than rows (SF-DATA-024), a bad parameter (025).

    Reference:
        Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated optimization in heterogeneous networks",
        MLSys 2020, where the numbers of examples follow a power law.

    Example:
        >>> power_law(np.zeros((100, 2)), np.zeros(100, int), clients=4).sizes
        {0: 47, 1: 24, 2: 16, 3: 13}
    """
    if not (isinstance(exponent, int | float | np.number) and 0 <= exponent < np.inf):
        raise _parameter("exponent", exponent, "a number of at least 0")
    examples, rows, rng = _ready(x, y, clients, seed)
    share = np.arange(1, clients + 1, dtype=np.float64) ** -float(exponent)
    ends = np.rint(np.cumsum(share) / share.sum() * (rows - clients)).astype(np.int64)
    ends[-1] = rows - clients
    return _dealt(examples, rng.permutation(rows), 1 + np.diff(ends, prepend=0))


def _ready(
    x: Tree, y: Any, clients: int, seed: int, each: int = 1, name: str = "each"
) -> tuple[Tree, int, np.random.Generator]:
    """The checked examples, how many rows they have, and the generator; every client needs `each` rows."""
    for what, value, least in (("clients", clients, 1), (name, each, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise _parameter(what, value, f"an int of at least {least}")
    part = entries.read_part(x if y is None else (x, y), "")
    if clients * each > part.rows:
        raise DataError(
            "SF-DATA-024",
            f"{part.rows} rows for {clients} clients" + (f" with {name}={each}" if each > 1 else ""),
            f"at least {clients * each} rows, so that no client is empty",
            "ask for fewer clients",
        )
    return entries.unflatten(part.structure, part.leaves), part.rows, np.random.default_rng(seed)


def _parameter(name: str, value: object, needed: str) -> DataError:
    return DataError("SF-DATA-025", f"{name}={value!r}", needed, f"choose another {name}")


def _labels(y: Any, rows: int) -> Int64:
    """The labels as numbers 0 … C−1: int64[N]."""
    labels = np.asarray(y)
    if labels.shape != (rows,):
        raise DataError(
            "SF-DATA-026",
            f"labels of shape {labels.shape}",
            f"one label per row: shape ({rows},)",
            "turn one-hot labels into class numbers with y.argmax(axis=1)",
        )
    return np.unique(labels, return_inverse=True)[1].astype(np.int64)


def _even(rows: int, pieces: int) -> Int64:
    return np.full(pieces, rows // pieces, np.int64) + (np.arange(pieces) < rows % pieces)


def _dealt(examples: Tree, drawn: Int64, sizes: Int64) -> Federation:
    owner = np.empty(len(drawn), np.int64)
    owner[drawn] = np.repeat(np.arange(len(sizes)), sizes)
    return owned(examples, owner, range(len(sizes)))


def _topped_up(owner: Int64, clients: int, min_size: int, rng: np.random.Generator) -> Int64:
    """`owner`, with random rows of the largest clients given to those with fewer than `min_size`."""
    sizes = np.bincount(owner, minlength=clients)
    needs = np.maximum(min_size - sizes, 0)
    gives = np.zeros(clients, np.int64)
    largest = [(-size, k) for k, size in enumerate(sizes.tolist())]
    heapq.heapify(largest)
    for _ in range(int(needs.sum())):
        size, k = largest[0]
        heapq.heapreplace(largest, (size + 1, k))
        gives[k] += 1
    drawn = np.lexsort((rng.random(len(owner)), owner))
    rank = np.arange(len(owner)) - (np.cumsum(sizes) - sizes)[owner[drawn]]
    moved = rng.permutation(drawn[rank < gives[owner[drawn]]])
    result = owner.copy()
    result[moved] = np.repeat(np.arange(clients), needs)
    return result
