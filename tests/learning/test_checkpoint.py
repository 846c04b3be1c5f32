"""Checkpoints: what may go on from them, what damage costs, and crashes at any instruction."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core import files
from sumfold.learning import checkpoint as checkpoints
from sumfold.learning.checkpoint import Log, program
from sumfold.learning.process import Process
from sumfold.learning.train import train
from sumfold.models.model import Model

NEWEST, OLDER, HISTORY = "round-00000004.safetensors", "round-00000003.safetensors", "history.jsonl"


def square(outputs: Any, y: Any) -> Any:
    return (outputs - y) ** 2


def linear(rate: float = 0.1, loss: Callable[..., Any] = square, optimizer: Any = None, **options: Any) -> Process:
    model = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, loss)
    options = {"batching": sf.Batching(size=2), **options}
    return sf.learning.fed_avg(model, optimizer or optax.sgd(rate), optax.sgd(1.0, momentum=0.5), **options)


def client(number: int) -> tuple[Any, Any]:
    x = np.random.default_rng(number).normal(size=(4, 2)).astype(np.float32)
    return x, x @ np.array([1, 2], np.float32)


DATA = {name: client(i) for i, name in enumerate("abc")}


@pytest.fixture(scope="module")
def process() -> Process:
    return linear()


def run(process: Process, folder: Path, **options: Any) -> sf.History:
    return train(process, DATA, **{"rounds": 4, "progress": False, "checkpoint": folder, **options})


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.name != ".lock"}


@pytest.fixture(scope="module")
def whole(process: Process, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    run(process, folder, evaluate=client(9), evaluate_every=2)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def go_on(process: Process, folder: Path) -> sf.History:
    return run(process, folder, evaluate=client(9), evaluate_every=2)


# -- what lies in the folder


def test_the_last_two_states_and_one_history_are_kept(whole: Path) -> None:
    assert sorted(content(whole)) == [HISTORY, OLDER, NEWEST]
    lines = [json.loads(line) for line in (whole / HISTORY).read_text().splitlines()]
    assert [line["round"] for line in lines] == [0, 1, 2, 3]
    assert [line["evaluation"] is not None for line in lines] == [False, True, False, True]


def test_the_state_file_is_an_ordinary_one(whole: Path, process: Process) -> None:
    state = sf.load(whole / NEWEST)
    assert int(state.round) == 4
    assert process.get_model_weights(state).shape == (2,)


def test_no_byte_depends_on_the_process_or_a_clock(process: Process, whole: Path, tmp_path: Path) -> None:
    go_on(linear(), tmp_path / "again")
    assert content(tmp_path / "again") == content(whole)


def test_the_header_is_ordered() -> None:
    packed = {files.pack({"a": np.ones(3)}, {c: c for c in "qwertz"}) for _ in range(8)}
    assert len(packed) == 1
    data = packed.pop()
    assert files.notes(data, "x")["z"] == "z"
    assert np.array_equal(files.unpack(data, "x")["a"], np.ones(3))


# -- damage


@pytest.mark.parametrize(
    "harm",
    [lambda data: data[:-5], lambda data: b"", lambda data: data[:-5] + b"junk!", lambda data: b"\0" * len(data)],
    ids=["truncated", "empty", "changed", "zeros"],
)
def test_the_older_state_serves_when_the_newest_is_damaged(
    process: Process, whole: Path, folder: Path, harm: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    newest = folder / NEWEST
    newest.write_bytes(harm(newest.read_bytes()))
    history = go_on(process, folder)
    assert f"{NEWEST} is damaged or truncated" in caplog.text
    assert f"going on from the older checkpoint {OLDER}" in caplog.text
    assert len(history.metrics) == 4
    assert content(folder) == content(whole)


def test_a_longer_history_is_cut_back(process: Process, whole: Path, folder: Path) -> None:
    with open(folder / HISTORY, "ab") as file:
        file.write(b'{"round": 4, "met')
    go_on(process, folder)
    (folder / NEWEST).unlink()
    go_on(process, folder)
    assert content(folder) == content(whole)


def test_a_shorter_history_costs_a_round(
    process: Process, whole: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    history = folder / HISTORY
    history.write_bytes(history.read_bytes()[:-5])
    go_on(process, folder)
    assert "history.jsonl is damaged or truncated: it does not match round-00000004" in caplog.text
    assert content(folder) == content(whole)


def harm_all(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-1])


def harm_history(folder: Path) -> None:
    history = folder / HISTORY
    history.write_bytes(history.read_bytes().replace(b'"round":0', b'"round":9'))


def lose_history(folder: Path) -> None:
    (folder / HISTORY).unlink()


def other_programs(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        sf.save(file, {"w": np.ones(3)})


@pytest.mark.parametrize("harm", [harm_all, harm_history, lose_history, other_programs])
def test_nothing_whole_is_an_error_and_changes_nothing(
    process: Process, folder: Path, harm: Callable[[Path], None]
) -> None:
    harm(folder)
    before = content(folder)
    with pytest.raises(sf.CheckpointError, match=r"no checkpoint in .* is whole") as caught:
        go_on(process, folder)
    assert caught.value.code == "SF-CKPT-014"
    assert NEWEST in str(caught.value) or HISTORY in str(caught.value)
    assert content(folder) == before


# -- checkpoints of something else


def other_model(**options: Any) -> Process:
    model = sf.models.from_functions(
        lambda key: {"w": jnp.zeros(2), "b": jnp.zeros(())}, lambda p, x: x @ p["w"] + p["b"], square
    )
    return sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=2))


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        (linear, {"seed": 1}, "the seed is 0 there and 1 here"),
        (linear, {"clients_per_round": 2}, "clients_per_round is everybody there and 2 here"),
        (linear, {"cohorts": [["a"]] * 4}, "clients_per_round is everybody there and given by cohorts here"),
        (lambda: linear(0.2), {}, r"the program \(loss, optimizers, their rates, batching, weighting\) is"),
        (lambda: linear(loss=lambda o, y: jnp.abs(o - y)), {}, "the program"),
        (lambda: linear(weighting="uniform"), {}, "the program"),
        (lambda: linear(batching=sf.Batching(size=2, epochs=2)), {}, "the program"),
        (other_model, {}, "the fingerprint of the state's arrays is"),
    ],
)
def test_another_run_is_refused_with_both_values(
    build: Callable[[], Process], options: dict[str, Any], words: str, whole: Path
) -> None:
    before = content(whole)
    with pytest.raises(sf.CheckpointError, match=words) as caught:
        run(build(), whole, **options)
    assert caught.value.code == "SF-CKPT-015"
    assert content(whole) == before


def test_another_federation_is_refused(process: Process, whole: Path) -> None:
    other = {**DATA, "c": client(7)}
    with pytest.raises(sf.CheckpointError, match=r"the federation's fingerprint is [0-9a-f]{32} there and"):
        train(process, other, rounds=4, progress=False, checkpoint=whole)


def refused(process: Process, folder: Path, words: str, **options: Any) -> None:
    before = content(folder)
    with pytest.raises(sf.CheckpointError, match=words) as caught:
        run(process, folder, **options)
    assert caught.value.code == "SF-CKPT-015"
    assert content(folder) == before


def test_a_state_belongs_to_the_run_that_began_with_it(process: Process, whole: Path, tmp_path: Path) -> None:
    given = process.set_model_weights(process.initialize(0), np.ones(2, np.float32))
    first = run(process, tmp_path / "run", rounds=2, state=given)
    sf.save(tmp_path / "begin.safetensors", given)
    for same in (given, sf.load(tmp_path / "begin.safetensors")):
        assert run(process, tmp_path / "run", rounds=2, state=same).metrics == first.metrics
    refused(process, tmp_path / "run", r"the first state \(initial weights", state=process.initialize(0))
    refused(process, tmp_path / "run", "the first state")  # not passed any more
    refused(process, whole, "the first state", state=given)  # passed now
    assert len(run(process, tmp_path / "run", rounds=3, state=given).metrics) == 3


def test_the_process_begins_with_the_state_that_it_would_be_given(process: Process, folder: Path) -> None:
    assert len(run(process, folder, state=process.initialize(0)).metrics) == 4


def test_a_later_first_state_counts_its_rounds(process: Process, whole: Path, tmp_path: Path) -> None:
    later = sf.load(whole / OLDER)
    run(process, tmp_path, state=later, rounds=5)
    again = run(process, tmp_path, state=later, rounds=6)
    assert (again.first, len(again.metrics)) == (3, 3)
    assert again.metrics == run(process, tmp_path / "through", rounds=6).metrics[3:]


def test_other_initial_weights_are_refused(process: Process, whole: Path) -> None:
    model = sf.models.from_functions(lambda key: jnp.full(2, 1e-6), lambda w, x: x @ w, square)
    other = sf.learning.fed_avg(model, optax.sgd(0.1), optax.sgd(1.0, momentum=0.5), batching=sf.Batching(size=2))
    refused(other, whole, r"the first state .* is [0-9a-f]{32} there and [0-9a-f]{32} here.*keras.utils.set_random_see")


def keras_model(seed: int | None = 0) -> Model:
    """A model as a notebook builds it: its name is Keras's next one."""
    import keras

    start = keras.initializers.GlorotUniform(seed) if seed is not None else "glorot_uniform"
    net = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, kernel_initializer=start), keras.layers.Flatten()])
    return sf.models.from_keras(net, lambda outputs, y: (outputs[:, 0] - y) ** 2)


def injected(rate: float) -> optax.GradientTransformation:
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def keras_rate(kind: str, rate: float) -> Any:
    import keras

    return getattr(keras.optimizers, kind)(rate)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda rate: sf.learning.fed_avg(keras_model(), keras_rate("SGD", rate)),
            "hyperparameters in the first state is client_work/learning_rate 0.1 there and .* 0.2 here",
        ),
        (
            lambda rate: sf.learning.fed_avg(keras_model(), optax.sgd(0.1), keras_rate("Adam", rate)),
            "finalizer/learning_rate 0.1 there and finalizer/learning_rate 0.2 here",
        ),
        (
            lambda rate: sf.learning.fed_avg(keras_model(), optax.sgd(0.1), injected(rate)),
            "finalizer/learning_rate 0.1 there and finalizer/learning_rate 0.2 here",
        ),
    ],
    ids=["client Keras", "server Keras", "server injected"],
)
def test_a_rate_in_the_state_is_the_run_s(build: Callable[[float], Process], words: str, tmp_path: Path) -> None:
    first = run(build(0.1), tmp_path, rounds=2)
    assert run(build(0.1), tmp_path, rounds=2).metrics == first.metrics
    refused(build(0.2), tmp_path, words)
    refused(build(0.1 + 1e-7), tmp_path, "the first state")
    assert len(run(build(0.1), tmp_path, rounds=3).metrics) == 3


def test_a_keras_model_goes_on_in_one_process_and_with_a_seed_in_all(tmp_path: Path) -> None:
    import keras

    def built() -> Process:
        keras.utils.set_random_seed(3)
        return sf.learning.fed_avg(keras_model(None), optax.sgd(0.1))

    first, second = built(), built()
    assert first.model is not None
    assert second.model is not None
    assert first.model.name != second.model.name
    run(first, tmp_path, rounds=1)
    assert len(run(second, tmp_path, rounds=2).metrics) == 2
    unseeded = sf.learning.fed_avg(keras_model(None), optax.sgd(0.1))
    refused(unseeded, tmp_path, r"build the model with a seed \(pass a builder to from_keras, or keras.utils")


def test_the_history_is_json_for_every_reader_and_gives_back_what_was(process: Process, tmp_path: Path) -> None:
    def evaluate(weights: Any) -> dict[str, Any]:
        return {"loss": float("nan"), "bounds": [float("-inf"), 1.0, {"high": float("inf")}], "none": None}

    through = run(process, tmp_path / "through", rounds=2, evaluate=evaluate)
    run(process, tmp_path / "pieces", rounds=1, evaluate=evaluate)
    resumed = run(process, tmp_path / "pieces", rounds=2, evaluate=evaluate)
    assert repr(resumed.evaluations) == repr(through.evaluations)
    assert repr(resumed.evaluations[0]["bounds"]) == "[-inf, 1.0, {'high': inf}]"
    assert content(tmp_path / "pieces") == content(tmp_path / "through")
    lines = [
        json.loads(line, parse_constant=pytest.fail)
        for line in (tmp_path / "pieces" / HISTORY).read_text().splitlines()
    ]
    assert lines[0]["evaluation"] == {"loss": None, "bounds": [None, 1.0, {"high": None}], "none": None}
    assert lines[0]["not_finite"][0] == [["evaluation", "loss"], "nan"]


def test_the_runtime_may_change(process: Process, whole: Path) -> None:
    assert len(run(process.on(sf.Simulation()), whole).metrics) == 4


# -- the program's hash


def hashed(process: Process) -> str | None:
    federation = sf.Federation.from_clients(DATA)
    return program(process, process._check(federation, process.initialize(0)))


def test_the_same_program_has_the_same_hash_in_another_process(process: Process) -> None:
    mine = hashed(process)
    assert mine == hashed(linear())
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code += "from test_checkpoint import hashed, linear; print(hashed(linear()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == mine


def test_names_do_not_count_and_constants_do() -> None:
    scale = np.array([1, 2], np.float32)

    def renamed(a: Any, b: Any) -> Any:
        return (a - b) ** 2

    same = {hashed(linear()), hashed(linear(loss=renamed))}
    assert len(same) == 1
    others = [
        linear(0.1 + 1e-6),
        linear(loss=lambda o, y: (o - y) ** 4),
        linear(loss=lambda o, y: jnp.where(o > y, o - y, y - o)),
        linear(aggregator=sf.aggregators.sum()),
        linear(batching=sf.Batching(size=2, shuffle=False)),
        linear(weighting="uniform"),
        linear(optimizer=lambda round: optax.sgd(0.1 / (round + 1))),
        linear(optimizer=lambda round: optax.sgd(0.1 / (round + 2) * 2)),
        *(linear(loss=lambda o, y, s=s: (o - y) ** 2 * jnp.asarray(s).sum()) for s in (scale, 2 * scale)),
    ]
    hashes = {hashed(other) for other in others} | same
    assert len(hashes) == len(others) + 1
    assert None not in hashes


@pytest.mark.jax_defaults
def test_dropout_can_be_hashed() -> None:
    def build() -> Process:
        def predict(w: Any, x: Any, key: Any = None) -> Any:
            keep = 1.0 if key is None else jax.random.bernoulli(key, 0.5, x.shape)
            return (x * keep) @ w

        return sf.learning.fed_avg(sf.models.from_functions(lambda key: jnp.zeros(2), predict, square), optax.adam(0.1))

    assert hashed(build()) == hashed(build())
    assert hashed(build()) is not None


def test_what_cannot_be_traced_is_left_out(process: Process, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise TypeError("no array program")

    monkeypatch.setattr(checkpoints, "one_client", refuse)
    assert hashed(process) is None
    assert run(process, tmp_path, rounds=1).stopped is None


def test_another_jax_writes_another_program(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "__version__", "99.0")
    assert len(run(linear(), whole).metrics) == 4


# -- the folder


def test_a_folder_in_use_is_refused(process: Process, whole: Path) -> None:
    with checkpoints.folder(whole), pytest.raises(sf.CheckpointError, match=f"by process {os.getpid()}") as caught:
        run(process, whole)
    assert caught.value.code == "SF-CKPT-011"
    assert len(run(process, whole).metrics) == 4


def test_the_lock_ends_with_its_process(process: Process, folder: Path) -> None:
    code = "import fcntl, os, sys; lock = os.open(sys.argv[1], os.O_RDWR); fcntl.flock(lock, fcntl.LOCK_EX)"
    code += "; print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(folder / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(sf.CheckpointError, match="is in use"):
            run(process, folder)
        holder.kill()
        holder.wait()
        assert len(run(process, folder).metrics) == 4


def test_a_file_is_no_folder(process: Process, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(sf.CheckpointError, match="File exists") as caught:
        run(process, tmp_path / "taken")
    assert caught.value.code == "SF-CKPT-010"


def test_folders_are_made(process: Process, tmp_path: Path) -> None:
    run(process, tmp_path / "runs" / "heart", rounds=1)
    assert (tmp_path / "runs" / "heart" / HISTORY).exists()


def test_a_log_is_chained() -> None:
    assert Log().extended([b"a", b"b"]) == Log().extended([b"a"]).extended([b"b"])
    assert Log().extended([b"a", b"b"]).digest != Log().extended([b"b", b"a"]).digest


# -- disks that fill up, and crashes


class Crash(BaseException):
    """The process dies here."""


CALLS = [(os, "write"), (os, "fsync"), (os, "ftruncate"), (os, "replace"), (os, "unlink"), (Path, "unlink")]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, BaseException], list[int]]]:
    """Let the n-th call that changes a disk, and with ENOSPC all that write after it, fail."""

    def arm(number: int, error: BaseException) -> list[int]:
        made = [0]

        def patched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == "write" and args[0] in {1, 2}:
                    return real(*args, **kwargs)
                made[0] += 1
                full = isinstance(error, OSError) and made[0] >= number and name in {"write", "fsync"}
                if made[0] == number or full:
                    if name == "write":
                        real(args[0], bytes(args[1])[: len(args[1]) // 2])  # torn
                    raise error
                return real(*args, **kwargs)

            return call

        for owner, name in CALLS:
            monkeypatch.setattr(owner, name, patched(name, getattr(owner, name)))
        return made

    yield arm
    monkeypatch.undo()


def test_a_crash_at_any_call_leaves_a_folder_that_goes_on(
    process: Process, tmp_path: Path, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = sf.Federation.from_clients(DATA)
    traced = program(process, process._check(federation, process.initialize(0)))

    def go_on(process: Process, folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints, "program", lambda *_: traced)  # once is enough
            train(
                process, federation, rounds=3, progress=False, checkpoint=folder, evaluate=client(9), evaluate_every=2
            )

    whole = tmp_path / "whole"
    calls = failing(0, Crash())
    go_on(process, whole)
    monkeypatch.undo()
    assert calls[0] > 15
    for number in range(1, calls[0] + 1):
        folder = tmp_path / str(number)
        failing(number, Crash())
        with pytest.raises(Crash):
            go_on(process, folder)
        monkeypatch.undo()
        go_on(process, folder)
        assert content(folder) == content(whole), f"after a crash at call {number}"


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_loses_nothing(
    process: Process, whole: Path, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(folder)

    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(sf.CheckpointError, match="No space left on device") as caught:
        run(process, folder, rounds=5)
    monkeypatch.undo()
    assert caught.value.code == "SF-CKPT-012"
    assert {name: data[: len(before[name])] for name, data in content(folder).items()} == before
    assert len(run(process, folder, rounds=5).metrics) == 5


def test_a_disk_that_fills_up_with_the_state_loses_nothing(
    process: Process, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(folder)

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(sf.CheckpointError, match="No space left on device") as caught:
        run(process, folder, rounds=5)
    monkeypatch.undo()
    assert caught.value.code == "SF-CKPT-004"
    assert {name: content(folder)[name] for name in (NEWEST, OLDER)} == {n: before[n] for n in (NEWEST, OLDER)}
    assert len(run(process, folder, rounds=5).metrics) == 5


def test_a_history_that_shrinks_under_a_run_is_noticed(process: Process, folder: Path) -> None:
    def harm(event: Any) -> None:
        os.truncate(folder / HISTORY, 5)

    with pytest.raises(sf.CheckpointError, match="became shorter") as caught:
        run(process, folder, rounds=5, callbacks=[harm])
    assert caught.value.code == "SF-CKPT-013"


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_checkpoint import go_on, linear
made, at = 0, int(sys.argv[3])
def counted(real):
    def call(*args, **kwargs):
        global made
        made += 1
        if made == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    return call
for name in ("fsync", "replace", "ftruncate"):
    setattr(os, name, counted(getattr(os, name)))
go_on(linear(), Path(sys.argv[2]))
"""


def test_kill_9_at_several_instants(whole: Path, tmp_path: Path) -> None:
    for at in (1, 4, 5, 8, 0):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "run"), str(at)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == (-signal.SIGKILL if at else 0), done.stderr
    assert content(tmp_path / "run") == content(whole)
