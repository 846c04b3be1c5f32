"""A federation: the rows of all clients in flat arrays, and which rows are whose."""

from __future__ import annotations

import dataclasses
import hashlib
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.entries import ClientId, Ids, Kept, Tree
from sumfold.data.owners import checked_offsets, grouped
from sumfold.data.split import in_first_part
from sumfold.errors import DataError, user_facing

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Federation:
    """Many clients' examples, held as flat arrays of which each client owns some rows.

    The arrays of all clients lie one after the other, and a client is a slice of them (or of `order`, a list
    of row numbers). So a subset, a split or a partition shares the arrays and copies nothing, a million
    clients cost two integer arrays, and memory-mapped arrays stay on disk. Build one with `from_clients`,
    `from_arrays`, `from_frame` or `from_batches`.

    Attributes:
        ids: the clients' names, str or int; a `range` where they are numbered.
        examples: a tuple (x, y) or (x, y, weight), a dict or one array; every array is [N, …]. None if no
            client has any array.
        starts: int64[K], where each client begins.
        counts: int64[K], how many examples each client has.
        order: int64[M] or None; client k owns the rows ``order[starts[k]:starts[k] + counts[k]]``, or that
            range of rows itself if None.
        batch_sizes: for ready-made batches, per client the int64 lengths of its batches, which sum to its
            count; None for examples, which Sumfold batches.

    Example:
        >>> fed = Federation.from_clients({"a": ([[1.0], [2.0]], [0, 1]), "b": ([[3.0]], [1])})
        >>> fed
        Federation(2 clients, 3 examples, x float64[1], y int64)
        >>> fed["b"]
        (array([[3.]]), array([1]))
        >>> fed.sizes
        {'a': 2, 'b': 1}
    """

    ids: Ids
    examples: Tree
    starts: Int64
    counts: Int64
    order: Int64 | None = None
    batch_sizes: tuple[Int64, ...] | None = None
    _memo: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

    # ------------------------------------------------------------------------------------ constructors

    @classmethod
    @user_facing
    def from_clients(cls, clients: Any, *, kept: Kept | None = None) -> Federation:
        """The federation of a mapping ``id -> entry``, or of a sequence of entries (ids are the positions).

        The clients' arrays are copied into one array per leaf. Integers and floats of different clients are
        promoted to a common dtype; an empty client takes the others' shapes and dtypes.

        Args:
            clients: entries are (x, y), (x, y, example_weight), a dict of arrays or one array (examples), or
                a list, iterator, ``tf.data.Dataset`` or torch ``DataLoader`` of those (ready-made batches).
            kept: where one-shot iterators that were read are kept, for a later call with the same iterator.

        Raises:
            DataError: the data cannot be used (SF-DATA-001 … 015); the message names the client.

        Example:
            >>> Federation.from_clients([([1.0, 2.0], [0, 1]), ([], [])])
            Federation(2 clients, 2 examples, x float64, y int64)
        """
        return _assembled(clients, {} if kept is None else kept, batched=None)

    @classmethod
    @user_facing
    def from_batches(cls, clients: Any) -> Federation:
        """The federation of ready-made batches: a mapping ``id -> iterable of batches``, or a sequence.

        Batches are used as they are, in one pass, in the order given; batches without rows are left out.

        Raises:
            DataError: as `from_clients`.

        Example:
            >>> Federation.from_batches({"a": [([1.0, 2.0], [0, 1]), ([3.0], [1])]}).batch_sizes
            (array([2, 1]),)
        """
        return _assembled(clients, {}, batched=True)

    @classmethod
    @user_facing
    def from_arrays(
        cls, x: Tree, y: Any = None, *, weight: Any = None, client_ids: Any = None, offsets: Any = None
    ) -> Federation:
        """The federation of arrays that already hold everybody's rows; nothing is copied.

        Args:
            x: [N, …], or a dict or tuple of such arrays.
            y: [N, …] labels, or None.
            weight: [N] example weights, or None.
            client_ids: [N] str or int: whose row it is. Clients come in sorted order.
            offsets: int[K + 1], from 0 to N: client k owns the rows ``offsets[k]:offsets[k + 1]``, and ids
                are 0 … K−1.

        Raises:
            DataError: not exactly one of client_ids and offsets, or weight without y (SF-DATA-019); ids that
                do not fit (020), offsets that do not fit (021), and arrays that cannot be used (003 … 009).

        Example:
            >>> x, y = np.zeros((4, 2), np.float32), np.array([0, 1, 1, 0])
            >>> Federation.from_arrays(x, y, client_ids=["b", "a", "b", "b"]).sizes
            {'a': 1, 'b': 3}
            >>> Federation.from_arrays(x, y, offsets=[0, 1, 4]).sizes
            {0: 1, 1: 3}
        """
        if weight is not None and y is None:
            raise DataError("SF-DATA-019", "weight without y", "x, y and weight", "pass y, or leave weight out")
        if (client_ids is None) == (offsets is None):
            raise DataError(
                "SF-DATA-019",
                "neither client_ids nor offsets" if offsets is None else "both client_ids and offsets",
                "one of them, to say whose row each row is",
                "pass client_ids=[one id per row], or offsets=[where each client begins, and the end]",
            )
        part = entries.read_part(_tree(x, y, weight), "")
        examples = entries.unflatten(part.structure, part.leaves)
        if offsets is not None:
            bounds = checked_offsets(offsets, part.rows)
            return _in_range(cls(range(len(bounds) - 1), examples, bounds[:-1], np.diff(bounds)))
        ids, owner = grouped(client_ids, part.rows)
        return owned(examples, owner, ids)

    @classmethod
    @user_facing
    def from_frame(cls, df: Any, *, client: str, label: str, features: str | Sequence[str] | None = None) -> Federation:
        """The federation of a data frame (pandas, Polars or alike) with one row per example.

        Args:
            df: has ``columns`` and gives a column by ``df[name]``.
            client: the column of client ids, str or int.
            label: the column of labels, numbers.
            features: the columns that become x[N, len(features)], numbers; a str is one column; None means all others.

        Raises:
            DataError: a column that is not there (SF-DATA-022) or holds no numbers (023), ids that do not
                fit (020).

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"hospital": ["a", "b"], "age": [51, 64], "ill": [0, 1]})
            >>> Federation.from_frame(df, client="hospital", label="ill")["b"]
            (array([[64]]), array([1]))
        """
        if not (hasattr(df, "columns") and hasattr(df, "__getitem__")):
            raise DataError(
                "SF-DATA-022",
                f"a {type(df).__name__}",
                "a data frame with named columns",
                "use Federation.from_arrays(x, y, client_ids=…) for arrays",
            )
        columns = list(df.columns)
        others = [c for c in columns if c not in (client, label)]
        names = others if features is None else [features] if isinstance(features, str) else list(features)
        missing = [name for name in (client, label, *names) if name not in columns]
        if missing or not names:
            raise DataError(
                "SF-DATA-022",
                f"no column {missing[0]!r}" if missing else "no feature column",
                f"columns among {columns}",
                "look at the spelling of client=, label= and features=",
            )
        x = np.stack([entries.numeric_column(df, name) for name in names], axis=1)
        return cls.from_arrays(x, entries.numeric_column(df, label), client_ids=np.asarray(df[client]))

    # ------------------------------------------------------------------------------------- as a mapping

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[ClientId]:
        return iter(self.ids)

    def __contains__(self, key: object) -> bool:
        return self._find(key) is not None

    @user_facing
    def __getitem__(self, key: ClientId | np.integer[Any]) -> Tree:
        position = self._find(key)
        if position is None:
            raise _unknown(key, self.ids)
        return self.take(position)

    @property
    def sizes(self) -> Mapping[ClientId, int]:
        """How many examples each client has, as a read-only mapping.

        Example:
            >>> Federation.from_clients({"a": ([1.0, 2.0], [0, 1])}).sizes["a"]
            2
        """
        return _Sizes(self)

    # ---------------------------------------------------------------------------------- rows and clients

    def rows(self, position: int) -> Int64:
        """The row numbers of the client at `position`: int64[n], into every array of `examples`.

        Example:
            >>> Federation.from_arrays([1.0, 2.0, 3.0], client_ids=["b", "a", "b"]).rows(1)
            array([0, 2])
        """
        start, stop = self._bounds(position)
        return np.arange(start, stop, dtype=np.int64) if self.order is None else self.order[start:stop]

    def take(self, position: int) -> Tree:
        """The examples of the client at `position`, as NumPy arrays of their own dtypes.

        A view where the client's rows lie together, a copy elsewhere.

        Example:
            >>> Federation.from_arrays([1.0, 2.0, 3.0], [0, 1, 1], offsets=[0, 1, 3]).take(1)
            (array([2., 3.]), array([1, 1]))
        """
        start, stop = self._bounds(position)
        return self._at(slice(start, stop) if self.order is None else self.order[start:stop])

    @user_facing
    def positions(self, ids: Any) -> Int64:
        """Where in the federation the clients `ids` are: int64[len(ids)], in the order asked for.

        Args:
            ids: a list, range, array or any other iterable of client ids, each at most once.

        Raises:
            DataError: an id twice (SF-DATA-010), an unknown id (011), no collection of ids (012).

        Example:
            >>> Federation.from_clients({"a": [1.0], "b": [2.0]}).positions(["b", "a"])
            array([1, 0])
        """
        if isinstance(ids, str | bytes) or not (hasattr(ids, "__iter__") or hasattr(ids, "__array__")):
            raise DataError(
                "SF-DATA-012",
                f"clients {ids!r} ({type(ids).__name__})",
                "a list, range or array of client ids",
                f"for one client write [{ids!r}]",
            )
        find = self._positions_by_number if isinstance(self.ids, range) else self._positions_by_name
        found = find(ids)
        ordered = np.sort(found)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            twice = self.ids[int(repeated[0])]
            raise DataError(
                "SF-DATA-010",
                f"client {twice!r} more than once",
                "every client at most once",
                "drop repeated ids",
            )
        return found

    @user_facing
    def subset(self, ids: Any) -> Federation:
        """The federation of some of the clients, in the order asked for; shares the arrays.

        Raises:
            DataError: as `positions`.

        Example:
            >>> fed = Federation.from_arrays([1.0, 2.0, 3.0], offsets=[0, 1, 2, 3])
            >>> fed.subset(fed.ids[1:])
            Federation(2 clients, 2 examples, x float64)
        """
        if not isinstance(ids, range) and not hasattr(ids, "__array__"):
            ids = ids if isinstance(ids, str | bytes) or not hasattr(ids, "__iter__") else list(ids)
        at = self.positions(ids)
        both_ranges = isinstance(self.ids, range) and isinstance(ids, range)
        return dataclasses.replace(
            self,
            ids=ids if both_ranges else tuple([self.ids[p] for p in at.tolist()]),
            starts=self.starts[at],
            counts=self.counts[at],
            batch_sizes=self.batch_sizes and tuple([self.batch_sizes[p] for p in at.tolist()]),
        )

    def pooled(self) -> Tree:
        """All examples of all clients, client after client, as one tree of arrays.

        This is what federated learning does without; it is here for comparisons.

        Example:
            >>> Federation.from_clients({"a": ([1.0], [0]), "b": ([2.0], [1])}).pooled()
            (array([1., 2.]), array([0, 1]))
        """
        if self.order is None and self._is_contiguous():
            start = int(self.starts[0]) if len(self) else 0
            return self._at(slice(start, start + int(self.counts.sum())))
        return self._at(self._all_rows())

    def labels(self) -> npt.NDArray[Any]:
        """The label of every row of `examples`: [N], not grouped by client.

        The second array of a tuple, or the dict's ``"y"`` or ``"label"``.

        Raises:
            DataError: there is no such one-dimensional array (SF-DATA-018).

        Example:
            >>> Federation.from_arrays([1.0, 2.0], [0, 1], offsets=[0, 2]).labels()
            array([0, 1])
        """
        labels: Any = None
        if isinstance(self.examples, tuple) and len(self.examples) > 1:
            labels = self.examples[1]
        elif isinstance(self.examples, dict):
            labels = self.examples.get("y", self.examples.get("label"))
        if isinstance(labels, np.ndarray) and labels.ndim == 1:
            return labels
        raise DataError(
            "SF-DATA-018",
            f"examples ({_schema(self.examples)}) without one label per row",
            "(x, y) with y of one dimension, or a dict with 'y' or 'label'",
            "pass labels as class numbers, or split without stratify=True",
        )

    @user_facing
    def split(self, fraction: float = 0.8, *, seed: int = 0, stratify: bool = False) -> tuple[Federation, Federation]:
        """Two federations with the same clients: a part of each client's rows, and the rest.

        Which rows go where depends on the seed, the client's id and its rows alone, so the split of a subset
        is the subset of the split. The first part has ``round(fraction · n)`` rows; with two or more
        rows both parts have at least one; a single row goes to the first part. Rows keep their order, and
        both federations share the arrays.

        Args:
            fraction: of each client's rows for the first part, between 0 and 1.
            seed: another seed gives another split.
            stratify: keep the proportions of the labels within each client, to within one row per label; the
                rounding favours the second part for the client's rarest label.

        Raises:
            DataError: ready-made batches (SF-DATA-016), a fraction outside of (0, 1) (017), no labels (018).

        Example:
            >>> fed = Federation.from_arrays(np.arange(10.0), offsets=[0, 5, 10])
            >>> train, test = fed.split(0.8, seed=0)
            >>> train.sizes, test.sizes
            ({0: 4, 1: 4}, {0: 1, 1: 1})
        """
        if self.batch_sizes is not None:
            raise DataError(
                "SF-DATA-016",
                "a federation of ready-made batches",
                "examples: a batch is used as it is and cannot be cut",
                "split the arrays before batching, or pass (x, y) and let Sumfold batch",
            )
        if not 0 < fraction < 1:
            raise DataError("SF-DATA-017", f"fraction={fraction!r}", "a number between 0 and 1", "try 0.8")
        rows = self._all_rows()
        labels = self.labels()[rows] if stratify else None
        first = in_first_part(self.ids, self.counts, fraction, seed, labels)
        return self._part(rows, first), self._part(rows, ~first)

    # ----------------------------------------------------------------------------------------- identity

    def fingerprint(self) -> str:
        """A hash of the ids, the sizes and the arrays: 32 hex digits, the same in every process.

        Arrays of more than 64 MiB are sampled: 64 evenly spaced blocks of 1 MiB.

        Example:
            >>> one, other = (Federation.from_clients({"a": [1.0, v]}) for v in (2.0, 3.0))
            >>> one.fingerprint() == other.fingerprint()
            False
        """
        if "fingerprint" not in self._memo:
            hashed = hashlib.blake2b(digest_size=16)
            hashed.update(repr(self.ids).encode())
            leaves, structure = entries.flatten(self.examples)
            hashed.update(repr(entries.leaf_names(structure)).encode())
            arrays = [self.starts, self.counts, *leaves]
            arrays += [] if self.order is None else [self.order]
            arrays += list(self.batch_sizes or ())
            for array in arrays:
                hashed.update(f"{array.dtype}{array.shape}".encode())
                for block in _blocks(array):
                    hashed.update(block.tobytes())
            self._memo["fingerprint"] = hashed.hexdigest()
        return str(self._memo["fingerprint"])

    def __repr__(self) -> str:
        batches = "" if self.batch_sizes is None else f", {sum(map(len, self.batch_sizes))} ready-made batches"
        schema = _schema(self.examples)
        return (
            f"Federation({len(self)} client{'' if len(self) == 1 else 's'}, {int(self.counts.sum())} examples"
            f"{batches}{schema and ', ' + schema})"
        )

    def _repr_html_(self) -> str:
        shown = 20
        lines = "".join(
            f"<tr><td>{html.escape(str(key))}</td><td>{count}</td></tr>"
            for key, count in zip(self.ids[:shown], self.counts[:shown].tolist(), strict=True)
        )
        more = len(self) - shown
        rest = f"<tr><td>… {more} more</td><td>{int(self.counts[shown:].sum())}</td></tr>" if more > 0 else ""
        return (
            f"<table><caption>{html.escape(repr(self))}</caption>"
            f"<thead><tr><th>client</th><th>examples</th></tr></thead><tbody>{lines}{rest}</tbody></table>"
        )

    # ------------------------------------------------------------------------------------------ private

    def _find(self, key: object) -> int | None:
        if isinstance(self.ids, range):
            number = int(key) if isinstance(key, int | np.integer) else None
            return self.ids.index(number) if number is not None and number in self.ids else None
        try:
            return self._index().get(key)
        except TypeError:  # not hashable, so not an id
            return None

    def _index(self) -> dict[Any, int]:
        if "index" not in self._memo:
            self._memo["index"] = {key: position for position, key in enumerate(self.ids)}
        index: dict[Any, int] = self._memo["index"]
        return index

    def _positions_by_number(self, ids: Any) -> Int64:
        own = self.ids
        assert isinstance(own, range)
        if isinstance(ids, range):
            wanted = np.arange(ids.start, ids.stop, ids.step)
        else:
            wanted = np.asarray(ids if hasattr(ids, "__array__") else list(ids))
        if wanted.size == 0:
            return np.zeros(0, np.int64)
        if wanted.dtype.kind not in "iu" or wanted.ndim != 1:
            raise _unknown(next((key for key in wanted.tolist() if not isinstance(key, int)), wanted), own)
        distance = wanted.astype(np.int64) - own.start
        found, off = distance // own.step, distance % own.step
        wrong = (off != 0) | (found < 0) | (found >= len(own))
        if wrong.any():
            raise _unknown(int(wanted[wrong][0]), own)
        return found

    def _positions_by_name(self, ids: Any) -> Int64:
        index = self._index()
        wanted = np.asarray(ids).tolist() if hasattr(ids, "__array__") else list(ids)
        for key in wanted:
            if self._find(key) is None:
                raise _unknown(key, self.ids)
        return np.fromiter((index[key] for key in wanted), np.int64, len(wanted))

    def _bounds(self, position: int) -> tuple[int, int]:
        start = int(self.starts[position])
        return start, start + int(self.counts[position])

    def _is_contiguous(self) -> bool:
        return bool(np.array_equal(self.starts[1:], (self.starts + self.counts)[:-1]))

    def _all_rows(self) -> Int64:
        # Each client's 0 … n−1, moved to where the client starts, for all clients at once.
        before = np.cumsum(self.counts) - self.counts
        rows: Int64 = np.arange(int(self.counts.sum()), dtype=np.int64)
        rows += np.repeat(self.starts - before, self.counts)
        return rows if self.order is None else self.order[rows]

    def _at(self, rows: slice | Int64) -> Tree:
        leaves, structure = entries.flatten(self.examples)
        return entries.unflatten(structure, [leaf[rows] for leaf in leaves])

    def _part(self, rows: Int64, picked: npt.NDArray[np.bool_]) -> Federation:
        owner = np.repeat(np.arange(len(self)), self.counts)
        counts = np.bincount(owner[picked], minlength=len(self)).astype(np.int64)
        return dataclasses.replace(self, starts=np.cumsum(counts) - counts, counts=counts, order=rows[picked])


class _Sizes(Mapping[ClientId, int]):
    """`Federation.sizes`: reads the counts when asked, so a million clients make no dict."""

    def __init__(self, federation: Federation) -> None:
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


def owned(examples: Tree, owner: Int64, ids: Ids) -> Federation:
    """The federation in which row i belongs to the client at position ``owner[i]``; rows keep their order.

    Example:
        >>> owned(np.array([1.0, 2.0, 3.0]), np.array([1, 0, 1]), range(2))[1]
        array([1., 3.])
    """
    counts = np.bincount(owner, minlength=len(ids)).astype(np.int64)
    grouped = bool(np.all(owner[1:] >= owner[:-1]))
    order = None if grouped else np.argsort(owner, kind="stable").astype(np.int64)
    return _in_range(Federation(ids, examples, np.cumsum(counts) - counts, counts, order))


def _assembled(client_data: Any, kept: Kept, batched: bool | None) -> Federation:
    ids, listed = entries.entries_of(client_data)
    clients = [entries.read_client(key, entry, kept, batched) for key, entry in zip(ids, listed, strict=True)]
    examples = entries.joined(clients)
    counts = np.array([client.rows for client in clients], np.int64)
    lengths = None
    if any(client.batched for client in clients):
        lengths = tuple([np.array([p.rows for p in c.parts if p.rows], np.int64) for c in clients])
    return _in_range(Federation(ids, examples, np.cumsum(counts) - counts, counts, None, lengths))


def _in_range(federation: Federation) -> Federation:
    """The federation, unless its integers do not fit into JAX's."""
    entries.check_range(federation.examples, federation.starts, federation.counts, federation.order, federation.ids)
    return federation


def _tree(x: Tree, y: Any, weight: Any) -> Tree:
    if y is None:
        return x
    return (x, y) if weight is None else (x, y, weight)


def _schema(examples: Tree) -> str:
    leaves, structure = entries.flatten(examples)
    return ", ".join(
        f"{name} {leaf.dtype}" + (f"[{','.join(map(str, leaf.shape[1:]))}]" if leaf.ndim > 1 else "")
        for name, leaf in zip(entries.leaf_names(structure), leaves, strict=True)
    )


def _unknown(key: object, ids: Ids) -> DataError:
    known = ", ".join(map(repr, ids[:5])) + (", …" if len(ids) > 5 else "")
    return DataError("SF-DATA-011", f"no client {key!r}", f"one of the {len(ids)} ids ({known})", "look at fed.ids")


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    mib = 2**20
    if array.nbytes <= 64 * mib:
        yield array
        return
    length = max(1, mib * len(array) // array.nbytes)
    for start in np.linspace(0, len(array) - length, 64).astype(int).tolist():
        yield array[start : start + length]
