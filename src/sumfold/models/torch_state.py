"""A PyTorch module's state as arrays and back, without pickle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sumfold import tree
from sumfold.errors import CompositionError
from sumfold.models.model import Parts

__all__ = ["Names", "StateDict", "as_array", "as_tensor", "names_of"]


@jax.tree_util.register_pytree_with_keys_class
class StateDict(dict[str, Any]):
    """A module's weights by name, as its ``state_dict`` names them; NumPy arrays.

    Example:
        >>> StateDict({"weight": np.zeros(2)})["weight"].shape
        (2,)
    """

    def assign_to(self, module: Any) -> Any:
        """Copy the weights into a module of the same architecture, and return it."""
        import torch

        with torch.no_grad():
            module.load_state_dict({name: as_tensor(value) for name, value in self.items()})
        return module

    def tree_flatten_with_keys(self) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
        """Children in the order of their names."""
        names = tuple(sorted(self))
        return [(jax.tree_util.DictKey(name), self[name]) for name in names], names

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], children: Any) -> StateDict:
        """The reverse of `tree_flatten_with_keys`."""
        return cls(zip(names, children, strict=True))


class Names:
    """Which entry of a module's state is of which kind; tied entries go by the first name."""

    def __init__(self, state: dict[str, Any], kinds: dict[str, str], tied: dict[str, str]) -> None:
        self.state, self.kinds, self.tied = state, kinds, tied

    def divided(self, weights: Mapping[str, Any]) -> Parts:
        """Weights by name as `Parts`."""

        def of(kind: str) -> dict[str, Any]:
            return {name: weights[name] for name, own in self.kinds.items() if own == kind}

        return Parts(of("trainable"), of("statistics"), of("constants"))

    def joined(self, parts: Parts) -> StateDict:
        """The reverse of `divided`, tied names included."""
        known = {**parts.trainable, **parts.statistics, **parts.constants}
        known = {name: a if isinstance(a, jax.core.Tracer) else np.asarray(a) for name, a in known.items()}
        return StateDict({**known, **{name: known[first] for name, first in self.tied.items()}})

    def whole(self) -> StateDict:
        """The state that was read."""
        return StateDict({**self.state, **{name: self.state[first] for name, first in self.tied.items()}})


def names_of(module: Any, torch: Any) -> Names:
    """Read a module's state.

    Raises:
        CompositionError: for entries that are neither parameters nor buffers, or have no shape yet.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    state: dict[str, Any] = {}
    kinds: dict[str, str] = {}
    tied: dict[str, str] = {}
    first: dict[int, str] = {}
    buffers = dict(module.named_buffers(remove_duplicate=False))
    held = module.state_dict(keep_vars=True)
    for name, value in held.items():
        unknown = name not in parameters and name not in buffers
        if unknown or isinstance(value, torch.nn.parameter.UninitializedTensorMixin):
            raise CompositionError(
                "SF-MODEL-023",
                f"the module's state has the entry {name!r}, a {type(value).__name__}",
                "parameters and buffers of known shapes: anything else could only travel by pickle",
                "run a lazy module on one batch inside build; keep objects out of get_extra_state",
            )
        if id(value) in first:
            tied[name] = first[id(value)]
            continue
        first[id(value)] = name
        floating = value.is_floating_point() or value.is_complex()
        trained = name in parameters and parameters[name].requires_grad
        kinds[name] = "trainable" if trained else "statistics" if floating and name not in parameters else "constants"
        state[name] = tree.canonical(as_array(value))
    return Names(state, kinds, tied)


def as_array(tensor: Any) -> Any:
    """A copy of a tensor as a NumPy array; bfloat16 by its bits, which NumPy alone does not know."""
    import torch

    held = tensor.detach().cpu()
    if held.dtype == torch.bfloat16:
        return held.view(torch.int16).numpy().copy().view(jnp.bfloat16)
    return held.numpy().copy()


def as_tensor(array: Any) -> Any:
    """A tensor of its own from an array."""
    import torch

    values = np.array(array)
    if values.dtype == jnp.bfloat16:
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
