"""Where the time of a run goes: spans of wall time by name, counts, and what JAX compiled.

The spans of all threads together add up to wall time. While n threads are inside spans, each of them is given 1/n of
every second, under the name of its innermost span: with two streams computing, half of the time is each one's; when one
of them has ended, all of it is the other's. A thread that waits for others should be inside no span.

Compilation needs no span of its own. JAX tells when tracing, lowering and compiling end and how long they took
(`jax.monitoring`); that much is moved from the span around it to ``compile``. One of these may be told within another,
and only the outermost counts.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from time import perf_counter
from types import TracebackType
from typing import Any

import jax

__all__ = ["COMPILE", "Meter"]

COMPILE = "compile"
"""The name under which compilation is found."""

_COMPILED = "/jax/core/compile/backend_compile_duration"
_TIMED = frozenset({"/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration"})
_CACHED = "/jax/compilation_cache/cache_hits"


class Meter:
    """Seconds by name, and counts; for many threads, at about a microsecond a span.

    Example:
        >>> meter = Meter()
        >>> with meter.span("plan"):
        ...     meter.count("steps", 3)
        >>> measured = meter.snapshot()
        >>> list(measured["seconds"]), measured["counts"]
        (['plan'], {'steps': 3})
    """

    def __init__(self) -> None:
        _listen()
        self._lock = threading.Lock()
        self._here = threading.local()
        self._spans: dict[str, _Span] = {}
        self._seconds: dict[str, float] = {}
        self._counts: Counter[str] = Counter()
        self._inside: dict[str, int] = {}
        self._threads = 0
        self._since = 0.0

    def span(self, name: str) -> _Span:
        """A context: the wall time within it belongs to `name`. Spans may be nested; the innermost counts."""
        found = self._spans.get(name)
        return found if found is not None else self._spans.setdefault(name, _Span(self, name))

    def count(self, name: str, number: int = 1) -> None:
        """Add to a count."""
        with self._lock:
            self._counts[name] += number

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """``{"seconds": {name: …}, "counts": {name: …}}`` since the meter was made, spans that are open included.

        Among the counts, ``executables`` are the programs that were compiled within spans, and ``cached`` those that
        the compilation cache had.
        """
        with self._lock:
            self._advance()
            return {"seconds": dict(self._seconds), "counts": dict(self._counts)}

    def _enter(self, name: str) -> None:
        try:
            names = self._here.names
        except AttributeError:
            names = self._here.names = []
            self._here.told = []
        with self._lock:
            self._advance()
            if names:
                self._leave(names[-1])
            else:
                self._threads += 1
                _metered().append(self)
            names.append(name)
            self._inside[name] = self._inside.get(name, 0) + 1

    def _exit(self) -> None:
        names = self._here.names
        with self._lock:
            self._advance()
            self._leave(names.pop())
            if names:
                self._inside[names[-1]] = self._inside.get(names[-1], 0) + 1
            else:
                self._threads -= 1
                self._here.told.clear()
                _metered().remove(self)

    def _leave(self, name: str) -> None:
        if self._inside[name] == 1:
            del self._inside[name]
        else:
            self._inside[name] -= 1

    def _advance(self) -> None:
        """Give the time since the last change to the spans that were open."""
        now = perf_counter()
        if self._threads:
            share = (now - self._since) / self._threads
            for name, threads in self._inside.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + share * threads
        self._since = now

    def _compiled(self, event: str, start: float, end: float) -> None:
        """What the current thread traced, lowered or compiled from `start` to `end` by JAX's clock."""
        told: list[tuple[float, float]] = self._here.told
        seconds = end - start
        while told and told[-1][0] >= start:
            seconds -= told.pop()[1]
        told.append((start, end - start))
        with self._lock:
            self._advance()
            if event == _COMPILED:
                self._counts["executables"] += 1
            name = self._here.names[-1]
            moved = min(max(seconds, 0.0) / self._threads, self._seconds.get(name, 0.0))
            self._seconds[name] = self._seconds.get(name, 0.0) - moved
            self._seconds[COMPILE] = self._seconds.get(COMPILE, 0.0) + moved

    def _found(self) -> None:
        """The program that this thread is about to count as compiled came out of the compilation cache."""
        with self._lock:
            self._counts["executables"] -= 1
            self._counts["cached"] += 1


class _Span:
    """One name of one meter; it holds nothing of a single use, so all threads share it."""

    __slots__ = ("_meter", "_name")

    def __init__(self, meter: Meter, name: str) -> None:
        self._meter, self._name = meter, name

    def __enter__(self) -> None:
        self._meter._enter(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._meter._exit()


_thread = threading.local()


def _metered() -> list[Meter]:
    """The meters in whose spans this thread is; compilation belongs to the last."""
    try:
        found: list[Meter] = _thread.meters
    except AttributeError:
        found = _thread.meters = []
    return found


@functools.cache
def _listen() -> None:
    """Hear from JAX what it compiles."""

    def timed(event: str, start_time: float, end_time: float, **about: Any) -> None:
        if event == _COMPILED or event in _TIMED:
            for meter in _metered()[-1:]:
                meter._compiled(event, start_time, end_time)

    def happened(event: str, **about: Any) -> None:
        if event == _CACHED:
            for meter in _metered()[-1:]:
                meter._found()

    jax.monitoring.register_event_time_span_listener(timed)
    jax.monitoring.register_event_listener(happened)
