"""The processes that compute one round together: what the engine needs to know of the others.

Every process of a gang holds the same state, plans the same round, runs its share of the streams and then exchanges
the totals of that share: `summed` and `gathered` are the only moments in a round at which processes meet. After them
all run the same server half, so all hold the same state again. A single process is a gang of one.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from sumfold.tree import Tree

__all__ = ["Alone", "Gang", "gang_of"]


@runtime_checkable
class Gang(Protocol):
    """The processes of a run."""

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""

    @property
    def size(self) -> int:
        """How many there are."""

    @property
    def cores(self) -> int | None:
        """Cores that every one of them has; None where only this process can say."""

    def summed(self, tree: Tree) -> Tree:
        """The sum of the trees of all processes; host arrays, the same bytes in each. Waits as `gathered` does.

        Args:
            tree: leaves for which `sumfold.simulation.exchange.adds_up`.
        """

    def gathered(self, tree: Tree) -> list[Tree]:
        """The trees of all processes, by rank; host arrays. Waits for the others, with a deadline."""

    def told(self, news: bytes) -> bytes:
        """What the first process says, to all; the others' own `news` are not used."""

    def ask_to_stop(self, ask: bool = True) -> None:
        """Let all processes learn at the next meeting that one of them is to stop; False takes it back."""

    @property
    def stopping(self) -> bool:
        """Whether one of them was asked to stop before the last meeting: the same answer in all."""


class Alone:
    """One process: nobody to wait for."""

    rank = 0
    size = 1
    cores = None

    def __init__(self) -> None:
        self.stopping = False

    def summed(self, tree: Tree) -> Tree:
        """The tree itself."""
        return tree

    def gathered(self, tree: Tree) -> list[Tree]:
        """The tree alone."""
        return [tree]

    def told(self, news: bytes) -> bytes:
        """The news."""
        return news

    def ask_to_stop(self, ask: bool = True) -> None:
        """Stop."""
        self.stopping = ask


def gang_of(runtime: Any) -> Gang:
    """The processes that a runtime computes with; most are alone."""
    gang = getattr(runtime, "gang", None)
    return gang if isinstance(gang, Gang) else Alone()
