"""Products of clients abreast, put off until their sum: the same numbers, and none of them taken."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import sumfold as sf
from sumfold.simulation.postponed import Postponed, abreast, taken

CLIENTS, ROWS, INTO, OUT = 5, 4, 6, 3
SHARED = jnp.arange(INTO * OUT, dtype=jnp.float32).reshape(INTO, OUT) / 7

LINEAR = {
    "negated": lambda product, number, live: -product,
    "times a number": lambda product, number, live: product * 0.3,
    "times the client's": lambda product, number, live: number * product,
    "by the client's": lambda product, number, live: product / number,
    "shared and it": lambda product, number, live: SHARED + product,
    "it less shared": lambda product, number, live: product - SHARED,
    "shared less it": lambda product, number, live: SHARED - product,
    "where it lives": lambda product, number, live: jnp.where(live, product, SHARED),
    "where it does not": lambda product, number, live: jnp.where(live, SHARED, product),
    "or nothing": lambda product, number, live: jnp.where(live, product, 0.0),
    "turned twice": lambda product, number, live: (product.T * number).T,
    "other shapes": lambda product, number, live: (product.reshape(OUT, INTO) * 2.0).reshape(INTO, 1, OUT).squeeze(1),
    "in a call": lambda product, number, live: jax.jit(lambda p: p * number - SHARED)(product),
}


def drawn(seed=0):
    draw = np.random.default_rng(seed)
    x, g = draw.normal(size=(CLIENTS, ROWS, INTO)), draw.normal(size=(CLIENTS, ROWS, OUT))
    return jnp.float32(x), jnp.float32(g), jnp.float32(draw.uniform(0.5, 2, CLIENTS)), jnp.arange(CLIENTS) % 2 == 0


def gradient(x, g):
    return lax.dot_general(x, g, (((0,), (0,)), ((), ())))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(sorted(LINEAR)), max_size=5), st.booleans(), st.integers(0, 2**CLIENTS - 1))
def test_what_is_linear_gives_the_same_sums_and_the_same_values(names, other_way, which):
    def client(x, g, number, live):
        value = gradient(g, x).T if other_way else gradient(x, g)
        for name in names:
            value = LINEAR[name](value, number, live)
        return value

    args = drawn()
    counted = jnp.asarray([bool(which >> k & 1) for k in range(CLIENTS)])
    value, known = abreast(client, *args)
    expected = jax.vmap(client)(*args)
    assert isinstance(value, Postponed)
    assert known is None
    np.testing.assert_allclose(taken(value), expected, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(value.total(counted), expected[np.asarray(counted)].sum(0), rtol=2e-5, atol=5e-5)


OTHERWISE = {
    "a norm": lambda product, number: jnp.sqrt((product**2).sum()) * number,
    "by itself": lambda product, number: product * product,
    "over itself": lambda product, number: number / (1 + product),
    "of two": lambda product, number: product @ product.T,
    "a power": lambda product, number: jnp.tanh(product),
    "with the client's own": lambda product, number: product + number * jnp.cos(SHARED * number),
    "in a loop": lambda product, number: lax.fori_loop(0, 3, lambda _, value: value * 0.5 + number, product),
}


@pytest.mark.parametrize("name", OTHERWISE)
def test_whatever_else_meets_it_gets_the_products(name):
    def client(x, g, number, live):
        return OTHERWISE[name](gradient(x, g), number)

    value, _ = abreast(client, *drawn())
    np.testing.assert_allclose(taken(value), jax.vmap(client)(*drawn()), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e15, 1e25, np.inf, np.nan])
def test_it_is_known_to_be_finite_only_where_no_product_can_overflow(scale):
    def client(x, g, number, live):
        value = SHARED - number * gradient(x, g)
        return value, jnp.isfinite(value).all()

    x, g, number, live = drawn()
    (value, finite), known = abreast(client, x.at[2].multiply(scale), g.at[2].multiply(scale), number, live)
    assert bool(known) == (scale < 1e16)
    if known:
        assert finite.tolist() == np.isfinite(np.asarray(taken(value))).all((1, 2)).tolist()


def test_shared_arrays_that_are_not_finite_are_not_known_to_be():
    def client(x, g, number, live):
        return jnp.isfinite(jnp.where(jnp.arange(OUT) == 1, jnp.inf, SHARED) + gradient(x, g)).all()

    assert not abreast(client, *drawn())[1]


# -- rounds


def federation(clients=20, spoiled=()):
    draw = np.random.default_rng(3)
    sizes = draw.integers(0, 9, clients)
    x = draw.normal(size=(sizes.sum(), 7)).astype(np.float32)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    for client, value in spoiled:
        x[starts[client] : starts[client + 1]] = value
    y = draw.integers(0, 4, sizes.sum()).astype(np.int32)
    return sf.Federation.from_arrays(x, y, offsets=starts)


def model():
    def init(key):
        first, second = jax.random.split(key)
        return {"w": jax.random.normal(first, (7, 5)), "v": jax.random.normal(second, (5, 4)), "b": jnp.zeros(4)}

    return sf.models.from_functions(
        init,
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"] + p["b"],
        optax.softmax_cross_entropy_with_integer_labels,
    )


BATCHING = sf.Batching(16)
ALGORITHMS = {
    "fed_avg": lambda: sf.learning.fed_avg(model(), optax.sgd(0.2), batching=BATCHING),
    "momentum": lambda: sf.learning.fed_avg(model(), optax.sgd(0.2, momentum=0.9), batching=BATCHING),
    "adam": lambda: sf.learning.fed_avg(model(), optax.adam(0.2), batching=BATCHING),
    "scaffold": lambda: sf.learning.scaffold(model(), optax.sgd(0.2), batching=BATCHING),
    "fed_prox": lambda: sf.learning.fed_prox(model(), optax.sgd(0.2), mu=0.5, batching=BATCHING),
}


def rounds(process, fed, number=3):
    state = process.initialize(seed=1)
    told = []
    for _ in range(number):
        state, metrics = process.next(state, fed)
        told.append(metrics["client_work"])
    return process.get_model_weights(state), told


@pytest.mark.parametrize("name", ALGORITHMS)
def test_rounds_of_one_step_equal_the_clients_one_by_one(name):
    lanes, one_by_one = (
        rounds(ALGORITHMS[name]().on(sf.Simulation(kernel=kernel, lanes=lanes, streams=1)), federation())
        for kernel, lanes in (("lanes", 6), ("sequential", None))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), lanes, one_by_one)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_clients_that_are_not_finite_are_left_out_as_ever(value):
    fed = federation(spoiled=[(3, value), (11, value)])
    assert fed.sizes[3]
    assert fed.sizes[11]
    ours, theirs = (
        rounds(ALGORITHMS["fed_avg"]().on(sf.Simulation(kernel=kernel, lanes=lanes, streams=1)), fed, 2)
        for kernel, lanes in (("lanes", 6), ("sequential", None))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)


def text(lanes):
    process = ALGORITHMS["fed_avg"]().on(sf.Simulation(kernel="lanes", lanes=lanes, streams=1))
    given, run = [], process._run
    program = run.compiled

    def record(*args):
        given.append(args)
        return program(*args)

    run.compiled = record
    process.next(process.initialize(), federation())
    return program.lower(*given[0]).as_text()


def test_no_clients_product_is_taken_where_all_are_far_from_overflow():
    """The gradients of both weights: client by client in the other branch alone, and once over all rows of all."""
    products = [line for line in text(6).splitlines() if "dot_general" in line]
    assert sum("batching_dims = [0] x [0]" in line for line in products) == 2
    assert sum("(tensor<48x" in line and "contracting_dims = [0] x [0]" in line for line in products) == 2
