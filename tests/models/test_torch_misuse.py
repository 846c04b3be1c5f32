"""PyTorch models: what would train on nonsense, or not at all, is refused and says so."""

from __future__ import annotations

import numpy as np
import pytest

import sumfold as sf

torch = pytest.importorskip("torch")

CLIENTS = [(np.ones((n, 2), np.float32) * n, np.ones(n, np.float32)) for n in (3, 5)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.01)


def linear():
    return torch.nn.Linear(2, 1)


def one_round(model, clients=CLIENTS, **options):
    process = sf.learning.fed_avg(model, **options).on(sf.Loopback())
    return process.next(process.initialize(), clients)


def test_outputs_that_labels_would_be_broadcast_against_are_refused():
    for loss in (torch.nn.MSELoss(reduction="none"), lambda outputs, y: (outputs - y) ** 2):
        model = sf.models.from_torch(linear, loss, sgd)
        with pytest.raises((sf.TypeMismatchError, sf.WorkError), match=r"SF-TYPE-001|Using a target size"):
            one_round(model)
    model = sf.models.from_torch(linear, torch.nn.MSELoss(), sgd)
    with pytest.raises(sf.WorkError, match="Using a target size"):
        one_round(model)
    fine = sf.models.from_torch(linear, lambda outputs, y: (outputs[:, 0] - y) ** 2, sgd)
    assert one_round(fine).metrics["client_work"]["train"]["num_clients"] == 2


def test_a_metric_of_the_whole_batch_is_refused_and_not_taken_for_a_clients_failure():
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    for metric in (lambda outputs, y: (outputs.argmax(1) == y).float().mean(), lambda outputs, y: 0.5):
        model = sf.models.from_torch(lambda: torch.nn.Linear(2, 3), loss, sgd, metrics={"hits": metric})
        clients = [(x, y.astype(np.int64)) for x, y in CLIENTS]
        with pytest.raises(sf.TypeMismatchError, match="the metric 'hits' returned shape"):
            one_round(model, clients)


@pytest.mark.parametrize("returned", [0.53, -1, True, None, "12"], ids=str)
def test_what_fit_returns_must_be_a_whole_number(returned):
    model = sf.models.from_torch(linear, fit=lambda module, loader: returned)
    with pytest.raises(sf.CompositionError, match="SF-MODEL-026"):
        one_round(model)


def passes(module, loader):
    return sum(len(x) for x, y in loader)


def test_a_loop_without_a_loss_reports_none():
    model = sf.models.from_torch(linear, fit=passes)
    metrics = one_round(model).metrics
    assert "loss" not in metrics["client_work"]["train"]
    assert metrics["client_work"]["train"]["num_examples"] == 8
    weights = model.init(__import__("jax").random.key(0))
    assert model.evaluate(weights, *CLIENTS[0]) == {"num_examples": 3}


def test_a_loop_of_the_users_own_is_not_told_how_long_to_train():
    model = sf.models.from_torch(linear, fit=passes)
    for batching in (sf.Batching(epochs=2), sf.Batching(max_steps=3)):
        with pytest.raises(sf.CompositionError, match="SF-COMP-113"):
            sf.learning.fed_avg(model, batching=batching)
        with pytest.raises(sf.CompositionError, match="SF-COMP-113"):
            sf.learning.fine_tune(model, batching=batching)


def test_losses_and_devices_that_cannot_be_used():
    with pytest.raises(sf.CompositionError, match="SF-MODEL-025"):
        sf.models.from_torch(linear, torch.nn.MSELoss(reduction="sum"), sgd)
    for device in ("tpu9", "cuda:7"):
        with pytest.raises(sf.CompositionError, match="SF-MODEL-027"):
            sf.models.from_torch(linear, torch.nn.MSELoss(), sgd, device=device)


def test_a_batch_of_one_row_under_batch_normalisation_says_what_to_do():
    def build():
        return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))

    loss = torch.nn.CrossEntropyLoss(reduction="none")
    model = sf.models.from_torch(build, loss, sgd)
    clients = [(x, (y * 0).astype(np.int64)) for x, y in CLIENTS]
    with pytest.raises(sf.CompositionError, match="drop_remainder=True"):
        one_round(model, clients, batching=sf.Batching(size=2))
    out = one_round(model, clients, batching=sf.Batching(size=2, drop_remainder=True))
    assert out.metrics["client_work"]["train"]["num_batches"] == 3


def test_saved_weights_can_be_set_again_and_become_a_module(tmp_path):
    model = sf.models.from_torch(linear, lambda outputs, y: (outputs[:, 0] - y) ** 2, sgd)
    process = sf.learning.fed_avg(model)
    weights = process.get_model_weights(process.initialize(seed=3))
    sf.models.save(tmp_path / "w.safetensors", weights)
    loaded = sf.models.load(tmp_path / "w.safetensors")
    again = process.get_model_weights(process.set_model_weights(process.initialize(), loaded))
    assert np.array_equal(again["weight"], weights["weight"])
    module = model.export(loaded)
    assert np.array_equal(module.weight.detach().numpy(), weights["weight"])
    assert np.array_equal(sf.models.StateDict(loaded).assign_to(linear()).bias.detach().numpy(), weights["bias"])


def test_evaluating_between_two_parts_of_a_run_does_not_make_it_another(tmp_path):
    def process():
        model = sf.models.from_torch(linear, lambda outputs, y: (outputs[:, 0] - y) ** 2, sgd)
        return sf.learning.fed_avg(model).on(sf.Loopback())

    one = process()
    history = sf.train(one, CLIENTS, rounds=1, checkpoint=tmp_path, progress=False)
    one.model.evaluate(one.get_model_weights(history.state), *CLIENTS[0])
    assert len(sf.train(one, CLIENTS, rounds=2, checkpoint=tmp_path, progress=False).metrics) == 2
    assert len(sf.train(process(), CLIENTS, rounds=3, checkpoint=tmp_path, progress=False).metrics) == 3


def test_results_do_not_depend_on_the_default_dtype_of_the_moment():
    model = sf.models.from_torch(linear, lambda outputs, y: (outputs[:, 0] - y) ** 2, sgd)
    process = sf.learning.fed_avg(model).on(sf.Loopback())
    here, _ = process.next(process.initialize(), CLIENTS)
    torch.set_default_dtype(torch.float64)
    try:
        there, _ = process.next(process.initialize(), CLIENTS)
    finally:
        torch.set_default_dtype(torch.float32)
    assert np.array_equal(process.get_model_weights(here)["weight"], process.get_model_weights(there)["weight"])
