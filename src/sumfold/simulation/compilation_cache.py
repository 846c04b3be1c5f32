"""Compiled programs on disk, so that the second start of a program compiles nothing.

JAX can keep what XLA compiled in a folder, by a key of the program's text, the compiler's version and its options. The
key does not say which processor the code is for, and a home folder may be shared by different machines; so each kind
of machine has a folder of its own, within the user's cache folder. Entries hold code that will be run: the folder
belongs to the user alone.

JAX has a bound on the folder's size, but only with a package that few have. Here the entries that were used least
recently are removed instead, once a day. Several processes may share the folder: what one of them removes or has
written only half is compiled again by another.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import jax

__all__ = ["configured", "folder", "switch_on"]

_LIMIT = 512 << 20
"""Bytes that all entries together may take."""

_DAY = 24 * 60 * 60.0

_log = logging.getLogger("sumfold")
_settings: Any = jax.config


@functools.cache
def switch_on() -> Path | None:
    """Let JAX keep compiled programs, from now on and for the whole process; the folder, or None where it is off.

    Nothing changes where the user configured JAX's own cache, or set ``SUMFOLD_COMPILATION_CACHE=off``. A folder that
    cannot be written leaves the cache off, with one line in the log.

    Example:
        >>> switch_on() is switch_on()
        True
    """
    root = folder()
    if configured() is not None or not _settings.jax_enable_compilation_cache or root is None:
        return None
    here = root / _machine()
    try:
        here.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=here):
            pass
        _sweep(root)
    except OSError as error:
        _log.warning(
            "no compilation cache in %s: %s; SUMFOLD_COMPILATION_CACHE=off says that this is meant", root, error
        )
        return None
    _settings.update("jax_compilation_cache_dir", str(here))
    # Reading an entry takes about a millisecond and compiling the smallest program several: all are worth keeping.
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        _settings.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return here


def configured() -> str | None:
    """The folder that JAX keeps compiled programs in at present, whoever chose it; None where it keeps none."""
    chosen: str | None = _settings.jax_compilation_cache_dir
    return chosen if _settings.jax_enable_compilation_cache else None


def folder() -> Path | None:
    """Where compiled programs are kept: ``SUMFOLD_COMPILATION_CACHE``, or a part of the user's cache folder.

    None where that is ``off``, or where the user has no home.
    """
    chosen = os.environ.get("SUMFOLD_COMPILATION_CACHE", "")
    if chosen.lower() in {"off", "0", "no", "false"}:
        return None
    if chosen:
        return Path(chosen).expanduser().absolute()
    caches = os.environ.get("XDG_CACHE_HOME", "")
    try:  # the standard says that a relative path there does not count
        home = Path(caches) if Path(caches).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return home / "sumfold" / "jax"


def _machine() -> str:
    """A name of this kind of processor, as far as compiled code depends on it."""
    fields = {"vendor_id", "cpu family", "model", "flags", "CPU implementer", "CPU part", "Features"}
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", maxsplit=1)[0]
        told = [line for line in first.splitlines() if line.partition(":")[0].strip() in fields]
    except OSError:  # no such account of the machine
        told = [platform.processor(), platform.node()]
    digest = hashlib.blake2b("\n".join(told).encode(), digest_size=6).hexdigest()
    return f"{platform.machine() or 'machine'}-{digest}"


def _sweep(root: Path, limit: int = _LIMIT, now: float | None = None) -> None:
    """Remove the entries that were used least recently, down to `limit` bytes; at most once a day."""
    now = time.time() if now is None else now
    stamp = root / "swept"
    if stamp.exists() and now - stamp.stat().st_mtime < _DAY:
        return
    stamp.touch()
    entries = []
    for path in root.glob("*/*"):
        try:
            entry = path.stat()
        except OSError:  # another process removed it
            continue
        # A file system that does not note when a file is read gives the time at which it was written.
        entries.append((max(entry.st_atime, entry.st_mtime), entry.st_size, path))
    spare = sum(size for _, size, _ in entries) - limit
    for _, size, path in sorted(entries):
        if spare <= 0:
            return
        path.unlink(missing_ok=True)
        spare -= size
