"""One byte of a federation's file is another: it is refused, or it made no difference."""

import subprocess
import sys

import pytest

from sumfold.data import Federation
from sumfold.errors import DataError

FLIPS = """
import sys
import numpy as np
from sumfold.data import Federation
from sumfold.data.entries import flatten
from sumfold.errors import DataError

def everything(federation):
    arrays = [[(a.dtype.str, a.tolist()) for a in flatten(federation[key])[0]] for key in federation]
    batches = federation.batch_sizes and [sizes.tolist() for sizes in federation.batch_sizes]
    found = federation.positions(list(federation.ids)).tolist()
    pooled = [array.tolist() for array in flatten(federation.pooled())[0]]
    return list(federation.ids), arrays, batches, found, pooled, federation.fingerprint(), repr(federation)

path = sys.argv[1]
whole, expected = open(path, "rb").read(), everything(Federation.from_sqlite(path))
rng, refused = np.random.default_rng(0), 0
for at in range(len(whole)):
    if whole[at] == 0 and at % 101:  # most of a small file is empty room: a sample of it
        continue
    for flip in (0xFF, int(rng.integers(1, 255))):
        with open(path, "wb") as file:
            file.write(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        try:
            read = everything(Federation.from_sqlite(path))
        except DataError:
            refused += 1
        else:
            assert read == expected, (at, flip, read)
print(refused)
"""

FEDERATIONS = {
    "named": lambda: Federation.from_clients({"ähre": ([1.0, 2.0], [0, 1]), "b": ([3.0], [1]), 5: ([4.0], [2])}),
    "batches": lambda: Federation.from_batches([[([1.0, 2.0], [0, 1]), ([3.0], [1])], [], [([4.0], [0])]]),
}


@pytest.mark.parametrize("name", FEDERATIONS)
def test_no_flipped_byte_goes_unnoticed_or_escapes_as_another_error(tmp_path, name):
    FEDERATIONS[name]().save(tmp_path / "f.sqlite")
    # In a process of its own, where annotations are not checked: that takes most of the time.
    run = [sys.executable, "-c", FLIPS, str(tmp_path / "f.sqlite")]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1000


def test_what_sqlite_cannot_decode_is_damage(tmp_path):
    path = tmp_path / "f.sqlite"
    FEDERATIONS["named"]().save(path)
    whole = path.read_bytes()
    assert whole.count("ähre".encode()) == 2  # in the table and in its index
    path.write_bytes(whole.replace("ähre".encode(), b"\xffhre1"))
    with pytest.raises(DataError, match="is damaged") as caught:
        list(Federation.from_sqlite(path))
    assert caught.value.code == "SF-DATA-104"
    path.write_bytes(whole.replace(b'"rows": 4', b'"rows": 5'))
    with pytest.raises(DataError, match=r"is damaged \(no description") as caught:
        Federation.from_sqlite(path)
    assert caught.value.code == "SF-DATA-104"


def test_an_id_that_was_changed_is_found(tmp_path):
    path = tmp_path / "f.sqlite"
    Federation.from_clients({"north": [1.0], "south": [2.0]}).save(path)
    path.write_bytes(path.read_bytes().replace(b"north", b"south"))
    federation = Federation.from_sqlite(path)
    for read in (lambda: federation.ids[0], lambda: list(federation.ids), lambda: federation["south"]):
        with pytest.raises(DataError, match="the id of client number 0") as caught:
            read()
        assert caught.value.code == "SF-DATA-104"
