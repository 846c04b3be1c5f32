"""Federations in SQLite files: they come back as they were, are read in parts, and what is damaged is refused."""

import os
import pickle
import re
import sqlite3
import subprocess
import sys
import textwrap
import threading
import zlib
from collections import namedtuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sumfold as sf
from sumfold.data import Federation
from sumfold.data.entries import flatten
from sumfold.errors import CATALOG, DataError

Point = namedtuple("Point", ["left", "right"])


def refused(code, *words):
    """Expect the DataError `code` whose message has all `words`."""
    assert code in CATALOG
    pattern = "".join(f"(?=.*{word})" for word in words) + rf".*\[{code}\]"
    return pytest.raises(DataError, match=f"(?s){pattern}")


def stored(federation, path):
    federation.save(path)
    return Federation.from_sqlite(path)


def assert_same(one, other):
    """Both trees of arrays are equal, dtypes and containers included."""
    (leaves, structure), (others, expected) = (
        flatten(one),
        flatten(other),
    )
    assert re.sub(r"'[\w.]*Point'", "Point", repr(structure)) == re.sub(r"'[\w.]*Point'", "Point", repr(expected))
    for leaf, right in zip(leaves, others, strict=True):
        assert leaf.dtype == right.dtype
        assert leaf.shape == right.shape
        assert leaf.tobytes() == right.tobytes()


draw = np.random.default_rng(0)
ENTRIES = {
    "pair": lambda n: (draw.normal(size=(n, 3)).astype(np.float32), draw.integers(0, 9, n).astype(np.uint8)),
    "weighted": lambda n: (draw.normal(size=(n, 2, 2)), draw.integers(0, 9, n).astype(np.int32), draw.random(n)),
    "dict": lambda n: {"y": draw.integers(0, 2, n).astype(bool), "x": {"b": draw.random((n, 1)), "a": np.arange(n)}},
    "array": lambda n: draw.random((n, 0)),
    "numbered keys": lambda n: ({1: np.ones(n, np.float16), 0: None}, np.ones(n, np.complex64)),
    "small floats": lambda n: (draw.random((n, 2)).astype(ml_dtypes.bfloat16), np.ones(n, ">f4")),
    "record": lambda n: Point(np.ones((n, 2)), (np.arange(n, dtype=np.uint16),)),
}


@pytest.mark.parametrize("kind", ENTRIES)
@pytest.mark.parametrize("names", [str, int], ids=["named", "numbered"])
def test_everything_comes_back_as_it_was(tmp_path, kind, names):
    sizes = [3, 0, 1, 5]
    fed = Federation.from_clients({names(k): ENTRIES[kind](n) for k, n in enumerate(sizes)}).subset(
        [names(k) for k in (2, 0, 1, 3)]
    )
    back = stored(fed, tmp_path / "f.sqlite")
    assert list(back) == list(back.ids) == list(fed.ids)
    assert [type(key) for key in back] == [names] * 4
    assert len(back) == 4
    assert dict(back.sizes) == dict(fed.sizes)
    for key in fed:
        assert key in back
        assert_same(back[key], fed[key])
    assert_same(back.pooled(), fed.pooled())
    assert_same(back.subset([names(3), names(1)]).pooled(), fed.subset([names(3), names(1)]).pooled())
    assert repr(back) == f"{repr(fed)[:-1]}, in 'f.sqlite')"
    assert "f.sqlite" in back._repr_html_()


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 4), max_size=6), data=st.data())
def test_any_clients_in_any_order_are_read(tmp_path_factory, sizes, data):
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(int)
    x = np.arange(offsets[-1], dtype=np.float32)
    fed = Federation.from_arrays(x, (x % 3).astype(np.uint8), offsets=offsets)
    back = stored(fed, tmp_path_factory.mktemp("any") / "f.sqlite")
    assert back.ids == range(len(sizes))
    order = data.draw(st.permutations(range(len(sizes)))) if sizes else []
    chosen = order[: data.draw(st.integers(0, len(sizes)))]
    some, places = back.cohort(back.positions(chosen))
    for place, key in zip(places.tolist(), chosen, strict=True):
        assert some.ids[place] == key
        assert_same(some.take(place), fed[key])
    assert_same(back.subset(chosen).pooled(), fed.subset(chosen).pooled())


def test_splits_and_partitions_are_saved_too(tmp_path):
    fed = sf.data.partition.iid(np.arange(20.0), np.arange(20) % 2, clients=3)
    train, _ = fed.split(0.5)
    assert train.order is not None
    back = stored(train, tmp_path / "f.sqlite")
    assert_same(back[1], train[1])
    one, other = back.split(0.5, seed=3, stratify=True)
    expected = train.split(0.5, seed=3, stratify=True)
    assert_same((one.pooled(), other.pooled()), (expected[0].pooled(), expected[1].pooled()))
    assert back.labels().tolist() == train.pooled()[1].tolist()
    assert np.asarray(back.examples[0]).tolist() == train.pooled()[0].tolist()
    assert back.examples[1][:3].tolist() == train.pooled()[1][:3].tolist()


def test_ready_made_batches(tmp_path):
    fed = Federation.from_batches({"a": [([1.0, 2.0], [0, 1]), ([3.0], [1])], "b": [], "c": [([4.0], [0])]})
    back = stored(fed, tmp_path / "f.sqlite")
    assert [sizes.tolist() for sizes in back.batch_sizes] == [[2, 1], [], [1]]
    assert [sizes.tolist() for sizes in back.batch_sizes[1:]] == [[], [1]]
    assert back.subset(["c", "a"]).batch_sizes[1].tolist() == [2, 1]
    with refused("SF-DATA-016", "ready-made"):
        back.split()


def test_nobody_and_nothing(tmp_path):
    for fed in (Federation.from_clients({}), Federation.from_clients([]), Federation.from_batches({"a": []})):
        back = stored(fed, tmp_path / "f.sqlite")
        assert len(back) == len(fed)
        assert list(back.ids) == list(fed.ids)
        assert_same(back.pooled(), fed.pooled())
        assert back.positions([]).shape == (0,)


def test_ids_are_found_and_told_apart(tmp_path):
    names = {1: [1.0], "1": [2.0], "it's": [3.0], "ü\0ü": [4.0], -(2**63): [5.0]}
    back = stored(Federation.from_clients(names), tmp_path / "f.sqlite")
    assert back.ids[:2] == (1, "1")
    assert back.ids[-1] == -(2**63)
    assert back.ids[::2] == (1, "it's", -(2**63))
    for key, value in names.items():
        assert back[key].tolist() == value
    assert np.int64(1) in back
    for key in ("2", 2, 2**70, None, [], 1.5, "\ud800"):
        assert key not in back
    with refused("SF-DATA-011", "'x'", "5 ids"):
        back.subset(["1", "x"])
    with refused("SF-DATA-010", "'1'"):
        back.subset(["1", "1"])
    with refused("SF-DATA-012", "write"):
        back.subset("1")
    with pytest.raises(IndexError):
        back.take(5)
    assert back.take(-1).tolist() == [5.0]


def test_large_clients_lie_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("sumfold.data.sqlite._PIECE", 100)
    fed = Federation.from_clients([(draw.random((50, 3)), np.arange(50)), (draw.random((2, 3)), np.arange(2))])
    back = stored(fed, tmp_path / "f.sqlite")
    assert_same(back[0], fed[0])
    assert_same(back.pooled(), fed.pooled())


def test_the_fingerprint_is_that_of_the_federation_that_was_saved(tmp_path):
    x, y = draw.random((6, 2)), np.arange(6)
    fed = Federation.from_arrays(x, y, client_ids=["b", "a", "a", "b", "b", "a"])
    train, test = fed.split(0.5)
    for one in (fed, train, test, fed.subset(["b"]), Federation.from_batches({"a": [([1.0], [0])]})):
        back = stored(one, tmp_path / "1.sqlite")
        assert back.fingerprint() == one.fingerprint()
        assert stored(back, tmp_path / "2.sqlite").fingerprint() == one.fingerprint()
    assert train.fingerprint() != test.fingerprint()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "f.sqlite"
    old = stored(Federation.from_clients([[1.0]]), path)
    new = Federation.from_clients([[2.0]])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no room")))
        with refused("SF-DATA-100", r"f\.sqlite", "no room", "untouched"):
            new.save(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["f.sqlite"]
    assert old[0].tolist() == [1.0]
    new.save(path)
    assert Federation.from_sqlite(path)[0].tolist() == [2.0]
    with refused("SF-DATA-100", "nowhere"):
        new.save(tmp_path / "nowhere" / "f.sqlite")


def test_what_a_file_cannot_hold(tmp_path):
    with refused("SF-DATA-106", str(2**70), "64 bits"):
        Federation.from_clients({2**70: [1.0]}).save(tmp_path / "f")
    with refused("SF-DATA-106", r"\(1, 2\)", "str or int"):
        Federation.from_clients([{(1, 2): [1.0]}]).save(tmp_path / "f")
    with refused("SF-DATA-106", r"the client id 'a\\udc80'", "strings of Unicode"):
        Federation.from_clients({"a": [1.0], "a\udc80": [1.0]}).save(tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------ what is refused


@pytest.fixture
def path(tmp_path):
    x = np.full((200, 50), 123.25)
    path = tmp_path / "f.sqlite"
    Federation.from_clients({str(k): x[:20] for k in range(10)}).save(path)
    return path


def alter(path, *statements):
    connection = sqlite3.connect(path)
    connection.create_function("crc32", 1, lambda text: zlib.crc32(text.encode()))
    for statement in statements:
        connection.execute(statement)
    if statements[0].startswith("UPDATE about"):
        connection.execute("UPDATE about SET crc = crc32(value)")
    connection.commit()
    connection.close()


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with refused("SF-DATA-101", "nowhere", "No such file"):
        Federation.from_sqlite(tmp_path / "nowhere")
    with refused("SF-DATA-101", "directory"):
        Federation.from_sqlite(tmp_path)
    for content in (b"", b"SQLite format 3\0", b"hello" * 100):
        (tmp_path / "f").write_bytes(content)
        with refused("SF-DATA-102", "no SQLite file"):
            Federation.from_sqlite(tmp_path / "f")
    alter(tmp_path / "other", "CREATE TABLE about (value)")
    with refused("SF-DATA-102", "another program", "read_sql"):
        Federation.from_sqlite(tmp_path / "other")


def test_a_newer_version(path):
    alter(path, "PRAGMA user_version = 2")
    with refused("SF-DATA-103", "version 2", "update"):
        Federation.from_sqlite(path)


def test_a_truncated_file(path):
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with refused("SF-DATA-104", f"of its {len(whole)} bytes", "copy it again"):
        Federation.from_sqlite(path)


def test_a_changed_byte_is_found_when_it_is_read(path):
    whole = path.read_bytes()
    path.write_bytes(whole.replace(np.float64(123.25).tobytes(), np.float64(123.5).tobytes(), 1))
    fed = Federation.from_sqlite(path)
    with refused("SF-DATA-104", "checksum"):
        fed.pooled()
    assert sum(_readable(fed, key) for key in fed) == 9


def _readable(fed, key):
    try:
        return bool(fed[key].all())
    except DataError:
        return False


def test_overwritten_pages_and_missing_rows(path):
    whole = bytearray(path.read_bytes())
    whole[8192:] = b"\xee" * (len(whole) - 8192)
    path.with_name("pages").write_bytes(whole)
    with refused("SF-DATA-104", "pages"):
        Federation.from_sqlite(path.with_name("pages"))
    alter(path, "DELETE FROM pieces WHERE place = (SELECT max(place) FROM pieces)")
    with refused("SF-DATA-104", "0 of the 8000 bytes of client '9'"):
        Federation.from_sqlite(path).pooled()
    alter(path, "DELETE FROM ids WHERE position = 3")
    with refused("SF-DATA-104", "client number 3"):
        Federation.from_sqlite(path).ids[3]


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DELETE FROM about", "no description"),
        ("UPDATE about SET value = '[1'", "no description"),
        ("UPDATE about SET value = '{}'", "'clients'"),
        ("UPDATE about SET value = replace(value, '<f8', 'U7')", "dtype U7"),
        ("UPDATE about SET value = replace(value, '\"clients\": 10', '\"clients\": 11')", "do not agree"),
        ("DELETE FROM vectors", "counts"),
        ("UPDATE vectors SET data = x'00'", "counts"),
        ("DROP TABLE vectors", "no such table"),
    ],
    ids=["none", "cut", "empty", "dtype", "clients", "counts", "vector", "table"],
)
def test_a_file_that_does_not_agree_with_itself(path, statement, words):
    alter(path, statement)
    with refused("SF-DATA-104", words):
        Federation.from_sqlite(path)


def test_a_file_that_was_replaced_is_not_mixed_with_the_old_one(path):
    fed = Federation.from_sqlite(path)
    assert fed["3"].shape == (20, 50)
    Federation.from_clients({str(k): np.zeros((20, 50)) for k in range(10)}).save(path)
    assert fed["3"][0, 0] == 123.25  # this thread still holds the old file
    raised = []

    def read():
        try:
            fed["3"]
        except DataError as error:
            raised.append(error.code)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert raised == ["SF-DATA-105"]
    with refused("SF-DATA-105", "another federation", "from_sqlite"):
        Federation.from_sqlite(path)._file.__class__._connection(_with_digest(path, "old"))


def _with_digest(path, digest):
    file = Federation.from_sqlite(path)._file
    file.about["digest"] = digest
    del file._own.connection
    return file


# --------------------------------------------------------------------------- threads, processes, forks


def test_threads_read_at_once(path):
    fed = Federation.from_sqlite(path)
    read = []

    def work():
        read.extend(fed[key].sum() for key in fed)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [123.25 * 1000] * 40


PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore")
from sumfold.data import Federation
from sumfold.data.entries import flatten
fed = Federation.from_sqlite(sys.argv[1])
print("open", flush=True)
sys.stdin.readline()
child = os.fork() if sys.argv[2] == "fork" else -1
total = sum(fed[key].sum() for _ in range(20) for key in fed)
own = fed["3"].sum()
if child == 0:
    os._exit(0 if total == 123.25 * 200000 and fed._file._own.connection.process == os.getpid() else 1)
if child > 0:
    assert os.waitpid(child, 0)[1] == 0
print(total)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_processes_read_at_once_also_after_a_fork(path):
    started = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for how in ("fork", "alone")
    ]
    for process in started:
        assert process.stdout.readline() == "open\n"
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    fed = Federation.from_sqlite(path)  # a third opens it while two read
    assert fed.pooled().sum() == 123.25 * 10000
    for process in started:
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert float(out) == 123.25 * 200000


def test_it_is_pickled_by_its_path(path):
    fed = pickle.loads(pickle.dumps(Federation.from_sqlite(path)))
    assert fed["3"].shape == (20, 50)
    fed = pickle.loads(pickle.dumps(Federation.from_clients({"a": [1.0]})))
    assert fed["a"].tolist() == [1.0]


MILLION = """
import resource, sys, time
import jax
from sumfold.data import Federation
from sumfold.data.entries import flatten
import sumfold.data.stored
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
before, start = peak(), time.perf_counter()
fed = Federation.from_sqlite(sys.argv[1])
print(time.perf_counter() - start, peak() - before, len(fed))
start = time.perf_counter()
cohort = fed.subset([f"client-{k}" for k in range(0, 1_000_000, 1000)])
print(time.perf_counter() - start, peak() - before, cohort.examples.sum())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no resource module")
def test_a_million_clients_open_at_once_and_in_little_memory(tmp_path):
    clients = 1_000_000
    x = np.arange(clients, dtype=np.float32)
    ids = tuple([f"client-{k}" for k in range(clients)])
    ones = np.ones(clients, np.int64)
    Federation(ids, x, np.arange(clients), ones).save(tmp_path / "f.sqlite")
    run = [sys.executable, "-c", MILLION, str(tmp_path / "f.sqlite")]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    opened, read = ([float(word) for word in line.split()] for line in done.stdout.splitlines())
    assert opened[0] < 1
    assert opened[1] < 200
    assert opened[2] == clients
    assert read[0] < 1
    assert read[1] < 200
    assert read[2] == x[::1000].sum()


# ------------------------------------------------------------------------------------------ in training


def model():
    return sf.models.from_functions(
        lambda key: {"w": jnp.zeros((4, 3))},
        lambda params, x: x @ params["w"],
        optax.softmax_cross_entropy_with_integer_labels,
    )


def ragged(clients=40):
    rng = np.random.default_rng(1)
    sizes = np.minimum(rng.lognormal(1.5, 1.2, clients).astype(int), 300)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = rng.normal(size=(offsets[-1], 4)).astype(np.float32)
    return Federation.from_arrays(x, rng.integers(0, 3, offsets[-1]).astype(np.int32), offsets=offsets)


@pytest.mark.parametrize("runtime", [sf.Simulation, sf.Loopback], ids=["simulation", "loopback"])
def test_rounds_give_the_bytes_of_a_federation_in_memory(tmp_path, runtime):
    fed = ragged(9)
    process = sf.learning.scaffold(model(), optax.sgd(0.1), optax.sgd(1.0)).on(runtime())
    results = []
    for data in (fed, stored(fed, tmp_path / "f.sqlite")):
        state = process.initialize(seed=3)
        for clients in ([5, 2, 7], [3, 5, 1], None, []):
            state, metrics = process.next(state, data, clients=clients)
        results.append((process.get_model_weights(state)["w"], metrics, state.clients.keys()))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


@pytest.mark.parametrize("size", [8, None], ids=["batches", "full"])
def test_cohorts_of_one_size_share_a_program(tmp_path, size):
    back = stored(ragged(200), tmp_path / "f.sqlite")
    process = sf.learning.fed_avg(model(), optax.sgd(0.1), batching=sf.Batching(size=size))
    state = process.initialize()
    rng = np.random.default_rng(2)
    for _ in range(12):
        state, _ = process.next(state, back, clients=rng.choice(200, 30, replace=False))
    assert process._run.compiled._cache_size() == 1


def test_a_round_reads_only_its_cohort(tmp_path, monkeypatch):
    back = stored(ragged(), tmp_path / "f.sqlite")
    asked = []
    read = type(back._file).clients
    monkeypatch.setattr(
        type(back._file), "clients", lambda self, low, high: asked.append((low, high)) or read(self, low, high)
    )
    process = sf.learning.fed_avg(model(), optax.sgd(0.1))
    state, _ = process.next(process.initialize(), back, clients=[7, 3, 4])
    assert asked == [(7, 8), (3, 5)]
    process.next(state, back, clients=[7, 3, 4])
    assert len(asked) == 2  # the latest cohort is kept
    assert process.explain()
    assert process.explain(back)
    assert len(asked) == 2


def test_labels_are_checked_cohort_by_cohort(tmp_path):
    clients = {"good": ([[1.0] * 4], [0]), "bad": ([[1.0] * 4], [7])}
    back = stored(Federation.from_clients(clients), tmp_path / "f.sqlite")
    process = sf.learning.fed_avg(model(), optax.sgd(0.1))
    state, _ = process.next(process.initialize(), back, clients=["good"])
    with refused("SF-DATA-054", "client 'bad'"):
        process.next(state, back, clients=["bad"])


def test_the_population_is_the_files(tmp_path):
    fed = ragged(10)
    process = sf.learning.fed_dyn(model(), optax.sgd(0.1), alpha=0.1)
    states = [
        process.next(process.initialize(), data, clients=[3, 4]).state
        for data in (fed, stored(fed, tmp_path / "f.sqlite"))
    ]
    np.testing.assert_array_equal(*(process.get_model_weights(state)["w"] for state in states))


def test_training_resumes_on_a_file_and_refuses_another(tmp_path):
    fed = ragged(12)
    process = sf.learning.fed_avg(model(), optax.sgd(0.1))

    def train(data, rounds, folder):
        return sf.train(
            process,
            data,
            rounds=rounds,
            clients_per_round=4,
            checkpoint=tmp_path / folder,
            evaluate=data,
            progress=False,
        )

    fed.save(tmp_path / "f.sqlite")
    whole = train(Federation.from_sqlite(tmp_path / "f.sqlite"), 4, "whole")
    train(Federation.from_sqlite(tmp_path / "f.sqlite"), 2, "half")
    half = train(Federation.from_sqlite(tmp_path / "f.sqlite"), 4, "half")
    np.testing.assert_array_equal(*(process.get_model_weights(h.state)["w"] for h in (whole, half)))
    assert whole.evaluations == half.evaluations
    train(fed, 2, "both")  # the one in memory and the one in the file are the same run's
    both = train(Federation.from_sqlite(tmp_path / "f.sqlite"), 4, "both")
    np.testing.assert_array_equal(*(process.get_model_weights(h.state)["w"] for h in (whole, both)))
    train(fed, 5, "both")
    other = fed.subset(fed.ids[1:])
    with pytest.raises(sf.CheckpointError, match="federation"):
        train(stored(other, tmp_path / "other.sqlite"), 5, "half")
