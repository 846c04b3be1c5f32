"""A run on disk: two states, the history, and what may go on from them.

    runs/heart/
        round-00000011.safetensors   the state after 11 rounds, what the run is, how much history it knows
        round-00000012.safetensors
        history.jsonl                one line a round, with the evaluation after it; only ever appended to
        .lock                        held by the process that trains here, until it ends or dies

The history is on disk before the state that counts on it. A state knows the history's length and a digest
chained over its lines: what a crash left behind that is cut off, and a history that was changed is noticed. A
crash at any instruction leaves the previous pair whole. Nothing in these files depends on a clock.

A line of the history is ``{"round": …, "metrics": …, "evaluation": … or null}``. NaN and infinities, which JSON has
not, are null; a line with such has ``"not_finite": [[path, "nan"], …]`` too, from which they are read back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sumfold import tree
from sumfold.core import files
from sumfold.core.driver import State
from sumfold.core.host import code_identity
from sumfold.core.program import canonical, one_client
from sumfold.core.round import Batch, HostWork
from sumfold.data import Federation
from sumfold.errors import CheckpointError
from sumfold.learning.history import decoded, encoded, flat
from sumfold.learning.process import Process

__all__ = ["Log", "Saved", "folder", "identity", "packed", "program", "resume", "save", "unpacked"]

HISTORY = "history.jsonl"
_FORMAT = "1"
_KEPT = 2
_NAME = re.compile(r"round-(\d{8,})\.safetensors")
_WORDS = {
    "algorithm": "the algorithm",
    "arrays": "the fingerprint of the state's arrays",
    "program": "the program (loss, optimizers, their rates, batching, weighting)",
    "seed": "the seed",
    "federation": "the federation's fingerprint",
    "clients_per_round": "clients_per_round",
    "hparams": "the hyperparameters in the first state",
    "begin": "the first state (initial weights, hyperparameters, state=)",
}
_IN_BEGIN = {"algorithm", "arrays", "seed", "hparams"}
"""Whoever differs in one of these also differs in the first state, which then says nothing more."""


class Log(NamedTuple):
    r"""How much of a history file is known.

    Attributes:
        lines, nbytes: its length.
        digest: blake2b chained over the lines, in hex.

    Example:
        >>> Log().extended([b"{}\n"]).nbytes
        3
    """

    lines: int = 0
    nbytes: int = 0
    digest: str = ""

    def extended(self, lines: Iterable[bytes]) -> Log:
        """The log with these lines after it."""
        log = self
        for line in lines:
            digest = _hash(bytes.fromhex(log.digest) + line)
            log = Log(log.lines + 1, log.nbytes + len(line), digest)
        return log


class Saved(NamedTuple):
    """What was read back.

    Attributes:
        state: after the last saved round.
        entries: one a round: ``{"round": …, "metrics": …, "evaluation": … or None}``.
        log: the length and digest of the history.
        stopped_before: how many rounds were asked for when a callback stopped the run; 0 if none did.
        engine: what the runtime chose (kernel, lanes, streams), which fixes the order of sums; empty for nothing.
    """

    state: State
    entries: list[dict[str, Any]]
    log: Log
    stopped_before: int
    engine: dict[str, Any]


@contextlib.contextmanager
def folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The checkpoint folder, made if needed, held against other processes until the block ends.

    Raises:
        CheckpointError: when it is no folder, cannot be made (SF-CKPT-010), or is in use (SF-CKPT-011).

    Example:
        >>> import tempfile
        >>> with folder(tempfile.mkdtemp()) as here:
        ...     sorted(file.name for file in here.iterdir())
        ['.lock']
    """
    here = Path(path)
    try:
        here.mkdir(parents=True, exist_ok=True)
        lock = os.open(here / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(
            "SF-CKPT-010",
            f"checkpoint={str(path)!r}: {error.strerror}",
            "a folder that can be made and written to",
            "choose another folder",
        ) from error
    try:
        if not _held(lock):
            owner = os.read(lock, 64).decode(errors="replace").strip()
            raise CheckpointError(
                "SF-CKPT-011",
                f"checkpoint={str(path)!r} is in use" + (f" by process {owner}" if owner else ""),
                "a folder in which nobody else trains",
                "wait until it is done, or choose another folder",
            )
        with contextlib.suppress(OSError):  # a full disk: the number is only for the message above
            os.truncate(lock, 0)
            os.write(lock, str(os.getpid()).encode())
        yield here
    finally:
        os.close(lock)


def _held(lock: int) -> bool:
    """Whether the lock is ours now; a file system without locks is taken at its word."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


# -- writing --------------------------------------------------------------------------------------------


def save(
    here: Path,
    log: Log,
    state: State,
    entries: Iterable[Mapping[str, Any]],
    identity: Mapping[str, str],
    stopped_before: int = 0,
    engine: Mapping[str, Any] | None = None,
) -> Log:
    """Append to the history, then write the state; keep this state and the one before.

    Args:
        here: from `folder`.
        log: what `resume` or the last `save` gave.
        state: after the last of the rounds.
        entries: the rounds since `log`.
        identity: from `identity`.
        stopped_before, engine: as in `Saved`.

    Raises:
        CheckpointError: when something cannot be written; what was saved before is untouched.
    """
    lines = [_line(entry) for entry in entries]
    _append(here / HISTORY, log, b"".join(lines))
    log = log.extended(lines)
    notes = {
        "checkpoint": _FORMAT,
        "identity": json.dumps(identity, sort_keys=True),
        "history": json.dumps(log),
        "stopped_before": str(stopped_before),
        "engine": json.dumps(dict(engine or {})),
    }
    number = int(state.round)
    files.write(here / f"round-{number:08d}.safetensors", files.pack(state, notes))
    _prune(here, number)
    return log


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(encoded(dict(entry)), separators=(",", ":"), allow_nan=False).encode() + b"\n"


def _append(path: Path, log: Log, data: bytes) -> None:
    """Write `data` behind what the log knows of the file, and wait until it is on disk."""
    if not data and log.lines:
        return
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            shrunk = os.fstat(file).st_size < log.nbytes
            if not shrunk:
                os.ftruncate(file, log.nbytes)
                os.lseek(file, log.nbytes, os.SEEK_SET)
                view = memoryview(data)
                while view:
                    view = view[os.write(file, view) :]
                os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        raise CheckpointError(
            "SF-CKPT-012",
            f"{path} could not be written: {error.strerror} ({len(data):,} bytes)",
            "a folder that is writable and has room",
            "make room and run the same call again: it goes on after the last saved round",
        ) from error
    if shrunk:
        raise CheckpointError(
            "SF-CKPT-013",
            f"{path} became shorter than the {log.nbytes:,} bytes that were written to it",
            "a folder that nobody else changes while a run trains",
            "begin anew in another folder, or restore a copy",
        )


def _prune(here: Path, number: int) -> None:
    """Remove all states but the last two up to `number`; later ones are damaged, or would have been used."""
    found = _states(here)
    keep = [n for n in sorted(found) if n <= number][-_KEPT:]
    stale = [file for n, file in found.items() if n not in keep] + list(here.glob(".round-*.safetensors.*"))
    for file in stale:
        with contextlib.suppress(OSError):
            file.unlink()


def _states(here: Path) -> dict[int, Path]:
    matches = [(_NAME.fullmatch(file.name), file) for file in here.iterdir()]
    return {int(match[1]): file for match, file in matches if match}


# -- reading --------------------------------------------------------------------------------------------


def resume(here: Path, identity: Mapping[str, str], warn: Callable[[str], None]) -> Saved | None:
    """The newest whole checkpoint, or None in a folder without any.

    Args:
        here: from `folder`.
        identity: of the run that wants to go on.
        warn: is told when a damaged checkpoint was passed over.

    Raises:
        CheckpointError: when all are damaged (SF-CKPT-014), or belong to another run (SF-CKPT-015), naming
            what differs and both values.
    """
    damaged: list[str] = []
    for _, file in sorted(_states(here).items(), reverse=True):
        try:
            saved, theirs = _read(file)
        except CheckpointError as error:
            damaged.append(error.came)
            continue
        _recognise(here, theirs, identity)
        if not damaged:
            _prune(here, int(saved.state.round))  # what a crash left behind
        else:
            warn(f"{'; '.join(damaged)}; going on from the older checkpoint {file.name}")
        return saved
    if damaged:
        raise CheckpointError(
            "SF-CKPT-014",
            f"no checkpoint in {here} is whole: {'; '.join(damaged)}",
            "one whole checkpoint and its history",
            "restore a copy of the folder, or begin anew in another one",
        )
    return None


def packed(saved: Saved | None) -> bytes:
    """What was read back, as bytes for another process; empty for nothing."""
    if saved is None:
        return b""
    lines = b"".join(map(_line, saved.entries)).decode()
    notes = {"history": lines, "log": json.dumps(saved.log), "stopped_before": str(saved.stopped_before)}
    notes["engine"] = json.dumps(saved.engine)
    return files.pack(saved.state, notes)


def unpacked(data: bytes) -> Saved | None:
    """The reverse of `packed`."""
    if not data:
        return None
    where = "what process 0 sent"
    notes, state = files.notes(data, where), files.unpack(data, where)
    entries = [decoded(json.loads(line)) for line in notes["history"].splitlines()]
    return Saved(
        state, entries, Log(*json.loads(notes["log"])), int(notes["stopped_before"]), json.loads(notes["engine"])
    )


def _read(file: Path) -> tuple[Saved, dict[str, str]]:
    try:
        data = file.read_bytes()
        notes = files.notes(data, str(file))
        if notes.get("checkpoint") != _FORMAT:
            raise _unusable(f"{file} is not a checkpoint of this version of Sumfold")
        log = Log(*json.loads(notes["history"]))
        with open(file.parent / HISTORY, "rb") as history:
            lines = history.read(log.nbytes).splitlines(keepends=True)
    except OSError as error:
        raise _unusable(f"{error.filename or file}: {error.strerror}") from error
    if Log().extended(lines) != log:
        raise _unusable(f"{HISTORY} is damaged or truncated: it does not match {file.name}")
    state = files.unpack(data, str(file))
    if not isinstance(state, State):
        raise _unusable(f"{file} holds no state")
    stopped_before, engine = int(notes["stopped_before"]), json.loads(notes["engine"])
    saved = Saved(state, [decoded(json.loads(line)) for line in lines], log, stopped_before, engine)
    return saved, json.loads(notes["identity"])


def _unusable(why: str) -> CheckpointError:
    return CheckpointError(
        "SF-CKPT-016", why, "a whole checkpoint and its history", "an older one is used if there is one"
    )


# -- identity -------------------------------------------------------------------------------------------


def identity(process: Process, federation: Federation, state: State, clients_per_round: str) -> dict[str, str]:
    """What a run is: whoever goes on with its checkpoint must agree in every field that both have.

    The runtime is no part of it, nor is the number of rounds, nor the model's name: Keras numbers its models. What
    the program takes from the state, such as weights and rates, is in the digest of the first state.

    Args:
        process: the algorithm.
        federation: the clients.
        state: the state before the first round, the caller's own or the process's.
        clients_per_round: in words.
    """
    seed = (int(state.seed[0]) << 32) + int(state.seed[1])
    fields = {
        "algorithm": process.round.name,
        "arrays": np.asarray(state.fingerprint).tobytes().hex(),
        "program": program(process, process._check(federation, state)),
        "seed": str(seed),
        "federation": federation.fingerprint(),
        "clients_per_round": clients_per_round,
        "hparams": _readable(process, state),
        "begin": _digest(state),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _readable(process: Process, state: State) -> str:
    """The hyperparameters that can be read, in words; their last digits are in the state's digest."""
    values = {name: value for name, value in flat(process.get_hparams(state)).items() if not isinstance(value, str)}
    words = [f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(words)


def _digest(state: State) -> str:
    """Of the names, dtypes, shapes and bytes of a state's arrays."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    arrays = [(path, leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)) for path, leaf in leaves]
    return _hash("\n".join(f"{tree.name(path)} {canonical(array)}" for path, array in arrays).encode())


def _recognise(here: Path, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    differing = [name for name in _WORDS if name in theirs and name in mine and theirs[name] != mine[name]]
    if "program" in differing and _version(theirs) != _version(mine):
        differing.remove("program")  # another JAX writes the same program differently
    if "begin" in differing and _IN_BEGIN & set(differing):
        differing.remove("begin")
    if differing:
        advice = "call train as before to go on with it, or choose another folder for this run"
        if "begin" in differing:
            advice += (
                "; a Keras model whose weights are drawn anew in every process is another run: "
                "build the model with a seed (pass a builder to from_keras, or keras.utils.set_random_seed)"
            )
        found = "; ".join(f"{_WORDS[n]} is {theirs[n]} there and {mine[n]} here" for n in differing)
        raise CheckpointError(
            "SF-CKPT-015",
            f"the checkpoint in {here} belongs to another run: {found}",
            "the run that this folder was begun with",
            advice,
        )


def _version(fields: Mapping[str, str]) -> str:
    return fields["program"].partition(" ")[0]


def program(process: Process, batch: Batch | None) -> str | None:
    """A hash of all that one round computes, the same in every process; None for what cannot be traced.

    The round is traced with one client that takes one step. Names of functions and variables do not count,
    every operation and constant does: another learning rate or loss is another program.

    Args:
        process: the algorithm.
        batch: the shapes of a batch; None where no client has examples.
    """
    algorithm, template = process.round, process._template
    try:
        closed = one_client(algorithm, template.algorithm, template.stages, batch)
    except Exception:  # client work that is no array program, or a model that traces under its runtime only
        return None
    batching = [tuple(phase.work.batching) for phase in algorithm.phases]
    ready = process.batching is None
    version, parts = f"jax-{jax.__version__}", repr((canonical(closed), batching, ready))
    own = [code_identity(phase.work.run) for phase in algorithm.phases if isinstance(phase.work, HostWork)]
    if own:  # compiled code is the same under one version of Python only
        version, parts = f"{version}-python-{sys.version_info[0]}.{sys.version_info[1]}", repr((parts, own))
    return f"{version} {_hash(parts.encode())}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
