"""A federation in one SQLite file: written once, opened without reading the rows, read client by client.

The file holds a description (``about``), one vector of integers per fact about all clients (``vectors``), the ids that
are no range with an index (``ids``), and each client's rows as the bytes of its arrays one after the other
(``pieces``; large clients in several). A client is found by its position, so reading one costs one look-up. A file is
never changed after it was written, which is why connections are read-only and take no locks.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import secrets
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.description import dtype_word, unfit, write_structure
from sumfold.data.entries import ClientId
from sumfold.data.federation import Federation
from sumfold.errors import DataError

Int64 = npt.NDArray[np.int64]

_APPLICATION = 0x53464644  # "SFFD", in the header of every file
_VERSION = 1
_SHIFT = 20
"""A client's pieces are numbered ``position << _SHIFT`` and up."""
_PIECE = 64 << 20
"""Bytes of a piece; SQLite takes less than a thousand million."""

_TABLES = """
CREATE TABLE about (value TEXT NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE vectors (name TEXT PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE ids (position INTEGER PRIMARY KEY, id NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE pieces (place INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL);
"""


# --------------------------------------------------------------------------------------------- writing


def save(federation: Federation, path: str | os.PathLike[str]) -> None:
    """See `Federation.save`."""
    target = Path(path)
    about, ids = _description(federation)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            _write(connection, federation, about, ids)
        _to_disk(temporary)
        os.replace(temporary, target)
        _to_disk(target.parent)
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            "SF-DATA-100",
            f"{str(target)!r} cannot be written ({error})",
            "a folder that exists, with room on the disk",
            "check the path and the space; an older file of this name is untouched",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _description(federation: Federation) -> tuple[dict[str, Any], Sequence[ClientId] | None]:
    """What ``about`` says, except for the digest; and the ids to list, None where they are a range."""
    leaves, structure = entries.flatten(federation.examples)
    ids = federation.ids
    numbered = [ids.start, ids.stop, ids.step] if isinstance(ids, range) else None
    about = {
        "clients": len(federation),
        "rows": int(np.sum(federation.counts)),
        "range": numbered,
        "structure": write_structure(structure),
        "leaves": [[dtype_word(leaf.dtype), list(leaf.shape[1:])] for leaf in leaves],
        "batched": federation.batch_sizes is not None,
        "fingerprint": federation.fingerprint(),  # that of the federation in memory, so that a run goes on with either
    }
    return about, None if numbered else ids


def _write(
    connection: sqlite3.Connection,
    federation: Federation,
    about: dict[str, Any],
    ids: Sequence[ClientId] | None,
) -> None:
    # The file is a temporary one until it is complete, so a journal would protect nothing.
    connection.execute("PRAGMA page_size = 8192")
    connection.execute("PRAGMA journal_mode = OFF")
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    connection.executescript(_TABLES)
    hashed = hashlib.blake2b(json.dumps(about, sort_keys=True).encode(), digest_size=16)
    vectors = {"counts": np.ascontiguousarray(federation.counts, "<i8")}
    if federation.batch_sizes is not None:
        sizes = list(federation.batch_sizes)
        vectors["batches"] = np.array([len(each) for each in sizes], "<i8")
        vectors["lengths"] = np.concatenate([np.zeros(0, np.int64), *sizes]).astype("<i8")
    connection.execute("BEGIN")
    for name, vector in vectors.items():
        hashed.update(vector.tobytes())
        data = vector.tobytes()
        connection.execute("INSERT INTO vectors VALUES (?, ?, ?)", (name, _checksum(name, data), data))
    if ids is not None:
        connection.executemany("INSERT INTO ids VALUES (?, ?, ?)", _listed(ids, hashed))
        connection.execute("CREATE UNIQUE INDEX by_id ON ids (id)")
    connection.executemany("INSERT INTO pieces VALUES (?, ?, ?)", _pieces(federation, hashed))
    text = json.dumps({**about, "digest": hashed.hexdigest()})
    connection.execute("INSERT INTO about VALUES (?, ?)", (text, zlib.crc32(text.encode())))
    connection.execute("COMMIT")


def _listed(ids: Iterable[ClientId], hashed: Any) -> Iterator[tuple[int, ClientId, int]]:
    """Every client's place, id and their checksum."""
    for place, key in enumerate(ids):
        if storable(key) is None:
            raise unfit(f"the client id {key!r}", "ids that are integers of at most 64 bits, or strings of Unicode")
        hashed.update(f"{key!r}\n".encode())
        yield place, key, id_checksum(place, key)


def storable(key: ClientId) -> ClientId | None:
    """The id, None if a file cannot hold it."""
    if isinstance(key, int):
        return key if -(2**63) <= key < 2**63 else None
    try:
        key.encode()
    except UnicodeEncodeError:  # half of a pair of surrogates
        return None
    return key


def id_checksum(place: int, key: ClientId) -> int:
    """A checksum of an id that knows whose it is.

    Example:
        >>> id_checksum(0, "1") == id_checksum(0, 1)
        False
    """
    return zlib.crc32(f"{place}:{key!r}".encode())


def _checksum(place: int | str, data: bytes) -> int:
    """A checksum of bytes that knows where they belong."""
    return zlib.crc32(data, zlib.crc32(str(place).encode()))


def _pieces(federation: Federation, hashed: Any) -> Iterator[tuple[int, int, bytes]]:
    """Every client's rows in pieces: (place, checksum, bytes)."""
    for position, data in enumerate(_rows(federation)):
        hashed.update(data)
        for number, begin in enumerate(range(0, len(data), _PIECE)):
            piece = data[begin : begin + _PIECE] if len(data) > _PIECE else data
            place = (position << _SHIFT) + number
            yield place, _checksum(place, piece), piece


def _rows(federation: Federation) -> Iterator[bytes]:
    """Every client's rows as bytes, array after array."""
    leaves = entries.flatten(federation.examples)[0]
    if not federation.in_memory:
        for position in range(len(federation)):
            yield b"".join([leaf.tobytes() for leaf in entries.flatten(federation.take(position))[0]])
        return
    starts = federation.starts.tolist()
    for start, count in zip(starts, federation.counts.tolist(), strict=True):
        at = slice(start, start + count)
        where = at if federation.order is None else federation.order[at]
        yield b"".join([leaf[where].tobytes() for leaf in leaves])


def _to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --------------------------------------------------------------------------------------------- reading


class File:
    """One file, read through a connection of its own in every thread and process."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self.about: dict[str, Any] = {}
        self._own = threading.local()
        _check_header(self.path)
        self.about = self._description(self._connection())

    def ask(self, question: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        """The answers to an SQL question, one after the other."""
        connection = self._connection()
        with self._sound():
            yield from connection.execute(question, values)

    def vector(self, name: str) -> Int64:
        """One of the file's vectors of integers."""
        for crc, data in self.ask("SELECT crc, data FROM vectors WHERE name = ?", name):
            if isinstance(data, bytes) and len(data) % 8 == 0 and _checksum(name, data) == crc:
                return np.frombuffer(data, "<i8").astype(np.int64, copy=False)
        raise self.damaged(f"the checksum of the clients' {name!r}")

    def clients(self, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """The positions from `low` to before `high` that have rows, and their bytes, the checksums compared."""
        question = "SELECT place, crc, data FROM pieces WHERE place >= ? AND place < ? ORDER BY place"
        answers = self.ask(question, low << _SHIFT, high << _SHIFT)
        for position, group in itertools.groupby(answers, lambda answer: answer[0] >> _SHIFT):
            pieces = []
            for place, crc, data in group:
                if not isinstance(data, bytes) or _checksum(place, data) != crc:
                    raise self.damaged(f"the checksum of client number {position}")
                pieces.append(data)
            yield position, pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def damaged(self, why: str) -> DataError:
        """The error for a file that is not as it was written."""
        return DataError(
            "SF-DATA-104",
            f"{str(self.path)!r} is damaged ({why})",
            "the file as Federation.save wrote it",
            "copy it again from its origin, or save the federation anew",
        )

    @contextlib.contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeError, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise self.damaged(str(error)) from error

    def _connection(self) -> _Connection:
        known: _Connection | None = getattr(self._own, "connection", None)
        if known is not None and known.process == os.getpid():
            return known
        with self._sound():
            uri = f"{self.path.as_uri()}?mode=ro&immutable=1"
            # Whatever thread drops the last reference closes it.
            connection = sqlite3.connect(
                uri, uri=True, isolation_level=None, check_same_thread=False, factory=_Connection
            )
            connection.process = os.getpid()
        if self.about and self._description(connection).get("digest") != self.about["digest"]:
            raise DataError(
                "SF-DATA-105",
                f"{str(self.path)!r} holds another federation than when it was opened",
                "the file that was opened",
                "open it again with Federation.from_sqlite",
            )
        self._own.connection = connection
        return connection

    def _description(self, connection: sqlite3.Connection) -> dict[str, Any]:
        with self._sound():
            found = connection.execute("SELECT value, crc FROM about").fetchall()
        try:
            ((text, crc),) = found
            if zlib.crc32(text.encode()) != crc:
                raise ValueError("its checksum")
            return dict(json.loads(text))
        except (ValueError, TypeError, AttributeError) as error:
            raise self.damaged("no description") from error


class _Connection(sqlite3.Connection):
    """A connection of one thread in one process; it is closed when the thread ends, or nobody has the file any more.

    Attributes:
        process: which opened it; None until it is open.
    """

    process: int | None = None

    def __del__(self) -> None:
        # It must not cross a fork, not even to be closed: a child leaves its parent's connections alone.
        if self.process == os.getpid():
            self.close()
        elif self.process is not None:
            _INHERITED.append(self)


_INHERITED: list[_Connection] = []
"""A parent process's connections."""


def _check_header(path: Path) -> None:
    """Refuse what is no complete file of `save`, by its first hundred bytes and its length."""
    try:
        with path.open("rb") as opened:
            header = opened.read(100)
        size = path.stat().st_size
    except OSError as error:
        raise DataError(
            "SF-DATA-101",
            f"{str(path)!r}: {error.strerror}",
            "a readable file that Federation.save wrote",
            "check the path",
        ) from error
    sqlite = header.startswith(b"SQLite format 3\0") and len(header) == 100
    version, application = (int.from_bytes(header[at : at + 4], "big") for at in (60, 68))
    if not sqlite or application != _APPLICATION:
        came = "an SQLite file of another program" if sqlite else "no SQLite file"
        raise DataError(
            "SF-DATA-102",
            f"{str(path)!r} is {came}",
            "a file that Federation.save wrote",
            "read tables of other programs with pandas.read_sql, then use Federation.from_frame",
        )
    if version > _VERSION:
        raise DataError(
            "SF-DATA-103",
            f"{str(path)!r} has version {version} of the format",
            f"version {_VERSION} or earlier",
            "update sumfold",
        )
    page = int.from_bytes(header[16:18], "big")
    expected = (65536 if page == 1 else page) * int.from_bytes(header[28:32], "big")
    if size < expected:
        raise DataError(
            "SF-DATA-104",
            f"{str(path)!r} is damaged ({size} of its {expected} bytes)",
            "the file as Federation.save wrote it",
            "copy it again from its origin, or save the federation anew",
        )
