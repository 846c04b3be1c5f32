"""Federated computations: functions on placed values, checked before any data moves.

    @sf.federated_computation                                  placements learnt from use, types from the arguments
    @sf.federated_computation(type, …)                         checked and traced where it stands

A computation that is called with plain Python runs at once. `on` puts it on a runtime, which runs the rounds that it
splits into; `explain` says what leaves a client there.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold.core.cohort import Cohort, batch_shapes
from sumfold.core.driver import Runtime, begin, step
from sumfold.errors import CompositionError, DataError, PlacementError, TypeMismatchError, user_facing
from sumfold.language import types
from sumfold.language.arguments import Argument, Run, of_clients, of_server
from sumfold.language.call import Call, checks, columns_of, reading, rows_of, server_arrays, shown, warn
from sumfold.language.containers import open_container
from sumfold.language.evaluate import Result, evaluate
from sumfold.language.placements import CLIENTS, Placement
from sumfold.language.placing import federated_zip
from sumfold.language.split import split
from sumfold.language.tracing import Parameter, Program, place, rebuild, trace, varies
from sumfold.language.types import FederatedType, FunctionType, SequenceType, StructType, TensorType, Type, to_type
from sumfold.language.value import Pending, Value, typed
from sumfold.learning.explain import explain

__all__ = ["Computation", "computation", "federated_computation"]


class Computation:
    """A traced function on placed values; made by `federated_computation` and `computation`.

    Call it with plain Python: a client value is a list, tuple or array with one entry a client (or a mapping id ->
    entry, or a federation), a server value is itself. Results have the structure of what was passed, with NumPy
    arrays and scalars as leaves. Called inside another computation, it becomes a part of that one.

    Attributes:
        function: the user's.
        declared: the declared types, or None where they are inferred.
        runtime: where it runs; None evaluates it directly in this process.

    Example:
        >>> import sumfold as sf
        >>> @sf.federated_computation
        ... def mean_and_largest(x):
        ...     return sf.federated_mean(x), sf.federated_max(x)
        >>> mean_and_largest([1.0, 2.0, 6.0])
        (np.float32(3.0), np.float32(6.0))
        >>> mean_and_largest
        <mean_and_largest: ({float32}@CLIENTS -> <float32@SERVER,float32@SERVER>)>
    """

    def __init__(
        self,
        function: Callable[..., Any],
        declared: tuple[Type, ...] | None,
        local: bool,
        runtime: Runtime | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function, self.declared, self.local, self.runtime = function, declared, local, runtime
        self._name = getattr(function, "__name__", type(function).__name__)
        self._parameters = _parameters_of(function, self._name)
        self._learnt: dict[int, Placement | None] = {}
        self._programs: dict[Any, Program] = {}
        self._compiled: dict[int, Any] = {}
        self._bound: dict[Any, Any] = {}
        self._last: Program | None = None
        if declared is not None:
            if len(declared) != len(self._parameters):
                raise TypeMismatchError(
                    "SF-TYPE-082",
                    f"{_count(len(declared), 'type')} for {self._name!r}, which has the parameters {self._parameters}",
                    "one type for each parameter",
                    "declare them in the order of the parameters; a structure is one type, sf.StructType([…])",
                )
            parameters = [Parameter(n, t) for n, t in zip(self._parameters, declared, strict=True)]
            self._last = self._program(parameters)

    def __repr__(self) -> str:
        on = f" on {type(self.runtime).__name__}" if self.runtime is not None else ""
        return f"<{self._name}: {self.type_signature if self._last is not None else 'types inferred when called'}{on}>"

    @property
    @user_facing
    def type_signature(self) -> FunctionType:
        """The type, as declared; where types are inferred, that of the last call.

        Raises:
            CompositionError: when types are inferred and it was not called yet.
        """
        return _signature(self.program)

    @property
    def program(self) -> Program:
        """The traced program: as declared; where types are inferred, that of the last call.

        Raises:
            CompositionError: when types are inferred and it was not called yet.
        """
        if self._last is None:
            raise CompositionError(
                "SF-COMP-055",
                f"the type of {self._name!r}, which was not called yet",
                "declared types, or a call to infer them from",
                "declare them: @sf.federated_computation(sf.type_at_clients(…))",
            )
        return self._last

    @user_facing
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it on plain Python, or make it a part of the computation that is being traced."""
        given = self._arguments(args, kwargs)
        if _is_tracing():
            return self._inline(given)
        call = self._call(given)
        return self._evaluate(call) if self.runtime is None else self._run(call, self.runtime)

    @user_facing
    def on(self, runtime: Runtime | Any) -> Computation:
        """The same computation on a runtime: its exchanges run there as the rounds of an algorithm do.

        Raises:
            CompositionError: for something that is no runtime; when called, for results of single clients.

        Example:
            >>> import sumfold as sf
            >>> total = sf.federated_computation(lambda x: sf.federated_sum(x))
            >>> total.on(sf.Simulation())([1, 2, 3]).item()
            6
        """
        if not isinstance(runtime, Runtime) or isinstance(runtime, type):
            raise CompositionError(
                "SF-COMP-032", f"on({runtime!r})", "a runtime", "write for example computation.on(sf.Loopback())"
            )
        other = Computation.__new__(Computation)
        other.__dict__.update(self.__dict__, runtime=runtime, _bound={})
        return other

    @user_facing
    def explain(self, *args: Any, **kwargs: Any) -> str:
        """What is sent to a client, what it computes, every array that leaves it, and what the server does.

        Args:
            args, kwargs: as for a call; left out, the types of the last call are used, or the declared ones.
        """
        program, batch, dense = None, None, False
        if args or kwargs:
            call = self._call(self._arguments(args, kwargs))
            program, data = call.program, rows_of(call)
            batch, dense = batch_shapes(data, 1), data.dense
        program = program or self.program
        round = split(program, self._name, dense)
        zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in program.sources.server]
        title = f"{self._name}: {_signature(program)}"
        if not round.phases:
            return f"{title}\nNo client takes part: nothing is sent and nothing leaves one."
        return explain(title, round, begin(round, zeros, 0), batch)

    # -- calls ----------------------------------------------------------------------------------------

    def _arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
        """The arguments by parameter."""
        given = dict(zip(self._parameters, args, strict=False))
        twice = [name for name in kwargs if name in given]
        unknown = [name for name in kwargs if name not in self._parameters]
        missing = [name for name in self._parameters if name not in given and name not in kwargs]
        came = (
            f"{len(args)} arguments"
            if len(args) > len(self._parameters)
            else f"the argument {twice[0]!r} twice"
            if twice
            else f"the unknown argument {unknown[0]!r}"
            if unknown
            else f"no argument {missing[0]!r}"
            if missing
            else ""
        )
        if came:
            raise TypeMismatchError(
                "SF-TYPE-083",
                f"{self._name}() with {came}",
                f"{len(self._parameters)} argument(s): {', '.join(self._parameters) or 'none'}",
                "pass one value for each parameter; the values of all clients are one argument, a list",
            )
        return [given[name] if name in given else kwargs[name] for name in self._parameters]

    def _call(self, given: list[Any]) -> Call:
        """Type the arguments, infer what is not declared, and find or trace the program."""
        made: dict[tuple[int, Placement | None], Argument] = {}
        arguments: list[Argument] = []

        def attempt(placements: dict[int, Placement | None]) -> Program:
            arguments.clear()
            parameters = []
            for i, (name, value) in enumerate(zip(self._parameters, given, strict=True)):
                declared = self.declared[i] if self.declared is not None else None
                if declared is None and i not in placements and not self.local:
                    parameters.append(Parameter(name, None))
                    arguments.append(Argument(StructType([]), [], None, 1))
                    continue
                where = placements.get(i) if declared is None else _placement(declared)
                if (i, where) not in made:
                    made[i, where] = _typed_argument(name, value, declared, where)
                argument = made[i, where]
                arguments.append(argument)
                parameters.append(_parameter(name, argument, declared, where))
            program = self._program(parameters)
            self._learnt = dict(placements)
            return program

        program = place(attempt, self._learnt)
        self._last = program
        return Call(program, arguments, self._clients(program, arguments))

    def _program(self, parameters: list[Parameter]) -> Program:
        key = tuple((_key(p.type), p.shapes) for p in parameters)
        if key not in self._programs:
            self._programs[key] = trace(self.function, parameters, self._name)
        return self._programs[key]

    def _clients(self, program: Program, arguments: list[Argument]) -> Sequence[Any]:
        """The clients' ids, on which all arguments agree."""
        placed = [(p.name, a) for p, a in zip(program.parameters, arguments, strict=True) if varies(p.type)]
        if not placed:
            if any(client.sums for client in program.plan.clients):
                raise DataError(
                    "SF-DATA-072",
                    f"{self._name}() has no argument that is placed at the clients",
                    "one at least, to know how many clients there are",
                    "give it a parameter with one entry a client",
                )
            return range(0)
        (first, leader), *others = placed
        for name, argument in others:
            if argument.number != leader.number:
                raise DataError(
                    "SF-DATA-073",
                    f"the argument {first!r} has {_count(leader.number, 'client')}, {name!r} has {argument.number}",
                    "the same clients in every argument",
                    "pass one entry a client in each",
                )
            if leader.ids is not None and argument.ids is not None and leader.ids != argument.ids:
                raise DataError(
                    "SF-DATA-073",
                    f"the argument {first!r} has the clients {leader.ids[:5]}, {name!r} has {argument.ids[:5]}",
                    "the same clients in the same order",
                    "use the same keys in the same order",
                )
        named = [a.ids for _, a in placed if a.ids is not None]
        return named[0] if named else range(leader.number)

    def _inline(self, given: list[Any]) -> Any:
        """The function as part of what is being traced."""
        if self.declared is not None:
            given = [
                _fit(value, t, f"the argument {n!r} of {self._name}")
                for value, t, n in zip(given, self.declared, self._parameters, strict=True)
            ]
        elif self.local:
            for value, name in zip(given, self._parameters, strict=True):
                _check_local(value, f"the argument {name!r} of {self._name}")
        try:
            return self.function(*given)
        except PlacementError as error:
            if error.code != "SF-PLACE-008" or not given or any(map(_has_value, given)):
                raise
            refusal = _traced(f"the computation {self._name!r} was called on plain arrays")
            # A local computation is wrong inside, a federated one where it is called.
            raise refusal.with_traceback(error.__traceback__ if self.local else None) from None

    def _evaluate(self, call: Call) -> Any:
        program = call.program
        if id(program) not in self._compiled:
            run = functools.partial(evaluate, program.closed, program.plan, program.sources)
            self._compiled[id(program)] = jax.jit(run, static_argnames="capacity")
        columns, capacity = columns_of(call)
        result: Result = jax.device_get(self._compiled[id(program)](columns=columns, capacity=capacity))
        warn(int(result.left_out), self._name)
        stated = checks(program)
        for violated, (what, at_clients) in zip(result.violated, stated, strict=True):
            if violated >= 0:
                raise what.error(f"client {call.ids[int(violated)]!r}" if at_clients else "the server")
        rest = list(result.outputs)
        values = [shown(output, rest, len(call.ids)) for output in program.outputs]
        return rebuild(program.structure, values)

    def _run(self, call: Call, runtime: Runtime) -> Any:
        program, data = call.program, rows_of(call)
        key = (id(program), data.dense)
        if key not in self._bound:
            round = split(program, self._name, data.dense)
            run = runtime.bind(round) if round.phases else None
            zeros = [jnp.zeros(v.aval.shape, v.aval.dtype) for v in program.sources.server]
            init = jax.jit(lambda params: round.init(params, jax.random.key(0)))
            self._bound[key] = begin(round, zeros, 0), init, run
        state, init, run = self._bound[key]
        server = [
            c
            for p, a in zip(program.parameters, call.arguments, strict=True)
            if not varies(p.type)
            for c in server_arrays(a)
        ]
        state = state._replace(algorithm=init([column[0] for column in server]))
        if run is not None:
            state, metrics = step(run, state, Cohort(data, np.arange(len(call.ids))))
            warn(metrics["client_work"]["num_non_finite_clients"], self._name)
        remembered = jax.device_get(state.algorithm)
        for failed, (what, at_clients) in zip(remembered.failed, checks(program), strict=True):
            if failed:
                raise what.error(f"{int(failed)} of {len(call.ids)} clients" if at_clients else "the server")
        known = dict(zip(program.plan.carried, remembered.values, strict=True))
        rest = [reading(v, program, known) for v in program.closed.jaxpr.outvars]
        values = [shown(output, rest, len(call.ids)) for output in program.outputs]
        return rebuild(program.structure, values)


# -- decorators ---------------------------------------------------------------------------------------


@user_facing
def federated_computation(*args: Any) -> Any:
    """Make a function a federated computation; used as a decorator, with or without the types of its parameters.

    Args:
        args: types (or anything that `to_type` takes), one a parameter; or the function, then its types.

    Returns:
        A `Computation`, or the decorator that makes it.

    Raises:
        SumfoldError: for parameters with defaults and the like; with types, for whatever is wrong with the
            computation itself, at the user's line.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.federated_computation(sf.type_at_clients(np.float32), sf.type_at_server(np.float32))
        ... def share_above(readings, threshold):
        ...     above = readings > sf.federated_broadcast(threshold)
        ...     return sf.federated_mean(sf.federated_map(lambda a: a.astype(np.float32), above))
        >>> print(share_above.type_signature)
        (<readings={float32}@CLIENTS,threshold=float32@SERVER> -> float32@SERVER)
        >>> share_above([18.5, 21.0, 25.0, 30.0], 20.0).item()
        0.75
    """
    return _decorated(args, local=False)


@user_facing
def computation(*args: Any) -> Any:
    """Make a function a local computation: of values at one place, without intrinsics.

    Nothing needs it, since every function that JAX can trace is accepted where a local function is due; with types it
    is checked where it stands. Used like `federated_computation`.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> @sf.computation(np.float32, np.float32)
        ... def hypotenuse(a, b):
        ...     return (a**2 + b**2) ** 0.5
        >>> print(hypotenuse.type_signature)
        (<a=float32,b=float32> -> float32)
        >>> hypotenuse(3.0, 4.0).item()
        5.0
    """
    return _decorated(args, local=True)


def _decorated(args: tuple[Any, ...], local: bool) -> Any:
    if args and callable(args[0]) and not _is_type(args[0]):
        function, declared = args[0], tuple(to_type(t) for t in args[1:])
        return _made(function, declared or None, local)
    declared = tuple(to_type(t) for t in args)

    @user_facing
    def decorate(function: Any) -> Computation:
        return _made(function, declared or None, local)

    return decorate


def _made(function: Any, declared: tuple[Type, ...] | None, local: bool) -> Computation:
    if isinstance(function, Computation):
        function = function.function
    if local and declared and any(_is_placed(t) for t in declared):
        raise TypeMismatchError(
            "SF-TYPE-084",
            f"a local computation with the types {[str(t) for t in declared]}",
            "types without a placement",
            "use @sf.federated_computation for placed values",
        )
    parameters = _parameters_of(function, getattr(function, "__name__", "the function"))
    if declared is None and not parameters:
        declared = ()
    if declared is not None and len(declared) == 1 and len(parameters) > 1:
        # One structure for several parameters stands for its elements.
        whole = declared[0]
        declared = tuple(whole) if isinstance(whole, StructType) and len(whole) == len(parameters) else declared
    return Computation(function, declared, local)


def _is_type(value: Any) -> bool:
    return isinstance(value, type | Type) or hasattr(value, "dtype")


def _is_placed(t: Type) -> bool:
    return isinstance(t, FederatedType) or (isinstance(t, StructType) and any(_is_placed(e) for e in t))


def _parameters_of(function: Any, name: str) -> list[str]:
    """The parameters' names; each must be given at every call."""
    if not callable(function):
        raise TypeMismatchError(
            "SF-TYPE-085", f"federated_computation of a {type(function).__name__}", "a function", "decorate a function"
        )
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            "SF-TYPE-085", f"{name!r}, whose parameters cannot be seen", "a Python function", "wrap it in a lambda"
        ) from error
    for p in parameters:
        special = {
            p.VAR_POSITIONAL: f"the parameter *{p.name}",
            p.VAR_KEYWORD: f"the parameter **{p.name}",
            p.KEYWORD_ONLY: f"the keyword-only parameter {p.name!r}",
            p.POSITIONAL_ONLY: f"the positional-only parameter {p.name!r}",
        }
        if p.kind in special:
            came = special[p.kind]
        elif p.default is not p.empty:
            came = f"the parameter {p.name!r} with a default"
        else:
            continue
        raise TypeMismatchError(
            "SF-TYPE-086",
            f"the computation {name!r} has {came}",
            "plain parameters, each given at every call: they make its type",
            "write def f(a, b): …; close over constants",
        )
    return [p.name for p in parameters]


# -- types of arguments -------------------------------------------------------------------------------


def _signature(program: Program) -> FunctionType:
    named = [(p.name, p.type) for p in program.parameters]
    parameter = None if not named else named[0][1] if len(named) == 1 else StructType(named)
    return FunctionType(parameter, program.result)


def _placement(t: Type) -> Placement | None:
    return t.placement if isinstance(t, FederatedType) else None


def _typed_argument(name: str, value: Any, declared: Type | None, where: Placement | None) -> Argument:
    member = declared.member if isinstance(declared, FederatedType) else declared
    at_clients = varies(declared) if declared is not None else where is CLIENTS
    return of_clients(name, value, member) if at_clients else of_server(name, value, member)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("s" if number != 1 else "")


def _parameter(name: str, argument: Argument, declared: Type | None, where: Placement | None) -> Parameter:
    shapes = tuple(column.shapes for column in argument.columns if isinstance(column, Run))
    if where is None:
        return Parameter(name, argument.member, shapes)
    all_equal = declared.all_equal if isinstance(declared, FederatedType) else None
    return Parameter(name, FederatedType(argument.member, where, all_equal), shapes)


def _key(t: Type | None) -> Any:
    """A type with its containers, which equality leaves out."""
    if isinstance(t, FederatedType):
        return "federated", _key(t.member), t.placement, t.all_equal
    if isinstance(t, SequenceType):
        return "sequence", _key(t.element)
    if isinstance(t, StructType):
        return "struct", t.container, tuple((name, _key(e)) for name, e in t.elements)
    return t


def _traced(came: str) -> CompositionError:
    return CompositionError(
        "SF-COMP-054",
        f"{came}, while JAX traces another function",
        "placed values of the computation that is being traced",
        "call a federated computation by itself, outside of jax.jit and of mapped functions, or inside another "
        "federated computation on its values",
    )


def _has_value(value: Any) -> bool:
    """Whether a value of the traced computation is in it."""
    if isinstance(value, Value | Pending):
        return True
    opened = None if hasattr(value, "__array__") else open_container(value)
    return opened is not None and any(_has_value(child) for child in opened[1])


def _is_tracing() -> bool:
    return isinstance(jnp.zeros(()), jax.core.Tracer)


def _fit(value: Any, t: Type, what: str) -> Any:
    """An argument of a computation that is part of another one, as its declared type."""
    if isinstance(value, Pending):
        value.decide(_placement(t), certain=True)
    if isinstance(t, FederatedType):
        if not _has_value(value):
            raise _traced(f"{what} is no value of a computation")
        zipped = value if isinstance(value, Value) else federated_zip(value)
        if not t.is_assignable_from(zipped.type):
            raise TypeMismatchError("SF-TYPE-087", f"{what} has the type {zipped.type}", f"{t}", "compare the types")
        return zipped
    if isinstance(t, TensorType) and isinstance(value, bool | int | float | complex | np.generic):
        dtype: Any = jax.dtypes.canonicalize_dtype(t.dtype)
        return jnp.asarray(value, dtype)
    _check_local(value, what)
    if isinstance(t, SequenceType) and not isinstance(value, Value):
        return value
    opened = open_container(value) if isinstance(t, StructType) and not isinstance(value, Value) else None
    if isinstance(t, StructType) and opened is not None and len(opened[1]) == len(t):
        fitted = [_fit(child, e, what) for child, e in zip(opened[1], t, strict=True)]
        same = opened[0].names == t.names or not any(t.names)
        return (
            opened[0].join(fitted)
            if same and t.container is None
            else types.join(t, [leaf for f, e in zip(fitted, t, strict=True) for leaf in _leaves(f, e)])
        )
    member, _ = typed(value, what)
    if not t.is_assignable_from(member):
        raise TypeMismatchError("SF-TYPE-087", f"{what} has the type {member}", f"{t}", "compare the types")
    return value


def _leaves(value: Any, t: Type) -> list[Any]:
    if not isinstance(t, StructType):
        return [value]
    opened = open_container(value)
    assert opened is not None
    return [leaf for child, e in zip(opened[1], t, strict=True) for leaf in _leaves(child, e)]


def _check_local(value: Any, what: str) -> None:
    if isinstance(value, Value) and isinstance(value.type, FederatedType):
        raise TypeMismatchError(
            "SF-TYPE-088",
            f"{what} has the type {value.type}",
            "a value without a placement: this is a local computation",
            "apply it where the value lives: federated_map(function, value)",
        )
