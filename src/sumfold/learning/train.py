"""The loop: training is a fold over rounds, kept on disk, shown, and stopped when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sized
from types import FrameType
from typing import Any, Literal

import jax
import numpy as np

from sumfold import tree
from sumfold.core.driver import State, recognise
from sumfold.core.round import Batch
from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.data.entries import read_part, unflatten
from sumfold.errors import (
    CheckpointError,
    CompositionError,
    DataError,
    SumfoldError,
    TypeMismatchError,
    user_facing,
)
from sumfold.learning import checkpoint as checkpoints
from sumfold.learning.ahead import Cohorts, is_policy, no_cohort
from sumfold.learning.callbacks import Callback, EarlyStopping, Event, TensorBoard
from sumfold.learning.evaluate_clients import evaluate_clients as measure_clients
from sumfold.learning.evaluate_clients import mean_over_clients, unlabelled
from sumfold.learning.history import History, entries, headline, measured, plain, scalars
from sumfold.learning.ifca import Clustered
from sumfold.learning.process import Process
from sumfold.learning.profile import Watch
from sumfold.learning.progress import shown
from sumfold.learning.rounds import Rounds, own
from sumfold.learning.sampling import Policy, described, uniform
from sumfold.models.host import HostModel
from sumfold.models.model import Model, describe, unpack
from sumfold.simulation.gang import Gang, gang_of

__all__ = ["check_counts", "evaluation", "train"]

_log = logging.getLogger("sumfold")


@user_facing
def train(
    process: Process,
    train: Any,
    *,
    rounds: int,
    clients_per_round: int | None = None,
    seed: int = 0,
    evaluate: Any = None,
    evaluate_clients: Any = None,
    evaluate_every: int = 1,
    cohorts: Policy | Iterable[Any] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1,
    callbacks: Iterable[Callback] = (),
    progress: bool = True,
    state: State | None = None,
) -> History:
    """Train for a number of rounds, and go on where an earlier call with the same checkpoint folder stopped.

    The same call gives the same bytes, whether it ran through or was killed and started again many times.
    Ctrl-C stops after the round, saved; a second Ctrl-C stops at once. Rounds of a model below 100,000 parameters may
    be computed up to 16 at a time where nothing looks at the state in between (callback, evaluation, checkpoint); then
    progress is shown, and Ctrl-C noticed, after so many.

    A large state (32 MiB and more) is written over by the next one where nobody else can need it: without callbacks of
    your own and without a function as `evaluate`, which may keep the states that they are shown, and with a checkpoint
    after every round or none. A `state` that you pass in stays usable.

    Args:
        process: the algorithm.
        train: client data, as `Process.next` takes it.
        rounds: how many in all; rounds that the checkpoint has, or that `state` has behind it, count.
        clients_per_round: how many are drawn, uniformly and without replacement; None is everybody.
        seed: everything random is a function of it.
        evaluate: a `Federation` (pooled), ``(x, y)`` or ``(x, y, example_weight)``, or
            ``fn(weights) -> dict``. Data is checked before the first round. It measures the server's weights.
        evaluate_clients: instead of `evaluate`, client data, with ids as in `train`: the mean over clients, weighted by
            their rows, of what each one's own weights reach on its own rows (`sumfold.learning.evaluate_clients`).
            For personalised algorithms; a client that has not taken part yet uses the server's weights.
        evaluate_every: rounds from one evaluation to the next; the last round is always followed by one.
        cohorts: instead of `clients_per_round`, a policy of `sumfold.sampling` or another ``fn(draw) -> ids``; or an
            iterable of id lists, one a round, from round 0.
        checkpoint: a folder of this run's own; made if needed. A run that differs is refused, in the first state too.
        checkpoint_every: rounds from one saved state to the next; the last one is always saved.
        callbacks: functions ``fn(event) -> None | "stop"``, see `sumfold.learning.callbacks`.
        progress: show a bar on a terminal, plain lines elsewhere; False prints nothing.
        state: where to begin instead of ``process.initialize(seed)``, whose seed then counts.

    Raises:
        DataError: for data that cannot be used, a cohort larger than the federation, too few cohorts.
        TypeMismatchError: for data, to train or to evaluate, that the model does not take.
        CompositionError: for another argument that cannot be used.
        CheckpointError: for a folder that holds another run, is damaged, in use, or cannot be written.
        StateError: for a `state` of another algorithm or model.

    Example:
        >>> import jax.numpy as jnp, numpy as np, optax, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     lambda key: jnp.float32(0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
        ... )
        >>> process = sf.learning.fed_avg(model, optax.sgd(0.1))
        >>> x = np.ones(2, np.float32)
        >>> history = sf.train(
        ...     process, {"a": (x, 2 * x), "b": (x, 2 * x)}, rounds=20, clients_per_round=1,
        ...     evaluate=(x, 2 * x), evaluate_every=10, progress=False,
        ... )
        >>> [entry["round"] for entry in history.evaluations]
        [9, 19]
        >>> round(float(process.get_model_weights(history.state)), 2)
        1.98
    """
    check_counts(rounds=(rounds, 0), evaluate_every=(evaluate_every, 1), checkpoint_every=(checkpoint_every, 1))
    listeners = _listeners(callbacks, evaluate if evaluate_clients is None else evaluate_clients)
    federation, _ = as_federation(train, None, {})
    _check_cohorts(federation, clients_per_round, cohorts, rounds)
    measure = evaluation(process, evaluate, evaluate_clients)
    spend = _unseen(listeners, evaluate) and (checkpoint is None or checkpoint_every == 1)
    begin = _first(process, seed, state, spend)
    chosen = cohorts if clients_per_round is None else uniform(clients_per_round)
    gang = gang_of(process.runtime)  # of many processes all train, and the first writes, shows and calls back

    with contextlib.ExitStack() as stack:
        history, keep, damaged = stack.enter_context(
            _disk(checkpoint, process, federation, begin, rounds, chosen, gang)
        )
        del begin  # of large models every state in memory counts: here the last one alone is held
        before = int(history.state.round)
        last = before if history.stopped else max(rounds, before)
        display = stack.enter_context(shown(last, before, progress and not gang.rank))
        for text in damaged:
            _warn(text, display.say)
        if history.metrics:
            display.say(f"{checkpoint} has {'all' if before == last else 'the first'} {before} rounds")
        interrupted = stack.enter_context(_interruptible(display.say, gang))
        watch = Watch(process, {"evaluation": evaluate_every, "checkpoint": checkpoint_every}, before)
        try:
            periods = [(1, listeners), (evaluate_every, measure), (checkpoint_every, checkpoint is not None)]
            upcoming = Cohorts(
                federation, chosen, history.state.seed, range(before, last), [n for n, needed in periods if needed]
            )
            ahead = stack.enter_context(Rounds(process, federation, upcoming, watch, spend))
            while upcoming.left:
                trained = _trained(ahead, history)
                done = int(trained.state.round)
                due = done % evaluate_every == 0 or done == last
                history = _evaluated(measure, trained, watch) if due else trained
                history = _told(listeners, "round_end", history, watch, gang)
                if history.stopped and not due:
                    history = _evaluated(measure, history, watch)
                if measure and (due or history.stopped):
                    history = _told(listeners, "evaluation", history, watch, gang)
                if interrupted() and not history.stopped:
                    history = dataclasses.replace(history, stopped="interrupted")
                # A stop is saved together with the round that it follows: no crash can come between the two.
                if checkpoint is not None and (history.stopped or done % checkpoint_every == 0 or done == last):
                    with watch.span("checkpoint"):
                        keep(history)
                    history = _told(listeners, "checkpoint", history, watch, gang)
                    with watch.span("checkpoint"):
                        keep(history)
                display.done(done, ahead.clients, _numbers(history))
                if history.stopped:
                    break
        except Exception:
            with contextlib.suppress(CheckpointError):
                keep(history)
            raise
    return dataclasses.replace(history, timing=watch.timing())


# -- some rounds


def _trained(rounds: Rounds, history: History) -> History:
    """The history with one round more, or with several that the engine computes at once."""
    state, metrics = rounds(history.state)
    return dataclasses.replace(history, state=state, metrics=[*history.metrics, *map(plain, metrics)])


def _evaluated(measure: Callable[[State], Any] | None, history: History, watch: Watch) -> History:
    if measure is None:
        return history
    number = int(history.state.round) - 1
    with watch.span("evaluation"):
        values = measure(history.state)
    try:
        entry = plain(dict(values))
    except (TypeError, ValueError) as error:
        raise CompositionError(
            "SF-TRAIN-008",
            f"the evaluation of round {number} returned a {type(values).__name__} ({error})",
            "a dict of numbers by name",
            'return for example {"accuracy": 0.9}',
        ) from error
    return dataclasses.replace(history, evaluations=[*history.evaluations, {"round": number} | measured(entry)])


def _told(
    listeners: list[Callback],
    kind: Literal["round_end", "evaluation", "checkpoint"],
    history: History,
    watch: Watch,
    gang: Gang,
) -> History:
    """The history, stopped if a callback asks for it; all callbacks are told."""
    if not listeners:
        return history
    if gang.rank:
        return dataclasses.replace(history, stopped="callback") if gang.told(b"") else history
    history = dataclasses.replace(history, timing=watch.timing())
    number = int(history.state.round) - 1
    metrics = measured(history.evaluations[-1]) if kind == "evaluation" else history.metrics[-1]
    with watch.span("callbacks"):
        answers = [callback(Event(kind, number, metrics, history, history.state)) for callback in listeners]
    for callback, answer in zip(listeners, answers, strict=True):
        if answer is not None and answer != "stop":
            raise CompositionError(
                "SF-TRAIN-011",
                f"the callback {getattr(callback, '__name__', callback)!s} returned {answer!r}",
                'None or "stop"',
                'return "stop" to end the run after this round, and nothing otherwise',
            )
    stop = gang.told(b"stop" if "stop" in answers else b"")
    return dataclasses.replace(history, stopped="callback") if stop else history


def _first(process: Process, seed: int, state: State | None, spend: bool) -> State:
    """The state before the first round; the run's own, if it is to be spent."""
    given = [process.initialize(seed) if state is None else recognise(process.round, process._template, state)]
    return own(process, given) if spend else given.pop()


def _unseen(listeners: list[Callback], evaluate: Any) -> bool:
    """Whether no function of the user's is shown a state, which it may keep."""
    return not callable(evaluate) and all(type(listener) in (EarlyStopping, TensorBoard) for listener in listeners)


# -- cohorts and evaluation


def _check_cohorts(federation: Federation, clients_per_round: Any, cohorts: Any, rounds: int) -> None:
    if clients_per_round is not None and cohorts is not None:
        raise DataError(
            "SF-TRAIN-003",
            f"clients_per_round={clients_per_round!r} and cohorts",
            "one of the two",
            "leave clients_per_round out: each list in cohorts says who takes part",
        )
    if clients_per_round is not None:
        whole = isinstance(clients_per_round, (int, np.integer)) and not isinstance(clients_per_round, bool)
        if not whole or not 1 <= clients_per_round <= len(federation):
            raise DataError(
                "SF-TRAIN-004",
                f"clients_per_round={clients_per_round!r} of a federation of {len(federation)} clients",
                f"a whole number from 1 to {len(federation)}",
                "ask for fewer, or leave it out for everybody",
            )
    if cohorts is None or is_policy(cohorts):
        return
    if isinstance(cohorts, (str, bytes)) or not isinstance(cohorts, Iterable):
        raise DataError(
            "SF-TRAIN-005",
            f"cohorts as a {type(cohorts).__name__}",
            "an iterable of id lists, one a round, or a policy fn(draw) -> ids",
            "pass for example [['a', 'b'], ['c']], or sf.sampling.poisson(0.1)",
        )
    if isinstance(cohorts, Sized) and len(cohorts) < rounds:
        raise no_cohort(len(cohorts), rounds)


def evaluation(process: Process, evaluate: Any, evaluate_clients: Any = None) -> Callable[[State], Any] | None:
    """State -> what was measured; data that the model does not take is refused now.

    Raises:
        CompositionError, DataError, TypeMismatchError: for what cannot be measured.
    """
    if evaluate is not None and evaluate_clients is not None:
        raise CompositionError(
            "SF-TRAIN-040",
            "evaluate and evaluate_clients",
            "one of the two, since their metrics have the same names",
            "leave one out: evaluate measures the server's weights, evaluate_clients each client's own",
        )
    if callable(evaluate):
        return lambda state: evaluate(process.get_model_weights(state))
    if evaluate is None and evaluate_clients is None:
        return None
    model, given = process.model, evaluate_clients if evaluate is None else evaluate
    if model is None:
        raise CompositionError(
            "SF-TRAIN-007",
            f"{'evaluate_clients' if evaluate is None else 'evaluate'} as a {type(given).__name__}, and "
            f"{process.round.name!r} has no model",
            "a model that can be evaluated",
            "read the result from the metrics, or watch the run with a callback",
        )
    if evaluate is None:
        return _of_clients(process, model, evaluate_clients)
    alone = hasattr(evaluate, "shape") and not process.labelled
    pooled = evaluate if alone or isinstance(evaluate, tuple) else as_federation(evaluate, None, {})[0].pooled()
    examples, rows = _examples(process, pooled, "evaluate: ")
    if not isinstance(model, HostModel):  # whose work cannot be traced, and who may take other dtypes
        if rows:
            _check_evaluation(model, examples, rows, "evaluate")
        examples = jax.tree.map(tree.canonical, examples)  # once, and not in each evaluation
    return lambda state: model.evaluate(process.get_model_weights(state), *examples)


def _of_clients(process: Process, model: Model, evaluate_clients: Any) -> Callable[[State], Any]:
    pair = (
        isinstance(evaluate_clients, tuple) and process.labelled and any(hasattr(a, "shape") for a in evaluate_clients)
    )
    if pair or callable(evaluate_clients) or evaluate_clients is True:
        raise DataError(
            "SF-TRAIN-041",
            f"evaluate_clients as {'a tuple of arrays' if pair else f'a {type(evaluate_clients).__name__}'}",
            "client data: a Federation, or a dict id -> examples, with the ids of the clients that train",
            "pass for example the second of train, test = federation.split(0.8); evaluate takes examples that belong "
            "to nobody, and functions",
        )
    data, _ = as_federation(evaluate_clients, None, {})
    holder = next((position for position, rows in enumerate(data.counts) if rows), None)
    if holder is not None:
        examples, rows = _examples(process, data.take(holder), "evaluate_clients: ")
        if not isinstance(model, HostModel):
            _check_evaluation(model.one if isinstance(model, Clustered) else model, examples, rows, "evaluate_clients")
    return lambda state: mean_over_clients(measure_clients(process, state, data))


def _examples(process: Process, given: Any, where: str) -> tuple[tuple[Any, Any, Any], int]:
    """(x, y, weight or None) as arrays, and how many rows."""
    given = given if process.labelled else unlabelled(given)
    unpack(given)
    part = read_part(given, where)
    return unpack(unflatten(part.structure, part.leaves)), part.rows


def _check_evaluation(model: Model, examples: tuple[Any, Any, Any], rows: int, argument: str) -> None:
    """Trace the evaluation, on shapes alone."""
    shapes = jax.tree.map(
        lambda a: tree.shape(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)),
        examples[:2] if examples[2] is None else examples,
    )
    try:
        jax.eval_shape(model.measure, model.template, Batch(shapes, tree.shape((rows,), bool)))
    except SumfoldError:
        raise
    except Exception as error:
        words = [line for line in str(error).splitlines() if line.strip()]
        raise TypeMismatchError(
            "SF-TRAIN-013",
            f"{argument} of x {describe(shapes[0])} and y {describe(shapes[1])}, on which {model.name} failed: "
            f"{type(error).__name__}: {words[0].strip() if words else ''}",
            "examples of the shapes that the model, its loss and its metrics take",
            "give the test data the columns of the training data; the model's own error is shown before this one",
        ) from error


# -- the checkpoint folder


@contextlib.contextmanager
def _disk(
    checkpoint: str | os.PathLike[str] | None,
    process: Process,
    federation: Federation,
    begin: State,
    rounds: int,
    chosen: Any,
    gang: Gang,
) -> Iterator[tuple[History, Callable[[History], None], list[str]]]:
    """The history so far, a function that saves what is not saved yet, and what was damaged."""
    made, damaged = [History(begin, [], [])], list[str]()  # handed over, not held: it has the first state
    if checkpoint is None:
        del begin
        yield made.pop(), lambda _: None, damaged
        return
    if gang.rank:
        saved = checkpoints.unpacked(gang.told(b""))
        if saved is not None:
            process._go_on(saved.engine)
            made = [_restored(process, saved, rounds)]
        del begin, saved
        yield made.pop(), lambda _: None, damaged
        return
    with checkpoints.folder(checkpoint) as here:
        drawn = described(chosen) if is_policy(chosen) else "everybody" if chosen is None else "given by cohorts"
        mine = checkpoints.identity(process, federation, begin, drawn)
        saved = checkpoints.resume(here, mine, damaged.append)
        if gang.size > 1:  # the folder may be one of this machine alone
            gang.told(checkpoints.packed(saved))
        if saved is not None:
            made = [_restored(process, saved, rounds)]
            damaged += process._go_on(saved.engine)
        log, stopped = saved.log if saved else checkpoints.Log(), made[0].stopped

        def keep(history: History) -> None:
            nonlocal log, stopped
            if len(history.metrics) > log.lines or history.stopped != stopped:
                new, stopped_before = entries(history, log.lines), rounds if history.stopped == "callback" else 0
                log = checkpoints.save(here, log, history.state, new, mine, stopped_before, process._engine)
                stopped = history.stopped

        del begin, saved
        yield made.pop(), keep, damaged


def _restored(process: Process, saved: checkpoints.Saved, rounds: int) -> History:
    return History(
        recognise(process.round, process._template, saved.state),
        [entry["metrics"] for entry in saved.entries],
        [{"round": e["round"], **e["evaluation"]} for e in saved.entries if e["evaluation"] is not None],
        "callback" if saved.stopped_before >= max(rounds, 1) else None,
    )


# -- callbacks, messages and Ctrl-C


def _listeners(callbacks: Any, evaluate: Any) -> list[Callback]:
    listed = [callbacks] if callable(callbacks) else list(callbacks)
    for callback in listed:
        if not callable(callback):
            raise CompositionError(
                "SF-TRAIN-009",
                f"a {type(callback).__name__} among the callbacks",
                'fn(event) -> None | "stop"',
                "pass functions, or objects of sumfold.callbacks",
            )
        if isinstance(callback, EarlyStopping) and evaluate is None:
            raise CompositionError(
                "SF-TRAIN-010",
                f"{callback} and no evaluation",
                "evaluations to watch",
                "pass evaluate=test",
            )
    return listed


def _numbers(history: History) -> str:
    """The numbers of the last round and the last evaluation, in words."""
    trained = headline(history.metrics[-1])
    last = history.evaluations[-1] if history.evaluations else {}
    evaluated = scalars(last) if last.get("round") == int(history.state.round) - 1 else {}
    groups = [("", trained), ("evaluation: ", evaluated)]
    return "  ".join(
        title + "  ".join(f"{name} {value:.4g}" for name, value in group.items()) for title, group in groups if group
    )


def _warn(text: str, say: Callable[[str], None]) -> None:
    """Log a warning, and show it where the log is not on the screen already."""
    _log.warning("%s", text)
    if _log.hasHandlers():
        say(text)


@contextlib.contextmanager
def _interruptible(say: Callable[[str], None], gang: Gang) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; a second one raises KeyboardInterrupt. Only in the main thread.

    Of many processes all stop after the same round, whichever of them it was pressed in.
    """
    main = threading.current_thread() is threading.main_thread()
    previous = signal.getsignal(signal.SIGINT) if main else None
    if previous is None or previous is signal.SIG_IGN:
        yield lambda: gang.stopping
        return
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        del frame
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        gang.ask_to_stop()
        with contextlib.suppress(RuntimeError):  # the signal came in the middle of a print
            say("stopping after this round; Ctrl-C again stops at once")

    signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: gang.stopping
    finally:
        signal.signal(signal.SIGINT, previous)
        gang.ask_to_stop(False)


def check_counts(**numbers: tuple[Any, int]) -> None:
    """Refuse what is no whole number of at least its least: ``check_counts(rounds=(rounds, 0))``.

    Raises:
        CompositionError: naming the first such.
    """
    for name, (value, least) in numbers.items():
        if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < least:
            raise CompositionError(
                "SF-TRAIN-012",
                f"{name}={value!r}",
                f"a whole number of at least {least}",
                f"pass for example {name}=10",
            )
