"""TensorFlow Federated's spelling over Sumfold's objects: a script changes its import line, and runs.

    from sumfold import tff

`sumfold.tff.names` is the table of every name: where it is found, or what to write in its place.
"""

from __future__ import annotations

from typing import Any

from sumfold.tff.names import names_of, resolve

__all__ = names_of(__name__)  # noqa: PLE0605 - the table is in names.py


def __getattr__(name: str) -> Any:
    return resolve(__name__, name)


def __dir__() -> list[str]:
    return list(__all__)
