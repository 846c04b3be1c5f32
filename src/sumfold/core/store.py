"""The client store: what each client remembers between rounds.

In simulation it is a versioned part of the state, in a deployment a file on each client. It is an immutable
mapping: a round makes a new one that shares every entry that did not change, so older states stay valid.
"""

from __future__ import annotations

from collections.abc import Iterator, KeysView, Mapping, Sequence
from typing import Any

import jax

from sumfold.tree import Tree

__all__ = ["ClientStore"]


@jax.tree_util.register_pytree_with_keys_class
class ClientStore(Mapping[Any, Tree]):
    """An immutable mapping from client id to the client's memory; a pytree.

    Example:
        >>> import numpy as np
        >>> first = ClientStore()
        >>> second = first.commit({"hungary": np.zeros(3)})
        >>> len(first), list(second)
        (0, ['hungary'])
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[Any, Tree] | None = None) -> None:
        self._entries: dict[Any, Tree] = dict(entries or {})

    def __getitem__(self, client: Any) -> Tree:
        return self._entries[client]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def keys(self) -> KeysView[Any]:
        """The clients' ids; set operations on them are a dict's."""
        return self._entries.keys()

    def __repr__(self) -> str:
        return f"ClientStore({len(self)} clients)"

    def commit(self, updates: Mapping[Any, Tree]) -> ClientStore:
        """A new version in which these clients have these memories."""
        return ClientStore({**self._entries, **updates}) if updates else self

    def _sorted(self) -> list[Any]:
        return sorted(self._entries, key=lambda client: (isinstance(client, str), client))

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Tree]], tuple[Any, ...]]:
        """Children in the order of their ids, integers first."""
        ids = self._sorted()
        return [(jax.tree_util.DictKey(client), self._entries[client]) for client in ids], tuple(ids)

    @classmethod
    def tree_unflatten(cls, ids: tuple[Any, ...], children: Sequence[Tree]) -> ClientStore:
        """The reverse of `tree_flatten_with_keys`."""
        return cls(dict(zip(ids, children, strict=True)))
