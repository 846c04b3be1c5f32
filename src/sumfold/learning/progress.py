"""What a person sees on stderr while a run trains: a bar on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

__all__ = ["Display", "shown"]

_LINES = 20
_RECENT = 11


class Display(NamedTuple):
    """Where a run shows itself.

    Attributes:
        done: (rounds finished, clients of the last one, values such as ``"loss 0.512"``) -> None.
        say: a line of text -> None.
    """

    done: Callable[[int, int, str], None]
    say: Callable[[str], None]


@contextlib.contextmanager
def shown(rounds: int, before: int, progress: bool) -> Iterator[Display]:
    """A `Display` of `rounds` rounds of which `before` were finished earlier.

    Example:
        >>> with shown(rounds=10, before=0, progress=False) as display:
        ...     display.done(1, 100, "loss 0.512")
    """
    if not progress:
        yield Display(lambda *_: None, lambda _: None)
        return
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with (_bar if console.is_terminal else _lines)(console, rounds, before) as display:
        yield display


@contextlib.contextmanager
def _bar(console: Any, rounds: int, before: int) -> Iterator[Display]:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("round {task.completed:.0f}/{task.total:.0f}"),
        BarColumn(),
        TextColumn("{task.fields[values]}", markup=False),
        TextColumn("{task.fields[pace]}", markup=False),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=rounds, completed=before, values="", pace="")
        pace = _pace(rounds, before)

        def done(finished: int, clients: int, values: str) -> None:
            bar.update(task, completed=finished, values=values, pace=pace(finished, clients))

        yield Display(done, lambda text: bar.console.print(text, markup=False))


@contextlib.contextmanager
def _lines(console: Any, rounds: int, before: int) -> Iterator[Display]:
    every, pace = max(1, rounds // _LINES), _pace(rounds, before)
    told = before

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def done(finished: int, clients: int, values: str) -> None:
        nonlocal told
        measured, due = pace(finished, clients), finished // every > told // every
        told = finished
        if due or finished == rounds:
            say("  ".join(word for word in (f"round {finished}/{rounds}", values, measured) if word))

    yield Display(done, say)


def _pace(rounds: int, before: int) -> Callable[[int, int], str]:
    """(rounds finished, clients of the last) -> clients a second and time left, as the last rounds went."""
    marks = collections.deque([(time.perf_counter(), before, 0)], maxlen=_RECENT)

    def pace(finished: int, clients: int) -> str:
        marks.append((time.perf_counter(), finished, marks[-1][2] + clients))
        (began, first, clients_first), (now, _, clients_now) = marks[0], marks[-1]
        elapsed = max(now - began, 1e-9)
        left = elapsed / (finished - first) * (rounds - finished)
        rate = f"{_short((clients_now - clients_first) / elapsed)} clients/s"
        return f"{rate}  {_clock(left)} left" if left else rate

    return pace


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
