"""Equal work: data that never change, the order that Sumfold takes, rows that are void, and losing rows that stay."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.bench import measure, peers, table, workloads
from sumfold.bench.workloads import WORKLOADS, Data

PARAMETERS = {
    "logistic": 48_670,
    "softmax": 610,
    "emnist_cnn": 1_206_590,
    "cifar_cnn": 1_626_442,
    "blitz_cnn": 62_006,
    "lstm": 4_050_748,
    "transformer": 1_962_912,
    "two_lstms": 820_522,
}

FIRST_THREE = {
    "w1": "f32bcd526907b29043f91e4360b1470a",
    "w3": "ae6977e3409d5f6c0b5228c7ef4544bc",
    "w4": "029db2a730f54840ce476b3e5ad7107c",
    "w5": "3cd225583b1b1e7c8fd80524b9ba6a07",
    "w6": "c81ce951b2965cfbcd1b5680f382e96b",
}


def first_three(name: str) -> str:
    made = [workloads.examples(WORKLOADS[name], client, 1) for client in range(3)]
    return workloads.hash_of(*(array for pair in made for array in pair))


@pytest.mark.parametrize("name", FIRST_THREE)
def test_the_first_clients_never_change(name: str) -> None:
    assert first_three(name) == FIRST_THREE[name]


@pytest.mark.parametrize("name", ["w4", "w1"])
def test_a_client_is_the_same_alone_and_among_others(name: str, tmp_path: Path) -> None:
    small = workloads.quick(WORKLOADS[name])
    data = workloads.load(small, tmp_path)
    rows = slice(data.offsets[7], data.offsets[8])
    x, y = workloads.examples(small, 7, 1)
    np.testing.assert_array_equal(data.x[rows], x)
    np.testing.assert_array_equal(data.y[rows], y)
    again = workloads.load(small, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(again.offsets, data.offsets)


def test_sizes_are_those_of_the_protocol() -> None:
    sizes = workloads._sizes(WORKLOADS["w1"])
    assert len(sizes) == 3_400
    assert sizes.min() >= 10
    assert sizes.max() == 400
    assert abs(sizes.mean() - 197.5) < 5
    assert abs(sizes.std() / sizes.mean() - 0.4) < 0.03


@pytest.mark.parametrize("name", [name for name in WORKLOADS if WORKLOADS[name].model in PARAMETERS])
def test_models_have_the_parameters_of_the_papers(name: str) -> None:
    made = workloads.weights(WORKLOADS[name])
    assert sum(array.size for array in made.values()) == PARAMETERS[WORKLOADS[name].model]
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in made.values())


def test_the_order_is_the_one_that_sumfold_takes() -> None:
    """What a peer is given equals `sumfold.Batching`, over epochs, short batches and rounds."""
    work = WORKLOADS["w1"]._replace(batch=4, epochs=2)
    counts = np.array([5, 1, 8, 11])
    data = Data(np.zeros(25), np.zeros(25, np.int32), np.concatenate([[0], np.cumsum(counts)]))
    for number in (0, 3):
        order = workloads.order(work, data, [2, 0, 3], number).batches()
        for client, batches in zip([2, 0, 3], order, strict=True):
            plan = sf.Batching(4, epochs=2).batches(
                int(counts[client]), seed=workloads.SEED, round=number, client=client
            )
            theirs = [row[row >= 0] + data.offsets[client] for row in plan]
            assert [b.tolist() for b in batches] == [b.tolist() for b in theirs]


def test_cohorts_are_drawn_without_replacement_and_differ_by_round(tmp_path: Path) -> None:
    small = workloads.quick(WORKLOADS["w1"])
    chosen = workloads.cohorts(small, workloads.load(small, tmp_path), 3)
    assert all(len(set(cohort.tolist())) == small.cohort for cohort in chosen)
    assert chosen[0].tolist() != chosen[1].tolist()


def test_nothing_of_sumfold_is_needed_to_load_it_by_path() -> None:
    path = Path(workloads.__file__).parent
    code = (
        f"import sys; sys.path.append({str(path)!r}); import workloads; print({{'sumfold', 'jax'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", _site(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def _site(code: str) -> str:
    """With NumPy's folder, but not those that .pth files add, such as an editable Sumfold."""
    return f"import sys; sys.path.append({str(Path(np.__file__).parents[1])!r}); {code}"


# -- what counts as equal work


def line(contestant: str, loss: float = 2.0, ms: float = 10.0, **more: Any) -> dict[str, Any]:
    return {
        "contestant": contestant,
        "workload": "w4",
        "rounds": 4,
        "seconds": [9.0, 9.0, ms / 1e3, ms / 1e3],
        "loss": loss,
        "examples": 100,
        "examples_by_round": [25] * 4,
        "steps": 50,
        "gemm_gflops": 100.0,
        "to_first_round_s": 1.5,
        "peak_memory_mib": 64.0,
        "repeat": 0,
        "load": 0.1,
        "versions": {"numpy": "2.4"},
        **more,
    }


def by_title(lines: list[dict[str, Any]]) -> dict[str, measure.Row]:
    return {row.title: row for row in measure.rows(lines, "w4", 1e-5, 2_400.0)}


def test_a_loss_of_its_own_voids_a_row_and_no_other() -> None:
    found = by_title([line("sumfold"), line("torch", 2.000001), line("fedjax", 2.1)])
    assert found["FedJAX"].note == "void: final loss 2.1 against 2.000001"
    assert found["Sumfold"].note == ""
    assert found["PyTorch by hand, 1 process"].note == ""


def test_one_bad_run_of_several_voids_the_row() -> None:
    found = by_title([line("sumfold"), line("sumfold", float("nan"), repeat=1), line("torch"), line("fedjax")])
    assert "final loss nan" in found["Sumfold"].note


def test_less_work_voids_a_row() -> None:
    found = by_title([line("sumfold"), line("torch"), line("fedjax", examples=80)])
    assert found["FedJAX"].note == "void: 80 examples in 50 steps against 100 in 50"


def test_the_median_leaves_out_the_first_two_rounds() -> None:
    row = by_title([line("sumfold", ms=10), line("sumfold", ms=30, repeat=1), line("sumfold", ms=20, repeat=2)])[
        "Sumfold"
    ]
    assert row.round_ms == pytest.approx(20)
    assert row.first_s == row.again_s == 1.5
    assert row.peak_share == pytest.approx(2_400 * 25 / 0.02 / 100e9)


def test_the_table_keeps_losing_void_and_unfinished_rows() -> None:
    lines = [line("sumfold", ms=20), line("torch", ms=10), line("fedjax", 3.0)]
    lines.append(
        {"contestant": "flower", "workload": "w4", "load": 0.2, "repeat": 0, "error": "did not finish in 600 s"}
    )
    text = table.page(lines, {"cores": 2, "processor": "one", "commit": "abc*"}, "sumfold bench --workload w4")
    titles = [cells.split("|")[1].strip() for cells in text.splitlines() if cells.startswith("| ")]
    assert titles[1:] == ["PyTorch by hand, 1 process", "Sumfold", "FedJAX", "Flower, simulation"]
    rows = {cells.split("|")[1].strip(): cells for cells in text.splitlines() if cells.startswith("| ")}
    assert "| 0.5 |" in rows["PyTorch by hand, 1 process"]  # half of Sumfold's time
    assert "void: final loss 3 against 2" in rows["FedJAX"]
    assert "did not finish in 600 s" in rows["Flower, simulation"]
    for words in ("sumfold bench --workload w4", "cores: 2", "commit: abc*", "numpy 2.4", "0.10 to 0.20"):
        assert words in text


def test_a_peer_that_is_not_there_is_told_with_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    absent = dict(peers.missing(["fedjax", "pfl", "pfl-processes", "tff"], tmp_path))
    assert list(absent) == ["fedjax", "pfl", "tff"]
    assert f"python3.11 -m venv {tmp_path}/fedjax" in absent["fedjax"]
    assert "--no-deps" in absent["tff"]
    lists = [word for word in " ".join(absent.values()).split() if word.endswith(".txt")]
    assert len(lists) == 4
    assert all(Path(name).is_file() for name in lists)


def test_every_contestant_has_its_script_and_every_workload_sumfold() -> None:
    for one in peers.CONTESTANTS.values():
        assert (peers.HERE / "contestants" / one.script).is_file()
        assert set(one.workloads) <= set(WORKLOADS)
    assert set(peers.CONTESTANTS["sumfold"].workloads) == set(WORKLOADS)


# -- the models in JAX and in PyTorch


@pytest.mark.jax_defaults
@pytest.mark.parametrize("name", ["w2", "w3b", "w5t", "shakespeare"])
def test_both_libraries_compute_the_same_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(peers.HERE / "contestants"))
    import jax_models
    import torch_models

    work = WORKLOADS[name]
    draw = np.random.default_rng(0)
    shape = (3, *work.shape)
    images = work.data == "images"
    x = draw.random(shape, np.float32) if images else draw.integers(0, work.classes, shape).astype(np.int32)
    y = draw.integers(0, work.classes, 3 if images else shape).astype(np.int32)
    start = workloads.weights(work)
    theirs = torch_models.net(work.model, start)
    other = theirs.predict(theirs.weights, torch.from_numpy(torch_models.images(x)))
    ours = jax_models.predictor(work.model)(jax.tree.map(jnp.asarray, start), jnp.asarray(x))
    np.testing.assert_allclose(ours, other.detach().numpy(), rtol=2e-4, atol=2e-5)
    loss = torch_models.loss(other, torch.from_numpy(y).long()).item()
    assert float(jax_models.loss(ours, jnp.asarray(y)).mean()) == pytest.approx(loss, rel=1e-5)
