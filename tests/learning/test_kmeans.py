"""Federated k-means against a few lines of NumPy from Sculley 2010, and its rules: splits, seeds, pseudo-counts."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import sumfold as sf

RUNTIMES = [sf.Simulation(), sf.Loopback()]
K, FEATURES = 3, 2
draw = np.random.default_rng(1)
INIT = draw.normal(size=(K, FEATURES)).astype(np.float32)
SIZES = {"a": 9, "single": 1, "empty": 0, "d": 14, "e": 5}
POINTS = {k: (draw.normal(size=(n, FEATURES)) + 3 * draw.integers(0, 2)).astype(np.float32) for k, n in SIZES.items()}


def sculley_2010(rounds, init=INIT, counts=0.0):
    """Algorithm 1: for each point of the batch, with the centroid cached before: v ← v + 1, c ← (1 − 1/v) c + x/v."""
    c, v = init.astype(np.float64), np.full(len(init), counts)
    for batch in rounds:
        cached = [int(((c - x) ** 2).sum(1).argmin()) for x in batch]
        squares = sum(((c[i] - x) ** 2).sum() for i, x in zip(cached, batch, strict=True))
        for i, x in zip(cached, batch, strict=True):
            v[i] += 1
            c[i] = (1 - 1 / v[i]) * c[i] + x / v[i]
        yield c.copy(), v.copy(), squares / max(len(batch), 1)


@functools.cache
def made(pseudo_count=0.0, init=True):
    return sf.learning.kmeans(
        K, FEATURES, init=INIT if init else None, pseudo_count=pseudo_count, batching=sf.Batching(size=4, shuffle=False)
    )


def check(process, state, metrics, expected):
    c, v, squares = expected
    weights = process.get_model_weights(state)
    np.testing.assert_allclose(weights["centroids"], c, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(weights["counts"], v)
    assert metrics["client_work"]["train"]["mean_squared_distance"] == pytest.approx(squares, rel=1e-5)
    assert metrics["finalizer"] == {"update_non_finite": 0}


@pytest.mark.parametrize("pseudo_count", [0.0, 1.0])
@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda r: type(r).__name__)
def test_three_rounds_of_the_paper(runtime, pseudo_count):
    process = made(pseudo_count).on(runtime)
    state, cohorts = process.initialize(), [list(POINTS), ["d", "empty"], ["a", "e", "single"]]
    batches = [np.concatenate([POINTS[k] for k in cohort]) for cohort in cohorts]
    for cohort, batch, expected in zip(cohorts, batches, sculley_2010(batches, counts=pseudo_count), strict=True):
        state, metrics = process.next(state, POINTS, clients=cohort)
        check(process, state, metrics, expected)
        assert metrics["client_work"]["train"]["num_examples"] == len(batch)
    assert len(state.clients) == 0


def test_a_round_from_counts_of_nothing_is_a_step_of_lloyd():
    process, points = made(), np.concatenate(list(POINTS.values()))
    state = process.initialize()
    for _ in range(4):
        c = np.asarray(process.get_model_weights(state)["centroids"], np.float64)
        nearest = ((points[:, None] - c) ** 2).sum(2).argmin(1)
        state, metrics = process.next(state, POINTS)
        found = process.get_model_weights(state)
        for i in range(K):
            mean = points[nearest == i].mean(0) if (nearest == i).any() else c[i]
            np.testing.assert_allclose(found["centroids"][i], mean, rtol=1e-5, atol=1e-5)
        state = process.set_model_weights(state, {**found, "counts": jnp.zeros(K)})
    assert metrics["client_work"]["train"]["mean_squared_distance"] < 5


ALL = np.concatenate(list(POINTS.values()))


@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 7), min_size=len(ALL), max_size=len(ALL)))
@example([0] * len(ALL))
@example([i % 8 for i in range(len(ALL))])
def test_splitting_the_same_points_over_clients_changes_nothing(owners):
    process = made(1.0)
    federation = {k: ALL[np.array(owners) == k] for k in range(8)}
    state, whole = process.initialize(), process.initialize()
    for _ in range(2):
        (state, ours), (whole, theirs) = process.next(state, federation), process.next(whole, [ALL])
        for name, value in process.get_model_weights(whole).items():
            np.testing.assert_allclose(process.get_model_weights(state)[name], value, rtol=1e-5, atol=1e-5)
        a, b = (m["client_work"]["train"]["mean_squared_distance"] for m in (ours, theirs))
        assert a == pytest.approx(b, rel=1e-5)


def test_a_centroid_without_a_new_point_stays():
    init = np.array([[0.0, 0.0], [90.0, 90.0], [0.1, 0.0]], np.float32)
    process = sf.learning.kmeans(K, FEATURES, init=init, pseudo_count=2.0)
    state, _ = process.next(process.initialize(), POINTS)
    weights = process.get_model_weights(state)
    np.testing.assert_array_equal(weights["centroids"][1], init[1])
    assert weights["counts"][1] == 2
    assert weights["counts"].sum() == 6 + len(ALL)


def test_the_seed_fixes_initialisation():
    process = made(init=False)
    first, again, other = (process.get_model_weights(process.initialize(seed))["centroids"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    np.testing.assert_array_equal(made().get_model_weights(made().initialize(5))["centroids"], INIT)


def test_runtimes_agree():
    sf.testing.assert_runtimes_agree(made(1.0), POINTS, *RUNTIMES, rounds=3)


@pytest.mark.parametrize("form", ["x, y", "dict", "weights of 1", "integers"])
def test_labels_are_ignored(form):
    def entry(x):
        y = np.arange(len(x))
        weighted = (x, y, np.ones(len(x), np.float32))
        return {"x, y": (x, y), "dict": {"x": x, "y": y}, "weights of 1": weighted, "integers": x.astype(np.int32)}[
            form
        ]

    process = made()
    data = {k: entry(x) for k, x in POINTS.items()}
    alone = {k: x.astype(np.int32) if form == "integers" else x for k, x in POINTS.items()}
    (state, _), (expected, _) = (process.next(process.initialize(), d) for d in (data, alone))
    np.testing.assert_array_equal(
        process.get_model_weights(state)["centroids"], process.get_model_weights(expected)["centroids"]
    )


def test_weights_of_rows_are_copies_of_rows_and_0_leaves_a_row_out():
    x = np.array([[0.0, 1.0], [2.0, 2.0], [np.nan, 0.0], [9.0, 9.0]], np.float32)
    process = made()
    weighted = {"a": (x, np.zeros(4), np.array([3.0, 1.0, 0.0, 2.0]))}
    copied = {"a": x[[0, 0, 0, 1, 3, 3]]}
    (state, ours), (expected, theirs) = (process.next(process.initialize(), d) for d in (weighted, copied))
    for name, value in process.get_model_weights(expected).items():
        np.testing.assert_allclose(process.get_model_weights(state)[name], value, rtol=1e-6)
    a, b = (m["client_work"]["train"]["mean_squared_distance"] for m in (ours, theirs))
    assert a == pytest.approx(b)


def test_points_of_several_axes_far_from_the_origin():
    """Sums of points at 1e4 would lose the digits that sums of differences keep."""
    x = (1e4 + draw.normal(size=(40, 2, 2))).astype(np.float32)
    process = sf.learning.kmeans(1, (2, 2), init=x[:1])
    state, _ = process.next(process.initialize(), [x[:30], x[30:]])
    np.testing.assert_allclose(
        process.get_model_weights(state)["centroids"][0], x.astype(np.float64).mean(0), rtol=1e-7
    )


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda r: type(r).__name__)
def test_clients_that_are_not_finite_and_nobody(runtime):
    process = made().on(runtime)
    bad = {**POINTS, "nan": np.array([[np.nan, 0.0]], np.float32)}
    (state, metrics), (without, _) = (process.next(process.initialize(), data) for data in (bad, POINTS))
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    for name, value in process.get_model_weights(without).items():
        np.testing.assert_allclose(process.get_model_weights(state)[name], value, rtol=1e-6)
    for cohort in (["nan"], [], ["empty"]):
        after, metrics = process.next(state, bad, clients=cohort)
        assert metrics["finalizer"] == {"update_non_finite": 1}
        assert metrics["client_work"]["train"]["mean_squared_distance"] == 0
        for name, value in process.get_model_weights(state).items():
            np.testing.assert_array_equal(process.get_model_weights(after)[name], value)


def test_the_loop_and_the_model():
    process = made()
    history = sf.train(process, POINTS, rounds=3, clients_per_round=3, evaluate=(ALL, ALL), progress=False)
    weights = process.get_model_weights(history.state)
    distances = process.model.predict(weights, ALL)
    np.testing.assert_allclose(history.evaluations[-1]["loss"], distances.min(1).mean(), rtol=1e-5)
    assert distances.shape == (len(ALL), K)
    assert "points" in process.explain()


@pytest.mark.parametrize("form", ["clients", "array", "by client"])
def test_points_alone_are_evaluated(form):
    process, given = made(), ALL if form == "array" else POINTS
    options = {"evaluate_clients" if form == "by client" else "evaluate": given}
    history = sf.train(process, POINTS, rounds=2, progress=False, **options)
    distances = process.model.predict(process.get_model_weights(history.state), ALL).min(1)
    assert history.evaluations[-1]["loss"] == pytest.approx(distances.mean(), rel=1e-5)
    assert history.evaluations[-1]["num_examples"] == len(ALL)


def test_points_of_another_shape_are_not_evaluated():
    with pytest.raises(sf.TypeMismatchError, match=r"points of shape \[5\].*SF-COMP-097"):
        sf.train(made(), POINTS, rounds=1, evaluate=np.zeros((4, 5), np.float32), progress=False)


# ---------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("clusters", [0, -1, 2.0, True, None, "3"])
def test_a_number_of_clusters_that_is_none(clusters):
    with pytest.raises(sf.CompositionError, match=rf"kmeans with clusters={clusters!r}.*whole number.*SF-COMP-091"):
        sf.learning.kmeans(clusters, 2)


@pytest.mark.parametrize("features", [0, 2.5, (2, 0), "ab", None, True])
def test_features_that_are_no_shape(features):
    with pytest.raises(sf.CompositionError, match=r"kmeans with features=.*shape of one point.*SF-COMP-093"):
        sf.learning.kmeans(2, features)


@pytest.mark.parametrize(
    ("init", "words"),
    [
        (np.zeros((2, 3)), r"shape \[2, 3\].*shape \[3, 2\]"),
        (np.full((3, 2), np.nan), "not finite"),
        ("zeros", "a str that is no array"),
    ],
    ids=["shape", "nan", "string"],
)
def test_centroids_that_cannot_be_used(init, words):
    with pytest.raises(sf.CompositionError, match=rf"init of.*{words}.*SF-COMP-094"):
        sf.learning.kmeans(3, 2, init=init)


@pytest.mark.parametrize("value", [-1, float("nan"), "1", True])
def test_pseudo_counts_out_of_range(value):
    with pytest.raises(sf.CompositionError, match=r"kmeans with pseudo_count=.*SF-COMP-062"):
        sf.learning.kmeans(3, 2, pseudo_count=value)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda r: type(r).__name__)
def test_points_of_another_shape(runtime):
    process = made().on(runtime)
    with pytest.raises(sf.TypeMismatchError, match=r"points of shape \[5\].*shape \[2\].*features=.*SF-COMP-097"):
        process.next(process.initialize(), [np.zeros((4, 5), np.float32)])
    with pytest.raises(sf.StateError, match="SF-STATE-003"):
        process.set_model_weights(process.initialize(), {"centroids": np.zeros((2, 2), np.float32)})


# ---------------------------------------------------------------------------------------- TFF's name


def test_the_name_of_tff():
    from sumfold import tff

    process = tff.learning.algorithms.build_fed_kmeans(K, (FEATURES,), random_seed=4)
    state, again = process.initialize(), process.initialize(seed=9)
    first = process.get_model_weights(state)
    np.testing.assert_array_equal(first["centroids"], process.get_model_weights(again)["centroids"])
    ready = [[x[:3], x[3:]] for x in POINTS.values() if len(x) > 3]
    batch = np.concatenate([np.concatenate(entry) for entry in ready])
    expected = next(sculley_2010([batch], np.asarray(first["centroids"]), 1.0))
    state, metrics = process.next(state, ready)
    check(process, state, metrics, expected)
    with pytest.raises(sf.CompositionError, match=r"sum_aggregator.*SF-COMP-072"):
        tff.learning.algorithms.build_fed_kmeans(K, (FEATURES,), sum_aggregator=1)
    with pytest.raises(sf.CompositionError, match="SF-COMP-033"):
        tff.learning.algorithms.build_fed_kmeans(K, (FEATURES,), random_seed="x")
