"""Chaining: an onion of client halves around Σ, and bounds that are checked while it is put together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sumfold as sf
from sumfold.core import Bound, Contribution, Stage, add, maximum, modular
from sumfold.testing import check_stage

KEY = jax.random.key(0)


def tagging(name, group=add, metrics=None):
    """Writes its name on the way in and on the way out; counts rounds on the server, encodings on the client."""
    return Stage(
        encode=lambda public, memory, value, key: (f"{value}>{name}{public}", memory + 1),
        decode=lambda state, total, key: (f"{total}<{name}", state + 1, metrics or {}),
        init=lambda shapes: 10,
        memory=lambda shapes: 0,
        share=lambda state: state * 2,
        group=group,
    )


def test_client_halves_run_first_to_last_and_server_halves_back():
    both = sf.chain(tagging("a", None, {"a": 1}), tagging("b", maximum, {"b": 2}), tagging("c", None))
    server, memory = both.init(None), both.memory(None)
    assert (server, memory) == ((10, 10, 10), (0, 0, 0))
    sent, memory = both.encode(both.share(server), memory, "v", KEY)
    assert sent == "v>a20>b20>c20"
    assert memory == (1, 1, 1)
    result, server, metrics = both.decode(server, "t", KEY)
    assert result == "t<c<b<a"
    assert server == (11, 11, 11)
    assert metrics == {"a": 1, "b": 2}
    assert both.group is maximum


def test_the_last_group_counts_and_a_sum_is_the_default():
    assert sf.chain(tagging("a", maximum), tagging("b", modular(8))).group.kind == "modular"
    assert sf.chain(tagging("a", None)).group is add


def test_chains_nest():
    half = Stage(lambda p, m, v, k: (v * 0.5, m), lambda s, t, k: (t * 2.0, s, {}))
    flat, nested = sf.chain(half, half, half), sf.chain(sf.chain(half, half), half)
    for stage in (flat, nested):
        public, memory = stage.share(stage.init(None)), stage.memory(None)
        assert stage.encode(public, memory, 8.0, KEY)[0] == 1.0
        assert stage.decode(stage.init(None), 1.0, KEY)[0] == 8.0


def test_each_stage_draws_from_a_key_of_its_own():
    drawing = Stage(
        lambda p, m, v, k: (jnp.append(v, jax.random.uniform(k)), m), lambda s, t, k: (t, s, {}), group=None
    )
    drawn, _ = sf.chain(drawing, drawing).encode(((), ()), ((), ()), jnp.zeros(0), jax.random.key(0))
    assert float(drawn[0]) != float(drawn[1])


def test_an_empty_chain_is_refused():
    with pytest.raises(sf.CompositionError, match=r"chain\(\) without a stage.*one stage or more"):
        sf.chain()


def test_bounds_pass_through_a_chain_in_order():
    clip = tagging("clip")._replace(bound=lambda b: b._replace(norm=2.0))
    double = tagging("double")._replace(bound=lambda b: b._replace(norm=b.norm * 2))
    assert sf.chain(clip, double).bound(Bound()).norm == 4.0
    assert sf.chain(double, clip).bound(Bound()).norm == 2.0
    assert sf.aggregators.mean().bound(Bound(norm=2.0, weight=3.0, low=-1.0, high=0.5)) == Bound(6.0, 3.0, -3.0, 3.0)


def test_mean_and_sum_on_paper():
    clients = [(1.0, 1.0), (3.0, 3.0), (100.0, 0.0)]
    mean = sf.aggregators.mean()
    total = mean.encode((), (), Contribution(jnp.float32(0), jnp.float32(0)), KEY)[0]
    for value, weight in clients:
        sent, _ = mean.encode((), (), Contribution(jnp.float32(value), jnp.float32(weight)), KEY)
        total = mean.group.merge(total, sent)
    assert float(mean.decode((), total, KEY)[0]) == 2.5


@pytest.mark.parametrize("make", [sf.aggregators.mean, sf.aggregators.sum], ids=["mean", "sum"])
def test_the_aggregators_are_lawful(make):
    result = check_stage(make(), {"w": jnp.zeros((2, 3)), "b": jnp.zeros((), jnp.bfloat16)}, rtol=2e-2)
    assert result["b"].dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(result["w"])).all()
