"""Client work that is no array program, as every runtime runs it: one call of a user's function, guarded.

The function's result is brought to arrays, checked against the shapes that the round was made for, and goes on into
the same `finish`, the same stages and the same sums as the result of an array program.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import random
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import keys, tree
from sumfold.core.cohort import ClientData
from sumfold.core.round import HostWork, Phase, Report, Task, Work
from sumfold.core.stage import Contribution
from sumfold.errors import SumfoldError, WorkError, is_library
from sumfold.keys import HostKey, Key
from sumfold.tree import Tree

__all__ = [
    "Failure",
    "all_failed",
    "attempt",
    "carry_shapes",
    "code_identity",
    "conformed",
    "held",
    "report_failure",
    "shaped",
]

_log = logging.getLogger("sumfold")

_HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
"""The library's folder."""


class Failure(NamedTuple):
    """Why a client's function gave no result.

    Attributes:
        reason: one line.
        detail: the traceback of the user's code, or "".
        refusal: the error of Sumfold's own that it was, if so: then the round ends, for it is no single client's.

    Example:
        >>> Failure("ValueError: bad row", "").reason
        'ValueError: bad row'
    """

    reason: str
    detail: str
    refusal: SumfoldError | None = None


def attempt(
    run: Callable[[Tree, Tree, HostKey, Tree], Tree], message: Tree, data: Tree, key: HostKey, memory: Tree
) -> Tree | Failure:
    """What the user's function returns, or why it did not.

    The global generators of ``random`` and ``numpy.random`` are seeded for the call and put back afterwards, so that
    code that draws from them gives the same result in every process.
    """
    try:
        with _seeded(key.number("global")):
            return run(_read_only(message), _read_only(data), key, _read_only(memory))
    except SumfoldError as error:
        return Failure(str(error), _told(error), error)
    except (Exception, SystemExit) as error:  # an exit() in it ends the client's work, not the process
        lines = str(error).strip().splitlines()
        return Failure(f"{type(error).__name__}: {lines[0] if lines else ''}".rstrip(": "), _told(error))


def _told(error: BaseException) -> str:
    """The traceback from the user's function on."""
    own = traceback.TracebackException.from_exception(error)
    while len(own.stack) > 1 and own.stack[0].filename.startswith(_HERE):
        del own.stack[0]
    return "".join(own.format())


@contextmanager
def _seeded(number: int) -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(number)
    np.random.seed(number % 2**32)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _read_only(given: Tree) -> Tree:
    def view(leaf: Any) -> Any:
        array = np.asarray(leaf).view()
        array.flags.writeable = False
        return array

    return jax.tree.map(view, given)


def held(data: ClientData, position: int) -> Tree:
    """What a client holds: its examples, or the list of its ready-made batches."""
    examples = data.take(position)
    if data.batch_sizes is None:
        return examples
    ends = np.cumsum(data.batch_sizes[position]).tolist()
    return [
        jax.tree.map(lambda a, begin=begin, end=end: a[begin:end], examples)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]


def shaped(phase: Phase, carry: Tree | None = None) -> Phase:
    """The phase with host work whose `init` says the shapes: the user's, or those of a carry, or of the message."""
    work = phase.work
    if isinstance(work, Work) or work.init is not None:
        return phase

    def like_message(task: Task, key: Key) -> Report:
        return Report(
            {part: Contribution(tree.zeros_like(task.message), jnp.float32(0)) for part in phase.aggregate},
            memory=task.memory,
        )

    def like_carry(task: Task, key: Key) -> Tree:
        return tree.zeros_like(carry)

    return phase._replace(work=work._replace(init=like_message if carry is None else like_carry))


def carry_shapes(phase: Phase, briefing: Any, kept: Tree) -> Tree | None:
    """The shapes that a phase's function must return; None where the first client says them.

    Args:
        phase: of host work.
        briefing: what clients receive.
        kept: shapes of what they kept before.
    """
    work = phase.work
    if work.init is None:
        return None
    begin, memory = work.init, work.memory

    def run(message: Tree, kept: Tree) -> Tree:
        return begin(Task(message, memory(message), kept, jnp.int32(0)), keys.typed(jnp.zeros(2, jnp.uint32)))

    return jax.eval_shape(run, briefing.message, kept)


def all_failed(client: Any, failure: Failure, number: int) -> WorkError:
    """The error of a round in which nobody gave a result."""
    return WorkError(
        "SF-HOST-001",
        f"the work of {'all ' if number > 1 else ''}{number} client(s) failed; "
        f"client {client!r}: {failure.reason}\n{failure.detail}".rstrip(),
        "one client or more that gives a result",
        "mend the function; the state passed in is unchanged",
    )


def report_failure(client: Any, failure: Failure, *, first: bool) -> None:
    """Log that a client failed; the traceback of the first failure only, for often they are all alike.

    Raises:
        SumfoldError: the failure itself, where it is an error of Sumfold's own.
    """
    if failure.refusal is not None:
        failure.refusal.add_note(f"This happened at client {client!r}.")
        raise failure.refusal
    _log.warning("client %r failed: %s%s", client, failure.reason, f"\n{failure.detail}" if first else "")


def conformed(work: HostWork, expected: Tree, carry: Tree, phase: Phase, message: Tree) -> Tree:
    """What a user's function returned as arrays of the expected shapes and dtypes.

    Args:
        work: whose result it is.
        expected: shapes, or None where the first client says its metrics', and its parts are like the message.
        carry: what `run` returned.
        phase: names the parts that a report must have.
        message: what the server sent.

    Raises:
        WorkError: when it is no report, or has other parts, structure or shapes than expected.
    """
    name = getattr(work.run, "__name__", type(work.run).__name__)
    if work.init is None and not _is_report(carry, phase):
        raise WorkError(
            "SF-HOST-003",
            f"{name} returned {_kind(carry)}",
            f"a sumfold.Report with the part(s) {sorted(phase.aggregate)}, each a Contribution(value, weight)",
            'return for example sf.Report({"update": sf.Contribution(value, weight)})',
        )
    try:
        with np.errstate(over="ignore"):  # a number too large for 32 bits is infinite there, and is counted as such
            arrays = jax.tree.map(tree.canonical, carry)
        given = tree.specs(arrays)  # refuses strings, which are arrays to NumPy
    except (TypeError, ValueError, RuntimeError) as error:
        raise WorkError(
            "SF-HOST-003", f"{name} returned {_kind(carry)} ({error})", "a tree of numeric arrays", "convert its leaves"
        ) from error
    if work.init is None and expected is None:
        like = Contribution(tree.shapes(message), tree.shape((), "float32"))
        expected = tree.shapes(arrays)._replace(parts=dict.fromkeys(phase.aggregate, like))
    needs = tree.specs(expected)
    if [s.path for s in given] == [s.path for s in needs]:
        pairs = list(zip(needs, jax.tree.leaves(arrays), strict=True))
        wrong = next(((s, a) for s, a in pairs if s.shape != a.shape or not _fits(a.dtype, s.dtype)), None)
        if wrong is None:
            leaves = [array.astype(jnp.dtype(spec.dtype), copy=False) for spec, array in pairs]
            return tree.unflatten(tree.structure(expected), leaves)
        came = f"{wrong[0].path!r} as {wrong[1].dtype}{list(wrong[1].shape)}"
        needed = f"{wrong[0].dtype}{list(wrong[0].shape)}"
    else:
        mine, theirs = ([s.path for s in specs] for specs in (needs, given))
        differing = sorted(set(mine) ^ set(theirs)) or theirs
        came = f"the leaves {theirs[:8]}{' …' if len(theirs) > 8 else ''}, which differ at {differing[0]!r}"
        needed = f"the leaves {mine[:8]}{' …' if len(mine) > 8 else ''}"
    raise WorkError(
        "SF-HOST-003",
        f"{name} returned {came}",
        f"{needed}, as init and memory say or as the first client returned",
        "return the same tree of the same shapes for every client, or declare it with HostWork(init=…, memory=…)",
    )


def _is_report(carry: Any, phase: Phase) -> bool:
    return (
        isinstance(carry, Report)
        and isinstance(carry.parts, Mapping)
        and set(carry.parts) == set(phase.aggregate)
        and all(isinstance(c, Contribution) for c in carry.parts.values())
    )


def _kind(carry: Any) -> str:
    parts = f" of the parts {sorted(carry.parts)}" if isinstance(carry, Report) else ""
    return f"a {type(carry).__name__}{parts}"


def _fits(given: Any, expected: Any) -> bool:
    """Whether numbers of one dtype go into the other without changing their kind."""
    with jax.numpy_dtype_promotion("standard"):  # whatever the caller has set
        wider = jnp.promote_types(given, expected) == jnp.dtype(expected)
    return bool(wider) or bool(jnp.issubdtype(given, jnp.floating) and jnp.issubdtype(expected, jnp.floating))


def code_identity(value: Any) -> str:
    """A function and all that it closes over as text, the same in every process under one version of Python.

    Of what is neither code nor numbers, its type; of a library's function, its name.
    """
    return _identity(value, set())


def _identity(value: Any, seen: set[int]) -> str:
    if value is None or isinstance(value, (str, bytes, int, float, complex, np.generic)):
        return repr(value)
    if id(value) in seen:
        return "…"
    seen = {*seen, id(value)}
    if isinstance(value, (np.ndarray, jax.Array)):
        array = np.ascontiguousarray(value)
        return f"{array.dtype}{array.shape}{hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()}"
    if isinstance(value, functools.partial):
        return f"partial({_identity((value.func, value.args, value.keywords), seen)})"
    if isinstance(value, types.CodeType):
        names = (value.co_names, value.co_varnames, value.co_freevars)
        return f"{value.co_code.hex()}{names}{_identity(value.co_consts, seen)}"
    if isinstance(value, types.FunctionType):
        if is_library(value.__code__.co_filename) and not value.__closure__:
            return f"{value.__module__}.{value.__qualname__}"
        cells = [_contents(cell) for cell in value.__closure__ or ()]
        named = {name: value.__globals__.get(name) for name in value.__code__.co_names}
        numbers = {name: known for name, known in named.items() if isinstance(known, (str, int, float))}
        return (
            f"function({_identity((value.__code__, value.__defaults__, value.__kwdefaults__, cells, numbers), seen)})"
        )
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{_identity(value[key], seen)}' for key in sorted(value, key=str))}}}"
    if isinstance(value, (tuple, list)):
        return f"({','.join(_identity(item, seen) for item in value)})"
    if isinstance(value, (set, frozenset)):
        return f"{{{','.join(sorted(_identity(item, seen) for item in value))}}}"
    if isinstance(value, (type, types.ModuleType)) or not hasattr(value, "__dict__"):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    try:
        state = value.__getstate__()  # leaves out what an object only keeps for itself
    except Exception:
        state = vars(value)
    return f"{type(value).__qualname__}{_identity(state, seen)}"


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
