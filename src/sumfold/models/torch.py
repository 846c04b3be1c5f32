"""PyTorch modules: trained by PyTorch on the clients, averaged as arrays on the server.

A state dict becomes a tree without pickle. Parameters that need a gradient are trained and averaged; floating buffers
(running means and variances) are averaged as statistics; frozen parameters and integer buffers stay as the server has
them. Tied weights are one array.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.errors import CompositionError, StateError, missing_extra, user_facing
from sumfold.keys import Key
from sumfold.models.adapter import checked_loss
from sumfold.models.functions import matching
from sumfold.models.host import HostModel, canonical_shapes, no_array_program
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Parts
from sumfold.models.torch_state import StateDict, names_of
from sumfold.models.torch_training import Torch
from sumfold.tree import Tree

__all__ = ["from_torch"]


@user_facing
def from_torch(
    build: Callable[[], Any] | Any,
    loss: Callable[[Any, Any], Any] | Any = None,
    optimizer: Callable[[Any], Any] | Any = None,
    metrics: Mapping[str, Any] | Any = None,
    *,
    fit: Callable[..., Any] | Any = None,
    device: str = "cpu",
) -> HostModel:
    """A model from a PyTorch module; clients train it in PyTorch, in processes of their own.

    Either a loss and an optimizer are given, and the adapter takes the steps; or `fit` is the user's own loop. A client
    begins each round with the server's weights and a new optimizer, and with PyTorch's generator seeded from the run's
    seed, the round and the client. Weights are a `StateDict`; ``weights.assign_to(module)`` puts them into a module.

    Args:
        build: ``() -> module``, or a module, which is copied. Initial weights follow from the run's seed if `build`
            draws them.
        loss: (outputs, y) -> loss of each example [B], such as ``CrossEntropyLoss(reduction="none")``; one number is
            taken as the mean over the batch.
        optimizer: ``parameters -> optimizer``, such as ``lambda p: torch.optim.SGD(p, lr=0.1)``; with a second
            parameter it is also given the round, for schedules.
        metrics: name -> fn(outputs, y) -> value of each example [B], on tensors; or a `sumfold.metrics.Metric` or
            function of ``sumfold.metrics``.
        fit: ``(module, loader) -> n``: train in place and return the number of examples, which is also the client's
            weight under ``weighting="examples"``. Each pass over ``loader`` gives the batches of one epoch as tensors.
            With a parameter ``round`` it is given that too. Loss and metrics are then measured after training.
        device: where clients train.

    Features that are a tuple are passed as positional arguments, a dict as keywords. Floating arrays become tensors of
    PyTorch's default dtype, integers int64 (uint8 stays).

    Raises:
        MissingExtraError: when PyTorch is not installed.
        CompositionError: when something is not what it should be, or the module's state holds objects.

    Example:
        >>> import numpy as np, optax, sumfold as sf, torch
        >>> model = from_torch(
        ...     lambda: torch.nn.Linear(2, 3),
        ...     loss=torch.nn.CrossEntropyLoss(reduction="none"),
        ...     optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ... )
        >>> process = sf.learning.fed_avg(model).on(sf.Loopback())
        >>> clients = [(np.ones((4, 2)), np.zeros(4, int)), (np.zeros((3, 2)), np.ones(3, int))]
        >>> state, metrics = process.next(process.initialize(seed=0), clients)
        >>> {name: array.shape for name, array in process.get_model_weights(state).items()}
        {'bias': (3,), 'weight': (3, 2)}
    """
    try:
        import torch
    except ImportError:
        raise missing_extra("torch", "torch") from None
    if not (isinstance(build, torch.nn.Module) or (callable(build) and not _is_instance_class(build, torch))):
        raise CompositionError(
            "SF-MODEL-020",
            f"build is {'the class ' + build.__name__ if inspect.isclass(build) else f'a {type(build).__name__}'}",
            "a function () -> torch.nn.Module, or a module",
            "write for example from_torch(lambda: Net(10), …)",
        )
    if fit is None or loss is not None:
        loss = checked_loss(loss, 'torch.nn.CrossEntropyLoss(reduction="none")')
    if getattr(loss, "reduction", None) == "sum":
        raise CompositionError(
            "SF-MODEL-025",
            f"{type(loss).__name__}(reduction='sum')",
            "the loss of each example, or their mean: a sum grows with the batch",
            'use reduction="none"',
        )
    if fit is None:
        _check_optimizer(optimizer, torch)
    elif optimizer is not None or not callable(fit):
        raise CompositionError(
            "SF-MODEL-022",
            "an optimizer and fit" if callable(fit) else f"fit is a {type(fit).__name__}",
            "a loss and an optimizer, or a function fit(module, loader) -> n with an optimizer of its own",
            "make the optimizer inside fit",
        )
    measured = as_metrics(metrics)
    _check_device(device, torch)
    trainer = Torch(build, loss, optimizer, dict(metrics or {}), fit, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = trainer.built()
    names = names_of(module, torch)
    template = names.divided(names.state)

    def init(key: Key) -> Tree:
        words = np.asarray(jax.random.key_data(key)).tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed((words[0] << 31) ^ words[1])
            return names_of(trainer.built(), torch).whole()

    def split(weights: Tree) -> Parts:
        expected = canonical_shapes(names.whole())
        if not isinstance(weights, Mapping) or set(weights) != set(expected):
            given = sorted(weights) if isinstance(weights, Mapping) else f"a {type(weights).__name__}"
            raise StateError(
                "SF-STATE-003",
                f"weights with {given}",
                f"the module's own: {sorted(expected)}",
                "pass what get_model_weights or models.load gave for this model, or a module's state_dict in NumPy",
            )
        return names.divided(matching(expected, StateDict(weights)))

    return HostModel(
        name=type(module).__name__,
        template=jax.tree.map(
            lambda a: tree.shape(np.shape(a), jnp.result_type(a)), jax.tree.map(jnp.asarray, template)
        ),
        init=init,
        split=split,
        join=names.joined,
        apply=no_array_program,
        loss=no_array_program,
        metrics=measured,
        layers=lambda: {
            f"{place}.{name}".lstrip("."): type(layer)
            for place, layer in module.named_modules()
            for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))
        },
        trainer=trainer,
        owns_step=fit is None,
        counts=fit is not None,
        has_loss=loss is not None,
    )


def _is_instance_class(build: Any, torch: Any) -> bool:
    """Whether this is a module class whose constructor needs arguments."""
    if not (inspect.isclass(build) and issubclass(build, torch.nn.Module)):
        return False
    required = [p for p in list(inspect.signature(build).parameters.values()) if p.default is p.empty]
    return any(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in required)


def _check_device(device: Any, torch: Any) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise CompositionError(
            "SF-MODEL-027",
            f"device={device!r}, on which PyTorch fails here ({str(error).strip().splitlines()[0]})",
            "a device that this machine has",
            'leave device out for the CPU, or write for example device="cuda:0"',
        ) from error


def _check_optimizer(optimizer: Any, torch: Any) -> None:
    made = isinstance(optimizer, torch.optim.Optimizer)
    if made or not callable(optimizer) or (inspect.isclass(optimizer)):
        what = "missing" if optimizer is None else f"a {type(optimizer).__name__}"
        raise CompositionError(
            "SF-MODEL-021",
            f"the optimizer is {'the class ' + optimizer.__name__ if inspect.isclass(optimizer) else what}",
            "a function of the module's parameters that makes one: each client begins with its own",
            "write optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)",
        )
