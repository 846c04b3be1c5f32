"""The loop: cohorts, evaluation, resuming, stopping, and what it shows."""

import dataclasses
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import keys
from sumfold.learning import progress
from sumfold.learning.process import Process
from sumfold.learning.train import train

loop = sys.modules["sumfold.learning.train"]  # the package's attribute of this name is the function

WEIGHTS = np.array([1.0, 2.0, 3.0], np.float32)


def client(number: int) -> tuple[Any, Any]:
    x = np.random.default_rng(number).normal(size=(5 + number, 3)).astype(np.float32)
    return x, x @ WEIGHTS


FEDERATION = sf.Federation.from_clients({name: client(i) for i, name in enumerate("abcdef")})
TEST = client(99)


def linear(rate: float = 0.02) -> Process:
    model = sf.models.from_functions(
        lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
    )
    return sf.learning.fed_avg(model, optax.sgd(rate), optax.adam(0.1), batching=sf.Batching(size=4))


@pytest.fixture(scope="module")
def process() -> Process:
    return linear()


def run(process: Process, **options: Any) -> sf.History:
    return train(process, FEDERATION, **{"rounds": 4, "progress": False, **options})


def same(a: sf.History, b: sf.History) -> bool:
    leaves = zip(jax.tree.leaves(a.state), jax.tree.leaves(b.state), strict=True)
    states = all(np.array_equal(x, y) for x, y in leaves)
    return states and (a.metrics, a.evaluations) == (b.metrics, b.evaluations)


# -- rounds and cohorts


def test_the_loop_is_a_fold_of_next(process: Process) -> None:
    history = run(process, seed=3)
    state = process.initialize(seed=3)
    for metrics in history.metrics:
        state, expected = process.next(state, FEDERATION)
        assert metrics == expected
    assert int(history.state.round) == 4
    assert np.array_equal(process.get_model_weights(state), process.get_model_weights(history.state))
    assert history.evaluations == []
    assert history.stopped is None


def test_a_cohort_is_drawn_without_replacement_from_seed_and_round_alone(process: Process) -> None:
    history = run(process, clients_per_round=3, seed=7)
    for number, metrics in enumerate(history.metrics):
        drawn = keys.generator(keys.root(7), purpose="cohort", round=number).choice(6, 3, replace=False, shuffle=False)
        assert metrics["client_work"]["train"]["num_examples"] == sum(5 + i for i in drawn.tolist())
        assert metrics["client_work"]["train"]["num_clients"] == 3
    assert same(history, run(process, clients_per_round=3, seed=7))
    assert not same(history, run(process, clients_per_round=3, seed=8))


def test_every_client_is_drawn_as_often_as_any_other(process: Process) -> None:
    draws = [keys.generator(keys.root(0), purpose="cohort", round=r) for r in range(3000)]
    counts = np.bincount(np.concatenate([g.choice(6, 2, replace=False, shuffle=False) for g in draws]), minlength=6)
    assert counts.min() > 900
    assert counts.max() < 1100


def test_the_caller_chooses_cohorts(process: Process, tmp_path: Path) -> None:
    cohorts = [["a"], ["b", "c"], [], ["f"]]
    history = run(process, cohorts=iter(cohorts))
    counted = [m["client_work"]["train"]["num_clients"] for m in history.metrics]
    assert counted == [1, 2, 0, 1]
    run(process, cohorts=cohorts, rounds=2, checkpoint=tmp_path)
    assert same(history, run(process, cohorts=iter(cohorts), checkpoint=tmp_path))


def test_mappings_and_sequences_are_client_data(process: Process) -> None:
    data = {name: client(i) for i, name in enumerate("abcdef")}
    assert same(train(process, data, rounds=2, progress=False), run(process, rounds=2))
    assert len(train(process, [client(0)], rounds=1, progress=False).metrics) == 1


def test_a_state_can_be_passed_in(process: Process) -> None:
    whole = run(process, clients_per_round=2)
    half = run(process, clients_per_round=2, rounds=2)
    rest = run(process, clients_per_round=2, state=half.state)
    assert np.array_equal(process.get_model_weights(rest.state), process.get_model_weights(whole.state))
    assert rest.first == 2
    assert rest.metrics == whole.metrics[2:]


def test_no_rounds_give_the_first_state(process: Process) -> None:
    assert same(run(process, rounds=0), sf.History(process.initialize(0), [], []))


@pytest.mark.parametrize(
    ("options", "error", "code", "words"),
    [
        ({"clients_per_round": 7}, sf.DataError, "SF-TRAIN-004", "clients_per_round=7 of a federation of 6 clients"),
        ({"clients_per_round": 0}, sf.DataError, "SF-TRAIN-004", "from 1 to 6"),
        ({"clients_per_round": True}, sf.DataError, "SF-TRAIN-004", "True"),
        ({"clients_per_round": 2, "cohorts": [["a"]]}, sf.DataError, "SF-TRAIN-003", "one of the two"),
        ({"cohorts": [["a"]]}, sf.DataError, "SF-TRAIN-006", "cohorts end before round 1"),
        ({"cohorts": iter([["a"]])}, sf.DataError, "SF-TRAIN-006", "cohorts end before round 1"),
        ({"cohorts": [["z"]] * 4}, sf.DataError, "SF-DATA-011", "no client 'z'"),
        ({"rounds": -1}, sf.CompositionError, "SF-TRAIN-012", "rounds=-1"),
        ({"evaluate_every": 0}, sf.CompositionError, "SF-TRAIN-012", "evaluate_every=0"),
        ({"checkpoint_every": True}, sf.CompositionError, "SF-TRAIN-012", "checkpoint_every=True"),
        ({"evaluate": lambda weights: 3}, sf.CompositionError, "SF-TRAIN-008", "round 0 returned a int"),
        ({"evaluate": lambda weights: {"a": object()}}, sf.CompositionError, "SF-TRAIN-008", "a dict of numbers"),
        ({"callbacks": [lambda event: True]}, sf.CompositionError, "SF-TRAIN-011", "returned True"),
    ],
)
def test_bad_arguments_are_refused(
    process: Process, options: dict[str, Any], error: type[sf.SumfoldError], code: str, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        run(process, **options)
    assert caught.value.code == code


def test_arguments_of_another_type_are_refused() -> None:
    # What the annotations say is checked before, when the suite's own type checks are on.
    with pytest.raises(sf.DataError, match="cohorts as a int") as cohorts:
        loop._check_cohorts(FEDERATION, None, 3, 4)
    assert cohorts.value.code == "SF-TRAIN-005"
    with pytest.raises(sf.CompositionError, match="a int among the callbacks") as callbacks:
        loop._listeners([3], None)
    assert callbacks.value.code == "SF-TRAIN-009"


def test_evaluating_data_needs_a_model(process: Process) -> None:
    with pytest.raises(sf.CompositionError, match="has no model") as caught:
        run(dataclasses.replace(process, model=None), evaluate=TEST)
    assert caught.value.code == "SF-TRAIN-007"


# -- evaluation


def test_evaluation_comes_every_so_often_and_after_the_last_round(process: Process) -> None:
    history = run(process, rounds=5, evaluate=TEST, evaluate_every=2)
    assert [entry["round"] for entry in history.evaluations] == [1, 3, 4]
    expected = process.model.evaluate(process.get_model_weights(history.state), *TEST)
    assert history.evaluations[-1] == {"round": 4, **expected}


def test_a_federation_is_evaluated_pooled(process: Process) -> None:
    pooled = run(process, rounds=1, evaluate=FEDERATION.pooled()).evaluations
    assert pooled[0]["num_examples"] == 45
    assert run(process, rounds=1, evaluate=FEDERATION).evaluations == pooled
    assert run(process, rounds=1, evaluate=[client(i) for i in range(6)]).evaluations == pooled


def test_lists_are_evaluated(process: Process) -> None:
    listed = run(process, rounds=1, evaluate=(TEST[0].tolist(), TEST[1].tolist()))
    assert listed.evaluations == run(process, rounds=1, evaluate=TEST).evaluations
    weighted = run(process, rounds=1, evaluate=(*TEST, [1.0] * len(TEST[1])))
    assert weighted.evaluations == listed.evaluations


@pytest.mark.parametrize(
    ("evaluate", "error", "code", "words"),
    [
        ((TEST[0], TEST[1][1:]), sf.DataError, "SF-DATA-003", "evaluate: x has 104 rows and y has 103"),
        ((*TEST, np.ones(3)), sf.DataError, "SF-DATA-003", "weight has 3"),
        ((TEST[0][:, :2], TEST[1]), sf.TypeMismatchError, "SF-TRAIN-013", r"evaluate of x float32\[104, 2\]"),
        (([[1.0, 2.0, 3.0], [4.0]], [1.0, 2.0]), sf.DataError, "SF-DATA-009", "evaluate: x is a list"),
        ((TEST[0], ["a"] * 104), sf.DataError, "SF-DATA-007", "evaluate: y has dtype"),
        (TEST[:1], sf.DataError, "SF-DATA-051", "client examples as a tuple"),
    ],
)
def test_data_to_evaluate_is_checked_before_the_first_round(
    process: Process,
    evaluate: Any,
    error: type[sf.SumfoldError],
    code: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Process, "next", None)
    with pytest.raises(error, match=words) as caught:
        run(process, evaluate=evaluate)
    assert caught.value.code == code
    assert "train.py" not in [Path(entry.path).name for entry in caught.traceback]  # it ends at the caller's line


def test_a_loss_that_is_not_per_example_is_named_before_the_first_round() -> None:
    model = sf.models.from_functions(lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda o, y: ((o - y) ** 2).mean())
    with pytest.raises(sf.SumfoldError, match="the loss"):
        run(sf.learning.fed_avg(model, optax.sgd(0.1)), evaluate=TEST)


def test_no_rows_to_evaluate_are_no_error(process: Process) -> None:
    history = run(process, rounds=1, evaluate=(TEST[0][:0], TEST[1][:0]))
    assert history.evaluations == [{"round": 0, "loss": 0.0, "num_examples": 0}]


def test_a_function_evaluates_the_weights(process: Process) -> None:
    history = run(process, evaluate=lambda w: {"norm": jnp.sum(w), "parts": {"first": np.float64(w[0])}})
    assert [entry["round"] for entry in history.evaluations] == [0, 1, 2, 3]
    assert isinstance(history.evaluations[0]["norm"], float)
    json.dumps(history.evaluations)


# -- going on


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_in_pieces_is_the_whole_run(process: Process, tmp_path: Path, every: int) -> None:
    options = {"clients_per_round": 3, "evaluate": TEST, "evaluate_every": 1, "checkpoint_every": every}
    whole = run(process, rounds=6, checkpoint=tmp_path / "whole", **options)
    for rounds in (2, 3, 6):
        pieces = run(linear(), rounds=rounds, checkpoint=tmp_path / "pieces", **options)
    assert same(whole, pieces)
    name = "round-00000006.safetensors"
    for file in (name, "history.jsonl"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "pieces" / file).read_bytes()


def test_a_finished_run_trains_nothing(process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(process, evaluate=TEST, checkpoint=tmp_path)
    monkeypatch.setattr(Process, "next", None)
    assert same(whole, run(process, evaluate=TEST, checkpoint=tmp_path))
    fewer = run(process, rounds=2, evaluate=TEST, checkpoint=tmp_path)
    assert same(whole, fewer)
    assert jax.tree.structure(fewer.state) == jax.tree.structure(whole.state)


def test_an_error_in_a_round_loses_no_round_before_it(process: Process, tmp_path: Path) -> None:
    cohorts = [["a"], ["b"], ["z"], ["c"]]
    with pytest.raises(sf.DataError, match="'z'"):
        run(process, cohorts=cohorts, checkpoint=tmp_path, checkpoint_every=10)
    cohorts[2] = ["d"]
    history = run(process, cohorts=cohorts, checkpoint=tmp_path, checkpoint_every=10)
    assert same(history, run(process, cohorts=cohorts))


# -- Ctrl-C


def test_ctrl_c_stops_after_the_round_saved(process: Process, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(event: Any) -> None:
        if event.kind == "round_end" and event.round == 1:
            os.kill(os.getpid(), signal.SIGINT)

    history = run(process, checkpoint=tmp_path, callbacks=[press], checkpoint_every=10, evaluate=TEST, evaluate_every=3)
    assert history.stopped == "interrupted"
    assert len(history.metrics) == 2
    assert signal.getsignal(signal.SIGINT) is before
    rest = run(process, checkpoint=tmp_path, checkpoint_every=10, evaluate=TEST, evaluate_every=3)
    assert rest.stopped is None
    assert same(rest, run(process, evaluate=TEST, evaluate_every=3))


def test_a_second_ctrl_c_stops_at_once(process: Process, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)

    def press(event: Any) -> None:
        if event.round == 2 and event.kind == "round_end":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(process, checkpoint=tmp_path, callbacks=[press])
    assert signal.getsignal(signal.SIGINT) is before
    assert same(run(process, checkpoint=tmp_path), run(process))


def test_other_threads_leave_signals_alone(process: Process) -> None:
    results: list[sf.History] = []
    thread = threading.Thread(target=lambda: results.append(run(process, rounds=1)))
    thread.start()
    thread.join()
    assert len(results[0].metrics) == 1


# -- what is shown


def test_plain_lines_without_a_terminal(process: Process, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run(process, rounds=60, progress=True, evaluate=TEST, evaluate_every=60, checkpoint=tmp_path)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 20
    assert lines[0].startswith("round 3/60  loss ")
    assert lines[-1].startswith("round 60/60  loss ")
    assert "evaluation: loss" in lines[-1]
    assert all("clients/s" in line for line in lines)
    assert "\x1b" not in err
    run(process, rounds=60, progress=True, evaluate=TEST, evaluate_every=60, checkpoint=tmp_path)
    assert "has all 60 rounds" in capsys.readouterr().err


def test_rounds_that_were_trained_at_once_are_shown_together(
    process: Process, capsys: pytest.CaptureFixture[str]
) -> None:
    run(process, rounds=100, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == [f"{n}/100" for n in (7, 15, 31, 47, 63, 79, 95, 100)]
    assert all("loss" in line and "clients/s" in line for line in lines)


def test_no_progress_prints_nothing(process: Process, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for _ in range(2):
        run(process, rounds=2, checkpoint=tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_bar_on_a_terminal(
    process: Process, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    run(process, rounds=2, progress=True)
    err = capsys.readouterr().err
    assert "━" in err
    assert "round 2/2" in err
    assert "clients/s" in err


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (progress._clock, 3.2, "0:03"),
        (progress._clock, 75.0, "1:15"),
        (progress._clock, 3725.0, "1:02:05"),
        (progress._short, 0.1234, "0.12"),
        (progress._short, 12345.6, "12,346"),
    ],
)
def test_numbers_are_short(function: Callable[[float], str], value: float, text: str) -> None:
    assert function(value) == text


def test_a_damaged_checkpoint_is_logged_and_shown(
    process: Process, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(process, checkpoint=tmp_path)
    newest = tmp_path / "round-00000004.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:-10])
    with caplog.at_level(logging.WARNING, "sumfold"):
        assert same(run(process, checkpoint=tmp_path, progress=True), whole)
    assert "round-00000004.safetensors is damaged" in caplog.text
    assert "going on from the older checkpoint round-00000003.safetensors" in capsys.readouterr().err.replace("\n", " ")
    assert newest.read_bytes() == content
