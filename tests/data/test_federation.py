"""Federations: what they hold, how they are built, split and found again, and every refusal."""

import time
import traceback
import tracemalloc
import weakref
from collections import namedtuple
from collections.abc import Mapping

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sumfold.data import Federation
from sumfold.errors import CATALOG, DataError


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def numbered(*sizes):
    """A federation by offsets whose x is the row number."""
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    x = np.arange(offsets[-1], dtype=np.float32)
    return Federation.from_arrays(x, (x % 3).astype(np.int32), offsets=offsets)


# ------------------------------------------------------------------------------------- from_clients


def test_a_mapping_keeps_its_ids_order_and_dtypes():
    fed = Federation.from_clients(
        {
            "b": (np.ones((2, 3), np.float32), np.array([0, 1], np.int32)),
            "a": (np.zeros((1, 3), np.float32), np.array([1], np.int32)),
        }
    )
    assert list(fed) == list(fed.ids) == ["b", "a"]
    assert len(fed) == 2
    assert dict(fed.sizes) == {"b": 2, "a": 1}
    assert "a" in fed
    assert "c" not in fed
    assert [] not in fed
    x, y = fed["b"]
    assert x.dtype == np.float32
    assert y.dtype == np.int32
    np.testing.assert_array_equal(x, np.ones((2, 3)))
    assert repr(fed) == "Federation(2 clients, 3 examples, x float32[3], y int32)"


def test_a_sequence_is_numbered_by_position():
    fed = Federation.from_clients([([1.0], [0]), ([2.0, 3.0], [1, 1])])
    assert fed.ids == range(2)
    assert fed.ids[1:] == range(1, 2)
    np.testing.assert_array_equal(fed[1][0], [2.0, 3.0])
    np.testing.assert_array_equal(fed[np.int64(1)][0], [2.0, 3.0])


def test_integers_and_floats_of_different_clients_are_promoted():
    fed = Federation.from_clients([(np.ones(2, np.int32),), (np.ones(2, np.float32),)])
    assert fed.examples[0].dtype == np.float64


def test_an_empty_client_takes_the_others_schema():
    full = (np.ones((2, 3), np.float32), np.array([0, 1], np.int32))
    for empty in ([], ([], []), (np.zeros((0, 9)), np.zeros(0))):
        fed = Federation.from_clients({"none": empty, "full": full})
        assert dict(fed.sizes) == {"none": 0, "full": 2}
        x, y = fed["none"]
        assert x.shape == (0, 3)
        assert x.dtype == np.float32
        assert y.shape == (0,)


def test_federations_without_rows_or_clients_are_legal():
    assert len(Federation.from_clients([])) == 0
    assert repr(Federation.from_clients({})) == "Federation(0 clients, 0 examples)"
    fed = Federation.from_clients({"a": ([], []), "b": []})
    assert sum(fed.sizes.values()) == 0
    train, test = fed.split(0.5)
    assert len(train) == len(test) == 2
    assert Federation.from_batches({"a": []})["a"] is None
    assert Federation.from_clients([]).positions([]).shape == (0,)
    Federation.from_clients([]).pooled()


def test_trees_of_arrays_come_back_as_they_were():
    Point = namedtuple("Point", ["left", "right"])
    entry = ({"b": np.ones((2, 2)), "a": np.zeros(2)}, Point(np.ones(2), None))
    fed = Federation.from_clients([entry])
    x, point = fed[0]
    assert sorted(x) == ["a", "b"]
    assert isinstance(point, Point)
    assert point.right is None
    assert "x.a float64, x.b float64[2], y.left float64" in repr(fed)


def test_one_array_and_weights():
    assert Federation.from_clients([np.ones((4, 2))])[0].shape == (4, 2)
    _, _, w = Federation.from_clients([([1.0], [0], [0.5])])[0]
    np.testing.assert_array_equal(w, [0.5])


def test_nan_and_infinity_are_data():
    fed = Federation.from_clients([([np.nan, np.inf], [0, 1])])
    assert np.isnan(fed[0][0][0])


def test_data_frames_are_entries():
    pd = pytest.importorskip("pandas")
    df = pd.DataFrame({"a": [1.0, 2.0], "b": [3.0, 4.0]})
    x, _ = Federation.from_clients([(df, pd.Series([0, 1]))])[0]
    np.testing.assert_array_equal(x, df.to_numpy())
    with refused("SF-DATA-001", "data frame", "from_frame"):
        Federation.from_clients(df)


def test_unequal_lengths_name_client_and_counts():
    with refused("SF-DATA-003", "client 'a'", "x has 3 rows", "y has 2"):
        Federation.from_clients({"a": ([1.0, 2.0, 3.0], [0, 1])})


def test_another_structure_names_both_clients():
    with refused("SF-DATA-004", "client 1", r"\(x\)", "client 0", r"\(x, y\)"):
        Federation.from_clients([([1.0], [0]), ([1.0],)])
    with refused("SF-DATA-004", r"\(age\)", r"\(age, y\)"):
        Federation.from_clients([{"age": [1.0], "y": [0]}, {"age": [1.0]}])


def test_another_shape_names_client_and_both_shapes():
    with refused("SF-DATA-005", "client 'b'", "x", r"\(4,\)", "client 'a'", r"\(3,\)"):
        Federation.from_clients({"a": (np.ones((2, 3)), [0, 1]), "b": (np.ones((2, 4)), [0, 1])})


def test_another_kind_of_dtype_names_both():
    with refused("SF-DATA-006", "client 1", "complex128", "client 0", "float64"):
        Federation.from_clients([([1.0],), ([1j],)])
    with refused("SF-DATA-006", "bool"):
        Federation.from_clients([([1.0], [True]), ([1.0], [1])])


@pytest.mark.parametrize("labels", [["ill", "well"], np.array(["ill", None], object), [None, 1]])
def test_strings_and_objects_are_refused(labels):
    with refused("SF-DATA-007", "client 'a'", "y", "encode labels"):
        Federation.from_clients({"a": ([1.0, 2.0], labels)})


def test_dates_are_refused():
    with refused("SF-DATA-007", "datetime64"):
        Federation.from_clients([np.array(["2020-01-01"], "datetime64[D]")])


def test_single_numbers_are_refused():
    with refused("SF-DATA-008", "client 0", "y is a single number"):
        Federation.from_clients([([1.0], 3)])


def test_ragged_lists_are_refused():
    with refused("SF-DATA-009", "client 0", "x is a list", "pad or cut"):
        Federation.from_clients([([[1.0], [1.0, 2.0]], [0, 1])])


def test_masked_arrays_are_refused_only_if_they_hide_something():
    values = np.ma.masked_array([1.0, 2.0], mask=[False, False])
    assert type(Federation.from_clients([values])[0]) is np.ndarray
    values[0] = np.ma.masked
    with refused("SF-DATA-027", "masked"):
        Federation.from_clients([values])


def test_entries_without_arrays_are_refused():
    for entry in (None, 3, "rows", object(), (), {}):
        with pytest.raises(DataError, match="client 0"):
            Federation.from_clients([entry])


@pytest.mark.parametrize("key", [1.5, None, True, ("a", 1)])
def test_ids_are_str_or_int(key):
    with refused("SF-DATA-012", "str or an int"):
        Federation.from_clients({key: ([1.0], [0])})


def test_numpy_ids_become_plain_ones():
    fed = Federation.from_clients({np.int64(7): [1.0], np.str_("a"): [2.0]})
    assert [type(key) for key in fed.ids] == [int, str]


# ------------------------------------------------------------------------------------------- batches


def test_ready_made_batches_keep_their_lengths():
    fed = Federation.from_batches({"a": [([1.0, 2.0], [0, 1]), ([], []), ([3.0], [1])], "b": []})
    assert [b.tolist() for b in fed.batch_sizes] == [[2, 1], []]
    assert dict(fed.sizes) == {"a": 3, "b": 0}
    assert "2 ready-made batches" in repr(fed)
    assert [b.tolist() for b in fed.subset(["b", "a"]).batch_sizes] == [[], [2, 1]]
    with refused("SF-DATA-016", "ready-made batches"):
        fed.split(0.5)


# --------------------------------------------------------------------------------------- from_arrays


def test_client_ids_group_rows_stably_without_a_copy():
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    fed = Federation.from_arrays(x, y, client_ids=np.array(["b", "a", "b", "c", "a", "b"]))
    assert fed.ids == ("a", "b", "c")
    assert fed.examples[0] is x
    np.testing.assert_array_equal(fed["b"][1], [0, 2, 5])
    np.testing.assert_array_equal(fed.pooled()[1], [1, 4, 0, 2, 5, 3])


def test_integer_ids_from_zero_are_a_range():
    fed = Federation.from_arrays(np.arange(4.0), client_ids=[0, 1, 0, 2])
    assert fed.ids == range(3)
    assert Federation.from_arrays(np.arange(2.0), client_ids=[5, 9]).ids == (5, 9)
    assert Federation.from_arrays(np.arange(2.0), client_ids=np.array(["u", "v"], object)).ids == ("u", "v")
    grouped = Federation.from_arrays(np.arange(3.0), client_ids=[0, 0, 1])
    assert grouped.order is None


class Pairs(Mapping):
    """A mapping that says one key twice, as a table of pairs can."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def __iter__(self):
        return iter([key for key, _ in self.pairs])

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, key):
        return dict(self.pairs)[key]


def test_two_clients_with_one_id():
    with refused("SF-DATA-080", "two clients with the id 'b'", "of its own"):
        Federation.from_clients(Pairs(("a", [1.0]), ("b", [2.0]), ("b", [3.0])))
    with refused("SF-DATA-080", "the id 1"):
        Federation.from_batches(Pairs((1, [[1.0]]), (np.int64(1), [[2.0]])))
    with refused("SF-DATA-080", "'a'"):
        Federation(("a", "a"), np.zeros(2), np.array([0, 1]), np.array([1, 1]))


def test_memory_maps_are_kept_in_every_place_of_a_tree(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.int64).reshape(6, 2))
    np.save(tmp_path / "y.npy", np.arange(6) % 2)
    x, y = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")
    fed = Federation.from_arrays({"a": (x, x)}, y, client_ids=["b", "a", "b", "a", "b", "a"])
    train, _ = fed.subset(["b"]).split(0.7)
    for leaf in (*train.examples[0]["a"], train.examples[1]):
        assert type(leaf) is np.memmap
        assert np.shares_memory(leaf, x) or np.shares_memory(leaf, y)
    fed.save(tmp_path / "f.sqlite")
    assert Federation.from_sqlite(tmp_path / "f.sqlite")["a"][0]["a"][1].tolist() == [[2, 3], [6, 7], [10, 11]]


def test_memory_maps_stay_on_disk(tmp_path):
    rows, path = 2_000_000, tmp_path / "x.npy"
    stored = np.lib.format.open_memmap(path, "w+", np.float32, (rows, 8))
    stored[-1] = 1
    stored.flush()
    x = np.load(path, mmap_mode="r")
    tracemalloc.start()
    fed = Federation.from_arrays(x, offsets=np.arange(0, rows + 1, 1000))
    last = fed[1999]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fed.examples is x
    assert np.shares_memory(last, x)
    assert last[-1, 0] == 1
    assert peak < 1_000_000


def test_a_million_clients_take_less_than_a_second_and_no_objects():
    clients = 1_000_000
    x = np.zeros((2 * clients, 1), np.float32)
    offsets = np.arange(0, 2 * clients + 1, 2)
    Federation.from_arrays(x[:2], offsets=[0, 2])
    tracemalloc.start()
    began = time.perf_counter()
    fed = Federation.from_arrays(x, offsets=offsets)
    cohort = fed.positions(np.arange(0, clients, 7))
    took = time.perf_counter() - began
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert took < 1
    assert peak < 60_000_000
    assert isinstance(fed.ids, range)
    assert len(cohort) == 142_858
    assert fed.sizes[999_999] == 2
    assert 999_999 in fed


def test_splitting_a_million_clients_is_vectorised():
    clients = 200_000
    fed = Federation.from_arrays(np.zeros(5 * clients), offsets=np.arange(0, 5 * clients + 1, 5))
    began = time.perf_counter()
    train, _ = fed.split(0.8)
    assert time.perf_counter() - began < 3
    assert int(train.counts.sum()) == 4 * clients


def test_exactly_one_of_client_ids_and_offsets():
    with refused("SF-DATA-019", "neither"):
        Federation.from_arrays([1.0])
    with refused("SF-DATA-019", "both"):
        Federation.from_arrays([1.0], client_ids=[0], offsets=[0, 1])
    with refused("SF-DATA-019", "weight without y"):
        Federation.from_arrays([1.0], weight=[1.0], offsets=[0, 1])


def test_client_ids_must_fit():
    with refused("SF-DATA-020", r"\(2,\)", "3 rows"):
        Federation.from_arrays([1.0, 2.0, 3.0], client_ids=["a", "b"])
    for ids in ([1.5, 2.5], np.array(["a", None], object), np.array([True, False])):
        with refused("SF-DATA-020", "dtype"):
            Federation.from_arrays([1.0, 2.0], client_ids=ids)
    for truths in ([True, False], [2, True], np.array([2, True], object)):
        with refused("SF-DATA-020", "str or int for every row"):
            Federation.from_arrays([1.0, 2.0], client_ids=truths)


@pytest.mark.parametrize("offsets", [[0, 1], [1, 3], [0, 2, 1, 3], [0.0, 3.0], [], [[0, 3]]])
def test_offsets_must_rise_from_zero_to_the_end(offsets):
    with refused("SF-DATA-021", "3 rows", "from 0 to 3"):
        Federation.from_arrays([1.0, 2.0, 3.0], offsets=offsets)


def test_lengths_must_agree():
    with refused("SF-DATA-003", "x has 2 rows", "y has 3"):
        Federation.from_arrays([1.0, 2.0], [0, 1, 2], offsets=[0, 2])


# ---------------------------------------------------------------------------------------- from_frame


@pytest.fixture
def frame():
    pd = pytest.importorskip("pandas")
    return pd.DataFrame(
        {
            "hospital": ["b", "a", "b"],
            "age": [50, 60, 70],
            "bp": [120.0, np.nan, 90.0],
            "ill": [0, 1, 1],
            "name": ["u", "v", "w"],
        }
    )


def test_from_frame(frame):
    fed = Federation.from_frame(frame, client="hospital", label="ill", features=["age", "bp"])
    assert dict(fed.sizes) == {"a": 1, "b": 2}
    np.testing.assert_array_equal(fed["b"][0], [[50, 120], [70, 90]])
    rest = Federation.from_frame(frame.drop(columns="name"), client="hospital", label="ill")
    np.testing.assert_array_equal(rest["b"][0], fed["b"][0])


def test_from_frame_names_the_column(frame):
    with refused("SF-DATA-023", "'name'", "features="):
        Federation.from_frame(frame, client="hospital", label="ill")
    with refused("SF-DATA-023", "'name'"):
        Federation.from_frame(frame, client="hospital", label="name", features=["age"])
    with refused("SF-DATA-022", "'sick'", "'ill'"):
        Federation.from_frame(frame, client="hospital", label="sick")
    with refused("SF-DATA-022", "no feature column"):
        Federation.from_frame(frame[["hospital", "ill"]], client="hospital", label="ill")
    with refused("SF-DATA-022", "ndarray"):
        Federation.from_frame(np.ones(3), client="hospital", label="ill")


# ----------------------------------------------------------------------------- ids, positions, subset


def test_unknown_clients_are_named():
    fed = Federation.from_clients({"a": [1.0], "b": [2.0]})
    with refused("SF-DATA-011", "'c'", "'a', 'b'"):
        fed["c"]
    with refused("SF-DATA-011", "'c'"):
        fed.positions(["a", "c"])
    with refused("SF-DATA-011", "3"):
        numbered(1, 1, 1).positions([0, 3])
    with refused("SF-DATA-011", "-1"):
        numbered(1, 1, 1)[-1]
    with refused("SF-DATA-011", "'a'"):
        numbered(1, 1, 1).positions(["a", 0])
    with pytest.raises(KeyError):
        fed.sizes["c"]


@pytest.mark.parametrize("clients", [{0: [1.0], 1: [2.0]}, [[1.0], [2.0]], {"a": [1.0], 1: [2.0]}], ids=str)
def test_true_and_numbers_with_a_point_are_no_ids(clients, tmp_path):
    fed = Federation.from_clients(clients)
    fed.save(tmp_path / "f.sqlite")
    for one in (fed, Federation.from_sqlite(tmp_path / "f.sqlite")):
        assert 1 in one
        assert np.int32(1) in one
        for key in (True, np.True_, 1.0, np.float32(1), [1], None):
            assert key not in one
        with refused("SF-DATA-011", "no client True", "mask"):
            one[True]
        for ids in ([True], [1, True], np.array([True, False]), (np.True_,)):
            with refused("SF-DATA-011", r"no client (np\.)?True", "mask"):
                one.subset(ids)


def test_repeated_clients_are_named():
    with refused("SF-DATA-010", "client 2"):
        numbered(1, 1, 1).positions([2, 0, 2])
    with refused("SF-DATA-010", "client 'a'"):
        Federation.from_clients({"a": [1.0]}).subset(["a", "a"])


@pytest.mark.parametrize("ids", ["ab", 3, None])
def test_positions_want_a_collection(ids):
    with refused("SF-DATA-012", "a list, range or array"):
        numbered(1, 1).positions(ids)


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter, lambda ids: range(ids[0], ids[-1] + 1)])
def test_positions_of_every_collection(kind):
    assert numbered(1, 1, 1, 1).positions(kind([1, 2, 3])).tolist() == [1, 2, 3]
    assert numbered(1, 1, 1, 1).subset(kind([1, 2, 3])).sizes == {1: 1, 2: 1, 3: 1}
    named = Federation.from_clients({"a": [1.0], 1: [2.0], 2: [3.0], 3: [4.0]})
    assert named.positions(kind([1, 2, 3])).tolist() == [1, 2, 3]


def test_a_subset_of_a_range_stays_a_range_and_shares_the_arrays():
    fed = numbered(1, 2, 3, 4)
    part = fed.subset(fed.ids[1:4:2])
    assert part.ids == range(1, 5, 2)[:2]
    assert part.examples is fed.examples
    np.testing.assert_array_equal(part[3][0], fed[3][0])
    assert part.positions([3, 1]).tolist() == [1, 0]
    assert 2 not in part
    assert fed.subset([3, 0]).ids == (3, 0)
    np.testing.assert_array_equal(fed.subset([3, 0]).pooled()[0], [6, 7, 8, 9, 0])


def test_pooled_of_contiguous_clients_is_a_view():
    fed = numbered(2, 3)
    assert np.shares_memory(fed.pooled()[0], fed.examples[0])


def test_labels():
    assert Federation.from_clients([{"z": [1.0], "y": [2]}]).labels().tolist() == [2]
    with refused("SF-DATA-018", "x float64"):
        Federation.from_clients([np.ones(3)]).labels()


# --------------------------------------------------------------------------------------------- split

SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@given(sizes=SIZES, fraction=st.floats(0.05, 0.95), seed=st.integers(0, 2**40), stratify=st.booleans())
def test_a_split_deals_every_row_once(sizes, fraction, seed, stratify):
    fed = numbered(*sizes)
    train, test = fed.split(fraction, seed=seed, stratify=stratify)
    for key, size in zip(fed.ids, sizes, strict=True):
        first, second = train[key][0], test[key][0]
        assert sorted([*first, *second]) == sorted(fed[key][0])
        assert sorted(first) == first.tolist()
        if size >= 2:
            assert len(first) == min(max(round(fraction * size), 1), size - 1)
        else:
            assert len(first) == size
    assert train.examples is fed.examples


@given(labels=st.lists(st.integers(0, 3), min_size=2, max_size=60), seed=st.integers(0, 99))
def test_stratified_parts_keep_the_proportions(labels, seed):
    y = np.array(labels)
    fed = Federation.from_arrays(np.arange(len(y)), y, offsets=[0, len(y)])
    train, _ = fed.split(0.7, seed=seed, stratify=True)
    share = len(train[0][1]) / len(y)
    for label in set(labels):
        assert abs(np.sum(train[0][1] == label) - share * np.sum(y == label)) < 1 + 1e-9


def test_a_split_depends_on_seed_and_client_alone():
    fed = Federation.from_clients({key: np.arange(50.0) for key in ("a", "b", "c")})
    train, _ = fed.split(0.5, seed=3)
    assert train["a"].tolist() == fed.split(0.5, seed=3)[0]["a"].tolist()
    assert train["a"].tolist() == fed.subset(["a"]).split(0.5, seed=3)[0]["a"].tolist()
    assert train["a"].tolist() != fed.split(0.5, seed=4)[0]["a"].tolist()
    assert train["a"].tolist() != train["b"].tolist()
    many = numbered(20, 20, 20)
    again = many.subset([2]).split(0.5)[0][2][0].tolist()
    assert again == many.split(0.5)[0][2][0].tolist()


def test_a_split_is_stable_across_versions():
    train, _ = numbered(10).split(0.5, seed=0)
    assert train[0][0].tolist() == [0, 2, 3, 4, 7]


def test_splits_are_even_in_the_long_run():
    fed = numbered(*[10] * 2000)
    train, _ = fed.split(0.5, seed=0)
    times = np.bincount((train.pooled()[0] % 10).astype(int))
    assert np.all(np.abs(times - 1000) < 100)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5])
def test_fractions_out_of_range(fraction):
    with refused("SF-DATA-017", "between 0 and 1"):
        numbered(3).split(fraction)


# ---------------------------------------------------------------------------------- identity and looks


def test_fingerprints_tell_federations_apart():
    base = numbered(2, 3)
    assert base.fingerprint() == numbered(2, 3).fingerprint()
    assert len(base.fingerprint()) == 32
    changed = Federation.from_arrays(base.examples[0], base.examples[1] + np.int32(1), offsets=[0, 2, 5])
    others = [numbered(3, 2), base.subset([0, 1]), changed, base.split(0.5)[0]]
    assert len({base.fingerprint(), *(fed.fingerprint() for fed in others)}) == 5
    cut = [Federation.from_batches([[np.ones(a), np.ones(4 - a)]]).fingerprint() for a in (1, 2)]
    assert cut[0] != cut[1]


def test_fingerprints_of_big_arrays_are_sampled():
    x = np.zeros((18_000, 1000), np.float32)
    one = Federation.from_arrays(x, offsets=[0, 18_000]).fingerprint()
    x[-1, -1] = 1
    assert Federation.from_arrays(x, offsets=[0, 18_000]).fingerprint() != one


def test_sizes_is_a_mapping():
    fed = numbered(*range(30))
    assert fed.sizes == {k: k for k in range(30)}
    assert repr(fed.sizes).endswith("19: 19, …}")
    assert repr(numbered(1, 2).sizes) == "{0: 1, 1: 2}"


def test_notebooks_show_a_capped_table():
    shown = Federation.from_clients({f"<{k}>": [1.0] for k in range(25)})._repr_html_()
    assert "&lt;19&gt;" in shown
    assert "&lt;20&gt;" not in shown
    assert "… 5 more" in shown


def test_federations_are_weak_referenceable_and_hashed_by_identity():
    fed = numbered(1)
    assert weakref.ref(fed)() is fed
    assert {fed: 1}[fed] == 1
    assert fed != numbered(1)


def test_the_traceback_ends_at_the_users_line():
    with pytest.raises(DataError) as caught:
        Federation.from_clients([([1.0], [0, 1])])
    files = [frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not any("/src/sumfold/data/" in file for file in files)


def test_integers_beyond_32_bits_in_flat_arrays():
    x, y = np.zeros(4), np.array([0, 1, 2**33, 3])
    with refused("SF-DATA-028", "client 'a'", "jax_enable_x64"):
        Federation.from_arrays(x, y, client_ids=["b", "b", "a", "b"])
    with refused("SF-DATA-028", "client 1"):
        Federation.from_arrays(x, y, offsets=[0, 2, 4])
    with jax.enable_x64(True):
        assert Federation.from_arrays(x, y, offsets=[0, 2, 4])[1][1].tolist() == [2**33, 3]


def test_one_feature_by_name(frame):
    pd = pytest.importorskip("pandas")
    one = Federation.from_frame(frame, client="hospital", label="ill", features="age")
    assert repr(one.examples) == repr(
        Federation.from_frame(frame, client="hospital", label="ill", features=["age"]).examples
    )
    short = pd.DataFrame({"ab": [1, 2], "a": [3, 4], "b": [5, 6], "k": ["u", "v"], "y": [0, 1]})
    assert Federation.from_frame(short, client="k", label="y", features="ab")["u"][0].tolist() == [[1]]
