"""PyTorch modules of every kind: what of their state is trained, averaged, tied, or stays; files and runs."""

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
from sumfold.testing import assert_runtimes_agree

pytest.importorskip("torch")

spec = importlib.util.spec_from_file_location("small_torch", Path(__file__).with_name("small_torch.py"))
small = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # workers are given what is found there
spec.loader.exec_module(small)
SIMULATION = small.SIMULATION
both = small.both
SIZES = small.SIZES
EACH = small.EACH
RUNTIMES = small.RUNTIMES
rows = small.rows
model = small.model
averaging = small.averaging
run = small.run
nn = small.nn
torch = small.torch


# -- modules of every kind


class Tied(nn.Module):
    """The last layer's weight is the embedding's, under two names; one layer is there twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 4)
        self.again = self.layer
        self.out = nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x):
        return self.out(self.again(torch.tanh(self.layer(self.embed(x)))))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(2, 3), nn.Linear(2, 3)

    def forward(self, left, right):
        return self.left(left) - self.right(right)


def frozen():
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    module[0].requires_grad_(False)
    return module


def halves():
    """bfloat16 inside; inputs and outputs in float32."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3).to(torch.bfloat16)

        def forward(self, x):
            return self.inner(x.to(torch.bfloat16)).float()

    return Half()


def doubles():
    class Double(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3).double()

        def forward(self, x):
            return self.inner(x.double()).float()

    return Double()


def images():
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.convolve, self.out = nn.Conv2d(1, 2, 3), nn.Linear(2 * 4 * 4, 3)

        def forward(self, x):
            assert x.dtype == torch.uint8
            return self.out(torch.relu(self.convolve(x[:, None].float() / 255)).flatten(1))

    return Small()


def split_columns(kind):
    return {name: (kind(left=x[:, :2], right=x[:, 2:]), y) for name, (x, y) in rows().items()}


def pictures():
    draw = np.random.default_rng(0)
    return {k: (draw.integers(0, 256, (n, 6, 6), dtype=np.uint8), draw.integers(0, 3, n)) for k, n in SIZES.items()}


def words():
    draw = np.random.default_rng(0)
    return {k: (draw.integers(0, 5, n), draw.integers(0, 5, n)) for k, n in SIZES.items()}


MODULES = {
    # Without a bias before it, whose gradient would be rounding alone, which Adam blows up to steps of full size.
    "batch normalisation": (
        lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        rows,
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(4, 9), nn.Dropout(0.5), nn.Linear(9, 3)), rows),
    "frozen": (frozen, rows),
    "tied": (Tied, words),
    "bfloat16": (halves, rows),
    "float64": (doubles, rows),
    "dict": (Named, functools.partial(split_columns, dict)),
    "tuple": (Named, functools.partial(split_columns, lambda left, right: (left, right))),
    "images": (images, pictures),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), rows),
    "old weight norm": (lambda: _old_weight_norm(nn.Linear(4, 3)), rows),
    "module": (nn.Linear(4, 3), rows),
    "class": (type("Net", (nn.Linear,), {"__init__": lambda self: nn.Linear.__init__(self, 4, 3)}), rows),
}


def _old_weight_norm(module):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(module)


@pytest.mark.parametrize("name", MODULES)
def test_runtimes_agree_on_modules_of_every_kind(name):
    """`weight_norm` of old keeps its weight as what a computation gave, which PyTorch does not copy."""
    build, data = MODULES[name]
    process = averaging(model(build), server_optimizer=optax.adam(0.05), size=5)
    loose = {"rtol": 1e-2, "atol": 1e-2} if name == "bfloat16" else {}
    assert_runtimes_agree(process, data(), *RUNTIMES.values(), rounds=2, **loose)
    weights, train, _ = run(process, data(), SIMULATION)
    before = process.get_model_weights(process.initialize())
    assert train["num_examples"] == 52
    assert train["num_clients"] == 4
    assert any((np.asarray(weights[k], "f") != np.asarray(before[k], "f")).any() for k in weights)
    assert {k: a.dtype for k, a in weights.items()} == {k: a.dtype for k, a in before.items()}
    fresh = build() if callable(build) and not isinstance(build, nn.Module) else nn.Linear(4, 3)
    expected = process.model.predict(weights, data()["d"][0])
    got = weights.assign_to(fresh).eval()(*_inputs(data()["d"][0]))
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def _inputs(x):
    tensor = lambda a: torch.from_numpy(np.asarray(a))
    return tuple(map(tensor, x.values() if isinstance(x, dict) else x if isinstance(x, tuple) else (x,)))


@both
def test_statistics_are_averaged_and_counters_stay(runtime):
    """Batch normalisation by hand: one full batch at each client, momentum 0.1, means weighed by rows."""
    data = {k: v for k, v in rows().items() if len(v[0])}
    process = averaging(model(lambda: nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))), size=None, epochs=1)
    weights, _, state = run(process, data, runtime)
    total = sum(len(x) for x, _ in data.values())
    mean = sum(len(x) * 0.1 * x.mean(0) for x, _ in data.values()) / total
    var = sum(len(x) * (0.9 + 0.1 * x.var(0, ddof=1)) for x, _ in data.values()) / total
    np.testing.assert_allclose(weights["0.running_mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(weights["0.running_var"], var, rtol=1e-5)
    assert weights["0.num_batches_tracked"] == 0
    assert weights["0.num_batches_tracked"].dtype.kind == "i"
    assert sorted(state.algorithm.model.statistics) == ["0.running_mean", "0.running_var"]
    assert sorted(state.algorithm.model.constants) == ["0.num_batches_tracked"]
    other = process.on(runtime).next(state, data)[0]
    assert (process.get_model_weights(other)["0.running_mean"] != weights["0.running_mean"]).any()


def test_frozen_parameters_stay_and_do_not_travel_back():
    process = averaging(model(frozen))
    before = process.get_model_weights(process.initialize())
    weights, _, state = run(process, rows(), SIMULATION)
    np.testing.assert_array_equal(weights["0.weight"], before["0.weight"])
    assert (weights["1.weight"] != before["1.weight"]).any()
    assert sorted(state.algorithm.model.trainable) == ["1.bias", "1.weight"]
    sent = process.explain(rows()).partition("Leaves each client")[2]
    assert "value/1.weight" in sent
    assert "0.weight" not in sent.partition("Stays with")[0]


def test_tied_weights_are_one_array_under_every_name():
    process = averaging(model(Tied))
    weights, _, state = run(process, words(), SIMULATION)
    assert sorted(state.algorithm.model.trainable) == ["embed.weight", "layer.bias", "layer.weight"]
    assert sorted(weights) == sorted(Tied().state_dict())
    np.testing.assert_array_equal(weights["embed.weight"], weights["out.weight"])
    module = weights.assign_to(Tied())
    assert module.out.weight is module.embed.weight
    np.testing.assert_array_equal(module.again.weight.detach().numpy(), weights["layer.weight"])


def test_bfloat16_weights_keep_their_bits():
    process = averaging(model(halves))
    weights = process.get_model_weights(process.initialize())
    assert weights["inner.weight"].dtype == jnp.bfloat16
    module = weights.assign_to(halves())
    np.testing.assert_array_equal(module.inner.weight.detach().float().numpy(), weights["inner.weight"].astype("f"))


def test_initial_weights_follow_from_the_seed_and_a_module_is_its_own():
    process = averaging(model())
    first, again, other = (process.get_model_weights(process.initialize(seed=s))["weight"] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    module = nn.Linear(4, 3)
    process = averaging(model(module))
    given = module.weight.detach().numpy().copy()
    np.testing.assert_array_equal(process.get_model_weights(process.initialize(seed=5))["weight"], given)
    run(process, rows(), sf.Loopback())
    np.testing.assert_array_equal(module.weight.detach().numpy(), given)
    assert module.weight.grad is None


@both
def test_dropout_and_initial_noise_follow_from_the_seed_and_nothing_else(runtime):
    process = averaging(model(MODULES["dropout"][0]))
    start = process.get_model_weights(process.initialize())

    def trained(seed, disturb):
        torch.manual_seed(disturb)
        bound = process.on(runtime)
        state = bound.set_model_weights(bound.initialize(seed=seed), start)
        before = torch.get_rng_state()
        state, _ = bound.next(state, rows(), clients=["d"])
        assert torch.equal(before, torch.get_rng_state())
        return process.get_model_weights(state)["0.weight"]

    np.testing.assert_array_equal(trained(1, 5), trained(1, 6))
    assert (trained(1, 5) != trained(2, 5)).any()


def test_making_a_model_leaves_the_generator_alone():
    torch.manual_seed(4)
    before = torch.get_rng_state()
    process = averaging(model())
    process.initialize()
    process.model.predict(process.get_model_weights(process.initialize()), rows()["a"][0])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() >= 1


@both
def test_what_a_module_keeps_beside_its_state_does_not_reach_the_next_client(runtime):
    """A buffer that is not saved, an attribute, and layers that a loop freezes: every client begins alike."""

    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)
            self.register_buffer("seen", torch.zeros(()), persistent=False)
            self.calls = 0

        def forward(self, x):
            self.seen += 1
            self.calls += 1
            return self.inner(x) * (self.seen + self.calls)

    def fit(module, loader):
        for x, y in loader:
            loss = EACH(module(x), y).mean()
            loss.backward()
            with torch.no_grad():
                for p in module.parameters():
                    if p.requires_grad:
                        p -= 0.1 * p.grad
        module.inner.bias.requires_grad_(False)
        return loader.rows

    process = sf.learning.fed_avg(
        model(Keeps, None, None, fit=fit), batching=sf.Batching(size=None), weighting="uniform"
    )
    one = {"a": rows()["a"]}
    alone, _, _ = run(process, one, runtime)
    many, _, _ = run(process, {i: rows()["a"] for i in range(5)}, runtime)
    np.testing.assert_allclose(many["inner.weight"], alone["inner.weight"], rtol=1e-6)
    np.testing.assert_allclose(many["inner.bias"], alone["inner.bias"], rtol=1e-6)


# -- weights, files, runs


def test_predict_and_evaluate():
    made = model(MODULES["batch normalisation"][0], metrics={"accuracy": sf.metrics.accuracy})
    weights = made.init(sf.keys.typed(sf.keys.root(0)))
    x, y = rows((4,))["d"]
    big = np.concatenate([x] * 200)
    outputs = made.predict(weights, big)
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (2800, 3)
    with torch.no_grad():
        expected = weights.assign_to(MODULES["batch normalisation"][0]()).eval()(torch.from_numpy(big))
    np.testing.assert_allclose(outputs, expected.numpy(), rtol=1e-5, atol=1e-6)
    alone = made.evaluate(weights, x, y)
    many = made.evaluate(weights, big, np.concatenate([y] * 200))
    assert many["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert many["num_examples"] == 2800
    assert made.evaluate(weights, x[:0], y[:0]) == {"loss": 0.0, "accuracy": 0.0, "num_examples": 0}
    with pytest.raises(sf.TypeMismatchError, match=r"Sequential failed on x float32\[14, 3\].*SF-TYPE-002"):
        made.predict(weights, x[:, :3])
    with pytest.raises(sf.TypeMismatchError, match=r"failed on x .* and y .*SF-TYPE-002"):
        made.evaluate(weights, x, y + 100)
    with pytest.raises(sf.DataError, match="SF-DATA-052"):
        made.evaluate(weights, x, y[:3])


def test_weights_and_states_go_through_files(tmp_path):
    process = averaging(model(Tied), server_optimizer=optax.adam(0.1)).on(sf.Loopback())
    state, _ = process.next(process.initialize(), words())
    weights = process.get_model_weights(state)
    sf.models.save(tmp_path / "weights", weights)
    back = sf.models.load(tmp_path / "weights")
    moved = process.set_model_weights(process.initialize(), back)
    for name, array in process.get_model_weights(moved).items():
        np.testing.assert_array_equal(array, weights[name])
    torch_weights = {k: v.numpy() for k, v in Tied().state_dict().items()}
    process.set_model_weights(state, torch_weights)
    sf.save(tmp_path / "state", state)
    ours, theirs = (process.next(s, words())[0] for s in (state, sf.load(tmp_path / "state")))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_of_another_module_are_refused():
    process = averaging(model())
    state = process.initialize()
    with pytest.raises(
        sf.StateError, match=r"weights with \['weight'\]; needed: the module's own: \['bias', 'weight'\]"
    ):
        process.set_model_weights(state, {"weight": np.zeros((3, 4))})
    with pytest.raises(sf.StateError, match=r"'weight' float32\[3, 5\].*SF-STATE-003"):
        process.set_model_weights(state, {"weight": np.zeros((3, 5)), "bias": np.zeros(3)})
    with pytest.raises(sf.StateError, match=r"weights with a list"):
        process.set_model_weights(state, [np.zeros(3)])


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """Two rounds, then four, are four; another learning rate in the closure is another run."""

    def process(rate=0.1):
        return averaging(model(MODULES["dropout"][0], optimizer=lambda p: torch.optim.SGD(p, lr=rate))).on(SIMULATION)

    def train(process, rounds, folder):
        return sf.train(
            process, rows(), rounds=rounds, clients_per_round=2, evaluate=rows()["d"], checkpoint=folder, progress=False
        )

    train(process(), 2, tmp_path / "resumed")
    resumed, straight = train(process(), 4, tmp_path / "resumed"), train(process(), 4, tmp_path / "straight")
    assert resumed.metrics == straight.metrics
    assert resumed.evaluations == straight.evaluations
    for a, b in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(straight.state), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    with pytest.raises(sf.CheckpointError, match=r"another run.*SF-CKPT-015"):
        train(process(0.2), 6, tmp_path / "resumed")


def test_explain_says_what_runs_and_what_leaves():
    text = averaging(model(frozen, metrics={"accuracy": sf.metrics.accuracy})).explain(rows())
    assert "run      the Python function Torch.fit, once" in text
    assert "without I/O" not in text
    assert "0x" not in text
    assert "of 4 rows, 2 epochs, shuffled" in text
    assert "value/1.bias" in text
    assert "Torch.measure" in sf.learning.fed_eval(model()).explain(rows())
    assert averaging(model()).get_hparams(averaging(model()).initialize())["client_work"] == {
        "unseen": "the model brings its own optimizer: change it there"
    }
