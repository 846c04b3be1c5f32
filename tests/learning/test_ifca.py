"""IFCA against Ghosh et al. 2020, Algorithm 1 (option II), in NumPy: choices, server states, memory, and refusals."""

import functools
import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

RUNTIMES = [sf.Simulation(), sf.Loopback()]
RATE, BETA = 0.02, 0.5
STARTS = [np.array([0.5, -1.0, 0.25]), np.array([-0.5, 1.0, 0.0]), np.array([4.0, 4.0, 4.0])]
LINEAR = sf.models.from_functions(
    lambda key: jax.random.normal(key, (3,)), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2
)
ORDERED = sf.Batching(size=3, epochs=2, shuffle=False)
draw = np.random.default_rng(5)
TRUE = np.array([1.0, -2.0, 0.5])
KINDS = {"a": 1, "single": 1, "empty": 1, "d": -1, "e": -1, "f": 1}
ROWS = {}
for name, n in {"a": 5, "single": 1, "empty": 0, "d": 8, "e": 4, "f": 7}.items():
    features = draw.normal(size=(n, 3)).astype(np.float32)
    ROWS[name] = (features, (features @ (KINDS[name] * TRUE) + 0.1 * draw.normal(size=n)).astype(np.float32))
COHORTS = [list(ROWS), ["a", "empty", "f"], ["e", "single", "d"]]


def ghosh_2020(starts, cohorts=COHORTS, weighting="examples", beta=0.0):
    """Every model moves by the mean of those who chose it, with momentum of its own; the others rest."""
    models, momenta = [w.copy() for w in starts], [np.zeros(3) for _ in starts]
    for cohort in cohorts:
        changes = [[] for _ in models]
        chosen = {}
        for k in (k for k in cohort if len(ROWS[k][1])):
            x, y = (a.astype(np.float64) for a in ROWS[k])
            i = chosen[k] = int(np.argmin([((x @ w - y) ** 2).mean() for w in models]))
            v = models[i]
            for _ in range(2):
                for at in range(0, len(y), 3):
                    rows, labels = x[at : at + 3], y[at : at + 3]
                    v = v - RATE * 2 * rows.T @ (rows @ v - labels) / len(rows)
            changes[i].append((len(y) if weighting == "examples" else 1, models[i] - v))
        for i, own in enumerate(changes):
            if own:
                momenta[i] = beta * momenta[i] + sum(p * d for p, d in own) / sum(p for p, _ in own)
                models[i] = models[i] - momenta[i]
        yield [w.copy() for w in models], chosen


@functools.cache
def made(clusters=3, model=LINEAR, beta=0.0, weighting="examples", runtime=RUNTIMES[0]):
    """One process for every test that asks for the same, so that it is compiled once."""
    server = optax.sgd(1.0, momentum=beta)
    made = sf.learning.ifca(model, optax.sgd(RATE), server, clusters=clusters, weighting=weighting, batching=ORDERED)
    return made.on(runtime)


def begun(process, starts=STARTS, seed=0):
    return process.set_model_weights(process.initialize(seed), [jnp.asarray(w, jnp.float32) for w in starts])


@pytest.mark.parametrize(
    ("weighting", "beta", "runtime"),
    [("examples", BETA, RUNTIMES[0]), ("uniform", 0.0, RUNTIMES[0]), ("examples", BETA, RUNTIMES[1])],
    ids=lambda v: str(v) if isinstance(v, (float, str)) else type(v).__name__,
)
def test_three_rounds_of_the_paper(weighting, beta, runtime):
    process = made(beta=beta, weighting=weighting, runtime=runtime)
    state, remembered = begun(process), {}
    for cohort, (models, chosen) in zip(COHORTS, ghosh_2020(STARTS, COHORTS, weighting, beta), strict=True):
        state, metrics = process.next(state, ROWS, clients=cohort)
        np.testing.assert_allclose(process.get_model_weights(state), models, rtol=1e-5, atol=1e-5)
        counts = np.bincount(list(chosen.values()), minlength=3).tolist()
        assert metrics["client_work"]["clusters"] == counts
        assert metrics["client_work"]["train"]["num_examples"] == 2 * sum(len(ROWS[k][1]) for k in cohort)
        assert metrics["finalizer"] == {"update_non_finite": 0}
        remembered |= chosen
        for k, i in remembered.items():
            np.testing.assert_array_equal(
                process.get_client_weights(state, k), process.get_model_weights(state)[i], err_msg=k
            )
    assert set(remembered.values()) == {0, 1}  # the third model was chosen by nobody,
    np.testing.assert_array_equal(process.get_model_weights(state)[2], STARTS[2])  # and rests
    for never in ("empty", "unknown"):
        assert len(process.get_client_weights(state, never)) == 3


def test_it_agrees_with_the_contracts_own_form():
    path = Path(__file__).parents[1] / "contract" / "rounds.py"
    spec = importlib.util.spec_from_file_location("contract_rounds", path)
    rounds = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rounds)
    theirs = sf.Process(rounds.ifca())
    ours = sf.learning.ifca(LINEAR, optax.sgd(rounds.RATE), clusters=2, batching=sf.Batching(size=4))
    state, expected = begun(ours, [np.zeros(3), np.ones(3)]), theirs.initialize()
    for _ in range(3):
        state, metrics = ours.next(state, ROWS)
        expected, reference = theirs.next(expected, ROWS)
        np.testing.assert_allclose(ours.get_model_weights(state), expected.algorithm["w"], rtol=1e-5, atol=1e-6)
        counts = reference["client_work"]["clients"]  # theirs counts the client without rows, too
        assert np.abs(np.subtract(metrics["client_work"]["clusters"], counts)).sum() == 1


@pytest.mark.parametrize("start", ["random", "equal"])
def test_clients_find_out_where_they_belong(start):
    """Also from equal models, among which the first round's choice is a draw."""
    init = LINEAR.init if start == "random" else lambda key: jnp.zeros(3)
    model = sf.models.from_functions(init, lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2)
    many = {}
    for i in range(10):
        x = draw.normal(size=(20, 3)).astype(np.float32)
        many[f"{i}"] = (x, (x @ ((-1) ** i * TRUE)).astype(np.float32))
    process = made(2, model)
    state = process.initialize(seed=3)
    first, second = process.get_model_weights(state)
    assert (np.abs(first - second).max() > 0.1) == (start == "random")
    for _ in range(25):
        state, metrics = process.next(state, many)
    assert metrics["client_work"]["clusters"] == [5, 5]
    assert metrics["client_work"]["train"]["loss"] < 1e-2
    found = sorted(process.get_model_weights(state), key=lambda w: w[0])
    np.testing.assert_allclose(found, [-TRUE, TRUE], atol=0.05)
    for k in many:
        np.testing.assert_allclose(process.get_client_weights(state, k), (-1) ** int(k) * TRUE, atol=0.05)


def test_equal_models_are_chosen_alike_on_both_runtimes():
    model = sf.models.from_functions(lambda key: jnp.zeros(3), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
    process = sf.learning.ifca(model, optax.sgd(RATE), optax.adam(0.1), clusters=2, batching=ORDERED)
    sf.testing.assert_runtimes_agree(process, ROWS, *RUNTIMES, rounds=2)


def test_one_cluster_is_federated_averaging():
    process, plain = made(1), sf.learning.fed_avg(LINEAR, optax.sgd(RATE), batching=ORDERED)
    state, expected = begun(process, STARTS[:1]), plain.set_model_weights(plain.initialize(), jnp.float32(STARTS[0]))
    for _ in range(2):
        (state, ours), (expected, theirs) = process.next(state, ROWS), plain.next(expected, ROWS)
        np.testing.assert_allclose(
            process.get_model_weights(state)[0], plain.get_model_weights(expected), rtol=1e-6, atol=1e-6
        )
        assert ours["client_work"]["train"] == pytest.approx(theirs["client_work"]["train"], rel=1e-5)


@pytest.mark.parametrize("runtime", RUNTIMES, ids=lambda r: type(r).__name__)
def test_clients_that_are_not_finite_and_nobody(runtime):
    process = made(beta=BETA, runtime=runtime)
    bad = {**ROWS, "nan": (np.full((2, 3), np.nan, np.float32), np.zeros(2, np.float32))}
    (state, metrics), (without, _) = (process.next(begun(process), data) for data in (bad, ROWS))
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert sum(metrics["client_work"]["clusters"]) == 5
    assert "nan" not in state.clients
    np.testing.assert_allclose(process.get_model_weights(state), process.get_model_weights(without), rtol=1e-6)
    for cohort in (["nan"], [], ["empty"]):
        after, metrics = process.next(state, bad, clients=cohort)
        assert metrics["finalizer"] == {"update_non_finite": 1}
        assert metrics["client_work"]["clusters"] == [0, 0, 0]
        for a, b in zip(jax.tree.leaves(after.algorithm[:2]), jax.tree.leaves(state.algorithm[:2]), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_model_that_has_diverged_is_chosen_by_nobody():
    process = made(beta=BETA)
    state = begun(process, [np.full(3, np.nan), *STARTS[1:]])
    state, metrics = process.next(state, ROWS)
    assert metrics["client_work"]["clusters"][0] == 0
    assert metrics["finalizer"] == {"update_non_finite": 0}
    assert np.isfinite(process.get_model_weights(state)[1:]).all()


def test_initial_models_follow_the_seed():
    process = made()
    first, again, other = (np.stack(process.get_model_weights(process.initialize(seed))) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert min(np.abs(first[i] - first[j]).max() for i in range(3) for j in range(i)) > 0.1


def test_hyperparameters_are_those_of_all_clusters():
    sgd = optax.inject_hyperparams(optax.sgd)
    process = sf.learning.ifca(LINEAR, sgd(0.5), sgd(0.5), clusters=2, batching=ORDERED)
    state = begun(process, STARTS[:2])
    assert process.get_hparams(state) == {"client_work": {"learning_rate": 0.5}, "finalizer": {"learning_rate": 0.5}}
    given = {"client_work": {"learning_rate": RATE}, "finalizer": {"learning_rate": 1.0}}
    state, metrics = process.next(process.set_hparams(state, given), ROWS)
    models, _ = next(ghosh_2020(STARTS[:2]))
    np.testing.assert_allclose(process.get_model_weights(state), models, rtol=1e-5, atol=1e-5)
    assert metrics["client_work"]["client_learning_rate"] == pytest.approx(RATE)


def test_a_state_survives_a_file(tmp_path):
    process = made(beta=BETA)
    state, _ = process.next(begun(process), ROWS)
    sf.save(tmp_path / "state", state)
    loaded = sf.load(tmp_path / "state")
    np.testing.assert_array_equal(process.get_client_weights(loaded, "d"), process.get_client_weights(state, "d"))
    (after, _), (expected, _) = process.next(loaded, ROWS), process.next(state, ROWS)
    np.testing.assert_array_equal(process.get_model_weights(after), process.get_model_weights(expected))


def test_only_sums_leave_and_the_choice_stays():
    process = made()
    kinds = {
        part: (stage.group or sf.core.add).kind for p in process.round.phases for part, stage in p.aggregate.items()
    }
    assert kinds == {f"update {i}": "add" for i in range(3)}
    first, second = process.explain(ROWS).split("Exchange 2")
    assert "Leaves each client: 0 B" in first
    assert "int32[]" in first.split("Stays with the client")[1]
    assert "int32[]" in second.split("Stays with the client")[1]


# ---------------------------------------------------------------------------------------- the loop, and refusals


def test_the_loop_evaluates_by_a_function():
    process, (x, y) = made(2), ROWS["d"]

    def evaluate(models):
        return {f"loss {i}": LINEAR.evaluate(w, x, y)["loss"] for i, w in enumerate(models)}

    history = sf.train(process, ROWS, rounds=2, evaluate=evaluate, progress=False)
    assert set(history.evaluations[-1]) == {"round", "loss 0", "loss 1"}
    for data in ((x, y), sf.Federation.from_clients(ROWS)):
        with pytest.raises(sf.CompositionError, match=r"2 models of ifca asked .* as one.*evaluate=fn.*SF-COMP-095"):
            sf.train(process, ROWS, rounds=2, evaluate=data, progress=False)


@pytest.mark.parametrize(
    ("weights", "words"),
    [(STARTS[:2], "a list of 2"), (STARTS[0], "a ndarray"), ({"w": STARTS[0]}, "a dict")],
    ids=["two", "array", "dict"],
)
def test_other_weights_than_one_of_each(weights, words):
    process = made()
    with pytest.raises(sf.CompositionError, match=rf"weights as {words}.*a list of 3.*SF-COMP-092"):
        process.set_model_weights(process.initialize(), weights)
    with pytest.raises(sf.StateError, match="SF-STATE-003"):
        process.set_model_weights(process.initialize(), [np.zeros(4, np.float32)] * 3)


@pytest.mark.parametrize("clusters", [0, -2, 1.5, True, None, "2"])
def test_a_number_of_clusters_that_is_none(clusters):
    with pytest.raises(sf.CompositionError, match=rf"ifca with clusters={clusters!r}.*whole number.*SF-COMP-091"):
        sf.learning.ifca(LINEAR, optax.sgd(0.1), clusters=clusters)


def test_states_of_other_numbers_of_clusters_and_other_arguments():
    with pytest.raises(sf.StateError, match="SF-STATE-002"):
        made(3).next(made(2).initialize(), ROWS)
    with pytest.raises(sf.CompositionError, match="client_optimizer is None"):
        sf.learning.ifca(LINEAR, None, clusters=2)
    with pytest.raises(sf.CompositionError, match="weighting='foo'"):
        made(weighting="foo")
