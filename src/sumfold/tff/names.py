"""Every name of TensorFlow Federated's: where it is found here, or what to write in its place.

One table. The modules of `sumfold.tff` read it when a name is first used, so importing them loads nothing else.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

from sumfold.errors import CompositionError

__all__ = ["OFFERED", "REFUSED", "names_of", "resolve"]

_SAME = (
    *("federated_computation", "computation", "federated_value", "federated_eval", "federated_map", "federated_zip"),
    *("federated_broadcast", "federated_select", "federated_secure_select", "federated_sum", "federated_mean"),
    *("federated_weighted_mean", "federated_min", "federated_max", "federated_aggregate", "federated_secure_sum"),
    *("federated_secure_sum_bitwidth", "federated_secure_modular_sum"),
    *("sequence_map", "sequence_reduce", "sequence_sum", "CLIENTS", "SERVER"),
)
_TYPES = (
    *("TensorType", "StructType", "SequenceType", "FunctionType", "FederatedType", "PlacementType"),
    *("to_type", "type_at_clients", "type_at_server"),
)
_OPTIMIZERS = ("sgdm", "adam", "adamw", "adagrad", "yogi", "rmsprop", "adafactor")
_LEARNING = "sumfold.tff.learning"
_DATA = "sumfold.tff.simulation.client_data"

OFFERED: dict[str, str] = {
    # the language
    **{f"tff.{name}": f"sumfold:{name}" for name in (*_SAME, *_TYPES)},
    **{f"tff.types.{name}": f"sumfold:{name}" for name in _TYPES},
    "tff.StructWithPythonType": "sumfold.tff.structs:StructWithPythonType",
    "tff.types.StructWithPythonType": "sumfold.tff.structs:StructWithPythonType",
    "tff.types.at_clients": "sumfold:type_at_clients",
    "tff.types.at_server": "sumfold:type_at_server",
    "tff.tf_computation": "sumfold:computation",
    "tff.jax_computation": "sumfold:computation",
    "tff.tensorflow.computation": "sumfold:computation",
    "tff.jax.computation": "sumfold:computation",
    # modules
    "tff.jax": "sumfold.tff.jax",
    "tff.learning": "sumfold.tff.learning",
    "tff.learning.algorithms": "sumfold.tff.learning.algorithms",
    "tff.learning.models": "sumfold.tff.learning.models",
    "tff.learning.optimizers": "sumfold.tff.learning.optimizers",
    "tff.simulation": "sumfold.tff.simulation",
    "tff.simulation.datasets": "sumfold.tff.simulation.datasets",
    "tff.tensorflow": "sumfold.tff.tensorflow",
    "tff.types": "sumfold.tff.types",
    # learning
    "tff.learning.ClientWeighting": f"{_LEARNING}.weighting:ClientWeighting",
    "tff.learning.build_federated_averaging_process": f"{_LEARNING}.classic:build_federated_averaging_process",
    "tff.learning.build_federated_evaluation": f"{_LEARNING}.classic:build_federated_evaluation",
    "tff.learning.from_keras_model": f"{_LEARNING}.keras_model:from_keras_model",
    "tff.learning.models.from_keras_model": f"{_LEARNING}.keras_model:from_keras_model",
    "tff.learning.algorithms.build_fed_eval": f"{_LEARNING}.averaging:build_fed_eval",
    "tff.learning.algorithms.build_fed_kmeans": f"{_LEARNING}.clustering:build_fed_kmeans",
    "tff.learning.algorithms.build_fed_sgd": f"{_LEARNING}.relatives:build_fed_sgd",
    "tff.learning.algorithms.build_unweighted_fed_avg": f"{_LEARNING}.averaging:build_unweighted_fed_avg",
    "tff.learning.algorithms.build_unweighted_mime_lite": f"{_LEARNING}.relatives:build_unweighted_mime_lite",
    "tff.learning.algorithms.build_unweighted_fed_prox": f"{_LEARNING}.relatives:build_unweighted_fed_prox",
    "tff.learning.algorithms.build_weighted_fed_avg": f"{_LEARNING}.averaging:build_weighted_fed_avg",
    "tff.learning.algorithms.build_weighted_mime_lite": f"{_LEARNING}.relatives:build_weighted_mime_lite",
    "tff.learning.algorithms.build_weighted_fed_prox": f"{_LEARNING}.relatives:build_weighted_fed_prox",
    "tff.learning.algorithms.build_weighted_fed_avg_with_optimizer_schedule": (
        f"{_LEARNING}.schedule:build_weighted_fed_avg_with_optimizer_schedule"
    ),
    **{f"tff.learning.optimizers.build_{name}": f"{_LEARNING}.transforms:build_{name}" for name in _OPTIMIZERS},
    # simulation
    "tff.simulation.ClientData": f"{_DATA}:ClientData",
    "tff.simulation.FromTensorSlicesClientData": f"{_DATA}:TestClientData",
    "tff.simulation.build_uniform_sampling_fn": "sumfold.tff.simulation.sampling:build_uniform_sampling_fn",
    "tff.simulation.datasets.ClientData": f"{_DATA}:ClientData",
    "tff.simulation.datasets.TestClientData": f"{_DATA}:TestClientData",
}
"""TFF's name -> ``module:attribute``, or a module."""

_TODAY = (
    "it is not there yet; sf.learning has fed_avg, fed_sgd, fed_prox, scaffold, fed_nova, fed_dyn, mime, mime_lite, "
    "q_fed_avg, local_layers, fed_bn, ditto, ifca, kmeans, fine_tune and fed_eval; to add an algorithm, begin as "
    "sumfold/learning/fed_avg.py does: a Round, made into an sf.Process"
)
_AGGREGATORS = "pass a stage of sf.aggregators: sf.learning.fed_avg(…, aggregator=sf.aggregators.mean())"
_LOOP = "use sf.train(process, data, rounds=…, evaluate=…, checkpoint=…), or a for loop over process.next"
_DATASETS = (
    "this data is not shipped: read its arrays and use sf.data.Federation.from_arrays(x, y, client_ids=…), or try "
    "sf.data.heart_disease() and sf.data.digits()"
)
_MODEL = (
    "use sf.models.from_functions(init, predict, loss), from_keras, from_flax, from_equinox, from_torch or from_sklearn"
)
_PERSONAL = (
    "use sf.learning.fine_tune(model, optimizer), which measures clients before and after local steps; for algorithms "
    "that personalise in training, sf.learning.local_layers, fed_bn and ditto"
)
_WEIGHTS = "use sf.models.save(path, weights) and sf.models.load(path)"
_STRUCT = "write tuples and dicts, and look at them with jax.tree"
_SPLIT = "use sf.data.partition.iid, dirichlet, shards or power_law on arrays"
_NO_TYPES = "types are printed by str(type) and compared by ==; sf.to_type makes them"

REFUSED: dict[str, str] = {
    # the language
    "tff.federated_apply": "use tff.federated_map, its name since TFF 0.19",
    "tff.federated_average": "use tff.federated_mean(value, weight), its name since TFF 0.3",
    "tff.federated_collect": (
        "what leaves the clients is a sum, not their values: use tff.federated_sum, tff.federated_mean or "
        "tff.federated_aggregate; called without a runtime, a computation may return tff.federated_map(fn, value), "
        "one entry a client"
    ),
    "tff.federated_reduce": "use tff.federated_aggregate(value, zero, accumulate, merge, report)",
    "tff.NamedTupleType": "use tff.StructType, its name since TFF 0.17",
    "tff.Computation": "use sf.federated_computation, and comp.type_signature",
    "tff.Type": _NO_TYPES,
    "tff.AbstractType": "leave the type out: sf.federated_computation without types is specialised at each call",
    "tff.Value": "values exist inside sf.federated_computation only; annotate them as Any",
    "tff.to_value": "write sf.federated_value(value, sf.SERVER) inside sf.federated_computation",
    "tff.check_return_type": "use an ordinary return annotation, and comp.type_signature of sf.federated_computation",
    "tff.types.Type": _NO_TYPES,
    "tff.types.AbstractType": "leave the type out: sf.federated_computation is specialised at each call",
    "tff.types.type_to_tf_structure": "use sf.to_type, and str(type)",
    "tff.types.serialize_type": "use str(type) of sf.to_type",
    "tff.types.deserialize_type": "use sf.to_type",
    "tff.jax.serialize_computation": "use sf.federated_computation; process.on(runtime) exports it where it must be",
    "tff.tensorflow.transform_args": "use jax.tree.map on the arguments of an sf.computation",
    "tff.tensorflow.to_type": "use sf.to_type",
    "tff.structure": _STRUCT + "; sf.StructType is their type",
    # packages
    "tff.aggregators": _AGGREGATORS,
    "tff.analytics": "use sf.analytics, or sf.federated_aggregate in an sf.federated_computation",
    "tff.async_utils": "sf.Process is called as it is: nothing has to be awaited",
    "tff.backends": (
        "delete this line: nothing has to be started; process.on(sf.Loopback()) or another runtime says where an "
        "algorithm runs"
    ),
    "tff.framework": (
        "there is no compiler to call: process.explain() of an sf.Process shows what runs where, and "
        "process.on(runtime) chooses the runtime"
    ),
    "tff.profiler": "use jax.profiler around sf.train",
    "tff.program": "use " + _LOOP.removeprefix("use ").replace("checkpoint=…)", "checkpoint=…, callbacks=[…])"),
    "tff.test": "use sf.testing, for example sf.testing.check_round and assert_runtimes_agree",
    "tff.templates": "sf.Process takes the place of IterativeProcess, and sf.Stage that of AggregationProcess",
    "tff.utils": "use jax.tree and sf.Stage; the sums of federated data are sf.federated_sum and its siblings",
    "tff.research": "use sf.learning for algorithms and sf.data for data sets",
    # learning
    "tff.learning.Model": _MODEL,
    "tff.learning.ModelWeights": "the weights are what process.get_model_weights(state) of an sf.Process gives",
    "tff.learning.LoopImplementation": "leave it out: sf.Simulation compiles the loop over batches",
    "tff.learning.BatchOutput": "use sf.models.from_functions, whose predict returns outputs and whose loss one value "
    "per example",
    "tff.learning.add_debug_measurements": _AGGREGATORS,
    "tff.learning.assign_weights_to_keras_model": (
        "write process.get_model_weights(state).assign_to(keras_model), as sf.models.from_keras says"
    ),
    "tff.learning.build_federated_sgd_process": "use tff.learning.algorithms.build_fed_sgd, its name since TFF 0.28",
    "tff.learning.build_personalization_eval": _PERSONAL,
    "tff.learning.build_local_evaluation": "use model.evaluate(weights, x, y) of a model of sf.models",
    "tff.learning.compression_aggregator": _AGGREGATORS,
    "tff.learning.ddp_secure_aggregator": _AGGREGATORS,
    "tff.learning.dp_aggregator": _AGGREGATORS,
    "tff.learning.entropy_compression_aggregator": _AGGREGATORS,
    "tff.learning.robust_aggregator": _AGGREGATORS,
    "tff.learning.secure_aggregator": _AGGREGATORS,
    "tff.learning.federated_aggregate_keras_metric": "pass metrics= to sf.models.from_keras",
    "tff.learning.framework": "write the algorithm as an sf.Round and wrap it in sf.Process",
    "tff.learning.metrics": (
        "pass metrics= to sf.models.from_keras or from_functions: they are summed over clients and finished on the "
        "server; sf.metrics has further ones"
    ),
    "tff.learning.programs": _LOOP,
    "tff.learning.reconstruction": _TODAY,
    "tff.learning.state_with_new_model_weights": "use process.set_model_weights(state, weights) of an sf.Process",
    "tff.learning.templates": "write the algorithm as an sf.Round of sf.Stage parts and wrap it in sf.Process",
    "tff.learning.algorithms.build_fed_multi_model_eval": "use sf.learning.fed_eval, once for each model",
    "tff.learning.algorithms.build_fed_recon": _TODAY,
    "tff.learning.algorithms.build_fed_recon_eval": _TODAY,
    "tff.learning.algorithms.build_mime_lite_with_optimizer_schedule": (
        "use tff.learning.algorithms.build_weighted_mime_lite, with an optax schedule as the rate of the base "
        "optimizer; its count of steps is that of rounds"
    ),
    "tff.learning.algorithms.build_personalization_eval_computation": _PERSONAL,
    "tff.learning.models.BatchOutput": _MODEL,
    "tff.learning.models.FunctionalModel": _MODEL,
    "tff.learning.models.ModelWeights": "the weights are what process.get_model_weights(state) of an sf.Process gives",
    "tff.learning.models.ReconstructionModel": _MODEL,
    "tff.learning.models.VariableModel": _MODEL,
    "tff.learning.models.functional_model_from_keras": "use from_keras_model, or sf.models.from_keras",
    "tff.learning.models.load": _WEIGHTS,
    "tff.learning.models.load_functional_model": _WEIGHTS,
    "tff.learning.models.model_from_functional": _MODEL,
    "tff.learning.models.save": _WEIGHTS,
    "tff.learning.models.save_functional_model": _WEIGHTS,
    "tff.learning.optimizers.Optimizer": "pass an optax transform or a Keras optimizer to sf.learning.fed_avg",
    "tff.learning.optimizers.KerasOptimizer": "pass the Keras optimizer itself to sf.learning.fed_avg",
    "tff.learning.optimizers.schedule_learning_rate": (
        "pass client_optimizer=fn(round) to sf.learning.fed_avg for a schedule by round, or give an optax schedule as "
        "the learning rate for one by step"
    ),
    # simulation
    "tff.simulation.CSVMetricsManager": "use history.save(path) or history.to_frame() of sf.train",
    "tff.simulation.FileCheckpointManager": "use sf.train(…, checkpoint=folder), or sf.save(path, state) and sf.load",
    "tff.simulation.FilePerUserClientData": "use sf.data.Federation.from_arrays on memory-mapped arrays",
    "tff.simulation.MetricsManager": "use the history that sf.train returns",
    "tff.simulation.TensorBoardManager": "use sf.train(…, callbacks=[sf.callbacks.TensorBoard(folder)])",
    "tff.simulation.baselines": _DATASETS,
    "tff.simulation.build_uniform_client_sampling_fn": (
        "use tff.simulation.build_uniform_sampling_fn(client_ids), or sf.train(…, clients_per_round=…)"
    ),
    "tff.simulation.compose_dataset_computation_with_computation": (
        "pass ids: process.next(state, federation, clients=ids), where federation is an sf.data.Federation"
    ),
    "tff.simulation.compose_dataset_computation_with_iterative_process": (
        "pass ids: process.next(state, federation, clients=ids), where federation is an sf.data.Federation"
    ),
    "tff.simulation.compose_dataset_computation_with_learning_process": (
        "pass ids: process.next(state, federation, clients=ids), where federation is an sf.data.Federation"
    ),
    "tff.simulation.models": "build the network in Keras, Flax or Equinox and wrap it with sf.models",
    "tff.simulation.run_simulation": _LOOP,
    "tff.simulation.run_simulation_with_callbacks": _LOOP,
    "tff.simulation.run_training_process": _LOOP,
    **{
        f"tff.simulation.datasets.{name}": _DATASETS
        for name in ("celeba", "cifar100", "emnist", "flair", "gldv2", "inaturalist", "shakespeare", "stackoverflow")
    },
    "tff.simulation.datasets.FilePerUserClientData": "use sf.data.Federation.from_arrays on memory-mapped arrays",
    "tff.simulation.datasets.SqlClientData": (
        "use sf.data.Federation.from_sqlite(path) on a file that federation.save(path) wrote"
    ),
    "tff.simulation.datasets.TransformingClientData": "transform the arrays before sf.data.Federation.from_clients",
    "tff.simulation.datasets.build_dataset_mixture": _SPLIT,
    "tff.simulation.datasets.build_single_label_dataset": _SPLIT,
    "tff.simulation.datasets.build_synthethic_iid_datasets": _SPLIT,
    "tff.simulation.datasets.load_and_parse_sql_client_data": "use sf.data.Federation.from_sqlite(path)",
    "tff.simulation.datasets.save_to_sql_client_data": "use federation.save(path), and sf.data.Federation.from_sqlite",
}
"""TFF's name -> the Sumfold way."""


def resolve(module: str, name: str) -> Any:
    """The object behind a name of a module of `sumfold.tff`; kept there, so that the next use is direct.

    Args:
        module: the module's full name, ``"sumfold.tff.learning"``.
        name: the attribute asked for.

    Raises:
        AttributeError: naming the Sumfold way of a name that TFF has or had, and close matches of any other.

    Example:
        >>> resolve("sumfold.tff", "federated_average")
        Traceback (most recent call last):
        AttributeError: ... use tff.federated_mean(value, weight), its name since TFF 0.3 [SF-COMP-070]
    """
    spelled = f"{module.removeprefix('sumfold.')}.{name}"
    if spelled not in OFFERED:
        raise AttributeError(_refusal(module, name, spelled), name=name)
    path, _, attribute = OFFERED[spelled].partition(":")
    value = importlib.import_module(path)
    if attribute:
        value = getattr(value, attribute)
    setattr(sys.modules[module], name, value)
    return value


def names_of(module: str) -> list[str]:
    """What a module of `sumfold.tff` offers, sorted.

    Example:
        >>> names_of("sumfold.tff.jax")
        ['computation']
    """
    prefix = module.removeprefix("sumfold.") + "."
    return sorted(rest for spelled in OFFERED if "." not in (rest := spelled.removeprefix(prefix)))


def _refusal(module: str, name: str, spelled: str) -> str:
    if spelled in REFUSED:
        came = f"{spelled} is not offered"
        return str(
            CompositionError("SF-COMP-070", came, f"a name of dir({spelled.rpartition('.')[0]})", REFUSED[spelled])
        )
    text = f"module {module!r} has no attribute {name!r}"
    if name.startswith("__"):
        return text
    elsewhere = [other for other in OFFERED if other.rpartition(".")[2] == name]
    close = [f"{spelled.rpartition('.')[0]}.{match}" for match in difflib.get_close_matches(name, names_of(module))]
    meant = " or ".join(dict.fromkeys(elsewhere + close))
    return f"{text}; did you mean {meant}?" if meant else text
