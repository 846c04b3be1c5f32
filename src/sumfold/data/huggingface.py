"""Hugging Face datasets, column by column from Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sumfold.data.arrow import column_array
from sumfold.data.assemble import from_arrays
from sumfold.data.columns import check_labels, check_names, named_columns, refuse_rows
from sumfold.data.entries import Array, is_numeric
from sumfold.data.federation import Federation
from sumfold.errors import DataError


def from_datasets(dataset: Any, client: Any, label: Any, features: Any) -> Federation:
    """See `Federation.from_datasets`."""
    _check_split(dataset)
    wanted = named_columns(label, features, client=client)
    there = list(dataset.column_names)
    names = [name for name in there if name not in (client, label)] if wanted is None else wanted
    missing = [name for name in (client, label, *names) if name not in there]
    if missing or not names:
        raise DataError(
            "SF-DATA-096",
            f"no column {missing[0]!r}" if missing else "no feature column",
            f"columns among {there}",
            "look at the spelling of client=, label= and features=",
        )
    if wanted is None:
        check_names(names, "the dataset")
    used = list(dict.fromkeys((client, label, *names)))
    table = dataset.select_columns(used).with_format("arrow")[:]
    refuse_rows(np.flatnonzero(table[label].is_null().to_numpy()), label, "the dataset")
    labels = _numbers(table, label)
    check_labels(labels, label, "the dataset")
    columns = [_numbers(table, name) for name in names]
    if len(columns) > 1:
        lists = [name for name, column in zip(names, columns, strict=True) if column.ndim > 1]
        if lists:
            raise _unfit(lists[0], f"lists, beside {len(names) - 1} other feature columns")
    x = columns[0] if columns[0].ndim > 1 else np.stack(columns, axis=1)
    return from_arrays(x, labels, None, column_array(table[client]), None)


def _check_split(dataset: Any) -> None:
    is_table = all(hasattr(dataset, name) for name in ("column_names", "with_format", "select_columns", "__len__"))
    if is_table and not isinstance(dataset, Mapping):
        return
    if isinstance(dataset, Mapping) and dataset:
        came, do = (
            f"a {type(dataset).__name__} of the splits {list(dataset)}",
            f"choose one: dataset[{next(iter(dataset))!r}]",
        )
    elif hasattr(dataset, "column_names"):
        came, do = f"a stream ({type(dataset).__name__})", "load it without streaming=True"
    else:
        came, do = f"a {type(dataset).__name__}", "for tables and arrays use Federation.from_frame or from_arrays"
    raise DataError("SF-DATA-095", came, "one split of a Hugging Face dataset, in memory or on disk", do)


def _numbers(table: Any, name: str) -> Array:
    try:
        column = column_array(table[name])
    except ValueError as error:
        raise _unfit(name, str(error)) from error
    if not is_numeric(column.dtype):
        raise _unfit(name, str(table.schema.field(name).type))
    return column


def _unfit(name: str, came: str) -> DataError:
    return DataError(
        "SF-DATA-097",
        f"column {name!r} holds {came}",
        "columns of numbers, or one feature column of lists of one length",
        "encode, pad or drop it with dataset.map(…), or name the columns with features=[…]",
    )
