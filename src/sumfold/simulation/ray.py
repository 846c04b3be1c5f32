"""Client work that is no array program on a Ray cluster: the same seam as `Workers`, other processes.

The function and the message go into Ray's object store once a phase; each client is one task.
"""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sumfold.core.host import Failure, attempt
from sumfold.errors import missing_extra, user_facing
from sumfold.simulation.host import Asked, Ended
from sumfold.simulation.pipe import code
from sumfold.tree import Tree

__all__ = ["Ray"]


@dataclass(frozen=True)
class Ray:
    """Clients' Python functions as tasks on a Ray cluster, where Sumfold is installed too.

    Args:
        address: of a running cluster, or ``"auto"``; None starts Ray on this machine, unless it runs already.
        cpus: that each client's task asks for.

    Raises:
        MissingExtraError: when Ray is not installed.

    Example:
        >>> Ray("ray://head:10001")  # doctest: +SKIP
        Ray(address='ray://head:10001', cpus=1)
    """

    address: str | None = None
    cpus: int | float = 1

    @user_facing
    def __post_init__(self) -> None:
        _ray()

    def open(self) -> Cluster:
        """The cluster, joined if this program has not joined one yet."""
        ray = _ray()
        if not ray.is_initialized():
            ray.init(address=self.address, log_to_driver=False, configure_logging=False)
        return Cluster(self.cpus)


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    return ray


class Cluster:
    """A joined cluster; see `sumfold.simulation.host.Pool`."""

    def __init__(self, cpus: int | float) -> None:
        self.ray = _ray()
        self.size = max(int(self.ray.cluster_resources().get("CPU", 1) / cpus), 1)
        # Ray's own retries would hide what happened, and how often.
        self.task = self.ray.remote(_client).options(num_cpus=cpus, max_retries=0)
        self.working: dict[Any, tuple[Asked, str | None]] = {}

    def load(self, run: Callable[..., Any], message: Tree) -> None:
        """Put both into the object store."""
        self.given = self.ray.put(code(run)), self.ray.put(message)

    def submit(self, asked: Asked, retried: str | None = None) -> None:
        """Start a task."""
        self.working[self.task.remote(*self.given, asked)] = asked, retried

    def ended(self) -> list[Ended]:
        """Wait for one task or more; one whose process died is started once more."""
        found: list[Ended] = []
        while not found:
            ready, _ = self.ray.wait(list(self.working), num_returns=1)
            for task in ready:
                asked, retried = self.working.pop(task)
                try:
                    found.append(Ended(asked.place, self.ray.get(task), retried))
                except self.ray.exceptions.RayError as error:
                    why = f"its task on Ray ended with {type(error).__name__}"
                    if retried is None:
                        self.submit(asked, why)
                    else:
                        found.append(Ended(asked.place, Failure(f"{why}, twice", str(error)), retried))
        return found

    def abandon(self) -> None:
        """Cancel what is unfinished."""
        for task in self.working:
            self.ray.cancel(task, force=True)
        self.working = {}


@functools.lru_cache(maxsize=8)
def _function(data: bytes) -> Callable[..., Any]:
    function: Callable[..., Any] = pickle.loads(data)
    return function


def _client(run: bytes, message: Tree, asked: Asked) -> Tree | Failure:
    """One client, in a process of Ray's."""
    return attempt(_function(run), message, asked.data, asked.key, asked.memory)
