"""``sumfold demo``: the experiment's numbers, the table, the words, the files."""

import dataclasses
import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from sumfold.cli import curve as pictures
from sumfold.cli import demo, hospitals
from sumfold.cli.hospitals import MEASURES, MODELS


def text(renderable) -> str:
    console = Console(width=80, file=io.StringIO())
    console.print(renderable)
    return console.file.getvalue()


def changed(experiment, measure, model, value) -> hospitals.Experiment:
    """The experiment as if this model had reached `value` everywhere."""
    scores = {name: np.array(values) for name, values in experiment.scores.items()}
    scores[measure][:, MODELS.index(model)] = value
    return dataclasses.replace(experiment, scores=scores)


def first_split(experiment) -> hospitals.Experiment:
    scores, curve = (
        {name: values[:1] for name, values in part.items()} for part in (experiment.scores, experiment.curve)
    )
    return dataclasses.replace(experiment, scores=scores, curve=curve)


def test_shapes_and_sizes(experiment) -> None:
    assert set(experiment.scores) == set(MEASURES) == set(experiment.curve)
    assert all(values.shape == (2, 4, 4) for values in experiment.scores.values())
    assert all(values.shape == (2, 4, 4) for values in experiment.curve.values())  # rounds 0 … 3
    assert [hospital.train + hospital.test for hospital in experiment.hospitals] == [303, 294, 123, 200]
    assert [hospital.unmeasured for hospital in experiment.hospitals] == [(), (), ("cholesterol",), ()]
    assert [round(hospital.ill, 2) for hospital in experiment.hospitals] == [0.46, 0.36, 0.93, 0.74]


def test_the_curve_begins_untrained_and_ends_at_the_federated_score(experiment) -> None:
    assert np.allclose(experiment.curve["loss"][:, 0], np.log(2))
    assert np.all(experiment.curve["auc"][:, 0] == 0.5)
    for measure in MEASURES:
        assert np.array_equal(experiment.curve[measure][:, -1], experiment.of(measure, "federated"))


def test_scaling_is_that_of_all_training_patients() -> None:
    import sumfold as sf

    train, test = hospitals._prepared(sf.analytics.moments(10), seed=0)
    ready, ready_test = sf.data.heart_disease(seed=0)
    for hospital in train.ids:
        assert np.allclose(train[hospital][0], ready[hospital][0], atol=1e-4)
        assert np.allclose(test[hospital][0], ready_test[hospital][0], atol=1e-4)


@pytest.mark.slow
def test_five_seeds_reach_what_an_independent_calculation_gives() -> None:
    experiment = hospitals.run(seeds=5)
    auc = {model: experiment.of("auc", model).mean() for model in MODELS}
    accuracy = {model: experiment.of("accuracy", model).mean() for model in MODELS}
    assert auc["federated"] >= 0.815
    assert auc["federated"] >= auc["pooled"] - 0.01
    # scikit-learn's logistic regression over 15 other splits
    assert auc == pytest.approx({"own": 0.805, "others": 0.793, "federated": 0.827, "pooled": 0.828}, abs=0.03)
    assert accuracy == pytest.approx({"own": 0.819, "others": 0.717, "federated": 0.788, "pooled": 0.795}, abs=0.02)


def test_own_and_pooled_agree_with_scikit_learn() -> None:
    """Trained to the end, the pooled model is regularised logistic regression."""
    linear, scores = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.metrics")
    import sumfold as sf

    experiment = hospitals.run(seeds=1, rounds=40)
    train, test = hospitals._prepared(sf.analytics.moments(10), seed=0)
    x, y = train.pooled()
    judge = linear.LogisticRegression(C=1 / (0.01 * len(x)), max_iter=1000).fit(x, y)
    expected = [scores.roc_auc_score(test[h][1], judge.decision_function(test[h][0])) for h in test.ids]
    assert experiment.of("auc", "pooled")[0] == pytest.approx(expected, abs=0.02)
    assert experiment.of("auc", "federated")[0] == pytest.approx(expected, abs=0.03)


def test_table_fits_a_terminal_and_marks_the_best(experiment) -> None:
    shown = text(demo.table(experiment))
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("AUC", "accuracy", "VA Long Beach", "212/91", "federated", "±."):
        assert word in shown
    assert "±" not in text(demo.table(first_split(experiment)))


def test_words_say_what_the_numbers_say(experiment) -> None:
    better = changed(changed(experiment, "auc", "own", 0.6), "auc", "federated", 0.8)
    assert "AUC 0.800 instead of 0.600" in demo.words(better)[0]
    assert "better in 2 of 2 splits" in demo.words(better)[0]
    worse = changed(better, "auc", "own", 0.9)
    assert "bought nothing" in demo.words(worse)[0]
    assert "nothing was lost" in demo.words(changed(better, "auc", "pooled", 0.805))[1]
    assert "not yet as good" in demo.words(changed(better, "auc", "pooled", 0.9))[1]


def test_words_on_accuracy_follow_the_numbers(experiment) -> None:
    said = " ".join(demo.words(experiment))
    assert "in Switzerland the own model has the better accuracy" in said
    assert "93% of its patients are ill" in said
    assert "lack cholesterol" in said
    assert "2 of its 37 test patients are healthy, and it moves by ±" in said
    assert "moves by" not in " ".join(demo.words(first_split(experiment)))
    perfect = changed(experiment, "accuracy", "federated", 1.0)
    assert "own model has the better accuracy" not in " ".join(demo.words(perfect))


def test_curve_shows_every_model(experiment) -> None:
    figure = pictures.draw(experiment)
    assert [axes.get_title(loc="left").split(" (")[0] for axes in figure.axes] == ["log loss", "AUC", "accuracy"]
    assert [entry.get_text() for entry in figure.legends[0].get_texts()] == [
        "federated",
        "the hospital's own model",
        "the other hospitals' models",
        "pooled: all patients in one place",
    ]


def test_files_hold_all_numbers(experiment, tmp_path) -> None:
    files = demo._write(experiment, tmp_path)
    assert files == [str(tmp_path / "curve.png"), str(tmp_path / "history.json")]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    history = json.loads((tmp_path / "history.json").read_text())
    assert len(history["scores"]) == 2 * 4 * 4
    assert len(history["curve"]) == 2 * 4
    assert set(history["curve"][0]["auc"]) == {"Cleveland", "Hungary", "Switzerland", "VA Long Beach"}
    mean = history["summary"]["auc"]["federated"]["mean"]
    assert mean["mean"] == pytest.approx(experiment.of("auc", "federated").mean())


def test_without_matplotlib_the_numbers_are_still_written(experiment, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert demo._write(experiment, tmp_path) == [str(tmp_path / "history.json")]
    assert "pip install 'sumfold[plot]'" in capsys.readouterr().err


def test_json_is_alone_on_stdout(sumfold, experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hospitals, "run", lambda *_, **__: experiment)
    result = sumfold("demo", "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    assert found["seeds"] == 2
    assert found["files"] == [str(tmp_path / "out" / name) for name in ("curve.png", "history.json")]
    assert "Switzerland" in result.stderr


def test_printed_for_people(sumfold, experiment, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(hospitals, "run", lambda *_, **__: experiment)
    result = sumfold("demo", "--out", tmp_path)
    assert result.exit_code == 0
    assert "no patient left a hospital" in " ".join(result.stdout.split())
    assert str(tmp_path / "curve.png") in result.stdout.replace("\n", "")


@pytest.mark.parametrize("words", [("--seeds", "0"), ("--rounds", "none"), ("--unknown",), ("extra",)])
def test_wrong_use(sumfold, words) -> None:
    assert sumfold("demo", *words).exit_code == 2


def test_a_folder_that_cannot_be_made(sumfold, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    result = sumfold("demo", "--out", tmp_path / "file")
    assert result.exit_code == 2
    assert "SF-CLI-001" in result.stderr
    assert result.stdout == ""


def test_interrupted(sumfold, tmp_path, monkeypatch) -> None:
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(hospitals, "run", interrupt)
    result = sumfold("demo", "--out", tmp_path, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["error"]["type"] == "KeyboardInterrupt"
