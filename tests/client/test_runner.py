"""A client's side: what it runs, and what it refuses."""

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import keys, tree
from sumfold.client.runner import Runner
from sumfold.core.client import Briefing
from sumfold.tree import Spec
from sumfold.wire import codec
from sumfold.wire.messages import Assignment, PlanManifest, Report
from sumfold.wire.plan import export_plan

MODEL = sf.models.from_functions(lambda key: jnp.zeros(2), lambda w, x: x @ w, lambda outputs, y: (outputs - y) ** 2)
PROCESS = sf.learning.fed_avg(MODEL, optax.sgd(0.1), batching=sf.Batching(size=2))
X = np.array([[1, 0], [0, 1], [1, 1]], np.float32)
Y = np.array([1, 2, 3], np.float32)


def briefing_of(process=PROCESS):
    state, phase = process.initialize(), process.round.phases[0]
    public = {part: stage.share(state.stages[0][part]) for part, stage in phase.aggregate.items()}
    return Briefing(phase.broadcast(state.algorithm, keys.typed(state.seed)), public)


def plan_of(process=PROCESS):
    shapes = (tree.shape((2, 2), "float32"), tree.shape((2,), "float32"))
    return export_plan(process.round, 0, briefing_of(process), (), sf.Batch(shapes, tree.shape((2,), "bool")))


@pytest.fixture(scope="module")
def plan():
    return plan_of()


@pytest.fixture(scope="module")
def runner(plan):
    return Runner(plan)


def assignment(runner, **changes):
    head = Assignment(runner.id, 0, 0, (0, 0), 5)
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(briefing_of())]
    return codec.encode(msgspec.structs.replace(head, **changes), leaves)


def report(runner, answer):
    return codec.decode(answer.report, Report, lambda r: runner.manifest.upload if r.finite and r.weights_valid else ())


def test_it_answers_with_what_the_simulation_computes(runner):
    answer = runner.run(assignment(runner), (X, Y))
    head, leaves = report(runner, answer)
    assert head == Report(0, 0, 5, True, True)
    state, _ = PROCESS.next(PROCESS.initialize(), {5: (X, Y)})
    update = next(a for spec, a in zip(runner.manifest.upload, leaves, strict=True) if spec.shape == (2,))
    np.testing.assert_allclose(update / 3, -np.asarray(state.algorithm.model.trainable), rtol=1e-6)
    assert (answer.memory, answer.kept) == ([], [])


def test_lists_and_float64_are_taken_as_jax_would(runner):
    a = runner.run(assignment(runner), (X.astype(np.float64), Y.astype(np.float64)))
    assert a.report == runner.run(assignment(runner), (X, Y)).report


def test_a_client_without_rows_takes_no_step(runner):
    head, leaves = report(runner, runner.run(assignment(runner), (X[:0], Y[:0])))
    assert head.finite
    assert all(not leaf.any() for leaf in leaves)


def test_a_client_that_is_not_finite_sends_only_that(runner):
    answer = runner.run(assignment(runner), (X * np.nan, Y))
    head, leaves = report(runner, answer)
    assert (head.finite, leaves) == (False, [])
    assert len(answer.report) < 120


@pytest.mark.parametrize("changes", [{"plan": "0" * 32}, {"phase": 1}])
def test_an_assignment_of_another_plan(runner, changes):
    with pytest.raises(sf.WireError, match=r"an assignment for the plan.*fetch the plan.*SF-WIRE-010"):
        runner.run(assignment(runner, **changes), (X, Y))


def test_an_assignment_with_other_arrays(runner):
    data = codec.encode(Assignment(runner.id, 0, 0, (0, 0), 5), [np.zeros(3, np.float32), np.zeros((), np.int32)])
    with pytest.raises(sf.WireError, match=r"float32\[3\]; needed: float32\[2\].*SF-WIRE-008"):
        runner.run(data, (X, Y))


def test_a_report_with_other_shapes_is_refused_by_the_server(runner):
    good = codec.decode(runner.run(assignment(runner), (X, Y)).report, Report, lambda _: runner.manifest.upload)
    bad = [np.zeros((*a.shape, 2), a.dtype) for a in good[1]]
    with pytest.raises(sf.WireError, match=r"SF-WIRE-008"):
        codec.decode(codec.encode(good[0], bad), Report, lambda _: runner.manifest.upload)


# ---------------------------------------------------------------------------------------- tampered plans


def changed(plan, **fields):
    manifest, _ = codec.decode(plan, PlanManifest, lambda _: ())
    fields = {name: value(getattr(manifest, name)) for name, value in fields.items()}
    return codec.encode(msgspec.structs.replace(manifest, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"carry": lambda c: (*c[:-1], Spec("n", (9,), "int32"))},
        {"briefing": lambda b: b[1:]},
        {"upload": lambda u: tuple(s._replace(dtype="float16") for s in u)},
        {"batch": lambda b: (b[0]._replace(shape=(2, 5)), *b[1:])},
        {"programs": lambda p: {**p, "init": p["finish"]}},
        {"programs": lambda p: {**p, "extra": p["finish"]}},
        {"programs": lambda p: {k: v for k, v in p.items() if k != "finish"}},
        {"programs": lambda p: {**p, "step": p["step"][:-50]}},
        {"programs": lambda p: {**p, "step": b""}},
        {"programs": lambda p: {**p, "step": b"\0" * 500}},
        {"programs": lambda p: {**p, "step": p["step"][::-1]}},
        {"batching": lambda b: (0, *b[1:])},
    ],
    ids=lambda f: next(iter(f)),
)
def test_a_plan_that_was_changed_is_refused(plan, fields):
    with pytest.raises(sf.WireError, match=r"SF-WIRE-01[12]"):
        Runner(changed(plan, **fields))


def test_a_changed_plan_has_another_name(plan, runner):
    other = Runner(changed(plan, algorithm=lambda a: a + "!"))
    assert other.id != runner.id
    with pytest.raises(sf.WireError, match=r"SF-WIRE-010"):
        other.run(assignment(runner), (X, Y))


def test_a_flipped_bit_gives_a_wire_error_or_another_name(plan, runner):
    draw = np.random.default_rng(3)
    refused = 0
    for _ in range(12):
        damaged = bytearray(plan)
        damaged[int(draw.integers(len(plan)))] ^= 1 << int(draw.integers(8))
        try:
            other = Runner(bytes(damaged))
        except sf.WireError:
            refused += 1
        else:
            with pytest.raises(sf.WireError, match=r"SF-WIRE-010"):
                other.run(assignment(runner), (X, Y))
    assert refused < 12
