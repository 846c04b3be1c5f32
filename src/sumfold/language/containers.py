"""One level of a Python container, taken apart and put together again.

Whatever JAX knows as a node of a tree is a container here, and so are attrs classes. The order of the children is
JAX's: a dict's keys are sorted, an OrderedDict's are not.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax

from sumfold.errors import TypeMismatchError

__all__ = ["Container", "container_of", "default_container", "open_container", "step", "word"]


@final
@dataclass(frozen=True, slots=True)
class Container:
    """What is left of a container when its children are taken out; equal for containers that look alike.

    Attributes:
        kind: the Python class.
        names: of each child its key or attribute, or None where it has only a position.
        structure: JAX's description of the node; None for an attrs class that JAX does not know.

    Example:
        >>> container, children = open_container({"b": 1, "a": [2, 3]})
        >>> container.names, children
        (('a', 'b'), [[2, 3], 1])
        >>> container.join(["x", "y"])
        {'a': 'x', 'b': 'y'}
    """

    kind: type
    names: tuple[str | None, ...]
    structure: Any

    def join(self, children: Sequence[Any]) -> Any:
        """The container with these children, one for each of `names`."""
        if self.structure is not None:
            return jax.tree.unflatten(self.structure, children)
        # Attributes are set as copy and pickle set them: converters and validators are for values, not for tracers.
        made: Any = object.__new__(self.kind)
        for name, child in zip(self.names, children, strict=True):
            object.__setattr__(made, str(name), child)
        return made


def open_container(obj: Any) -> tuple[Container, list[Any]] | None:
    """The container and its children in JAX's order; None for a leaf, and for None, which is neither.

    Raises:
        TypeMismatchError: for a dict whose keys cannot be sorted.

    Example:
        >>> open_container((1, [2]))[1]
        [1, [2]]
        >>> open_container(1.0) is None
        True
    """
    if obj is None:
        return None
    try:
        flat, structure = jax.tree_util.tree_flatten_with_path(obj, is_leaf=lambda node: node is not obj)
    except (TypeError, ValueError) as error:
        raise TypeMismatchError(
            "SF-TYPE-017",
            f"a {type(obj).__name__} that JAX cannot take apart ({error})",
            "a container whose children have an order, such as a dict with keys that can be sorted",
            "use strings as keys, or an OrderedDict",
        ) from error
    if not flat or flat[0][0]:  # a leaf is itself, at the path of no steps
        names = tuple(_name(path[0]) for path, _ in flat)
        return Container(type(obj), names, structure), [child for _, child in flat]
    fields = getattr(type(obj), "__attrs_attrs__", None)
    if fields is None:
        return None
    names = tuple(field.name for field in fields)
    return Container(type(obj), names, None), [getattr(obj, str(name)) for name in names]


def container_of(kind: type, names: Sequence[str | None]) -> Container:
    """The container that a list, tuple, dict or OrderedDict with children of these names has.

    Example:
        >>> container_of(list, [None, None]).join([1, 2])
        [1, 2]
    """
    make: Any = kind
    opened = open_container(make(dict.fromkeys(names) if issubclass(kind, dict) else names))
    assert opened is not None
    return opened[0]


def default_container(names: Sequence[str | None]) -> Container:
    """For elements without a Python container: an OrderedDict if all have names, otherwise a tuple.

    Example:
        >>> default_container(["a", None]).join([1, 2])
        (1, 2)
        >>> named = default_container(["b", "a"]).join([1, 2])
        >>> type(named).__name__, list(named.items())
        ('OrderedDict', [('b', 1), ('a', 2)])
    """
    if names and None not in names:
        return container_of(OrderedDict, names)
    return Container(tuple, tuple(names), jax.tree.structure(tuple(range(len(names)))))


_PLAIN = re.compile(r"""[^\s<>=,(){}\[\]@*"'\\]+""")


def word(name: str) -> str:
    """A child's name as it is, or quoted if it holds what could be taken for a part of a type or a path.

    Example:
        >>> print(word("dense/kernel"), word("a b"))
        dense/kernel "a b"
    """
    return name if _PLAIN.fullmatch(name) and name.isprintable() else json.dumps(name)


def step(at: str, name: str | None, index: int) -> str:
    """The path of a child of what is at the path `at`.

    Example:
        >>> step(step("", "a", 0), None, 1)
        'a[1]'
    """
    if name is None:
        return f"{at}[{index}]"
    said = json.dumps(name) if "." in name else word(name)
    return f"{at}.{said}" if at else said


def _name(key: Any) -> str | None:
    """A dict's key as text, an attribute's name, or None for a position."""
    if isinstance(key, jax.tree_util.DictKey):
        return str(key.key)
    return key.name if isinstance(key, jax.tree_util.GetAttrKey) else None
