"""The family of federated averaging: each algorithm against its paper in NumPy, closed forms, memory, and refusals."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

learning = sf.learning

# ---------------------------------------------------------------------------------------- the papers, in NumPy
#
# `clients` is id -> its batches in order, `weights` id -> how much it counts in a mean, `cohorts` the ids of each
# round, `n` the population. Each yields, after every round: the model, the clients' memory, the server's own variable.

START = np.array([0.5, -1.0, 0.25])
RATE, MU, ALPHA = 0.02, 0.7, 0.3


def slope(w, x, y):
    """∇ of the mean of (x·w − y)² over the rows of a batch."""
    return 2 * x.T @ (x @ w - y) / len(y)


def average(values, weights):
    """Σ weight · value / Σ weight over the clients that hold a row; the others took no step and do not weigh."""
    return sum(weights[k] * values[k] for k in values) / sum(weights[k] for k in values)


def mcmahan_2017_fed_sgd(clients, weights, cohorts, n):
    w = START
    for cohort in cohorts:
        whole = {k: [np.concatenate(part) for part in zip(*clients[k], strict=True)] for k in cohort if clients[k]}
        w = w - 0.1 * average({k: slope(w, *rows) for k, rows in whole.items()}, weights)
        yield w, {}, None


def li_2020_fed_prox(clients, weights, cohorts, n):
    w = START
    for cohort in cohorts:
        ends = {}
        for k in cohort:
            v = w
            for x, y in clients[k]:
                v = v - RATE * (slope(v, x, y) + MU * (v - w))
            if clients[k]:
                ends[k] = v
        w = average(ends, weights)
        yield w, {}, None


def karimireddy_2020_scaffold(clients, weights, cohorts, n):
    """Algorithm 1, option II; a client without a step keeps its variate."""
    x, c, own = START, np.zeros(3), {}
    for cohort in cohorts:
        ends, change = {}, np.zeros(3)
        for k in cohort:
            before = own.setdefault(k, np.zeros(3))
            y = x
            for batch in clients[k]:
                y = y - RATE * (slope(y, *batch) - before + c)
            if clients[k]:
                ends[k] = y
                own[k] = before - c + (x - y) / (len(clients[k]) * RATE)
                change = change + own[k] - before
        x, c = average(ends, weights), c + change / n
        yield x, own, c


def wang_2020_fed_nova(clients, weights, cohorts, n):
    w = START
    for cohort in cohorts:
        d, steps = {}, {k: len(clients[k]) for k in cohort if clients[k]}
        for k, taken in steps.items():
            v, gathered = w, np.zeros(3)
            for x, y in clients[k]:
                gathered = gathered + slope(v, x, y)
                v = v - RATE * slope(v, x, y)
            d[k] = gathered / taken
        w = w - average(steps, weights) * RATE * average(d, weights)
        yield w, {}, None


def acar_2021_fed_dyn(clients, weights, cohorts, n):
    """Algorithm 1, its argmin by SGD. 1/n of everybody where weights are equal, else the client's share of all."""
    theta, h, own = START, np.zeros(3), {}
    equal = len(set(weights.values())) == 1
    for cohort in cohorts:
        ends, moved = {}, np.zeros(3)
        for k in cohort:
            linear = own.setdefault(k, np.zeros(3))
            v = theta
            for x, y in clients[k]:
                v = v - RATE * (slope(v, x, y) - linear + ALPHA * (v - theta))
            if clients[k]:
                ends[k] = v
            own[k] = linear - ALPHA * (v - theta)
            moved = moved + (1 / n if equal else weights[k] / sum(weights.values())) * (v - theta)
        h = h - ALPHA * moved
        theta = average(ends, weights) - h / ALPHA
        yield theta, own, h


# ---------------------------------------------------------------------------------------- ours

LINEAR = sf.models.from_functions(
    lambda key: jnp.array(START, jnp.float32), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
MADE = {
    "fed_sgd": lambda **options: learning.fed_sgd(LINEAR, **options),
    "fed_prox": lambda **options: learning.fed_prox(LINEAR, optax.sgd(RATE), mu=MU, **options),
    "scaffold": lambda **options: learning.scaffold(LINEAR, optax.sgd(RATE), **options),
    "fed_nova": lambda **options: learning.fed_nova(LINEAR, optax.sgd(RATE), **options),
    "fed_dyn": lambda **options: learning.fed_dyn(LINEAR, optax.sgd(RATE), alpha=ALPHA, **options),
}
PAPERS = {
    "fed_sgd": mcmahan_2017_fed_sgd,
    "fed_prox": li_2020_fed_prox,
    "scaffold": karimireddy_2020_scaffold,
    "fed_nova": wang_2020_fed_nova,
    "fed_dyn": acar_2021_fed_dyn,
}
REMEMBERING = ["scaffold", "fed_dyn"]


@functools.cache
def made(name, weighting="uniform", batching=sf.Batching(size=3, epochs=2, shuffle=False)):  # noqa: B008
    """One process for every test that asks for the same, so that it is compiled once."""
    return MADE[name](weighting=weighting, batching=batching)


def ragged(sizes):
    draw = np.random.default_rng(5)
    made = {k: (draw.normal(size=(n, 3)), draw.normal(size=n) + i) for i, (k, n) in enumerate(sizes.items())}
    return {k: (x.astype(np.float32), y.astype(np.float32)) for k, (x, y) in made.items()}


ROWS = ragged({"a": 5, "single": 1, "empty": 0, "d": 8, "e": 4})
HOLDING = {k: v for k, v in ROWS.items() if k != "empty"}


def pieces(entry, sizes):
    x, y = entry
    edges = np.minimum(np.cumsum([0, *sizes]), len(y))
    return [(x[i:j], y[i:j]) for i, j in itertools.pairwise(edges) if j > i]


ORDERED = sf.Batching(size=3, epochs=2, shuffle=False)
"""Batches whose order is known: 3, 3, … and the rest, twice. `ordered` writes them out."""


def ordered(data):
    return {k: 2 * pieces(entry, [3] * 4) for k, entry in data.items()}


def ready(data):
    return {k: pieces(entry, [2, 4, 3, 2]) for k, entry in data.items()}


def weights_of(data, weighting):
    return {k: len(y) if weighting == "examples" else 1 for k, (_, y) in data.items()}


def close(ours, papers):
    np.testing.assert_allclose(np.asarray(ours, np.float64), papers, rtol=1e-5, atol=1e-5)


def follow(process, state, data, expected, cohorts, known=lambda k: k):
    """Every round agrees with the paper: the model, each client's memory, and the server's own variable."""
    for cohort, (w, memory, own) in zip(cohorts, expected, strict=True):
        state, metrics = process.next(state, data, clients=[known(k) for k in cohort])
        assert metrics["finalizer"]["update_non_finite"] == 0
        close(process.get_model_weights(state), w)
        assert set(state.clients) == {known(k) for k in memory}
        for k, value in memory.items():
            close(state.clients[known(k)][0].work, value)
        if own is not None:
            close(state.algorithm.own[0], own)
    return state


@pytest.mark.parametrize(
    ("split", "weighting"), [("ordered", "examples"), ("ordered", "uniform"), ("ready-made", "examples")]
)
@pytest.mark.parametrize("name", PAPERS)
def test_three_rounds_of_the_paper(name, split, weighting):
    rows = HOLDING if name == "fed_dyn" else ROWS  # FedDyn with a client without rows: below
    batches = ordered(rows) if split == "ordered" else ready(rows)
    cohorts = [list(rows)] * 3
    process = made(name, weighting) if split == "ordered" else made(name, weighting, None)
    expected = PAPERS[name](batches, weights_of(rows, weighting), cohorts, len(rows))
    follow(process, process.initialize(), rows if split == "ordered" else batches, expected, cohorts)


def test_the_papers_differ_from_each_other_and_from_federated_averaging():
    """What the test above compares with is no single recursion under five names."""
    cohorts, weights = [list(HOLDING)] * 3, weights_of(HOLDING, "examples")
    ends = [list(paper(ordered(HOLDING), weights, cohorts, 4))[-1][0] for paper in PAPERS.values()]
    plain = learning.fed_avg(LINEAR, optax.sgd(RATE), batching=ORDERED)
    state = plain.initialize()
    for _ in range(3):
        state, _ = plain.next(state, HOLDING)
    ends.append(np.asarray(plain.get_model_weights(state)))
    apart = [np.abs(a - b).max() for i, a in enumerate(ends) for b in ends[:i]]
    assert min(apart) > 1e-3, apart


COHORTS = [["a", "single"], ["d"], ["single", "e", "a"], ["d", "e"]]


@pytest.mark.parametrize("source", ["initialize", "federation", "mapping", "list", "initialize first"])
@pytest.mark.parametrize("name", REMEMBERING)
def test_partial_participation(name, source):
    """N is what initialize was told, else how many clients the data hold; never the size of the cohort."""
    places = {k: i for i, k in enumerate(HOLDING)}
    told = {"initialize": 11, "initialize first": 3}.get(source)
    data = {"federation": sf.Federation.from_clients(HOLDING), "list": list(HOLDING.values())}.get(source, HOLDING)
    process = made(name)
    expected = PAPERS[name](ordered(HOLDING), weights_of(HOLDING, "uniform"), COHORTS, told or 4)
    known = places.get if source == "list" else lambda k: k
    state = follow(process, process.initialize(clients=told), data, expected, COHORTS, known)
    assert int(state.algorithm.own.population) == (told or 4)


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_population_stays_as_it_was_in_the_first_round(name):
    process = MADE[name](batching=ORDERED)
    state = process.initialize()
    assert int(state.algorithm.own.population) == 0
    state, _ = process.next(state, {k: HOLDING[k] for k in ("a", "d")})
    assert int(state.algorithm.own.population) == 2
    state, _ = process.next(state, HOLDING)
    assert int(state.algorithm.own.population) == 2


def test_scaffold_counts_a_client_without_rows_among_n():
    cohorts = [["a", "empty"], ["empty", "d", "e"], ["empty", "single"]]
    process = made("scaffold", "examples")
    expected = karimireddy_2020_scaffold(ordered(ROWS), weights_of(ROWS, "examples"), cohorts, 5)
    follow(process, process.initialize(), ROWS, expected, cohorts)


@pytest.mark.parametrize("cohorts", [[list(ROWS)] * 3, [["a", "empty"], ["d", "e"], ["empty", "single"]]])
def test_fed_dyn_with_a_client_without_rows(cohorts):
    """Acar et al. 2021: h ← h − α/N Σ (w_k − w), and a client without rows adds nothing to the sum."""
    process = made("fed_dyn")
    expected = acar_2021_fed_dyn(ordered(ROWS), weights_of(ROWS, "uniform"), cohorts, 5)
    follow(process, process.initialize(), ROWS, expected, cohorts)


# ---------------------------------------------------------------------------------------- reference numbers (A27, A37)

SCALAR = sf.models.from_functions(
    lambda key: jnp.float32(0.0), lambda w, x: w * x, lambda outputs, y: (outputs - y) ** 2
)
TWO = {"one": (np.ones(1), 2 * np.ones(1)), "three": (2 * np.ones(3), 4 * np.ones(3))}
A35 = [1.3, 1.755, 1.91425]
A27 = {0.0: [1.055, 1.553487, 1.789023], 1.0: [1.0225, 1.522247, 1.766498]}
OF_TFF = [1.0875, 1.583672, 1.810050]  # the sign-flipped recursion


def course(process, state=None, rounds=3, data=TWO):
    state, weights = process.initialize() if state is None else state, []
    for _ in range(rounds):
        state, _ = process.next(state, data)
        weights.append(float(process.get_model_weights(state)))
    return weights


def prox(mu, **options):
    return learning.fed_prox(SCALAR, optax.sgd(0.05), mu=mu, batching=sf.Batching(size=None, epochs=2), **options)


@pytest.mark.parametrize(
    ("mu", "runtime"),
    [(0.0, sf.Simulation()), (1.0, sf.Simulation()), (1.0, sf.Loopback())],
    ids=lambda v: v if isinstance(v, float) else type(v).__name__,
)
def test_a27(mu, runtime):
    weights = course(prox(mu).on(runtime))
    np.testing.assert_allclose(weights, A27[mu], rtol=1e-6)
    assert np.abs(np.array(weights) - OF_TFF).min() > 0.01


def test_fed_prox_without_mu_is_federated_averaging():
    plain = learning.fed_avg(SCALAR, optax.sgd(0.05), batching=sf.Batching(size=None, epochs=2))
    assert course(prox(0)) == course(plain)


def test_a37():
    weights = course(learning.fed_sgd(SCALAR))
    np.testing.assert_allclose(weights, A35, rtol=1e-6)
    plain = learning.fed_avg(SCALAR, optax.sgd(0.1), batching=sf.Batching(size=None))
    np.testing.assert_allclose(weights, course(plain), rtol=1e-6)


def test_fed_sgd_leaves_its_gradient_to_any_server_optimizer():
    weights = course(learning.fed_sgd(SCALAR, optax.adam(0.3)))
    plain = learning.fed_avg(SCALAR, optax.sgd(1.0), optax.adam(0.3), batching=sf.Batching(size=None))
    np.testing.assert_allclose(weights, course(plain), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3])
def test_fed_sgd_in_pieces(size):
    whole = learning.fed_sgd(LINEAR)
    parts = learning.fed_sgd(LINEAR, batching=sf.Batching(size=size))
    a, b = whole.initialize(), parts.initialize()
    for _ in range(3):
        (a, _), (b, _) = whole.next(a, ROWS), parts.next(b, ROWS)
        close(parts.get_model_weights(b), whole.get_model_weights(a))


def test_fed_sgd_in_pieces_of_rows_with_weights():
    """Its page says that the result is the same in however many pieces; rows weigh 3 and 1 here."""
    data = {"one": (np.array([1.0, 2.0]), np.array([2.0, 4.0]), np.array([3.0, 1.0]))}
    whole = course(learning.fed_sgd(SCALAR), data=data)
    assert whole[0] == pytest.approx(0.1 * (3 * 4 + 1 * 16) / 4)
    pieces = course(learning.fed_sgd(SCALAR, batching=sf.Batching(size=1)), data=data)
    np.testing.assert_allclose(pieces, whole, rtol=1e-5)


# ---------------------------------------------------------------------------------------- closed forms on quadratics
#
# Client k minimises the mean of (A_k w − A_k b_k)², two rows each: H_k = A_kᵀA_k, its own optimum b_k, and
# the optimum of both is (H_1 + H_2)⁻¹ (H_1 b_1 + H_2 b_2). K steps of rate η move w to b_k + (I − ηH_k)ᴷ (w − b_k).

FORMS = np.array([[[1.5, 0.0], [0.5, 0.5]], [[0.4, 0.2], [0.0, 1.2]]])
OPTIMA = np.array([[1.0, -2.0], [-3.0, 2.0]])
QUADRATICS = {
    k: (a.astype(np.float32), (a @ b).astype(np.float32)) for k, a, b in zip("ab", FORMS, OPTIMA, strict=True)
}
CURVATURES = [a.T @ a for a in FORMS]
OPTIMUM = np.linalg.solve(sum(CURVATURES), sum(h @ b for h, b in zip(CURVATURES, OPTIMA, strict=True)))
PLANE = sf.models.from_functions(
    lambda key: jnp.array([4.0, 4.0]), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
STEPS = sf.Batching(size=None, epochs=10)


def after(process, rounds, data=QUADRATICS, cohorts=None, **begin):
    state = process.initialize(**begin)
    for number in range(rounds):
        state, _ = process.next(state, data, clients=cohorts and cohorts[number % len(cohorts)])
    return state, np.asarray(process.get_model_weights(state), np.float64)


def distance(w):
    return float(np.linalg.norm(w - OPTIMUM))


@pytest.fixture(scope="module")
def averaged():
    return after(learning.fed_avg(PLANE, optax.sgd(0.1), batching=STEPS), 30)[1]


def test_federated_averaging_stops_beside_the_optimum(averaged):
    """Its fixed point solves Σ (I − (I − ηH_k)ᴷ) (w − b_k) = 0, which weighs the clients' optima otherwise."""
    pulls = [np.eye(2) - np.linalg.matrix_power(np.eye(2) - 0.1 * h, 10) for h in CURVATURES]
    fixed = np.linalg.solve(sum(pulls), sum(p @ b for p, b in zip(pulls, OPTIMA, strict=True)))
    close(averaged, fixed)
    assert distance(averaged) > 0.1


def test_scaffold_reaches_the_optimum_where_federated_averaging_does_not(averaged):
    state, w = after(learning.scaffold(PLANE, optax.sgd(0.1), batching=STEPS), 30)
    found = f"distance to the global optimum {OPTIMUM}: SCAFFOLD {distance(w):.3e}, FedAvg {distance(averaged):.3e}"
    print(found)
    assert distance(w) < 1e-4, found
    assert distance(averaged) > 1e3 * distance(w), found
    for k, h, b in zip("ab", CURVATURES, OPTIMA, strict=True):
        np.testing.assert_allclose(
            state.clients[k][0].work, h @ (OPTIMUM - b), atol=1e-4, err_msg=f"c_{k} = ∇F_{k}(w*)"
        )
    np.testing.assert_allclose(state.algorithm.own.variate, 0, atol=1e-4)


DYN = {"alpha": 0.5, "batching": sf.Batching(size=None, epochs=20)}


def test_the_fixed_point_of_fed_dyn_is_the_optimum(averaged):
    state, w = after(learning.fed_dyn(PLANE, optax.sgd(0.1), **DYN), 30)
    found = f"distance to the global optimum: FedDyn {distance(w):.3e}, FedAvg {distance(averaged):.3e}"
    assert distance(w) < 1e-4, found
    assert distance(averaged) > 1e3 * distance(w), found
    for k, h, b in zip("ab", CURVATURES, OPTIMA, strict=True):
        np.testing.assert_allclose(
            state.clients[k][0].work, h @ (OPTIMUM - b), atol=1e-4, err_msg=f"g_{k} = ∇F_{k}(w*)"
        )
    np.testing.assert_allclose(state.algorithm.own.h, 0, atol=1e-4)


ALONE = [["a"], ["b"]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: learning.scaffold(PLANE, optax.sgd(0.1), batching=STEPS),
        lambda: learning.fed_dyn(PLANE, optax.sgd(0.1), **DYN),
    ],
    ids=REMEMBERING,
)
def test_some_clients_a_round_reach_the_optimum_too(make):
    _, w = after(make(), 40, cohorts=ALONE)
    assert distance(w) < 1e-4, distance(w)


def test_fed_dyn_reaches_the_optimum_whoever_has_no_rows():
    data = {**QUADRATICS, "empty": (np.zeros((0, 2), np.float32), np.zeros(0, np.float32))}
    cohorts = [["a", "empty"], ["b"]]
    _, w = after(learning.fed_dyn(PLANE, optax.sgd(0.1), **DYN), 40, data, cohorts)
    assert distance(w) < 1e-4, distance(w)


SLOW, PULL = 5e-4, 60.0
UNEQUAL = {"one": (np.ones(1), 2 * np.ones(1)), "many": (1.5 * np.ones(8), -1.5 * np.ones(8))}  # 1 and 8 steps


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_fed_nova_reaches_the_weighted_optimum_where_federated_averaging_is_biased(weighting):
    """Scalar: H = 2x², optima 2 and −1. A client pulls by 1 − (1 − ηH)^τ, in FedNova by a τ-th of it."""
    weights = np.array([1, 8] if weighting == "examples" else [1, 1])
    h, b, steps = np.array([2.0, 4.5]), np.array([2.0, -1.0]), np.array([1, 8])
    pulls = weights * (1 - (1 - SLOW * h) ** steps)
    optimum = np.average(b, weights=weights * h)
    biased, fixed = np.average(b, weights=pulls), np.average(b, weights=pulls / steps)
    options = {"weighting": weighting, "batching": sf.Batching(size=1)}
    server = optax.sgd(PULL)
    _, nova = after(learning.fed_nova(SCALAR, optax.sgd(SLOW), server, **options), 30, UNEQUAL)
    _, plain = after(learning.fed_avg(SCALAR, optax.sgd(SLOW), server, **options), 30, UNEQUAL)
    found = f"distance to {optimum}: FedNova {abs(nova - optimum):.2e}, FedAvg {abs(plain - optimum):.2e}"
    assert abs(nova - fixed) < 2e-4, found
    assert abs(plain - biased) < 2e-4, found
    assert abs(nova - optimum) < 0.01 < 0.1 < abs(plain - optimum), found


def test_fed_nova_is_federated_averaging_where_steps_are_equal():
    options = {"batching": sf.Batching(size=2, max_steps=2, epochs=3, shuffle=False)}
    nova = learning.fed_nova(SCALAR, optax.sgd(0.1), **options)
    plain = learning.fed_avg(SCALAR, optax.sgd(0.1), **options)
    np.testing.assert_allclose(course(nova), course(plain), rtol=1e-6)


# ---------------------------------------------------------------------------------------- memory and states


def contents(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def remembered(state):
    return {k: contents(state.clients[k]) for k in state.clients}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_client_that_is_not_finite_keeps_its_memory_and_is_not_counted(name):
    process = made(name)
    state, _ = process.next(process.initialize(clients=4), HOLDING, clients=["a", "single", "d"])
    before = remembered(state)
    broken = {**HOLDING, **{k: (HOLDING[k][0] * np.nan, HOLDING[k][1]) for k in ("a", "e")}}
    after, metrics = process.next(state, broken)
    without, _ = process.next(state, broken, clients=["single", "d"])
    counted = metrics["client_work"]["train"]
    assert (counted["num_clients"], counted["num_non_finite_clients"]) == (2, 2)
    assert remembered(after)["a"] == before["a"]
    assert "e" not in after.clients
    assert remembered(after)["d"] != before["d"]
    close(process.get_model_weights(after), process.get_model_weights(without))
    close(after.algorithm.own[0], without.algorithm.own[0])
    assert remembered(after).keys() == remembered(without).keys()
    assert remembered(state) == before


NOBODY = {
    "empty cohort": (ROWS, []),
    "no rows": (ROWS, ["empty"]),
    "not finite": ({**ROWS, "a": (ROWS["a"][0] * np.nan, ROWS["a"][1])}, ["a"]),
    "not finite and no rows": ({**ROWS, "a": (ROWS["a"][0] * np.nan, ROWS["a"][1])}, ["a", "empty"]),
}


@pytest.mark.parametrize("case", NOBODY)
@pytest.mark.parametrize("name", MADE)
def test_a_round_of_nobody_leaves_everything_as_it_was(name, case):
    process, (data, clients) = made(name), NOBODY[case]
    state, _ = process.next(process.initialize(), ROWS)
    after, metrics = process.next(state, data, clients=clients)
    assert metrics["finalizer"] == {"update_non_finite": 1}
    assert contents(after.algorithm._replace(round=0)) == contents(state.algorithm._replace(round=0))
    assert remembered(after) == remembered(state)
    again, metrics = process.next(after, ROWS)
    assert metrics["finalizer"] == {"update_non_finite": 0}
    assert contents(again.algorithm.model) != contents(after.algorithm.model)


def test_data_of_no_client():
    """fed_avg has it too: the batch of nobody is planned 3 wide and packed 1 wide."""
    process = learning.fed_avg(LINEAR, optax.sgd(RATE), batching=ORDERED)
    assert process.next(process.initialize(), []).metrics["finalizer"] == {"update_non_finite": 1}


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_round_that_is_not_applied_leaves_memory_and_server_together(name):
    """A total weight of 0: c must stay the mean of all c_k, and h that of all g_k (up to its sign)."""
    process = MADE[name](weighting=lambda metrics: 0.0, batching=ORDERED)
    state, metrics = process.next(process.initialize(), HOLDING)
    assert metrics["finalizer"] == {"update_non_finite": 1}
    mean = np.mean(
        [np.asarray(state.clients[k][0].work) for k in HOLDING if k in state.clients] or [np.zeros(3)], axis=0
    )
    close(state.algorithm.own[0], mean)


@pytest.mark.parametrize("name", REMEMBERING)
def test_the_servers_variable_is_the_mean_of_the_clients(name):
    """c = 1/N Σ c_k and h = 1/N Σ g_k, in whatever cohorts they came; who never came counts as 0."""
    process = made(name)
    state = process.initialize(clients=7)
    for cohort in [["a"], ["d", "e"], [], ["a", "single", "e"]]:
        state, _ = process.next(state, HOLDING, clients=cohort)
        close(state.algorithm.own[0], sum(np.asarray(state.clients[k][0].work) for k in state.clients) / 7)


@pytest.mark.parametrize("name", MADE)
def test_a_saved_state_goes_on_identically(name, tmp_path):
    process, path = made(name), tmp_path / "state.safetensors"
    state, _ = process.next(process.initialize(clients=9), ROWS, clients=["a", "d"])
    sf.save(path, state)
    loaded = sf.load(path)
    for cohort in [["d", "e"], None]:
        (state, one), (loaded, two) = (
            process.next(state, ROWS, clients=cohort),
            process.next(loaded, ROWS, clients=cohort),
        )
        assert contents(state) == contents(loaded)
        assert remembered(state) == remembered(loaded)
        assert one == two
    assert process.get_hparams(state) == process.get_hparams(loaded)


@pytest.mark.parametrize("name", REMEMBERING)
def test_an_interrupted_run_ends_in_the_same_bytes(name, tmp_path):
    process = MADE[name](batching=sf.Batching(size=3))

    def run(folder, **options):
        path = tmp_path / folder
        history = sf.train(
            process, ROWS, rounds=6, clients_per_round=2, seed=3, checkpoint=path, progress=False, **options
        )
        return history, {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}

    def fail(event):
        if event.kind == "round_end" and event.round == 3:
            raise RuntimeError("the power went out")

    whole, expected = run("whole")
    with pytest.raises(RuntimeError, match="the power went out"):
        run("pieces", callbacks=[fail])
    resumed, found = run("pieces")
    assert found == expected
    assert len(resumed.metrics) == 6
    assert resumed.metrics == whole.metrics
    assert remembered(resumed.state) == remembered(whole.state)
    assert len(resumed.state.clients) > 2
    assert int(resumed.state.algorithm.own.population) == 5


# ---------------------------------------------------------------------------------------- hyperparameters


def test_mu_can_be_read_and_set():
    process = prox(1.0)
    state = process.initialize()
    assert process.get_hparams(state)["client_work"]["mu"] == 1.0
    changed = process.set_hparams(state, {"client_work": {"mu": 0.0}})
    np.testing.assert_allclose(course(process, changed), A27[0.0], rtol=1e-6)
    np.testing.assert_allclose(course(process, state), A27[1.0], rtol=1e-6)
    later, _ = process.next(changed, TWO)
    assert process.get_hparams(later)["client_work"]["mu"] == 0.0


def test_alpha_can_be_read_and_set():
    def with_alpha(alpha):
        return learning.fed_dyn(LINEAR, optax.sgd(RATE), alpha=alpha, batching=ORDERED)

    process, other = with_alpha(2.0), with_alpha(0.5)
    state = process.set_hparams(process.initialize(), {"client_work": {"alpha": 0.5}})
    expected = other.initialize()
    for _ in range(3):
        (state, _), (expected, _) = process.next(state, HOLDING), other.next(expected, HOLDING)
        assert contents(state.algorithm.model) == contents(expected.algorithm.model)
    assert remembered(state) == remembered(expected)
    assert process.get_hparams(state) == other.get_hparams(expected)
    assert process.get_hparams(state)["client_work"]["alpha"] == 0.5


@pytest.mark.jax_defaults
def test_hyperparameters_of_algorithm_and_optimizer_side_by_side():
    sgd = optax.inject_hyperparams(optax.sgd)
    process = learning.fed_prox(SCALAR, sgd(learning_rate=0.5), sgd(learning_rate=1.0), mu=0.25, batching=ORDERED)
    state = process.initialize()
    seen = process.get_hparams(state)
    assert seen == {"client_work": {"learning_rate": 0.5, "mu": 0.25}, "finalizer": {"learning_rate": 1.0}}
    assert process.get_hparams(process.set_hparams(state, seen)) == seen
    state = process.set_hparams(state, {"client_work": {"learning_rate": 0.05}, "finalizer": {"learning_rate": 0.5}})
    state = process.set_hparams(state, {"client_work": {"mu": 3.0}})
    expected = {"client_work": {"learning_rate": pytest.approx(0.05), "mu": 3.0}, "finalizer": {"learning_rate": 0.5}}
    assert process.get_hparams(state) == expected
    assert process.get_hparams(process.next(state, TWO).state) == expected


@pytest.mark.parametrize("name", ["fed_sgd", "scaffold", "fed_nova"])
def test_an_algorithm_has_only_its_own(name):
    with pytest.raises(sf.CompositionError, match=r"client_work\.mu.*SF-COMP-022"):
        made(name).set_hparams(made(name).initialize(), {"client_work": {"mu": 1.0}})


@pytest.mark.parametrize("value", [-1, -0.5, float("nan"), float("inf"), True, None, "1"])
def test_mu_is_refused(value):
    with pytest.raises(sf.CompositionError, match=r"fed_prox with mu=.*finite number of at least 0.*SF-COMP-062"):
        prox(value)


@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), True, None, "1"])
def test_alpha_is_refused(value):
    with pytest.raises(sf.CompositionError, match=r"fed_dyn with alpha=.*finite number above 0.*SF-COMP-062"):
        learning.fed_dyn(LINEAR, optax.sgd(RATE), alpha=value)


@pytest.mark.parametrize(
    ("name", "hparam", "value"),
    [("fed_prox", "mu", -1.0), ("fed_prox", "mu", float("nan")), ("fed_dyn", "alpha", 0.0), ("fed_dyn", "alpha", -1.0)],
)
def test_what_is_refused_when_built_is_refused_when_set(name, hparam, value):
    with pytest.raises(sf.CompositionError, match="SF-COMP-062"):
        made(name).set_hparams(made(name).initialize(), {"client_work": {hparam: value}})


@pytest.mark.parametrize("value", [np.float32(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(value):
    assert prox(value).get_hparams(prox(value).initialize())["client_work"]["mu"] == float(value)


@pytest.mark.parametrize("name", [*REMEMBERING, "fed_prox"])
@pytest.mark.parametrize("clients", [0, -3, True])
def test_a_population_of_nobody_is_refused(name, clients):
    with pytest.raises(sf.CompositionError, match=rf"clients={clients}.*how many clients.*SF-COMP-061"):
        made(name).initialize(clients=clients)


def test_a_population_means_nothing_to_the_others():
    for name in ("fed_sgd", "fed_prox", "fed_nova"):
        assert contents(made(name).initialize(clients=12)) == contents(made(name).initialize())


@pytest.mark.parametrize("make", [learning.fed_prox, learning.scaffold, learning.fed_nova, learning.fed_dyn])
def test_a_client_optimizer_is_needed(make):
    own = {learning.fed_prox: {"mu": 0.1}, learning.fed_dyn: {"alpha": 0.1}}.get(make, {})
    with pytest.raises(sf.CompositionError, match=r"client_optimizer is None"):
        make(LINEAR, None, **own)
    with pytest.raises(sf.CompositionError, match=r"weighting='foo'"):
        make(LINEAR, optax.sgd(0.1), weighting="foo", **own)


def test_the_client_optimizer_of_fed_sgd_is_nobodys():
    with pytest.raises(sf.CompositionError, match=r"server_optimizer is None"):
        learning.fed_sgd(LINEAR, None)
    with pytest.raises(TypeError):
        learning.fed_sgd(LINEAR, client_optimizer=optax.sgd(0.1))
