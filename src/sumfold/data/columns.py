"""The columns of a table that a federation is made of: which are meant, and whether every row has its label."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.entries import Array, is_numeric
from sumfold.errors import DataError


def named_columns(label: Any, features: Any, *, client: Any = "", words: bool = True) -> list[Any] | None:
    """The feature columns that were asked for; None means all others.

    Args:
        label, client: one column's name.
        features: names of columns, one name, or None.
        words: whether names are str; those of a data frame may be anything that is hashable.

    Raises:
        DataError: an argument of another type (SF-DATA-114), a feature that is the label or comes twice (112).

    Example:
        >>> named_columns("ill", "age"), named_columns("ill", None)
        (['age'], None)
    """
    kind: Any = str if words else Hashable
    for argument, name in (("client", client), ("label", label)):
        if not isinstance(name, kind) or name is None:
            raise _no_name(
                f"{argument}={_short(name)}", "the name of one column", f'write for example {argument}="ill"'
            )
    if features is None:
        return None
    if isinstance(features, str):
        names: list[Any] = [features]
    elif isinstance(features, Iterable) and not isinstance(features, bytes | Set | Mapping):
        names = list(features)
    else:
        raise _no_features(features)
    if not all(isinstance(name, kind) for name in names):
        raise _no_features(features)
    for name, times in Counter(names).items():
        if name == label or times > 1:
            raise DataError(
                "SF-DATA-112",
                f"the label {name!r} among the features" if name == label else f"the feature {name!r} twice",
                "features that are not the label, each once",
                "leave it out of features=[…]",
            )
    return names


def check_names(names: Iterable[Any], where: str) -> None:
    """Refuse feature columns without a name: most often the numbers of the rows, which would be learnt from.

    Args:
        names: of all columns that would become features.
        where: the table, for the message.

    Raises:
        DataError: the first such column (SF-DATA-113).

    Example:
        >>> check_names(["age", "bmi"], "the file 'north.csv'")
    """
    for name in names:
        if isinstance(name, str) and (not name.strip() or _UNNAMED.fullmatch(name)):
            raise DataError(
                "SF-DATA-113",
                f"a column without a name ({name!r}) in {where}",
                "a name for every column that becomes a feature",
                "if it holds the numbers of the rows, write the table with to_csv(…, index=False), or name the columns "
                "that are meant with features=[…]",
            )


_UNNAMED = re.compile(r"Unnamed: \d+(_level_\d+)?")
"""What pandas calls a column without a name."""


def check_labels(column: Array, label: Any, where: str) -> None:
    """Refuse a row without a label.

    Args:
        column: the labels, [N, …].
        label: the column's name.
        where: the table, for the message.

    Raises:
        DataError: naming the first such row (SF-DATA-111).

    Example:
        >>> check_labels(np.array([0.0, 1.0]), "ill", "the data frame")
    """
    refuse_rows(missing_rows(column), label, where)


def refuse_rows(rows: npt.NDArray[np.int64], label: Any, where: str) -> None:
    """Refuse a table whose `rows` have no label; none is well."""
    if len(rows):
        more = f", nor in {len(rows) - 1} more" if len(rows) > 1 else ""
        raise DataError(
            "SF-DATA-111",
            f"no label {label!r} in row {rows[0]} of {where}{more}",
            "a label in every row (the first row of data is row 0)",
            "fill in the label, or leave the row out",
        )


def missing_rows(column: Array) -> npt.NDArray[np.int64]:
    """The rows in which a value is missing: NaN, None, and what pandas writes for them.

    Example:
        >>> missing_rows(np.array([1.0, np.nan])), missing_rows(np.array(["a", None], object))
        (array([1]), array([1]))
    """
    if column.dtype.kind == "O":
        absent = np.array([_is_absent(value) for value in column.reshape(-1)], bool).reshape(column.shape)
    elif column.dtype.kind in "biu" or not is_numeric(column.dtype):
        return np.zeros(0, np.int64)
    else:
        absent = np.isnan(column)
    return np.flatnonzero(absent.reshape(len(column), -1).any(1)) if column.size else np.zeros(0, np.int64)


def _is_absent(value: Any) -> bool:
    nan = isinstance(value, float | np.floating) and bool(np.isnan(value))
    return value is None or nan or type(value).__name__ in ("NAType", "NaTType")


def _no_name(came: str, needed: str, do: str) -> DataError:
    return DataError("SF-DATA-114", came, needed, do)


def _no_features(features: Any) -> DataError:
    needed = "a list of names of columns, in the order that x shall have, or one name"
    return _no_name(f"features={_short(features)}", needed, 'write for example features=["age", "bmi"]')


def _short(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
