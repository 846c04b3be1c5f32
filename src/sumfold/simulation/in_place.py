"""The server's programs over large states: what came in is handed on, and what is new is written over what it replaces.

XLA gives every result of a program a buffer of its own. An argument that is returned as it came is copied. A state that
becomes `where(applied, new, old)`, where `applied` asks all of `new`, needs room for `new` before anything is decided;
if `old` may be written over, XLA first copies it away. Each such copy is memory, and pages that nobody touched before.
So a function is cut in steps, each of them a program:

    decide   everything that is small, such as `applied`; all results that are no large part of the state; and what is
             not to be computed twice, such as a product or a random draw
    write    the large parts of the state, element by element, from what came in and what was decided

Writing goes in an order in which nothing is written over that is still to be read: Adam's weights, which read both
moments, then the second moment, which reads the first, then the first. The steps are the same whether a state may be
written over or not, so a round's numbers do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sumfold import tree
from sumfold.core.compiled import compiled
from sumfold.simulation.inlined import BY_ELEMENT, Equation, Variable, computed, inlined, is_literal, read
from sumfold.simulation.spare import vacant
from sumfold.tree import Tree

__all__ = ["InPlace"]

_SMALL = 1 << 14
"""Numbers up to which an array is decided with all the others."""

_BY_ELEMENT = BY_ELEMENT | {"broadcast_in_dim", "reshape", "squeeze"}
"""Operations that cost no more than reading what they take."""


class _Write(NamedTuple):
    """Some large parts of the state.

    Attributes:
        results: which.
        over: the inputs that they replace.
        reads, kept: which other inputs, and what of the decided, they are computed from.
        apart, spent: the program that writes them elsewhere, and the one that writes them over what they replace.
    """

    results: list[int]
    over: list[int]
    reads: list[int]
    kept: list[int]
    apart: Any
    spent: Any


class _Course(NamedTuple):
    """A function cut in steps, for arguments of these shapes.

    Attributes:
        structure: of what it returns.
        consts: arrays that it closes over; inputs are these and the arguments.
        handed: by result, the input that it is.
        decided: the results of the first step.
        decide: inputs -> (those, what the other steps are computed from).
        kept: shapes of the latter.
        writes: the other steps, in their order.
    """

    structure: Any
    consts: list[Any]
    handed: Mapping[int, int]
    decided: list[int]
    decide: Any
    kept: list[Any]
    writes: list[_Write]


class InPlace:
    """A function in steps.

    Args:
        function: (owned, *rest) -> (what becomes of owned, anything); traced once for arguments of the same shapes.
        compiler: how its programs are compiled.

    Example:
        >>> add = InPlace(lambda state, x: (state + x, x))
        >>> state, same = add(jnp.zeros(2), jnp.ones(2))
        >>> state
        Array([1., 1.], dtype=float32)
    """

    def __init__(self, function: Callable[..., tuple[Tree, Tree]], compiler: Callable[..., Any] = compiled) -> None:
        self.function, self.compiler = function, compiler
        self._courses: dict[Any, _Course] = {}

    def __call__(self, owned: Tree, *rest: Tree, spend: bool = False, former: Sequence[Any] = ()) -> tuple[Tree, Tree]:
        """The function's value.

        Args:
            owned: the state.
            rest: the other arguments; some are returned as the same arrays.
            spend: the arrays of `owned` may be written over: nobody else has them, and none is in it twice.
            former: leaves of a state of before, of which those are written over that nobody else has.
        """
        course, values = self._course(owned, rest)
        results, kept = course.decide(*values)
        made = dict(zip(course.decided, results, strict=True))
        for step in course.writes:
            given = ([values[k] for k in step.over], [values[k] for k in step.reads], [kept[k] for k in step.kept])
            room = [] if spend else [vacant(former, j, values[k]) for j, k in zip(step.results, step.over, strict=True)]
            made |= zip(step.results, step.spent(*given) if spend else step.apart(room, *given), strict=True)
        made |= {result: _as_array(values[source]) for result, source in course.handed.items()}
        ended: tuple[Tree, Tree] = tree.unflatten(course.structure, [made[place] for place in sorted(made)])
        return ended

    def prepare(self, owned: Tree, *rest: Tree, spend: bool = False) -> None:
        """Compile what a call with such arguments, or only their shapes, will need."""
        course, values = self._course(owned, rest)
        course.decide.lower(*values).compile()
        for step in course.writes:
            replaced, kept = [values[k] for k in step.over], [course.kept[k] for k in step.kept]
            given = (replaced, [values[k] for k in step.reads], kept)
            (step.spent.lower(*given) if spend else step.apart.lower(replaced, *given)).compile()

    def _course(self, owned: Tree, rest: tuple[Tree, ...]) -> tuple[_Course, list[Any]]:
        leaves, structure = jax.tree.flatten((owned, rest))
        at = structure, tuple((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves)
        if at not in self._courses:
            self._courses[at] = self._cut(owned, rest)
        course = self._courses[at]
        return course, [*course.consts, *leaves]

    def _cut(self, owned: Tree, rest: tuple[Tree, ...]) -> _Course:
        outer, shape = jax.make_jaxpr(self.function, return_shape=True)(owned, *rest)
        closed = inlined(outer)
        program, first = closed.jaxpr, len(closed.consts)
        inputs, results = [*program.constvars, *program.invars], program.outvars
        place = {variable: k for k, variable in enumerate(inputs)}
        made = {variable: k for k, equation in enumerate(program.eqns) for variable in equation.outvars}
        states, kind = len(jax.tree.leaves(shape[0])), tree.structure(owned)
        slices = {
            j: _slice(program.eqns, made, place, results[j])
            for j in range(states if tree.structure(shape[0]) == kind else 0)
            if results[j] in made and _alike(results[j].aval, inputs[first + j].aval)
        }
        slices = {j: one for j, one in slices.items() if one.equations}
        over = {first + j for j in slices}

        def stays(j: int, source: int) -> bool:  # of a state every array has a buffer of its own
            return source == first + j if j < states else source not in over

        sources = {j: place.get(v) for j, v in enumerate(results) if not is_literal(v)}
        handed = {j: k for j, k in sources.items() if k is not None and stays(j, k)}
        decided = [j for j in range(len(results)) if j not in slices and j not in handed]
        kept = list(dict.fromkeys(variable for one in slices.values() for variable in one.kept))

        def decide(*given: Any) -> Any:
            known = dict(zip(inputs, given, strict=True))

            def anew(atoms: Sequence[Any]) -> dict[Variable, Any]:
                """What these are computed by, element by element, for one use: XLA would write down what has two."""
                found = [_slice(program.eqns, made, place, atom) for atom in atoms]
                needed = sorted({k for one in found for k in one.equations})
                reads = [inputs[k] for k in sorted({k for one in found for k in one.reads})]
                values = [known[variable] for variable in reads]
                local = dict(zip(reads, lax.optimization_barrier(values) if needed else values, strict=True))  # type: ignore[no-untyped-call]
                local |= {variable: known[variable] for one in found for variable in one.kept}
                return computed([program.eqns[k] for k in needed], local)

            for equation in program.eqns:
                if not _by_element(equation):
                    ended = computed([equation], anew(equation.invars))
                    known |= {variable: ended[variable] for variable in equation.outvars}
            ended = anew([results[j] for j in decided])
            return [read(ended, results[j]) for j in decided], [known[variable] for variable in kept]

        writes = [
            self._write(program.eqns, inputs, results, kept, {j: slices[j] for j in some}, first)
            for some in _order({j: one.reads for j, one in slices.items()}, first)
        ]
        shapes = jax.eval_shape(decide, *(variable.aval for variable in inputs))[1]
        structure = tree.structure(shape)
        return _Course(structure, list(closed.consts), handed, decided, self.compiler(decide), shapes, writes)

    def _write(
        self,
        equations: Sequence[Equation],
        inputs: list[Variable],
        results: list[Variable],
        kept: list[Variable],
        slices: Mapping[int, _Slice],
        first: int,
    ) -> _Write:
        over = [first + j for j in slices]
        reads = sorted({k for one in slices.values() for k in one.reads} - set(over))
        used = [variable for variable in kept if any(variable in one.kept for one in slices.values())]
        needed = [equations[k] for k in sorted({k for one in slices.values() for k in one.equations})]

        def write(replaced: list[Any], read: list[Any], decided: list[Any]) -> list[Any]:
            variables = [inputs[k] for k in (*over, *reads)] + used
            known = computed(needed, dict(zip(variables, (*replaced, *read, *decided), strict=True)))
            return [known[results[j]] for j in slices]

        def apart(room: list[Any], *given: list[Any]) -> list[Any]:
            return write(*given)

        programs = (self.compiler(some, donate_argnums=0, keep_unused=True) for some in (apart, write))
        return _Write(list(slices), over, reads, [kept.index(variable) for variable in used], *programs)


class _Slice(NamedTuple):
    """What one result is computed by, element by element: these equations, of these inputs and of what was decided."""

    equations: set[int]
    reads: set[int]
    kept: list[Variable]


def _slice(
    equations: Sequence[Equation], made: Mapping[Variable, int], place: Mapping[Variable, int], result: Variable
) -> _Slice:
    found, waiting = _Slice(set(), set(), []), [result]
    while waiting:
        variable = waiting.pop()
        if is_literal(variable):
            continue
        if variable in place:
            found.reads.add(place[variable])
        elif not _by_element(equations[made[variable]]):
            found.kept.append(variable)
        elif made[variable] not in found.equations:
            found.equations.add(made[variable])
            waiting += equations[made[variable]].invars
    return found


def _by_element(equation: Equation) -> bool:
    return equation.primitive.name in _BY_ELEMENT and equation.outvars[0].aval.size > _SMALL


def _alike(result: Any, replaced: Any) -> bool:
    """Whether a result can be written over an input."""
    return bool(result.size > _SMALL and (result.shape, result.dtype) == (replaced.shape, replaced.dtype))


def _order(reads: Mapping[int, set[int]], first: int) -> Iterable[list[int]]:
    """The results in steps: each is written when none that is still to come reads what it is written over.

    Results that read one another's are one step, whose program copies what it must.
    """
    left = list(reads)
    while left:
        ready = [j for j in left if not any(first + j in reads[k] for k in left if k != j)] or left
        yield ready
        left = [j for j in left if j not in ready]


def _as_array(value: Any) -> Any:
    return value if isinstance(value, jax.Array) else jnp.asarray(value)
