"""``sumfold doctor``: whether Sumfold can run here, and what would be missing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from sumfold import __version__
from sumfold.cli.verb import DONE, FAILED, Json, Outcome, verb

__all__ = ["Check", "checks", "doctor"]

_NEEDED = ("jaxlib", "optax", "numpy", "safetensors", "msgspec", "flatbuffers", "jaxtyping")
_OPTIONAL = {
    "flax": "flax",
    "equinox": "equinox",
    "matplotlib": "plot",
    "scikit-learn": "sklearn",
    "pandas": "all",
    "tensorboardX": "tensorboard",
}
_GIB = 2**30


class Check(NamedTuple):
    """One line of the report.

    Attributes:
        name: what was looked at.
        value: what was found.
        ok: whether that is as it should be.
        needed: whether Sumfold cannot run without it.
        remedy: what to do when it is not ok.
    """

    name: str
    value: str
    ok: bool = True
    needed: bool = True
    remedy: str = ""


@verb
def doctor(as_json: Json = False) -> Outcome:
    """Check Python, JAX, devices, optional packages, and this machine's room.

    Ends with 0 if Sumfold can run, else with 1.

    Example: sumfold doctor
    """
    del as_json
    found = list(checks())
    healthy = all(check.ok for check in found if check.needed)
    _show(found, healthy)
    document = {"ok": healthy, "checks": [check._asdict() for check in found]}
    return Outcome(document, DONE if healthy else FAILED)


def checks() -> Iterator[Check]:
    """Every check, in the order of the report."""
    yield _python()
    yield Check("sumfold", __version__)
    yield from _jax()
    yield from (_package(name) for name in _NEEDED)
    yield _keras()
    yield from (_package(name, extra) for name, extra in _OPTIONAL.items())
    yield _writing()
    yield from _room()


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("Python", f"{platform.python_version()}, {sys.executable}", ok, remedy="Sumfold needs 3.11 or later")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str, extra: str | None = None) -> Check:
    """A package that Sumfold needs, or one that an extra brings."""
    version = _version(name)
    remedy = f"pip install 'sumfold[{extra}]'" if extra else f"pip install {name}"
    return Check(name, version or "not installed", version is not None, extra is None, remedy)


def _jax() -> Iterator[Check]:
    """JAX, and whether it computes."""
    yield _package("jax")
    try:
        import jax

        devices = jax.devices()
        total = float(jax.numpy.arange(4.0).sum())
    except Exception as error:  # whatever keeps JAX from its devices is the finding
        text = str(error).strip().splitlines() or [""]
        remedy = "see docs.jax.dev/en/latest/installation.html; JAX_PLATFORMS=cpu leaves accelerators out"
        yield Check("devices", f"{type(error).__name__}: {text[0]}", ok=False, remedy=remedy)
        return
    yield Check("devices", ", ".join(str(device) for device in devices), total == 6.0, remedy="JAX computes wrongly")
    yield Check("backend", jax.default_backend())


def _keras() -> Check:
    """Keras and the backend that it will choose, without importing it."""
    check = _package("keras", "keras")
    if not check.ok:
        return check
    backend = _keras_backend()
    remedy = "set KERAS_BACKEND=jax for sf.models.from_keras"
    return check._replace(value=f"{check.value}, backend {backend}", ok=backend == "jax", remedy=remedy)


def _keras_backend() -> str:
    if chosen := os.environ.get("KERAS_BACKEND"):
        return chosen
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return str(json.loads((home / "keras.json").read_text("utf-8"))["backend"])
    except (OSError, ValueError, KeyError, TypeError):
        return "tensorflow"


def _writing() -> Check:
    here = Path.cwd()
    try:
        with tempfile.TemporaryFile(dir=here):
            return Check("writing here", str(here), needed=False)
    except OSError as error:
        remedy = "go to another folder, or pass --out"
        return Check("writing here", f"{here}: {error.strerror}", ok=False, needed=False, remedy=remedy)


def _room() -> Iterator[Check]:
    """CPUs, free memory and free disk: nothing to fail, but good to know."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Check("CPUs", str(cpus), needed=False)
    memory = _free_memory()
    yield Check("free memory", "unknown" if memory is None else f"{memory / _GIB:.1f} GiB", needed=False)
    yield Check("free disk", f"{shutil.disk_usage(Path.cwd()).free / _GIB:.1f} GiB", needed=False)


def _free_memory() -> int | None:
    """Bytes that programs can still get, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    sizes = {name: text for name, _, text in (line.partition(":") for line in lines)}
    return int(sizes["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in sizes else None


def _show(found: list[Check], healthy: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for check in found:
        bad = "red" if check.needed else "yellow"
        mark = "[green]✓[/green]" if check.ok else f"[{bad}]✗[/{bad}]"
        value = check.value if check.ok or not check.remedy else f"{check.value} → {check.remedy}"
        table.add_row(mark, check.name, _plain(value))
    console = Console(highlight=False)
    console.print(table)
    verdict = "[green]Sumfold can run here.[/green]" if healthy else "[red]Sumfold cannot run here.[/red]"
    console.print(f"\n{verdict}")


def _plain(text: str) -> str:
    """The text without any meaning of its brackets."""
    from rich.markup import escape

    return escape(text)
