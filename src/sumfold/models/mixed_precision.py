"""Mixed precision: a model computes in bfloat16, and everything that adds up stays float32.

    w : float32, the server's and a client's own;   loss(w) = ℓ( f₁₆(bf16(w), bf16(x)) as float32, y)
    ∇w = (∂ bf16(w) / ∂w)ᵀ ∇ f₁₆ : float32, since the derivative of a cast is the cast back

Micikevicius, Narang, Alben et al. (2018), "Mixed precision training", section 3.1: a step changes weights by less than
the numbers of 16 bits beside them are apart, so the step is taken on a float32 copy. Section 3.2 scales the loss, so
that small gradients stay above float16's smallest number. bfloat16 has float32's eight bits of exponent, so nothing
vanishes and nothing is scaled; its price is eight bits of mantissa where float16 has eleven. Products are summed in
float32 within a matrix product where the device does so, as GPUs, TPUs and XLA's programs for CPUs do.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from sumfold.errors import CompositionError, user_facing
from sumfold.keys import Key
from sumfold.models.host import HostModel
from sumfold.models.keras import KerasWeights
from sumfold.models.model import Applied, Model, Parts
from sumfold.tree import Tree

__all__ = ["mixed_precision"]


@user_facing
def mixed_precision(model: Model | Any, dtype: Any = "bfloat16") -> Model:
    """The same model, which predicts in bfloat16: its weights, and what is summed of it, stay float32.

    Trained weights and floating features are cast to bfloat16 where the model is applied, and its outputs back to
    float32. So the loss, metrics, gradients, optimizers and every sum over batches and clients see float32; averaged
    statistics, such as those of batch normalisation, stay float32 throughout. Weights keep their shapes and dtypes:
    files and states fit the model with and without. A checkpoint is resumed with the one that it was written with.

    It is for accelerators with units for bfloat16. CPUs are slower with it.

    Args:
        model: from functions, Flax or Equinox. Where it brings in float32 arrays of its own, it computes in float32
            from there on: write ``jnp.zeros(n, x.dtype)``, ``x.astype(w.dtype) / 255`` for features held as bytes, and
            ``nnx.BatchNorm(…, dtype=jnp.bfloat16)``.
        dtype: ``"bfloat16"``. float16 would need a scaled loss.

    Raises:
        CompositionError: for another dtype, a model from Keras, which has policies of its own, or one whose clients run
            their own training loop.

    Reference:
        Micikevicius et al. 2018, section 3.1.

    Example:
        >>> import jax.numpy as jnp, sumfold as sf
        >>> model = sf.models.from_functions(
        ...     lambda key: jnp.ones(3), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
        ... )
        >>> x = jnp.full((1, 3), 1 / 3)
        >>> sf.models.mixed_precision(model).predict(jnp.ones(3), x).tolist()  # a third is 0.333984375
        [1.001953125]
        >>> sf.models.mixed_precision(model).template.trainable.dtype.name
        'float32'
    """
    _check(model, dtype)

    def apply(parts: Parts, x: Tree, key: Key | None) -> Applied:
        applied = model.apply(
            parts._replace(trainable=_cast(parts.trainable, jnp.bfloat16)), _cast(x, jnp.bfloat16), key
        )
        statistics = jax.tree.map(lambda a, before: a.astype(before.dtype), applied.statistics, parts.statistics)
        return Applied(_cast(applied.outputs, jnp.float32), statistics, applied.penalty)

    return dataclasses.replace(model, name=f"{model.name} in bfloat16", apply=apply)


def _cast(values: Tree, dtype: Any) -> Tree:
    """Floating leaves in this dtype; others as they are."""

    def one(leaf: Any) -> Any:
        return jnp.asarray(leaf).astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(one, values)


def _check(model: Any, dtype: Any) -> None:
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name != "bfloat16":
        scaled = name == "float16"
        raise CompositionError(
            "SF-MODEL-038",
            f"mixed_precision(model, {name!r})" if scaled else f"mixed_precision(model, {dtype!r})",
            "bfloat16" + (": small gradients vanish in float16 unless the loss is scaled" if scaled else ""),
            "leave dtype out" if scaled else 'leave dtype out, or write dtype="bfloat16"',
        )
    if isinstance(model, Model) and not isinstance(model, HostModel):
        if not isinstance(model.join(model.template), KerasWeights):
            return
        came, do = (
            f"{model.name}, a model from Keras",
            'set keras.config.set_dtype_policy("mixed_bfloat16") before the model is built, and leave this out',
        )
    elif isinstance(model, HostModel):
        came, do = (
            f"{model.name}, whose clients run a training loop of their own",
            "choose the precision in that loop, such as with torch.autocast",
        )
    else:
        came, do = (
            f"a {type(model).__name__}",
            "make one with sf.models.from_functions, from_flax or from_equinox first",
        )
    raise CompositionError("SF-MODEL-037", f"mixed_precision of {came}", "a model from functions, Flax or Equinox", do)
