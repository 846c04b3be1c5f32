"""The picture of labels: every row is drawn once, few and many clients are readable, and no labels are refused."""

import itertools
import sys

import numpy as np
import pytest

import sumfold as sf
from sumfold.data import Federation, plot_labels
from sumfold.errors import CATALOG, DataError, MissingExtraError

pytest.importorskip("matplotlib")


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def bars(axes):
    """What is drawn: label -> the widths of its bars, client by client."""
    return {bar.get_label(): [float(patch.get_width()) for patch in bar] for bar in axes.containers}


def names(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def dealt(clients, classes=10, rows=4000):
    y = np.random.default_rng(0).integers(0, classes, rows)
    return sf.data.partition.dirichlet(np.zeros((rows, 1), np.float32), y, clients=clients, alpha=0.2)


def test_a_bar_is_as_long_as_the_client_has_rows_of_the_label():
    y = np.array([2, 0, 2, 0, 0, 5])
    fed = Federation.from_arrays(np.zeros(6), y, client_ids=["b", "a", "b", "b", "a", "b"])
    figure = plot_labels(fed)
    (axes,) = figure.axes
    assert bars(axes) == {"0": [2, 1], "2": [0, 2], "5": [0, 1]}
    assert [patch.get_x() for patch in axes.containers[2]] == [2, 3]
    assert names(axes) == ["a", "b"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "2", "5"]
    share = bars(plot_labels(fed, share=True).axes[0])
    assert share == {"0": [1, 0.25], "2": [0, 0.5], "5": [0, 0.25]}


def test_a_subset_a_split_and_a_file_draw_their_own_rows(tmp_path):
    fed = dealt(6)
    part = fed.subset([4, 1])
    assert [sum(of) for of in zip(*bars(plot_labels(part).axes[0]).values(), strict=True)] == [*part.sizes.values()]
    train, _ = fed.split(0.7)
    train.save(tmp_path / "f.sqlite")
    drawn = [bars(plot_labels(data).axes[0]) for data in (train, Federation.from_sqlite(tmp_path / "f.sqlite"))]
    assert drawn[0] == drawn[1]


def test_a_hundred_clients_are_named_sparsely_and_fit_on_a_page():
    figure = plot_labels(dealt(100))
    (axes,) = figure.axes
    assert all(len(of) == 100 for of in bars(axes).values())
    assert names(axes) == [str(k) for k in range(0, 100, 4)]
    assert figure.get_figheight() <= 8
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in axes.get_yticklabels()]
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(boxes))


def test_of_thousands_some_are_shown_from_the_largest_to_the_smallest():
    fed = sf.data.partition.power_law(np.zeros((9000, 1)), np.arange(9000) % 3, clients=3000)
    (axes,) = plot_labels(fed).axes
    assert "100 of 3000 clients" in axes.get_title()
    sizes = [sum(of) for of in zip(*bars(axes).values(), strict=True)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == fed.sizes[0]


def test_many_classes_get_a_scale_instead_of_a_list():
    axes, scale = plot_labels(dealt(5, classes=62)).axes
    assert axes.get_legend() is None
    assert scale.get_ylabel() == "label"
    assert len(plot_labels(dealt(5, classes=15)).axes[0].get_legend().get_texts()) == 15


def test_notebooks_show_it_and_long_names_are_cut():
    figure = plot_labels(Federation.from_clients({"a very long name of a hospital": ([[1.0]], [0]), "empty": ([], [])}))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert names(figure.axes[0]) == ["a very long name of a h…", "empty"]


def test_what_has_no_labels_to_draw():
    with refused("SF-DATA-018", "without one label"):
        plot_labels(Federation.from_clients([[1.0]]))
    with refused("SF-DATA-108", "without rows"):
        plot_labels(Federation.from_clients({"a": (np.zeros((0, 1)), np.zeros(0))}))
    with refused("SF-DATA-108", "3 different labels from 0.1 to 2.5", "digitize"):
        plot_labels(Federation.from_clients([([1.0, 2.0, 3.0], [0.1, 0.2, 2.5])]))
    with refused("SF-DATA-108", "1500 different"):
        plot_labels(Federation.from_clients([(np.zeros(1500), np.arange(1500))]))
    with refused("SF-DATA-108", "a list", "from_clients"):
        plot_labels([([1.0], [0])])


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[plot\]"):
        plot_labels(Federation.from_clients([([1.0], [0])]))
