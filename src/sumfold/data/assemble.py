"""Federations from what holds the rows already: entries client by client, or flat arrays with an owner for each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.entries import Ids, Kept, Tree
from sumfold.data.federation import Federation
from sumfold.data.owners import checked_offsets, grouped
from sumfold.errors import DataError

Int64 = npt.NDArray[np.int64]


def from_entries(client_data: Any, kept: Kept, batched: bool | None) -> Federation:
    """See `Federation.from_clients` and `Federation.from_batches`."""
    ids, listed = entries.entries_of(client_data)
    clients = [entries.read_client(key, entry, kept, batched) for key, entry in zip(ids, listed, strict=True)]
    examples = entries.joined(clients)
    counts = np.array([client.rows for client in clients], np.int64)
    lengths = None
    if any(client.batched for client in clients):
        lengths = tuple([np.array([p.rows for p in c.parts if p.rows], np.int64) for c in clients])
    return in_range(Federation(ids, examples, np.cumsum(counts) - counts, counts, None, lengths))


def from_arrays(x: Tree, y: Any, weight: Any, client_ids: Any, offsets: Any) -> Federation:
    """See `Federation.from_arrays`."""
    if weight is not None and y is None:
        raise DataError("SF-DATA-019", "weight without y", "x, y and weight", "pass y, or leave weight out")
    if (client_ids is None) == (offsets is None):
        raise DataError(
            "SF-DATA-019",
            "neither client_ids nor offsets" if offsets is None else "both client_ids and offsets",
            "one of them, to say whose row each row is",
            "pass client_ids=[one id per row], or offsets=[where each client begins, and the end]",
        )
    part = entries.read_part(_tree(x, y, weight), "")
    examples = entries.unflatten(part.structure, part.leaves)
    if offsets is not None:
        bounds = checked_offsets(offsets, part.rows)
        return in_range(Federation(range(len(bounds) - 1), examples, bounds[:-1], np.diff(bounds)))
    ids, owner = grouped(client_ids, part.rows)
    return owned(examples, owner, ids)


def owned(examples: Tree, owner: Int64, ids: Ids) -> Federation:
    """The federation in which row i belongs to the client at position ``owner[i]``; rows keep their order.

    Example:
        >>> owned(np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1]), range(2))[1]
        array([1., 3.])
    """
    counts = np.bincount(owner, minlength=len(ids)).astype(np.int64)
    grouped = bool(np.all(owner[1:] >= owner[:-1]))
    order = None if grouped else np.argsort(owner, kind="stable").astype(np.int64)
    return in_range(Federation(ids, examples, np.cumsum(counts) - counts, counts, order))


def in_range(federation: Federation) -> Federation:
    """The federation, unless its integers do not fit into JAX's."""
    entries.check_range(federation.examples, federation.starts, federation.counts, federation.order, federation.ids)
    return federation


def _tree(x: Tree, y: Any, weight: Any) -> Tree:
    if y is None:
        return x
    return (x, y) if weight is None else (x, y, weight)
