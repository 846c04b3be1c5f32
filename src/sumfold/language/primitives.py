"""What a traced program holds besides JAX's own operations: a few primitives that know about clients and sequences.

A traced computation is a jaxpr in which a variable at the clients has the shape that it has at *one* client, so that
mapping a function over clients is just that function's operations. What is left to say is where values cross:

    federated_broadcast    server → every client, the same value
    federated_sum          clients → server, under a group (add, modular, min, max, fold); and how many took part
    federated_check        a condition that must not hold; raised after the call as the error it describes

and how a client's sequence is read, whose elements are no variables: a *handle* (an int32 scalar in the jaxpr, a
`Rows` while it runs) stands for it.

    sequence_map, sequence_reduce    apply and fold local programs over the elements behind a handle
    sequence_of                      a handle on the rows of arrays

None has an evaluation rule: `sumfold.language.interpret` runs jaxprs that hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive

from sumfold import tree
from sumfold.core.group import Group
from sumfold.errors import CompositionError, SumfoldError
from sumfold.tree import Leaf

__all__ = ["Check", "broadcast", "check", "sequence_map", "sequence_of", "sequence_reduce", "sum_over_clients"]


class Check(NamedTuple):
    """The error that a violated condition becomes.

    Attributes:
        kind: the error's class.
        code, came, needed, do: its parts; ``{who}`` in `came` is replaced by whose value it was.
        line: the user's line that stated the condition.
    """

    kind: type[SumfoldError]
    code: str
    came: str
    needed: str
    do: str
    line: str

    def error(self, who: str) -> SumfoldError:
        """The error, saying whose value it was."""
        at = f" (at {self.line})" if self.line else ""
        return self.kind(self.code, self.came.replace("{who}", who) + at, self.needed, self.do)


def _primitive(name: str, result: Any) -> Any:
    primitive: Any = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(result)
    return primitive


_HANDLE = jax.make_jaxpr(lambda x: x)(tree.shape((), "int32")).in_avals[0]

broadcast_p = _primitive("federated_broadcast", lambda *values, line: list(values))
sum_p = _primitive(
    "federated_sum", lambda *operands, group, number, label, line: [*operands[len(operands) - number :], _HANDLE]
)
check_p = _primitive("federated_check", lambda violated, *, check: [])
sequence_of_p = _primitive("sequence_of", lambda *arrays: [_HANDLE])
sequence_map_p = _primitive("sequence_map", lambda *operands, bodies: [_HANDLE])
sequence_reduce_p = _primitive(
    "sequence_reduce", lambda handle, *operands, bodies, number: list(operands[len(operands) - number :])
)


def _bind(primitive: Any, *operands: Any, **params: Any) -> list[Leaf]:
    try:
        results: list[Leaf] = primitive.bind(*operands, **params)
    except (jax.errors.UnexpectedTracerError, NotImplementedError) as error:
        raise CompositionError(
            "SF-COMP-050",
            f"{primitive.name} outside of the computation that its value belongs to",
            "values of the computation that is being traced",
            "use the intrinsic inside the function that is decorated with @federated_computation",
        ) from error
    return results


def broadcast(leaves: Sequence[Leaf], line: str) -> list[Leaf]:
    """From the server to every client."""
    return _bind(broadcast_p, *leaves, line=line) if leaves else []


def sum_over_clients(
    leaves: Sequence[Leaf], group: Group, label: str, line: str, zeros: Sequence[Leaf] = ()
) -> tuple[list[Leaf], Leaf]:
    """The total over clients under a group, and int32[], how many clients took part.

    Args:
        leaves: one client's values.
        group: what Σ means.
        label: the intrinsic's name, for `explain`.
        line: the user's line.
        zeros: for a fold, where its total starts; constants of the program, which `tracing` gives to the group.
    """
    number = len(zeros) or len(leaves)
    *total, count = _bind(sum_p, *leaves, *zeros, group=group, number=number, label=label, line=line)
    return total, count


def check(violated: Leaf, what: Check) -> None:
    """State a condition that must not hold: a bool scalar at the clients, or at the server."""
    _bind(check_p, violated, check=what)


def sequence_of(arrays: Sequence[Leaf]) -> Leaf:
    """A handle on the rows of arrays with one leading axis."""
    return _bind(sequence_of_p, *arrays)[0]


class Body(NamedTuple):
    """A local program that is applied to elements of one shape.

    Attributes:
        jaxpr: (total and) element -> result, with the values that it closes over as its constants.
        at, number: which of the operation's constants those are.
    """

    jaxpr: Jaxpr
    at: int
    number: int


def _bodies(programs: Sequence[ClosedJaxpr]) -> tuple[tuple[Body, ...], list[Leaf]]:
    bodies: list[Body] = []
    consts: list[Leaf] = []
    for program in programs:
        bodies.append(Body(program.jaxpr, len(consts), len(program.consts)))
        consts += program.consts
    return tuple(bodies), consts


def sequence_map(handle: Leaf, programs: Sequence[ClosedJaxpr]) -> Leaf:
    """A handle on the elements after a local program, one for each shape of element."""
    bodies, consts = _bodies(programs)
    return _bind(sequence_map_p, handle, *consts, bodies=bodies)[0]


def sequence_reduce(handle: Leaf, programs: Sequence[ClosedJaxpr], zeros: Sequence[Leaf]) -> list[Leaf]:
    """The fold of a local program over the elements, (total, element) -> total, one for each shape of element."""
    bodies, consts = _bodies(programs)
    return _bind(sequence_reduce_p, handle, *consts, *zeros, bodies=bodies, number=len(zeros))
