"""Personalised algorithms against NumPy forms of their papers: FedPer, FedRep, FedBN and Ditto, and their memory."""

import itertools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf

learning = sf.learning
RUNTIMES = [sf.Simulation(), sf.Loopback()]
BY_NAME = {"argnames": "runtime", "argvalues": RUNTIMES, "ids": lambda runtime: type(runtime).__name__}

W, B = np.array([0.5, -1.0, 0.25]), 0.125
RATE, MU = 0.05, 0.7
LINEAR = sf.models.from_functions(
    lambda key: {"w": jnp.array(W, jnp.float32), "b": jnp.float32(B)},
    lambda p, x: x @ p["w"] + p["b"],
    lambda outputs, y: (outputs - y) ** 2,
    {"error": lambda outputs, y: jnp.abs(outputs - y)},
)


def ragged(sizes, seed=5):
    draw = np.random.default_rng(seed)
    made = {k: (draw.normal(size=(n, 3)), draw.normal(size=n) + 3 * i) for i, (k, n) in enumerate(sizes.items())}
    return {k: (x.astype(np.float32), y.astype(np.float32)) for k, (x, y) in made.items()}


ROWS = ragged({"a": 5, "single": 1, "empty": 0, "d": 8, "e": 4})
ORDERED = sf.Batching(size=3, epochs=2, shuffle=False)
EVERYBODY = [list(ROWS)] * 3
COHORTS = [["a", "single"], ["d", "empty"], list(ROWS), ["single", "e", "a"], ["d", "e"]]


def batches(entry, drop=False):
    """Batches of three in order, twice; the short ones left out if `drop`."""
    x, y = (a.astype(np.float64) for a in entry)
    once = [(x[i : i + 3], y[i : i + 3]) for i in range(0, len(y), 3)]
    return 2 * [batch for batch in once if not drop or len(batch[1]) == 3]


def slope(w, b, x, y):
    """∇ of the mean of (x·w + b − y)² in w and in b."""
    error = 2 * (x @ w + b - y) / len(y)
    return x.T @ error, error.sum()


def average(values, rows):
    return sum(len(rows[k][1]) * values[k] for k in values) / sum(len(rows[k][1]) for k in values)


# ---------------------------------------------------------------------------------------- the papers, in NumPy


def arivazhagan_2019_fed_per(cohorts):
    """Algorithm 1: base layers w are averaged, each client's b stays."""
    w, own = W, {}
    for cohort in cohorts:
        ends = {}
        for k in cohort:
            v, b = w, own.get(k, B)
            for batch in batches(ROWS[k]):
                g, h = slope(v, b, *batch)
                v, b = v - RATE * g, b - RATE * h
                ends[k] = v
            own[k] = b
        w = average(ends, ROWS)
        yield w, own


def collins_2021_fed_rep(cohorts, head_steps=2):
    """Algorithm 1: τ steps of the head with the representation fixed, then the representation with the head fixed."""
    w, own = W, {}
    for cohort in cohorts:
        ends = {}
        for k in cohort:
            v, b = w, own.get(k, B)
            for step, batch in enumerate(batches(ROWS[k])):
                g, h = slope(v, b, *batch)
                v, b = (v, b - RATE * h) if step < head_steps else (v - RATE * g, b)
                ends[k] = v
            own[k] = b
        w = average(ends, ROWS)
        yield w, own


def li_2021_ditto(cohorts, mu=MU):
    """Algorithm 1: w by federated averaging; v ← v − η (∇F(v) + λ (v − w)), w as received."""
    w, b, own = W, B, {}
    for cohort in cohorts:
        ends, received = {}, np.append(w, b)
        for k in cohort:
            u, v = received, own.get(k, received)
            for batch in batches(ROWS[k]):
                u = u - RATE * np.append(*slope(u[:3], u[3], *batch))
                v = v - RATE * (np.append(*slope(v[:3], v[3], *batch)) + mu * (v - received))
                ends[k] = u
            own[k] = v
        together = average(ends, ROWS)
        w, b = together[:3], together[3]
        yield w, b, own


def close(ours, papers):
    np.testing.assert_allclose(np.asarray(ours, np.float64), papers, rtol=1e-5, atol=1e-5)


LAYERS = {"fed_per": (arivazhagan_2019_fed_per, 0), "fed_rep": (collins_2021_fed_rep, 2)}


@pytest.mark.parametrize(**BY_NAME)
@pytest.mark.parametrize("paper", LAYERS)
def test_rounds_of_local_layers(paper, runtime):
    """Also after a round without it, a client goes on from its own weights; the server's value never moves."""
    form, head_steps = LAYERS[paper]
    process = learning.local_layers(LINEAR, optax.sgd(RATE), local="b", head_steps=head_steps, batching=ORDERED)
    process, state = process.on(runtime), process.initialize()
    for cohort, (w, own) in zip(COHORTS, form(COHORTS), strict=True):
        state, metrics = process.next(state, ROWS, clients=cohort)
        assert metrics["finalizer"]["update_non_finite"] == 0
        close(process.get_model_weights(state)["w"], w)
        assert float(process.get_model_weights(state)["b"]) == B
        for k in ROWS:
            close(process.get_client_weights(state, k)["w"], w)
            close(process.get_client_weights(state, k)["b"], own.get(k, B))
    assert len({round(float(b), 3) for b in own.values()}) >= 4


@pytest.mark.parametrize(**BY_NAME)
def test_rounds_of_ditto(runtime):
    process = learning.ditto(LINEAR, optax.sgd(RATE), mu=MU, batching=ORDERED).on(runtime)
    state = process.initialize()
    for cohort, (w, b, own) in zip(COHORTS, li_2021_ditto(COHORTS), strict=True):
        state, metrics = process.next(state, ROWS, clients=cohort)
        close(process.get_model_weights(state)["w"], w)
        close(process.get_model_weights(state)["b"], b)
        for k in ROWS:
            v = own.get(k, np.append(w, b))
            close(process.get_client_weights(state, k)["w"], v[:3])
            close(process.get_client_weights(state, k)["b"], v[3])
        assert metrics["client_work"]["personal"].keys() == metrics["client_work"]["train"].keys()


def test_the_papers_differ_from_each_other():
    """What the tests above compare with is no single recursion under several names."""
    ends = [
        list(arivazhagan_2019_fed_per(EVERYBODY))[-1][0],
        list(collins_2021_fed_rep(EVERYBODY))[-1][0],
        list(li_2021_ditto(EVERYBODY))[-1][0],
        list(li_2021_ditto(EVERYBODY))[-1][2]["d"][:3],
        list(li_2021_ditto(EVERYBODY, mu=0))[-1][2]["d"][:3],
    ]
    assert min(np.abs(a - b).max() for a, b in itertools.combinations(ends, 2)) > 1e-3


def test_ditto_reports_the_loss_of_the_own_models():
    """The first batch is the same for both models; the own one then stays where its client's rows are."""
    process = learning.ditto(LINEAR, optax.sgd(RATE), mu=0.0, batching=ORDERED)
    state, first = process.next(process.initialize(), ROWS)
    assert first["client_work"]["personal"] == first["client_work"]["train"]
    for _ in range(9):
        state, metrics = process.next(state, ROWS)
    assert metrics["client_work"]["personal"]["loss"] < 0.5 * metrics["client_work"]["train"]["loss"]
    assert metrics["client_work"]["personal"]["error"] < metrics["client_work"]["train"]["error"]
    assert metrics["client_work"]["personal"]["num_examples"] == 2 * (5 + 1 + 8 + 4)


def test_ditto_without_mu_is_local_training_and_with_a_large_one_the_global_model():
    alone = learning.fed_avg(LINEAR, optax.sgd(RATE), batching=ORDERED)
    own = learning.ditto(LINEAR, optax.sgd(RATE), mu=0, batching=ORDERED)
    still = learning.ditto(LINEAR, optax.sgd(RATE), mu=1e4, personal_optimizer=optax.sgd(1e-4), batching=ORDERED)
    by_itself, state, pulled = alone.initialize(), own.initialize(), still.initialize()
    for _ in range(3):
        before = still.get_model_weights(pulled)["w"]
        by_itself, _ = alone.next(by_itself, {"d": ROWS["d"]})
        state, _ = own.next(state, ROWS)
        pulled, _ = still.next(pulled, ROWS)
    close(own.get_client_weights(state, "d")["w"], alone.get_model_weights(by_itself)["w"])
    np.testing.assert_allclose(still.get_client_weights(pulled, "d")["w"], before, atol=5e-3)


def test_mu_of_ditto_can_be_read_and_set():
    process, none = (learning.ditto(LINEAR, optax.sgd(RATE), mu=mu, batching=ORDERED) for mu in (5.0, 0.0))
    state = process.set_hparams(process.initialize(), {"client_work": {"mu": 0.0}})
    state, _ = process.next(state, ROWS)
    expected, _ = none.next(none.initialize(), ROWS)
    close(process.get_client_weights(state, "a")["w"], none.get_client_weights(expected, "a")["w"])
    with pytest.raises(sf.CompositionError, match=r"ditto with mu=-1.*at least 0.*SF-COMP-062"):
        learning.ditto(LINEAR, optax.sgd(RATE), mu=-1)
    with pytest.raises(sf.CompositionError, match=r"personal_optimizer is a float.*SF-COMP-020"):
        learning.ditto(LINEAR, optax.sgd(RATE), mu=1, personal_optimizer=0.1)


# ---------------------------------------------------------------------------------------- FedBN


class Normalised(nn.Module):
    """Batch normalisation, then a linear layer: γ, β and the moving statistics stay, w is shared."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3)(x)
        return nn.Dense(1, use_bias=False, kernel_init=lambda *_: jnp.array(W[:, None], jnp.float32))(x)[:, 0]


def li_2021_fed_bn(rows, rounds):
    """Algorithm 1 for (γ x̂ + β)·w with x̂ normalised by its own batch; every client keeps γ, β, and both averages."""
    w, own = W, {k: (np.ones(3), np.zeros(3), np.zeros(3), np.ones(3)) for k in rows}
    for _ in range(rounds):
        ends = {}
        for k in rows:
            v, (gamma, beta, mean, variance) = w, own[k]
            for x, y in batches(rows[k], drop=True):
                normal = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-3)
                mean, variance = 0.9 * mean + 0.1 * x.mean(0), 0.9 * variance + 0.1 * x.var(0)
                hidden = gamma * normal + beta
                error = 2 * (hidden @ v - y) / len(y)
                to_hidden = np.outer(error, v)
                v, gamma, beta = (
                    v - RATE * hidden.T @ error,
                    gamma - RATE * (normal * to_hidden).sum(0),
                    beta - RATE * to_hidden.sum(0),
                )
            own[k], ends[k] = (gamma, beta, mean, variance), v
        w = average(ends, rows)
        yield w, own


@pytest.mark.parametrize(**BY_NAME)
def test_three_rounds_of_fed_bn(runtime):
    rows = {k: ROWS[k] for k in ("a", "d", "e")}
    model = sf.models.from_flax(Normalised(), rows["a"][0], lambda outputs, y: (outputs - y) ** 2)
    process = learning.fed_bn(model, optax.sgd(RATE), batching=ORDERED._replace(drop_remainder=True)).on(runtime)
    state = process.initialize()
    for w, own in li_2021_fed_bn(rows, 3):
        state, _ = process.next(state, rows)
        close(process.get_model_weights(state)["params"]["Dense_0"]["kernel"][:, 0], w)
        for k in rows:
            weights = process.get_client_weights(state, k)
            layer, averages = weights["params"]["BatchNorm_0"], weights["batch_stats"]["BatchNorm_0"]
            for ours, papers in zip(
                (layer["scale"], layer["bias"], averages["mean"], averages["var"]), own[k], strict=True
            ):
                close(ours, papers)
    assert set(state.algorithm.model.statistics) == {"batch_stats"}
    close(process.get_model_weights(state)["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(3))


# ---------------------------------------------------------------------------------------- what leaves, what stays


def leaving(process, data=ROWS):
    """The part of `explain` on what leaves a client."""
    text = process.explain(data).partition("Leaves each client")[2]
    return text.partition("Stays with")[0]


def test_local_leaves_are_in_no_upload():
    process = learning.local_layers(LINEAR, optax.sgd(RATE), local="b", batching=ORDERED)
    plain = learning.fed_avg(LINEAR, optax.sgd(RATE), batching=ORDERED)
    assert re.search(r"/b\s", leaving(plain))
    assert re.search(r"/w\s", leaving(process))
    assert not re.search(r"/b\s", leaving(process))


def test_the_memory_of_a_client_is_its_local_leaves():
    state = {}
    for name, process in {
        "local_layers": learning.local_layers(LINEAR, optax.sgd(RATE), local="b", batching=ORDERED),
        "ditto": learning.ditto(LINEAR, optax.sgd(RATE), mu=MU, batching=ORDERED),
    }.items():
        state[name], _ = process.next(process.initialize(), ROWS, clients=["a"])
    assert [s.path for s in sf.tree.specs(state["local_layers"].clients["a"])] == ["0/work/trainable/b"]
    assert [s.path for s in sf.tree.specs(state["ditto"].clients["a"])] == ["0/work/trainable/b", "0/work/trainable/w"]


def test_a_server_that_decays_weights_leaves_local_ones_alone():
    decaying = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0, momentum=0.9))
    process = learning.local_layers(LINEAR, optax.sgd(RATE), decaying, local="b", batching=ORDERED)
    state = process.initialize()
    for _ in range(2):
        state, _ = process.next(state, ROWS)
    assert float(process.get_model_weights(state)["b"]) == B
    assert float(process.get_client_weights(state, "never seen")["b"]) == B


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.sgd(0.1, momentum=0.9)], ids=["adam", "momentum"])
def test_what_fed_rep_freezes_does_not_move_whatever_the_optimizer(optimizer):
    decayed = optax.chain(optax.add_decayed_weights(0.1), optimizer)
    process = learning.local_layers(LINEAR, decayed, local="b", head_steps=4, batching=ORDERED)
    state, _ = process.next(process.initialize(), ROWS, clients=["a"])  # four steps: all are the head's
    close(process.get_model_weights(state)["w"], W)
    assert abs(float(process.get_client_weights(state, "a")["b"]) - B) > 0.1
    after, _ = process.next(process.initialize(), ROWS, clients=["d"])  # six steps: two are the body's
    two = learning.local_layers(LINEAR, decayed, local="b", head_steps=4, batching=ORDERED._replace(max_steps=4))
    head, _ = two.next(two.initialize(), ROWS, clients=["d"])
    close(process.get_client_weights(after, "d")["b"], two.get_client_weights(head, "d")["b"])
    assert np.abs(process.get_model_weights(after)["w"] - W).max() > 0.01


def test_algorithms_without_personal_weights_give_the_servers():
    for make in (learning.fed_avg, learning.scaffold):
        process = make(LINEAR, optax.sgd(RATE), batching=ORDERED)
        state, _ = process.next(process.initialize(), ROWS)
        assert jax.tree.all(
            jax.tree.map(np.array_equal, process.get_client_weights(state, "a"), process.get_model_weights(state))
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: learning.local_layers(LINEAR, optax.sgd(RATE), local="b", batching=sf.Batching(size=3)),
        lambda: learning.ditto(LINEAR, optax.sgd(RATE), mu=MU, batching=sf.Batching(size=3)),
    ],
    ids=["local_layers", "ditto"],
)
def test_an_interrupted_run_ends_in_the_same_bytes(make, tmp_path):
    process = make()

    def run(folder, **options):
        path = tmp_path / folder
        history = sf.train(process, ROWS, rounds=6, clients_per_round=2, checkpoint=path, progress=False, **options)
        return history, {file.name: file.read_bytes() for file in path.iterdir() if file.name != ".lock"}

    def fail(event):
        if event.kind == "round_end" and event.round == 2:
            raise RuntimeError("the power went out")

    whole, expected = run("whole")
    with pytest.raises(RuntimeError, match="the power went out"):
        run("pieces", callbacks=[fail])
    resumed, found = run("pieces")
    assert found == expected
    for k in ROWS:
        ours, theirs = (process.get_client_weights(h.state, k) for h in (resumed, whole))
        assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs)), k
    assert len(resumed.state.clients) > 2
    sf.save(tmp_path / "state", whole.state)
    loaded = sf.load(tmp_path / "state")
    assert jax.tree.all(
        jax.tree.map(
            np.array_equal, process.get_client_weights(loaded, "a"), process.get_client_weights(whole.state, "a")
        )
    )


def test_a_state_of_other_local_leaves_is_refused():
    one, other = (learning.local_layers(LINEAR, optax.sgd(RATE), local=name, batching=ORDERED) for name in "wb")
    state, _ = one.next(one.initialize(), ROWS)
    with pytest.raises(sf.StateError, match=r"SF-STATE-002"):
        other.next(state, ROWS)


@pytest.mark.parametrize("name", ["local_layers", "ditto"])
def test_a_client_that_is_not_finite_keeps_its_memory(name):
    make = {
        "local_layers": lambda: learning.local_layers(LINEAR, optax.sgd(RATE), local="b", batching=ORDERED),
        "ditto": lambda: learning.ditto(LINEAR, optax.sgd(RATE), mu=MU, batching=ORDERED),
    }[name]
    process = make()
    state, _ = process.next(process.initialize(), ROWS, clients=["a", "d"])
    broken = {**ROWS, "a": (ROWS["a"][0] * np.nan, ROWS["a"][1])}
    after, metrics = process.next(state, broken, clients=["a", "d"])
    assert metrics["client_work"]["train"]["num_non_finite_clients"] == 1
    assert np.array_equal(after.clients["a"][0].work.trainable["b"], state.clients["a"][0].work.trainable["b"])
    assert not np.array_equal(after.clients["d"][0].work.trainable["b"], state.clients["d"][0].work.trainable["b"])
