"""Who competes in which workload, and where their Python is."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["CONTESTANTS", "PLATFORMS", "Contestant", "folder", "missing", "python_of"]

HERE = Path(__file__).resolve().parent

PLATFORMS = ("cpu", "cuda")
"""Where contestants may compute, as JAX names it; ``cuda`` is the first GPU."""

_LINEAR = ("w1", "w4", "w4b", "w4c", "w4d")
_IMAGES = ("w1", "w2", "w3", "w3b")
_SUMS = ("w6", "w6a", "w6c")
_TEXT = ("w5", "w5t", "shakespeare")


class Contestant(NamedTuple):
    """One way to compute the workloads.

    Attributes:
        name, title: how it is asked for, and what the table calls it.
        script: in the folder ``contestants``.
        peer: whose environment runs it; empty is Sumfold's own.
        package: that must be importable there.
        workloads: those that it can do in reasonable time.
        options: of the script.
        usual: whether it runs when no contestant is named.
        platforms: those of `PLATFORMS` on which it can compute.
    """

    name: str
    title: str
    script: str
    peer: str
    package: str
    workloads: Collection[str]
    options: tuple[str, ...] = ()
    usual: bool = True
    platforms: tuple[str, ...] = ("cpu",)


_EVERY = (*_IMAGES, *_LINEAR[1:], *_TEXT, *_SUMS)
_SMALL = (*_IMAGES, "w4", "w4b", *_TEXT)

CONTESTANTS: dict[str, Contestant] = {
    c.name: c
    for c in (
        Contestant("sumfold", "Sumfold", "sumfold_.py", "", "sumfold", _EVERY, platforms=PLATFORMS),
        *(
            Contestant(name, f"Sumfold, {title}", "sumfold_.py", "", package, work, (option,), False, PLATFORMS)
            for name, title, package, work, option in (
                ("train", "sf.train", "sumfold", (*_SMALL, "w4c"), "loop=train"),
                ("flax", "model in Flax", "flax", ("w2",), "model=flax"),
                ("keras", "model in Keras", "keras", ("w2",), "model=keras"),
                ("equinox", "model in Equinox", "equinox", ("w2",), "model=equinox"),
            )
        ),
        Contestant(
            "torch", "PyTorch by hand, 1 process", "torch_loop.py", "torch", "torch", _SMALL, platforms=PLATFORMS
        ),
        Contestant(
            "torch-processes", "PyTorch by hand, a process a core", "torch_processes.py", "torch", "torch", _SMALL
        ),
        Contestant(
            "torch-vectorised",
            "PyTorch by hand, clients abreast",
            "torch_vectorised.py",
            "torch",
            "torch",
            _LINEAR,
            platforms=PLATFORMS,
        ),
        Contestant("fedjax", "FedJAX", "fedjax_.py", "fedjax", "fedjax", _SMALL),
        Contestant("pfl", "pfl-research, 1 process", "pfl_.py", "pfl", "pfl", _SMALL),
        Contestant("pfl-processes", "pfl-research, 2 processes", "pfl_.py", "pfl", "pfl", _SMALL, ("processes=2",)),
        Contestant("flower", "Flower, simulation", "flower_.py", "flower", "flwr", (*_IMAGES, "w4", *_TEXT)),
        Contestant("tff", "TensorFlow Federated", "tff_.py", "tff", "tensorflow_federated", (*_IMAGES, "w4")),
        Contestant("sum-numpy", "NumPy by hand", "sum_in_process.py", "", "numpy", _SUMS, ("library=numpy",)),
        Contestant("sum-torch", "PyTorch by hand", "sum_in_process.py", "torch", "torch", _SUMS, ("library=torch",)),
    )
}


def folder() -> Path:
    """Where environments and data are looked for by default."""
    import os

    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sumfold-bench"


def python_of(contestant: Contestant, environments: Path) -> Path | None:
    """The interpreter that runs a contestant: its own environment's, or this one where the package is here too."""
    place = environments / contestant.peer / "bin" / "python"
    if contestant.peer and place.exists():
        return place
    return Path(sys.executable) if importlib.util.find_spec(contestant.package) else None


def missing(names: Collection[str], environments: Path) -> Iterator[tuple[str, str]]:
    """The contestants of these that cannot run here, and the commands that change it."""
    told = set()
    for name in names:
        one = CONTESTANTS[name]
        if python_of(one, environments) is not None or one.peer in told:
            continue
        if not one.peer:
            yield one.title, f"pip install 'sumfold[{one.package}]'"
            continue
        told.add(one.peer)
        place, lists = environments / one.peer, HERE / "requirements"
        pip = f"{place}/bin/python -m pip install"
        commands = [f"python3.11 -m venv {place}", f"{pip} -r {lists / one.peer}.txt"]
        if (lists / f"{one.peer}-alone.txt").exists():
            commands.append(f"{pip} --no-deps -r {lists / one.peer}-alone.txt")
        yield one.peer, " && ".join(commands)
