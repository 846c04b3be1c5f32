"""How the engine's programs are compiled.

LLVM's second level of optimisation instead of XLA's third: what takes time is in XLA's own kernels, and the third level
unrolls the small loops between them. And an order of operations that saves memory instead of one in which many can
run at once: the cores are busy with other streams. Measured on a CPU: a round of convolutions compiles in 0.8 of the
time and runs in 0.95 of it, rounds of small models are a few per cent faster (docs/design/0022-compiling.md).
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import jax

from sumfold.tree import Tree

__all__ = ["at_once", "compiled"]

_OPTIONS = {"xla_backend_optimization_level": 2, "xla_cpu_enable_concurrency_optimized_scheduler": False}


def compiled(function: Callable[..., Any], **how: Any) -> Any:
    """`jax.jit(function, **how)` with the engine's options; it may not be called within another compiled function.

    Example:
        >>> int(compiled(lambda x: x + 1)(1))
        2
    """
    return jax.jit(function, compiler_options=_OPTIONS, **how)


_LARGE = 1 << 14
"""Numbers from which on a function's operations are worth one program, which takes some tenths of a second to compile;
each of them alone takes a fiftieth, and is kept for the next function."""


_programs: weakref.WeakKeyDictionary[Callable[..., Any], dict[str, Any]] = weakref.WeakKeyDictionary()
"""What `at_once` compiled, by function; not part of the function, which may be sent to other processes."""


def at_once(function: Callable[..., Tree]) -> Callable[..., Tree]:
    """The same function, run as one program instead of one for each operation, where what it returns is large.

    It is traced at every call, so what it reads besides its arguments counts as it would without.

    Example:
        >>> drawn = at_once(lambda key: jax.random.normal(key, (200, 100)))(jax.random.key(0))
        >>> drawn.shape
        (200, 100)
    """

    @functools.wraps(function)
    def run(*args: Any) -> Tree:
        return _run(function, args)

    return run


def _run(function: Callable[..., Tree], args: tuple[Any, ...]) -> Tree:
    # a new function each time: JAX remembers what it traced of an old one
    program, shapes = jax.make_jaxpr(functools.partial(function), return_shape=True)(*args)
    if sum(leaf.size for leaf in jax.tree.leaves(shapes)) < _LARGE:
        return function(*args)
    known, at = _programs.setdefault(function, {}), str(program)
    if at not in known:
        known[at] = compiled(lambda consts, leaves: jax.core.eval_jaxpr(program.jaxpr, consts, *leaves))
    return jax.tree.unflatten(jax.tree.structure(shapes), known[at](program.consts, jax.tree.leaves(args)))
