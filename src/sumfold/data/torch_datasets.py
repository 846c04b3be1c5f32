"""PyTorch map-style datasets, and other sequences of examples.

PyTorch is never imported here: whoever passes one of its datasets has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data import entries
from sumfold.data.assemble import from_arrays
from sumfold.data.entries import Array, Structure, Tree
from sumfold.data.federation import Federation
from sumfold.data.owners import no_truths
from sumfold.errors import DataError

Int64 = npt.NDArray[np.int64]


def from_torch(dataset: Any, client_of: Any) -> Federation:
    """See `Federation.from_torch`."""
    if isinstance(dataset, Mapping) or not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise DataError(
            "SF-DATA-090",
            f"a {type(dataset).__name__}",
            "a map-style dataset: len(dataset) and dataset[i]",
            "read a stream into a list first; a DataLoader per client goes to Federation.from_batches",
        )
    whole, at = _unwrapped(dataset)
    examples, rows = _tensors(whole, at)
    if examples is None:
        examples = _stacked(dataset, rows)
    field = isinstance(client_of, str) and isinstance(examples, dict) and client_of in examples
    if field and not hasattr(whole, client_of):
        ids = examples.pop(client_of)
        return from_arrays(_numeric(examples), None, None, ids, None)
    return from_arrays(_numeric(examples), None, None, _owners(client_of, whole, at, rows), None)


def _unwrapped(dataset: Any) -> tuple[Any, Int64 | None]:
    """The dataset below all ``Subset``, and the items of it that are meant; None for all of them."""
    torch, at = sys.modules.get("torch"), None
    while torch is not None and isinstance(dataset, torch.utils.data.Subset):
        indices = np.asarray(dataset.indices, np.int64)
        at = indices if at is None else indices[at]
        dataset = dataset.dataset
    return dataset, at


def _tensors(whole: Any, at: Int64 | None) -> tuple[Tree, int]:
    """The arrays of a ``TensorDataset``, None for another; and how many items are meant."""
    torch = sys.modules.get("torch")
    rows = len(whole) if at is None else len(at)
    if torch is None or type(whole) is not torch.utils.data.TensorDataset:
        return None, rows
    arrays = tuple([entries.to_array(tensor, "", "a tensor of the dataset") for tensor in whole.tensors])
    return arrays if at is None else tuple([array[at] for array in arrays]), rows


def _stacked(dataset: Any, rows: int) -> Tree:
    """All items, read one after the other into one array for each leaf."""
    structure: Structure = None
    columns: list[Array] = []
    for index in range(rows):
        leaves, own = entries.flatten(_item(dataset[index]))
        arrays = [_array(leaf, index) for leaf in leaves]
        if not index:
            structure = own
            columns = [np.empty((rows, *array.shape), array.dtype) for array in arrays]
        if own != structure:
            raise _differs(index, entries.leaf_names(own), entries.leaf_names(structure))
        for place, array in enumerate(arrays):
            column = columns[place]
            if array.shape != column.shape[1:]:
                name = entries.leaf_names(structure)[place]
                raise _differs(index, f"{name} of shape {array.shape}", f"{name} of shape {column.shape[1:]}")
            if array.dtype != column.dtype:
                column = columns[place] = column.astype(np.result_type(array, column), copy=False)
            column[index] = array
    return entries.unflatten(structure, columns) if rows else (np.empty(0), np.empty(0))


def _item(item: Any) -> Tree:
    return tuple(item) if isinstance(item, list) else item


def _array(value: Any, index: int) -> Array:
    try:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except (ValueError, TypeError) as error:
        raise _no_number(index, f"a {type(value).__name__} ({error})") from error
    if not entries.is_numeric(array.dtype) and not (array.ndim == 0 and array.dtype.kind == "U"):
        raise _no_number(index, f"a {type(value).__name__}")
    return array


def _numeric(examples: Tree) -> Tree:
    """The same examples; a str is an id of a client or nothing."""
    leaves, structure = entries.flatten(examples)
    for name, leaf in zip(entries.leaf_names(structure), leaves, strict=True):
        if leaf.dtype.kind == "U":
            raise _no_number(0, f"{name} {leaf[0].item()!r}")
    return examples


def _owners(client_of: Any, whole: Any, at: Int64 | None, rows: int) -> Any:
    """One client id for each item."""
    if isinstance(client_of, str):
        if not hasattr(whole, client_of):
            raise _unfit(f"client_of={client_of!r}, which {type(whole).__name__} and its items lack", rows)
        return _each(getattr(whole, client_of), f"{type(whole).__name__}.{client_of}", len(whole))[
            slice(None) if at is None else at
        ]
    if callable(client_of):
        of: Callable[[int], Any] = client_of
        return np.array([_plain(of(index)) for index in range(rows)], object)
    return _each(client_of, "client_of", rows)


def _each(ids: Any, name: str, rows: int) -> npt.NDArray[Any]:
    if not (hasattr(ids, "__len__") or hasattr(ids, "__array__")) or isinstance(ids, Mapping):
        raise _unfit(f"{name} is a {type(ids).__name__}", rows)
    no_truths(ids)
    try:
        array = np.asarray(ids.detach().cpu() if hasattr(ids, "detach") else ids)
    except Exception as error:  # whatever an object of the user's raises when it is read as an array
        raise _unfit(f"{name} is a {type(ids).__name__} and no list of ids ({error})", rows) from error
    if array.shape != (rows,):
        raise _unfit(f"{name} of shape {array.shape}", rows)
    return array


def _plain(client: Any) -> Any:
    return client.item() if hasattr(client, "item") else client


def _unfit(came: str, rows: int) -> DataError:
    return DataError(
        "SF-DATA-092",
        f"{came}, for {rows} items",
        "a function from index to id, one id per item, or the name of an attribute of the dataset or of a field of "
        "its items",
        "pass for example client_of=lambda index: sites[index]",
    )


def _differs(index: int, came: object, expected: object) -> DataError:
    return DataError(
        "SF-DATA-091",
        f"item {index} has {came}, item 0 has {expected}",
        "items of one structure and shape",
        "pad or resize them in the dataset's transform",
    )


def _no_number(index: int, came: str) -> DataError:
    return DataError(
        "SF-DATA-093",
        f"item {index} of the dataset holds {came}",
        "numbers, arrays and tensors",
        "convert pictures and words in the dataset's transform; leave names out of the items",
    )
