"""Products of many clients abreast that are put off until the clients are summed.

A gradient of a dense layer is a product of what came in and what comes back, one small matrix a client. Where each
client takes one step from weights that all share, its update is mostly a multiple of that product, and all that is
asked of the updates of many clients is their weighted sum. The sum of the products is one product, over the rows of
all clients,

    Σ_k c_k A_kᵀ B_k = [c_1 A_1; …; c_K A_K]ᵀ [B_1; …; B_K],

which takes a tenth of the time of K small ones, and no update is ever written to memory. So a product whose operands
both differ from client to client is not taken where it stands: it is carried on as its operands, with a factor for
each client, through everything that is linear in it (multiples, sums with what all clients share, selections by
client, changes of shape). Whatever else meets it, such as a norm or a client's memory, gets the products themselves.

A client's update counts only if it is finite, which cannot be seen of products that were never taken. By Cauchy and
Schwarz no element of Aᵀ B exceeds ‖A‖ ‖B‖: where that is far from overflow every product is finite. `abreast` gives
this as a condition, and its caller computes anew, product by product, where it does not hold.

The order of summation changes, and nothing else: the results agree to rounding.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core as jaxprs

from sumfold import tree
from sumfold.simulation import contraction
from sumfold.tree import Tree

__all__ = ["Postponed", "abreast"]

Equation: TypeAlias = Any

_FAR = 1e37
"""A bound that is far from overflow, for float32 and bfloat16."""
_CALLS = frozenset({"jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call"})
_MOVES = frozenset({"transpose", "reshape", "squeeze"})
_DTYPES = ("float32", "bfloat16")


class _Each(NamedTuple):
    """A value that differs from client to client.

    Attributes:
        values: [K, …], or [K] where `shape` is that of numbers that are all alike.
        shape: a client's shape, where its numbers are all alike.
    """

    values: Any
    shape: tuple[int, ...] | None = None

    def all(self) -> Any:
        """Array [K, …]."""
        if self.shape is None:
            return self.values
        return lax.broadcast_in_dim(self.values, (len(self.values), *self.shape), (0,))


class Postponed(NamedTuple):
    """For each client k, Σ_j a_jk T_j + f_k · moves(A_k · B_k): a product that was not taken.

    Attributes:
        terms: (a_j, T_j): a number or [K], and an array that all clients share, in the value's shape.
        factor: f, a number or [K].
        left, right: A and B, [K, …].
        how: parameters of the product of one client's.
        moves: changes of shape, as functions.
        shape, dtype: of the value.
    """

    terms: tuple[tuple[Any, Any], ...]
    factor: Any
    left: Any
    right: Any
    how: dict[str, Any]
    moves: tuple[Callable[[Any], Any], ...]
    shape: tuple[int, ...]
    dtype: Any

    def all(self) -> Any:
        """Array [K, …]: the products after all."""
        products = jax.vmap(lambda a, b: self._moved(lax.dot_general(a, b, **self.how)))(self.left, self.right)
        total = self._spread(self.factor) * products
        for number, term in self.terms:
            total = total + self._spread(number) * term[None]
        return total

    def total(self, counted: Any) -> Any:
        """The sum over the clients that are counted, bool[K]."""
        factors = jnp.where(counted, self.factor, jnp.zeros((), self.dtype))
        total = self._moved(self._products(factors))
        for number, term in self.terms:
            total = total + jnp.where(counted, number, jnp.zeros((), self.dtype)).sum() * term
        return total

    def _products(self, factors: Any) -> Any:
        """Σ_k f_k A_k · B_k: all clients' rows are one long contraction, and the smaller operand takes the factors."""
        operands, (axes, _) = [self.left, self.right], self.how["dimension_numbers"]
        smaller = int(self.right.size < self.left.size)
        spread = factors.reshape(-1, *[1] * (operands[smaller].ndim - 1))
        operands[smaller] = operands[smaller] * spread
        along = [(0, *(axis + 1 for axis in some)) for some in axes]
        free = [
            [n for axis, n in enumerate(a.shape) if axis not in some] for a, some in zip(operands, along, strict=True)
        ]
        # XLA's product is many times slower where the result's last axis is short: 142 against 7 microseconds for
        # 1,024 rows of 60 and 10. The barrier keeps it from exchanging the operands again.
        turn = math.prod(free[0]) > math.prod(free[1])
        order = (1, 0) if turn else (0, 1)
        numbers = (tuple(along[side] for side in order), ((), ()))
        product = contraction.product(*(operands[side] for side in order), **{**self.how, "dimension_numbers": numbers})
        product = lax.optimization_barrier(product)  # type: ignore[no-untyped-call]
        return jnp.moveaxis(product, range(len(free[1])), range(-len(free[1]), 0)) if turn else product

    def bound(self) -> Any:
        """A number that no absolute value of the products, of the terms or of their sum exceeds."""
        bound = _largest(self.factor) * _norm(self.left) * _norm(self.right)
        for number, term in self.terms:
            bound = bound + _largest(number) * _norm(term)
        return bound

    def _moved(self, product: Any) -> Any:
        return functools.reduce(lambda value, move: move(value), self.moves, product)

    def _spread(self, number: Any) -> Any:
        return number.reshape(-1, *[1] * len(self.shape)) if jnp.ndim(number) else number


def _largest(number: Any) -> Any:
    return jnp.maximum(1, jnp.abs(jnp.asarray(number, jnp.float32)).max())


def _norm(array: Any) -> Any:
    flat = array.ravel().astype(jnp.float32)
    return jnp.sqrt(jnp.dot(flat, flat))


def taken(values: Tree) -> Tree:
    """The same tree as arrays, its products taken."""

    def put_off(value: Any) -> bool:
        return isinstance(value, Postponed)

    return jax.tree.map(lambda value: value.all() if put_off(value) else value, values, is_leaf=put_off)


def abreast(function: Callable[..., Tree], *args: Any) -> tuple[Tree, Any]:
    """A function of one client for all clients, as `jax.vmap` would, with products put off.

    Args:
        function: of one client's arguments.
        args: arrays [K, …].

    Returns:
        The tree of results, arrays [K, …] or `Postponed`, and bool[], whether every product that was asked if it is
        finite is known to be; None where none was asked.
    """
    one = [tree.shape(jnp.shape(a)[1:], jnp.result_type(a)) for a in args]
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*one)
    asked: list[Any] = []
    clients = len(args[0])
    results = _evaluate(program.jaxpr, program.consts, [_Each(a) for a in args], clients, asked)

    def given(value: Any) -> Any:
        if isinstance(value, Postponed):
            return value
        return (
            value.all()
            if isinstance(value, _Each)
            else lax.broadcast_in_dim(value, (clients, *jnp.shape(value)), tuple(range(1, jnp.ndim(value) + 1)))
        )

    known = functools.reduce(jnp.logical_and, asked) if asked else None
    return jax.tree.unflatten(jax.tree.structure(shapes), [given(value) for value in results]), known


def _evaluate(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any], clients: int, asked: list[Any]) -> list[Any]:
    """Run a program, equation by equation, with values that all clients share, `_Each` or `Postponed`."""
    known: dict[Any, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, jaxprs.Literal) else known[atom]

    for equation in jaxpr.eqns:
        values = [read(atom) for atom in equation.invars]
        name, params = equation.primitive.name, equation.params
        if name in _CALLS:
            called = next(params[at] for at in ("jaxpr", "call_jaxpr", "fun_jaxpr") if at in params)
            inner, own = (called.jaxpr, called.consts) if isinstance(called, jaxprs.ClosedJaxpr) else (called, [])
            results = _evaluate(inner, own, values, clients, asked)
        else:
            result = _put_off(equation, values, clients, asked)
            results = _mapped(equation, values) if result is None else [result]
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _mapped(equation: Equation, values: list[Any]) -> list[Any]:
    """What an equation gives for all clients, with every product taken that it needs."""
    primitive, params = equation.primitive, equation.params
    values = [_Each(value.all()) if isinstance(value, Postponed) else value for value in values]
    if not any(isinstance(value, _Each) for value in values):
        results = primitive.bind(*values, **params)
        return list(results) if primitive.multiple_results else [results]

    def bind(*given: Any) -> Any:
        results = primitive.bind(*given, **params)
        return tuple(results) if primitive.multiple_results else (results,)

    axes = tuple(0 if isinstance(value, _Each) else None for value in values)
    results = jax.vmap(bind, axes)(*(value.all() if isinstance(value, _Each) else value for value in values))
    return [_Each(result) for result in results]


def _put_off(equation: Equation, values: list[Any], clients: int, asked: list[Any]) -> Any:
    """What an equation gives, without taking a product; None where that is not possible."""
    name, params, out = equation.primitive.name, equation.params, equation.outvars[0].aval
    postponed = [value for value in values if isinstance(value, Postponed)]
    if name == "dot_general":
        return _product(values, params, out)
    if name == "broadcast_in_dim" and isinstance(values[0], _Each) and equation.invars[0].aval.shape == ():
        return _Each(values[0].values, out.shape)
    if name == "convert_element_type" and equation.invars[0].aval.dtype == out.dtype:
        return values[0]  # so that what all clients share is known to be the same array
    if not postponed:
        return None
    value = postponed[0]
    if name in _MOVES:
        return _reshaped(value, functools.partial(equation.primitive.bind, **params), out)
    if name == "copy":
        return value
    if name == "is_finite":
        asked.append(value.bound() < _FAR)
        return _Each(jnp.ones(clients, bool), value.shape)
    if name == "neg":
        return _times(value, -1.0)
    if name in ("mul", "div"):
        first, second = values
        number = _number(second if value is first else first)
        if number is None or (name == "div" and value is second) or len(postponed) > 1:
            return None
        return _times(value, 1 / number if name == "div" else number)
    if name in ("add", "sub", "add_any"):
        return _sum(values[0], values[1], -1.0 if name == "sub" else 1.0, out)
    if name == "select_n" and len(values) == 3:
        return _selected(values[0], values[1], values[2], out)
    return None


def _product(values: list[Any], params: dict[str, Any], out: Any) -> Postponed | None:
    left, right = values
    if not (isinstance(left, _Each) and isinstance(right, _Each)) or out.dtype.name not in _DTYPES:
        return None
    (_, _), (batch, _) = params["dimension_numbers"]
    if batch or left.all().dtype != out.dtype or right.all().dtype != out.dtype or params.get("out_sharding"):
        return None
    return Postponed((), 1.0, left.all(), right.all(), params, (), out.shape, out.dtype)


def _number(value: Any) -> Any:
    """The number by which all of a client's numbers are multiplied, the same for all or [K]; None if there is none."""
    if isinstance(value, _Each):
        alike = value.shape is not None or value.values.ndim == 1
        return value.values if alike else None
    return None if isinstance(value, Postponed) or jnp.ndim(value) else value


def _reshaped(value: Postponed, move: Callable[[Any], Any], out: Any) -> Postponed:
    terms = tuple((number, move(term)) for number, term in value.terms)
    return value._replace(terms=terms, moves=(*value.moves, move), shape=out.shape)


def _times(value: Postponed, number: Any) -> Postponed:
    terms = tuple((_multiplied(own, number), term) for own, term in value.terms)
    return value._replace(terms=terms, factor=_multiplied(value.factor, number))


def _multiplied(a: Any, b: Any) -> Any:
    return b if isinstance(a, float) and a == 1 else a * b


def _sum(first: Any, second: Any, sign: float, out: Any) -> Postponed | None:
    """A postponed product and what all clients share, in either order."""
    value, other, ours, theirs = (
        (first, second, 1.0, sign) if isinstance(first, Postponed) else (second, first, sign, 1.0)
    )
    if isinstance(other, _Each | Postponed) or jnp.shape(other) != out.shape:
        return None
    return _with_term(value if ours == 1 else _times(value, ours), theirs, other)


def _with_term(value: Postponed, number: Any, term: Any) -> Postponed:
    """One more term; of an array that is there already, the numbers are added, and it goes where they are none."""
    terms = []
    for own, known in value.terms:
        if known is term:
            number = own + number
        else:
            terms.append((own, known))
    if not (isinstance(number, float) and number == 0):
        terms.append((number, term))
    return value._replace(terms=tuple(terms))


def _selected(which: Any, no: Any, yes: Any, out: Any) -> Postponed | None:
    """A selection by client between a postponed product and what all clients share."""
    chosen = _number(which)
    if chosen is None or (isinstance(no, Postponed) and isinstance(yes, Postponed)):
        return None
    value, other, taken = (no, yes, jnp.logical_not(chosen)) if isinstance(no, Postponed) else (yes, no, chosen)
    if isinstance(other, _Each):
        return None
    nothing = jnp.zeros((), out.dtype)
    known = [own for own, term in value.terms if term is other]
    rest = tuple((jnp.where(taken, own, nothing), term) for own, term in value.terms if term is not other)
    value = value._replace(terms=rest, factor=jnp.where(taken, value.factor, nothing))
    if jnp.ndim(other) == 0:
        other = jnp.full(out.shape, other, out.dtype)
    if not known:
        return _with_term(value, jnp.where(taken, nothing, jnp.ones((), out.dtype)), other)
    one = isinstance(known[0], float) and known[0] == 1
    return _with_term(value, 1.0 if one else jnp.where(taken, known[0], jnp.ones((), out.dtype)), other)
