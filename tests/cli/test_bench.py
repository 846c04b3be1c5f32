"""``sumfold bench``: a small measurement, its lines and its page, and wrong use."""

import json
import sys
import time
from pathlib import Path

import pytest

from sumfold.bench import measure, peers
from sumfold.bench.peers import CONTESTANTS


def one_line(result) -> str:
    """The last line of standard error: the error itself."""
    return " ".join(result.stderr.strip().splitlines()[-1].split())


def test_sumfold_alone_in_small(sumfold, tmp_path) -> None:
    out = tmp_path / "made" / "RESULTS.md"
    words = ("--workload", "w4", "--contestant", "sumfold", "--quick", "--repeats", 1, "--rounds", 3)
    result = sumfold("bench", *words, "--cache", tmp_path / "data", "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    run, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert run["contestant"] == "sumfold"
    assert len(run["seconds"]) == run["rounds"] == 3
    assert run["steps"] == 3 * 200
    assert run["examples"] == 3 * 1_600
    assert run["peak_memory_mib"] is None or run["peak_memory_mib"] > 50
    (row,) = last["tables"]["w4"]
    assert row["title"] == "Sumfold"
    assert row["note"] == ""
    assert "## w4" in out.read_text("utf-8")
    kept = json.loads(out.with_suffix(".jsonl").read_text("utf-8"))
    assert kept["loss"] == run["loss"]


@pytest.fixture
def scripted(monkeypatch, tmp_path):
    """Contestants whose runs are a few lines of Python."""

    def put(name: str, code: str) -> None:
        script = tmp_path / f"{name}.py"
        script.write_text(code, "utf-8")
        monkeypatch.setitem(CONTESTANTS, name, CONTESTANTS[name]._replace(script=str(script), peer="", package="json"))

    return put


LINE = """
import json
print("a word of its own")
print(json.dumps({"rounds": 3, "seconds": [3, 2, %s], "loss": %s, "examples": 10, "steps": 5}))
"""
SMALL = ("--workload", "w4", "--quick", "--repeats", 2)


def test_contestants_take_turns_and_losing_rows_are_shown(sumfold, scripted, tmp_path) -> None:
    scripted("sumfold", LINE % (0.5, 1.0))
    scripted("torch", LINE % (0.25, 1.0))
    two = ("--contestant", "sumfold", "--contestant", "torch", "--cache", tmp_path)
    result = sumfold("bench", *SMALL, *two, "--json")
    assert result.exit_code == 0, result.stderr
    *runs, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [run["contestant"] for run in runs] == ["sumfold", "torch", "torch", "sumfold"]
    assert [row["round_ms"] for row in last["tables"]["w4"]] == [250, 500]
    shown = sumfold("bench", *SMALL, *two).stdout
    assert shown.index("PyTorch by hand") < shown.index("Sumfold")


def test_a_contestant_that_fails_or_hangs_does_not_stop_the_others(sumfold, scripted, tmp_path) -> None:
    scripted("sumfold", LINE % (0.5, 1.0))
    scripted("torch", "raise RuntimeError('no such thing')")
    scripted("fedjax", "import time; time.sleep(60)")
    three = [word for name in ("sumfold", "torch", "fedjax") for word in ("--contestant", name)]
    result = sumfold("bench", *SMALL[:-1], 1, *three, "--cache", tmp_path, "--limit", 1, "--json")
    assert result.exit_code == 0, result.stderr
    rows = json.loads(result.stdout.splitlines()[-1])["tables"]["w4"]
    notes = {row["title"]: row["note"] for row in rows}
    assert notes["Sumfold"] == ""
    assert notes["PyTorch by hand, 1 process"] == "ended with 1: RuntimeError: no such thing"
    assert notes["FedJAX"] == "did not finish in 1 s"


def test_what_a_contestant_leaves_behind_is_ended(scripted, tmp_path) -> None:
    left = tmp_path / "left"
    code = "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
    scripted("torch", code + f"open({str(left)!r}, 'w').write(str(child.pid))" + LINE % (1, 1.0))
    plan = measure.Plan(("w4",), ("torch",), 1, 3, tmp_path, tmp_path, quick=True)
    line = measure.run(plan, "w4", CONTESTANTS["torch"])
    assert line["loss"] == 1.0
    if sys.platform == "linux":
        status, until = Path(f"/proc/{left.read_text()}/status"), time.monotonic() + 10
        while (alive := status.exists() and "zombie" not in status.read_text()) and time.monotonic() < until:
            time.sleep(0.05)  # the signal is sent, and takes effect when the system comes to it
        assert not alive


def test_on_a_gpu_those_who_can_use_it_are_told_to(sumfold, scripted, tmp_path) -> None:
    told = "import os, sys, json; given = ' '.join(sys.argv)\nassert {}, given\n"
    scripted("sumfold", told.format("os.environ['JAX_PLATFORMS'] == 'cuda,cpu'") + LINE % (0.5, 1.0))
    scripted("torch", told.format("'--option=device=cuda' in given") + LINE % (0.5, 1.0))
    scripted("fedjax", LINE % (0.5, 1.0))
    words = [word for name in ("sumfold", "torch", "fedjax") for word in ("--contestant", name)]
    result = sumfold("bench", *SMALL, *words, "--cache", tmp_path, "--platform", "cuda", "--json")
    *runs, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert {run["contestant"] for run in runs} == {"sumfold", "torch"}
    assert [row["note"] for row in last["tables"]["w4"]] == ["", ""]


def test_sumfold_in_error_is_a_failure(sumfold, scripted, tmp_path) -> None:
    scripted("sumfold", "raise SystemExit(3)")
    result = sumfold("bench", *SMALL, "--contestant", "sumfold", "--cache", tmp_path)
    assert result.exit_code == 1
    assert "ended with 3" in result.stdout


def test_what_is_missing_is_told(sumfold, scripted, tmp_path, monkeypatch) -> None:
    scripted("sumfold", LINE % (0.5, 1.0))
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: name == "json" or None)
    result = sumfold("bench", *SMALL, "--cache", tmp_path, "--peers", tmp_path / "peers")
    assert result.exit_code == 0
    assert "not installed: fedjax. To get it: python3.11 -m venv" in result.stderr
    assert str(tmp_path / "peers" / "fedjax") in result.stderr
    alone = sumfold("bench", *SMALL, "--contestant", "tff", "--cache", tmp_path)
    assert alone.exit_code == 1
    assert "nothing to run" in alone.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--workload", "w99"), "SF-CLI-009", "--workload w99; needed: one of w1, w2,"),
        (("--contestant", "tensorfold"), "SF-CLI-010", "--contestant tensorfold; needed: one of sumfold, train,"),
        (("--workload", "shakespeare"), "SF-CLI-011", "the workload shakespeare without --data"),
        (("--workload", "shakespeare", "--data", "none.gz"), "SF-CLI-011", "--data none.gz; needed: the file of plays"),
        (("--platform", "gpu"), "SF-CLI-038", "--platform gpu; needed: one of cpu, cuda"),
        (("--option", "streams"), "SF-CLI-012", "--option streams; needed: name=value"),
    ],
)
def test_wrong_use(sumfold, words, code, told) -> None:
    result = sumfold("bench", *words)
    assert result.exit_code == 2
    assert told in one_line(result)
    assert code in one_line(result)


def test_a_number_out_of_range_is_wrong_use(sumfold) -> None:
    assert sumfold("bench", "--repeats", 0).exit_code == 2
    assert sumfold("bench", "--rounds", 2).exit_code == 2
