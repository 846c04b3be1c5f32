"""From whatever a user passes as `client_data` to a federation and the clients that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.entries import Kept, forget
from sumfold.data.federation import Federation
from sumfold.errors import user_facing


@user_facing
def as_federation(
    client_data: Any, clients: Any = None, kept: Kept | None = None
) -> tuple[Federation, npt.NDArray[np.int64]]:
    """A federation of the client data, and the positions in it of the clients asked for.

    Args:
        client_data: a `Federation` (returned as it is), a mapping ``id -> entry``, or a sequence of entries,
            whose ids are the positions. Entries are as in `Federation.from_clients`.
        clients: the ids that take part; None means everybody.
        kept: where one-shot iterators that were read are kept, so that a later call with the same iterator
            finds its batches. A caller passes the same dict each time.

    Returns:
        The federation, and int64[cohort].

    Raises:
        DataError: client data that cannot be used (SF-DATA-001 … 015).

    Example:
        >>> as_federation([([1.0, 2.0], [0, 1]), ([3.0], [1])], clients=[1])
        (Federation(2 clients, 3 examples, x float64, y int64), array([1]))
    """
    if kept and isinstance(client_data, (Mapping, Sequence)):
        forget(kept, client_data.values() if isinstance(client_data, Mapping) else client_data)
    federation = client_data if isinstance(client_data, Federation) else Federation.from_clients(client_data, kept=kept)
    if clients is None:
        return federation, np.arange(len(federation), dtype=np.int64)
    return federation, federation.positions(clients)
