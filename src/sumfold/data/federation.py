"""A federation: the rows of all clients in flat arrays, and which rows are whose."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.entries import ClientId, Ids, Kept, Tree
from sumfold.data.fingerprint import fingerprint
from sumfold.data.owners import distinct, places_in_range, unknown_id
from sumfold.data.schema import describe, labels
from sumfold.data.sizes import Sizes, table
from sumfold.data.split import in_first_part
from sumfold.errors import DataError, user_facing

Int64 = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Federation:
    """Many clients' examples, held as flat arrays of which each client owns some rows.

    The arrays of all clients lie one after the other, and a client is a slice of them (or of `order`, a list
    of row numbers). So a subset, a split or a partition shares the arrays and copies nothing, a million
    clients cost two integer arrays, and memory-mapped arrays stay on disk. Build one with `from_clients`,
    `from_arrays`, `from_frame`, `from_batches`, `from_folder`, `from_torch` or `from_datasets`; `save` and
    `from_sqlite` keep one in a file.

    Attributes:
        ids: the clients' names, str or int, each once; a `range` where they are numbered.
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
    batch_sizes: Sequence[Int64] | None = None
    _memo: dict[str, Any] = dataclasses.field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        distinct(self.ids)

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
        from sumfold.data.assemble import from_entries

        return from_entries(clients, {} if kept is None else kept, batched=None)

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
        from sumfold.data.assemble import from_entries

        return from_entries(clients, {}, batched=True)

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
        from sumfold.data.assemble import from_arrays

        return from_arrays(x, y, weight, client_ids, offsets)

    @classmethod
    @user_facing
    def from_frame(
        cls, df: Any, *, client: str | Any, label: str | Any, features: str | Sequence[str] | Any = None
    ) -> Federation:
        """The federation of a data frame (pandas, Polars or alike) or an Arrow table, with one row per example.

        Args:
            df: has ``columns`` and gives a column by ``df[name]``; or a ``pyarrow.Table``.
            client: the column of client ids, str or int.
            label: the column of labels, numbers; none may be missing.
            features: the columns that become x[N, len(features)], numbers; a str is one column; None means all others.

        Raises:
            DataError: a column that is not there (SF-DATA-022) or holds no numbers (023), ids that do not fit (020), a
                row without a label (111), and columns that are named wrongly (112 … 115).

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"hospital": ["a", "b"], "age": [51, 64], "ill": [0, 1]})
            >>> Federation.from_frame(df, client="hospital", label="ill")["b"]
            (array([[64]]), array([1]))
        """
        from sumfold.data.frame import from_frame

        return from_frame(df, client, label, features)

    @classmethod
    @user_facing
    def from_folder(
        cls,
        path: str | os.PathLike[str] | Any,
        pattern: str | Any = "*.csv|*.parquet",
        *,
        label: str | Any,
        features: str | Sequence[str] | Any = None,
    ) -> Federation:
        """The federation of a folder with one file for each site; ids are the files' names without suffix.

        Every file has the same columns, in any order. The features are stacked into x[N, len(features)] in the order
        of `features`, or of the first file's columns. Dtypes are those of the columns, promoted to a common one over
        columns and files as `from_frame` and `from_clients` do (float64 as soon as there is a decimal point or a
        missing value). Missing features are NaN. A file without rows is an empty client. CSV files are UTF-8 with a
        line of column names; pandas reads them where it is installed.

        Args:
            path: the folder.
            pattern: the files, as in ``Path.glob``, alternatives separated by ``|``. ``"**/*.csv"`` looks into folders
                too, and ids are then paths such as ``"north/ward-1"``. Hidden files are left out.
            label: the column of labels, numbers; none may be missing.
            features: the columns that become x, numbers; a str is one column; None means all others.

        Raises:
            DataError: two files for one id (SF-DATA-080), no such folder (081), no matching file (082), files with
                different columns (083), a column that a file lacks (084) or that holds no numbers (085), a file that
                cannot be read (086), a suffix other than .csv, .parquet and .pq (087), a row without a label (111),
                columns that are named wrongly or have no name (112 … 114).
            MissingExtraError: a Parquet file without pyarrow.

        Example:
            >>> import tempfile
            >>> import pandas as pd
            >>> folder = tempfile.mkdtemp()
            >>> pd.DataFrame({"age": [51, 64], "ill": [0, 1]}).to_csv(folder + "/north.csv", index=False)
            >>> pd.DataFrame({"ill": [1], "age": [70]}).to_csv(folder + "/south.csv", index=False)
            >>> Federation.from_folder(folder, label="ill")["south"]
            (array([[70]]), array([1]))
        """
        from sumfold.data.folder import from_folder

        return from_folder(path, pattern, label, features)

    @classmethod
    @user_facing
    def from_torch(cls, dataset: Any, *, client_of: Any) -> Federation:
        """The federation of a PyTorch map-style dataset, or of any sequence of examples.

        All items are read once, now, and stacked. A ``TensorDataset`` is taken whole, and the ``Subset`` that
        ``random_split`` gives is looked through. Arrays keep their dtypes; Python numbers become int64 and float64.

        Args:
            dataset: has ``len(dataset)`` and ``dataset[i]``; an item is (x, y), (x, y, weight), a dict or one array.
            client_of: whose item it is: a function from the item's index to an id, a list or array with one id per
                item, or a str: an attribute of the dataset with one id per item, or a field of items that are dicts
                (which is then not among the examples). Ids are str or int.

        Raises:
            DataError: no map-style dataset (SF-DATA-090), items that differ in structure or shape (091), a `client_of`
                that does not fit (092), an item that is no number (093), ids that do not fit (020).

        Example:
            >>> items = [([1.0, 2.0], 0), ([3.0, 4.0], 1), ([5.0, 6.0], 1)]
            >>> Federation.from_torch(items, client_of=lambda index: index % 2)
            Federation(2 clients, 3 examples, x float64[2], y int64)
        """
        from sumfold.data.torch_datasets import from_torch

        return from_torch(dataset, client_of)

    @classmethod
    @user_facing
    def from_datasets(
        cls, dataset: Any, *, client: str | Any, label: str | Any, features: str | Sequence[str] | Any = None
    ) -> Federation:
        """The federation of a Hugging Face ``datasets.Dataset`` with one row per example.

        Columns are taken from Arrow as they are, dtypes included, without a loop over rows. Columns of numbers are
        stacked into x[N, len(features)]; a single column of lists of one length (of lists …) becomes x[N, …]. Missing
        numbers are NaN.

        Args:
            dataset: one split, in memory or on disk.
            client: the column of client ids, str or int.
            label: the column of labels: numbers, or lists of one length; none may be missing.
            features: the columns that become x; None means all others.

        Raises:
            DataError: several splits, a stream, or no Dataset (SF-DATA-095), a column that is not there (096) or holds
                neither numbers nor lists of one length (097), ids that do not fit (020), a row without a label (111),
                columns that are named wrongly (112 … 114).

        Example:
            >>> try:
            ...     Federation.from_datasets({"train": [], "test": []}, client="site", label="ill")
            ... except DataError as error:
            ...     print(error.do)
            choose one: dataset['train']
        """
        from sumfold.data.huggingface import from_datasets

        return from_datasets(dataset, client, label, features)

    @classmethod
    @user_facing
    def from_sqlite(cls, path: str | os.PathLike[str]) -> Federation:
        """The federation in a file of `save`, opened and not read: a million clients open in a moment.

        Only the clients' sizes are read. A round reads its cohort; ``fed[id]`` reads one client, `subset` reads those
        asked for into a federation in memory, and `pooled`, `labels` and `split` read all: split before saving. Any
        number of threads and processes may use it at once, also after a fork.

        Raises:
            DataError: no such file (SF-DATA-101), another kind of file (102), one of a newer Sumfold (103), a damaged
                one (104), one that was replaced since it was opened (105).

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/clients.sqlite"
            >>> Federation.from_clients({"a": ([1.0, 2.0], [0, 1]), "b": ([3.0], [1])}).save(path)
            >>> fed = Federation.from_sqlite(path)
            >>> fed["b"]
            (array([3.]), array([1]))
        """
        from sumfold.data.stored import StoredFederation

        return StoredFederation(path)

    @user_facing
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the clients' ids and examples to one SQLite file, whole or not at all; `from_sqlite` opens it.

        Dtypes, trees, weights, empty clients and ready-made batches come back as they were; named tuples come back as
        named tuples of the same name and fields.

        Args:
            path: the file; its folder must exist. An older file of this name is replaced at the end, at once.

        Raises:
            DataError: the file cannot be written (SF-DATA-100), an id or a key that a file cannot hold (106).

        Example:
            >>> import tempfile
            >>> path = tempfile.mkdtemp() + "/clients.sqlite"
            >>> Federation.from_arrays(np.zeros((3, 2)), offsets=[0, 1, 3]).save(path)
            >>> Federation.from_sqlite(path).sizes
            {0: 1, 1: 2}
        """
        from sumfold.data.sqlite import save

        save(self, path)

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
            raise unknown_id(key, self.ids)
        return self.take(position)

    @property
    def sizes(self) -> Mapping[ClientId, int]:
        """How many examples each client has, as a read-only mapping.

        Example:
            >>> Federation.from_clients({"a": ([1.0, 2.0], [0, 1])}).sizes["a"]
            2
        """
        return Sizes(self)

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
        found = places_in_range(self.ids, ids) if isinstance(self.ids, range) else self._positions_by_name(ids)
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
        part = dataclasses.replace(
            self,
            ids=ids if both_ranges else tuple([self.ids[p] for p in at.tolist()]),
            starts=self.starts[at],
            counts=self.counts[at],
            batch_sizes=self.batch_sizes and tuple([self.batch_sizes[p] for p in at.tolist()]),
        )
        part._memo["whole"] = self.whole
        return part

    @property
    def whole(self) -> Federation:
        """The federation that this one is a `subset` of, or itself."""
        whole: Federation = self._memo.get("whole", self)
        return whole

    @property
    def in_memory(self) -> bool:
        """Whether `examples` are arrays; False for a federation of `from_sqlite`, which reads them when asked."""
        return True

    def cohort(self, positions: Int64) -> tuple[Federation, Int64]:
        """A federation in memory that has the clients at `positions`, and where in it they are.

        The federation itself, unless it lies in a file.

        Example:
            >>> fed = Federation.from_arrays([1.0, 2.0, 3.0], offsets=[0, 1, 2, 3])
            >>> fed.cohort(np.array([2, 0]))[0] is fed
            True
        """
        return self, positions

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
        return labels(self.examples)

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
            arrays = [
                self.starts,
                self.counts,
                *([] if self.order is None else [self.order]),
                *(self.batch_sizes or ()),
            ]
            self._memo["fingerprint"] = fingerprint(self.ids, self.examples, arrays)
        return str(self._memo["fingerprint"])

    def __repr__(self) -> str:
        batches = "" if self.batch_sizes is None else f", {sum(map(len, self.batch_sizes))} ready-made batches"
        schema = describe(self.examples)
        return (
            f"Federation({len(self)} client{'' if len(self) == 1 else 's'}, {int(self.counts.sum())} examples"
            f"{batches}{schema and ', ' + schema})"
        )

    def _repr_html_(self) -> str:
        return table(repr(self), self.ids, self.counts)

    # ------------------------------------------------------------------------------------------ private

    def _find(self, key: object) -> int | None:
        if not entries.is_id(key):
            return None
        if isinstance(self.ids, range):
            return self.ids.index(int(key)) if not isinstance(key, str) and int(key) in self.ids else None
        return self._index().get(key)

    def _index(self) -> dict[Any, int]:
        if "index" not in self._memo:
            self._memo["index"] = {key: position for position, key in enumerate(self.ids)}
        index: dict[Any, int] = self._memo["index"]
        return index

    def _positions_by_name(self, ids: Any) -> Int64:
        wanted = np.asarray(ids).tolist() if hasattr(ids, "__array__") else list(ids)
        found = [self._find(key) for key in wanted]
        if None in found:
            raise unknown_id(wanted[found.index(None)], self.ids)
        return np.array(found, np.int64)

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
