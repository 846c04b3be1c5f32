"""Products leave loops over time, and nothing but the order of sums changes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from sumfold.simulation.canonical import canonical, rewrites
from sumfold.simulation.recurrent import operand_counts

PLACES, SEQUENCES, COMING, HIDDEN = 7, 3, 5, 12


def weights(hidden=HIDDEN, coming=COMING, dtype=np.float32):
    rng = np.random.default_rng(0)
    shapes = {"x": (coming, hidden), "h": (hidden, hidden), "b": (hidden,), "out": (hidden, coming)}
    return {name: jnp.asarray(rng.normal(size=shape) * 0.4, dtype) for name, shape in shapes.items()}


def sequences(places=PLACES, coming=COMING, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).normal(size=(places, SEQUENCES, coming)), dtype)


def recurrent(p, x, *, reverse=False, jitted=False, remat=False):
    """A loss of a network whose place multiplies what comes in, the last state, and what it gives."""

    def place(h, x):
        h = jnp.tanh(x @ p["x"] + h @ p["h"] + p["b"][None])
        return h, h @ p["out"]

    place = jax.jit(place) if jitted else place
    place = jax.checkpoint(place) if remat else place
    last, given = lax.scan(place, jnp.zeros((x.shape[1], p["h"].shape[0]), x.dtype), x, reverse=reverse)
    return (given.astype(jnp.float32) ** 2).sum() + last.astype(jnp.float32).sum()


def loops(function, *args):
    """The scans of a function's program: shapes of the carries, and how often a place multiplies."""
    found = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            inner = [v for v in equation.params.values() if hasattr(v, "eqns") or hasattr(v, "jaxpr")]
            if equation.primitive.name == "scan":
                body, (first, carried) = equation.params["jaxpr"].jaxpr, operand_counts(equation.params)
                carries = body.invars[first : first + carried]
                found.append(([v.aval.shape for v in carries], str(body).count("dot_general")))
            for one in inner:
                walk(getattr(one, "jaxpr", one))

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def close(a, b, tolerance=1e-5):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        scale = float(jnp.abs(one).max()) + 1e-30
        np.testing.assert_allclose(
            np.asarray(one, np.float32) / scale, np.asarray(other, np.float32) / scale, atol=tolerance
        )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("form", ["plain", "jitted", "remat"])
def test_gradients_of_weights_leave_the_loop(reverse, form):
    loss = functools.partial(recurrent, reverse=reverse, jitted=form == "jitted", remat=form == "remat")
    step = jax.value_and_grad(loss, argnums=(0, 1))
    p, x = weights(), sequences()
    close(step(p, x), canonical(step)(p, x))
    before, after = loops(step, p, x), loops(canonical(step), p, x)
    assert (HIDDEN, HIDDEN) in before[-1][0]
    if form != "remat":  # what is computed again stays in its own program
        assert not {value.shape for value in p.values()} & set(after[-1][0]) - {(HIDDEN,)}
        assert [times for _, times in after] == [1, 1], "the state's own product, there and back"


def test_a_matrix_that_is_smaller_than_its_factors_stays():
    step, p, x = jax.grad(recurrent), weights(2, 2), sequences(coming=2)
    close(step(p, x), canonical(step)(p, x))
    assert (2, 2) in loops(canonical(step), p, x)[-1][0]


def test_bfloat16_keeps_its_dtype():
    step = jax.value_and_grad(recurrent)
    p, x = weights(dtype=jnp.bfloat16), sequences(dtype=jnp.bfloat16)
    close(step(p, x), canonical(step)(p, x), 3e-2)


def test_loops_in_loops():
    def loss(p, x):
        outer = lambda total, scale: (total + recurrent(p, x * scale), None)
        return lax.scan(outer, jnp.float32(0), jnp.arange(3.0))[0]

    step, p, x = jax.grad(loss), weights(), sequences()
    close(step(p, x), canonical(step)(p, x))


def test_a_sum_that_is_looked_at_stays():
    a, b = sequences(), sequences() + 1

    def place(total, here):
        a, b = here
        total = total + a.T @ b
        return total, total.sum()

    step = lambda a, b: lax.scan(place, jnp.zeros((COMING, COMING)), (a, b))
    close(step(a, b), canonical(step)(a, b))
    assert loops(canonical(step), a, b)[0][1] == 1


@pytest.mark.parametrize("case", ["doubled", "squared", "shifted", "batched", "constant", "whole numbers"])
def test_what_is_no_plain_sum_of_products_is_the_same_as_before(case):
    a, b = sequences(), sequences() + 1
    if case == "whole numbers":
        a, b = jnp.round(3 * a).astype(jnp.int32), jnp.round(b).astype(jnp.int32)
    fixed = jnp.ones_like(a[0])

    def place(total, here):
        a, b = here
        if case == "batched":
            return total + jnp.einsum("si,sj->sij", a, b), None
        product = (fixed if case == "constant" else a).T @ b
        return {
            "doubled": 2 * total + product,
            "squared": total + product * product,
            "shifted": total + product + 1,
        }.get(case, total + product), None

    zero = jnp.zeros((SEQUENCES, COMING, COMING) if case == "batched" else (COMING, COMING), a.dtype)
    step = lambda a, b: lax.scan(place, zero, (a, b))[0]
    close(step(a, b), canonical(step)(a, b))


@settings(max_examples=12, deadline=None)
@given(
    places=st.integers(1, 5),
    reverse=st.booleans(),
    swapped=st.booleans(),
    turned=st.booleans(),
    into=st.booleans(),
    unroll=st.integers(1, 2),
)
def test_sums_of_products_of_any_orientation(places, reverse, swapped, turned, into, unroll):
    rng = np.random.default_rng(places)
    a, b = (jnp.asarray(rng.normal(size=(places, 2, n)), jnp.float32) for n in (9, 8))
    w = jnp.asarray(rng.normal(size=(8, 9)), jnp.float32)

    def place(carry, here):
        total, state = carry
        a, b = here
        a = jnp.sin(a + state) if into else a
        left, right = (b, a) if swapped else (a, b)
        term = lax.dot_general(left, right, (((0,), (0,)), ((), ())))
        term = term.T if turned else term
        state = jnp.cos(lax.dot_general(w, b, (((0,), (1,)), ((), ()))).T)
        return (total + term.reshape(-1), state), lax.dot_general(w, state, (((1,), (1,)), ((), ())))

    first = jnp.ones(72), jnp.zeros((2, 9))
    step = lambda a, b: lax.scan(place, first, (a, b), reverse=reverse, unroll=unroll)
    close(step(a, b), canonical(step)(a, b))
    assert loops(canonical(step), a, b)[0][0] == [(2, 9)]
    assert loops(canonical(step), a, b)[0][1] == 0


@pytest.mark.parametrize(("places", "by_last_axis"), [(PLACES, 1), (32, 0)])
def test_weights_are_turned_round_once_for_many_places(places, by_last_axis):
    """In the gradient by the state, of which the last axis of the weights is multiplied at each place."""
    p, x = weights(), sequences(places)
    gradient = canonical(jax.grad(recurrent))
    texts = [str(body) for body in bodies(jax.make_jaxpr(gradient)(p, x).jaxpr)]
    assert sum(text.count("(([1], [1]), ([], []))") for text in texts) == by_last_axis
    close(jax.grad(recurrent)(p, x), gradient(p, x), 2e-4)


def test_a_product_of_rows_with_rows_in_a_long_loop_stays():
    """Its axes of rows are a batch's, and not to be exchanged."""
    w, x = jnp.asarray(weights()["h"][:SEQUENCES]), sequences(40, HIDDEN)

    def step(w, x):
        return lax.scan(lambda c, x: (c + jax.vmap(jnp.dot)(x, w).sum(), jnp.einsum("hd,bd->bh", w, x)), 0.0, x)

    close(step(w, x), canonical(step)(w, x))
    gradient = jax.grad(lambda w, x: step(w, x)[0] + (step(w, x)[1] ** 2).mean())
    close(gradient(w, x), canonical(gradient)(w, x), 1e-4)


def bodies(jaxpr):
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                if equation.primitive.name == "scan":
                    yield inner
                yield from bodies(inner)


def test_flax_cells_carry_their_states_alone():
    nn = pytest.importorskip("flax.linen")
    x = jnp.swapaxes(sequences(), 0, 1)
    for cell in (nn.OptimizedLSTMCell, nn.LSTMCell, nn.GRUCell, nn.SimpleCell):
        net = nn.RNN(cell(HIDDEN))
        held = net.init(jax.random.key(0), x)
        step = jax.value_and_grad(lambda v, x, net=net: (net.apply(v, x) ** 2).sum(), argnums=(0, 1))
        close(step(held, x), canonical(step)(held, x))
        for carries, _ in loops(canonical(step), held, x):
            assert all(shape == (SEQUENCES, HIDDEN) for shape in carries if len(shape) == 2), cell.__name__


def test_a_scan_without_products_is_left_alone():
    step = lambda x: lax.scan(lambda c, x: (c + x.sum(), c), jnp.float32(0), x)
    assert not rewrites(step, sequences())
