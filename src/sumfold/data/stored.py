"""A federation whose rows lie in a file and are read when they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.assemble import in_range
from sumfold.data.description import Leaf, read_dtype, read_structure
from sumfold.data.entries import Array, ClientId, Ids, Structure, Tree
from sumfold.data.federation import Federation
from sumfold.data.room import rows_for
from sumfold.data.sqlite import File, id_checksum, storable
from sumfold.errors import user_facing

Int64 = npt.NDArray[np.int64]


class StoredFederation(Federation):
    """A federation whose rows lie in a file; made by `Federation.from_sqlite`."""

    __slots__ = ("_file", "_leaves", "_structure")

    _file: File
    _leaves: tuple[Leaf, ...]
    _structure: Structure

    def __init__(self, path: str | os.PathLike[str]) -> None:
        file = File(path)
        try:
            about = file.about
            clients, rows = int(about["clients"]), int(about["rows"])
            leaves = tuple([Leaf(read_dtype(word), tuple(map(int, shape))) for word, shape in about["leaves"]])
            structure, _ = read_structure(about["structure"], 0)
            ids: Ids = _StoredIds(file, clients) if about["range"] is None else range(*map(int, about["range"]))
            batched = bool(about["batched"])
            str(about["fingerprint"]), str(about["digest"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise file.damaged(f"its description: {error}") from error
        counts = file.vector("counts")
        lengths = _Lengths(file.vector("batches"), file.vector("lengths")) if batched else None
        whole = len(counts) == clients == len(ids) and int(counts.sum()) == rows and bool(np.all(counts >= 0))
        if not whole or (lengths is not None and len(lengths) != clients):
            raise file.damaged("the clients do not agree with the description")
        for name, value in (("_file", file), ("_leaves", leaves), ("_structure", structure)):
            object.__setattr__(self, name, value)
        arrays = [_StoredArray(self, place, leaf, rows) for place, leaf in enumerate(leaves)]
        examples = entries.unflatten(structure, arrays)
        super().__init__(ids, examples, np.cumsum(counts) - counts, counts, None, lengths)

    @property
    def in_memory(self) -> bool:
        """False: rows are read when asked for."""
        return False

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, in {self._file.path.name!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredFederation, (str(self._file.path),)

    def fingerprint(self) -> str:
        """That of the federation that was saved, so that a run goes on with either."""
        return str(self._file.about["fingerprint"])

    def take(self, position: int) -> Tree:
        """The examples of the client at `position`: one look-up in the file."""
        position = range(len(self))[position]
        return self._read(np.array([position], np.int64)).examples

    @user_facing
    def subset(self, ids: Any) -> Federation:
        """The federation of some of the clients, read into memory."""
        if not isinstance(ids, range) and not hasattr(ids, "__array__"):
            ids = ids if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__") else list(ids)
        part = self._read(self.positions(ids))
        part._memo["whole"] = self
        return part

    @user_facing
    def pooled(self) -> Tree:
        """All examples of all clients, read into memory."""
        return self._everybody().pooled()

    @user_facing
    def labels(self) -> npt.NDArray[Any]:
        """The label of every row, read into memory."""
        return self._everybody().labels()

    @user_facing
    def split(self, fraction: float = 0.8, *, seed: int = 0, stratify: bool = False) -> tuple[Federation, Federation]:
        """Two federations in memory with the same clients; see `Federation.split`."""
        return self._everybody().split(fraction, seed=seed, stratify=stratify)

    def cohort(self, positions: Int64) -> tuple[Federation, Int64]:
        """These clients, read into memory; the latest cohort is kept for the next call."""
        last = self._memo.get("cohort")
        if last is None or not np.array_equal(last[0], positions):
            last = (positions.copy(), self._read(positions, self._room(positions)))
            self._memo["cohort"] = last
        return last[1], np.arange(len(positions), dtype=np.int64)

    # ------------------------------------------------------------------------------------------ private

    def _everybody(self) -> Federation:
        return self._read(np.arange(len(self), dtype=np.int64))

    def _room(self, positions: Int64) -> int:
        """How many rows to give a cohort: as many as any of its size may need, where that is not far too many.

        Rows beyond the clients' own are zeros that belong to nobody; equal shapes spare a compilation.
        """
        needed, size = int(self.counts[positions].sum()), len(positions)
        rooms, width = self._memo.setdefault("room", {}), sum(leaf.row_bytes for leaf in self._leaves)
        rooms[size] = rows_for(self.counts, size, needed, width, rooms.get(size, 0))
        return int(rooms[size])

    def _read(self, positions: Int64, room: int = 0) -> Federation:
        """These clients in memory, with `room` rows if they have fewer."""
        counts = self.counts[positions]
        starts = np.cumsum(counts) - counts
        rows = max(room, int(counts.sum()))
        raw = [np.zeros(rows * leaf.row_bytes, np.uint8) for leaf in self._leaves]
        views: list[Any] = [array.data for array in raw]
        widths = [leaf.row_bytes for leaf in self._leaves]
        for start, count, data in zip(starts.tolist(), counts.tolist(), self._data(positions, counts), strict=True):
            at, rest = 0, memoryview(data)
            for view, width in zip(views, widths, strict=True):
                view[start * width : (start + count) * width] = rest[at : at + count * width]
                at += count * width
        leaves = [
            array.view(leaf.dtype).reshape(rows, *leaf.shape) for array, leaf in zip(raw, self._leaves, strict=True)
        ]
        examples = entries.unflatten(self._structure, leaves)
        lengths = None if self.batch_sizes is None else tuple([self.batch_sizes[p] for p in positions.tolist()])
        return in_range(Federation(self._named(positions), examples, starts, counts, None, lengths))

    def _named(self, positions: Int64) -> Ids:
        if len(positions) == len(self) and np.array_equal(positions, np.arange(len(self))):
            return self.ids if isinstance(self.ids, range) else tuple(self.ids)
        return tuple([self.ids[p] for p in positions.tolist()])

    def _data(self, positions: Int64, counts: Int64) -> Iterator[bytes]:
        """The bytes of each client, in order; neighbours are read in one go."""
        width = sum(leaf.row_bytes for leaf in self._leaves)
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        for run, sizes in zip(np.split(positions, breaks), np.split(counts * width, breaks), strict=True):
            if not len(run):
                continue
            low, high = int(run[0]), int(run[-1]) + 1
            found = self._file.clients(low, high)
            known: tuple[int, bytes] | None = next(found, None)
            for position, size in zip(run.tolist(), sizes.tolist(), strict=True):
                data = b""
                if known is not None and known[0] == position:
                    data, known = known[1], next(found, None)
                if len(data) != size:
                    raise self._file.damaged(f"{len(data)} of the {size} bytes of client {self.ids[position]!r}")
                yield data

    def _find(self, key: object) -> int | None:
        return self.ids.find(key) if isinstance(self.ids, _StoredIds) else super()._find(key)


class _StoredArray:
    """One array of all rows, read when NumPy asks for it."""

    __slots__ = ("__weakref__", "_federation", "_place", "dtype", "nbytes", "ndim", "shape")

    def __init__(self, federation: StoredFederation, place: int, leaf: Leaf, rows: int) -> None:
        self._federation, self._place = federation, place
        self.dtype, self.shape, self.ndim = leaf.dtype, (rows, *leaf.shape), 1 + len(leaf.shape)
        self.nbytes = rows * leaf.row_bytes

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        del copy  # always one
        array: Array = entries.flatten(self._federation._everybody().examples)[0][self._place]
        return array if dtype is None else array.astype(dtype, copy=False)

    def __getitem__(self, key: Any) -> Any:
        return np.asarray(self)[key]


class _StoredIds(Sequence[ClientId]):
    """The ids in a file, looked up one by one, or in order."""

    def __init__(self, file: File, clients: int) -> None:
        self._file, self._clients = file, clients

    def __len__(self) -> int:
        return self._clients

    @overload
    def __getitem__(self, at: int) -> ClientId: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[ClientId, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        places = range(self._clients)[at]
        if not isinstance(places, range):
            return self._at(places)
        if places.step == 1:
            return tuple(self._between(places.start, places.stop))
        return tuple([self._at(place) for place in places])

    def __iter__(self) -> Iterator[ClientId]:
        return self._between(0, self._clients)

    def __contains__(self, key: object) -> bool:
        return self.find(key) is not None

    def find(self, key: object) -> int | None:
        """The position of an id; None if no client has it."""
        if not entries.is_id(key):
            return None
        known = storable(str(key) if isinstance(key, str) else int(key))
        if known is None:
            return None
        for (place,) in self._file.ask("SELECT position FROM ids WHERE id = ?", known):
            if not isinstance(place, int) or self._at(place) != known:  # the index is not what it was
                raise self._file.damaged(f"the index of ids at {known!r}")
            return place
        return None

    def _at(self, place: int) -> Any:
        return next(self._between(place, place + 1))

    def _between(self, low: int, high: int) -> Iterator[Any]:
        expected = low
        question = "SELECT position, id, crc FROM ids WHERE position >= ? AND position < ? ORDER BY position"
        for place, key, crc in self._file.ask(question, low, high):
            if place != expected or crc != id_checksum(place, key):
                break
            expected += 1
            yield key
        if expected < high:
            raise self._file.damaged(f"the id of client number {expected}")


class _Lengths(Sequence[Int64]):
    """The lengths of every client's ready-made batches, without an array for each client."""

    def __init__(self, batches: Int64, lengths: Int64) -> None:
        self._ends, self._lengths = np.cumsum(batches), lengths
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    @overload
    def __getitem__(self, at: int) -> Int64: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Int64, ...]: ...
    def __getitem__(self, at: Any) -> Any:
        places = range(len(self))[at]
        if isinstance(places, range):
            return tuple([self[place] for place in places])
        end = int(self._ends[places])
        return self._lengths[end - int(self._batches[places]) : end]
