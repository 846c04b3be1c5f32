"""Functions that watch a run: ``fn(event) -> None | "stop"``.

A callback is called after every round, after every evaluation and after every checkpoint. What it decides
should be a function of the event alone: then a run that was interrupted and goes on decides as if nothing had
happened.
"""

from __future__ import annotations

import functools
import math
import os
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from sumfold.core.driver import State
from sumfold.errors import CompositionError, missing_extra, user_facing
from sumfold.learning.history import History, flat

__all__ = ["Callback", "EarlyStopping", "Event", "TensorBoard"]


@dataclass(frozen=True, eq=False)
class Event:
    """What a callback is told.

    Attributes:
        kind: ``"round_end"``, ``"evaluation"`` or ``"checkpoint"`` (a state was just saved).
        round: the round, from 0.
        metrics: the round's metrics, or the evaluation's numbers.
        history: of the run so far, this round and its evaluation included.
        state: after the round.

    Example:
        >>> def watch(event):
        ...     if event.kind == "evaluation" and event.metrics["loss"] < 0.1:
        ...         return "stop"
    """

    kind: Literal["round_end", "evaluation", "checkpoint"]
    round: int
    metrics: Mapping[str, Any]
    history: History
    state: State


Callback: TypeAlias = Callable[[Event], Any]
"""``fn(event) -> None | "stop"``."""


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when evaluations no longer improve: a function of ``event.history.evaluations`` alone.

    Args:
        monitor: a number of the evaluation; nested ones as ``"group/name"``.
        patience: how many evaluations in a row may pass without a new best.
        mode: ``"min"`` or ``"max"``: whether lower or higher is better.
        min_delta: a new best must be better than the last by more than this.

    Raises:
        CompositionError: for a patience below 1, another mode, or a number that evaluations do not have.

    Example:
        >>> rule = EarlyStopping(monitor="loss", patience=2)
        >>> [rule.exhausted(losses) for losses in ([3.0, 2.0], [3.0, 2.0, 2.5], [3.0, 2.0, 2.5, 2.1])]
        [False, False, True]
    """

    monitor: str = "loss"
    patience: int = 5
    mode: Literal["min", "max"] = "min"
    min_delta: float | int = 0

    @user_facing
    def __post_init__(self) -> None:
        if self.patience < 1 or self.mode not in {"min", "max"} or not self.min_delta >= 0:
            raise CompositionError(
                "SF-TRAIN-001",
                repr(self),
                "patience of at least 1, mode 'min' or 'max', min_delta of at least 0",
                'write for example EarlyStopping(monitor="loss", patience=5)',
            )

    @user_facing
    def __call__(self, event: Event) -> Literal["stop"] | None:
        """``"stop"`` after an evaluation that exhausts the patience."""
        if event.kind != "evaluation":
            return None
        numbers = [name for name, value in flat(event.metrics).items() if isinstance(value, (int, float))]
        if self.monitor not in numbers:
            raise CompositionError(
                "SF-TRAIN-002",
                f"EarlyStopping(monitor={self.monitor!r}) and an evaluation of {sorted(numbers)}",
                "a number that the evaluation has",
                "monitor one of those, or add the metric to the model",
            )
        series = [float(flat(entry).get(self.monitor, math.nan)) for entry in event.history.evaluations]
        return "stop" if self.exhausted(series) else None

    def exhausted(self, series: list[float]) -> bool:
        """Whether the last `patience` numbers brought no new best; NaN is never one."""
        best, since = math.inf, 0
        for value in series:
            cost = value if self.mode == "min" else -value
            improved = cost < best - self.min_delta
            best, since = (cost, 0) if improved else (best, since + 1)
        return since >= self.patience


@dataclass(frozen=True)
class TensorBoard:
    """Write every number of metrics and evaluations to a TensorBoard log.

    Names are the path, such as ``client_work/train/loss`` and ``evaluation/loss``; the step is the round.

    Args:
        folder: where ``tensorboard --logdir`` looks.

    Raises:
        MissingExtraError: without tensorboardX.

    Example:
        >>> import tempfile
        >>> callback = TensorBoard(tempfile.mkdtemp())
    """

    folder: str | os.PathLike[str]

    @user_facing
    def __post_init__(self) -> None:
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise missing_extra("tensorboardX", "tensorboard") from error

    def __call__(self, event: Event) -> None:
        """Write the event's numbers."""
        if event.kind == "checkpoint":
            return
        prefix = "evaluation/" if event.kind == "evaluation" else ""
        for name, value in flat(event.metrics, prefix).items():
            if isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, event.round)

    @functools.cached_property
    def _writer(self) -> Any:
        from tensorboardX import SummaryWriter

        # It writes in a thread of its own: on disk a second later, and when the callback or the process ends.
        writer = SummaryWriter(os.fspath(self.folder), flush_secs=1)
        weakref.finalize(self, writer.close)
        return writer
