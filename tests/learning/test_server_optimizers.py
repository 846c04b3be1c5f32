"""Server optimizers against Algorithm 2 of Reddi et al. 2021 in NumPy, and rates that are not finite."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning import checks

optimizers = sf.optimizers

# ------------------------------------------------------------------------------------- the papers, in NumPy
#
# Each takes the rounds' mean client changes and gives what is added to the weights, one array a round.


def hsu_2019(changes, rate, momentum=0.9):
    d = 0.0
    for change in changes:
        d = momentum * d + change
        yield rate * d


def reddi_2021(grow, b1=0.9):
    def steps(changes, rate, tau=1e-3):
        delta, v = 0.0, tau**2
        for change in changes:
            delta = b1 * delta + (1 - b1) * change
            v = grow(v, delta**2)
            yield rate * delta / (np.sqrt(v) + tau)

    return steps


PAPERS = {
    "fed_avg_m": hsu_2019,
    "fed_adagrad": reddi_2021(lambda v, square: v + square, b1=0.0),
    "fed_adam": reddi_2021(lambda v, square: 0.99 * v + 0.01 * square),
    "fed_yogi": reddi_2021(lambda v, square: v - 0.01 * square * np.sign(v - square)),
}

# optax's own: bias correction, other first accumulators, and constants that stand elsewhere


def optax_momentum(gradients, rate):
    m = 0.0
    for g in gradients:
        m = 0.9 * m + g
        yield -rate * m


def optax_adam(gradients, rate, b1=0.9, b2=0.999, eps=1e-8):
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        yield -rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def optax_yogi(gradients, rate, b1=0.9, b2=0.999, eps=1e-3):
    m = v = 1e-6
    for t, g in enumerate(gradients, 1):
        m, v = b1 * m + (1 - b1) * g, v - (1 - b2) * np.sign(v - g**2) * g**2
        yield -rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)


def optax_adagrad(gradients, rate):
    v = 0.1
    for g in gradients:
        v = v + g**2
        yield -rate * g / np.sqrt(v + 1e-7)


OF_OPTAX = {
    "momentum": (lambda rate: optax.sgd(rate, momentum=0.9), optax_momentum),
    "adam": (optax.adam, optax_adam),
    "yogi": (optax.yogi, optax_yogi),
    "adagrad": (optax.adagrad, optax_adagrad),
}

CHANGES = np.array([[2.0, -0.03, 0.0], [1.0, 0.3, 1e-4], [-4.0, 0.02, -1e-4], [0.5, 0.0, 2.0]])


def updates(optimizer, changes):
    """What the optimizer adds to the weights, given the negative changes as gradients."""
    state, update, added = optimizer.init(jnp.zeros(3)), jax.jit(optimizer.update), []
    for change in changes:
        added.append(update(jnp.asarray(-change, jnp.float32), state))
        state = added[-1][1]
    return np.array([np.asarray(value, np.float64) for value, _ in added])


@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", PAPERS)
def test_steps_are_those_of_the_paper(name):
    made = getattr(optimizers, name)
    expected = np.array(list(PAPERS[name](CHANGES, 0.3)))
    np.testing.assert_allclose(updates(made(0.3), CHANGES), expected, rtol=1e-5, atol=1e-6)
    injected = optax.inject_hyperparams(made)(learning_rate=0.3)
    np.testing.assert_allclose(updates(injected, CHANGES), expected, rtol=1e-5, atol=1e-6)
    by_schedule = made(optax.piecewise_constant_schedule(0.3, {2: 0.1}))
    np.testing.assert_allclose(updates(by_schedule, CHANGES)[:2], expected[:2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(updates(by_schedule, CHANGES)[2:], 0.1 * expected[2:], rtol=1e-5, atol=1e-6)


@pytest.mark.jax_defaults
def test_what_optax_has_of_it():
    """FedAvgM is optax.sgd; FedAdam is an average, and RMSProp of that average."""
    momentum = updates(optax.sgd(0.3, momentum=0.5), CHANGES)
    np.testing.assert_array_equal(updates(optimizers.fed_avg_m(0.3, momentum=0.5), CHANGES), momentum)
    rms = optax.scale_by_rms(decay=0.9, eps=0.1, eps_in_sqrt=False, initial_scale=0.01)
    pieces = optax.chain(optax.ema(0.5, debias=False), rms, optax.scale_by_learning_rate(0.3))
    adam = updates(optimizers.fed_adam(0.3, b1=0.5, b2=0.9, tau=0.1), CHANGES)
    np.testing.assert_allclose(adam, updates(pieces, CHANGES), rtol=1e-6, atol=1e-7)


@pytest.mark.jax_defaults
def test_the_papers_forms_differ_from_optaxs():
    """Bias correction alone makes the first step of Adam another one: 0.95 η here, η there."""
    ours, optaxs = updates(optimizers.fed_adam(1.0), CHANGES[:1]), updates(optax.adam(1.0, b2=0.99), CHANGES[:1])
    assert ours[0, 0] == pytest.approx(0.2 / (np.sqrt(0.99e-6 + 0.01 * 0.04) + 1e-3), rel=1e-5)
    assert ours[0, 0] > 9 * optaxs[0, 0]


# ------------------------------------------------------------------------------------- through fed_avg

LINEAR = sf.models.from_functions(
    lambda key: jnp.array([0.5, -1.0, 0.25]), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
SIZES = {"a": 5, "single": 1, "empty": 0, "d": 8}


def ragged():
    draw = np.random.default_rng(5)
    made = {k: (draw.normal(size=(n, 3)), draw.normal(size=n) + n) for k, n in SIZES.items()}
    return {k: (x.astype(np.float32), y.astype(np.float32)) for k, (x, y) in made.items()}


DATA = ragged()


def mean_change(w, weighting):
    """Two full-batch steps at rate 0.05 on each client, and the weighted mean of where they lead."""
    changes, weights = [], []
    for x, y in DATA.values():
        if len(y):
            v = w
            for _ in range(2):
                v = v - 0.05 * 2 * x.T.astype(np.float64) @ (x @ v - y) / len(y)
            changes.append(v - w)
            weights.append(len(y) if weighting == "examples" else 1.0)
    return np.average(changes, axis=0, weights=weights)


def course(steps, weighting, rounds=3):
    """The weights after each round: `steps` is a generator function of the changes, asked for one at a time."""
    w, changes, seen = np.array([0.5, -1.0, 0.25]), [], []
    for _ in range(rounds):
        changes.append(mean_change(w, weighting))
        w = w + list(steps(changes))[-1]
        seen.append(w)
    return seen


def check(server, steps, weighting, runtime):
    batching = sf.Batching(size=None, epochs=2)
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05), server, weighting=weighting, batching=batching).on(runtime)
    state = process.initialize()
    for expected in course(steps, weighting):
        state, _ = process.next(state, DATA)
        np.testing.assert_allclose(process.get_model_weights(state), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.jax_defaults
@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=["simulation", "loopback"])
@pytest.mark.parametrize("name", PAPERS)
def test_rounds_of_fed_avg_follow_algorithm_2(name, runtime):
    server = getattr(optimizers, name)(0.1)
    check(server, lambda changes: PAPERS[name](changes, 0.1), "uniform", runtime)
    if isinstance(runtime, sf.Simulation):
        check(server, lambda changes: PAPERS[name](changes, 0.1), "examples", runtime)


@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", OF_OPTAX)
def test_optaxs_own_act_on_the_weighted_mean_change_taken_as_a_gradient(name):
    made, steps = OF_OPTAX[name]
    check(made(0.1), lambda changes: steps([-change for change in changes], 0.1), "examples", sf.Simulation())


@pytest.mark.jax_defaults
def test_hyperparameters_can_be_read_and_set():
    server = optax.inject_hyperparams(optimizers.fed_yogi)(learning_rate=0.1)
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05), server, batching=sf.Batching(size=None, epochs=2))
    state = process.initialize()
    seen = process.get_hparams(state)["finalizer"]
    assert {k: pytest.approx(v) for k, v in seen.items()} == {"learning_rate": 0.1, "b1": 0.9, "b2": 0.99, "tau": 1e-3}
    still = process.set_hparams(state, {"finalizer": {"learning_rate": 0.0}})
    after, metrics = process.next(still, DATA)
    np.testing.assert_array_equal(process.get_model_weights(after), process.get_model_weights(state))
    assert metrics["finalizer"]["update_non_finite"] == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: optimizers.fed_avg_m(0.1, momentum=1.0), "fed_avg_m with momentum=1.0; needed: a number from 0"),
        (lambda: optimizers.fed_adam(0.1, b2=-0.1), "fed_adam with b2=-0.1"),
        (lambda: optimizers.fed_yogi(0.1, b1=float("nan")), "fed_yogi with b1=nan"),
        (lambda: optimizers.fed_adagrad(0.1, tau=0.0), "fed_adagrad with tau=0.0; needed: a finite number above 0"),
        (lambda: optimizers.fed_adam(float("nan")), "fed_adam with learning_rate=nan; needed: a finite number"),
        (lambda: optimizers.fed_adam(-1.0), "learning_rate=-1.0"),
        (lambda: optimizers.fed_adam(None), "learning_rate=None"),
    ],
    ids=["momentum", "b2", "b1", "tau", "nan rate", "negative rate", "no rate"],
)
def test_numbers_outside_their_range_are_refused(make, words):
    with pytest.raises(sf.CompositionError, match=words) as caught:
        make()
    assert caught.value.code == "SF-COMP-100"


# ------------------------------------------------------------------------------------- rates that are not finite


def nan_from(round_or_step):
    return jnp.where(round_or_step >= 1, jnp.nan, 0.1)


@pytest.mark.jax_defaults
@pytest.mark.parametrize("readable", [True, False], ids=["injected", "closed over"])
def test_a_server_schedule_that_returns_nan_is_not_applied(readable):
    made = optax.inject_hyperparams(optimizers.fed_adam) if readable else optimizers.fed_adam
    process = sf.learning.fed_avg(LINEAR, optax.sgd(0.05), made(nan_from), batching=sf.Batching(size=None))
    first, _ = process.next(process.initialize(), DATA)
    second, metrics = process.next(first, DATA)
    assert metrics["finalizer"]["update_non_finite"] == 1
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 0
    np.testing.assert_array_equal(process.get_model_weights(second), process.get_model_weights(first))
    optimizer = [jax.tree.leaves(state.algorithm.optimizer) for state in (first, second)]
    assert all(np.array_equal(a, b) for a, b in zip(*optimizer, strict=True))


@pytest.mark.jax_defaults
def test_a_client_schedule_that_returns_nan_and_cannot_be_read_counts_its_clients_as_non_finite():
    process = sf.learning.fed_avg(LINEAR, lambda r: optax.sgd(nan_from(r)), batching=sf.Batching(size=None))
    first, _ = process.next(process.initialize(), DATA)
    second, metrics = process.next(first, DATA)
    assert metrics["finalizer"]["update_non_finite"] == 1
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 3  # the empty one took no step
    np.testing.assert_array_equal(process.get_model_weights(second), process.get_model_weights(first))


@pytest.mark.jax_defaults
@pytest.mark.parametrize("runtime", [sf.Simulation(), sf.Loopback()], ids=["simulation", "loopback"])
def test_a_client_rate_that_is_nan_and_can_be_read_is_an_error_after_the_round(runtime, tmp_path):
    sgd = optax.inject_hyperparams(optax.sgd)
    process = sf.learning.fed_avg(LINEAR, lambda r: sgd(nan_from(r)), batching=sf.Batching(size=None)).on(runtime)
    first, _ = process.next(process.initialize(), DATA)
    before = [np.array(leaf) for leaf in jax.tree.leaves(first)]
    with pytest.raises(sf.CompositionError, match="the client learning rate of round 1 is nan") as caught:
        process.next(first, DATA)
    assert caught.value.code == "SF-COMP-101"
    assert all(np.array_equal(a, b) for a, b in zip(before, jax.tree.leaves(first), strict=True))
    with pytest.raises(sf.CompositionError, match="round 1"):
        sf.train(process, DATA, rounds=3, checkpoint=tmp_path, progress=False)
    whole = sf.train(process, DATA, rounds=1, checkpoint=tmp_path, progress=False)
    # `train` fuses rounds and `next` does not: two programs, which agree to rounding.
    weights = map(process.get_model_weights, (whole.state, first))
    np.testing.assert_allclose(*weights, rtol=0 if isinstance(runtime, sf.Loopback) else 1e-6)


@pytest.mark.jax_defaults
def test_a_rate_that_was_set_to_nan_is_an_error_after_the_round():
    process = sf.learning.fed_avg(LINEAR, optax.inject_hyperparams(optax.sgd)(0.1), batching=sf.Batching(size=None))
    state = process.set_hparams(process.initialize(), {"client_work": {"learning_rate": float("inf")}})
    with pytest.raises(sf.CompositionError, match="round 0 is inf; needed: a finite number"):
        process.next(state, DATA)


def test_metrics_without_a_rate_pass():
    checks.check_rate({"client_work": {"train": {}}}, 3)
    checks.check_rate({}, 3)
