"""How the processes of a gang meet and part, what they tell each other, and what an exchange adds up."""

import functools
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.core import group
from sumfold.core.driver import NOBODY, Totals, merge
from sumfold.simulation import deaths
from sumfold.simulation.exchange import as_vector, exchanged, of_vector
from sumfold.simulation.gang import Alone, Gang
from sumfold.simulation.joined import Joined, _cut, _flat, _Network
from sumfold.simulation.rollcall import answer, call


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


# -- meeting


def gangs(work, size=2, deadline=5.0, hellos=None):
    """What `work(gang)` gives in each of so many members, which are threads here; an error is its text."""
    address, found = f"127.0.0.1:{free_port()}", [None] * size

    def member(rank):
        hello = {"cores": 2 + rank, **(hellos[rank] if hellos else {})}
        try:
            if rank == 0:
                roll, everybody = call(address, size, hello, deadline)
            else:
                roll, everybody = answer(address, rank, size, hello, deadline)
            try:
                found[rank] = work(Joined(roll, everybody))
            finally:
                roll.close()
        except sf.ProcessError as error:
            found[rank] = str(error)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found


def test_a_gang_is_one_and_counts_its_scarcest_cores() -> None:
    found = gangs(lambda gang: (gang.rank, gang.size, gang.cores, isinstance(gang, Gang)), size=3)
    assert found == [(0, 3, 2, True), (1, 3, 2, True), (2, 3, 2, True)]


def test_a_disagreement_shows_both_values_everywhere() -> None:
    found = gangs(lambda gang: gang.agreed({"the seed": str(7 + gang.rank), "the data": "same"}, now=True))
    assert found[0] == found[1]
    assert "disagree on the seed: process 0 has 7, process 1 has 8" in found[0]
    assert "SF-PROC-020" in found[0]


def test_facts_travel_with_the_next_exchange() -> None:
    def work(gang):
        gang.agreed({"the cohort": f"cohort {gang.rank}"}, now=False)
        gang.gathered({"a": np.zeros(2)})

    assert "the cohort: process 0 has cohort 0, process 1 has cohort 1" in gangs(work)[1]


def test_programs_that_went_apart_are_told() -> None:
    found = gangs(lambda gang: gang.told(b"") if gang.rank else gang.agreed({}, now=True))
    assert "process 0 has to begin a round, process 1 has to hear the first process" in found[0]


def test_whoever_fails_is_heard_by_those_that_wait() -> None:
    def work(gang):
        if gang.rank == 1:
            gang.fail("ValueError: no such column")
            return "failed"
        return gang.told(b"")

    began = time.monotonic()
    found = gangs(work, size=3, deadline=30.0)
    assert time.monotonic() - began < 5
    for rank in (0, 2):
        assert "process 1 failed: ValueError: no such column" in found[rank]
        assert "SF-PROC-022" in found[rank]


def test_whoever_is_killed_is_missed_at_once() -> None:
    found = gangs(lambda gang: gang.roll.close() if gang.rank else gang.told(b""), deadline=30.0)
    assert "process 1 is gone: it was killed" in found[0]


def test_whoever_is_killed_is_missed_in_the_middle_of_a_computation(monkeypatch) -> None:
    monkeypatch.setattr(deaths, "_OFTEN", 0.02)
    monkeypatch.setattr(deaths, "_GRACE", 0.05)
    pairs = {rank: socket.socketpair() for rank in (1, 2)}
    missed, ended, noticed = [], [], threading.Event()
    connections = {rank: ours for rank, (ours, _) in pairs.items()}
    deaths.watch(connections, lambda: False, lambda rank: (missed.append(rank), noticed.set()))
    deaths.watch(connections, lambda: True, ended.append)  # one that is at its end
    pairs[1][1].sendall(b"a card")  # is no death, and is left for the meeting
    assert not noticed.wait(0.2)
    pairs[2][1].close()
    assert noticed.wait(5)
    assert (missed, ended) == ([2], [])
    assert pairs[1][0].recv(100) == b"a card"
    for ours, theirs in pairs.values():
        ours.close()
        theirs.close()


def test_an_exchange_that_breaks_off_is_a_process_that_is_lost() -> None:
    def broken(rows):
        raise ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer")

    with pytest.raises(sf.ProcessError, match="an exchange with the other processes broke off: UNKNOWN") as info:
        _Network(0, 1)._exchanged(broken, np.zeros(3, "f4"))
    assert info.value.code == "SF-PROC-022"


def test_whoever_stays_away_is_named_after_the_deadline() -> None:
    def work(gang):
        if gang.rank == 2:
            time.sleep(1.5)
            return "late"
        return gang.told(b"")

    found = gangs(work, size=3, deadline=0.5)
    assert "process 2 did not arrive within 0.5 s" in found[0]
    assert "SF-PROC-021" in found[1]


def test_all_learn_at_the_same_meeting_that_one_is_to_stop() -> None:
    def work(gang):
        seen = []
        for number in range(3):
            if gang.rank == 1 and number == 1:
                gang.ask_to_stop()
            gang.told(b"")
            seen.append(gang.stopping)
        gang.ask_to_stop(False)
        return seen, gang.stopping

    assert gangs(work) == [([False, True, True], False)] * 2


def test_an_address_that_nobody_answers(monkeypatch) -> None:
    began = time.monotonic()
    with pytest.raises(sf.ProcessError, match=r"nobody answered process 1 at the coordinator 127\.0\.0\.1") as info:
        sf.Processes(2, coordinator=f"127.0.0.1:{free_port()}", rank=1, deadline=0.3)
    assert info.value.code == "SF-PROC-010"
    assert time.monotonic() - began < 5
    with pytest.raises(sf.ProcessError, match=r"process 1 of 2 did not come to .* within 0\.3 s") as info:
        sf.Processes(2, coordinator=f"127.0.0.1:{free_port()}", rank=0, deadline=0.3)
    assert info.value.code == "SF-PROC-011"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(sf.ProcessError, match=f"the coordinator {address}: .*in use") as info:
            sf.Processes(2, coordinator=address, rank=0, deadline=0.3)
    assert info.value.code == "SF-PROC-012"


def test_two_of_one_rank_and_strangers_at_the_door() -> None:
    address, said = f"127.0.0.1:{free_port()}", []

    def late(rank, size):
        try:
            answer(address, rank, size, {}, 5.0)
        except sf.ProcessError as error:
            said.append(error)

    threads = [threading.Thread(target=late, args=(1, 3)) for _ in range(2)]
    stranger = threading.Thread(target=lambda: _knock(address))
    for thread in (stranger, *threads):
        thread.start()
    with pytest.raises(sf.ProcessError, match="two processes say that they are process 1") as info:
        call(address, 3, {}, 5.0)
    for thread in threads:
        thread.join(timeout=10)
    assert [info.value.code, *(error.code for error in said)] == ["SF-PROC-013"] * 3


def _knock(address: str) -> None:
    for _ in range(100):
        try:
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=1) as line:
                line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
        except OSError:
            time.sleep(0.02)


def test_versions_that_differ_are_refused_before_anything_else(monkeypatch) -> None:
    from sumfold.simulation import joined as module
    from sumfold.simulation.launched import Membership

    address, said = f"127.0.0.1:{free_port()}", []

    def other():
        roll, hellos = answer(address, 1, 2, {"cores": 1, "sumfold": "0.0.9", "jax": "0.1"}, 5.0)
        said.append(hellos)
        roll.close()

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(sf.ProcessError, match=r"disagree on the version of sumfold: process 0 has .*has 0\.0\.9"):
        module.join(Membership(address, 0, 2), 5.0)
    thread.join(timeout=10)
    assert said


class Threads:
    """What processes of a gang that are threads here say to each other."""

    def __init__(self, size):
        self.size, self.meeting, self.said = size, threading.Barrier(size), {}

    def heard(self, rank, news):
        self.said[rank] = news
        self.meeting.wait(10)
        of_all = [self.said[rank] for rank in range(self.size)]
        self.meeting.wait(10)
        return of_all


class Member(Alone):
    """One of them, which adds up and gathers as `Joined` does."""

    def __init__(self, threads, rank):
        super().__init__()
        self.threads, self.rank, self.size, self.met = threads, rank, threads.size, []

    def summed(self, tree):
        self.met.append("summed")
        leaves, structure = jax.tree.flatten(tree)
        arrays = [np.asarray(leaf) for leaf in leaves]
        vectors = self.threads.heard(self.rank, as_vector(arrays, self.size))
        return jax.tree.unflatten(structure, of_vector(sum(vectors), arrays, self.size))

    def gathered(self, tree):
        self.met.append("gathered")
        return self.threads.heard(self.rank, tree)


@pytest.mark.parametrize(
    ("size", "every_kind"),
    [(2, False), (2, True), (257, False)],  # integers of up to 256 processes travel by 16 bits
    ids=["sums", "every kind", "sums of many"],
)
def test_an_exchange_merges_as_one_process_would(size, every_kind) -> None:
    """Whole numbers in float32, so that no order of adding rounds: the exchange must give the very same."""
    groups = {"mean": None, "counts": group.add}
    if every_kind:
        pair = group.fold(np.float32(0), lambda t, v: t + v, lambda a, b: a + b)
        groups |= {
            "most": group.maximum,
            "masked": group.modular(7),
            "each": group.stack,
            "own": pair,
            "any": group.add,
        }
    stages = {part: sf.aggregators.mean()._replace(group=of) for part, of in groups.items()}
    phase = sf.Phase(lambda state, key: state, None, stages, lambda *given: given)

    def totals(rank):
        draw = np.random.default_rng(rank)
        whole = lambda *shape: jnp.asarray(draw.integers(-99, 99, shape).astype("f4"))
        parts = {
            "mean": (whole(5), whole()),
            "counts": jnp.asarray(draw.integers(-(2**31), 2**31, 4), "int32"),
            "most": whole(2, 2),
            "masked": jnp.asarray(draw.integers(0, 7, 3), "uint32"),
            "each": group.Stacked(whole(size), jnp.arange(size) == rank),
            "own": whole(),
            "any": jnp.asarray(draw.integers(0, 2, 4), bool),
        }
        metrics = {"loss": whole(), "seen": jnp.asarray(rank == 1)} if every_kind else {"loss": whole()}
        invalid = jnp.int32(17 - rank if rank < 2 else NOBODY)
        return Totals(
            {part: parts[part] for part in groups}, metrics, jnp.int32(rank + 1), jnp.int32(rank % 2), invalid
        )

    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = functools.reduce(functools.partial(merge, phase), map(totals, range(size)))
    threads = Threads(size)

    def one(rank):
        gang = Member(threads, rank)
        return exchanged(gang, phase, totals(rank)), gang.met

    with ThreadPoolExecutor(size) as pool:
        found, met = zip(*pool.map(one, range(size)), strict=True)
    assert met == ((["summed", "gathered"] if every_kind else ["summed"]),) * size
    for theirs in (found[0], found[-1]):
        assert jax.tree.structure(theirs) == jax.tree.structure(expected)
        for a, b in zip(jax.tree.leaves(theirs), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
            assert a.dtype == b.dtype


def test_arrays_travel_as_bytes_of_their_own_dtype() -> None:
    arrays = [np.arange(6, dtype=np.int8).reshape(2, 3), np.zeros((0, 4)), np.asarray(jnp.bfloat16(1.5)), np.True_]
    arrays = [np.asarray(array) for array in arrays]
    again = _cut(_flat(arrays), [[array.dtype.name, list(array.shape)] for array in arrays])
    for a, b in zip(arrays, again, strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
