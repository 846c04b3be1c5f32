"""How many examples each client has: as a mapping, and as a table in a notebook."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.entries import ClientId, Ids


class Sizes(Mapping[ClientId, int]):
    """`Federation.sizes`: reads the counts when asked, so a million clients make no dict."""

    def __init__(self, federation: Any) -> None:
        self._federation = federation

    def __getitem__(self, key: ClientId) -> int:
        position = self._federation._find(key)
        if position is None:
            raise KeyError(key)
        return int(self._federation.counts[position])

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self._federation.ids)

    def __len__(self) -> int:
        return len(self._federation)

    def __repr__(self) -> str:
        shown = ", ".join(f"{key!r}: {self[key]}" for key in self._federation.ids[:20])
        return "{" + shown + (", …" if len(self) > 20 else "") + "}"


def table(caption: str, ids: Ids, counts: npt.NDArray[np.int64]) -> str:
    """The first clients and their sizes, in HTML.

    Example:
        >>> table("two", ("a", "<b>"), np.array([3, 1])).count("<tr>")
        3
    """
    shown = 20
    lines = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{count}</td></tr>"
        for key, count in zip(ids[:shown], counts[:shown].tolist(), strict=True)
    )
    more = len(ids) - shown
    rest = f"<tr><td>… {more} more</td><td>{int(counts[shown:].sum())}</td></tr>" if more > 0 else ""
    return (
        f"<table><caption>{html.escape(caption)}</caption>"
        f"<thead><tr><th>client</th><th>examples</th></tr></thead><tbody>{lines}{rest}</tbody></table>"
    )
