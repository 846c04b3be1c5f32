"""Comparisons: the same cohorts and first weights for all, what the table says, figures, and resuming."""

import dataclasses
import json
import os
import signal

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.learning import progress
from sumfold.learning.compare import Comparison

WEIGHTS = np.array([1.0, 2.0, 3.0], np.float32)


def client(number):
    x = np.random.default_rng(number).normal(size=(5 + number, 3)).astype(np.float32)
    return x, x @ WEIGHTS


FEDERATION = sf.Federation.from_clients({name: client(i) for i, name in enumerate("abcdef")})
TEST = client(99)


@pytest.fixture(scope="module")
def processes():
    import jax

    model = sf.models.from_functions(
        lambda key: jax.random.normal(key, 3),
        lambda w, x: x @ w,
        lambda outputs, y: (outputs - y) ** 2,
        {"mean_absolute_error": sf.metrics.mean_absolute_error, "close": lambda o, y: jnp.abs(o - y) < 0.5},
    )
    batching = sf.Batching(size=4)
    return {
        "FedAvg": sf.learning.fed_avg(model, optax.sgd(0.02), batching=batching),
        "SCAFFOLD": sf.learning.scaffold(model, optax.sgd(0.02), batching=batching),
    }


def run(processes, train=FEDERATION, **options):
    return sf.compare(processes, train, **{"rounds": 3, "seeds": 2, "progress": False, **options})


# -- the runs


def test_every_run_is_that_of_train(processes):
    comparison = run(processes, seeds=[3, 11], evaluate=TEST, evaluate_every=2, clients_per_round=2)
    assert list(comparison.histories) == list(processes)
    for name, process in processes.items():
        assert list(comparison.histories[name]) == [3, 11]
        for seed, history in comparison.histories[name].items():
            options = {"evaluate": TEST, "evaluate_every": 2, "clients_per_round": 2, "seed": seed}
            alone = sf.train(process, FEDERATION, rounds=3, progress=False, **options)
            assert (history.metrics, history.evaluations) == (alone.metrics, alone.evaluations)


def test_all_train_on_the_same_cohorts(processes):
    cohorts = {}
    policy = sf.sampling.weighted(2)
    turn = iter([(seed, name) for seed in (0, 1) for name in processes for _ in range(3)])

    def recorded(draw):
        seed, name = next(turn)
        cohorts.setdefault(seed, {}).setdefault(name, []).append(list(policy(draw)))
        return cohorts[seed][name][-1]

    run(processes, cohorts=recorded)
    for by_name in cohorts.values():
        assert len(by_name) == 2
        assert len({str(drawn) for drawn in by_name.values()}) == 1
        assert len({str(ids) for ids in by_name["FedAvg"]}) > 1
    assert cohorts[0]["FedAvg"] != cohorts[1]["FedAvg"]


def test_all_begin_from_the_same_weights(processes):
    comparison = run(processes, rounds=0)
    for seed in (0, 1):
        states = [(process, comparison.histories[name][seed].state) for name, process in processes.items()]
        weights = [process.get_model_weights(state) for process, state in states]
        assert all(np.array_equal(weights[0], other) for other in weights)
    first, second = (comparison.histories["FedAvg"][seed].state for seed in (0, 1))
    assert not np.array_equal(*(processes["FedAvg"].get_model_weights(state) for state in (first, second)))


def test_one_shot_cohorts_serve_every_run(processes):
    given = [["a", "f"], ["b", "c"], []]
    comparison = run(processes, cohorts=iter(given))
    for runs in comparison.histories.values():
        for history in runs.values():
            assert [m["client_work"]["train"]["num_clients"] for m in history.metrics] == [2, 2, 0]


def test_data_may_vary_with_the_seed(processes):
    def split(seed):
        return FEDERATION.split(0.6, seed=seed)

    comparison = run({"FedAvg": processes["FedAvg"]}, split)
    for seed in (0, 1):
        train, test = split(seed)
        alone = sf.train(processes["FedAvg"], train, rounds=3, seed=seed, evaluate=test, progress=False)
        assert comparison.histories["FedAvg"][seed].evaluations == alone.evaluations
    only = run({"FedAvg": processes["FedAvg"]}, lambda seed: FEDERATION.subset(["ab"[seed]]), seeds=2)
    rows = [only.histories["FedAvg"][seed].metrics[0]["client_work"]["train"]["num_examples"] for seed in (0, 1)]
    assert rows == [5, 6]


def test_a_comparison_that_was_stopped_goes_on(processes, tmp_path):
    odd = {"FedAvg": processes["FedAvg"], "../μ: 1/2": processes["SCAFFOLD"]}
    whole = run(odd, rounds=4, clients_per_round=2, evaluate=TEST)
    place = tmp_path / "runs"

    def broken(weights):
        if broken.left == 0:
            raise RuntimeError("lost power")
        broken.left -= 1
        return {"norm": float(jnp.abs(weights).sum())}

    broken.left = 6
    with pytest.raises(RuntimeError, match="lost power"):
        run(odd, rounds=4, clients_per_round=2, evaluate=broken, checkpoint=place)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
    assert sorted(path.name for path in place.iterdir()) == ["%2E.%2Fμ%3A 1%2F2", "FedAvg"]
    trained = []
    counted = {
        name: dataclasses.replace(process, runtime=Counting(process.runtime, trained)) for name, process in odd.items()
    }
    again = run(counted, rounds=4, clients_per_round=2, evaluate=TEST, checkpoint=place)
    assert len(trained) == 16 - 6  # the seventh evaluation failed, and its round with it
    for name, runs in whole.histories.items():
        for seed, history in runs.items():
            assert again.histories[name][seed].metrics == history.metrics
    finished = run(counted, rounds=4, clients_per_round=2, evaluate=TEST, checkpoint=place)
    assert len(trained) == 16 - 6
    assert len(finished.histories["FedAvg"][1].metrics) == 4


@dataclasses.dataclass(frozen=True)
class Counting:
    """A runtime that writes down the rounds which it computes."""

    inner: sf.Simulation
    trained: list

    @property
    def groups(self):
        return self.inner.groups

    def bind(self, round):
        bound = self.inner.bind(round)

        def one(state, cohort):
            self.trained.append(int(state.round))
            return bound(state, cohort)

        return one


def test_ctrl_c_returns_the_runs_that_were_finished(processes):
    presses = []

    def evaluate(weights):
        presses.append(1)
        if len(presses) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return {"n": len(presses)}

    comparison = run(processes, evaluate=evaluate)
    assert {name: list(runs) for name, runs in comparison.histories.items()} == {
        "FedAvg": [0],
        "SCAFFOLD": [],
    }
    assert repr(comparison) == "Comparison(2 algorithms, 1 seed, 3 rounds, interrupted)"
    lines = str(comparison).splitlines()
    assert lines[0].split()[-1] == "seeds"
    assert lines[2].split() == ["SCAFFOLD", "–", "–", "0"]
    assert lines[-1] == "1 seed, after 3 rounds, interrupted"


# -- each client's own weights

OFFSETS = {k: (x, y + 10 * i) for i, (k, (x, y)) in enumerate((k, FEDERATION[k]) for k in "abc")}
HELD_OUT = {k: (x[:n], y[:n]) for n, (k, (x, y)) in enumerate(OFFSETS.items(), 2)} | {"none": (np.zeros((0, 3)), [])}


@pytest.fixture(scope="module")
def personal():
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros(3), "b": jnp.float32(0)},
        lambda p, x: x @ p["w"] + p["b"],
        lambda outputs, y: (outputs - y) ** 2,
        {"mean_absolute_error": sf.metrics.mean_absolute_error},
    )
    options = {"batching": sf.Batching(size=4, epochs=3)}
    local = optax.sgd(0.05)
    return {
        "FedAvg": sf.learning.fed_avg(model, local, **options),
        "FedPer": sf.learning.local_layers(model, local, local="b", **options),
        "Ditto": sf.learning.ditto(model, local, mu=0.01, **options),
        "IFCA": sf.learning.ifca(model, local, clusters=3, **options),
    }


def test_personal_weights_are_compared_at_their_clients(personal):
    """The mean over clients by rows, computed here by hand; a client without rows does not enter it."""
    comparison = run(personal, OFFSETS, evaluate_clients=HELD_OUT, evaluate_every=3, seeds=1)
    for name, process in personal.items():
        history = comparison.histories[name][0]
        squares = errors = 0.0
        for k in OFFSETS:
            weights = process.get_client_weights(history.state, k)
            x, y = HELD_OUT[k]
            error = x @ np.asarray(weights["w"]) + float(weights["b"]) - y
            squares, errors = squares + (error**2).sum(), errors + np.abs(error).sum()
        assert history.evaluations == [
            {
                "round": 2,
                "loss": pytest.approx(squares / 9, rel=1e-4),
                "mean_absolute_error": pytest.approx(errors / 9, rel=1e-4),
                "num_examples": 9,
                "num_clients": 3,
            }
        ]
    by_name = {name: runs[0].evaluations[0]["loss"] for name, runs in comparison.histories.items()}
    assert max(by_name["FedPer"], by_name["Ditto"]) < 0.5 * by_name["FedAvg"]
    table = comparison.table({"mean_absolute_error": 1e6}).splitlines()
    assert " ".join(table[0].split()).endswith("loss mean_absolute_error rounds to mean_absolute_error ≤ 1e+06")
    assert [axes.get_ylabel() for axes in comparison.plot("loss").axes] == ["loss"]
    servers = run(personal | {"IFCA": personal["FedAvg"]}, OFFSETS, evaluate=sf.Federation.from_clients(HELD_OUT))
    assert (
        servers.histories["Ditto"][0].evaluations[-1]["loss"] == servers.histories["FedAvg"][0].evaluations[-1]["loss"]
    )


def test_the_second_of_a_pair_is_measured_by_client(personal):
    some = {name: personal[name] for name in ("FedAvg", "FedPer")}
    data = sf.Federation.from_clients(OFFSETS)
    comparison = run(some, lambda seed: data.split(0.6, seed=seed), evaluate_clients=True)
    for name, process in some.items():
        for seed, history in comparison.histories[name].items():
            train, test = data.split(0.6, seed=seed)
            alone = sf.train(process, train, rounds=3, seed=seed, evaluate_clients=test, progress=False)
            assert history.evaluations == alone.evaluations


def test_clients_that_ifca_has_not_seen_take_the_model_that_fits(personal):
    process = personal["IFCA"]
    state, _ = process.next(process.initialize(), OFFSETS, clients=["a"])
    reached = sf.learning.evaluate_clients(process, state, HELD_OUT)
    for k, (x, y) in HELD_OUT.items():
        models = process.get_model_weights(state)
        losses = [process.model.evaluate(w, x, y)["loss"] for w in models] if len(y) else [0.0]
        chosen = process.get_client_weights(state, k)
        expected = process.model.evaluate(chosen, x, y)["loss"] if k == "a" else min(losses)
        assert reached[k]["loss"] == pytest.approx(expected, rel=1e-5)
    assert reached["none"] == {"loss": 0.0, "mean_absolute_error": 0.0, "num_examples": 0}
    x, y = HELD_OUT["a"]
    np.testing.assert_allclose(process.model.predict(models[0], x), x @ np.asarray(models[0]["w"]) + models[0]["b"])


def test_what_cannot_be_evaluated_is_refused_before_the_first_run(personal):
    trained = []
    counted = {name: dataclasses.replace(p, runtime=Counting(p.runtime, trained)) for name, p in personal.items()}
    with pytest.raises(sf.CompositionError, match=r"3 models of ifca.*evaluate_clients=test.*SF-COMP-095"):
        run(counted, OFFSETS, evaluate=TEST)
    other = {"a": (np.zeros((4, 5), np.float32), np.zeros(4, np.float32))}
    with pytest.raises(sf.TypeMismatchError, match=r"evaluate_clients of x float32\[4, 5\].*SF-TRAIN-013"):
        run(counted, OFFSETS, evaluate_clients=other)
    with pytest.raises(sf.DataError, match=r"evaluate_clients as a tuple of arrays.*SF-TRAIN-041"):
        run(counted, OFFSETS, evaluate_clients=TEST)
    with pytest.raises(sf.DataError, match=r"evaluate_clients as a function.*SF-TRAIN-041"):
        run(counted, OFFSETS, evaluate_clients=lambda weights: {})
    assert trained == []


def test_evaluate_clients_takes_a_process():
    with pytest.raises(sf.CompositionError, match=r"evaluate_clients of a dict; needed: an sf.Process.*SF-COMP-088"):
        sf.learning.evaluate_clients({}, None, OFFSETS)


# -- table, figure, file


def history(evaluations, losses=(0.5,), examples=None):
    rounds = max(len(losses), 1 + max((number for number, _ in evaluations), default=0))
    state = sf.State(np.int32(rounds), np.zeros(2, np.uint32), (), (), None, np.zeros(4, np.uint32))
    counts = examples or [9] * len(losses)
    metrics = [
        {"client_work": {"train": {"loss": loss, "num_examples": rows}}}
        for loss, rows in zip(losses, counts, strict=True)
    ]
    return sf.History(state, metrics, [{"round": number, **values} for number, values in evaluations])


def test_the_table_has_mean_and_deviation_and_rounds_to_a_target():
    def accuracies(*values):
        return history([(2 * i + 1, {"loss": 1 - v, "accuracy": v}) for i, v in enumerate(values)], [3.0, 0.25])

    runs = {
        "FedAvg": {0: accuracies(0.5, 0.8, 0.9), 1: accuracies(0.9, 0.85, 0.95), 2: accuracies(0.1, 0.2, 0.3)},
        "never": {seed: accuracies(0.1, 0.2, 0.3) for seed in range(3)},
    }
    table = Comparison(runs, 6).table({"accuracy": 0.9, "loss": 0.1}).splitlines()
    assert table[0].split("  ")[0] == "algorithm"
    assert [" ".join(head.split()) for head in table[0].split("  ") if head.strip()][1:] == [
        "training loss",
        "loss",
        "accuracy",
        "rounds to accuracy ≥ 0.9",
        "rounds to loss ≤ 0.1",
    ]
    last = [0.9, 0.95, 0.3]
    assert f"{np.mean(last):.4f} ± {np.std(last, ddof=1):.4f}" in table[1]
    assert "0.2500 ± 0.0000" in table[1]
    assert "4.0 ± 2.8 (2 of 3 seeds)" in table[1]  # rounds 5 and 1, counted from 0
    assert table[2].count("0 of 3 seeds") == 2
    assert len({len(line) for line in table[:3]}) == 1
    assert table[3] == "mean ± sample standard deviation over 3 seeds, after 6 rounds"
    risen = Comparison(runs, 6).table(("loss", 0.5, "max"))
    assert "rounds to loss ≥ 0.5" in risen
    assert Comparison(runs, 6).table(target=("accuracy", 0.9)).splitlines()[1].endswith("4.0 ± 2.8 (2 of 3 seeds)")


def test_the_training_loss_has_targets_and_columns_can_be_chosen():
    runs = {"FedAvg": {0: history([(1, {"loss": 1.0, "accuracy": 0.5})], [3.0, 0.25])}}
    table = Comparison(runs, 2).table({"training loss": 0.5}, metrics=["accuracy", "training loss"]).splitlines()
    assert [head.strip() for head in table[0].split("  ") if head.strip()] == [
        "algorithm",
        "accuracy",
        "training loss",
        "rounds to training loss ≤ 0.5",
    ]
    assert table[1].split() == ["FedAvg", "0.5000", "0.2500", "2.0"]
    assert Comparison(runs, 2).table(metrics="accuracy").splitlines()[1].split() == ["FedAvg", "0.5000"]
    assert Comparison(runs, 2).table({"accuracy": 0.5}, metrics=[]).splitlines()[1].split() == ["FedAvg", "2.0"]


def test_numbers_within_dicts_have_a_column_only_by_name():
    nested = {"auc": 0.75, "per_client": {"a": {"auc": 0.5}}, "words": "many", "histogram": [1, 2]}
    comparison = Comparison({"FedAvg": {0: history([(0, nested)])}}, 1)
    assert comparison.table().splitlines()[0].split() == ["algorithm", "training", "loss", "auc"]
    assert len(comparison.plot().axes) == 2
    assert comparison.table(metrics=["per_client/a/auc"]).splitlines()[1].split() == ["FedAvg", "0.5000"]


def test_a_folder_that_went_further_is_described_as_it_is(processes, tmp_path):
    some = {"FedAvg": processes["FedAvg"]}
    run(some, rounds=4, checkpoint=tmp_path / "runs")
    shorter = run(some, rounds=2, checkpoint=tmp_path / "runs")
    assert repr(shorter) == "Comparison(1 algorithm, 2 seeds, 4 rounds)"
    assert str(shorter).endswith("over 2 seeds, after 4 rounds")


def test_one_seed_shows_no_deviation():
    comparison = Comparison({"FedAvg": {7: history([(0, {"accuracy": 0.9})])}}, 1)
    table = comparison.table({"accuracy": 0.5})
    assert "±" not in table
    assert table.splitlines()[1].split() == ["FedAvg", "0.5000", "0.9000", "1.0"]
    assert table.splitlines()[-1] == "1 seed, after 1 round"


def test_numbers_of_every_size_and_none_at_all():
    numbers = {"big": 123456.7, "huge": 1.5e9, "small": 0.00012346, "zero": 0.0, "nan": float("nan")}
    row = Comparison({"a": {0: history([(0, numbers)])}}, 1).table().splitlines()[1].split()
    assert row == ["a", "0.5000", "123457", "1.500e+09", "0.0001235", "0.0000", "nan"]
    diverged = Comparison({"a": {s: history([(0, {"v": v})]) for s, v in enumerate([1.0, float("inf")])}}, 1)
    assert diverged.table().splitlines()[1].split() == ["a", "0.5000", "±", "0.0000", "inf"]
    assert Comparison({"a": {0: history([], [])}}, 0).table().splitlines()[1].split() == ["a", "–"]


def test_the_last_round_that_had_an_example_gives_the_training_loss():
    comparison = Comparison({"a": {0: history([], [2.0, 1.0, 0.0], [5, 5, 0])}}, 3)
    assert comparison.table().splitlines()[1].split() == ["a", "1.000"]


def test_the_figure_shows_mean_and_band(tmp_path):
    def course(offset):
        return history([(n, {"accuracy": offset + n / 10}) for n in range(4)], [1.0 + offset] * 4)

    comparison = Comparison({"FedAvg": {0: course(0.0), 1: course(0.2)}, "FedProx": {0: course(0.5)}}, 4)
    figure = comparison.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["training loss", "accuracy"]
    accuracy = comparison.plot("accuracy").axes
    assert len(accuracy) == 1
    line, single = accuracy[0].lines
    np.testing.assert_allclose(line.get_xydata(), [(n, 0.1 + n / 10) for n in range(4)])
    edges = accuracy[0].collections[0].get_paths()[0].vertices[:, 1]
    assert edges.min() == pytest.approx(0.1 - np.std([0, 0.2], ddof=1))
    assert edges.max() == pytest.approx(0.4 + np.std([0, 0.2], ddof=1))
    np.testing.assert_allclose(single.get_ydata(), [0.5 + n / 10 for n in range(4)])
    legend = comparison.plot("accuracy").legends[0]
    assert [text.get_text() for text in legend.get_texts()] == ["FedAvg", "FedProx"]
    figure.savefig(tmp_path / "comparison.png")
    assert matplotlib.image.imread(tmp_path / "comparison.png").std() > 0.01
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_frame_and_file_have_every_run(processes, tmp_path):
    comparison = run(processes, evaluate=TEST, evaluate_every=2)
    frame = comparison.to_frame()
    assert frame.index.names == ["algorithm", "seed", "round"]
    assert len(frame) == 12
    one = comparison.histories["SCAFFOLD"][1]
    assert frame.loc[("SCAFFOLD", 1, 2), "evaluation/loss"] == one.evaluations[-1]["loss"]
    comparison.histories["FedAvg"][0].evaluations[0]["loss"] = float("nan")
    comparison.save(tmp_path / "comparison.json")
    saved = json.loads((tmp_path / "comparison.json").read_text())
    assert saved["algorithms"]["SCAFFOLD"]["1"] == {"metrics": one.metrics, "evaluations": one.evaluations}
    assert saved["not_finite"] == [[["algorithms", "FedAvg", "0", "evaluations", 0, "loss"], "nan"]]


def test_notebooks_show_the_table():
    shown = Comparison({"<b>": {0: history([(0, {"accuracy": 0.9})])}}, 1)._repr_html_()
    assert "<td>&lt;b&gt;</td><td>0.5000</td><td>0.9000</td>" in shown
    assert "Comparison(1 algorithm, 1 seed, 1 round)" in shown


def test_progress_counts_over_all_runs(processes, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINES", 100)
    run(processes, rounds=2, progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition("  loss")[0] for line in lines] == [
        f"round {number}/8  {name}, seed {seed}"
        for number, (seed, name) in enumerate(
            [(s, n) for s in (0, 1) for n in ("FedAvg", "SCAFFOLD") for _ in range(2)], 1
        )
    ]


# -- what is refused


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (lambda p: {"processes": {}}, "SF-COMP-102", "no process; needed: a dict name -> process"),
        (lambda p: {"processes": [p["FedAvg"]]}, "SF-COMP-102", "processes as a list"),
        (lambda p: {"processes": {**p, " ": p["FedAvg"]}}, "SF-COMP-102", "the name ' '"),
        (lambda p: {"processes": {0: p["FedAvg"]}}, "SF-COMP-102", "the name 0"),
        (lambda p: {"processes": {**p, "other": optax.sgd}}, "SF-COMP-102", "'other' is a function"),
        (lambda p: {"seeds": 0}, "SF-COMP-103", "seeds=0; needed: how many, at least 1"),
        (lambda p: {"seeds": []}, "SF-COMP-103", r"seeds=\[\]"),
        (lambda p: {"seeds": [1, 1]}, "SF-COMP-103", r"seeds=\[1, 1\]"),
        (lambda p: {"seeds": "12"}, "SF-COMP-103", "seeds='12'"),
        (lambda p: {"seeds": True}, "SF-COMP-103", "seeds=True"),
        (lambda p: {"seeds": [0.5]}, "SF-COMP-033", "seed=0.5"),
        (lambda p: {"rounds": -1}, "SF-TRAIN-012", "rounds=-1"),
        (
            lambda p: {"train": lambda seed: (FEDERATION, FEDERATION), "evaluate": TEST},
            "SF-COMP-104",
            "evaluate, and train",
        ),
        (
            lambda p: {"train": lambda seed: (FEDERATION, FEDERATION), "evaluate_clients": FEDERATION},
            "SF-COMP-104",
            "evaluate_clients, and train",
        ),
        (lambda p: {"evaluate_clients": True}, "SF-COMP-089", "evaluate_clients=True, and train that is no function"),
        (lambda p: {"evaluate_clients": FEDERATION, "evaluate": TEST}, "SF-TRAIN-040", "one of the two"),
    ],
)
def test_bad_arguments_are_refused(processes, change, code, words):
    with pytest.raises(sf.CompositionError, match=words) as caught:
        run(**{"processes": processes, **change(processes)})
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("ask", "code", "words"),
    [
        (lambda c: c.table({"auc": 0.9}), "SF-COMP-106", r"'auc', and the metrics \['training loss', 'accuracy'\]"),
        (lambda c: c.table(metrics=["accuracy", "auc"]), "SF-COMP-106", "a column for 'auc'"),
        (lambda c: c.table(metrics=0.5), "SF-COMP-087", "metrics=0.5; needed: a list of names"),
        (lambda c: c.table(metrics=[1]), "SF-COMP-087", r"metrics=\[1\]"),
        (lambda c: c.table("accuracy"), "SF-COMP-105", "target='accuracy'"),
        (lambda c: c.table({"accuracy": "high"}), "SF-COMP-105", "'high'"),
        (lambda c: c.table(("accuracy", 0.9, "up")), "SF-COMP-105", "'up'"),
        (lambda c: c.plot("auc"), "SF-COMP-106", r"plot\('auc'\)"),
    ],
)
def test_metrics_that_are_not_there_are_refused(ask, code, words):
    comparison = Comparison({"a": {0: history([(0, {"accuracy": 0.9})])}}, 1)
    with pytest.raises(sf.CompositionError, match=words) as caught:
        ask(comparison)
    assert caught.value.code == code
