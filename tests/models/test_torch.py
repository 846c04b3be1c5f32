"""PyTorch models: the same numbers as in JAX, the user's own loops, runs, and what is refused."""

import functools
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.driver import begin
from sumfold.keys import HostKey
from sumfold.models.torch_training import Loader

pytest.importorskip("torch")

spec = importlib.util.spec_from_file_location("small_torch", Path(__file__).with_name("small_torch.py"))
small = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # workers are given what is found there
spec.loader.exec_module(small)
SIMULATION = small.SIMULATION
both = small.both
SIZES = small.SIZES
EACH = small.EACH
rows = small.rows
sgd = small.sgd
linear = small.linear
model = small.model
averaging = small.averaging
run = small.run
nn = small.nn
torch = small.torch


# -- the same numbers as in JAX


def in_jax():
    return sf.models.from_functions(
        lambda key: {"w": jnp.zeros((4, 3)), "b": jnp.zeros(3)},
        lambda p, x: x @ p["w"] + p["b"],
        optax.softmax_cross_entropy_with_integer_labels,
        {"accuracy": sf.metrics.accuracy},
    )


FAMILY = {
    "fed_avg": sf.learning.fed_avg,
    "fed_prox": functools.partial(sf.learning.fed_prox, mu=0.5),
    "fed_nova": sf.learning.fed_nova,
}


@pytest.mark.parametrize("weights", [False, True], ids=["plain", "example weights"])
@pytest.mark.parametrize("name", FAMILY)
def test_the_same_logistic_regression_in_pytorch_and_in_jax(name, weights):
    """Five rounds, ragged clients, short batches, a server Adam: the parameters and what was measured."""
    options = {"server_optimizer": optax.adam(0.05), "batching": sf.Batching(size=4, epochs=2)}
    ours = FAMILY[name](in_jax(), optax.sgd(0.1), **options)
    theirs = FAMILY[name](model(metrics={"accuracy": sf.metrics.accuracy}), **options).on(SIMULATION)
    draw = np.random.default_rng(1)
    w, b = draw.normal(size=(4, 3)).astype("f"), draw.normal(size=3).astype("f")
    state = ours.set_model_weights(ours.initialize(), {"w": w, "b": b})
    other = theirs.set_model_weights(theirs.initialize(), {"weight": w.T, "bias": b})
    for _ in range(5):
        state, expected = ours.next(state, rows(weights=weights))
        other, metrics = theirs.next(other, rows(weights=weights))
        for name, value in expected["client_work"]["train"].items():
            assert metrics["client_work"]["train"][name] == pytest.approx(value, rel=1e-5), name
    mine, its = ours.get_model_weights(state), theirs.get_model_weights(other)
    np.testing.assert_allclose(its["weight"].T, mine["w"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(its["bias"], mine["b"], rtol=1e-5, atol=1e-5)
    assert np.abs(its["weight"].T - w).max() > 0.05


# -- losses, metrics, optimizers, devices


@both
def test_metrics_of_both_kinds_and_losses_of_one_number(runtime):
    """Two classes, one column of logits; measured over all rows before a step of rate 0, and by `evaluate`."""
    data = rows(classes=2)
    x, y = (np.concatenate([entry[i] for entry in data.values()]) for i in (0, 1))
    metrics = {
        "accuracy": lambda outputs, y: ((outputs > 0) == (y > 0.5)).float(),
        "auc": sf.metrics.auc,
        "mae": sf.metrics.mean_absolute_error,
    }

    class Logit(nn.Linear):
        def forward(self, x):
            return super().forward(x)[:, 0]

    def build():
        return Logit(4, 1)

    each = lambda outputs, y: nn.functional.binary_cross_entropy_with_logits(outputs, y.float(), reduction="none")
    mean = lambda outputs, y: each(outputs, y).mean()
    still = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    whole, told = sf.Batching(size=None), []
    for loss in (each, mean):
        process = sf.learning.fed_avg(model(build, loss, still, metrics), batching=whole)
        weights, train, _ = run(process, data, runtime)
        told.append(train)
        evaluated = process.model.evaluate(weights, x, y)
        for name in ("loss", *metrics):
            assert train[name] == pytest.approx(evaluated[name], rel=1e-5), name
    assert told[0] == pytest.approx(told[1], rel=1e-6)
    outputs = x @ weights["weight"][0] + weights["bias"]
    assert evaluated["accuracy"] == pytest.approx(((outputs > 0) == y).mean())
    assert evaluated["mae"] == pytest.approx(np.abs(outputs - y).mean(), rel=1e-5)
    assert evaluated["loss"] == pytest.approx(np.mean(np.log1p(np.exp(outputs)) - outputs * y), rel=1e-5)
    assert evaluated["num_examples"] == 26


@both
def test_evaluation_weighs_examples(runtime):
    data = rows(weights=True)
    process = sf.learning.fed_eval(model(metrics={"hit": lambda o, y: (o.argmax(1) == y).double()})).on(runtime)
    state, metrics = process.next(process.initialize(), data)
    weights = process.get_model_weights(state)
    x, y, w = (np.concatenate([entry[i] for entry in data.values()]) for i in range(3))
    outputs = x @ weights["weight"].T + weights["bias"]
    hit = outputs.argmax(1) == y
    told = metrics["client_work"]["eval"]
    assert told["hit"] == pytest.approx((w * hit).sum() / w.sum(), rel=1e-5)
    assert told["hit"] == pytest.approx(process.model.evaluate(weights, x, y, w)["hit"], rel=1e-6)
    assert told["loss"] == pytest.approx(process.model.evaluate(weights, x, y, w)["loss"], rel=1e-5)


@both
def test_evaluation_of_each_client(runtime):
    process = sf.learning.fed_eval(model(), per_client=True).on(runtime)
    state, metrics = process.next(process.initialize(), rows())
    weights = process.get_model_weights(state)
    clients = metrics["client_work"]["eval"]["clients"]
    assert set(clients) == set(SIZES)
    for name in ("a", "b", "d"):
        alone = process.model.evaluate(weights, *rows()[name])
        assert clients[name]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert clients[name]["num_examples"] == SIZES[name]


@both
def test_an_optimizer_by_round(runtime):
    def schedule(parameters, round):
        return torch.optim.SGD(parameters, lr=0.1 if round == 1 else 0.0)

    process = averaging(model(optimizer=schedule))
    start = process.get_model_weights(process.initialize())
    after = [run(process, rows(), runtime, rounds=n)[0]["weight"] for n in (1, 2, 3)]
    np.testing.assert_allclose(after[0], start["weight"], atol=1e-7)
    assert np.abs(after[1] - after[0]).max() > 1e-3
    np.testing.assert_allclose(after[2], after[1], atol=1e-7)


def test_a_partial_is_an_optimizer_and_momentum_begins_anew_each_round():
    momentum = functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    process = averaging(model(optimizer=momentum), size=None, epochs=1)
    plain = averaging(model(), size=None, epochs=1)
    ours, theirs = (run(p, rows(), sf.Loopback(), rounds=2)[0] for p in (process, plain))
    np.testing.assert_allclose(ours["weight"], theirs["weight"], rtol=1e-6)


@both
def test_short_batches_can_be_dropped(runtime):
    process = sf.learning.fed_avg(model(), batching=sf.Batching(size=4, drop_remainder=True))
    weights, train, _ = run(process, rows(), runtime)
    assert (train["num_batches"], train["num_examples"], train["num_clients"]) == (2 + 0 + 3, 20, 4)
    without = {k: v for k, v in rows().items() if k != "b"}
    rest, _, _ = run(process, without, runtime)
    np.testing.assert_array_equal(weights["weight"], rest["weight"])  # three rows take no step and weigh nothing


def test_the_device_is_where_everything_goes():
    seen = []

    class Told(nn.Linear):
        def to(self, device):
            seen.append(device)
            return super().to(device)

    process = averaging(model(lambda: Told(4, 3), device="cpu:0"))
    run(process, rows(), sf.Loopback())
    assert set(seen) == {"cpu:0"}
    process.model.evaluate(process.get_model_weights(process.initialize()), *rows()["a"])


# -- the user's own loop


def five_lines(module, loader):
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for x, y in loader:
        optimizer.zero_grad()
        EACH(module(x), y).mean().backward()
        optimizer.step()
    return len(loader) * 4


@both
def test_a_loop_of_the_users_is_the_same_as_the_adapters(runtime):
    def two_epochs(module, loader):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        rows = 0
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                EACH(module(x), y).mean().backward()
                optimizer.step()
                rows += len(x)
        return rows // 2

    ours = averaging(model())
    once = ours.batching._replace(epochs=1)
    theirs = sf.learning.fed_avg(model(loss=EACH, optimizer=None, fit=two_epochs), batching=once)
    expected, train, _ = run(ours, rows(), runtime, rounds=2)
    got, measured, _ = run(theirs, rows(), runtime, rounds=2)
    np.testing.assert_allclose(got["weight"], expected["weight"], rtol=1e-6, atol=1e-7)
    assert measured["num_batches"] == train["num_batches"]
    assert measured["num_examples"] == 26
    assert measured["loss"] < train["loss"]  # measured after training, not meanwhile


@both
def test_what_a_loop_returns_is_the_clients_weight_and_it_may_take_the_round(runtime):
    def fit(module, loader, round):
        with torch.no_grad():
            for x, _ in loader:
                module.weight.fill_(float(len(x)))
                module.bias.fill_(float(round))
        return 3 if len(x) == 9 else 1.0

    process = sf.learning.fed_avg(model(linear, None, None, fit=fit), batching=sf.Batching(size=None))
    data = {k: v for k, v in rows().items() if k in ("a", "b")}
    weights, train, _ = run(process, data, runtime, rounds=3)
    np.testing.assert_allclose(weights["weight"], (3 * 9 + 1 * 3) / 4, rtol=1e-6)
    np.testing.assert_allclose(weights["bias"], 2, rtol=1e-6)
    assert train["num_examples"] == 4
    uniform = sf.learning.fed_avg(process.model, batching=sf.Batching(size=None), weighting="uniform")
    np.testing.assert_allclose(run(uniform, data, runtime)[0]["weight"], (9 + 3) / 2, rtol=1e-6)


def test_passes_over_a_loader_are_the_epochs_of_the_batching():
    key, batching = HostKey(7, 3, 0, 5), sf.Batching(size=2, epochs=3)
    data = np.arange(5, dtype=np.float32), np.arange(5)
    loader = Loader(data, key, batching)
    passes = [[y.tolist() for _, y in loader] for _ in range(3)]
    planned = batching.batches(5, seed=7, round=3, client=5)
    assert [batch for one in passes for batch in one] == [[int(i) for i in row if i >= 0] for row in planned]
    assert passes[0] != passes[1] != passes[2]
    assert len(loader) == 3
    assert (loader.rows, loader.batches) == (15, 9)
    again = Loader(data, key, batching)
    assert [y.tolist() for _, y in again.every_epoch()] == [batch for one in passes for batch in one]


@pytest.mark.parametrize(
    "returned", [None, "many", -1, float("nan"), True], ids=["None", "text", "negative", "nan", "bool"]
)
def test_a_loop_that_returns_no_number_fails_with_the_reason(returned):
    def fit(module, loader):
        return returned

    process = sf.learning.fed_avg(model(loss=None, optimizer=None, fit=fit)).on(sf.Loopback())
    with pytest.raises(sf.CompositionError, match=r"fit returned .*how many examples it trained on.*SF-MODEL-026"):
        process.next(process.initialize(), rows())


# -- data of other kinds


@both
def test_data_loaders_and_ready_made_batches(runtime):
    def loader(x, y):
        held = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
        return torch.utils.data.DataLoader(held, batch_size=4)

    given = {k: v for k, v in rows().items() if len(v[0])}
    loaders = {k: loader(*v) for k, v in given.items()}
    batches = {k: [(x[i : i + 4], y[i : i + 4]) for i in range(0, len(x), 4)] for k, (x, y) in given.items()}
    process, examples = sf.learning.fed_avg(model()), sf.Batching(size=4, shuffle=False)
    from_loaders, train, _ = run(process, loaders, runtime)
    from_batches, _, _ = run(process, batches, runtime)
    from_rows, _, _ = run(sf.learning.fed_avg(model(), batching=examples), given, runtime)
    np.testing.assert_array_equal(from_loaders["weight"], from_batches["weight"])
    np.testing.assert_allclose(from_loaders["weight"], from_rows["weight"], rtol=1e-6)
    assert (train["num_batches"], train["num_examples"]) == (3 + 1 + 4, 26)


# -- what is refused


def refused(code, words):
    return pytest.raises(sf.CompositionError, match=rf"{words}.*{code}")


def test_what_makes_no_module():
    from sklearn.linear_model import SGDClassifier

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()

    with refused("SF-MODEL-020", r"build is the class Net; needed: a function \(\) -> torch\.nn\.Module, or a module"):
        model(Net)
    with refused("SF-MODEL-020", "build is a SGDClassifier"):
        model(SGDClassifier())
    with refused("SF-MODEL-020", "build is a NoneType"):
        model(None)
    with refused("SF-MODEL-020", r"build returned a SGDClassifier; needed: a torch\.nn\.Module"):
        model(lambda: SGDClassifier())


def test_what_is_no_optimizer():
    module = linear()
    for optimizer, words in (
        (None, "the optimizer is missing"),
        (torch.optim.SGD, "the optimizer is the class SGD"),
        (torch.optim.SGD(module.parameters(), lr=0.1), "the optimizer is a SGD"),
        ("sgd", "the optimizer is a str"),
    ):
        with refused("SF-MODEL-021", rf"{words}; needed: a function of the module's parameters"):
            model(optimizer=optimizer)


def test_an_optimizer_and_a_loop():
    with refused("SF-MODEL-022", r"an optimizer and fit; needed: .*fit\(module, loader\) -> n"):
        model(fit=five_lines)
    with refused("SF-MODEL-022", "fit is a int"):
        model(optimizer=None, fit=3)


def test_a_loss_that_is_none():
    with pytest.raises(sf.CompositionError, match=r"the loss is missing.*CrossEntropyLoss.*SF-MODEL-004"):
        model(loss=None)
    with pytest.raises(sf.CompositionError, match="SF-MODEL-004"):
        model(loss=nn.CrossEntropyLoss)


def test_states_that_could_only_travel_by_pickle():
    class Keeps(nn.Linear):
        def __init__(self, extra):
            super().__init__(4, 3)
            self.extra = extra

        def get_extra_state(self):
            return self.extra

    for extra in ({"calls": 3}, torch.zeros(2)):
        with refused("SF-MODEL-023", r"the entry '_extra_state', a (dict|Tensor); needed: parameters and buffers"):
            model(Keeps(extra))
    with refused("SF-MODEL-023", r"the entry 'weight', a UninitializedParameter.*run a lazy module on one batch"):
        model(lambda: nn.LazyLinear(3))

    def ready():
        module = nn.LazyLinear(3)
        module(torch.zeros(1, 4))
        return module

    run(averaging(model(ready)), rows(), sf.Loopback())


def test_example_weights_and_a_loss_of_one_number():
    process = averaging(model(loss=nn.CrossEntropyLoss())).on(sf.Loopback())
    with refused("SF-MODEL-024", "example weights, and a loss that returns one number"):
        process.next(process.initialize(), rows(weights=True))


def test_a_client_optimizer_besides():
    with refused("SF-COMP-111", "client_optimizer as a GradientTransformation.*, and Linear brings its own"):
        sf.learning.fed_avg(model(), optax.sgd(0.1))


def test_algorithms_that_look_into_each_step():
    learning, loop = sf.learning, model(loss=None, optimizer=None, fit=five_lines)
    with refused("SF-COMP-112", "scaffold needs the gradient of each local step, and Linear brings its own"):
        learning.scaffold(model())
    with refused("SF-COMP-112", "fed_dyn needs the gradient"):
        learning.fed_dyn(model(), alpha=0.1)
    with refused("SF-COMP-112", "fed_sgd needs the gradient"):
        learning.fed_sgd(model())
    with refused("SF-COMP-112", r"fed_prox needs the gradient .*fed_prox with a from_torch model that has a loss"):
        learning.fed_prox(loop, mu=0.1)
    learning.fed_nova(loop)
    for make in (
        lambda: learning.mime(model(), optax.sgd(0.1)),
        lambda: learning.mime_lite(model(), optax.sgd(0.1)),
        lambda: learning.ifca(model(), clusters=2),
        lambda: learning.ditto(model(), mu=0.1),
    ):
        with refused(
            "SF-COMP-110", "Linear, a model that brings its own training loop; needed: .*Sumfold takes itself"
        ):
            make()


def test_pytorch_that_is_not_installed_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(sf.MissingExtraError, match=r"pip install 'sumfold\[torch\]'"):
        sf.models.from_torch(linear, EACH, sgd)


def test_a_state_is_arrays_only():
    state = begin(averaging(model()).round, averaging(model()).model.init(sf.keys.typed(sf.keys.root(0))), 0)
    assert all(hasattr(leaf, "dtype") for leaf in jax.tree.leaves(state))
    assert not any(isinstance(leaf, torch.Tensor) for leaf in jax.tree.leaves(state))
