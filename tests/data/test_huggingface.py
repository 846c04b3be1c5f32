"""Hugging Face datasets as federations; where the package is not installed, a stand-in over Arrow takes its place."""

import importlib.util

import numpy as np
import pytest

from sumfold.data import Federation
from sumfold.errors import CATALOG, DataError

pa = pytest.importorskip("pyarrow")


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


class Stand:
    """What `from_datasets` uses of a ``datasets.Dataset``."""

    def __init__(self, table):
        self.table = table

    @property
    def column_names(self):
        return self.table.column_names

    def __len__(self):
        return self.table.num_rows

    def select_columns(self, names):
        return Stand(self.table.select(names))

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def __getitem__(self, key):
        assert key == slice(None)
        return self.table


def real(table):
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset(datasets.table.InMemoryTable(table))


@pytest.fixture(params=["stand-in", "datasets"])
def made(request):
    """From an Arrow table to a dataset."""
    return Stand if request.param == "stand-in" else real


COLUMNS = {
    "site": pa.array(["b", "a", "b"]),
    "age": pa.array([51, 64, 70], pa.int32()),
    "bmi": pa.array([20.5, None, 31.0], pa.float32()),
    "pixels": pa.array([[[1, 2], [3, 4]], [[5, 6], [7, 8]], [[9, 10], [11, 12]]], pa.list_(pa.list_(pa.uint8()))),
    "vector": pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pa.list_(pa.float64(), 2)),
    "ragged": pa.array([[1], [2, 3], [4]]),
    "holes": pa.array([[1], None, [4]]),
    "name": pa.array(["x", "y", "z"]),
    "ill": pa.array([0, 1, 1], pa.int8()),
}


def test_number_columns_are_stacked_and_missing_ones_nan(made):
    data = made(pa.table(COLUMNS))
    fed = Federation.from_datasets(data, client="site", label="ill", features=["bmi", "age"])
    assert fed.ids == ("a", "b")
    assert fed.examples[1].dtype == np.int8
    np.testing.assert_array_equal(fed["b"][0], [[20.5, 51], [31, 70]])
    np.testing.assert_array_equal(fed["a"][0], [[np.nan, 64]])


def test_a_column_of_lists_keeps_its_shape_and_dtype(made):
    data = made(pa.table(COLUMNS))
    fed = Federation.from_datasets(data, client="site", label="ill", features="pixels")
    assert repr(fed) == "Federation(2 clients, 3 examples, x uint8[2,2], y int8)"
    np.testing.assert_array_equal(fed["a"][0], [[[5, 6], [7, 8]]])
    fed = Federation.from_datasets(data, client="age", label="vector", features="pixels")
    assert fed[64][1].tolist() == [[3.0, 4.0]]


def test_no_features_means_all_others(made):
    table = pa.table({name: COLUMNS[name] for name in ("age", "site", "bmi", "ill")})
    fed = Federation.from_datasets(made(table), client="site", label="ill")
    assert fed["a"][0].shape == (1, 2)
    none = Federation.from_datasets(made(table.slice(0, 0)), client="site", label="ill")
    assert len(none) == 0
    chunks = pa.concat_tables([table.slice(0, 1), table.slice(1)])
    assert Federation.from_datasets(made(chunks), client="site", label="ill").fingerprint() == fed.fingerprint()


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")
def test_rows_that_were_selected_and_classes_that_have_names():
    import datasets

    data = datasets.Dataset.from_dict({"site": [1, 0, 1, 0], "x": [1.0, 2.0, 3.0, 4.0], "y": [0, 1, 0, 1]})
    data = data.cast_column("y", datasets.ClassLabel(names=["no", "yes"])).select([3, 1, 2])
    fed = Federation.from_datasets(data, client="site", label="y")
    assert fed[0][0].tolist() == [[4.0], [2.0]]
    assert fed[1][1].tolist() == [0]
    array = datasets.Features(
        {"site": datasets.Value("int64"), "x": datasets.Array2D((2, 2), "float32"), "y": datasets.Value("int64")}
    )
    data = datasets.Dataset.from_dict({"site": [0], "x": [np.ones((2, 2))], "y": [0]}, features=array)
    assert Federation.from_datasets(data, client="site", label="y").examples[0].shape == (1, 2, 2)
    both = datasets.DatasetDict({"train": data, "test": data})
    with refused("SF-DATA-095", "DatasetDict", "'train', 'test'", r"dataset\['train'\]"):
        Federation.from_datasets(both, client="site", label="y")
    with refused("SF-DATA-095", "a stream", "IterableDataset", "streaming=True"):
        Federation.from_datasets(data.to_iterable_dataset(), client="site", label="y")


def test_what_is_no_single_split(made):
    one = made(pa.table(COLUMNS))
    with refused("SF-DATA-095", "splits", "'test'", r"dataset\['test'\]"):
        Federation.from_datasets({"test": one}, client="site", label="ill")
    with refused("SF-DATA-095", "a list", "from_frame"):
        Federation.from_datasets([one], client="site", label="ill")

    class Stream:
        column_names = ["site"]  # noqa: RUF012

    with refused("SF-DATA-095", "a stream", "streaming=True"):
        Federation.from_datasets(Stream(), client="site", label="ill")


def test_columns_that_are_not_there(made):
    with refused("SF-DATA-096", "'hospital'", "'site'"):
        Federation.from_datasets(made(pa.table(COLUMNS)), client="hospital", label="ill")
    with refused("SF-DATA-096", "no feature column"):
        Federation.from_datasets(made(pa.table({"s": [1], "y": [0]})), client="s", label="y")


@pytest.mark.parametrize(
    ("features", "words"),
    [
        ("ragged", "lists of 1 to 2 entries"),
        ("holes", "1 of 3 lists missing"),
        ("name", "string"),
        (["pixels", "age"], "lists, beside 1 other"),
    ],
    ids=["ragged", "holes", "words", "mixed"],
)
def test_columns_that_are_no_numbers(made, features, words):
    with refused("SF-DATA-097", repr(features[0] if isinstance(features, list) else features), words):
        Federation.from_datasets(made(pa.table(COLUMNS)), client="site", label="ill", features=features)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (pa.array([0, None, 1]), ["row 1 of the dataset;"]),
        (pa.array([None, 1.0, float("nan")]), ["row 0 of the dataset"]),
        (pa.array([1.0, float("nan"), float("nan")]), ["row 1 of the dataset, nor in 1 more"]),
        (pa.array([[1.0], None, [2.0]]), ["row 1"]),
        (pa.array([[1.0], [2.0], [float("nan")]]), ["row 2"]),
        (pa.array([True, None, False]), ["row 1"]),
    ],
    ids=["none", "none and nan", "nan", "lists", "nan in lists", "truth"],
)
def test_rows_without_a_label(made, labels, words):
    table = pa.table({"site": ["a", "b", "a"], "x": [1.0, 2.0, 3.0], "y": labels})
    with refused("SF-DATA-111", "no label 'y'", *words):
        Federation.from_datasets(made(table), client="site", label="y")


def test_clients_without_a_name(made):
    table = pa.table({"site": ["a", None], "x": [1.0, 2.0], "y": [0, 1]})
    with refused("SF-DATA-020", "str or int"):
        Federation.from_datasets(made(table), client="site", label="y")
