"""Where the time of a training run went, and what to do about it.

All rows add up to the time from the first round's beginning to the end of the last. Most come from the engine's meter
(`sumfold.simulation.meter`), what surrounds the rounds from the loop in `sumfold.train`. A profile is of one start of
a run: what earlier starts took is not in a checkpoint. The share of the peak compares the matrix products and
convolutions of the clients' steps (`sumfold.simulation.flops`) with a large matrix product, measured when asked for.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sumfold import keys, tree
from sumfold.core.client import Briefing, Start, client_half
from sumfold.core.driver import State
from sumfold.core.round import Batch, HostWork, Round
from sumfold.learning.process import Process
from sumfold.simulation.compilation_cache import configured
from sumfold.simulation.flops import flops, gemm_peak
from sumfold.simulation.meter import COMPILE, Meter

__all__ = ["Profile", "Timing", "Watch", "profile_of"]

ROWS = {
    "clients": "clients' steps",
    "rounds": "rounds",
    "aggregation": "aggregation and server",
    COMPILE: "compiling",
    "plan": "planning",
    "data": "placing data",
    "memory": "clients' memories",
    "exchange": "exchange between processes",
    "autotune": "choosing the kernel",
    "cohorts": "drawing cohorts",
    "evaluation": "evaluation",
    "callbacks": "callbacks",
    "checkpoint": "checkpoints",
    "rest": "rest",
}
"""Rows of a profile in words; the engine may have others, which keep their names."""

_STEPS = "steps "
"""The engine counts the steps of phase 1 as ``steps 1``."""

_NICE = (2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Profile(NamedTuple):
    """Where time went; `print` shows it as a table, ``_asdict()`` gives its numbers.

    Attributes:
        first, rounds: the first round of this start, and how many there were.
        total: seconds.
        seconds: by what they were spent on; they add up to `total`.
        clients, steps: trained, over all rounds.
        clients_per_second, steps_per_second: by the time that was not spent compiling.
        padding: steps that lanes made for nobody, as a share of all they made; 0 where nothing was padded.
        executables, cached: programs that were compiled, and that the compilation cache had.
        bytes_per_round: sent to the devices; None where it was not counted.
        flops_per_second: operations of the clients' steps by the time that they took; None where unknown.
        peak: operations a second of a large matrix product here, measured now; None where nothing compares to it.
        advice: one line, or None when nothing stands out.
        kernel: how clients ran, and why so; None where the runtime chooses nothing.

    Example:
        >>> print(Profile(
        ...     first=0, rounds=2, total=2.0, seconds={"clients": 1.5, "evaluation": 0.5}, clients=20, steps=60,
        ...     clients_per_second=10.0, steps_per_second=30.0, padding=0.0, executables=1, cached=0,
        ...     bytes_per_round=800.0, flops_per_second=None, peak=None, advice=None,
        ... ))
        rounds 0 to 1: 2.00 s
          clients' steps                1.50 s   75 %
          evaluation                    0.50 s   25 %
        30 client steps/s, 10 clients/s; padding 0 %
        1 program compiled, 0 from the compilation cache; 800 bytes to the devices a round
    """

    first: int
    rounds: int
    total: float
    seconds: dict[str, float]
    clients: int
    steps: int
    clients_per_second: float
    steps_per_second: float
    padding: float
    executables: int
    cached: int
    bytes_per_round: float | None
    flops_per_second: float | None
    peak: float | None
    advice: str | None
    kernel: str | None = None

    @property
    def share_of_peak(self) -> float | None:
        """What the clients' steps reached of the machine's matrix product."""
        return self.flops_per_second / self.peak if self.flops_per_second and self.peak else None

    def __str__(self) -> str:
        if not self.rounds:
            return "no round was trained in this start"
        last = self.first + self.rounds - 1
        named = f"round {last}" if self.rounds == 1 else f"rounds {self.first} to {last}"
        earlier = ", those of this start" if self.first else ""
        rows = sorted(self.seconds.items(), key=lambda row: -row[1])
        lines = [f"{named}{earlier}: {self.total:.2f} s"]
        lines += [
            f"  {ROWS.get(name, name):<26} {seconds:>7.2f} s  {seconds / self.total:>4.0%}".replace("%", " %")
            for name, seconds in rows
            if seconds >= 0.0005 * self.total
        ]
        lines += [
            f"{_number(self.steps_per_second)} client steps/s, {_number(self.clients_per_second)} clients/s; "
            f"padding {_percent(self.padding)}"
        ]
        compiled = f"{self.executables} program{'' if self.executables == 1 else 's'} compiled"
        sent = "" if self.bytes_per_round is None else f"; {_bytes(self.bytes_per_round)} to the devices a round"
        lines += [f"{compiled}, {self.cached} from the compilation cache{sent}"]
        if self.flops_per_second is not None and self.peak is not None:
            reached, possible = self.flops_per_second / 1e9, self.peak / 1e9
            lines += [
                f"{reached:.3g} GFLOP/s in clients' steps: {_percent(reached / possible)} of a large matrix product "
                f"({possible:.0f})"
            ]
        return "\n".join([*lines, *(line for line in (self.kernel, self.advice) if line)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


@dataclass(frozen=True, eq=False)
class Timing:
    """What one start of a run measured so far.

    Attributes:
        rounds: how many it trained.
        total: seconds since its first round began.
        seconds, counts: of the loop, and of the engine since the run began; see `Meter.snapshot`.
        every: rounds from one ``evaluation`` to the next, and from one ``checkpoint`` to the next.
        cache: whether compiled programs are kept on disk.
        process: the algorithm, to count its operations; a copy that was pickled has none.
    """

    rounds: int
    total: float
    seconds: Mapping[str, float]
    counts: Mapping[str, int]
    every: Mapping[str, int]
    cache: bool = True
    process: Process | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "process": None}


class Watch:
    """Measures the loop around the rounds of one start."""

    def __init__(self, process: Process, every: Mapping[str, int], first: int = 0) -> None:
        self._process, self._every, self._first = process, every, first
        self._meter, self._rounds = Meter(), 0
        self._before = _engine(process)
        self._begin = perf_counter()
        self.span = self._meter.span

    def trained(self, done: int) -> None:
        """So many rounds of the run are trained now."""
        self._rounds = done - self._first

    def timing(self) -> Timing:
        """What was measured so far."""
        total, loop, engine = perf_counter() - self._begin, self._meter.snapshot(), _engine(self._process)
        seconds, counts = loop["seconds"], loop["counts"]
        if engine is None:
            seconds["rounds"] = seconds.pop("round", 0.0)
        else:
            before = self._before or {"seconds": {}, "counts": {}}
            seconds.pop("round", None)  # its parts are the engine's, and what they leave is rest
            _add(seconds, engine["seconds"], before["seconds"])
            _add(counts, engine["counts"], before["counts"])
        seconds["rest"] = max(total - sum(seconds.values()), 0.0)
        return Timing(self._rounds, total, seconds, counts, self._every, configured() is not None, self._process)


def profile_of(timing: Timing, first: int, metrics: list[dict[str, Any]]) -> Profile:
    """The profile of the rounds that `timing` is of.

    Args:
        timing: of one start.
        first: its first round.
        metrics: of its rounds, as `History.metrics` has them.
    """
    told = [group for entry in metrics for group in entry.get("client_work", {}).values() if isinstance(group, Mapping)]
    clients = sum(group.get("num_clients", 0) for group in told)
    by_phase = {int(k[len(_STEPS) :]): n for k, n in timing.counts.items() if k.startswith(_STEPS)}
    steps = sum(by_phase.values()) or sum(group.get("num_batches", 0) for group in told)
    made = max(timing.counts.get("lane steps", 0), steps)
    working = max(timing.total - timing.seconds.get(COMPILE, 0.0), 1e-9)
    computed = timing.seconds.get("clients", 0.0)
    operations = _operations(timing.process, by_phase) if computed and steps else None
    sent = timing.counts.get("bytes")
    profile = Profile(
        first=first,
        rounds=timing.rounds,
        total=timing.total,
        seconds={name: seconds for name, seconds in timing.seconds.items() if seconds > 0},
        clients=clients,
        steps=steps,
        clients_per_second=clients / working,
        steps_per_second=steps / working,
        padding=1 - steps / made if made else 0.0,
        executables=timing.counts.get("executables", 0),
        cached=timing.counts.get("cached", 0),
        bytes_per_round=None if sent is None else sent / max(timing.rounds, 1),
        flops_per_second=operations / computed if operations else None,
        peak=gemm_peak() if operations else None,
        advice=None,
        kernel=_kernel(timing.process),
    )
    return profile._replace(advice=_advice(profile, timing.every, timing.cache))


def _kernel(process: Process | None) -> str | None:
    """What the engine chose, in words; None where it chose nothing."""
    chosen = {} if process is None else process._engine
    if "kernel" not in chosen:
        return None
    how = f"{chosen['lanes']} lanes" if chosen["lanes"] else "one client after the other"
    return f"{how} in a stream, {chosen['streams']} streams at most ({chosen['why']})"


def _operations(process: Process | None, steps: Mapping[int, int]) -> int | None:
    """Floating-point operations of so many steps of each phase; None where they cannot be known."""
    if process is None or not process._seen or not steps:
        return None
    try:
        each = _of_a_step(process.round, process._template, process._seen[0])
    except Exception:  # a model that can only be traced where it runs has no count
        return None
    return sum(number * each[i] for i, number in steps.items()) or None


def _of_a_step(round: Round, state: State, batch: Batch) -> list[int]:
    """Operations of one step of each phase; nothing runs."""
    found, kept = [], ()
    for phase, held in zip(round.phases, state.stages, strict=True):
        half = client_half(phase)

        def brief(algorithm: Any, stages: Any, phase: Any = phase) -> Briefing:
            public = {part: stage.share(stages[part]) for part, stage in phase.aggregate.items()}
            return Briefing(phase.broadcast(algorithm, keys.typed(jnp.zeros(2, jnp.uint32))), public)

        def begin(briefing: Briefing, kept: Any, half: Any = half) -> tuple[Start, Any, Any, Any]:
            key = keys.typed(jnp.zeros(2, jnp.uint32))
            start = Start(briefing, half.fresh(briefing, kept), kept, jnp.int32(0))
            state = half.init(start, key)
            return start, state, key, half.finish(start, state, key)[1].kept

        briefing = jax.eval_shape(brief, tree.shapes(state.algorithm), tree.shapes(held))
        start, carry, key, kept = jax.eval_shape(begin, briefing, kept)
        stepping = half.step is not None and not isinstance(phase.work, HostWork)
        found.append(flops(half.step, start, carry, batch, key) if stepping and half.step else 0)
    return found


def _advice(profile: Profile, every: Mapping[str, int], cache: bool) -> str | None:
    """One line about what costs most among what can be changed."""
    if not profile.rounds:
        return None
    share = {name: seconds / profile.total for name, seconds in profile.seconds.items()}
    working = 1 - share.get(COMPILE, 0.0)
    found = []
    for name, argument in (("evaluation", "evaluate_every"), ("checkpoint", "checkpoint_every")):
        cost = share.get(name, 0.0)
        if cost > 0.2:
            # Chosen so that it takes a fifteenth of the time that remains.
            needed = every.get(name, 1) * 15 * cost / max(working - cost, 0.01)
            number = next((n for n in _NICE if n >= needed), _NICE[-1])
            found += [(cost, f"{_percent(cost)} of time in {ROWS[name]}: {argument}={number}")]
    if share.get("callbacks", 0.0) > 0.2:
        cost = share["callbacks"]
        found += [(cost, f"{_percent(cost)} of time in callbacks: do less there, or only every few rounds")]
    if share.get("data", 0.0) > 0.2:
        cost = share["data"]
        found += [(cost, f"{_percent(cost)} of time placing data: pass the same Federation to every round, in memory")]
    if share.get("plan", 0.0) > 0.25:
        cost = share["plan"]
        found += [(cost, f"{_percent(cost)} of time in planning: larger batches, for fewer and longer steps")]
    if profile.padding > 0.25:
        cost = profile.padding * share.get("clients", 0.0)
        found += [(cost, f"padding {_percent(profile.padding)}: more clients a round, or fewer lanes in sf.Simulation")]
    if share.get(COMPILE, 0.0) > 0.5 and profile.seconds[COMPILE] > 1:
        found += [(share[COMPILE], f"compile time dominates: {_about_compiling(profile, cache)}")]
    return max(found)[1] if found else None


def _about_compiling(profile: Profile, cache: bool) -> str:
    if profile.rounds > 4 and profile.executables > 4 * profile.rounds:
        return f"{profile.executables} programs in {profile.rounds} rounds; use one Federation, and cohorts of one size"
    if profile.cached and not profile.executables:
        return "every program came from the compilation cache, and what remains is JAX tracing the algorithm"
    if not cache:
        return "the compilation cache is off; with it, the next start would compile nothing"
    return "more rounds share it, and the next start has its programs from the compilation cache"


def _engine(process: Process) -> dict[str, dict[str, Any]] | None:
    """What the engine's meter has, where the process ran on one."""
    snapshot = getattr(getattr(vars(process).get("_run"), "meter", None), "snapshot", None)
    return snapshot() if snapshot else None


def _add(to: dict[str, Any], after: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    for name, value in after.items():
        if value != before.get(name, 0):
            to[name] = to.get(name, 0) + value - before.get(name, 0)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(number: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} bytes"
