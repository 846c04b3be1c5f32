"""A function in steps: the same values, nothing copied that is handed on, and what is new is written over the old."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sumfold.simulation import in_place
from sumfold.simulation.in_place import InPlace
from sumfold.simulation.inlined import BY_ELEMENT, inlined

N = 1000


@pytest.fixture(autouse=True)
def more_than_one_number_is_large(monkeypatch):
    monkeypatch.setattr(in_place, "_SMALL", 1)


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape or (N,)).astype(np.float32))


def adam(state, total, count):
    """Reddi et al. 2021, Algorithm 2, applied only where all of it is finite."""
    w, m, v = state
    change = total / count  # two questions are asked of it, and it is written down for neither
    moved = 0.9 * m + 0.1 * change
    second = 0.99 * v + 0.01 * moved**2
    after = w + 0.1 * moved / (jnp.sqrt(second) + 1e-3)
    applied = jnp.isfinite(after).all() & jnp.isfinite(change).all()
    return jax.tree.map(lambda new, old: jnp.where(applied, new, old), (after, moved, second), state), applied


def state():
    return numbers(0), numbers(1), jnp.abs(numbers(2))


def pointers(tree):
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree)]


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_values_are_those_of_the_function_and_the_state_stays():
    before, total = state(), numbers(3)
    after, applied = InPlace(adam)(before, total, jnp.float32(4))
    expected, known = jax.jit(adam)(before, total, jnp.float32(4))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7), after, expected)
    assert applied
    assert known
    same(before, state())


def test_a_spent_state_is_written_over_with_the_same_bits():
    cut, total, count = InPlace(adam), numbers(3), jnp.float32(4)
    kept, _ = cut(state(), total, count)
    spent = state()
    at = pointers(spent)
    after, _ = cut(spent, total, count, spend=True)
    same(after, kept)
    assert pointers(after) == at
    assert all(leaf.is_deleted() for leaf in spent)
    assert not total.is_deleted()


def test_what_is_not_applied_leaves_a_spent_state_as_it_was():
    after, applied = InPlace(adam)(state(), numbers(3).at[7].set(jnp.nan), jnp.float32(4), spend=True)
    assert not applied
    same(after, state())


def test_no_program_needs_room_for_an_array():
    cut = InPlace(adam)
    course, values = cut._course(state(), (numbers(3), jnp.float32(4)))
    assert [step.over for step in course.writes] == [[0], [2], [1]], "weights, second moment, first moment"
    # What is asked of each number may be written down, as one byte; what it is asked of is not.
    assert course.decide.lower(*values).compile().memory_analysis().temp_size_in_bytes < 3 * N
    for step in course.writes:
        given = [values[k] for k in step.over], [values[k] for k in step.reads], [course.kept[k] for k in step.kept]
        account = step.spent.lower(*given).compile().memory_analysis()
        assert account.temp_size_in_bytes < N
        assert account.alias_size_in_bytes == 4 * N
        apart = step.apart.lower(given[0], *given).compile().memory_analysis()
        assert apart.temp_size_in_bytes < N
        assert apart.alias_size_in_bytes == 4 * N, "the room that it is given"


def test_what_a_version_of_jax_has_one_operation_for_is_by_element():
    def function(x):
        return jnp.log2(x) + jax.jvp(jnp.tanh, (x,), (x,))[1]

    program = inlined(jax.make_jaxpr(function)(jnp.full(3, 0.5))).jaxpr
    assert {equation.primitive.name for equation in program.eqns} <= BY_ELEMENT


def test_what_came_in_is_handed_on():
    weights, host = numbers(0), np.ones(N, np.float32)
    _, (same_one, from_host, new) = InPlace(lambda nothing, w, h: (nothing, (w, h, w + 1)))((), weights, host)
    assert same_one is weights
    assert isinstance(from_host, jax.Array)
    same((from_host, new), (host, weights + 1))


def test_arrays_of_a_state_never_share_a_buffer():
    """A momentum that begins as the weights, weights that become the previous ones, a constant that becomes both."""
    constant = numbers(9)
    cut = InPlace(
        lambda s, x: ({"w": s["w"] + x, "before": s["w"], "a": constant, "b": constant, "kept": s["kept"]}, x)
    )
    first = {name: numbers(k) for k, name in enumerate(("w", "before", "a", "b", "kept"))}
    expected = {"w": first["w"] + 1, "before": first["w"], "a": constant, "b": constant, "kept": first["kept"]}
    for spend in (False, True):
        given = jax.tree.map(lambda a: jnp.array(a, copy=True), first)
        after, _ = cut(given, jnp.ones(N), spend=spend)
        same(after, expected)
        assert len(set(pointers(after))) == 5
        assert constant.unsafe_buffer_pointer() not in pointers(after)
        again, _ = cut(after, jnp.ones(N), spend=spend)
        same(again["before"], expected["w"])


def test_arrays_that_read_one_another_are_written_together():
    cut = InPlace(lambda s, x: ((s[0] + s[1], s[0] - s[1]), ()))
    a, b = numbers(0), numbers(1)
    expected = np.asarray(a) + np.asarray(b), np.asarray(a) - np.asarray(b)
    after, _ = cut((a, b), 0, spend=True)
    same(after, expected)
    assert a.is_deleted()
    assert b.is_deleted()


def test_products_and_draws_are_computed_once():
    def noisy(w, x, key):
        noise = jax.random.normal(key, (N,))
        return w + x @ jnp.ones((3, N)) + noise, noise.sum()

    cut = InPlace(noisy)
    given = numbers(0), jnp.ones(3), jax.random.key(5)
    course, values = cut._course(given[0], given[1:])
    (step,) = course.writes
    kept = [course.kept[k] for k in step.kept]
    text = step.apart.lower([values[0]], [values[0]], [values[k] for k in step.reads], kept).as_text()
    assert "dot_general" not in text
    assert "threefry" not in text
    after, total = cut(*given)
    expected = jax.jit(noisy)(*given)
    np.testing.assert_allclose(after, expected[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(total, expected[1], rtol=1e-5)


def test_a_state_that_changes_its_shape_or_dtype_is_left_alone():
    """No donation, and no warning of JAX's that it was in vain."""
    cut = InPlace(lambda s, x: ({"w": s["w"][:-1] + x, "n": s["n"].astype(jnp.float32)}, ()))
    given = {"w": numbers(0), "n": jnp.ones(N, jnp.int32)}
    after, _ = cut(given, 1.0, spend=True)
    assert after["w"].shape == (N - 1,)
    assert not any(leaf.is_deleted() for leaf in given.values())


def test_a_view_of_a_spent_state_stays():
    given = numbers(0)
    view, before = np.asarray(given), np.array(given)
    after, _ = InPlace(lambda s, x: (s + x, ()))(given, 1.0, spend=True)
    same(view, before)
    same(after, before + 1)


def test_arrays_of_numpy_can_be_spent():
    given = np.ones(N, np.float32)
    after, _ = InPlace(lambda s, x: (s + x, ()))(given, 1.0, spend=True)
    same(given, np.ones(N, np.float32))
    same(after, np.full(N, 2, np.float32))


def test_it_is_traced_once_and_again_for_other_shapes():
    traced = []

    def counted(s, x):
        traced.append(s.shape)
        return s + x, x.sum()

    cut = InPlace(counted)
    cut.prepare(numbers(0), jax.ShapeDtypeStruct((N,), jnp.float32), spend=True)
    for _ in range(2):
        cut(numbers(0), numbers(1), spend=True)
        cut(numbers(0), numbers(1))
    assert traced == [(N,)]
    cut(numbers(0, 3), numbers(1, 3))
    assert traced == [(N,), (3,)]
