"""Callbacks: what they are told, how they stop a run, and the two that ship."""

import builtins
import gc
import struct
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning.callbacks import EarlyStopping, Event, TensorBoard
from sumfold.learning.process import Process
from sumfold.learning.train import train

DATA = [(np.ones((2, 1), np.float32), np.full(2, 2.0, np.float32))]


@pytest.fixture(scope="module")
def process() -> Process:
    model = sf.models.from_functions(lambda key: jnp.zeros(1), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
    return sf.learning.fed_avg(model, optax.sgd(0.1))


def run(process: Process, **options: Any) -> sf.History:
    return train(process, DATA, **{"rounds": 6, "progress": False, **options})


def seesaw(losses: list[float]) -> Any:
    """An evaluation that gives these losses in turn; the round is told by the history's length."""
    remaining = iter(losses)
    return lambda weights: {"loss": next(remaining)}


def test_events_come_in_order_and_hold_the_history_so_far(process: Process, tmp_path: Path) -> None:
    events: list[Event] = []
    history = run(
        process,
        rounds=4,
        evaluate=DATA,
        evaluate_every=2,
        checkpoint=tmp_path,
        checkpoint_every=4,
        callbacks=[events.append],
    )
    assert [(event.kind, event.round) for event in events] == [
        ("round_end", 0),
        ("round_end", 1),
        ("evaluation", 1),
        ("round_end", 2),
        ("round_end", 3),
        ("evaluation", 3),
        ("checkpoint", 3),
    ]
    assert [len(event.history.metrics) for event in events] == [1, 2, 2, 3, 4, 4, 4]
    assert [len(event.history.evaluations) for event in events] == [0, 1, 1, 1, 2, 2, 2]
    assert events[0].metrics == history.metrics[0]
    assert events[2].metrics == {k: v for k, v in history.evaluations[0].items() if k != "round"}
    assert all(int(event.state.round) == event.round + 1 for event in events)


@pytest.mark.parametrize("kind", ["round_end", "evaluation", "checkpoint"])
def test_a_callback_stops_the_run_and_the_folder_knows(process: Process, tmp_path: Path, kind: str) -> None:
    def stop(event: Event) -> str | None:
        return "stop" if event.kind == kind and event.round == 2 else None

    options = {"evaluate": DATA, "evaluate_every": 3, "checkpoint": tmp_path, "checkpoint_every": 3}
    stopped = run(process, callbacks=[stop], **options)
    assert stopped.stopped == "callback"
    assert len(stopped.metrics) == 3
    assert [entry["round"] for entry in stopped.evaluations] == [2]
    again = run(process, **options)
    assert (again.metrics, again.stopped) == (stopped.metrics, "callback")
    further = run(process, rounds=7, **options)
    assert (len(further.metrics), further.stopped) == (7, None)
    assert further.metrics == run(process, rounds=7).metrics


def test_a_stop_is_the_last_round_and_evaluated(process: Process) -> None:
    history = run(
        process, evaluate=DATA, evaluate_every=5, callbacks=[lambda event: "stop" if event.round == 1 else None]
    )
    assert [entry["round"] for entry in history.evaluations] == [1]


def test_all_callbacks_are_told(process: Process) -> None:
    seen: list[int] = []
    run(process, callbacks=[lambda event: "stop", lambda event: seen.append(event.round)])
    assert seen == [0]


def test_a_callback_that_raises_loses_nothing(process: Process, tmp_path: Path) -> None:
    def fail(event: Event) -> None:
        if event.round == 2:
            raise RuntimeError("disk of the callback")

    with pytest.raises(RuntimeError, match="disk of the callback"):
        run(process, checkpoint=tmp_path, checkpoint_every=10, evaluate=DATA, evaluate_every=3, callbacks=[fail])
    assert (tmp_path / "round-00000003.safetensors").exists()
    history = run(process, checkpoint=tmp_path, checkpoint_every=10, evaluate=DATA, evaluate_every=3)
    assert history.metrics == run(process).metrics
    assert [entry["round"] for entry in history.evaluations] == [2, 5]


# -- EarlyStopping


@pytest.mark.parametrize(
    ("rule", "series", "stops"),
    [
        (EarlyStopping(patience=1), [3.0], False),
        (EarlyStopping(patience=1), [3.0, 3.0], True),
        (EarlyStopping(patience=2), [3.0, 4.0, 2.0, 2.5], False),
        (EarlyStopping(patience=2), [3.0, 2.0, 2.5, 2.5], True),
        (EarlyStopping(patience=1, mode="max"), [0.5, 0.6], False),
        (EarlyStopping(patience=1, mode="max"), [0.5, 0.4], True),
        (EarlyStopping(patience=1, min_delta=0.1), [1.0, 0.95], True),
        (EarlyStopping(patience=2), [float("nan"), float("nan")], True),
        (EarlyStopping(patience=2), [], False),
    ],
)
def test_patience(rule: EarlyStopping, series: list[float], stops: bool) -> None:
    assert rule.exhausted(series) is stops


def test_early_stopping_ends_a_run(process: Process) -> None:
    history = run(process, evaluate=seesaw([3, 2, 2.5, 2.6, 1, 1]), callbacks=[EarlyStopping(patience=2)])
    assert (history.stopped, len(history.metrics)) == ("callback", 4)


def test_a_resumed_run_stops_where_it_would_have(process: Process, tmp_path: Path) -> None:
    rule = EarlyStopping(patience=2)
    run(process, rounds=3, evaluate=seesaw([3, 2, 2.5]), checkpoint=tmp_path, callbacks=[rule])
    rest = run(process, evaluate=seesaw([2.6, 1, 1]), checkpoint=tmp_path, callbacks=[rule])
    assert (rest.stopped, len(rest.metrics)) == ("callback", 4)


def test_losses_that_are_no_numbers_stop_a_resumed_run_too(process: Process, tmp_path: Path) -> None:
    rule, nan = EarlyStopping(patience=2), float("nan")
    run(process, rounds=2, evaluate=seesaw([3, nan]), checkpoint=tmp_path, callbacks=[rule])
    rest = run(process, evaluate=seesaw([nan, 1, 1]), checkpoint=tmp_path, callbacks=[rule])
    assert (rest.stopped, len(rest.metrics)) == ("callback", 3)


def test_early_stopping_refuses_what_it_cannot_watch(process: Process) -> None:
    with pytest.raises(sf.CompositionError, match="SF-TRAIN-001"):
        EarlyStopping(patience=0)
    with pytest.raises(sf.CompositionError, match="mode 'min' or 'max'"):
        EarlyStopping(min_delta=-1)
    with pytest.raises(sf.CompositionError, match="no evaluation") as caught:
        run(process, callbacks=[EarlyStopping()])
    assert caught.value.code == "SF-TRAIN-010"
    with pytest.raises(sf.CompositionError, match=r"monitor='auc'.*'loss'") as caught:
        run(process, evaluate=DATA, callbacks=[EarlyStopping("auc")])
    assert caught.value.code == "SF-TRAIN-002"


# -- TensorBoard


def written(folder: Path) -> list[tuple[str, int, float]]:
    """(name, step, value) of every scalar in the event files: records of length, checksum, content, checksum."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 16 + length
    return found


def test_tensorboard_gets_every_number(process: Process, tmp_path: Path) -> None:
    history = run(process, rounds=2, evaluate=DATA, evaluate_every=2, callbacks=[TensorBoard(tmp_path)])
    gc.collect()  # the callback ends here, and with it its file
    scalars = {(name, step): value for name, step, value in written(tmp_path)}
    for number in range(2):
        expected = history.metrics[number]["client_work"]["train"]["loss"]
        assert scalars["client_work/train/loss", number] == pytest.approx(expected)
    assert scalars["evaluation/loss", 1] == pytest.approx(history.evaluations[0]["loss"])
    assert ("evaluation/loss", 0) not in scalars
    assert "evaluation/round" not in {name for name, _ in scalars}


def test_tensorboard_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(sf.MissingExtraError, match=r"sumfold\[tensorboard\]"):
        TensorBoard(tmp_path)
