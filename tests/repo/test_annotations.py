"""Tests run with every annotation of Sumfold checked; a check is made once for each signature, and not less strict."""

import beartype
import jax.numpy as jnp
import pytest
from jaxtyping import Array, Float, TypeCheckError, jaxtyped

import sumfold as sf

checked = jaxtyped(typechecker=beartype.beartype)


def test_a_wrong_argument_of_sumfold_is_refused():
    with pytest.raises(TypeCheckError, match="seed"):
        sf.keys.root("a seed")


def made(annotation, default):
    @checked
    def function(x: annotation, y: int = default) -> annotation:
        return str(x) if y else x

    return function


def test_a_function_that_is_made_again_is_checked_again_by_its_own_annotations_and_defaults():
    for _ in range(2):
        assert made(int, 0)(1) == 1
        assert made(str, 0)("a") == "a"
        assert made(str, 1)("a") == "a"
        with pytest.raises(TypeCheckError, match="parameters"):
            made(int, 0)("a")
        with pytest.raises(TypeCheckError, match="parameters"):
            made(str, 0)(1)
        with pytest.raises(TypeCheckError, match="return"):
            made(int, 1)(1)


def test_shapes_are_bound_anew_in_each_call():
    def added():
        @checked
        def add(a: Float[Array, "n"], b: Float[Array, "n"]) -> Float[Array, "n"]:
            return a + b

        return add

    for n in (2, 3):
        assert added()(jnp.ones(n), jnp.ones(n)).shape == (n,)
        with pytest.raises(TypeCheckError, match="parameters"):
            added()(jnp.ones(n), jnp.ones(n + 1))


def test_the_checks_of_a_function_that_is_made_again_are_not_made_again():
    made = []

    def counted(function):
        made.append(function.__qualname__)
        return beartype.beartype(function)

    def doubling(by):
        @jaxtyped(typechecker=counted)
        def double(x: int) -> int:
            return by * x

        return double

    assert [doubling(by)(3) for by in (2, 4, 8)] == [6, 12, 24]
    assert len(made) == 2  # of the parameters, and of what is returned
