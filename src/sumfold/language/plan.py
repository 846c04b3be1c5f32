"""Where a traced program runs: its operations sorted into the exchanges of a round.

A variable is known at the server after so many exchanges, or at the clients in one exchange; what depends on no
argument is known everywhere. A broadcast carries a server's value into the next exchange, a sum ends it:

    server 0 ──▶ clients 0 ──Σ──▶ server 1 ──▶ clients 1 ──Σ──▶ server 2

One pass over the jaxpr sorts every operation into the earliest piece where its inputs are. Since a jaxpr has no
cycles, this always succeeds; sums that do not wait for each other share an exchange.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from jax.extend.core import ClosedJaxpr, Literal

from sumfold.errors import PlacementError
from sumfold.language.primitives import (
    Check,
    broadcast_p,
    check_p,
    sequence_map_p,
    sequence_of_p,
    sequence_reduce_p,
    sum_p,
)

__all__ = ["Client", "Place", "Plan", "Server", "plan"]


class Place(NamedTuple):
    """Where and when a variable is known: at the clients in exchange `time`, or at the server after `time` of them."""

    at_clients: bool
    time: int


class Server(NamedTuple):
    """What the server computes between two exchanges.

    Attributes:
        equations: in order; sums and broadcasts left out.
        checks: the violated-variable and the check of each condition.
    """

    equations: list[Any]
    checks: list[tuple[Any, Check]]


class Client(NamedTuple):
    """What every client computes in one exchange.

    Attributes:
        equations: in order.
        received: (server's variable, client's variable) of what the server sends.
        sums: the equations of the sums that end it.
        checks: the violated-variable and the check of each condition.
        kept: variables of this or earlier exchanges that a later one needs.
        folds: whether a sequence of the arguments is folded.
    """

    equations: list[Any]
    received: list[tuple[Any, Any]]
    sums: list[Any]
    checks: list[tuple[Any, Check]]
    kept: list[Any]
    folds: bool


class Plan(NamedTuple):
    """A program sorted into exchanges.

    Attributes:
        servers: n + 1 pieces.
        clients: n pieces, one an exchange.
        carried: the server's variables that a later piece, a message or the result needs; in a fixed order.
        places: where every variable is known; those left out are known everywhere.
        broadcasts: client's variable -> server's variable.
    """

    servers: list[Server]
    clients: list[Client]
    carried: list[Any]
    places: dict[Any, Place]
    broadcasts: dict[Any, Any]


_LAZY = {sequence_map_p, sequence_of_p}
"""Operations that make a handle: done again in every exchange that reads the sequence, since none can be kept."""


def plan(closed: ClosedJaxpr, inputs: list[Place]) -> Plan:
    """Sort a program.

    Args:
        closed: the program.
        inputs: where each argument variable is known; clients' arguments in every exchange.
    """
    sorting = _Sorting.of(closed.jaxpr, inputs)
    needs: list[set[Any]] = []
    drafts = []
    for p in range(sorting.exchanges):
        here = Place(True, p)
        sums = [e for e in closed.jaxpr.eqns if e.primitive is sum_p and sorting.runs[id(e)] == here]
        stated = sorting.conditions(here)
        roots = sorting.own(here) + [v for e in sums for v in e.invars] + [v for v, _ in stated]
        roots += [v for v in sorting.returned() if sorting.places[v] == here]
        equations = sorting.piece(here, roots)
        drafts.append((equations, sums, stated))
        needs.append(_missing(equations, roots))
    clients = [sorting.client(p, *draft, needs) for p, draft in enumerate(drafts)]
    servers, carried = sorting.servers(clients)
    return Plan(servers, clients, carried, sorting.places, sorting.broadcasts)


class _Sorting(NamedTuple):
    """A program while it is sorted.

    Attributes:
        jaxpr: the program.
        places: where each variable is known; those left out are known everywhere.
        runs: where each equation runs, by its id; those left out run everywhere.
        makers: variable -> the equation that makes it.
        broadcasts: client's variable -> server's variable.
    """

    jaxpr: Any
    places: dict[Any, Place]
    runs: dict[int, Place]
    makers: dict[Any, Any]
    broadcasts: dict[Any, Any]

    @classmethod
    def of(cls, jaxpr: Any, inputs: list[Place]) -> _Sorting:
        places: dict[Any, Place] = dict(zip(jaxpr.invars, inputs, strict=True))
        runs: dict[int, Place] = {}
        for equation in jaxpr.eqns:
            where = _runs(equation, places)
            if where is not None:
                runs[id(equation)] = where
                places.update(dict.fromkeys(equation.outvars, _gives(equation, where)))
        sent = [e for e in jaxpr.eqns if e.primitive is broadcast_p and id(e) in runs]
        broadcasts = {out: given for e in sent for given, out in zip(e.invars, e.outvars, strict=True)}
        return cls(jaxpr, places, runs, {v: e for e in jaxpr.eqns for v in e.outvars}, broadcasts)

    @property
    def exchanges(self) -> int:
        ends = [place.time + place.at_clients for place in self.runs.values()]
        return max([*ends, *(self.places[v].time + 1 for v in self.returned())], default=0)

    def outputs(self) -> list[Any]:
        return [v for v in self.jaxpr.outvars if not isinstance(v, Literal)]

    def returned(self) -> list[Any]:
        """The clients' variables that are returned; a broadcast one is the server's."""
        return [v for v in self.outputs() if v not in self.broadcasts and _at_clients(v, self.places)]

    def piece(self, place: Place, roots: list[Any]) -> list[Any]:
        """The equations behind some variables that run here, with those that run everywhere or are done again."""
        wanted: set[int] = set()
        stack = list(roots)
        while stack:
            variable = stack.pop()
            maker = None if isinstance(variable, Literal) else self.makers.get(variable)
            if maker is None or id(maker) in wanted:
                continue
            runs = self.runs.get(id(maker))
            if runs is not None and maker.primitive in {sum_p, broadcast_p}:
                continue
            if runs is None or runs == place or maker.primitive in _LAZY:
                wanted.add(id(maker))
                stack += maker.invars
        return [e for e in self.jaxpr.eqns if id(e) in wanted]

    def own(self, place: Place) -> list[Any]:
        """The variables that are made here and nowhere else."""
        moved = {sum_p, broadcast_p, *_LAZY}
        here = [e for e in self.jaxpr.eqns if self.runs.get(id(e)) == place and e.primitive not in moved]
        return [v for e in here for v in e.outvars]

    def conditions(self, place: Place) -> list[tuple[Any, Check]]:
        stated = [e for e in self.jaxpr.eqns if e.primitive is check_p]
        here = [e for e in stated if self.runs.get(id(e), Place(False, 0)) == place]
        return [(e.invars[0], e.params["check"]) for e in here]

    def client(
        self, p: int, equations: list[Any], sums: list[Any], stated: list[tuple[Any, Check]], needs: list[set[Any]]
    ) -> Client:
        received = [(self.broadcasts[v], v) for v in _ordered(needs[p], self.jaxpr) if v in self.broadcasts]
        later = set().union(*needs[p + 1 :]) - set(self.jaxpr.invars) - set(self.broadcasts)
        kept = [v for v in _ordered(later, self.jaxpr) if _at_clients(v, self.places) and self.places[v].time <= p]
        folds = any(e.primitive is sequence_reduce_p for e in equations)
        return Client(equations, received, sums, stated, kept, folds)

    def servers(self, clients: list[Client]) -> tuple[list[Server], list[Any]]:
        """The server's pieces, and what it must remember: messages, results, and what a later piece of it reads."""
        sent = [given for client in clients for given, _ in client.received]
        sent += [self.broadcasts.get(v, v) for v in self.outputs()]
        needed = {v for v in sent if not isinstance(v, Literal)}
        everywhere = [v for v in needed if v not in self.places]
        pieces = []
        for t in range(len(clients) + 1):
            stated = self.conditions(Place(False, t))
            roots = self.own(Place(False, t)) + [v for v, _ in stated] + (everywhere if t == 0 else [])
            equations = self.piece(Place(False, t), roots)
            pieces.append(Server(equations, stated))
            needed |= {v for v in _missing(equations, roots) if v in self.places and self.places[v].time < t}
        return pieces, [v for v in _ordered(needed, self.jaxpr) if not _at_clients(v, self.places)]


def _missing(equations: list[Any], roots: list[Any]) -> set[Any]:
    """What a piece reads and does not make."""
    made = {v for e in equations for v in e.outvars}
    read = [v for e in equations for v in e.invars] + roots
    return {v for v in read if not isinstance(v, Literal) and v not in made}


def _at_clients(variable: Any, places: dict[Any, Place]) -> bool:
    return variable in places and places[variable].at_clients


def _runs(equation: Any, places: dict[Any, Place]) -> Place | None:
    """Where an equation runs; None is everywhere, for what depends on no argument."""
    known = [places[v] for v in equation.invars if not isinstance(v, Literal) and v in places]
    time = max((place.time for place in known), default=0)
    if equation.primitive is broadcast_p:
        return Place(False, time) if known else None  # a constant need not be sent
    if equation.primitive is sum_p:
        return Place(True, time)
    if len({place.at_clients for place in known}) > 1:
        raise PlacementError(
            "SF-PLACE-003",
            f"the operation {equation.primitive.name} on values of the clients and of the server",
            "values of one placement",
            "bring the server's value to the clients with federated_broadcast and pass it as an argument",
        )
    return Place(known[0].at_clients, time) if known else None


def _gives(equation: Any, runs: Place) -> Place:
    """Where its results are known."""
    if equation.primitive is broadcast_p:
        return Place(True, runs.time)
    return Place(False, runs.time + 1) if equation.primitive is sum_p else runs


def _ordered(variables: set[Any], jaxpr: Any) -> list[Any]:
    """Variables in the program's order: constants and arguments, then as they are made."""
    program = [*jaxpr.constvars, *jaxpr.invars, *(v for e in jaxpr.eqns for v in e.outvars)]
    return [v for v in program if v in variables]
