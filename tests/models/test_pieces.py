"""Evaluations in pieces: bounded memory, few programs, the numbers of one piece."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sumfold as sf
from sumfold.learning.evaluate_clients import evaluate_clients
from sumfold.models import pieces
from sumfold.models.pieces import at_once, bytes_per_row

DRAW = np.random.default_rng(0)
X, Y = DRAW.normal(size=(3000, 6)).astype(np.float32), DRAW.integers(0, 4, 3000).astype(np.int32)
WEIGHT = DRAW.uniform(0, 2, 3000).astype(np.float32)


def linear(**options):
    return sf.models.from_functions(
        lambda key: jax.random.normal(key, (6, 4)),
        lambda w, x: x @ w,
        optax.softmax_cross_entropy_with_integer_labels,
        **{"metrics": {"accuracy": sf.metrics.accuracy}, **options},
    )


@given(st.integers(1, 10**7), st.integers(1, 2**31), st.sampled_from([2, 1024, 8192]))
def test_pieces_hold_all_rows_with_little_padding(rows, largest, most):
    width = at_once(rows, largest, most)
    assert 1 <= width <= most
    assert width == 1 or width * largest <= pieces._LARGEST
    number = -(-rows // width)
    assert number * width - rows < max(0.3 * rows, width)
    assert number == 1 or width & (width - 1) == 0 or width % (1 << (width.bit_length() - 3)) == 0


def test_the_largest_array_that_grows_with_the_rows():
    def program(w, x):
        hidden = jnp.tanh(x[:, :, None] * w[None])  # 6 × 50 numbers a row
        return jax.lax.scan(lambda c, h: (c + jax.jit(jnp.sum)(h), None), 0.0, hidden)[0]

    def shapes(rows):
        return jax.ShapeDtypeStruct((1000, 6, 50), jnp.float32), jax.ShapeDtypeStruct((rows, 6), jnp.float32)

    assert bytes_per_row(lambda w, x: program(w[0], x), shapes) == 4 * 6 * 50


@pytest.mark.parametrize("given", [(X, Y), (X, Y, WEIGHT)], ids=["plain", "weighted"])
def test_pieces_give_the_numbers_of_one(given, monkeypatch):
    model = linear()
    weights = model.init(jax.random.key(1))
    whole = model.evaluate(weights, *given)
    small = linear()
    monkeypatch.setattr(pieces, "_LARGEST", 200 * 6 * 4)
    assert at_once(len(X), small._largest(small.split(weights), given), 8192) <= 200
    cut = small.evaluate(weights, *given)
    assert cut == pytest.approx(whole, rel=1e-6)
    assert small._measure._cache_size() == 1, "first, middle and last piece are one program"


def test_a_model_that_fails_says_so_as_before():
    with pytest.raises(sf.TypeMismatchError, match="SF-TYPE-002"):
        linear().evaluate(jnp.zeros((6, 4)), X[:, :5], Y)


# -- clients


def ragged():
    sizes = [0, 1, 7, 8, 1500, 0, 300, 5]
    return np.repeat(np.arange(len(sizes)), sizes), int(np.sum(sizes))


@pytest.mark.parametrize("form", ["tuple", "weighted", "dict", "scattered"])
def test_clients_abreast_have_the_numbers_of_each_alone(form):
    owner, n = ragged()
    x, y, weight = X[:n], Y[:n], WEIGHT[:n]
    order = DRAW.permutation(n) if form == "scattered" else np.arange(n)
    entries = {c: (x[owner == c], y[owner == c]) for c in range(8)}
    if form == "weighted":
        entries = {c: (*entries[c], weight[owner == c]) for c in entries}
    if form == "dict":
        entries = {c: {"x": a, "y": b} for c, (a, b) in entries.items()}
    fed = sf.Federation.from_clients(entries)
    if form == "scattered":
        fed = sf.Federation.from_arrays(x[order], y[order], client_ids=owner[order])
    model = linear()
    process = sf.learning.fed_avg(model, optax.sgd(0.1))
    state = process.initialize()
    weights = process.get_model_weights(state)
    found = evaluate_clients(process, state, fed)
    assert list(found) == list(fed.ids)
    for client, reached in found.items():
        entry = fed[client]
        alone = model.evaluate(weights, *(entry.values() if form == "dict" else entry))
        assert reached == pytest.approx(alone, rel=2e-6, abs=1e-6)
        assert type(reached["loss"]) is float
    assert model.measure_each._cache_size() == 3, "a program for each power of two"


def test_what_cannot_run_abreast_runs_one_by_one():
    def counted(outputs, y):
        shape = jax.ShapeDtypeStruct(y.shape, jnp.float32)
        return jax.pure_callback(lambda y: np.asarray(y, np.float32), shape, y)

    model = linear(metrics={"label": counted})
    process = sf.learning.fed_avg(model, optax.sgd(0.1))
    found = evaluate_clients(process, process.initialize(), {"a": (X[:3], Y[:3]), "b": (X[3:5], Y[3:5])})
    assert found["b"]["label"] == pytest.approx(Y[3:5].mean())
