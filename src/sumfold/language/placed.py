"""The argument of an intrinsic as one placed value, or the error that says what it is instead."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from sumfold.errors import CompositionError, PlacementError
from sumfold.language.containers import open_container
from sumfold.language.placements import CLIENTS, Placement
from sumfold.language.types import FederatedType, StructType, TensorType
from sumfold.language.value import Pending, Value, check_alive, check_narrow

__all__ = ["check_placement", "check_tracing", "placed"]


def placed(value: Any, what: str, placement: Placement | None = None, *, wide: bool = False) -> Value:
    """The argument of an intrinsic as one placed value; structures of placed values are zipped."""
    result = _zipped(value, what, placement)
    check_alive(result)
    if not wide:
        check_narrow(result.type, result.leaves, f"the {what} has the type")
    if placement is not None and result.placement is not placement:
        other = "federated_broadcast" if placement is CLIENTS else "federated_sum or federated_mean"
        raise PlacementError(
            "SF-PLACE-001",
            f"the {what} has the type {result.type}: it is placed at {result.placement}",
            f"a value placed at {placement}",
            f"bring it there with {other}",
        )
    return result


def _zipped(value: Any, what: str, placement: Placement | None) -> Value:
    if isinstance(value, Value) and isinstance(value.type, FederatedType):
        return value
    if isinstance(value, Pending):
        if placement is None:
            value.guess()
        value.decide(placement, certain=True)
    opened = open_container(value) if not isinstance(value, Value) else None
    if opened is None or not opened[1]:
        raise _unplaced(value, what, placement)
    container, children = opened
    known = _first_placement(children) if placement is None else placement
    placed = [_zipped(child, what, known) for child in children]
    where = {v.placement for v in placed}
    if len(where) > 1:
        raise PlacementError(
            "SF-PLACE-007",
            f"the {what} is a structure of values at different places: " + ", ".join(str(v.type) for v in placed),
            "values of one placement",
            "bring the server's to the clients with federated_broadcast, or the clients' to the server with a sum",
        )
    member = StructType([(n, v.member) for n, v in zip(container.names, placed, strict=True)], container)
    return Value(FederatedType(member, where.pop()), tuple(leaf for v in placed for leaf in v.leaves))


def _first_placement(children: Any) -> Placement | None:
    """Where the first placed value of a structure lives: its siblings live there too."""
    for child in children:
        if isinstance(child, Value):
            return child.placement
        opened = None if isinstance(child, Pending) else open_container(child)
        found = _first_placement(opened[1]) if opened else None
        if found is not None:
            return found
    return None


def _unplaced(value: Any, what: str, placement: Placement | None) -> PlacementError:
    if isinstance(value, Value | jax.core.Tracer):
        shown = value.type if isinstance(value, Value) else _show(value)
        came = f"the {what} is a value of type {shown} without a placement"
        do = (
            "apply intrinsics to placed values: outside of mapped functions and of jax.jit; declare an argument's "
            "placement with type_at_clients or type_at_server, or place it with federated_value"
        )
    else:
        came = f"the {what} is {_show(value)}, which has no placement"
        do = (
            "inside a computation, place a constant with federated_value(x, sf.SERVER); outside of one, decorate the "
            "function with @sf.federated_computation and call it with the lists"
        )
    return PlacementError("SF-PLACE-008", came, f"a value placed at {placement or 'CLIENTS or SERVER'}", do)


def _show(value: Any) -> str:
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return str(TensorType(value.dtype, tuple(d if isinstance(d, int) else None for d in value.shape)))
    return f"a Python {type(value).__name__}"


def check_placement(placement: Any, name: str) -> None:
    """Refuse what is neither CLIENTS nor SERVER."""
    if not isinstance(placement, Placement):
        raise PlacementError(
            "SF-PLACE-009",
            f"{name} with the placement {placement!r}",
            "CLIENTS or SERVER",
            f"write {name}(…, sf.SERVER)",
        )


def check_tracing(name: str) -> None:
    """Refuse an intrinsic outside of a computation."""
    if not isinstance(jnp.zeros(()), jax.core.Tracer):
        raise CompositionError(
            "SF-COMP-050",
            f"{name} outside of a computation",
            "a computation that is being traced",
            "use the intrinsic inside a function that is decorated with @federated_computation",
        )
