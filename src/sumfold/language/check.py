"""Static questions about a computation, answered from its program before any data moves."""

from __future__ import annotations

from typing import Any, NamedTuple

from sumfold.errors import TypeMismatchError, user_facing
from sumfold.language.computation import Computation
from sumfold.language.placements import CLIENTS
from sumfold.language.types import FederatedType

__all__ = ["Verdict", "only_secure_aggregation"]


class Verdict(NamedTuple):
    """An answer with its reasons; true or false like a bool.

    Attributes:
        holds: the answer.
        reasons: what speaks against it, each with the user's line.

    Example:
        >>> bool(Verdict(False, ("federated_sum at job.py:7",)))
        False
    """

    holds: bool
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.holds

    def __eq__(self, other: object) -> bool:
        return self.holds == (other.holds if isinstance(other, Verdict) else other)

    def __hash__(self) -> int:
        return hash(self.holds)

    def __str__(self) -> str:
        besides = "besides secure sums only counts travel: of clients, of those left out, of violated ranges"
        return f"yes; {besides}" if self.holds else "no: " + "; ".join(self.reasons)


@user_facing
def only_secure_aggregation(comp: Any) -> Verdict:
    """Whether nothing but secure sums leaves the clients.

    Besides them only counts travel: how many clients took part, were not finite, or violated a stated range.

    Args:
        comp: a `Computation` with declared types, or one that was called.

    Returns:
        A `Verdict`: true or false, and when false the offending lines.

    Raises:
        TypeMismatchError: for something that is no computation.
        CompositionError: when its types are not known yet.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(np.int32))
        ... def count(x):
        ...     return sf.federated_secure_sum(x, 10)
        >>> bool(sf.check.only_secure_aggregation(count))
        True
    """
    if not isinstance(comp, Computation):
        raise TypeMismatchError(
            "SF-TYPE-089",
            f"only_secure_aggregation of a {type(comp).__name__}",
            "a federated computation",
            "pass the object that @sf.federated_computation made; for a process, read process.explain()",
        )
    program = comp.program
    reasons = [
        f"{equation.params['label']} at {equation.params['line']} is a sum under the group "
        f"{equation.params['group'].kind!r}, whose summands are seen"
        for client in program.plan.clients
        for equation in client.sums
        if equation.params["group"].kind != "modular"
    ]
    reasons += [
        f"it returns {output.type}, a value of each client"
        for output in program.outputs
        if isinstance(output.type, FederatedType) and output.type.placement is CLIENTS and not output.type.all_equal
    ]
    return Verdict(not reasons, tuple(reasons))
