"""History: frames, plots, files and what is printed."""

import builtins
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sumfold as sf
from sumfold.learning.history import History, decoded, encoded, entries, flat, headline, plain, scalars


def state(number: int) -> sf.State:
    return sf.State(np.int32(number), np.zeros(2, np.uint32), (), (), sf.ClientStore(), np.zeros(4, np.uint32))


def metrics(loss: float) -> dict[str, Any]:
    counted = {"loss": loss, "accuracy": 1 - loss, "num_examples": 9}
    return {"distributor": {}, "client_work": {"train": counted}, "aggregator": {}, "finalizer": {"x": 0}}


@pytest.fixture
def history() -> History:
    measured = [{"round": 1, "loss": 0.6, "auc": 0.7, "num_examples": 5}, {"round": 3, "loss": math.nan, "auc": 0.8}]
    return History(state(4), [metrics(0.5 / (i + 1)) for i in range(4)], measured)


def test_a_frame_has_a_row_a_round(history: History) -> None:
    frame = history.to_frame()
    assert list(frame.index) == [0, 1, 2, 3]
    assert frame.index.name == "round"
    assert frame["client_work/train/loss"].tolist() == [0.5, 0.25, 0.5 / 3, 0.125]
    assert frame["evaluation/auc"].isna().tolist() == [True, False, True, False]
    assert "evaluation/round" not in frame


def test_a_frame_of_a_later_start_has_its_own_rounds() -> None:
    later = History(state(12), [metrics(0.5), metrics(0.4)], [{"round": 11, "loss": 0.3}])
    assert later.first == 10
    assert list(later.to_frame().index) == [10, 11]
    assert later.to_frame()["evaluation/loss"].tolist()[1] == 0.3
    assert [entry["round"] for entry in entries(later, 1)] == [11]
    assert len(History(state(0), [], []).to_frame()) == 0


def test_the_plot_shows_loss_and_metrics_with_evaluations(history: History) -> None:
    figure = history.plot()
    titles = [axes.get_ylabel() for axes in figure.axes]
    assert titles == ["loss", "accuracy", "auc"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"round"}
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    assert list(lines["training, at clients"]) == [0, 1, 2, 3]
    assert list(lines["evaluation"]) == [1, 3]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_the_plot_needs_no_window(history: History, tmp_path: Path) -> None:
    history.plot().savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    assert len(History(state(0), [], []).plot().axes) == 1


@pytest.mark.parametrize(
    ("method", "package", "extra"), [("to_frame", "pandas", "all"), ("plot", "matplotlib", "plot")]
)
def test_a_missing_package_names_its_extra(
    history: History, monkeypatch: pytest.MonkeyPatch, method: str, package: str, extra: str
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".", maxsplit=1)[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(sf.MissingExtraError, match=rf"sumfold\[{extra}\]"):
        getattr(history, method)()


def test_the_file_is_json_for_every_reader(history: History, tmp_path: Path) -> None:
    history.save(tmp_path / "run.json")
    read = json.loads((tmp_path / "run.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert read["metrics"] == history.metrics
    assert read["evaluations"][1] == {"round": 3, "loss": None, "auc": 0.8}
    assert (read["rounds"], read["first"], read["stopped"]) == (4, 0, None)
    with pytest.raises(sf.CheckpointError, match="could not be written"):
        history.save(tmp_path / "no" / "run.json")


def test_what_is_printed_is_short(history: History) -> None:
    assert repr(history) == "History(4 rounds, loss 0.125, accuracy 0.875, 2 evaluations)"
    assert repr(History(state(1), [metrics(0.5)], [], "interrupted")).endswith("interrupted)")
    assert repr(History(state(0), [], [], "callback")) == "History(0 rounds, stopped by a callback)"


def test_a_notebook_shows_a_table(history: History) -> None:
    shown = history._repr_html_()
    assert shown.count("<tr>") == 5
    assert "evaluation: auc" in shown
    long = History(state(1000), [metrics(0.5)] * 1000, [])._repr_html_()
    assert long.count("<tr>") == 21
    assert "<td>999</td>" in long
    assert "0 rounds" in History(state(0), [], [])._repr_html_()


def test_names_are_paths() -> None:
    assert flat({"a": {"b": 1, "c": {}}, "d": 2}) == {"a/b": 1, "d": 2}
    assert list(headline(metrics(0.5))) == ["loss", "accuracy"]
    assert headline({}) == {}
    assert scalars({"auc": 0.5, "loss": 0.1, "curve": [1], "group/num_x": 3}) == {"loss": 0.1, "auc": 0.5}


def test_a_line_says_which_numbers_json_has_not() -> None:
    entry = {"round": 0, "metrics": {"a": [1.0, [-math.inf]], "b": None}, "evaluation": {"loss": math.nan}}
    line = json.loads(json.dumps(encoded(entry), allow_nan=False))
    assert line["metrics"] == {"a": [1.0, [None]], "b": None}
    assert repr(decoded(line)) == repr(entry)
    finite = {"round": 0, "metrics": {"a": 1}, "evaluation": None}
    assert encoded(finite) == decoded(dict(finite)) == finite


def test_only_numbers_and_words_become_json() -> None:
    given = {"a": np.float32(0.5), "b": np.arange(2), "c": (True, None, "x"), "d": np.bool_(True)}
    assert plain(given) == {"a": 0.5, "b": [0, 1], "c": [True, None, "x"], "d": True}
    with pytest.raises(TypeError, match="a object"):
        plain({"a": object()})
