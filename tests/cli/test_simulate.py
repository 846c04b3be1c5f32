"""``sumfold simulate``: jobs that train, jobs that fail, and wrong use, each with its exit code."""

import json
import signal
import time

import pytest

import sumfold as sf
from sumfold.cli.simulate import _value

from .conftest import program


def one_line(result) -> str:
    """The last line of standard error: the error itself."""
    return result.stderr.strip().splitlines()[-1]


def test_trains_and_shows_the_last_round(sumfold, job) -> None:
    result = sumfold("simulate", job, "--rounds", 3)
    assert result.exit_code == 0
    assert "after 3 rounds" in result.stdout
    assert "test" in result.stdout
    assert "loss" in result.stdout


def test_json_is_alone_on_stdout(sumfold, job) -> None:
    result = sumfold("simulate", job, "--rounds", 2, "--json", "--set", "clients=5")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["rounds"] == 2
    assert found["stopped"] is None
    assert found["metrics"]["client_work"]["train"]["num_clients"] == 5
    assert found["evaluation"]["round"] == 1
    assert "the job's own print" in result.stderr


def test_options_reach_training(sumfold, job) -> None:
    words = ("--rounds", 1, "--clients-per-round", 2, "--seed", 3, "--set", "learning_rate=0.0", "--json")
    found = json.loads(sumfold("simulate", job, *words).stdout)
    assert found["metrics"]["client_work"]["train"]["num_clients"] == 2
    assert found["evaluation"]["loss"] == 4.0


def test_files(sumfold, job, tmp_path) -> None:
    out = tmp_path / "runs" / "one"
    result = sumfold("simulate", f"{job}:build", "--rounds", 2, "--out", out)
    assert result.exit_code == 0
    assert {path.name for path in out.iterdir()} == {"curve.png", "history.json", "weights.safetensors"}
    assert json.loads((out / "history.json").read_text())["rounds"] == 2
    assert 0 < float(sf.load(out / "weights.safetensors")) < 2


def test_a_checkpoint_goes_on(sumfold, job, tmp_path) -> None:
    words = ("simulate", job, "--checkpoint", tmp_path / "kept", "--json", "--rounds")
    assert json.loads(sumfold(*words, 2).stdout)["rounds"] == 2
    assert json.loads(sumfold(*words, 3).stdout)["rounds"] == 3
    refused = sumfold(*words, 3, "--seed", 1)
    assert refused.exit_code == 1
    assert json.loads(refused.stdout)["error"]["code"].startswith("SF-CKPT-")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("0.5", 0.5), ("True", True), ("false", False), ("adam", "adam"), ("'1'", "1"), ("[1, 2]", [1, 2])],
)
def test_settings_are_python_literals(text, value) -> None:
    assert _value(text) == value
    assert type(_value(text)) is type(value)


@pytest.mark.parametrize(
    ("function", "words", "code", "said"),
    [
        ("", ("--set", "rate=1"), "SF-CLI-004", "learning_rate=0.1, clients: int = 3"),
        ("", ("--set", "rate"), "SF-CLI-003", "name=value"),
        (":needs", (), "SF-CLI-005", "no value for data"),
        (":absent", (), "SF-CLI-007", "'build'"),
        (":number", (), "SF-CLI-008", "number returned a value of type int"),
        (":pair", (), "SF-CLI-008", "pair returned (int, list)"),
    ],
)
def test_wrong_use(sumfold, job, function, words, code, said) -> None:
    result = sumfold("simulate", f"{job}{function}", *words)
    assert result.exit_code == 2
    assert said in one_line(result)
    assert one_line(result).endswith(f"[{code}]")
    assert "Traceback" not in result.stderr


def test_files_that_are_no_job(sumfold, tmp_path) -> None:
    assert "SF-CLI-002" in sumfold("simulate", tmp_path / "absent.py").stderr
    (tmp_path / "job.txt").write_text("")
    result = sumfold("simulate", tmp_path / "job.txt")
    assert result.exit_code == 2
    assert "SF-CLI-006" in result.stderr


@pytest.mark.parametrize("words", [("--rounds", "0"), ("--seed", "x"), ("--set",)])
def test_wrong_options(sumfold, job, words) -> None:
    assert sumfold("simulate", job, *words).exit_code == 2
    assert sumfold("simulate").exit_code == 2


def test_errors_of_sumfold_name_the_users_line(sumfold, job) -> None:
    result = sumfold("simulate", f"{job}:silly")
    assert result.exit_code == 1
    assert one_line(result).startswith("job.py, line ")
    assert "SF-COMP-" in one_line(result)
    assert "Traceback" not in result.stderr
    data = sumfold("simulate", f"{job}:words", "--json")
    assert data.exit_code == 1
    assert json.loads(data.stdout)["error"]["code"].startswith("SF-DATA-")


@pytest.mark.parametrize(
    ("function", "said"),
    [("crash", "ZeroDivisionError"), ("leave", "SystemExit"), ("late", "RuntimeError: only in training")],
)
def test_a_job_that_raises_shows_its_own_traceback(sumfold, job, function, said) -> None:
    result = sumfold("simulate", f"{job}:{function}", "--json")
    assert result.exit_code == 1
    assert said in result.stderr
    assert f"in {function}" in result.stderr or function == "late"
    assert "simulate.py" not in result.stderr.partition("job.py")[0]
    assert "error" in json.loads(result.stdout)


def test_a_file_that_is_not_python(sumfold, tmp_path) -> None:
    (tmp_path / "job.py").write_text("def build(:\n")
    result = sumfold("simulate", tmp_path / "job.py")
    assert result.exit_code == 1
    assert "SyntaxError" in result.stderr
    assert "importlib" not in result.stderr


def test_interrupted_is_saved(job, tmp_path) -> None:
    words = ("simulate", job, "--rounds", 1_000_000, "--out", tmp_path / "out", "--checkpoint", tmp_path / "kept")
    running = program(*words, "--set", "clients=1", folder=tmp_path)
    assert running.stdout is not None
    try:
        assert "the job's own print" in running.stdout.readline()
        while not list((tmp_path / "kept").glob("round-*")):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        printed, _ = running.communicate(timeout=60)
    finally:
        running.kill()  # also where it did not end: a million rounds would take the cores from all later tests
    assert running.returncode == 130
    assert "Interrupted after" in printed
    assert json.loads((tmp_path / "out" / "history.json").read_text())["stopped"] == "interrupted"
