"""Every error that Sumfold raises on purpose, as one tree.

    SumfoldError
    ├── TypeMismatchError (TypeError)     a value has another structure, shape or dtype than was needed
    ├── PlacementError    (TypeError)     a value lives at the wrong place (clients or server)
    ├── CompositionError  (ValueError)    parts that do not fit together: model, optimizer, stage, runtime
    ├── DataError         (ValueError)    client data that cannot be used
    ├── StateError        (ValueError)    a state that belongs to another algorithm or model
    ├── CheckpointError   (RuntimeError)  a checkpoint that is damaged, foreign or cannot be written
    ├── WireError         (ValueError)    bytes from a peer that break the protocol's rules
    ├── WorkError         (RuntimeError)  client work in Python that failed at every client, or gave something unusable
    ├── ProcessError      (RuntimeError)  processes of one run that disagree, do not answer, or are gone
    └── MissingExtraError (ImportError)   an optional dependency is not installed

Each carries a stable ``code`` (``SF-DATA-003``), listed with cause and remedy in `CATALOG` and in the
reference documentation, and a message of three parts: what came, what was needed, what to do.
"""

from __future__ import annotations

import functools
import os
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast

__all__ = [
    "CATALOG",
    "CheckpointError",
    "CompositionError",
    "DataError",
    "MissingExtraError",
    "PlacementError",
    "ProcessError",
    "StateError",
    "SumfoldError",
    "TypeMismatchError",
    "WireError",
    "WorkError",
]

_F = TypeVar("_F", bound=Callable[..., Any])


class Entry(NamedTuple):
    """One line of the catalogue: what causes the error, and what mends it."""

    cause: str
    remedy: str


CATALOG: dict[str, Entry]
"""Every code with its cause and remedy, from ``errors.toml``; read when it is first asked for."""


class SumfoldError(Exception):
    """What came, what was needed, what to do; under a stable code.

    Args:
        code: a key of `CATALOG`, for example ``"SF-DATA-003"``.
        came: what was given, with names, counts and dtypes.
        needed: what was expected.
        do: what the reader should do next.

    Example:
        >>> error = DataError("SF-DATA-001", "came: an int", "a list of clients", "pass a list")
        >>> error.code
        'SF-DATA-001'
        >>> print(error)
        came: an int; needed: a list of clients; pass a list [SF-DATA-001]
    """

    def __init__(self, code: str, came: str, needed: str, do: str) -> None:
        self.code, self.came, self.needed, self.do = code, came, needed, do
        super().__init__(code, came, needed, do)

    def __str__(self) -> str:
        return f"{self.came}; needed: {self.needed}; {self.do} [{self.code}]"


class TypeMismatchError(SumfoldError, TypeError):
    """A value has another structure, shape or dtype than was needed.

    Example:
        >>> issubclass(TypeMismatchError, TypeError)
        True
    """


class PlacementError(SumfoldError, TypeError):
    """A value lives at the wrong place: at the clients where the server's was needed, or the reverse.

    Example:
        >>> issubclass(PlacementError, TypeError)
        True
    """


class CompositionError(SumfoldError, ValueError):
    """Parts that do not fit together: a model, an optimizer, a stage, a runtime.

    Example:
        >>> issubclass(CompositionError, ValueError)
        True
    """


class DataError(SumfoldError, ValueError):
    """Client data that cannot be used.

    Example:
        >>> issubclass(DataError, ValueError)
        True
    """


class StateError(SumfoldError, ValueError):
    """A state that belongs to another algorithm or model.

    Example:
        >>> issubclass(StateError, ValueError)
        True
    """


class CheckpointError(SumfoldError, RuntimeError):
    """A checkpoint that is damaged, belongs to another run, or cannot be written.

    Example:
        >>> issubclass(CheckpointError, RuntimeError)
        True
    """


class WireError(SumfoldError, ValueError):
    """Bytes from a peer that break the protocol's rules.

    Example:
        >>> issubclass(WireError, ValueError)
        True
    """


class WorkError(SumfoldError, RuntimeError):
    """Client work in Python failed at every client, cannot be sent to workers, or gave something unusable.

    Example:
        >>> issubclass(WorkError, RuntimeError)
        True
    """


class ProcessError(SumfoldError, RuntimeError):
    """Processes of one run disagree, do not answer, or are gone.

    Example:
        >>> issubclass(ProcessError, RuntimeError)
        True
    """


class MissingExtraError(SumfoldError, ImportError):
    """An optional dependency is not installed; the message names the extra.

    Example:
        >>> issubclass(MissingExtraError, ImportError)
        True
    """


def user_facing(function: _F) -> _F:
    """Let a Sumfold error's traceback end at the caller's line instead of inside the library.

    A bare ``raise`` does not add its own frame, so what is kept of the traceback here comes after the caller's frame:
    the frames of the user's own functions that the library called, if any (a computation that is traced).
    ``SUMFOLD_FULL_TRACEBACK=1`` in the environment keeps everything.
    """

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SumfoldError as error:
            if os.environ.get("SUMFOLD_FULL_TRACEBACK") != "1":
                error.__traceback__ = _of_user(error.__traceback__)
                error.__suppress_context__ = True
            raise

    return cast(_F, bounded)


_LIBRARIES = {
    *("sumfold", "jax", "jaxlib", "numpy", "beartype", "jaxtyping"),
    *("tensorflow", "keras", "torch", "optax", "flax", "equinox"),
}
"""Packages whose frames tell a user nothing about their own mistake."""


@functools.cache
def is_library(filename: str) -> bool:
    """Whether a file is the library's, JAX's or Python's own, so that a user need not look at it."""
    parts = filename.replace(os.sep, "/").split("/")
    if "site-packages" in parts:
        return bool(_LIBRARIES & set(parts))
    return filename.startswith((_HERE, _STDLIB, "<@", "<frozen"))


_HERE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep


def _of_user(traceback: TracebackType | None) -> TracebackType | None:
    """The entries of a traceback that lie in the user's own files."""
    entries = []
    while traceback is not None:
        if not is_library(traceback.tb_frame.f_code.co_filename):
            entries.append(traceback)
        traceback = traceback.tb_next
    kept = None
    for entry in reversed(entries):
        kept = TracebackType(kept, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return kept


def user_line() -> str:
    """``file:line`` of the innermost frame that is the user's; empty when there is none."""
    frame = sys._getframe(1)
    while frame is not None and is_library(frame.f_code.co_filename):
        frame = frame.f_back  # type: ignore[assignment]
    return f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else ""


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an optional `package` that is not installed, naming the `extra` that brings it."""
    return MissingExtraError(
        "SF-EXTRA-001",
        f"the package {package!r} is not installed",
        f"{package}, which the extra {extra!r} brings",
        f"run: pip install 'sumfold[{extra}]'",
    )


def __getattr__(name: str) -> Any:
    if name != "CATALOG":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    text = Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")
    globals()[name] = {code: Entry(**fields) for code, fields in tomllib.loads(text).items()}
    return globals()[name]
