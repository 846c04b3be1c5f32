"""PyTorch datasets and other sequences of items as federations, and every refusal."""

import numpy as np
import pytest

from sumfold.data import Federation
from sumfold.errors import CATALOG, DataError


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


ITEMS = [(np.float32([1, 2]), 0), (np.float32([3, 4]), 1), (np.float32([5, 6]), 1)]


@pytest.mark.parametrize(
    "client_of",
    [lambda index: "ab"[index % 2], ["a", "b", "a"], np.array(["a", "b", "a"]), ("a", "b", "a")],
    ids=["function", "list", "array", "tuple"],
)
def test_a_sequence_of_items(client_of):
    fed = Federation.from_torch(ITEMS, client_of=client_of)
    assert repr(fed) == "Federation(2 clients, 3 examples, x float32[2], y int64)"
    np.testing.assert_array_equal(fed["a"][0], [[1, 2], [5, 6]])
    np.testing.assert_array_equal(fed["a"][1], [0, 1])


def test_ids_may_be_numpy_or_torch_numbers():
    torch = pytest.importorskip("torch")
    for client_of in (lambda i: np.int64(i % 2), lambda i: torch.tensor(i % 2), torch.tensor([0, 1, 0])):
        assert Federation.from_torch(ITEMS, client_of=client_of).ids == range(2)


class Sites:
    """A dataset of dicts that knows its sites."""

    def __init__(self, sites):
        self.sites = sites

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {"x": [float(index)], "y": index, "site": "ab"[index % 2] * (index + 1)}


def test_an_attribute_or_a_field_names_the_client():
    fed = Federation.from_torch(Sites([5, 5, 6]), client_of="site")
    assert fed.ids == ("a", "aaa", "bb")
    assert sorted(fed["a"]) == ["x", "y"]

    class Numbered(Sites):
        def __getitem__(self, index):
            return np.float32([index]), index

    assert dict(Federation.from_torch(Numbered([5, 5, 6]), client_of="sites").sizes) == {5: 2, 6: 1}
    with refused("SF-DATA-092", "'nothing'", "Numbered", "3 items"):
        Federation.from_torch(Numbered([]), client_of="nothing")
    with refused("SF-DATA-092", r"Numbered\.sites", r"\(2,\)"):
        Federation.from_torch(Numbered([1, 2]), client_of="sites")
    with refused("SF-DATA-093", "site 'a'"):
        Federation.from_torch(Sites([5, 5, 6]), client_of="sites")


def test_a_tensor_dataset_is_taken_whole():
    torch = pytest.importorskip("torch")

    class Counted(torch.utils.data.TensorDataset):
        def __getitem__(self, index):
            raise AssertionError("read item by item")

    x, y = torch.arange(12.0).reshape(6, 2), torch.arange(6, dtype=torch.uint8)
    whole = torch.utils.data.TensorDataset(x, y)
    fed = Federation.from_torch(whole, client_of=lambda i: i // 3)
    assert repr(fed) == "Federation(2 clients, 6 examples, x float32[2], y uint8)"
    assert np.shares_memory(fed.examples[0], x.numpy())
    with pytest.raises(AssertionError, match="item by item"):  # a subclass may compute its items
        Federation.from_torch(Counted(x, y), client_of=[0] * 6)


def test_subsets_are_looked_through():
    torch = pytest.importorskip("torch")
    whole = torch.utils.data.TensorDataset(torch.arange(6.0), torch.arange(6))
    inner = torch.utils.data.Subset(whole, [5, 3, 1, 0])
    outer = torch.utils.data.Subset(inner, [2, 0])
    fed = Federation.from_torch(outer, client_of=["a", "b"])
    assert fed["a"][0].tolist() == [1.0]
    assert fed["b"][0].tolist() == [5.0]
    whole.site = np.arange(6) * 10
    assert Federation.from_torch(outer, client_of="site").ids == (10, 50)

    class Own(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return [torch.full((2,), index, dtype=torch.float64, requires_grad=True), torch.tensor(index)]

    fed = Federation.from_torch(torch.utils.data.Subset(Own(), [3, 1]), client_of=lambda index: index)
    assert fed[0][0].tolist() == [[3.0, 3.0]]
    assert fed.examples[0].dtype == np.float64


def test_dtypes_of_items_are_promoted():
    fed = Federation.from_torch([(np.int32(1), 0), (2.5, 1)], client_of=[0, 0])
    assert fed[0][0].tolist() == [1.0, 2.5]


def test_no_items():
    assert len(Federation.from_torch([], client_of=[])) == 0
    assert len(Federation.from_torch([], client_of=lambda index: index)) == 0


def test_what_is_no_map_style_dataset():
    torch = pytest.importorskip("torch")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(ITEMS)

    for dataset in (Stream(), iter(ITEMS), {"a": ITEMS}, 3):
        with refused("SF-DATA-090", type(dataset).__name__, "map-style"):
            Federation.from_torch(dataset, client_of=[0, 0, 0])


def test_items_that_differ_name_their_index():
    with refused("SF-DATA-091", "item 1", r"x of shape \(3,\)", r"item 0", r"\(2,\)"):
        Federation.from_torch([(np.zeros(2), 0), (np.zeros(3), 0)], client_of=[0, 0])
    with refused("SF-DATA-091", "item 2", r"\('x',\)", r"\('x', 'y'\)"):
        Federation.from_torch([([1.0], 0), ([1.0], 0), ([1.0],)], client_of=[0, 0, 0])


def test_client_of_of_another_length_or_kind():
    for client_of, words in (([0, 1], r"\(2,\)"), (None, "NoneType"), (3, "int"), ({0: "a"}, "dict")):
        with refused("SF-DATA-092", words, "3 items"):
            Federation.from_torch(ITEMS, client_of=client_of)
    with refused("SF-DATA-020", "str or int"):
        Federation.from_torch(ITEMS, client_of=lambda index: None)
    for truths in ([True, 1, 2], lambda index: bool(index)):
        with refused("SF-DATA-020", "str or int"):
            Federation.from_torch(ITEMS, client_of=truths)


def test_an_attribute_that_is_no_sequence_of_ids():
    class Dataset(list):
        ragged = [[1], [1, 2], [3]]  # noqa: RUF012
        word = "abc"
        number = 3

        def shut(self):
            return None

        @property
        def grumpy(self):
            return Grumpy()

    class Grumpy:
        def __len__(self):
            return 3

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("not today")

    for name, words in (
        ("ragged", "inhomogeneous"),
        ("word", r"Dataset.word of shape \(\)"),
        ("number", "Dataset.number is a int"),
        ("shut", "Dataset.shut is a method"),
        ("grumpy", "no list of ids .not today"),
    ):
        with refused("SF-DATA-092", words, "3 items"):
            Federation.from_torch(Dataset(ITEMS), client_of=name)


def test_items_that_are_no_numbers_name_their_index():
    with refused("SF-DATA-093", "item 1", "object"):
        Federation.from_torch([(1.0, 0), (object(), 0)], client_of=[0, 0])
    with refused("SF-DATA-093", "a list", "inhomogeneous"):
        Federation.from_torch([([[1.0], [1.0, 2.0]], 0)], client_of=[0])
    with refused("SF-DATA-093", "y 'cat'"):
        Federation.from_torch([(1.0, "cat")], client_of=[0])
