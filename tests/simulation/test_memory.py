"""Memory of a round, from the compiler's own account: no clock, no noise."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.core.cohort import Cohort

SIDE = 200


def program_bytes(clients: int) -> int:
    """Arguments and results other than the data, and temporaries, of one round's program."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(clients, SIDE)).astype(np.float32)
    federation = sf.Federation.from_arrays(x, np.zeros(clients, np.int32), offsets=np.arange(clients + 1))
    model = sf.models.from_functions(
        lambda key: jnp.zeros((SIDE, SIDE)), lambda w, x: x @ w, optax.softmax_cross_entropy_with_integer_labels
    )
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=1)).on(sf.Simulation(streams=1))
    state = process.initialize()
    bound = process._run
    begun = bound._begun(state, Cohort(federation, np.arange(clients)))
    plans = (bound._plans(0, begun, [0], bound._rooms(0, begun))[0],)
    examples = bound.placement.examples(federation)
    memory, seen = bound.recall.rows(state, [], begun.seats.slots)
    arguments = (state.algorithm, state.stages, state.seed, np.int32(0), plans, examples, memory, seen)
    account = bound.compiled.lower(*arguments).compile().memory_analysis()
    data = sum(np.asarray(a).nbytes for a in (*plans[0][0][0], *examples))
    return account.argument_size_in_bytes + account.output_size_in_bytes + account.temp_size_in_bytes - data


@pytest.mark.parametrize("clients", [8, 512])
def test_a_round_needs_at_most_six_copies_of_the_model(clients):
    assert program_bytes(clients) < 6 * 4 * SIDE**2


def test_memory_does_not_grow_with_the_clients():
    assert program_bytes(512) - program_bytes(8) < 0.1 * 4 * SIDE**2
