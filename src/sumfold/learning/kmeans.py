"""Federated k-means: the clients' points move the server's centroids, and only sums of them leave a client.

    client    for each of its points x:  i = argmin_j ‖x − c_j‖²;     s_i ← s_i + (x − c_i),   n_i ← n_i + 1
    server    v_i ← v_i + Σ n_i;     c_i ← c_i + Σ s_i / v_i

Mini-batch k-means, Sculley 2010 ("Web-scale k-means clustering"), Algorithm 1, with a round's points as the batch M:
its rate 1/v_i for each point makes c_i the running mean of all points that were ever assigned to it, and that mean
does not depend on how they are spread over clients. From v = 0, one round over all points is one step of Lloyd 1982.
s_i holds differences, not points: the same mean, without the cancellation of large sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sumfold import tree
from sumfold.aggregators import sum as total
from sumfold.core.batching import Batching
from sumfold.core.round import Batch, Measured, Metrics, Phase, Report, Round, Task, Work
from sumfold.core.stage import Contribution
from sumfold.errors import CompositionError, TypeMismatchError, user_facing
from sumfold.keys import Key
from sumfold.learning.checks import batching_for, check_clusters
from sumfold.learning.hparams import check_numbers
from sumfold.learning.process import Process
from sumfold.models.functions import from_functions
from sumfold.models.metrics import ratio
from sumfold.models.model import Examples, Model
from sumfold.tree import Tree

__all__ = ["kmeans"]


class Assigned(NamedTuple):
    """A client's points so far, by the centroid that is nearest to each.

    Attributes:
        offsets: float32[k, …], sums of x − c.
        counts: float32[k], how many points.
        squares: float32[], the sum of squared distances.
        num_examples, num_batches: int32[].
    """

    offsets: Float[Array, "k ..."]
    counts: Float[Array, " k"]
    squares: Float[Array, ""]
    num_examples: Int[Array, ""]
    num_batches: Int[Array, ""]


@user_facing
def kmeans(
    clusters: int | Any,
    features: int | tuple[int, ...] | Any,
    *,
    init: Any = None,
    pseudo_count: float | Any = 0.0,
    batching: Batching | Any = None,
) -> Process:
    """Federated k-means: centroids that are running means of the points nearest to them.

    ``process.get_model_weights(state)`` gives ``{"centroids": float32[k, …], "counts": float32[k]}``, where a count is
    the number of points that its centroid is the mean of; `set_model_weights` takes the same, for example to begin
    with given centroids, or to forget the counts. ``process.model.predict(weights, x)`` gives the squared distances
    float32[N, k], so the cluster of a row is their ``argmin(1)``.

    Args:
        clusters: k, how many centroids.
        features: the shape of a point, such as 3 or (28, 28). A client's entry is an array of points [n, …], or
            ``(x, y)``, whose y is ignored, or ``(x, y, example_weight)``, whose weights count a point more or less.
        init: [k, …], the centroids before the first round; None draws them from a standard normal distribution by the
            seed of `initialize`, so points should be scaled to about 1, or init be given.
        pseudo_count: how many points each initial centroid stands for. With 0 it is forgotten when it gets a point.
        batching: the points that a client gives a round; default ``Batching(size=256, shuffle=False)``, all of them
            once. ``max_steps`` takes some at a time.

    Raises:
        CompositionError: for numbers, shapes or values of centroids that cannot be used.

    Source: Sculley 2010, Algorithm 1.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> process = kmeans(2, 1, init=[[0.0], [7.0]])
        >>> clients = {"a": np.array([[1.0], [8.0]]), "b": np.array([[3.0]])}
        >>> state, metrics = process.next(process.initialize(), clients)
        >>> process.get_model_weights(state)["centroids"].tolist()
        [[2.0], [8.0]]
        >>> metrics["client_work"]["train"]["num_examples"]
        3
    """
    check_clusters("kmeans", clusters)
    check_numbers("kmeans", {"pseudo_count": pseudo_count}, zero=True)
    shape = (int(clusters), *_shape(features))
    model = _model(shape, _centroids(init, shape), float(pseudo_count))
    chosen = Batching(size=256, shuffle=False) if batching is None else batching_for(model, batching)

    def begin(task: Task, key: Key) -> Assigned:
        nothing = tree.zeros_like(task.message)
        return Assigned(nothing, jnp.zeros(shape[0]), jnp.float32(0), jnp.int32(0), jnp.int32(0))

    def assign(task: Task, so_far: Assigned, batch: Batch, key: Key) -> Assigned:
        x, weight = _points(batch, shape[1:])
        distances = _distances(task.message, x)
        nearest = distances.argmin(1)
        present = weight > 0
        offsets = jnp.where(_wide(present, x), _wide(weight, x) * (x - task.message[nearest]), 0.0)
        return Assigned(
            so_far.offsets.at[nearest].add(offsets),
            so_far.counts.at[nearest].add(weight),
            so_far.squares + jnp.where(present, weight * distances.min(1), 0.0).sum(),
            so_far.num_examples + batch.mask.sum(dtype=jnp.int32),
            so_far.num_batches + 1,
        )

    def report(task: Task, assigned: Assigned, key: Key) -> Report:
        points = Contribution({"offsets": assigned.offsets, "counts": assigned.counts}, jnp.float32(1))
        counts = {"num_examples": assigned.num_examples, "num_batches": assigned.num_batches}
        return Report({"points": points}, {"squares": (assigned.squares, assigned.counts.sum()), **counts})

    def finalize(state: Tree, results: Mapping[str, Tree], measured: Measured, key: Key) -> tuple[Tree, Metrics]:
        sums = results["points"]
        counts = state["counts"] + sums["counts"]
        moves = sums["offsets"] / _wide(jnp.where(counts > 0, counts, 1.0), sums["offsets"])
        # A centroid without a new point moves by 0 / v: not at all.
        after = {"centroids": state["centroids"] + moves, "counts": counts}
        applied = tree.all_finite(after) & (measured.sums["num_batches"] > 0)
        metrics: Metrics = {
            "client_work": {
                "train": {
                    "mean_squared_distance": ratio(measured.sums["squares"]),
                    "num_examples": measured.sums["num_examples"],
                    "num_batches": measured.sums["num_batches"],
                    "num_clients": measured.num_clients,
                    "num_non_finite_clients": measured.num_non_finite_clients,
                }
            },
            "finalizer": {"update_non_finite": (~applied).astype(jnp.int32)},
        }
        return tree.where(applied, after, state), metrics

    work = Work(begin, assign, report, chosen)
    phase = Phase(lambda state, key: state["centroids"], work, {"points": total()}, finalize)
    return Process(
        Round("kmeans", lambda weights, key: weights, (phase,)),
        model=model,
        labelled=False,
        batching=batching,
        parts=model.split,
        with_parts=lambda state, parts: model.join(parts),
    )


def _model(shape: tuple[int, ...], init: Array | None, pseudo_count: float) -> Model:
    """Centroids as a model: it predicts the squared distances to each, and its loss is the smallest of them."""

    def initial(key: Key) -> Tree:
        centroids = jax.random.normal(key, shape) if init is None else init
        return {"centroids": centroids, "counts": jnp.full(shape[0], pseudo_count, jnp.float32)}

    def predict(weights: Tree, x: Array) -> Array:
        return _distances(weights["centroids"], _checked(x, shape[1:]))

    made: Model = from_functions(initial, predict, lambda distances, y: distances.min(1))
    return made


def _distances(centroids: Float[Array, "k ..."], x: Float[Array, "b ..."]) -> Float[Array, "b k"]:
    # Differences, not ‖x‖² − 2xc + ‖c‖², which cancels: a point's centroid must not depend on its batch.
    k, b = len(centroids), len(x)
    return ((x.reshape(b, 1, -1) - centroids.reshape(1, k, -1)) ** 2).sum(2)


def _points(batch: Batch, features: tuple[int, ...]) -> tuple[Float[Array, "b ..."], Float[Array, " b"]]:
    """The points of a batch, and how much each counts; 0 for padding."""
    examples = batch.examples
    alone = not isinstance(examples, (tuple, list, Mapping))
    of = Examples.of(batch._replace(examples=(examples, batch.mask)) if alone else batch)
    return _checked(of.x, features), of.weight


def _checked(x: Any, features: tuple[int, ...]) -> Float[Array, "b ..."]:
    """Points as float32[B, …].

    Raises:
        TypeMismatchError: when they have another shape.
    """
    found = [jnp.shape(leaf)[1:] for leaf in jax.tree.leaves(x)]
    if found != [features]:
        raise TypeMismatchError(
            "SF-COMP-097",
            f"points of shape {', '.join(str(list(s)) for s in found)}",
            f"one array of points of shape {list(features)}",
            "say the shape of one point: sf.learning.kmeans(clusters, features=…)",
        )
    return jnp.asarray(jax.tree.leaves(x)[0], jnp.float32)


def _wide(of_rows: Array, like: Array) -> Array:
    """[B] with the further axes of [B, …], each of size 1."""
    return of_rows.reshape(len(of_rows), *[1] * (like.ndim - 1))


def _shape(features: Any) -> tuple[int, ...]:
    """The shape of one point.

    Raises:
        CompositionError: when it is none.
    """
    sizes = tuple(features) if isinstance(features, (tuple, list)) else (features,)
    if not all(isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1 for n in sizes):
        raise CompositionError(
            "SF-COMP-093",
            f"kmeans with features={features!r}",
            "the shape of one point: a whole number above 0, or a tuple of them",
            "pass for example features=x.shape[1:]",
        )
    return tuple(int(n) for n in sizes)


def _centroids(init: Any, shape: tuple[int, ...]) -> Array | None:
    """Initial centroids as float32[k, …].

    Raises:
        CompositionError: when they are not so many, of another shape, or not finite.
    """
    if init is None:
        return None
    try:
        given = np.asarray(init, np.float32)
    except (TypeError, ValueError):
        given = np.zeros(0, np.float32)
    if given.shape != shape or not np.isfinite(given).all():
        what = f"shape {list(given.shape)}" if given.size and given.shape != shape else "numbers that are not finite"
        what = what if given.size else f"a {type(init).__name__} that is no array of numbers"
        raise CompositionError(
            "SF-COMP-094",
            f"kmeans with init of {what}",
            f"finite centroids of shape {list(shape)}",
            "pass for example rows of your own data, or leave init out and choose by the seed",
        )
    return jnp.asarray(given)
