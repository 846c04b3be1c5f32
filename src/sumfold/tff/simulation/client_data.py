"""Client data by id, with the methods of TFF's ``ClientData`` that need no TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from sumfold.errors import CompositionError, DataError, user_facing
from sumfold.tff.simulation.dataset import Dataset

__all__ = ["ClientData", "TestClientData"]


class ClientData:
    """Ids, and the dataset of each.

    Attributes:
        client_ids: the ids, in order.

    Example:
        >>> data = ClientData.from_clients_and_tf_fn(["a", "b"], lambda id: Dataset.from_tensor_slices([1.0, 2.0]))
        >>> data.client_ids, len(data.create_tf_dataset_for_client("b"))
        (['a', 'b'], 2)
    """

    def __init__(self, client_ids: Iterable[Any], create: Callable[[Any], Any]) -> None:
        self.client_ids, self._create = list(client_ids), create

    @classmethod
    def from_clients_and_tf_fn(cls, client_ids: Iterable[Any], create_tf_dataset_for_client_fn: Any) -> ClientData:
        """From ids and a function id -> dataset."""
        return ClientData(client_ids, create_tf_dataset_for_client_fn)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.client_ids)} clients)"

    @user_facing
    def create_tf_dataset_for_client(self, client_id: Any) -> Any:
        """The dataset of one client.

        Raises:
            DataError: for an id that no client has.
        """
        if client_id not in self.client_ids:
            raise DataError(
                "SF-DATA-011",
                f"the client id {client_id!r}",
                f"one of {self.client_ids[:5]}{' …' if len(self.client_ids) > 5 else ''}",
                "look at client_ids",
            )
        return self._create(client_id)

    def _check_somebody(self) -> None:
        if not self.client_ids:
            raise _unavailable("client data without clients")

    @property
    def element_type_structure(self) -> Any:
        """The shapes and dtypes of the first client's elements, which are those of all.

        Raises:
            DataError: when there is no client.
        """
        self._check_somebody()
        return self.create_tf_dataset_for_client(self.client_ids[0]).element_spec

    def datasets(self, limit_count: int | None = None, seed: int | None = None) -> Iterator[Any]:
        """The clients' datasets, in random order."""
        order = np.random.default_rng(seed).permutation(len(self.client_ids))
        return (self.create_tf_dataset_for_client(self.client_ids[i]) for i in order[:limit_count])

    @user_facing
    def create_tf_dataset_from_all_clients(self, seed: int | None = None) -> Any:
        """All clients' elements as one dataset, the clients in random order.

        Raises:
            DataError: when there is no client.
        """
        self._check_somebody()
        first, *others = self.datasets(seed=seed)
        for other in others:
            first = first.concatenate(other)
        return first

    def preprocess(self, preprocess_fn: Callable[[Any], Any]) -> ClientData:
        """The same clients, each dataset changed by a function dataset -> dataset."""
        return ClientData(self.client_ids, lambda client_id: preprocess_fn(self._create(client_id)))

    @classmethod
    @user_facing
    def train_test_client_split(
        cls, client_data: ClientData, num_test_clients: int, seed: int | None = None
    ) -> tuple[ClientData, ClientData]:
        """(train, test): the clients divided at random.

        Raises:
            DataError: when nobody would be left to train.
        """
        if not 0 <= num_test_clients < len(client_data.client_ids):
            raise _unavailable(f"num_test_clients={num_test_clients} of {len(client_data.client_ids)} clients")
        order = np.random.default_rng(seed).permutation(len(client_data.client_ids))
        tested = set(order[:num_test_clients].tolist())
        ids = list(enumerate(client_data.client_ids))
        return (
            ClientData([id for place, id in ids if place not in tested], client_data._create),
            ClientData([id for place, id in ids if place in tested], client_data._create),
        )


class TestClientData(ClientData):
    """Client data in memory: id -> arrays of one row per example, in tuples or dicts.

    Example:
        >>> data = TestClientData({"a": (np.ones((3, 2)), np.ones(3)), "b": (np.zeros((1, 2)), np.zeros(1))})
        >>> data.element_type_structure[0]
        TensorSpec(shape=(2,), dtype=dtype('float64'))
        >>> data = data.preprocess(lambda dataset: dataset.batch(2))
        >>> [len(y) for x, y in data.create_tf_dataset_for_client("a")]
        [2, 1]
    """

    __test__ = False  # no test case, whatever its name

    @user_facing
    def __init__(self, tensor_slices_dict: Mapping[Any, Any] | Any) -> None:
        if not isinstance(tensor_slices_dict, Mapping):
            raise CompositionError(
                "SF-COMP-078",
                f"a {type(tensor_slices_dict).__name__}",
                "a dict client id -> arrays",
                'write TestClientData({"a": (x, y)})',
            )
        datasets = {id: Dataset.from_tensor_slices(arrays) for id, arrays in tensor_slices_dict.items()}
        super().__init__(datasets, datasets.__getitem__)


def _unavailable(came: str) -> DataError:
    return DataError("SF-COMP-079", came, "enough clients", "give more clients, or ask for fewer")
