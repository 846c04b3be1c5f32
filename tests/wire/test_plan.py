"""Plans: a client gets programs and types, and nothing of the person who wrote the model."""

import getpass
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold import keys, tree
from sumfold.client.runner import Runner
from sumfold.core.client import Briefing
from sumfold.wire import codec
from sumfold.wire.messages import PlanManifest
from sumfold.wire.plan import content_id, export_plan


def init(key):
    return {"w": jnp.zeros(3), "count": jnp.int32(7)}


def a_secret_architecture(params, x, key=None):
    """Nobody may read this docstring."""
    hidden_invention = x @ params["w"]  # nobody may read this comment
    return jnp.tanh(hidden_invention)


@jax.jit
def squared_difference(outputs, y):
    return (outputs - y) ** 2


PROCESS = sf.learning.fed_avg(
    sf.models.from_functions(init, a_secret_architecture, squared_difference), optax.adam(0.1)
)


def export(process=PROCESS, batch=4, platforms=None):
    state = process.initialize()
    phase = process.round.phases[0]
    public = {part: stage.share(state.stages[0][part]) for part, stage in phase.aggregate.items()}
    briefing = Briefing(phase.broadcast(state.algorithm, keys.typed(state.seed)), public)
    shapes = None
    if batch:
        x = (tree.shape((batch, 3), "float32"), tree.shape((batch,), "float32"))
        shapes = sf.Batch(x, tree.shape((batch,), "bool"))
    return export_plan(process.round, 0, briefing, (), shapes, platforms)


@pytest.fixture(scope="module")
def plan():
    return export()


def test_no_file_name_no_line_and_no_source(plan):
    here = Path(__file__)
    secrets = [".py", str(here.parent), str(here.parents[2]), here.name, here.stem, os.getcwd(), "site-packages"]
    secrets += [
        "hidden_invention",
        "nobody may read",
        "Nobody may read",
        "params[",
        "jnp.tanh",
        "a_secret_architecture",
    ]
    secrets += ["lambda", "/work", "/home"]
    secrets += [getpass.getuser()] if len(getpass.getuser()) > 4 else []
    assert [secret for secret in secrets if secret.encode() in plan] == []
    programs = codec.decode(plan, PlanManifest, lambda _: ())[0].programs
    for code in programs.values():
        text = jax.export.deserialize(bytearray(code)).mlir_module()
        assert [s for s in secrets if s in text] == []


def test_the_search_above_would_find_something():
    """Without Sumfold's precaution an export does name this file."""
    exported = jax.export.export(jax.jit(lambda x: jnp.tanh(x)))(jnp.ones(2))
    assert b"test_plan.py" in bytes(exported.serialize())


def test_names_of_the_jitted_helpers_are_all_that_a_plan_shows(plan):
    """A name of an inner `jit` is a symbol of the program; it is known, and it is no source."""
    module = jax.export.deserialize(bytearray(codec.decode(plan, PlanManifest, lambda _: ())[0].programs["step"]))
    assert "outputs - y" not in module.mlir_module()


def test_the_manifest_says_all_types(plan):
    manifest, _ = codec.decode(plan, PlanManifest, lambda _: ())
    assert (manifest.algorithm, manifest.phase, set(manifest.programs)) == (
        "fed_avg",
        0,
        {"fresh", "init", "step", "finish"},
    )
    assert [(s.shape, s.dtype) for s in manifest.batch] == [((4, 3), "float32"), ((4,), "float32"), ((4,), "bool")]
    assert ("float32", (3,)) in {(s.dtype, s.shape) for s in manifest.upload}
    assert manifest.groups == {"update": "add"}
    assert sf.Batching(*manifest.batching) == sf.Batching()


def test_the_same_algorithm_gives_the_same_plan(plan):
    assert export() == plan
    assert content_id(plan) == content_id(export())
    assert content_id(export(batch=8)) != content_id(plan)


def test_without_examples_there_is_no_step():
    manifest, _ = codec.decode(export(batch=None), PlanManifest, lambda _: ())
    assert set(manifest.programs) == {"fresh", "init", "finish"}
    assert manifest.batch == ()


def test_a_plan_for_other_platforms_can_be_made_here():
    manifest, _ = codec.decode(export(platforms=("cpu", "cuda")), PlanManifest, lambda _: ())
    assert set(jax.export.deserialize(bytearray(manifest.programs["step"])).platforms) == {"cpu", "cuda"}


def test_the_configuration_is_restored(plan):
    before = jax.config.jax_traceback_in_locations_limit
    export()
    assert jax.config.jax_traceback_in_locations_limit == before


@pytest.mark.parametrize("size", [np.int64(4), 4, None])
def test_any_batching_can_be_sent(size):
    process = sf.learning.fed_avg(PROCESS.model, optax.sgd(0.1), batching=sf.Batching(size=size, max_steps=np.int32(3)))
    assert Runner(export(process)).manifest.batching == (size, 1, True, 3, False)


def test_work_that_calls_back_into_python_cannot_be_sent():
    def predict(params, x):
        jax.debug.print("{}", x.sum())
        return x @ params["w"]

    talking = sf.learning.fed_avg(sf.models.from_functions(init, predict, squared_difference), optax.sgd(0.1))
    with pytest.raises(sf.CompositionError, match=r"calls back into Python.*jax\.debug\.print.*SF-COMP-029"):
        export(talking)
