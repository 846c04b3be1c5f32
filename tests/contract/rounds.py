"""Algorithms and stages that press on every seam, written from their papers in the core's records alone.

They are not the library's: they prove that the records carry what later algorithms need. Model: w·x, squared error.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from sumfold import tree
from sumfold.aggregators import mean
from sumfold.aggregators import sum as total
from sumfold.core import (
    Batching,
    Contribution,
    Phase,
    Report,
    Round,
    Stage,
    Work,
    chain,
    maximum,
    minimum,
    modular,
    stack,
)

DIMENSION = 3
RATE = 0.05


def loss(w, batch):
    x, y = batch.examples
    n = batch.mask.sum().astype(jnp.float32)
    return jnp.where(batch.mask, (x @ w - y) ** 2, 0.0).sum() / n


def sgd(correct=lambda task, gradient, w: gradient):
    """A client's local SGD, each gradient corrected by the algorithm."""

    def step(task, carry, batch, key):
        w, steps = carry
        gradient = jax.grad(loss)(w, batch)
        return w - RATE * correct(task, gradient, w), steps + 1

    return step


def zeros(params, key):
    return {"w": jnp.zeros(DIMENSION), "extra": jnp.zeros(DIMENSION)}


def apply_update(state, results, measured, key):
    moved = state["w"] - results["update"]
    return {**state, "w": jnp.where(jnp.isfinite(moved).all(), moved, state["w"])}, {}


def fed_avg_with(stage, name):
    """Plain averaging with another stage for the part `update`."""

    def finish(task, carry, key):
        return Report({"update": Contribution(task.message - carry[0], task.rows.astype(jnp.float32))})

    work = Work(lambda task, key: (task.message, jnp.int32(0)), sgd(), finish, Batching(size=4, epochs=2))
    return Round(name, zeros, (Phase(lambda state, key: state["w"], work, {"update": stage}, apply_update),))


def scaffold():
    """Karimireddy et al. 2020, Algorithm 1, option II: client memory, and a second part with its own weight."""

    def finish(task, carry, key):
        (w, steps), (start, c) = carry, task.message
        taken = jnp.maximum(steps, 1).astype(jnp.float32)
        variate = task.memory - c + (start - w) / (taken * RATE)
        parts = {
            "update": Contribution(start - w, task.rows.astype(jnp.float32)),
            "variate": Contribution(variate - task.memory, jnp.float32(1)),
        }
        return Report(parts, {"num_steps": steps}, memory=variate)

    def finalize(state, results, measured, key):
        state, _ = apply_update(state, results, measured, key)
        return {**state, "extra": state["extra"] + results["variate"]}, {"client_work": measured.sums}

    work = Work(
        lambda task, key: (task.message[0], jnp.int32(0)),
        sgd(lambda task, gradient, w: gradient - task.memory + task.message[1]),
        finish,
        Batching(size=4),
        memory=lambda message: jnp.zeros(DIMENSION),
    )
    aggregate = {"update": mean(), "variate": mean()}
    return Round("scaffold", zeros, (Phase(lambda s, key: (s["w"], s["extra"]), work, aggregate, finalize),))


def mime():
    """Karimireddy et al. 2021: the full gradient first, then local steps with it; the client keeps its own between."""

    def gather(task, carry, batch, key):
        gradient, rows = carry
        n = batch.mask.sum().astype(jnp.float32)
        return gradient + n * jax.grad(loss)(task.message, batch), rows + n

    def own_gradient(task, carry, key):
        gradient = carry[0] / jnp.maximum(carry[1], 1.0)
        return Report({"gradient": Contribution(gradient, carry[1])}, kept=gradient)

    def keep(state, results, measured, key):
        return {**state, "extra": results["gradient"]}, {}

    def finish(task, carry, key):
        return Report({"update": Contribution(task.message[0] - carry[0], task.rows.astype(jnp.float32))})

    whole = Batching(size=8, shuffle=False)
    first = Work(lambda task, key: (jnp.zeros(DIMENSION), jnp.float32(0)), gather, own_gradient, whole)
    second = Work(
        lambda task, key: (task.message[0], jnp.int32(0)),
        sgd(lambda task, gradient, w: gradient - task.kept + task.message[1]),
        finish,
        Batching(size=4),
    )
    return Round(
        "mime",
        zeros,
        (
            Phase(lambda state, key: state["w"], first, {"gradient": mean()}, keep),
            Phase(lambda state, key: (state["w"], state["extra"]), second, {"update": mean()}, apply_update),
        ),
    )


def local_layer():
    """FedBN and FedPer (Li et al. 2021, Arivazhagan et al. 2019): one leaf stays with the client."""

    def finish(task, carry, key):
        w, _ = carry
        shared = (task.message - w).at[0].set(0.0)
        return Report({"update": Contribution(shared, task.rows.astype(jnp.float32))}, memory=w[0])

    work = Work(
        lambda task, key: (task.message.at[0].set(task.memory), jnp.int32(0)),
        sgd(),
        finish,
        Batching(size=4),
        memory=lambda message: message[0],
    )
    return Round("local_layer", zeros, (Phase(lambda state, key: state["w"], work, {"update": mean()}, apply_update),))


def ifca():
    """Ghosh et al. 2020, Algorithm 1: k models, each client trains the one with its lowest loss; only sums leave."""

    def init(params, key):
        return {"w": jnp.stack([jnp.zeros(DIMENSION), jnp.ones(DIMENSION)])}

    def measure(task, losses, batch, key):
        n = batch.mask.sum().astype(jnp.float32)
        return losses + n * jax.vmap(loss, (0, None))(task.message, batch)

    def choose(task, losses, key):
        return Report({}, {"clients": jax.nn.one_hot(losses.argmin(), 2, dtype=jnp.int32)}, kept=losses.argmin())

    def finish(task, carry, key):
        w, _ = carry
        chosen = jax.nn.one_hot(task.kept, 2)
        rows = task.rows.astype(jnp.float32)
        return Report({f"model {k}": Contribution(task.message[k] - w, rows * chosen[k]) for k in range(2)})

    def finalize(state, results, measured, key):
        updates = jnp.stack([results["model 0"], results["model 1"]])
        return {"w": state["w"] - jnp.where(jnp.isfinite(updates), updates, 0.0)}, {}

    first = Work(lambda task, key: jnp.zeros(2), measure, choose, Batching(size=8, shuffle=False))
    second = Work(lambda task, key: (task.message[task.kept], jnp.int32(0)), sgd(), finish, Batching(size=4))
    return Round(
        "ifca",
        init,
        (
            Phase(lambda s, key: s["w"], first, {}, lambda s, r, m, key: (s, {"client_work": m.sums})),
            Phase(lambda s, key: s["w"], second, {"model 0": mean(), "model 1": mean()}, finalize),
        ),
    )


def adaptive_clip(target=0.5, rate=0.2):
    """Andrew et al. 2021, Algorithm 1 without noise: the norm is server memory that clients see."""

    def encode(public, memory, given, key):
        norm = jnp.sqrt(jnp.stack([(leaf**2).sum() for leaf in jax.tree.leaves(given.value)]).sum())
        clipped = tree.scale(jnp.minimum(1.0, public / jnp.maximum(norm, 1e-12)), given.value)
        below = (norm <= public).astype(jnp.float32)
        return Contribution({"value": clipped, "below": below}, given.weight), memory

    def decode(state, result, key):
        moved = state * jnp.exp(-rate * (result["below"] - target))
        after = jnp.where(jnp.isfinite(moved), moved, state)
        return result["value"], after, {"clipping_norm": state}

    return Stage(
        encode,
        decode,
        init=lambda shapes: jnp.float32(0.5),
        share=lambda state: state,
        group=None,
        bound=lambda bound: bound._replace(norm=0.5),
    )


def top_k(k=1):
    """Sparsification with error feedback (Stich et al. 2018, Algorithm 1): the stage's own client memory, by leaf."""

    def largest(owed):
        threshold = jnp.sort(jnp.abs(owed).ravel())[-k]
        return jnp.where(jnp.abs(owed) >= threshold, owed, 0.0)

    def encode(public, memory, given, key):
        owed = tree.add(given.value, memory)
        sent = jax.tree.map(largest, owed)
        return Contribution(sent, given.weight), tree.sub(owed, sent)

    return Stage(encode, lambda s, t, key: (t, s, {}), memory=tree.zeros_like, group=None)


def median():
    """The coordinate-wise median (Yin et al. 2018, Algorithm 1) of clients that weigh something; needs individuals."""

    def encode(public, memory, given, key):
        return jax.tree.map(lambda a: jnp.where(given.weight > 0, a, jnp.nan), given.value), memory

    def decode(state, stacked, key):
        def middle(values):
            present = stacked.present.reshape(-1, *[1] * (values.ndim - 1))
            return jnp.nanmedian(jnp.where(present, values, jnp.nan), axis=0)

        return jax.tree.map(middle, stacked.values), state, {}

    return Stage(encode, decode, group=stack)


def fixed_point(bits=16):
    """Masked-sum arithmetic without the masks: integers modulo 2^32 on the wire, floats on both sides."""
    scale = float(2**bits)

    def encode(public, memory, value, key):
        return jax.tree.map(lambda a: jnp.round(a * scale).astype(jnp.int32).astype(jnp.uint32), value), memory

    def decode(state, summed, key):
        return jax.tree.map(lambda a: a.astype(jnp.int32).astype(jnp.float32) / scale, summed), state, {}

    return Stage(encode, decode, group=modular(2**32))


def extremes():
    """federated_min and federated_max, and a sum, of each client's largest label, in one round."""

    def look(task, largest, batch, key):
        return jnp.maximum(largest, jnp.where(batch.mask, batch.examples[1], -jnp.inf).max())

    def finish(task, largest, key):
        seen = jnp.maximum(largest, -1e6)
        return Report({name: Contribution(seen, jnp.float32(1)) for name in ("low", "high", "all")})

    plain = Stage(lambda p, m, given, key: (given.value, m), lambda s, t, key: (t, s, {}))
    aggregate = {"low": plain._replace(group=minimum), "high": plain._replace(group=maximum), "all": total()}

    def finalize(state, results, measured, key):
        return {"low": results["low"], "high": results["high"], "all": results["all"]}, {}

    work = Work(lambda task, key: -jnp.float32(jnp.inf), look, finish, Batching(size=4))
    return Round(
        "extremes",
        lambda params, key: {name: jnp.float32(0) for name in ("low", "high", "all")},
        (Phase(lambda state, key: (), work, aggregate, finalize),),
    )


STAGES = {
    "mean": mean,
    "sum": total,
    "adaptive clip, mean": lambda: chain(adaptive_clip(), mean()),
    "top-k, mean": lambda: chain(top_k(), mean()),
    "median": median,
    "mean, fixed point": lambda: chain(mean(), fixed_point()),
    "clip, top-k, mean, fixed point": lambda: chain(adaptive_clip_value(), top_k(), mean(), fixed_point()),
}


def adaptive_clip_value():
    """A fixed clip as a stage between others."""

    def encode(public, memory, given, key):
        norm = jnp.sqrt((given.value**2).sum())
        return Contribution(given.value * jnp.minimum(1.0, 0.5 / jnp.maximum(norm, 1e-12)), given.weight), memory

    return Stage(encode, lambda s, t, key: (t, s, {}), group=None)


ROUNDS = {
    "scaffold": scaffold,
    "mime": mime,
    "local_layer": local_layer,
    "ifca": ifca,
    "extremes": extremes,
    **{
        f"fed_avg with {name}": lambda make=make, name=name: fed_avg_with(make(), name) for name, make in STAGES.items()
    },
}
