"""One run is one fresh process; a measurement is a few runs of everybody, in turns; a row counts if the work was equal.

Contestants take turns within each repeat, in an order that rotates, so that a machine that grows slower hurts all
alike. A row is the median over the runs of each run's median round, the first two left out. It is void when its final
loss is not that of the others, or when it did not process as many examples in as many steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sumfold.bench.peers import CONTESTANTS, HERE, Contestant, python_of
from sumfold.bench.workloads import WORKLOADS, load, quick

__all__ = ["Plan", "Row", "machine", "measured", "rows", "run"]

_WARM = 2
"""Rounds that are left out."""

_EVERY = 0.1
"""Seconds between two looks at memory."""


class Plan(NamedTuple):
    """What to measure.

    Attributes:
        workloads, contestants: names.
        repeats: fresh processes for each pair.
        rounds: of each run; None is the workload's own number.
        environments: the peers' folder.
        data: where generated data lie.
        plays: the file of plays, for ``shakespeare``.
        quick: small populations.
        options: of the Sumfold contestants, ``name=value``.
        limit: seconds of one run; what takes longer did not finish.
        platform: one of `sumfold.bench.peers.PLATFORMS`; contestants that cannot compute there are left out.
    """

    workloads: Sequence[str]
    contestants: Sequence[str]
    repeats: int
    rounds: int | None
    environments: Path
    data: Path
    plays: Path | None = None
    quick: bool = False
    options: Sequence[str] = ()
    limit: float = 600.0
    platform: str = "cpu"

    def able(self, workload: str) -> list[Contestant]:
        """The contestants that can do a workload here."""
        named = (CONTESTANTS[name] for name in self.contestants)
        here = (one for one in named if workload in one.workloads and self.platform in one.platforms)
        return [one for one in here if python_of(one, self.environments)]


class Row(NamedTuple):
    """One contestant in one workload.

    Attributes:
        title: the contestant.
        round_ms, spread_ms: median round and interquartile range over all rounds counted; None when nothing ran.
        first_s, again_s: from the start of the process to the end of the first round, in the first run and in later
            ones, which may find compiled programs.
        peak_share: part of the peak of the matrix product measured in the same process, or of the memory's speed.
        memory_mib: peak of the process tree.
        loss: of the final weights.
        note: why the row is void, or what went wrong; empty otherwise.
    """

    title: str
    round_ms: float | None
    spread_ms: float | None
    first_s: float | None
    again_s: float | None
    peak_share: float | None
    memory_mib: float | None
    loss: float | None
    note: str = ""


def measured(plan: Plan) -> Iterator[dict[str, Any]]:
    """The lines of all runs, one as soon as its run ends."""
    for workload in plan.workloads:
        made = quick(WORKLOADS[workload]) if plan.quick else WORKLOADS[workload]
        load(made, plan.data, plan.plays)  # so that nobody's first round has to make the data
        able = plan.able(workload)
        for repeat in range(plan.repeats):
            turn = repeat % max(len(able), 1)
            for contestant in able[turn:] + able[:turn]:
                yield run(plan, workload, contestant) | {"repeat": repeat}


def run(plan: Plan, workload: str, contestant: Contestant) -> dict[str, Any]:
    """One run in a process of its own, and its line; ``error`` in it says why there are no numbers."""
    python = python_of(contestant, plan.environments)
    ours = contestant.script == "sumfold_.py"
    options = (*contestant.options, *(plan.options if ours else ()))
    options += () if ours or plan.platform == "cpu" else (f"device={plan.platform}",)
    command = [str(python), str(HERE / "contestants" / contestant.script), "--workload", workload]
    command += ["--folder", str(plan.data), *(f"--option={option}" for option in options)]
    command += ["--rounds", str(plan.rounds)] if plan.rounds else []
    command += ["--data", str(plan.plays)] if plan.plays else []
    command += ["--quick"] if plan.quick else []
    told: dict[str, Any] = {"contestant": contestant.name, "workload": workload, "load": _load()}
    platforms = ",".join(dict.fromkeys((plan.platform, "cpu")))
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "JAX_PLATFORMS": platforms, "KERAS_BACKEND": "jax"}
    environment["SUMFOLD_BENCH_STARTED"] = repr(time.time())
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        tempfile.TemporaryFile("w+", errors="replace") as log,
    ):
        running = subprocess.Popen(command, stdout=output, stderr=log, env=environment, start_new_session=True)
        watched = _Watch(running.pid)
        try:
            running.wait(plan.limit)
        except subprocess.TimeoutExpired:
            return {**told, "error": f"did not finish in {plan.limit:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # some peers leave helpers behind that would hold the cores
            running.wait()
            memory = watched.stop()
        output.seek(0)
        log.seek(0)
        printed, complained = output.read(), log.read()
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if running.returncode != 0 or not lines:
        last = complained.strip().splitlines()[-1:] or ["no output"]
        return {**told, "error": f"ended with {running.returncode}: {last[0][:300]}"}
    return {**json.loads(lines[-1]), **told, "peak_memory_mib": memory}


class _Watch:
    """The peak of resident memory of a process and its descendants, where the system has /proc.

    Private pages are added up. Of file-backed and of shared memory, which the processes mostly share, the largest
    process's counts once.
    """

    def __init__(self, pid: int) -> None:
        self._pid, self._peak, self._ended = pid, 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> float | None:
        """End, and give the peak in MiB."""
        self._ended.set()
        self._thread.join()
        return round(self._peak / 1024, 1) or None

    def _look(self) -> None:
        while not self._ended.wait(_EVERY):
            sizes = [_resident(pid) for pid in _tree(self._pid)]
            if sizes:
                private, mapped, shared = zip(*sizes, strict=True)
                self._peak = max(self._peak, sum(private) + max(mapped) + max(shared))


def _tree(pid: int) -> list[int]:
    """A process and its descendants."""
    found = [pid]
    for parent in found:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):
                    children = Path(f"/proc/{parent}/task/{task}/children").read_text("utf-8")
                    found.extend(map(int, children.split()))
    return found


def _resident(pid: int) -> tuple[int, int, int]:
    """KiB of private, file-backed and shared pages in memory."""
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0, 0, 0
    sizes = dict(re.findall(r"^Rss(Anon|File|Shmem):\s*(\d+)", text, re.MULTILINE))
    return int(sizes.get("Anon", 0)), int(sizes.get("File", 0)), int(sizes.get("Shmem", 0))


def _load() -> float | None:
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


# -- what came out


def rows(
    lines: Sequence[Mapping[str, Any]], workload: str, tolerance: float, flops: float, passes: float = 0.0
) -> list[Row]:
    """The table's rows of one workload, fastest first, then the void ones and those that did not finish.

    Args:
        lines: of `measured`.
        workload: which.
        tolerance: by which final losses may differ, relative to the median of all contestants.
        flops: of one example; 0 leaves out the share of the product's peak.
        passes: bytes moved in one round at least, for the share of the memory's speed.
    """
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for line in lines:
        if line["workload"] == workload:
            by_name.setdefault(line["contestant"], []).append(line)
    good = {name: [line for line in mine if "error" not in line] for name, mine in by_name.items()}
    losses = [statistics.median(line["loss"] for line in mine) for mine in good.values() if mine]
    work = Counter((line["examples"], line["steps"]) for mine in good.values() for line in mine[:1])
    expected = work.most_common(1)[0][0] if work else None
    found = []
    for name, mine in by_name.items():
        title, ran = CONTESTANTS[name].title, good[name]
        if not ran:
            found.append(Row(title, None, None, None, None, None, None, None, mine[0]["error"]))
            continue
        note = _disagreement(ran, statistics.median(losses), tolerance, expected)
        found.append(_row(title, ran, note, flops, passes))
    return sorted(found, key=lambda row: (bool(row.note), row.round_ms is None, row.round_ms or 0.0))


def _disagreement(ran: Sequence[Mapping[str, Any]], loss: float, tolerance: float, expected: Any) -> str:
    """Why the work was not equal; empty when it was."""
    for line in ran:
        if (line["examples"], line["steps"]) != expected:
            examples, steps = expected
            return f"void: {line['examples']} examples in {line['steps']} steps against {examples} in {steps}"
        if not abs(line["loss"] - loss) <= tolerance * abs(loss):  # a loss that is no number is void too
            return f"void: final loss {line['loss']:.7g} against {loss:.7g}"
    return ""


def _row(title: str, ran: Sequence[Mapping[str, Any]], note: str, flops: float, passes: float) -> Row:
    warm = [line["seconds"][_WARM:] or line["seconds"] for line in ran]
    middle = statistics.median(statistics.median(seconds) for seconds in warm)
    every = sorted(seconds for run in warm for seconds in run)
    quarters = statistics.quantiles(every, n=4) if len(every) > 1 else [every[0]] * 3
    firsts = [line["to_first_round_s"] for line in ran if line.get("to_first_round_s")]
    line, share = ran[0], None
    if flops and line.get("gemm_gflops"):
        shares = [
            flops * examples / seconds / (line["gemm_gflops"] * 1e9)
            for line in ran
            for examples, seconds in list(zip(line["examples_by_round"], line["seconds"], strict=True))[_WARM:]
        ]
        share = statistics.median(shares) if shares else None
    elif passes and line.get("triad_gbs"):
        share = passes / middle / (statistics.median(line["triad_gbs"] for line in ran) * 1e9)
    memory = [line["peak_memory_mib"] for line in ran if line.get("peak_memory_mib")]
    return Row(
        title,
        1e3 * middle,
        1e3 * (quarters[2] - quarters[0]),
        firsts[0] if firsts else None,
        statistics.median(firsts[1:]) if firsts[1:] else None,
        share,
        max(memory) if memory else None,
        line["loss"],
        note,
    )


def machine() -> dict[str, Any]:
    """What the numbers were measured on: cores, model, instruction sets, memory, system, commit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told: dict[str, Any] = {
        "cores": cores,
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
    }
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text("utf-8")
        found = dict(re.findall(r"^(model name|flags)\s*:\s*(.*)$", text, re.MULTILINE))
        told["processor"] = found.get("model name", told["processor"])
        sets = re.compile(r"^(avx\w*|fma|amx\w*|neon|sve\w*)$")
        told["instruction_sets"] = " ".join(flag for flag in found.get("flags", "").split() if sets.match(flag))
    with contextlib.suppress(OSError, ValueError, AttributeError):
        told["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    told["commit"] = _commit()
    return told


def _commit() -> str:
    """The checkout's commit, if this file lies in one; a star for changes on top."""
    try:
        git = ["git", "-C", str(HERE)]
        inside = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if inside.returncode != 0:
            return ""
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("*" if dirty.stdout.strip() else "")
