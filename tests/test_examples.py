"""The examples run as they stand, and reach what they say."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.jax_defaults


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert {file.stem for file in EXAMPLES.glob("*.py")} == {
        *("fed_avg", "own_round", "keras_cnn", "language_fed_avg", "tff_programs"),
        *("torch_model", "sklearn_model"),
    }


def test_fed_avg(capsys: pytest.CaptureFixture[str]) -> None:
    history = example("fed_avg").main()
    assert len((EXAMPLES / "fed_avg.py").read_text("utf-8").splitlines()) < 80
    assert history.evaluations[-1]["auc"] > 0.87
    printed = capsys.readouterr().out
    assert "va_long_beach" in printed
    assert "Leaves each client" in printed


def test_own_round_is_the_pooled_answer() -> None:
    weights = example("own_round").main()
    np.testing.assert_allclose(weights["Simulation"], weights["Loopback"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weights["Simulation"], weights["all rows"], rtol=1e-4, atol=1e-5)


def test_federated_averaging_in_the_language_is_the_librarys() -> None:
    assert max(example("language_fed_avg").main().values()) <= 1e-6


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras' get_weights()
def test_the_programs_that_people_know_from_tff() -> None:
    pytest.importorskip("keras")
    uniform, weighted, metrics = example("tff_programs").main()
    np.testing.assert_allclose(uniform, [0.2, 0.2], rtol=1e-6)
    np.testing.assert_allclose(weighted, [0.8 / 3.5, 0.55 / 3.5], rtol=1e-6)
    assert metrics["client_work"]["train"]["num_clients"] == 3


@pytest.mark.slow
def test_torch_model() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    history, accuracy = example("torch_model").main()
    assert accuracy > 0.88
    assert np.isclose(history.evaluations[-1]["accuracy"], accuracy, atol=1e-4)


def test_sklearn_model() -> None:
    pytest.importorskip("sklearn")
    federated, pooled, counted, together = example("sklearn_model").main()
    assert federated >= 0.93
    assert pooled > 0.93
    assert np.isclose(counted, together, atol=0.003)


@pytest.mark.slow
def test_keras_cnn() -> None:
    pytest.importorskip("keras")
    pytest.importorskip("sklearn")
    cnn = example("keras_cnn")
    federated, pooled, network = cnn.main()
    assert federated > 0.95 * pooled
    assert pooled > 0.95
    _, test = cnn.sf.data.digits(clients=20, alpha=0.3, seed=0)
    x, y = test.pooled()
    assert np.isclose((network.predict(x, verbose=0).argmax(1) == y).mean(), federated, atol=0.005)
