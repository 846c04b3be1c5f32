"""Folders of CSV and Parquet files as federations, and every refusal."""

import sys

import numpy as np
import pytest

from sumfold.data import Federation
from sumfold.errors import CATALOG, DataError, MissingExtraError


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


def write(folder, **files):
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_csv", ".csv")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_a_file_is_a_client_named_by_its_stem(tmp_path, reader):
    write(
        tmp_path, south_csv="age,bmi,ill\n51,20.5,0\n64,31,1\n", north_csv="age,bmi,ill\n70,22,1\n", notes="not a table"
    )
    fed = Federation.from_folder(tmp_path, label="ill")
    assert fed.ids == ("north", "south")
    x, y = fed["south"]
    assert (x.dtype, y.dtype) == (np.float64, np.int64)
    np.testing.assert_array_equal(x, [[51, 20.5], [64, 31]])
    np.testing.assert_array_equal(y, [0, 1])


def test_columns_come_in_the_first_files_order_or_in_that_of_features(tmp_path, reader):
    write(
        tmp_path, a_csv="one,two,y\n1,2,0\n", b_csv="y,two,one\n1,20,10\n", c_csv="\ufefftwo,y,one,more\n200,1,100,7\n"
    )
    with refused("SF-DATA-083", "'c.csv'", "'more'", "'a.csv'"):
        Federation.from_folder(tmp_path, label="y")
    two = Federation.from_folder(tmp_path, "a.csv|b.csv", label="y")
    np.testing.assert_array_equal(two.pooled()[0], [[1, 2], [10, 20]])
    fed = Federation.from_folder(tmp_path, label="y", features=["two", "one"])
    np.testing.assert_array_equal(fed.pooled()[0], [[2, 1], [20, 10], [200, 100]])
    assert Federation.from_folder(tmp_path, label="y", features="two")["b"][0].tolist() == [[20]]


def test_missing_values_are_nan_and_truth_is_boolean(tmp_path, reader):
    write(tmp_path, a_csv="x,y\n1,True\n,False\nNaN,True\n")
    x, y = Federation.from_folder(tmp_path, label="y")["a"]
    np.testing.assert_array_equal(x, [[1.0], [np.nan], [np.nan]])
    assert y.dtype == bool


def test_files_without_rows_are_empty_clients(tmp_path, reader):
    write(tmp_path, bytes_csv="", full_csv="x,y\n1,0\n", head_csv="x,y\n")
    fed = Federation.from_folder(tmp_path, label="y")
    assert dict(fed.sizes) == {"bytes": 0, "full": 1, "head": 0}
    assert fed["head"][0].shape == (0, 1)
    assert fed.examples[0].dtype == np.int64
    assert len(Federation.from_folder(tmp_path, "head.csv", label="y")) == 1


def test_files_in_folders_are_named_by_their_path(tmp_path):
    write(tmp_path, north__ward_csv="x,y\n1,0\n", south__ward_csv="x,y\n2,0\n", top_csv="x,y\n3,0\n")
    write(tmp_path, **{".hidden_csv": "no table"})
    fed = Federation.from_folder(str(tmp_path), "**/*.csv", label="y")
    assert fed.ids == ("north/ward", "south/ward", "top")


def test_parquet_keeps_dtypes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"a": pa.array([1, 2], pa.uint8()), "b": pa.array([3, 4], pa.uint8()), "y": pa.array([0, 1], pa.int32())}
    parquet.write_table(pa.table(columns), tmp_path / "one.parquet")
    parquet.write_table(pa.table({"y": columns["y"], "b": columns["b"], "a": columns["a"]}), tmp_path / "two.pq")
    fed = Federation.from_folder(tmp_path, "*.parquet|*.pq", label="y")
    assert repr(fed) == "Federation(2 clients, 4 examples, x uint8[2], y int32)"
    np.testing.assert_array_equal(fed["two"][0], [[1, 3], [2, 4]])
    assert Federation.from_folder(tmp_path, label="y", features=["b"])["one"][0].tolist() == [[3], [4]]
    parquet.write_table(pa.table({"a": pa.array([1, None]), "y": columns["y"]}), tmp_path / "hole.parquet")
    np.testing.assert_array_equal(
        Federation.from_folder(tmp_path, "hole.parquet", label="y")["hole"][0], [[1], [np.nan]]
    )


def test_parquet_of_pandas_has_no_index_column(tmp_path):
    pd = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    df = pd.DataFrame({"a": [1.0, 2.0], "y": [0, 1]}, index=[7, 9])
    df.to_parquet(tmp_path / "a.parquet")
    assert Federation.from_folder(tmp_path, label="y")["a"][0].tolist() == [[1.0], [2.0]]


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"sumfold\[parquet\]"):
        Federation.from_folder(tmp_path, label="y")


def test_what_is_no_folder_or_has_no_matching_file(tmp_path):
    with refused("SF-DATA-081", "nowhere", "not there"):
        Federation.from_folder(tmp_path / "nowhere", label="y")
    write(tmp_path, table="")
    with refused("SF-DATA-081", "a file"):
        Federation.from_folder(tmp_path / "table", label="y")
    (tmp_path / "a.tsv").write_text("x")
    with refused("SF-DATA-082", r"\*\.csv", r"\.tsv"):
        Federation.from_folder(tmp_path, label="y")
    for pattern in ("", "/etc/*.csv"):
        with refused("SF-DATA-082", "within the folder"):
            Federation.from_folder(tmp_path, pattern, label="y")
    with refused("SF-DATA-087", "'a.tsv'", r"\.csv"):
        Federation.from_folder(tmp_path, "*.tsv", label="y")


def test_two_files_for_one_client(tmp_path):
    write(tmp_path, a_csv="x,y\n1,0\n")
    (tmp_path / "a.parquet").write_bytes(b"")
    with refused("SF-DATA-080", r"'a\.csv'", r"'a\.parquet'", "client 'a'"):
        Federation.from_folder(tmp_path, label="y")


def test_files_with_other_columns_are_named(tmp_path, reader):
    write(tmp_path, a_csv="p,q,y\n1,2,0\n", b_csv="p,r,y\n1,2,0\n")
    with refused("SF-DATA-083", r"'b\.csv' lacks \['q'\] and has \['r'\] besides", r"'a\.csv'"):
        Federation.from_folder(tmp_path, label="y")


def test_a_label_missing_in_one_file_names_it(tmp_path, reader):
    write(tmp_path, a_csv="p,y\n1,0\n", b_csv="p,z\n1,0\n")
    with refused("SF-DATA-084", "'y'", r"'b\.csv'", r"\['p', 'z'\]"):
        Federation.from_folder(tmp_path, label="y", features="p")
    with refused("SF-DATA-084", "'ill'", r"'a\.csv'"):
        Federation.from_folder(tmp_path, label="ill")
    write(tmp_path, b_csv="y\n1\n", a_csv="y\n1\n")
    with refused("SF-DATA-084", "no feature column"):
        Federation.from_folder(tmp_path, label="y")


def test_a_column_of_words_names_file_and_column(tmp_path, reader):
    write(tmp_path, a_csv="p,y\n1,0\n", b_csv="p,y\n1,0\nhigh,1\n")
    with refused("SF-DATA-085", "'p'", r"'b\.csv'", "holds 'high'"):
        Federation.from_folder(tmp_path, label="y")
    write(tmp_path, b_csv="p,y\n1_000,0\n")
    with refused("SF-DATA-085", "holds '1_000'"):
        Federation.from_folder(tmp_path, label="y")


def test_files_that_cannot_be_read_are_named(tmp_path, reader):
    write(tmp_path, a_csv="p,y\n1,0\n", b_csv="p,y\n1,0\n1,2,3\n")
    with refused("SF-DATA-086", r"'b\.csv'"):
        Federation.from_folder(tmp_path, label="y")
    write(tmp_path, b_csv="p,y\n1,2,3\n")
    with refused("SF-DATA-086", r"'b\.csv'", "fields"):
        Federation.from_folder(tmp_path, label="y")
    write(tmp_path, b_csv="p,p,y\n1,2,3\n")
    with refused("SF-DATA-086", r"'b\.csv'", "one name"):
        Federation.from_folder(tmp_path, label="y")
    (tmp_path / "b.csv").write_bytes(b"p,y\n\xff\xfe,0\n")
    with refused("SF-DATA-086", r"'b\.csv'", "utf-8"):
        Federation.from_folder(tmp_path, label="y")


def test_a_parquet_file_that_is_none_or_holds_ragged_lists(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with refused("SF-DATA-086", r"'a\.parquet'"):
        Federation.from_folder(tmp_path, label="y")
    parquet.write_table(pa.table({"p": [[1], [2, 3]], "y": [0, 1]}), tmp_path / "a.parquet")
    with refused("SF-DATA-086", "'p'", "lists of 1 to 2"):
        Federation.from_folder(tmp_path, label="y")
    parquet.write_table(pa.table({"p": [[1], [2]], "y": [0, 1]}), tmp_path / "a.parquet")
    with refused("SF-DATA-085", "'p'"):
        Federation.from_folder(tmp_path, label="y")


def test_integers_that_would_wrap_name_the_file(tmp_path, reader):
    write(tmp_path, a_csv=f"p,y\n{2**40},0\n", b_csv="p,y\n1,0\n")
    with refused("SF-DATA-028", "client 'a'"):
        Federation.from_folder(tmp_path, label="y")
