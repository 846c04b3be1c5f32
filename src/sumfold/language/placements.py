"""The two places where a federated value can live."""

from __future__ import annotations

import enum

__all__ = ["CLIENTS", "SERVER", "Placement"]


class Placement(enum.Enum):
    """Where a federated value lives: at the clients, or at the server. There are no others.

    Example:
        >>> SERVER, SERVER.name, SERVER.default_all_equal
        (SERVER, 'SERVER', True)
        >>> CLIENTS.default_all_equal
        False
    """

    CLIENTS = "clients"
    SERVER = "server"

    @property
    def default_all_equal(self) -> bool:
        """Whether a value that says nothing else has one and the same value at every member of this place."""
        return self is Placement.SERVER

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


CLIENTS = Placement.CLIENTS
"""Every client of the cohort; each has a value of its own, unless the type says that they are equal."""

SERVER = Placement.SERVER
"""The one server."""
