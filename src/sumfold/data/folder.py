"""A folder with one table for each site: CSV or Parquet files with the same columns."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sumfold.data.arrow import column_array
from sumfold.data.assemble import from_entries
from sumfold.data.columns import check_labels, check_names, named_columns
from sumfold.data.entries import Array, is_numeric
from sumfold.data.federation import Federation
from sumfold.errors import DataError, missing_extra

Table = Mapping[str, Array]
"""The columns of one file, by name."""


def from_folder(path: Any, pattern: Any, label: Any, features: Any) -> Federation:
    """See `Federation.from_folder`."""
    wanted = named_columns(label, features)
    if not isinstance(path, str | os.PathLike):
        raise _no_folder(f"{path!r} ({type(path).__name__})")
    folder = Path(path)
    files = _matching(folder, pattern)
    names: list[str] = wanted or []
    first: tuple[str, set[str]] | None = None
    clients: dict[str, Any] = {}
    for client, file in files.items():
        shown = file.relative_to(folder).as_posix()
        table = _read(file, shown, None if wanted is None else [*wanted, label])
        if not table:  # a file of no bytes
            clients[client] = []
            continue
        if wanted is None:
            check_names(table, f"the file {shown!r}")
        if first is None:
            names = [name for name in table if name != label] if wanted is None else wanted
        elif wanted is None:
            _check_same(shown, set(table), *first)
        first = first or (shown, set(table))
        for name in (label, *names):
            if name not in table:
                raise _lacks(shown, name, list(table))
        if not names:
            raise _lacks(shown, None, list(table))
        check_labels(table[label], label, f"the file {shown!r}")
        x = np.stack([_numbers(table, name, shown) for name in names], axis=1)
        clients[client] = (x, _numbers(table, label, shown))
    return from_entries(clients, {}, batched=False)


def _no_folder(came: str) -> DataError:
    return DataError(
        "SF-DATA-081",
        came,
        "a folder with one file for each site",
        "check the path; for one table with a column of sites use Federation.from_frame(df, client=…, label=…)",
    )


def _matching(folder: Path, pattern: Any) -> dict[str, Path]:
    """The files by client id, in the order of the ids."""
    if not folder.is_dir():
        raise _no_folder(f"{str(folder)!r}, which is {'a file' if folder.exists() else 'not there'}")
    if not isinstance(pattern, str):
        raise DataError(
            "SF-DATA-082",
            f"pattern={pattern!r} ({type(pattern).__name__})",
            "patterns in one str",
            'write for example pattern="*.csv|*.parquet"',
        )
    try:
        found = {file for part in pattern.split("|") for file in folder.glob(part.strip()) if file.is_file()}
    except (ValueError, NotImplementedError) as error:
        raise DataError(
            "SF-DATA-082", f"pattern={pattern!r} ({error})", "patterns within the folder", 'write for example "*.csv"'
        ) from error
    visible = [f for f in found if not any(part.startswith(".") for part in f.relative_to(folder).parts)]
    if not visible:
        others = sorted({file.suffix or "no suffix" for file in folder.iterdir() if file.is_file()})
        raise DataError(
            "SF-DATA-082",
            f"no file in {str(folder)!r} that matches {pattern!r} (it has {', '.join(others) or 'no files'})",
            "one file for each site",
            'check the folder, or pass another pattern, for example "**/*.csv" for files in its folders',
        )
    files: dict[str, Path] = {}
    for file in sorted(visible):
        client = file.relative_to(folder).with_suffix("").as_posix()
        if client in files:
            raise DataError(
                "SF-DATA-080",
                f"the files {files[client].name!r} and {file.name!r}, both for the client {client!r}",
                "an id of its own for every client",
                'rename one of them, or choose one kind with pattern="*.csv"',
            )
        files[client] = file
    return dict(sorted(files.items()))


def _read(file: Path, shown: str, wanted: Sequence[str] | None) -> Table:
    kinds: dict[str, Callable[[Path, Sequence[str] | None], Table]] = {
        ".csv": _csv,
        ".parquet": _parquet,
        ".pq": _parquet,
    }
    reader = kinds.get(file.suffix.lower())
    if reader is None:
        raise DataError(
            "SF-DATA-087",
            f"the file {shown!r}",
            "files that end in .csv, .parquet or .pq",
            "convert it, or narrow the pattern",
        )
    try:
        return reader(file, wanted) if file.stat().st_size else {}
    except (OSError, ValueError, csv.Error) as error:  # the errors of pandas and pyarrow are among these
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(
            "SF-DATA-086",
            f"the file {shown!r} ({words[0]})",
            f"a readable {file.suffix.lower().removeprefix('.')} file",
            "open it with another program to see what is wrong, or leave it out by another pattern",
        ) from error


def _parquet(file: Path, wanted: Sequence[str] | None) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise missing_extra("pyarrow", "parquet") from None
    with parquet.ParquetFile(file) as opened:
        there = opened.schema_arrow.names
        _check_distinct(there)
        table = opened.read([name for name in there if wanted is None or name in wanted])
    # A data frame's index that was stored as a column is none of the user's columns.
    read = {name: _column(table[name], name) for name in table.column_names if not name.startswith("__index_level_")}
    return {**{name: np.empty(0) for name in there if wanted is not None and name not in wanted}, **read}


def _column(column: Any, name: str) -> Array:
    try:
        return column_array(column)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error


def _csv(file: Path, wanted: Sequence[str] | None) -> Table:
    try:
        import pandas as pd
    except ImportError:
        return _csv_alone(file)
    names: list[str] | None = None
    for line in _lines(file):  # pandas would fill up a short line with missing values
        names = names or line
    if names is None:
        return {}
    df = pd.read_csv(file, encoding="utf-8-sig")
    return {str(name): np.empty(0) if df.empty else np.asarray(df[name]) for name in df.columns}


def _csv_alone(file: Path) -> Table:
    lines = list(_lines(file))
    names, rows = (lines[0], lines[1:]) if lines else ([], [])
    return {name: _parsed([row[place] for row in rows]) for place, name in enumerate(names)}


def _lines(file: Path) -> Iterator[list[str]]:
    """The lines that are not blank, all of one number of fields."""
    width = None
    with file.open(encoding="utf-8-sig", newline="") as opened:
        reader = csv.reader(opened)
        for line in reader:
            if not line or (len(line) == 1 and not line[0].strip()):
                continue
            if width is None:
                _check_distinct([name for name in line if name])
                width = len(line)
            if len(line) != width:
                raise ValueError(f"{len(line)} fields in line {reader.line_num}, {width} columns")
            yield line


def _check_distinct(names: Sequence[str]) -> None:
    twice = next((name for name, times in Counter(names).items() if times > 1), None)
    if twice is not None:
        raise ValueError(f"two columns of one name, {twice!r}")


_MISSING = {"", "nan", "na", "n/a", "null", "none"}
_TRUTH = {"true": True, "false": False}


def _parsed(fields: list[str]) -> Array:
    """Integers, floats or booleans if all fields are; the fields themselves otherwise."""
    words = [field.strip().lower() for field in fields]
    if any("_" in word for word in words):  # Python reads 1_000 as a number
        return _words(fields)
    if fields and all(word in _TRUTH for word in words):
        return np.array([_TRUTH[word] for word in words])
    try:
        return np.array([int(word) for word in words], np.int64 if words else np.float64)
    except (ValueError, OverflowError):
        pass
    try:
        return np.array([np.nan if word in _MISSING else float(word) for word in words])
    except ValueError:
        return _words(fields)


def _words(fields: list[str]) -> Array:
    return np.array([None if field.strip().lower() in _MISSING else field for field in fields], object)


def _numbers(table: Table, name: str, shown: str) -> Array:
    column = table[name]
    if not len(column):
        return np.empty(0)
    if is_numeric(column.dtype) and column.ndim == 1:
        return column
    words = (v for v in column.tolist() if v is not None and not _is_number(v)) if column.ndim == 1 else iter(())
    word = next(words, None)
    raise DataError(
        "SF-DATA-085",
        f"column {name!r} of the file {shown!r} "
        + (f"holds {word!r}" if word else f"has dtype {column.dtype}{list(column.shape[1:]) or ''}"),
        "a column of numbers",
        "encode it as integers in all files at once, or leave it out with features=[…]",
    )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (ValueError, TypeError):
        return False
    return "_" not in str(value)


def _lacks(shown: str, name: str | None, columns: list[str]) -> DataError:
    return DataError(
        "SF-DATA-084",
        f"no column {name!r} in the file {shown!r}" if name else f"no feature column in the file {shown!r}",
        f"columns among {columns}",
        "look at the spelling of label= and features=, and at that file's first line",
    )


def _check_same(shown: str, columns: set[str], first: str, expected: set[str]) -> None:
    missing, extra = sorted(expected - columns), sorted(columns - expected)
    if missing or extra:
        words = [f"lacks {missing}"] * bool(missing) + [f"has {extra} besides"] * bool(extra)
        raise DataError(
            "SF-DATA-083",
            f"the file {shown!r} {' and '.join(words)}, compared with {first!r}",
            "the same columns in every file",
            "mend the file, or name the columns that all files have with features=[…]",
        )
