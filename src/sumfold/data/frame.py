"""One table with a column that says whose row each row is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sumfold.data import entries
from sumfold.data.assemble import from_arrays
from sumfold.data.federation import Federation
from sumfold.errors import DataError


def from_frame(df: Any, client: str, label: str, features: str | Sequence[str] | None) -> Federation:
    """See `Federation.from_frame`."""
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
    return from_arrays(x, entries.numeric_column(df, label), None, np.asarray(df[client]), None)
