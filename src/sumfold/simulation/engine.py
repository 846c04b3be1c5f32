"""The Simulation runtime: Σ as a compiled stream of clients on the local device, a whole round in one program."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sumfold.core.cohort import Cohort
from sumfold.core.driver import Outcome, State, check_groups
from sumfold.core.group import KINDS
from sumfold.core.round import Round
from sumfold.errors import CompositionError, user_facing
from sumfold.simulation.bound import Bound
from sumfold.simulation.compilation_cache import switch_on
from sumfold.simulation.gang import Alone
from sumfold.simulation.host import Host

__all__ = ["Simulation"]


@dataclass(frozen=True)
class Simulation:
    """All clients on this machine, as fast as it can: the default runtime.

    Clients run in streams, one on each core; data is placed on a device once and each round sends row numbers only, or
    its clients' rows where the data is larger than the device, or in a large mapped file that it cannot use as it lies.
    Clients whose work is a Python function (PyTorch, scikit-learn) run in worker processes instead. Offers every kind
    of sum.

    Results depend on the number of streams and lanes by rounding only, since they fix the order of sums: to about 1e-6
    of the largest parameter a round. With `deterministic` they do not depend on them at all.

    Args:
        devices: how many of JAX's devices to use; one by default.
        streams: streams for each device. By default one for each physical core on a CPU and one on an accelerator,
            and fewer for rounds so short that they are not worth it.
        kernel: ``"sequential"``, clients of a stream one after the other, or ``"lanes"``, many abreast. By default
            lanes on an accelerator and for tiny models, where they are faster.
        lanes: how many clients abreast; fewer where so many copies of the model do not fit the device, which is logged.
        deterministic: the same bits for any devices, streams and processes, and as in `Loopback`: clients run by
            exported programs, one call a step, and are summed in a fixed order. Slower by about 30 microseconds a step
            and half a millisecond a client for a small model, twice that on a busy machine. Clients whose work is a
            Python function give the bits that it gives.
        autotune: where the rule does not say which kernel is faster, try both in the first round (about a second,
            most of it compilation), and keep what came out beside the compiled programs; otherwise the rule's guess.
        host: where clients' Python functions run: `Workers` of this machine by default, or `Ray`.

    Raises:
        CompositionError: for options that are none or exclude each other, or more devices than there are.

    Example:
        >>> sorted(Simulation().groups)
        ['add', 'fold', 'max', 'min', 'modular', 'stack']
    """

    devices: int | Any = None
    streams: int | Any = None
    kernel: str | Any = None
    lanes: int | Any = None
    deterministic: bool | Any = False
    autotune: bool | Any = True
    host: Host | Any = None

    @user_facing
    def __post_init__(self) -> None:
        switch_on()  # before anything is compiled
        for name in ("devices", "streams", "lanes"):
            value = getattr(self, name)
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= 1
            if value is not None and not whole:
                raise _no_option(name, value, "a whole number of at least 1, or None")
        for name in ("deterministic", "autotune"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise _no_option(name, getattr(self, name), "True or False")
        if self.kernel not in (None, "sequential", "lanes"):
            raise _no_option("kernel", self.kernel, "'sequential', 'lanes' or None")
        abreast = self.lanes is not None or self.kernel == "lanes"
        if abreast and (self.deterministic or self.kernel == "sequential"):
            given = f"lanes={self.lanes!r}" if self.lanes is not None else "kernel='lanes'"
            other = "deterministic=True" if self.deterministic else "kernel='sequential'"
            raise CompositionError(
                "SF-SIM-003",
                f"Simulation({given}, {other})",
                "lanes or the other, since lanes add clients in another order",
                "leave one of them out",
            )
        if self.host is not None and (not isinstance(self.host, Host) or isinstance(self.host, type)):
            raise CompositionError(
                "SF-HOST-011",
                f"Simulation(host={self.host!r})",
                "where clients' Python functions run: sf.Workers(…) or sf.Ray(…)",
                "for two worker processes write sf.Simulation(host=sf.Workers(2))",
            )

    @property
    def groups(self) -> frozenset[str]:
        """Every kind of sum."""
        return KINDS

    def bind(self, round: Round) -> Callable[[State, Cohort], Outcome]:
        """Prepare an algorithm; see `sumfold.core.driver.Runtime`."""
        check_groups(round, self)
        return Bound(round, self, Alone())


def _no_option(name: str, value: Any, needed: str) -> CompositionError:
    return CompositionError(
        "SF-SIM-001",
        f"Simulation({name}={value!r})",
        f"{name} as {needed}",
        "leave it out: the engine uses every core, and chooses the kernel",
    )
