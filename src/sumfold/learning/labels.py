"""How many classes a loss knows: read off the loss's own program, from the place where a label is used as an index.

A label outside of the classes raises nothing in JAX: a gather fills in, a one-hot row is zero, and training goes on
with nonsense. So the traced loss is searched for a gather whose indices are the labels, or a comparison of the labels
with 0, 1, 2, … (a one-hot). A loss that computes with its labels, as in regression, has neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax

from sumfold.core.foreign import foreign
from sumfold.tree import Tree

__all__ = ["classes_of"]

_SAME_VALUE = {
    "broadcast_in_dim", "reshape", "squeeze", "expand_dims", "copy", "copy_p", "transpose", "convert_element_type",
    "stop_gradient", "select_n", "clamp", "concatenate", "rev", "slice", "unstack", "add", "min", "max",
}  # fmt: skip
"""Primitives that hand a label on: shapes, dtypes, and the wrapping of negative indices."""


def classes_of(loss: Callable[[Tree, Tree], Any], outputs: Tree, y: Tree) -> int | None:
    """The number of classes that `loss` indexes with its labels, or None when it does not.

    Args:
        loss: (outputs, y) -> loss of each example.
        outputs, y: shapes of a batch.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> outputs, y = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
        >>> classes_of(optax.softmax_cross_entropy_with_integer_labels, outputs, y)
        3
        >>> classes_of(lambda outputs, y: (outputs[:, 0] - y) ** 2, outputs, y)
    """
    program = jax.make_jaxpr(foreign(loss))(outputs, y).jaxpr
    labels = set(program.invars[len(jax.tree.leaves(outputs)) :])
    return min(_indexed(program, labels, set()), default=None)


def _indexed(program: Any, labels: set[Any], counts: set[Any]) -> Iterator[int]:
    """The sizes that labels index in a program; `labels` and `counts` (0, 1, 2, …) are variables, and grow."""

    def among(variable: Any, known: set[Any]) -> bool:
        return not hasattr(variable, "val") and variable in known

    for equation in program.eqns:
        name, inputs, outputs = equation.primitive.name, equation.invars, equation.outvars
        label = [among(v, labels) for v in inputs]
        count = [among(v, counts) for v in inputs]
        inner = [p for p in map(_program, equation.params.values()) if p is not None]
        if inner and len(inner[0].invars) == len(inputs):
            pairs = list(zip(inner[0].invars, label, count, strict=True))
            inside = {v for v, is_label, _ in pairs if is_label}
            yield from _indexed(inner[0], inside, within := {v for v, _, is_count in pairs if is_count})
            results = list(zip(outputs, inner[0].outvars, strict=True))
            labels |= {o for o, v in results if among(v, inside)}
            counts |= {o for o, v in results if among(v, within)}
        elif name == "iota":
            counts |= set(outputs)
        elif name == "gather" and label[1] and not label[0]:
            dimensions = equation.params["dimension_numbers"].start_index_map
            yield int(inputs[0].aval.shape[dimensions[-1]])
        elif name == "eq" and any(label) and any(count):
            yield int(inputs[count.index(True)].aval.shape[-1])
        elif name in _SAME_VALUE:
            labels |= set(outputs) if any(label) else set()
            counts |= set(outputs) if any(count) and not any(label) else set()


def _program(value: Any) -> Any:
    """The program inside an equation's parameter, if it is one."""
    inner = getattr(value, "jaxpr", value)
    return inner if hasattr(inner, "eqns") else None
