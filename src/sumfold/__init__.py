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
    "HostKey": "keys",
    "HostWork": "core.round",
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
    "Comparison": "learning.compare",
    "Federation": "data.federation",
    "History": "learning.history",
    "Loopback": "server.loopback",
    "Process": "learning.process",
    "Processes": "simulation.processes",
    "Ray": "simulation.ray",
    "Simulation": "simulation.engine",
    "Workers": "simulation.workers",
    "compare": "learning.compare",
    "load": "core.files",
    "save": "core.files",
    "train": "learning.train",
    # the language
    "CLIENTS": "language.placements",
    "Computation": "language.computation",
    "FederatedType": "language.types",
    "FunctionType": "language.types",
    "PlacementType": "language.types",
    "SERVER": "language.placements",
    "SequenceType": "language.types",
    "StructType": "language.types",
    "TensorType": "language.types",
    "computation": "language.computation",
    "federated_aggregate": "language.sums",
    "federated_broadcast": "language.placing",
    "federated_computation": "language.computation",
    "federated_eval": "language.placing",
    "federated_map": "language.placing",
    "federated_max": "language.sums",
    "federated_mean": "language.sums",
    "federated_min": "language.sums",
    "federated_secure_modular_sum": "language.secure",
    "federated_secure_select": "language.secure",
    "federated_secure_sum": "language.secure",
    "federated_secure_sum_bitwidth": "language.secure",
    "federated_select": "language.placing",
    "federated_sum": "language.sums",
    "federated_value": "language.placing",
    "federated_weighted_mean": "language.sums",
    "federated_zip": "language.placing",
    "sequence_map": "language.sequences",
    "sequence_reduce": "language.sequences",
    "sequence_sum": "language.sequences",
    "to_type": "language.types",
    "type_at_clients": "language.types",
    "type_at_server": "language.types",
    # errors
    "CheckpointError": "errors",
    "CompositionError": "errors",
    "DataError": "errors",
    "MissingExtraError": "errors",
    "PlacementError": "errors",
    "ProcessError": "errors",
    "StateError": "errors",
    "SumfoldError": "errors",
    "TypeMismatchError": "errors",
    "WireError": "errors",
    "WorkError": "errors",
}
_MODULES = {
    "aggregators": "aggregators",
    "analytics": "analytics",
    "callbacks": "learning.callbacks",
    "check": "language.check",
    "core": "core",
    "data": "data",
    "errors": "errors",
    "keys": "keys",
    "learning": "learning",
    "metrics": "models.metrics",
    "models": "models",
    "optimizers": "learning.server_optimizers",
    "sampling": "learning.sampling",
    "testing": "testing",
    "tff": "tff",
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
    from sumfold import tff as tff
    from sumfold.core.batching import Batching as Batching
    from sumfold.core.driver import State as State
    from sumfold.core.files import load as load
    from sumfold.core.files import save as save
    from sumfold.core.group import Group as Group
    from sumfold.core.round import Batch as Batch
    from sumfold.core.round import HostWork as HostWork
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
    from sumfold.errors import ProcessError as ProcessError
    from sumfold.errors import StateError as StateError
    from sumfold.errors import SumfoldError as SumfoldError
    from sumfold.errors import TypeMismatchError as TypeMismatchError
    from sumfold.errors import WireError as WireError
    from sumfold.errors import WorkError as WorkError
    from sumfold.keys import HostKey as HostKey
    from sumfold.language import check as check
    from sumfold.language.computation import Computation as Computation
    from sumfold.language.computation import computation as computation
    from sumfold.language.computation import federated_computation as federated_computation
    from sumfold.language.placements import CLIENTS as CLIENTS
    from sumfold.language.placements import SERVER as SERVER
    from sumfold.language.placing import federated_broadcast as federated_broadcast
    from sumfold.language.placing import federated_eval as federated_eval
    from sumfold.language.placing import federated_map as federated_map
    from sumfold.language.placing import federated_select as federated_select
    from sumfold.language.placing import federated_value as federated_value
    from sumfold.language.placing import federated_zip as federated_zip
    from sumfold.language.secure import federated_secure_modular_sum as federated_secure_modular_sum
    from sumfold.language.secure import federated_secure_select as federated_secure_select
    from sumfold.language.secure import federated_secure_sum as federated_secure_sum
    from sumfold.language.secure import federated_secure_sum_bitwidth as federated_secure_sum_bitwidth
    from sumfold.language.sequences import sequence_map as sequence_map
    from sumfold.language.sequences import sequence_reduce as sequence_reduce
    from sumfold.language.sequences import sequence_sum as sequence_sum
    from sumfold.language.sums import federated_aggregate as federated_aggregate
    from sumfold.language.sums import federated_max as federated_max
    from sumfold.language.sums import federated_mean as federated_mean
    from sumfold.language.sums import federated_min as federated_min
    from sumfold.language.sums import federated_sum as federated_sum
    from sumfold.language.sums import federated_weighted_mean as federated_weighted_mean
    from sumfold.language.types import FederatedType as FederatedType
    from sumfold.language.types import FunctionType as FunctionType
    from sumfold.language.types import PlacementType as PlacementType
    from sumfold.language.types import SequenceType as SequenceType
    from sumfold.language.types import StructType as StructType
    from sumfold.language.types import TensorType as TensorType
    from sumfold.language.types import to_type as to_type
    from sumfold.language.types import type_at_clients as type_at_clients
    from sumfold.language.types import type_at_server as type_at_server
    from sumfold.learning import callbacks as callbacks
    from sumfold.learning import sampling as sampling
    from sumfold.learning import server_optimizers as optimizers
    from sumfold.learning.compare import Comparison as Comparison
    from sumfold.learning.compare import compare as compare
    from sumfold.learning.history import History as History
    from sumfold.learning.process import Process as Process
    from sumfold.learning.train import train as train
    from sumfold.models import metrics as metrics
    from sumfold.server.loopback import Loopback as Loopback
    from sumfold.simulation.engine import Simulation as Simulation
    from sumfold.simulation.processes import Processes as Processes
    from sumfold.simulation.ray import Ray as Ray
    from sumfold.simulation.workers import Workers as Workers


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
