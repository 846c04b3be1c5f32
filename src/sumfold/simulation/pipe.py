"""Objects over a private pipe between a process and the workers that it started.

Arrays follow their object as raw bytes, so none is copied into a pickle. This is the only place where anything of
Sumfold's is pickled: both ends are one user's processes on one machine, and a user's closures travel no other way.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import types
from collections import ChainMap
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from sumfold.errors import WorkError

__all__ = ["code", "load_file", "packed", "receive", "remember", "save_file", "send", "write"]


_FUNCTIONS = 16
"""How many functions a worker keeps."""
_LARGE = 1 << 20
"""Bytes of an array from which the file that it lies in is mapped again, instead of a copy of it."""


def code(run: Callable[..., Any]) -> bytes:
    """A function as bytes, with what it closes over.

    Raises:
        WorkError: when it holds something that cannot be pickled.
    """
    try:
        _Pickler(data := io.BytesIO(), protocol=5).dump(run)
    except Exception as error:  # whatever an object's own pickling raises
        raise unsendable(f"the function {getattr(run, '__name__', run)!s} cannot be sent: {error}") from error
    return data.getvalue()


_plain = cloudpickle.Pickler.dispatch_table[types.CodeType]


def _in_file(name: str, make: Callable[..., types.CodeType], given: tuple[Any, ...]) -> types.CodeType:
    return make(*given).replace(co_filename=name)


_REDUCERS = {types.CodeType: lambda code: (_in_file, (code.co_filename, *_plain(code)))}


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, and code keeps the name of its file: a traceback from a worker shows the user's lines."""

    dispatch_table: ClassVar[Any] = ChainMap(_REDUCERS, *cloudpickle.Pickler.dispatch_table.maps)


def unsendable(what: str) -> WorkError:
    """The error for a function, or a result of it, that cannot be pickled."""
    return WorkError(
        "SF-HOST-005",
        what,
        "a function whose globals and closure can be pickled, and that returns arrays",
        "open files, connections and locks inside the function, or run it on sf.Loopback()",
    )


class _Arrays(cloudpickle.Pickler):  # type: ignore[misc]
    """As cloudpickle's, and maps of files are arrays as all others, or what their file can be mapped by again."""

    by_file = False

    def reducer_override(self, value: Any) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        if isinstance(value, np.ndarray):
            file = again(value) if self.by_file else None
            if file is not None:
                return np.memmap, file
            whole = value.flags.c_contiguous or value.flags.f_contiguous
            if type(value) is np.memmap or (type(value) is np.ndarray and not whole):
                # NumPy would write a copy of it into the pickle.
                return (np.asarray(value) if whole else np.ascontiguousarray(value)).__reduce_ex__(5)
        return super().reducer_override(value)


def packed(given: Any, by_file: bool = False) -> tuple[bytes, list[memoryview]]:
    """An object as bytes, closures and classes of a script included, and the arrays in it as they lie in memory.

    Args:
        given: the object.
        by_file: send large maps of files by their names; only where the files stay as long as the object is used.
    """
    buffers: list[pickle.PickleBuffer] = []
    pickler = _Arrays(head := io.BytesIO(), protocol=5, buffer_callback=buffers.append)
    pickler.by_file = by_file
    pickler.dump(given)
    return head.getvalue(), [buffer.raw() for buffer in buffers]


def again(array: NDArray[Any]) -> tuple[Any, ...] | None:
    """How `numpy.memmap` finds a large array that lies in a mapped file; None where it does not, or not any more.

    Only the file's name is known, and another file may have it by now: its bytes are compared in a few places.
    """
    if array.nbytes < _LARGE or not array.flags.c_contiguous or array.dtype.hasobject:
        return None
    whole: Any = array
    while isinstance(whole.base, np.ndarray):
        whole = whole.base
    name, mode = getattr(whole, "filename", None), getattr(whole, "mode", None)
    if not isinstance(whole.base, mmap.mmap) or name is None or mode not in {"r", "r+", "w+"}:
        return None
    first = np.frombuffer(whole.base, np.uint8).__array_interface__["data"][0]
    granule = mmap.ALLOCATIONGRANULARITY
    offset = whole.offset - whole.offset % granule + array.__array_interface__["data"][0] - first
    file: Any = (os.path.abspath(name), array.dtype, "r", offset, array.shape)
    try:
        other: NDArray[Any] = np.memmap(*file)
    except (OSError, ValueError):
        return None
    mine, theirs = (a.reshape(-1).view(np.uint8)[:: array.nbytes // 999].tobytes() for a in (array, other))
    return file if mine == theirs else None


def send(pipe: Connection, given: Any) -> None:
    """Write one object."""
    write(pipe, packed(given))


def write(pipe: Connection, given: tuple[bytes, list[memoryview]]) -> None:
    """Write what `packed` made of an object."""
    head, buffers = given
    pipe.send_bytes(len(buffers).to_bytes(4, "little") + head)
    for buffer in buffers:
        pipe.send_bytes(buffer)


def receive(pipe: Connection) -> Any:
    """Read one object.

    Raises:
        EOFError, OSError: when the other end is gone.
    """
    whole = pipe.recv_bytes()
    buffers = [pipe.recv_bytes() for _ in range(int.from_bytes(whole[:4], "little"))]
    return pickle.loads(whole[4:], buffers=buffers)


def remember(known: dict[bytes, Any], digest: bytes, what: Any) -> None:
    """Keep something by its digest, and not ever more of it; both ends forget at the same moment."""
    if len(known) >= _FUNCTIONS and digest not in known:
        known.clear()
    known[digest] = what


def save_file(path: Path, given: Any, by_file: bool = False) -> tuple[bytes, list[int]]:
    """Write an object's arrays to a file that any number of processes can map; what `load_file` needs besides.

    Arrays that lie in files already stay there, see `packed`.
    """
    head, buffers = packed(given, by_file)
    with path.open("wb") as file:
        for buffer in buffers:
            file.write(buffer)
            file.write(b"\0" * (-buffer.nbytes % 64))
    return head, [buffer.nbytes for buffer in buffers]


def load_file(path: Path, head: bytes, sizes: list[int]) -> Any:
    """The object, its arrays read-only views of the file: however many processes map it, it is in memory once."""
    if not any(sizes):
        return pickle.loads(head, buffers=[b""] * len(sizes))
    mapped: Any = memoryview(np.memmap(path, np.uint8, "r"))  # type: ignore[arg-type]
    buffers, at = [], 0
    for size in sizes:
        buffers.append(mapped[at : at + size])
        at += size + -size % 64
    return pickle.loads(head, buffers=buffers)
