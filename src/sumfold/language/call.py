"""The arrays of a call: arguments as a program takes them, and its results as a user gets them."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import Literal

from sumfold.core.cohort import room
from sumfold.errors import is_library
from sumfold.language import integers, types
from sumfold.language.arguments import Argument, Run
from sumfold.language.evaluate import Columns, Sequenced
from sumfold.language.primitives import Check
from sumfold.language.rows import Held, held
from sumfold.language.tracing import Output, Program, varies
from sumfold.language.types import FederatedType, SequenceType, TensorType, Type
from sumfold.language.value import Wide

__all__ = ["Call", "checks", "columns_of", "reading", "rows_of", "server_arrays", "shown", "warn"]


class Call(NamedTuple):
    """A program and the arguments of one call of it."""

    program: Program
    arguments: list[Argument]
    ids: Sequence[Any]


def server_arrays(argument: Argument) -> list[Any]:
    """The columns that are no sequences."""
    return [column for column in argument.columns if not isinstance(column, Run)]


def _placed_arguments(call: Call) -> tuple[list[Argument], list[Argument]]:
    """Those with one entry a client, and the others."""
    pairs = list(zip(call.program.parameters, call.arguments, strict=True))
    return [a for p, a in pairs if varies(p.type)], [a for p, a in pairs if p.type is not None and not varies(p.type)]


def columns_of(call: Call) -> tuple[Columns, int]:
    """The arguments with room for a few more clients and elements, so that shapes repeat; and the longest sequence."""
    of_client, others = _placed_arguments(call)
    number = len(call.ids)
    places = room(number)
    longest = 1

    def sequenced(run: Run, held_by: int) -> Sequenced:
        nonlocal longest
        longest = max(longest, int(run.counts.max(initial=0)))
        total = room(int(run.counts.sum()))
        starts = np.cumsum(run.counts) - run.counts
        kind = None if run.kind is None else _padded(run.kind, total)
        arrays = tuple(_padded(a, total) for a in run.arrays)
        return Sequenced(arrays, kind, *(_padded(c.astype(np.int32), held_by) for c in (starts, run.counts)))

    present = np.arange(places) < number
    single = [_padded(c, places) for a in of_client for c in server_arrays(a)]
    sequences = [sequenced(c, places) for a in of_client for c in a.columns if isinstance(c, Run)]
    unplaced = []
    for argument in others:
        for column in argument.columns:
            if isinstance(column, Run):
                made = sequenced(column, 1)
                unplaced.append(made._replace(start=made.start[0], count=made.count[0]))
    server = [c[0] for a in others for c in server_arrays(a)]
    return Columns(server, single, sequences, unplaced, present), room(longest)


def _padded(array: Any, length: int) -> Any:
    if len(array) == length:
        return array
    return np.concatenate([array, np.zeros((length - len(array), *array.shape[1:]), array.dtype)])


def rows_of(call: Call) -> Held:
    """What the clients of a call hold, as runtimes know it."""
    of_client, _ = _placed_arguments(call)
    columns = [column for argument in of_client for column in argument.columns]
    single = [column for column in columns if not isinstance(column, Run)]
    return held(call.ids, single, [column for column in columns if isinstance(column, Run)])


def checks(program: Program) -> list[tuple[Check, bool]]:
    """The checks in the order in which both ways to run a program report them, and whether they are the clients'."""
    plan, stated = program.plan, []
    for t, server in enumerate(plan.servers):
        stated += [(what, False) for _, what in server.checks]
        if t < len(plan.clients):
            stated += [(what, True) for _, what in plan.clients[t].checks]
    return stated


def reading(variable: Any, program: Program, known: dict[Any, Any]) -> Any:
    """The value of an output of a program that ran as a round."""
    variable = variable if isinstance(variable, Literal) else program.plan.broadcasts.get(variable, variable)
    if not isinstance(variable, Literal):
        return known[variable]
    aval: Any = variable.aval
    return np.asarray(variable.val, aval.dtype)


def shown(output: Output, rest: list[Any], number: int) -> Any:
    """One returned value as plain Python: takes its arrays from `rest`."""
    t = output.type
    member = t.member if isinstance(t, FederatedType) else t
    each = varies(t)
    columns: list[Any] = []
    for part, kind in zip(output.parts, types.leaves(member), strict=True):
        value = rest.pop(0)
        if isinstance(kind, SequenceType):
            columns.append(_lists(kind.element, value, number if each else None))
            continue
        array = integers.join(np.asarray(value), kind.dtype) if isinstance(part, Wide) else np.asarray(value)
        array = array.astype(kind.dtype)  # a copy: what a caller gets may be written to
        if (each and array.shape[:1] == ()) or (each and len(array.shape) == len(kind.shape or ())):
            array = np.broadcast_to(array, (number, *array.shape))  # the same at every client, whatever their data
        columns.append(list(array[:number]) if each else array[()])
    if not each:
        return types.join(member, columns)
    if isinstance(member, TensorType | SequenceType):
        return columns[0]
    return [types.join(member, [column[k] for column in columns]) for k in range(number)]


def _lists(element: Type, value: Any, number: int | None) -> Any:
    """A returned sequence, or one for each client, as lists of elements."""
    arrays, counts = value
    kinds = types.leaves(element)

    def one(leaves: Sequence[Any], count: int) -> list[Any]:
        cast = [np.asarray(a).astype(k.dtype, copy=False) for a, k in zip(leaves, kinds, strict=True)]  # type: ignore[union-attr]
        return [types.join(element, [a[i] for a in cast]) for i in range(count)]

    if number is None:
        return one(arrays, int(counts))
    lengths = np.broadcast_to(counts, number) if np.ndim(counts) == 0 else counts
    return [one([a[k] for a in arrays], int(lengths[k])) for k in range(number)]


def warn(left_out: int, name: str) -> None:
    """Say at the user's line that clients were left out."""
    if not left_out:
        return
    frame, level = inspect.currentframe(), 1
    while frame is not None and is_library(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"{name}: {left_out} client(s) were left out, since a number that they would have sent or kept is not finite",
        RuntimeWarning,
        stacklevel=level,
    )
