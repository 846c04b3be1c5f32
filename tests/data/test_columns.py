"""Columns of tables: rows without a label, names that are wrong or missing, Arrow tables."""

import sys

import numpy as np
import pytest

from sumfold.data import Federation
from sumfold.errors import CATALOG, DataError


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


@pytest.fixture(params=["pandas", "alone"])
def reader(request, monkeypatch):
    """Both ways to read CSV: with pandas, and as if it were not installed."""
    if request.param == "alone":
        monkeypatch.setitem(sys.modules, "pandas", None)
    else:
        pytest.importorskip("pandas")
    return request.param


def folder(path, **files):
    for name, text in files.items():
        (path / f"{name}.csv").write_text(text, encoding="utf-8")
    return path


# ------------------------------------------------------------------------------- rows without a label


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("p,y\n1,0\n2,\n3,\n", r"in row 1 of the file 'b\.csv', nor in 1 more; needed: a label in every row"),
        ("p,y\n1,NaN\n", r"in row 0 of the file 'b\.csv'; needed"),
        ("p,y\n1,True\n2,\n", "in row 1"),
        ("p,y\n1,high\n2,\n", "in row 1"),
    ],
    ids=["numbers", "nan", "truth", "words"],
)
def test_a_label_that_is_missing_in_a_folder_names_file_and_row(tmp_path, reader, text, words):
    with refused("SF-DATA-111", "no label 'y'", words):
        Federation.from_folder(folder(tmp_path, a="p,y\n1,0\n", b=text), label="y")


def test_a_label_that_is_missing_in_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"p": [1, 2], "y": pa.array([1, None])}), tmp_path / "a.parquet")
    with refused("SF-DATA-111", r"row 1 of the file 'a\.parquet'"):
        Federation.from_folder(tmp_path, label="y")


def test_lines_of_another_length_name_file_and_line(tmp_path, reader):
    for text, words in (
        ("p,q,y\n1,2,0\n\n1,2\n", "2 fields in line 4, 3 columns"),
        ("p,q,y\n1\n", "1 fields in line 2"),
        ("p,q,y\n1,2,0,\n", "4 fields in line 2, 3 columns"),
        ('p,q,y\n"1\n",2,0\n3,4\n', "2 fields in line 4"),
    ):
        with refused("SF-DATA-086", r"'b\.csv'", words):
            Federation.from_folder(folder(tmp_path, a="p,q,y\n1,2,0\n", b=text), label="y")
    blank = folder(tmp_path, b="p,q,y\n1,2,0\n\n  \n3,4,1\n")
    assert Federation.from_folder(blank, label="y").sizes == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "labels",
    [[0.0, np.nan, 1.0], [0, None, 1], ["Int64", 0, None, 1], ["boolean", True, None, False]],
    ids=["nan", "none", "nullable", "truth"],
)
def test_a_label_that_is_missing_in_a_data_frame_names_the_row(labels):
    pd = pytest.importorskip("pandas")
    kind, values = (labels[0], labels[1:]) if isinstance(labels[0], str) else (None, labels)
    df = pd.DataFrame({"site": ["a", "b", "a"], "p": [1, 2, 3], "y": pd.array(values, dtype=kind)}, index=[7, 8, 9])
    with refused("SF-DATA-111", "no label 'y' in row 1 of the data frame; needed", "the first row of data is row 0"):
        Federation.from_frame(df, client="site", label="y")


# ------------------------------------------------------------------------------------------- the names


def sources(path):
    """The three readers of tables with columns (site), p, q and y, as functions of label and features."""
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    datasets = pytest.importorskip("datasets")
    columns = {"site": ["a", "b"], "p": [1, 2], "q": [3, 4], "y": [0, 1]}
    data = datasets.Dataset(datasets.table.InMemoryTable(pa.table(columns)))
    files = folder(path, a="p,q,y\n1,2,0\n")
    return [
        lambda **named: Federation.from_frame(pd.DataFrame(columns), client="site", **named),
        lambda **named: Federation.from_datasets(data, client="site", **named),
        lambda **named: Federation.from_folder(files, **named),
    ]


def test_the_label_among_the_features_and_a_feature_twice(tmp_path):
    for read in sources(tmp_path):
        with refused("SF-DATA-112", "the label 'y' among the features", "leave it out"):
            read(label="y", features=["p", "y"])
        with refused("SF-DATA-112", "the feature 'p' twice"):
            read(label="y", features=["p", "q", "p"])
        with pytest.raises(DataError, match="no feature column"):
            read(label="y", features=[])


def test_names_that_are_none(tmp_path):
    for read in sources(tmp_path):
        for label in (["y"], None, {"y"}):
            with refused(
                "SF-DATA-114", "label=.*(list|NoneType|set)", "the name of one column", 'write for example label="ill"'
            ):
                read(label=label)
        for features in (3, [["p"]], {"p", "q"}, b"p", {"p": 1}):
            with refused("SF-DATA-114", "features=", "a list of names", r'features=\["age", "bmi"\]'):
                read(label="y", features=features)
    with refused("SF-DATA-114", r"client=\['site'\] \(list\)"):
        Federation.from_frame(pytest.importorskip("pandas").DataFrame(), client=["site"], label="y")
    with refused("SF-DATA-082", r"pattern=\['\*\.csv'\] \(list\)", "in one str"):
        Federation.from_folder(tmp_path, ["*.csv"], label="y")
    with refused("SF-DATA-081", r"3 \(int\)", "a folder"):
        Federation.from_folder(3, label="y")


def test_names_of_a_frame_may_be_numbers():
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame([[0, 1.5, 1], [1, 2.5, 0]])
    assert Federation.from_frame(df, client=0, label=2)[1][0].tolist() == [[2.5]]
    assert Federation.from_frame(df, client=0, label=2, features=[1])[1][0].tolist() == [[2.5]]


def test_a_column_without_a_name(tmp_path, reader):
    files = folder(tmp_path, a=",p,y\n0,5,0\n1,6,1\n")
    with refused("SF-DATA-113", r"in the file 'a\.csv'", r"index=False", r"features=\[…\]"):
        Federation.from_folder(files, label="y")
    assert Federation.from_folder(files, label="y", features=["p"])["a"][0].tolist() == [[5], [6]]
    with refused("SF-DATA-113", "'Unnamed: 0'"):
        Federation.from_folder(folder(tmp_path, a="Unnamed: 0,p,y\n0,5,0\n"), label="y")
    two = folder(tmp_path, a=",,p,y\n0,0,5,0\n")
    with refused("SF-DATA-113", "without a name"):
        Federation.from_folder(two, label="y")
    assert Federation.from_folder(two, label="y", features="p")["a"][0].tolist() == [[5]]


def test_a_frame_that_was_read_with_the_numbers_of_its_rows():
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame({"Unnamed: 0": [0, 1], "site": ["a", "b"], "p": [1, 2], "y": [0, 1]})
    with refused("SF-DATA-113", "'Unnamed: 0'", "the data frame", "index=False"):
        Federation.from_frame(df, client="site", label="y")
    assert Federation.from_frame(df, client="site", label="y", features="p")["b"][0].tolist() == [[2]]


def test_two_columns_of_one_name(tmp_path):
    pd, pa = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    rows = [["a", 1, 2, 0], ["b", 3, 4, 1]]
    df = pd.DataFrame(rows, columns=["site", "p", "p", "y"])
    table = pa.Table.from_arrays([pa.array(column) for column in zip(*rows, strict=True)], ["site", "p", "p", "y"])
    for one in (df, table):
        for features in (None, ["p"]):
            with refused("SF-DATA-115", "2 columns named 'p'", "a name of its own"):
                Federation.from_frame(one, client="site", label="y", features=features)
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "a.parquet")
    with refused("SF-DATA-086", r"'a\.parquet'", "two columns of one name, 'p'"):
        Federation.from_folder(tmp_path, label="y")


# --------------------------------------------------------------------------------------- Arrow tables


def test_an_arrow_table_is_a_frame():
    pa = pytest.importorskip("pyarrow")
    table = pa.table({"site": ["b", "a", "b"], "p": [1, 2, 3], "q": pa.array([0.5, None, 1.5]), "y": [0, 1, 1]})
    for one in (table, pa.concat_tables([table.slice(0, 1), table.slice(1)]), table.to_batches()[0]):
        fed = Federation.from_frame(one, client="site", label="y")
        assert repr(fed) == "Federation(2 clients, 3 examples, x float64[2], y int64)"
        np.testing.assert_array_equal(fed["b"][0], [[1, 0.5], [3, 1.5]])
        np.testing.assert_array_equal(fed["a"][0], [[2, np.nan]])
    assert Federation.from_frame(table, client="site", label="y", features="p")["a"][0].tolist() == [[2]]


def test_an_arrow_table_is_refused_without_its_rows():
    pa = pytest.importorskip("pyarrow")
    table = pa.table(
        {"site": ["a", "b"], "p": [1234567, 2], "w": ["u", "v"], "l": [[1], [2]], "r": [[1], []], "y": [1, 0]}
    )
    for named, code, words in (
        ({"label": "ill"}, "SF-DATA-022", "no column 'ill'"),
        ({"label": "y", "features": ["w"]}, "SF-DATA-023", "column 'w' has dtype"),
        ({"label": "y", "features": ["l"]}, "SF-DATA-023", r"column 'l' has rows of shape \[1\]"),
        ({"label": "y", "features": ["r"]}, "SF-DATA-023", "column 'r' holds lists of 0 to 1 entries"),
    ):
        with refused(code, words) as caught:
            Federation.from_frame(table, client="site", **named)
        assert "1234567" not in str(caught.value)
    with refused("SF-DATA-111", "row 1 of the data frame"):
        Federation.from_frame(pa.table({"s": ["a", "b"], "p": [1, 2], "y": pa.array([1, None])}), client="s", label="y")
