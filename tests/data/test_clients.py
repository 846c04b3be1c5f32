"""What `client_data` may be, and what is refused."""

import numpy as np
import pytest

from sumfold.data import Federation
from sumfold.data.clients import as_federation
from sumfold.errors import CATALOG, DataError

X, Y = np.arange(6.0).reshape(3, 2), np.array([0, 1, 1])


def refused(code, *words):
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def only(entry):
    """The federation of one client."""
    return as_federation({"a": entry})[0]


def test_a_federation_is_passed_through():
    fed = Federation.from_clients([(X, Y), (X, Y)])
    same, positions = as_federation(fed)
    assert same is fed
    assert positions.tolist() == [0, 1]
    assert positions.dtype == np.int64
    assert as_federation(fed, clients=[1])[1].tolist() == [1]


def test_mappings_and_sequences():
    fed, positions = as_federation({"a": (X, Y), "b": (X, Y)}, clients=["b"])
    assert fed.ids == ("a", "b")
    assert positions.tolist() == [1]
    assert as_federation([(X, Y)])[0].ids == range(1)
    assert as_federation(((X, Y), (X, Y)))[0].ids == range(2)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("abc", "'abc'"),
        (3, "int"),
        (None, "NoneType"),
        (X, r"one array of shape \(3, 2\)"),
        (iter([(X, Y)]), "list_iterator"),
        ((entry for entry in [(X, Y)]), "generator"),
        (range(3), "range"),
        (object(), "object"),
    ],
)
def test_anything_else_is_refused(data, word):
    with refused("SF-DATA-001", word, "a sequence with one entry per client"):
        as_federation(data)


# ----------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize("entry", [(X, Y), {"x": X, "y": Y}, X, [1.0, 2.0], [[1.0, 2.0], [3.0, 4.0]]])
def test_examples(entry):
    assert only(entry).batch_sizes is None


def test_jax_arrays_are_converted():
    jnp = pytest.importorskip("jax.numpy")
    x, y = only((jnp.ones((2, 3)), jnp.zeros(2, jnp.int32)))["a"]
    assert type(x) is np.ndarray
    assert y.dtype == np.int32
    assert only(jnp.ones((2, 3), jnp.bfloat16))["a"].dtype.name == "bfloat16"


class Tensor:
    """A torch tensor with a gradient: it refuses __array__ until detached and on the CPU."""

    def __init__(self, values, free=False):
        self.values, self.free = np.asarray(values), free

    def detach(self):
        return Tensor(self.values)

    def cpu(self):
        return Tensor(self.values, free=True)

    def __array__(self, dtype=None, copy=None):
        if not self.free:
            raise RuntimeError("call detach() first")
        return self.values


class Loader:
    """A torch DataLoader: collates pairs into lists, and starts anew each time."""

    def __iter__(self):
        yield [Tensor(X[:2]), Tensor(Y[:2])]
        yield [Tensor(X[2:]), Tensor(Y[2:])]


class Dataset:
    """A tf.data.Dataset."""

    def __init__(self, batches, cardinality=-2):
        self.batches, self.endless = batches, cardinality

    def __iter__(self):
        raise AssertionError("as_numpy_iterator is the quick way")

    def as_numpy_iterator(self):
        return iter(self.batches)

    def cardinality(self):
        return np.int64(self.endless)


class Table:
    """A Hugging Face Dataset."""

    column_names = ("x", "y")

    def with_format(self, kind):
        assert kind == "numpy"
        return self

    def __getitem__(self, key):
        return {"x": X, "y": Y}

    def __iter__(self):
        raise AssertionError("rows are not batches")


def test_tensors_are_detached():
    np.testing.assert_array_equal(only((Tensor(X), Tensor(Y)))["a"][0], X)


def test_tables_are_examples():
    fed = only(Table())
    assert fed.batch_sizes is None
    np.testing.assert_array_equal(fed["a"]["x"], X)


# ------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize(
    "entry",
    [
        [(X[:2], Y[:2]), (X[2:], Y[2:])],
        [[X[:2], Y[:2]], [X[2:], Y[2:]]],
        Loader(),
        Dataset([(X[:2], Y[:2]), (X[2:], Y[2:])]),
    ],
)
def test_ready_made_batches(entry):
    for _ in range(2):
        fed = only(entry)
        assert [b.tolist() for b in fed.batch_sizes] == [[2, 1]]
        np.testing.assert_array_equal(fed["a"][0], X)
        np.testing.assert_array_equal(fed["a"][1], Y)


def test_batches_of_dicts_and_of_arrays():
    assert only([{"x": X}, {"x": X[:1]}]).batch_sizes[0].tolist() == [3, 1]
    assert only([X, X[:1]]).batch_sizes[0].tolist() == [3, 1]


def test_an_iterator_is_read_once_and_kept():
    kept = {}
    batches = iter([(X, Y)])
    first, _ = as_federation([batches], kept=kept)
    again, _ = as_federation([batches], kept=kept)
    np.testing.assert_array_equal(first[0][0], again[0][0])
    assert kept[id(batches)][0] is batches


def test_an_empty_iterator_is_refused():
    spent = iter([(X, Y)])
    list(spent)
    with refused("SF-DATA-014", "client 'a'", "already empty", "list"):
        only(spent)
    with refused("SF-DATA-014", "generator"):
        only(batch for batch in ())
    unkept = iter([(X, Y)])
    only(unkept)
    with refused("SF-DATA-014"):
        only(unkept)


def test_endless_and_unbatched_datasets_are_refused():
    with refused("SF-DATA-015", "never ends", "repeat"):
        only(Dataset([], cardinality=-1))
    with refused("SF-DATA-008", r"\.batch"):
        only(Dataset([(X[0], Y[0])]))


def test_one_kind_for_all_clients():
    with refused("SF-DATA-013", "client 'a' holds examples", "client 'b' ready-made", "tuple"):
        as_federation({"a": (X, Y), "b": [(X, Y)]})
    fed, _ = as_federation({"a": [(X, Y)], "b": [], "c": ([], [])})
    assert [b.tolist() for b in fed.batch_sizes] == [[3], [], []]


def test_x_and_y_in_a_list_are_explained():
    with refused("SF-DATA-005", r"tuple \(x, y\)"):
        as_federation([[X, Y]])
    with refused("SF-DATA-005", r"tuple \(x, y\)"):
        as_federation((X, Y))


def test_entries_of_no_known_kind():
    for entry in (None, 3, "rows", object()):
        with refused("SF-DATA-002", "client 'a'"):
            only(entry)


def test_nothing_optional_is_imported():
    import subprocess
    import sys

    code = "import sys, sumfold.data; print([m for m in ('keras', 'pandas', 'sklearn') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_frame_with_floats_and_booleans():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"age": [51.5, 64.0], "smoker": [True, False], "visits": [1, 2]})
    x = only((frame, [0, 1]))["a"][0]
    assert x.dtype == np.float64
    assert x.tolist() == [[51.5, 1.0, 1.0], [64.0, 0.0, 2.0]]
    with refused("SF-DATA-007", "client 'a'"):
        only((frame.assign(name=["x", "y"]), [0, 1]))


def test_integers_beyond_32_bits_name_the_client():
    small = np.array([1, 2], np.int64)
    for big in (np.array([1, 2**31]), np.array([-(2**31) - 1, 0]), np.array([2**32, 1], np.uint64)):
        dtype = big.dtype
        with refused("SF-DATA-028", "client 'b'", "y has"):
            as_federation({"a": (X[:2], small.astype(dtype)), "b": (X[:2], big)})
    with refused("SF-DATA-028", "client 'b'"):
        as_federation({"a": [(X[:2], small)], "b": [(X[:2], small), (X[:2], small + 2**40)]})
    fed, _ = as_federation({"a": (X[:2], np.array([2**31 - 1, -(2**31)]))})
    assert fed["a"][1].tolist() == [2**31 - 1, -(2**31)]
    as_federation({"a": (X[:2], np.array([2**32 - 1, 0], np.uint64))})
    as_federation({"a": (X[:2], np.array([2.0**40, 0]))})
