"""One table with a column that says whose row each row is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from sumfold.data.arrow import column_array
from sumfold.data.assemble import from_arrays
from sumfold.data.columns import check_labels, check_names, named_columns
from sumfold.data.entries import Array, is_numeric
from sumfold.data.federation import Federation
from sumfold.errors import DataError


def from_frame(df: Any, client: Any, label: Any, features: Any) -> Federation:
    """See `Federation.from_frame`."""
    if not (hasattr(df, "columns") and hasattr(df, "__getitem__")):
        raise DataError(
            "SF-DATA-022",
            f"a {type(df).__name__}",
            "a data frame with named columns",
            "use Federation.from_arrays(x, y, client_ids=…) for arrays",
        )
    columns, read = _table(df)
    wanted = named_columns(label, features, client=client, words=False)
    names = [c for c in columns if c not in (client, label)] if wanted is None else wanted
    there = Counter(columns)
    missing = [name for name in (client, label, *names) if name not in there]
    if missing or not names:
        raise DataError(
            "SF-DATA-022",
            f"no column {missing[0]!r}" if missing else "no feature column",
            f"columns among {columns}",
            "look at the spelling of client=, label= and features=",
        )
    twice = next((name for name in (client, label, *names) if there[name] > 1), None)
    if twice is not None:
        raise DataError(
            "SF-DATA-115",
            f"{there[twice]} columns named {twice!r}",
            "a name of its own for every column",
            "rename or drop one of them",
        )
    if wanted is None:
        check_names(names, "the data frame")
    check_labels(read(label), label, "the data frame")
    x = np.stack([_numbers(read(name), name) for name in names], axis=1)
    return from_arrays(x, _numbers(read(label), label), None, read(client), None)


def _table(df: Any) -> tuple[list[Any], Callable[[Any], Array]]:
    """The names of the columns, and a function that reads one; the columns of an Arrow table are no names."""
    if type(df).__module__.partition(".")[0] != "pyarrow":
        return list(df.columns), lambda name: np.asarray(df[name])
    import pyarrow as pa

    table = df if isinstance(df, pa.Table) else pa.Table.from_batches([df])

    def read(name: Any) -> Array:
        try:
            return column_array(table[name])
        except ValueError as error:
            raise _unfit(name, f"holds {error}") from error

    return list(table.column_names), read


def _numbers(column: Array, name: Any) -> Array:
    """The column, unless it holds something else than one number a row."""
    if not is_numeric(column.dtype):
        raise _unfit(name, f"has dtype {column.dtype}")
    if column.ndim != 1:
        raise _unfit(name, f"has rows of shape {list(column.shape[1:])}")
    return column


def _unfit(name: Any, came: str) -> DataError:
    return DataError(
        "SF-DATA-023",
        f"column {name!r} {came}",
        "a column of numbers",
        f"encode it as integers (pandas.factorize(df[{name!r}])[0]), convert it with "
        f'.astype("float32"), or leave it out with features=[…]',
    )
