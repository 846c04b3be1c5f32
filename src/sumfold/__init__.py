"""Sumfold: federated learning; an algorithm is written once, simulated fast, and exported for real clients.

Names resolve on first use, so ``import sumfold`` loads neither JAX nor any framework, server or plotting code.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    # records of the core
    "Batch": "core.round",
    "Batching": "core.batching",
    "Bound": "core.stage",
    "ClientStore": "core.store",
    "Contribution": "core.stage",
    "Group": "core.group",
    "Measured": "core.round",
    "Phase": "core.round",
    "Report": "core.round",
    "Round": "core.round",
    "Stage": "core.stage",
    "State": "core.driver",
    "Task": "core.round",
    "Work": "core.round",
    "chain": "core.stage",
    # runtimes, the loop, files
    "Federation": "data.federation",
    "History": "learning.history",
    "Loopback": "server.loopback",
    "Process": "learning.process",
    "Simulation": "simulation.engine",
    "load": "core.files",
    "save": "core.files",
    "train": "learning.train",
    # errors
    "CheckpointError": "errors",
    "CompositionError": "errors",
    "DataError": "errors",
    "MissingExtraError": "errors",
    "PlacementError": "errors",
    "StateError": "errors",
    "SumfoldError": "errors",
    "TypeMismatchError": "errors",
    "WireError": "errors",
}
_MODULES = {
    "aggregators": "aggregators",
    "analytics": "analytics",
    "callbacks": "learning.callbacks",
    "core": "core",
    "data": "data",
    "errors": "errors",
    "keys": "keys",
    "learning": "learning",
    "metrics": "models.metrics",
    "models": "models",
    "testing": "testing",
}

__all__ = sorted([*_NAMES, *_MODULES])

if TYPE_CHECKING:
    from sumfold import aggregators as aggregators
    from sumfold import analytics as analytics
    from sumfold import core as core
    from sumfold import data as data
    from sumfold import errors as errors
    from sumfold import keys as keys
    from sumfold import learning as learning
    from sumfold import models as models
    from sumfold import testing as testing
    from sumfold.core.batching import Batching as Batching
    from sumfold.core.driver import State as State
    from sumfold.core.files import load as load
    from sumfold.core.files import save as save
    from sumfold.core.group import Group as Group
    from sumfold.core.round import Batch as Batch
    from sumfold.core.round import Measured as Measured
    from sumfold.core.round import Phase as Phase
    from sumfold.core.round import Report as Report
    from sumfold.core.round import Round as Round
    from sumfold.core.round import Task as Task
    from sumfold.core.round import Work as Work
    from sumfold.core.stage import Bound as Bound
    from sumfold.core.stage import Contribution as Contribution
    from sumfold.core.stage import Stage as Stage
    from sumfold.core.stage import chain as chain
    from sumfold.core.store import ClientStore as ClientStore
    from sumfold.data.federation import Federation as Federation
    from sumfold.errors import CheckpointError as CheckpointError
    from sumfold.errors import CompositionError as CompositionError
    from sumfold.errors import DataError as DataError
    from sumfold.errors import MissingExtraError as MissingExtraError
    from sumfold.errors import PlacementError as PlacementError
    from sumfold.errors import StateError as StateError
    from sumfold.errors import SumfoldError as SumfoldError
    from sumfold.errors import TypeMismatchError as TypeMismatchError
    from sumfold.errors import WireError as WireError
    from sumfold.learning import callbacks as callbacks
    from sumfold.learning.history import History as History
    from sumfold.learning.process import Process as Process
    from sumfold.learning.train import train as train
    from sumfold.models import metrics as metrics
    from sumfold.server.loopback import Loopback as Loopback
    from sumfold.simulation.engine import Simulation as Simulation


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
