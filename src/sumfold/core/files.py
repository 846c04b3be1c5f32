"""Trees in files: safetensors for the arrays, a typed description for the structure, a digest over both. No pickle.

Dicts, lists, tuples, named tuples, None and Sumfold's own records come back as they were. Classes of other packages
(an optimizer's state, a module) come back as named tuples or dicts with the same names: nothing in a file can name
code to import. A process takes such a state, since names, shapes and dtypes say what it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections import namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from sumfold.core.driver import State
from sumfold.core.store import ClientStore
from sumfold.core.tensors import DTYPES, load_tensors, save_tensors
from sumfold.errors import CheckpointError, TypeMismatchError, user_facing
from sumfold.tree import Tree, name

__all__ = ["load", "save"]

_FORMAT = "sumfold-tree-1"
_DEPTH = 64
_RECORDS: dict[str, Any] = {"State": State}


def remember(record: Any) -> Any:
    """Class decorator: a named tuple of Sumfold's own that files give back as itself."""
    _RECORDS[record.__name__] = record
    return record


@user_facing
def save(path: str | os.PathLike[str], tree: Tree) -> None:
    """Write a tree of arrays to a safetensors file, whole or not at all.

    Args:
        path: the file; its folder must exist.
        tree: a state, weights, or any pytree of arrays and numbers.

    Raises:
        CheckpointError: when the file cannot be written; an older file of this name is untouched.
        TypeMismatchError: for a leaf that is no array of numbers.

    Example:
        >>> import tempfile, numpy as np
        >>> path = tempfile.mkdtemp() + "/weights.safetensors"
        >>> save(path, {"w": np.arange(3), "layers": [np.ones(2), None]})
        >>> load(path)["layers"]
        [array([1., 1.]), None]
    """
    write(Path(path), pack(tree))


@user_facing
def load(path: str | os.PathLike[str]) -> Tree:
    """Read a tree that `save` wrote; leaves are NumPy arrays.

    Raises:
        CheckpointError: when the file is missing, damaged, truncated, or not Sumfold's.

    Example:
        >>> import tempfile, numpy as np
        >>> path = tempfile.mkdtemp() + "/n.safetensors"
        >>> save(path, (np.int32(3),))
        >>> load(path)
        (array(3, dtype=int32),)
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            "SF-CKPT-001", f"{path}: {error.strerror}", "a readable file", "check the path"
        ) from error
    return unpack(data, str(path))


def pack(tree: Tree, notes: dict[str, str] | None = None) -> bytes:
    """The bytes of a tree; `notes` are kept in the header beside its description."""
    arrays: dict[str, NDArray[Any]] = {}
    structure = json.dumps(_describe(tree, (), arrays), separators=(",", ":"))
    header = {"format": _FORMAT, "structure": structure, **(notes or {})}
    return _ordered(bytes(save_tensors(arrays, {**header, "digest": _digest(header, arrays)})))


def _ordered(data: bytes) -> bytes:
    """The same safetensors bytes with the header's notes in order, which their writer leaves to chance."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def unpack(data: bytes, source: str) -> Tree:
    """The tree of these bytes, its digest checked; `source` is for the message."""
    return _read(data, source)[0]


def notes(data: bytes, source: str) -> dict[str, str]:
    """The header of these bytes, checked as `unpack` does."""
    return _read(data, source)[1]


def _read(data: bytes, source: str) -> tuple[Tree, dict[str, str]]:
    try:
        length = int.from_bytes(data[:8], "little")
        header = dict(json.loads(data[8 : 8 + length]).get("__metadata__", {}))
        arrays = load_tensors(data)
        ours = header.get("format") == _FORMAT
        whole = ours and header.pop("digest") == _digest(header, arrays)
        tree = _rebuild(json.loads(header["structure"]), arrays, 0) if whole else None
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(source, "not a whole safetensors file of Sumfold's") from error
    if not ours:
        raise CheckpointError(
            "SF-CKPT-002",
            f"{source}: a safetensors file of another program",
            "a file that sumfold.save, models.save or a checkpoint wrote",
            "read it with the program that wrote it",
        )
    if not whole:
        raise _damaged(source, "its content does not match its digest")
    return tree, header


def _damaged(source: str, why: str) -> CheckpointError:
    return CheckpointError(
        "SF-CKPT-003", f"{source} is damaged or truncated: {why}", "an unchanged file", "use an older copy"
    )


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: write, fsync, rename, fsync of the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise CheckpointError(
            "SF-CKPT-004",
            f"{path} could not be written: {error.strerror} ({len(data):,} bytes)",
            "a folder that exists, is writable and has room",
            "make room or choose another folder; nothing older was lost",
        ) from error


def _digest(header: dict[str, str], arrays: dict[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for key in sorted(arrays):
        digest.update(key.encode())
        digest.update(np.ascontiguousarray(arrays[key]).tobytes())
    return digest.hexdigest()


def _describe(node: Any, path: tuple[Any, ...], arrays: dict[str, NDArray[Any]]) -> Any:
    if len(path) > _DEPTH:
        raise _unfit("a tree nested deeper than 64", path[:4], "make it flatter")

    def child(key: Any, value: Any) -> Any:
        return _describe(value, (*path, key), arrays)

    if node is None:
        return None
    if isinstance(node, ClientStore):
        return {"store": [[client, child(client, node[client])] for client in sorted(node, key=repr)]}
    if isinstance(node, dict):  # a subclass comes back as a plain one
        if unfit := [key for key in node if type(key) not in {str, int, float, bool}]:
            raise _unfit(f"the key {unfit[0]!r}", path, "use str or int as keys")
        return {"dict": [[key, child(key, value)] for key, value in node.items()]}
    if type(node) in {list, tuple}:
        return {type(node).__name__: [child(i, value) for i, value in enumerate(node)]}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        fields = [[field, child(field, getattr(node, field))] for field in node._fields]
        return {"record": type(node).__name__, "fields": fields}
    pairs, structure = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda inner: inner is not node)
    if not jax.tree_util.treedef_is_leaf(structure):
        # A module may hold functions beside its arrays; they are code, which no file brings back.
        words = [
            (name(key), None if callable(value) and not hasattr(value, "dtype") and not _is_node(value) else value)
            for key, value in pairs
        ]
        return {"record": type(node).__name__, "fields": [[key, child(key, value)] for key, value in words]}
    return _leaf(node, path, arrays)


def _is_node(value: Any) -> bool:
    """Whether a value has children of its own; a module is callable too."""
    return not jax.tree_util.treedef_is_leaf(jax.tree.structure(value))


def _leaf(node: Any, path: tuple[Any, ...], arrays: dict[str, NDArray[Any]]) -> Any:
    where = _where(path)
    numbers = not jnp.issubdtype(getattr(node, "dtype", np.int32), jax.dtypes.prng_key)
    array = np.asarray(node) if numbers else np.asarray(None)
    if array.dtype.newbyteorder("=") not in DTYPES.values():
        came = f"a {type(node).__name__}" + ("" if array.dtype.kind in "OUSMm" else f" of dtype {array.dtype}")
        raise _unfit(came, path, "leave it out, convert it, or store a key as jax.random.key_data(key)")
    unique = where
    while unique in arrays or unique == "__metadata__":
        unique += f"#{len(arrays)}"
    arrays[unique] = np.ascontiguousarray(array).reshape(array.shape)
    return {"array": unique}


def _where(path: tuple[Any, ...]) -> str:
    return "/".join(str(word) for word in path) or "array"


def _unfit(came: str, path: tuple[Any, ...], do: str) -> TypeMismatchError:
    needed = "arrays and numbers, in containers that a file can describe"
    return TypeMismatchError("SF-TYPE-003", f"{came} at {_where(path)!r}", needed, do)


def _rebuild(node: Any, arrays: dict[str, NDArray[Any]], depth: int) -> Tree:
    if depth > _DEPTH:
        raise ValueError(f"nested deeper than {_DEPTH}")
    if node is None:
        return None
    if "array" in node:
        return arrays[node["array"]]
    if "store" in node:
        return ClientStore({client: _rebuild(value, arrays, depth + 1) for client, value in node["store"]})
    if "dict" in node:
        return {key: _rebuild(value, arrays, depth + 1) for key, value in node["dict"]}
    for kind in (list, tuple):
        if kind.__name__ in node:
            return kind(_rebuild(value, arrays, depth + 1) for value in node[kind.__name__])
    fields = {str(key): _rebuild(value, arrays, depth + 1) for key, value in node["fields"]}
    known = _RECORDS.get(node["record"])
    if known is not None and tuple(known._fields) == tuple(fields):
        return known(**fields)
    if all(key.isidentifier() and not key.startswith("_") for key in fields):
        return namedtuple(str(node["record"]), list(fields))(**fields)
    return fields
