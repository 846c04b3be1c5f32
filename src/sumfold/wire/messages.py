"""What server and client say to each other, as typed structs."""

from __future__ import annotations

import msgspec

from sumfold.tree import Spec

__all__ = ["Assignment", "PlanManifest", "Report"]


class Assignment(msgspec.Struct, frozen=True, tag="assignment"):
    """One phase of one round for one client; its arrays are the briefing's leaves.

    Attributes:
        plan: content id of the plan to run.
        round, phase: numbers, from 0.
        seed: uint32[2] of the run, as two integers.
        client: the client's code, see `sumfold.keys.code`.
    """

    plan: str
    round: int
    phase: int
    seed: tuple[int, int]
    client: int


class Report(msgspec.Struct, frozen=True, tag="report"):
    """What a client answers; its arrays are the encoded parts and the metrics, none when it was not counted.

    Attributes:
        round, phase: of the assignment; a report counts for these alone.
        client: the client's code.
        finite: whether every number of the report was finite.
        weights_valid: whether every weight was finite and not negative.
    """

    round: int
    phase: int
    client: int
    finite: bool
    weights_valid: bool


class PlanManifest(msgspec.Struct, frozen=True, tag="plan"):
    """A client's half of a phase: programs and types, no source.

    Attributes:
        algorithm, phase: what it belongs to.
        briefing, kept, memory, carry, batch, upload, keeping: types of everything that goes in and comes out.
        groups: by part, the kind of sum it goes into.
        batching: size, epochs, shuffle, max_steps, drop_remainder.
        programs: name -> serialised StableHLO: ``fresh``, ``init``, ``step``, ``finish``.
        host: whether the client runs a Python function of its own in place of ``step``.
    """

    algorithm: str
    phase: int
    briefing: tuple[Spec, ...]
    kept: tuple[Spec, ...]
    memory: tuple[Spec, ...]
    carry: tuple[Spec, ...]
    batch: tuple[Spec, ...]
    upload: tuple[Spec, ...]
    keeping: tuple[Spec, ...]
    groups: dict[str, str]
    batching: tuple[int | None, int, bool, int | None, bool]
    programs: dict[str, bytes]
    host: bool = False
