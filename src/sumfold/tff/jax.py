"""TFF's spelling of local functions."""

from __future__ import annotations

from typing import Any

from sumfold.tff.names import names_of, resolve

__all__ = names_of(__name__)  # noqa: PLE0605 - the table is in names.py


def __getattr__(name: str) -> Any:
    return resolve(__name__, name)


def __dir__() -> list[str]:
    return list(__all__)
