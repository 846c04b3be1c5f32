"""Local training in PyTorch: what a client runs, in a worker process or its own."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from sumfold.core.batching import Batching
from sumfold.errors import CompositionError, TypeMismatchError
from sumfold.keys import HostKey
from sumfold.models.host import Fitted, Pull, Sums, batches_of
from sumfold.models.metrics import Metric, as_metrics
from sumfold.models.model import Parts, unpack
from sumfold.models.torch_state import as_array, as_tensor
from sumfold.tree import Tree

__all__ = ["Loader", "Torch"]


class Torch:
    """Local training in PyTorch: what travels to a worker; see `sumfold.models.host.Trainer`.

    Args:
        build, loss, optimizer, fit, device: as in `from_torch`.
        given: metrics as the user gave them; the records are made where they are used.
    """

    def __init__(
        self,
        build: Any,
        loss: Any,
        optimizer: Any,
        given: dict[str, Any],
        fit: Any,
        device: str,
    ) -> None:
        import torch

        self.build, self.loss, self.optimizer, self.given = build, loss, optimizer, given
        self.own_fit, self.device = fit, device
        self.floats = str(torch.get_default_dtype()).removeprefix("torch.")
        self.module: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "module": None}

    def built(self) -> Any:
        """A new module."""
        import torch

        with self._settings():
            module = copy.deepcopy(self.build) if isinstance(self.build, torch.nn.Module) else self.build()
        if not isinstance(module, torch.nn.Module):
            raise CompositionError(
                "SF-MODEL-020",
                f"build returned a {type(module).__name__}",
                "a torch.nn.Module",
                "return the module from build",
            )
        return module.to(self.device)

    def fit(self, parts: Parts, data: Tree, key: HostKey, batching: Batching, pull: Pull | None) -> Fitted:
        """Train from these weights on what one client holds."""
        import torch

        sums = Sums(as_metrics(self.given))
        with torch.random.fork_rng(devices=[]), self._settings():
            torch.manual_seed(key.number())
            module = self._loaded(parts).train()
            loader = Loader(data, key, batching, self.device)
            if self.own_fit is None:
                self._train(module, loader, key, pull, sums)
                examples = loader.rows
            else:
                extra = {"round": key.round} if "round" in inspect.signature(self.own_fit).parameters else {}
                examples = _number(self.own_fit(module, loader, **extra))
                if self.loss is not None or self.given:
                    self._measure(module, data, sums)
            after = dict(module.named_parameters()) | dict(module.named_buffers())
            trainable, statistics = (
                {name: as_array(after[name]) for name in names} for names in (parts.trainable, parts.statistics)
            )
        return Fitted(trainable, statistics, sums.all(self.loss is not None), examples, loader.batches)

    def export(self, parts: Parts) -> Any:
        """A module with these weights."""
        with self._settings():
            return self._loaded(parts).eval()

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """PyTorch's settings of the whole process that results depend on.

        One thread: how sums are cut decides their last bits, and that must not depend on the machine.
        """
        import torch

        threads, floats = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(1)
        torch.set_default_dtype(getattr(torch, self.floats))
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(floats)

    def measure(self, parts: Parts, data: Tree) -> tuple[dict[str, Tree], int, int]:
        """(sums of loss and metrics, rows, batches), predicting."""
        sums = Sums(as_metrics(self.given))
        with self._settings():
            rows, batches = self._measure(self._loaded(parts), data, sums)
        return sums.all(self.loss is not None), rows, batches

    def outputs(self, parts: Parts, x: Tree) -> Tree:
        """The module's outputs for rows x."""
        import torch

        with torch.no_grad(), self._settings():
            module = self._loaded(parts).eval()
            pieces = [_called(module, self._tensors(piece)) for piece in batches_of(x)]
        numpy = [jax.tree.map(as_array, piece) for piece in pieces]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves), *numpy)

    def _loaded(self, parts: Parts) -> Any:
        """A module with these weights, a copy of its own: what it keeps besides its state must not reach the next."""
        import torch

        if self.module is None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.module = self.built()
        try:
            module = copy.deepcopy(self.module)
        except RuntimeError:  # torch.nn.utils.weight_norm keeps what PyTorch does not copy
            with torch.random.fork_rng(devices=[]):
                module = self.built()
        known = {**parts.trainable, **parts.statistics, **parts.constants}
        with torch.no_grad():
            for name, value in [*module.named_parameters(), *module.named_buffers()]:
                if name in known:
                    value.copy_(as_tensor(known[name]))
        return module

    def _tensors(self, given: Tree) -> Tree:
        return jax.tree.map(lambda a: as_input(a).to(self.device), given)

    def _train(self, module: Any, loader: Loader, key: HostKey, pull: Pull | None, sums: Sums) -> None:
        import torch

        parameters = [p for p in module.parameters() if p.requires_grad]
        takes_round = len(_positional(self.optimizer)) > 1
        optimizer = self.optimizer(parameters, key.round) if takes_round else self.optimizer(parameters)
        anchor = (
            {name: as_tensor(value).to(self.device) for name, value in pull.anchor.items()} if pull is not None else {}
        )
        for x, y, *given in loader.every_epoch():
            weight = given[0].float() if given else torch.ones(len(jax.tree.leaves(y)[0]), device=self.device)
            optimizer.zero_grad(set_to_none=True)
            try:
                outputs = _called(module, x)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise CompositionError(
                    "SF-MODEL-028",
                    "a last batch of one row, and a module with batch normalisation",
                    "batches of two rows or more: PyTorch cannot normalise over one",
                    "use sf.Batching(size=…, drop_remainder=True), or another batch size",
                ) from error
            value, total = self._objective(outputs, y, weight, bool(given))
            value.backward()
            if pull is not None:
                with torch.no_grad():
                    for name, p in module.named_parameters():
                        if name in anchor and p.grad is not None:
                            p.grad.add_(p - anchor[name], alpha=pull.strength)
            optimizer.step()
            self._add(sums, outputs, y, weight, total)

    def _objective(self, outputs: Any, y: Any, weight: Any, weighted: bool) -> tuple[Any, Any]:
        """(the mean loss of a batch, the weighted sum of its examples' losses)."""
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "Using a target size")  # PyTorch would broadcast, and train on nonsense
            losses = self.loss(outputs, y)
        if losses.ndim == 0:
            if weighted:
                raise CompositionError(
                    "SF-MODEL-024",
                    "example weights, and a loss that returns one number a batch",
                    "the loss of each example, so that it can be weighed",
                    'use reduction="none"',
                )
            return losses, losses.detach() * len(weight)
        losses = _one_per_example(losses, weight, "the loss")
        total = (losses * weight).sum()
        return total / weight.sum().clamp(min=1e-38), total.detach()

    def _add(self, sums: Sums, outputs: Any, y: Any, weight: Any, total: Any) -> None:
        """Count one batch, without a gradient."""
        outputs = jax.tree.map(lambda t: t.detach(), outputs)
        if total is not None:
            sums.add_loss(float(total), float(weight.sum()))
        ours = {name for name, given in self.given.items() if _is_sumfolds(given)}
        values = {
            name: np.asarray(_one_per_example(given(outputs, y), weight, f"the metric {name!r}").float().cpu())
            for name, given in self.given.items()
            if name not in ours
        }
        seen, labels = (jax.tree.map(as_array, outputs), jax.tree.map(as_array, y)) if ours else ((), ())
        sums.add(seen, labels, weight.cpu().numpy(), values)

    def _measure(self, module: Any, data: Tree, sums: Sums) -> tuple[int, int]:
        import torch

        module.eval()
        rows = batches = 0
        with torch.no_grad():
            for piece in batches_of(data):
                x, y, given = unpack(piece)
                x, y = self._tensors((x, y))
                outputs = _called(module, x)
                count = len(jax.tree.leaves(y)[0])
                weight = torch.ones(count) if given is None else as_input(given).float()
                weight = weight.reshape(count).to(self.device)
                total = None if self.loss is None else self._objective(outputs, y, weight, given is not None)[1]
                self._add(sums, outputs, y, weight, total)
                rows, batches = rows + count, batches + 1
        return rows, batches


class Loader:
    """A client's batches as tensors, in the order that every model of a run sees; each pass is the next epoch.

    Attributes:
        rows, batches: how many were given out so far, repeats counted.

    Example:
        >>> from sumfold.keys import HostKey
        >>> loader = Loader((np.ones((3, 2)), np.zeros(3)), HostKey(0, 0, 0, 0), Batching(size=2))
        >>> [len(x) for x, y in loader], loader.rows
        ([2, 1], 3)
    """

    def __init__(self, data: Tree, key: HostKey, batching: Batching, device: str = "cpu") -> None:
        self.data, self.key, self.batching, self.device = data, key, batching, device
        self.rows = self.batches = self.epoch = 0
        self.length = 0 if isinstance(data, list) else len(jax.tree.leaves(data)[0])

    def __len__(self) -> int:
        """Batches in a pass."""
        if isinstance(self.data, list):
            return len(self.data)
        one = self.batching._replace(epochs=1, max_steps=None)
        return int(one.steps(np.array([self.length]))[0])

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """(x, y) or (x, y, example_weight) of one epoch."""
        self.epoch += 1
        if isinstance(self.data, list):
            yield from map(self._given, self.data)
            return
        up_to = self._order(self.batching._replace(epochs=self.epoch, max_steps=None))
        yield from map(self._rows, up_to[(self.epoch - 1) * len(self) :])

    def every_epoch(self) -> Iterator[tuple[Any, ...]]:
        """All the steps that the batching asks for; ready-made batches in one pass."""
        if isinstance(self.data, list):
            yield from map(self._given, self.data)
        else:
            yield from map(self._rows, self._order(self.batching))

    def _order(self, batching: Batching) -> Any:
        key = self.key
        return batching.batches(self.length, seed=key.seed, round=key.round, client=key.client)

    def _rows(self, index: Any) -> tuple[Any, ...]:
        rows = index[index >= 0]
        return self._given(jax.tree.map(lambda a: a[rows], self.data))

    def _given(self, examples: Tree) -> tuple[Any, ...]:
        x, y, weight = unpack(examples)
        self.batches += 1
        self.rows += len(jax.tree.leaves(examples)[0])
        given = (x, y) if weight is None else (x, y, np.reshape(weight, -1))
        tensors: tuple[Any, ...] = jax.tree.map(lambda a: as_input(a).to(self.device), given)
        return tensors


def as_input(array: Any) -> Any:
    """Rows as a tensor: floating ones in the default dtype, integers as int64 but for uint8."""
    import torch

    tensor = as_tensor(array)
    if tensor.is_floating_point():
        return tensor.to(torch.get_default_dtype())
    return tensor if tensor.dtype in (torch.uint8, torch.bool) or tensor.is_complex() else tensor.to(torch.int64)


def _called(module: Any, x: Any) -> Any:
    if isinstance(x, Mapping):
        return module(**x)
    return module(*x) if isinstance(x, tuple) else module(x)


def _positional(function: Any) -> list[Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _one_per_example(values: Any, weight: Any, name: str) -> Any:
    """Losses or values of a metric as [B]; [B, 1] is taken as that.

    Raises:
        TypeMismatchError: for any other shape, such as [B, B], which [B, 1] outputs and [B] labels make.
    """
    rows = len(weight)
    shape = tuple(getattr(values, "shape", ()))
    if shape not in {(rows,), (rows, 1)}:
        raise TypeMismatchError(
            "SF-TYPE-001",
            f"{name} returned shape {shape} for a batch of {rows} examples",
            f"one value per example, shape ({rows},)",
            'use reduction="none"; give outputs the labels\' shape, for example outputs[:, 0]; average further axes',
        )
    return values.detach().reshape(rows) if name.startswith("the metric") else values.reshape(rows)


def _is_sumfolds(metric: Any) -> bool:
    return isinstance(metric, Metric) or str(getattr(metric, "__module__", "")).startswith("sumfold.")


def _number(returned: Any) -> int:
    """What a user's loop says it trained on.

    Raises:
        CompositionError: when it is no whole number of at least 0.
    """
    try:
        number = -1.0 if isinstance(returned, (bool, str)) else float(returned)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < 2**31 or number != int(number):
        raise CompositionError(
            "SF-MODEL-026",
            f"fit returned {returned!r}",
            "how many examples it trained on, a whole number: it is the client's weight",
            "return for example len(loader.dataset), or a count of the rows that the loop has seen",
        )
    return int(number)
