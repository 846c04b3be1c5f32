"""scikit-learn estimators that learn from batches: trained by scikit-learn on the clients, averaged as arrays.

What is averaged depends on the family of the estimator:

- linear (`SGDClassifier`, `SGDRegressor`, `Perceptron`, …): coefficients and intercepts; the step counter of a
  learning-rate schedule is averaged as a statistic;
- `MLPClassifier`, `MLPRegressor`: the weights of all layers; each client begins with a new optimizer;
- `MiniBatchKMeans`: the centres; their counts are averaged as a statistic;
- naive Bayes: nothing is averaged. Its statistics are sums over rows, which add up over the round's clients: one round
  with everybody gives the classifier of the pooled data. Each round begins anew.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from sumfold import tree
from sumfold.core.batching import Batching
from sumfold.errors import CompositionError, missing_extra, user_facing
from sumfold.keys import HostKey, Key
from sumfold.models.functions import matching
from sumfold.models.host import Fitted, HostModel, Pull, Sums, batches_of, no_array_program
from sumfold.models.metrics import as_metrics
from sumfold.models.model import Parts, unpack
from sumfold.tree import Tree

__all__ = ["from_sklearn"]

Arrays = dict[str, NDArray[Any]]

_QUIET = np.errstate(divide="ignore", invalid="ignore", over="ignore")
"""A client may hold no row of some class: the logarithm of its share is -inf, as it should be."""


class Family(NamedTuple):
    """How the numbers of one family of estimators are read and written.

    Attributes:
        trained: attributes that are averaged as the update; lists of arrays count as their entries.
        statistics: attributes that are averaged, or add up, as statistics.
        sums: whether a client's statistics are sums over its rows.
        settle: (estimator) -> None, after its numbers were written: what else follows from them.
    """

    trained: tuple[str, ...]
    statistics: tuple[str, ...] = ()
    sums: bool = False
    settle: Callable[[Any], None] = lambda estimator: None


def _new_optimizer(estimator: Any) -> None:
    vars(estimator).pop("_optimizer", None)


def _log_probabilities(estimator: Any) -> None:
    if hasattr(estimator, "feature_all_"):
        estimator.feature_all_ = estimator.feature_count_.sum(axis=0)
    estimator._update_feature_log_prob(estimator._check_alpha())
    estimator._update_class_log_prior()


def _shift(estimator: Any) -> NDArray[np.float64]:
    """The point that sums are taken about: 0, and the mean of features that are far from it.

    So features that are 0 in all rows of some class, such as the corners of images, keep their variance of exactly 0.
    """
    counts, means, variances = (
        np.asarray(a, np.float64) for a in (estimator.class_count_, estimator.theta_, estimator.var_)
    )
    weights = counts / counts.sum()
    mean = weights @ means
    spread = weights @ (variances - estimator.epsilon_ + means**2) - mean**2
    far: NDArray[np.float64] = np.where(np.abs(mean) > 4 * np.sqrt(np.maximum(spread, 0)), mean, 0.0)
    return far


def _from_moments(estimator: Any) -> None:
    """Means, variances and priors of `GaussianNB`, as its ``fit`` has them, out of sums over the rows of each class.

    The sums are n, Σ(x − s) and Σ(x − s)² about a point s that all share, for Σx² in 32 bits would drown the variance
    of features that are far from 0 (Chan, Golub and LeVeque 1983).
    """
    n, first, second = (np.asarray(a, np.float64) for a in estimator.moments_)
    known = np.maximum(n, 1e-300)[:, None]
    rows = max(float(n.sum()), 1e-300)
    mean_of_all = first.sum(0) / rows
    spread = float(np.max(second.sum(0) / rows - mean_of_all**2, initial=0.0))
    estimator.epsilon_ = estimator.var_smoothing * spread
    away = first / known
    estimator.theta_ = estimator.shift_ + away
    estimator.var_ = np.maximum(second / known - away**2, 0) + max(estimator.epsilon_, 1e-300)
    estimator.class_count_ = n
    given = estimator.priors
    estimator.class_prior_ = n / rows if given is None else np.asarray(given, np.float64)


_LINEAR = Family(("coef_", "intercept_"), ("t_",))
_LAYERS = Family(("coefs_", "intercepts_"), settle=_new_optimizer)
_CENTRES = Family(("cluster_centers_",), ("_counts",))
_COUNTS = Family((), ("class_count_", "feature_count_"), sums=True, settle=_log_probabilities)
_CATEGORIES = Family((), ("class_count_", "category_count_"), sums=True, settle=_log_probabilities)
_MOMENTS = Family((), ("moments_",), sums=True, settle=_from_moments)


def _family(estimator: Any) -> Family | None:
    """By the attributes that a fitted estimator has."""
    if hasattr(estimator, "theta_") and hasattr(estimator, "var_smoothing"):
        return _MOMENTS
    if hasattr(estimator, "category_count_"):
        return _CATEGORIES
    if hasattr(estimator, "feature_count_") and hasattr(estimator, "_update_feature_log_prob"):
        return _COUNTS
    for family in (_LAYERS, _LINEAR, _CENTRES):
        if all(hasattr(estimator, name) for name in family.trained):
            statistics = tuple(name for name in family.statistics if hasattr(estimator, name))
            return family._replace(statistics=statistics)
    return None


@user_facing
def from_sklearn(
    estimator: Any,
    example: Any = None,
    *,
    classes: Sequence[Any] | Any = None,
    loss: Callable[[Any, Any], Any] | Any = None,
    metrics: Mapping[str, Any] | Any = None,
) -> HostModel:
    """A model from a scikit-learn estimator with ``partial_fit``: linear, multilayer, k-means, naive Bayes.

    Clients call ``partial_fit`` on their batches, by default on all their rows at once (layers: on batches of 32), in
    processes of their own, with ``random_state`` drawn from the run's
    seed, the round and the client. Loss and metrics are measured after training. An estimator that is fitted already
    gives the initial weights; otherwise linear models begin with zeros, layers with random weights that follow from the
    run's seed, centres as `partial_fit` chooses them among the rows of `example`.

    Args:
        estimator: an instance; a copy of it is used. See the module for what is averaged.
        example: some rows of features, [n, d]; not needed for a fitted estimator.
        classes: all labels that there are, for a classifier that is not fitted.
        loss: (outputs, y) -> loss of each example [B], where outputs are probabilities, or decision values of a
            classifier without them; by default log loss or 0/1 loss, the squared error, or the squared distance.
        metrics: name -> fn(outputs, y) -> value of each example [B]; by default ``accuracy`` of a classifier.

    Raises:
        MissingExtraError: when scikit-learn is not installed.
        CompositionError: for an estimator without ``partial_fit`` or of an unknown family, or classes that are missing.

    Source: as scikit-learn's documentation of ``partial_fit``; Pedregosa et al. 2011.

    Example:
        >>> import numpy as np, sumfold as sf
        >>> from sklearn.linear_model import SGDClassifier
        >>> model = from_sklearn(SGDClassifier(), np.zeros((1, 2)), classes=[0, 1])
        >>> process = sf.learning.fed_avg(model).on(sf.Loopback())
        >>> clients = [(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 1]))] * 2
        >>> state, metrics = process.next(process.initialize(), clients)
        >>> metrics["client_work"]["train"]["accuracy"]
        1.0
    """
    try:
        import sklearn
    except ImportError:
        raise missing_extra("scikit-learn", "sklearn") from None
    if not hasattr(estimator, "partial_fit") or inspect.isclass(estimator):
        name = f"the class {estimator.__name__}" if inspect.isclass(estimator) else f"a {type(estimator).__name__}"
        raise CompositionError(
            "SF-MODEL-030",
            f"{name}" + ("" if inspect.isclass(estimator) else ", which has no partial_fit"),
            "an estimator that goes on learning from the weights that it is given",
            "use for example SGDClassifier, MLPClassifier, MiniBatchKMeans or GaussianNB; scale features beforehand "
            "instead of in a Pipeline",
        )
    if getattr(estimator, "average", False):
        raise CompositionError(
            "SF-MODEL-032",
            f"{type(estimator).__name__}(average={estimator.average!r})",
            "average=False: the averages over steps are no weights that a client could go on from",
            "leave average out; the federation averages anyway",
        )
    fitted = hasattr(estimator, "n_features_in_")
    warm = copy.deepcopy(estimator) if fitted else sklearn.base.clone(estimator)
    if not fitted:
        _begin(warm, example, classes)
    family = _family(warm)
    if family is None:
        raise CompositionError(
            "SF-MODEL-031",
            f"a {type(estimator).__name__}, whose learned numbers are not known",
            "coef_ and intercept_, coefs_ and intercepts_, cluster_centers_, or naive Bayes counts or moments",
            "write the client's work as a sumfold.HostWork",
        )
    accuracy = metrics is None and hasattr(warm, "classes_")
    trainer = Sklearn(warm, family, loss, {"accuracy": _by_predict} if accuracy else metrics)
    template = trainer.parts(fitted)

    def init(key: Key) -> Tree:
        words = np.asarray(jax.random.key_data(key)).tolist()
        return template.trainable | template.statistics if fitted else trainer.drawn(template, words)

    def split(weights: Tree) -> Parts:
        expected = jax.tree.map(lambda a: tree.shape(a.shape, a.dtype), template.trainable | template.statistics)
        known = matching(expected, weights)
        return Parts({n: known[n] for n in template.trainable}, {n: known[n] for n in template.statistics}, {})

    return HostModel(
        name=type(estimator).__name__,
        template=jax.tree.map(lambda a: tree.shape(a.shape, a.dtype), template),
        init=init,
        split=split,
        join=lambda parts: {**parts.trainable, **parts.statistics},
        apply=no_array_program,
        loss=no_array_program,
        metrics=as_metrics(trainer.metrics),
        trainer=trainer,
        statistics_are="sums" if family.sums else "means",
        # one call for all rows: partial_fit goes through them one by one, but for layers, which take a step a batch
        labelled=not hasattr(warm, "n_clusters"),
        batching=None if family.trained == _LAYERS.trained else Batching(size=None),
    )


def _begin(estimator: Any, example: Any, classes: Any) -> None:
    """Let `partial_fit` make every attribute, on the example's rows."""
    if estimator.get_params().get("random_state", 0) is None:
        estimator.set_params(random_state=0)  # a run must begin alike in every process
    try:
        _first_fit(estimator, example, classes)
    except ValueError as error:
        if isinstance(error, CompositionError):
            raise
        raise CompositionError(
            "SF-MODEL-036",
            f"a {type(estimator).__name__} whose partial_fit refuses its settings: {error}",
            "settings that partial_fit takes",
            "leave out what needs all rows at once, such as early_stopping or class_weight='balanced'",
        ) from error


def _first_fit(estimator: Any, example: Any, classes: Any) -> None:
    if example is None:
        raise CompositionError(
            "SF-MODEL-033",
            f"a {type(estimator).__name__} that is not fitted, and no example",
            "some rows of features, from which shapes follow",
            "write from_sklearn(estimator, example=x[:10], classes=…)",
        )
    x = np.atleast_2d(np.asarray(example, np.float64))
    takes_classes = "classes" in inspect.signature(estimator.partial_fit).parameters
    if takes_classes:
        if classes is None or len(np.unique(np.asarray(classes))) < 2:
            raise CompositionError(
                "SF-MODEL-034",
                f"{type(estimator).__name__} with classes={classes!r}",
                "all labels that there are, two or more: a client may hold only some of them",
                "write for example classes=range(10)",
            )
        labels = np.unique(np.asarray(classes))
        rows = x[np.arange(max(len(labels), len(x))) % len(x)]
        estimator.partial_fit(rows, labels[np.arange(len(rows)) % len(labels)], classes=labels)
    elif hasattr(estimator, "n_clusters"):
        if len(x) < estimator.n_clusters:
            raise CompositionError(
                "SF-MODEL-033",
                f"an example of {len(x)} rows for {estimator.n_clusters} clusters",
                "one row or more for each cluster",
                "pass more rows: the first centres are chosen among them",
            )
        estimator.partial_fit(x)
    else:
        estimator.partial_fit(x, np.zeros(len(x)))


class Sklearn:
    """Local training by ``partial_fit``: what travels to a worker; see `sumfold.models.host.Trainer`.

    Args:
        estimator: fitted once, so that it has every attribute.
        family: which of them are weights.
        loss: the user's, or None.
        metrics: as the user gave them; the records are made where they are used.
    """

    def __init__(self, estimator: Any, family: Family, loss: Any, metrics: Any) -> None:
        self.estimator, self.family, self.own_loss, self.metrics = estimator, family, loss, metrics

    def export(self, parts: Parts) -> Any:
        """A fitted estimator with these weights."""
        return self._loaded(parts)

    # -- weights

    def parts(self, fitted: bool) -> Parts:
        """The estimator's numbers as the server holds them; zeros where training has not begun."""
        if self.family == _MOMENTS and not hasattr(self.estimator, "moments_"):
            self.estimator.shift_ = _shift(self.estimator)
            self.estimator.moments_ = self._moments_of_fitted(fitted)
        trainable, statistics = (
            _read(self.estimator, names) for names in (self.family.trained, self.family.statistics)
        )
        if not fitted and not hasattr(self.estimator, "n_clusters"):
            trainable = {name: np.zeros_like(a) for name, a in trainable.items()}
            start = np.zeros_like if self.family.sums else np.ones_like  # the step counter begins at 1
            statistics = {name: start(a) for name, a in statistics.items()}
        return Parts(trainable, statistics, {})

    def _moments_of_fitted(self, fitted: bool) -> list[NDArray[np.float64]]:
        one = self.estimator
        n = np.asarray(one.class_count_ if fitted else one.class_count_ * 0, np.float64)
        away = one.theta_ - one.shift_
        return [n, away * n[:, None], (one.var_ - one.epsilon_ + away**2) * n[:, None]]

    def drawn(self, template: Parts, words: list[int]) -> Tree:
        """Initial weights: layers are drawn as scikit-learn draws them (Glorot and Bengio 2010), all else is given."""
        weights: Arrays = template.trainable | template.statistics
        if self.family.trained != _LAYERS.trained:
            return weights
        generator = np.random.default_rng(words)
        factor = 2.0 if self.estimator.activation == "logistic" else 6.0
        layers = [name for name in weights if name.startswith("coefs_")]
        for i in range(len(layers)):
            fan_in, fan_out = weights[f"coefs_{i}"].shape
            bound = np.sqrt(factor / (fan_in + fan_out))
            for name in (f"coefs_{i}", f"intercepts_{i}"):
                weights[name] = generator.uniform(-bound, bound, weights[name].shape).astype(weights[name].dtype)
        return weights

    def _loaded(self, parts: Parts, seed: int | None = None) -> Any:
        estimator = copy.deepcopy(self.estimator)
        for names, values in (
            (self.family.trained, parts.trainable),
            (self.family.statistics, parts.statistics),
        ):
            _write(estimator, names, values)
        if seed is not None and "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed)
            if hasattr(estimator, "_random_state"):
                estimator._random_state = np.random.RandomState(seed)
        return self._settled(estimator)

    def _settled(self, estimator: Any) -> Any:
        self.family.settle(estimator)
        return estimator

    # -- training and measuring

    @_QUIET
    def fit(self, parts: Parts, data: Tree, key: HostKey, batching: Batching, pull: Pull | None) -> Fitted:
        """Train from these weights on what one client holds."""
        examples = batches = 0
        if self.family.sums:
            estimator = self._summed(data)
            examples, batches = sum(len(_labels(piece)) for piece in batches_of(data)), 1
        else:
            estimator = self._loaded(parts, key.number() % 2**31)
            for x, y, weight in _steps(data, key, batching):
                _step(estimator, x, y, weight)
                examples, batches = examples + len(x), batches + 1
        trainable, statistics = (_read(estimator, names) for names in (self.family.trained, self.family.statistics))
        sums = Sums(as_metrics(self.metrics))
        self._measure(self._settled(estimator), data, sums)
        return Fitted(trainable, statistics, sums.all(), examples, batches)

    def _summed(self, data: Tree) -> Any:
        """Naive Bayes of these rows alone."""
        estimator = copy.deepcopy(self.estimator)
        classes = estimator.classes_
        if self.family == _MOMENTS:
            estimator.moments_ = [np.zeros(len(classes)), *(np.zeros_like(estimator.theta_) for _ in range(2))]
        else:
            for name in self.family.statistics:
                counted = getattr(estimator, name)
                setattr(estimator, name, jax.tree.map(np.zeros_like, counted))
        for piece in batches_of(data):
            x, y, weight = _rows(piece)
            if self.family != _MOMENTS:
                _step(estimator, x, y, weight)
                continue
            x = x - estimator.shift_
            chosen = (y[:, None] == classes) * (np.ones(len(x)) if weight is None else weight)[:, None]
            estimator.moments_ = [
                total + more
                for total, more in zip(estimator.moments_, (chosen.sum(0), chosen.T @ x, chosen.T @ x**2), strict=True)
            ]
        return estimator

    @_QUIET
    def measure(self, parts: Parts, data: Tree) -> tuple[dict[str, Tree], int, int]:
        """(sums of loss and metrics, rows, batches), predicting."""
        sums = Sums(as_metrics(self.metrics))
        rows, batches = self._measure(self._loaded(parts), data, sums)
        return sums.all(), rows, batches

    @_QUIET
    def outputs(self, parts: Parts, x: Tree) -> Tree:
        """Probabilities, decision values, predicted values or nearest centres of rows x."""
        return np.asarray(self._outputs(self._loaded(parts), np.asarray(x, np.float64)), np.float32)

    def _outputs(self, estimator: Any, x: NDArray[Any]) -> NDArray[Any]:
        for name in ("predict_proba", "decision_function"):
            if hasattr(estimator, name) and hasattr(estimator, "classes_"):
                values: NDArray[Any] = getattr(estimator, name)(x)
                return values
        predicted: NDArray[Any] = estimator.predict(x)
        return predicted

    def _measure(self, estimator: Any, data: Tree, sums: Sums) -> tuple[int, int]:
        rows = batches = 0
        for piece in batches_of(data):
            x, y, weight = _rows(piece)
            weight = np.ones(len(x)) if weight is None else weight
            outputs = self._outputs(estimator, x)
            by_predict = (self.metrics or {}).get("accuracy") is _by_predict
            hits = {"accuracy": estimator.predict(x) == y} if by_predict else {}
            losses = self._losses(estimator, x, outputs, y)
            sums.add_loss(float((losses * weight).sum()), float(weight.sum()))
            sums.add(outputs, y, weight, hits)
            rows, batches = rows + len(x), batches + 1
        return rows, batches

    def _losses(self, estimator: Any, x: NDArray[Any], outputs: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
        """The loss of each row."""
        if self.own_loss is not None:
            return np.asarray(self.own_loss(outputs, y), np.float64).reshape(len(x))
        if hasattr(estimator, "classes_"):
            if hasattr(estimator, "predict_proba"):
                place = np.searchsorted(estimator.classes_, y).clip(0, outputs.shape[1] - 1)
                likely = np.where(estimator.classes_[place] == y, outputs[np.arange(len(y)), place], 0)
                surprise: NDArray[Any] = -np.log(np.clip(likely, 1e-15, 1))
                return surprise
            return np.asarray(estimator.predict(x) != y, np.float64)
        if hasattr(estimator, "cluster_centers_"):
            nearest: NDArray[Any] = estimator.transform(x).min(1) ** 2
            return nearest
        squared: NDArray[Any] = ((outputs - y.reshape(outputs.shape)) ** 2).reshape(len(x), -1).mean(1)
        return squared


def _by_predict(outputs: Any, y: Any) -> Any:
    """Stands for the accuracy of a classifier, which its own ``predict`` decides."""
    raise AssertionError("accuracy is counted by predict")


def _read(estimator: Any, names: Sequence[str]) -> Arrays:
    """The attributes' numbers by name, lists of arrays entry by entry, in JAX's dtypes."""
    found: Arrays = {}
    for name in names:
        value = getattr(estimator, name)
        if isinstance(value, list):
            found |= {f"{name}{i}": tree.canonical(np.array(entry)) for i, entry in enumerate(value)}
        else:
            found[name] = tree.canonical(np.array(value))
    return found


def _write(estimator: Any, names: Sequence[str], values: Mapping[str, Any]) -> None:
    """The reverse of `_read`, in the dtypes that the estimator has."""
    for name in names:
        value = getattr(estimator, name)
        if isinstance(value, list):
            setattr(estimator, name, [np.array(values[f"{name}{i}"], entry.dtype) for i, entry in enumerate(value)])
        elif isinstance(value, np.ndarray):
            setattr(estimator, name, np.array(values[name], value.dtype))
        else:
            setattr(estimator, name, float(values[name]))


def _rows(examples: Tree) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any] | None]:
    """(x, y, weight) as scikit-learn wants them; points without labels have y 0."""
    if hasattr(examples, "shape"):
        return np.asarray(examples, np.float64), np.zeros(len(examples), np.int64), None
    x, y, weight = unpack(examples)
    return np.asarray(x, np.float64), np.asarray(y), None if weight is None else np.asarray(weight).reshape(-1)


def _labels(examples: Tree) -> NDArray[Any]:
    return _rows(examples)[1]


def _steps(data: Tree, key: HostKey, batching: Batching) -> Any:
    if isinstance(data, list):
        yield from map(_rows, data)
        return
    rows = len(jax.tree.leaves(data)[0])
    for index in batching.batches(rows, seed=key.seed, round=key.round, client=key.client):
        taken = index[index >= 0]
        yield _rows(jax.tree.map(lambda a, taken=taken: a[taken], data))


def _step(estimator: Any, x: NDArray[Any], y: NDArray[Any], weight: NDArray[Any] | None) -> None:
    if weight is None:
        estimator.partial_fit(x, y)
    elif "sample_weight" in inspect.signature(estimator.partial_fit).parameters:
        estimator.partial_fit(x, y, sample_weight=weight)
    else:
        raise CompositionError(
            "SF-MODEL-035",
            f"example weights for a {type(estimator).__name__}",
            "an estimator whose partial_fit takes sample_weight",
            "leave the weights out, or choose another estimator",
        )
