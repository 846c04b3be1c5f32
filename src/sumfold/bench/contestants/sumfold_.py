"""Sumfold: `process.next` with a cohort's ids, or `sf.train`, as a user's script does it, without a main guard.

Options: ``loop`` (``next`` or ``train``), ``model`` (``functions``; ``flax``, ``keras``, ``equinox`` for the EMNIST
CNN), ``examples`` (``float32``, or ``uint8`` that the model decodes), ``processes`` (so many of `sf.Processes`); all
others go to `sf.Simulation`.
"""

from stopwatch import ended, enter, gemm, leave, ready, triad, turn, workloads

game = enter()

import time

import jax
import optax
import sumfold_models

import sumfold as sf

options = dict(game.options)
loop, written = options.pop("loop", "next"), options.pop("model", "functions")
encoded = options.pop("examples", "float32") == "uint8"
processes = options.pop("processes", 0)
runtime = sf.Processes(processes, **options) if processes else sf.Simulation(**options)
process = sumfold_models.process(game, optax.sgd(game.workload.rate), written).on(runtime)
ready(game)

x = game.data.x if encoded else game.floats(game.data.x)
fed = sf.Federation.from_arrays(sumfold_models.shaped(x, written), game.data.y, offsets=game.data.offsets)
state = process.initialize(seed=workloads.SEED)

if loop == "train":
    last = [time.perf_counter()]

    def watch(event):
        if event.kind == "round_end":
            last.append(time.perf_counter())
            ended(game, last[-1] - last[-2])

    history = sf.train(
        process, fed, rounds=len(game.cohorts), cohorts=game.cohorts, state=state, progress=False, callbacks=[watch]
    )
    state, told = history.state, history.metrics
else:
    told = []
    for cohort in game.cohorts:
        with turn(game):
            state, metrics = process.next(state, fed, clients=cohort)
            jax.block_until_ready(state.algorithm)
        told.append(metrics)

device = jax.devices()[0]
train = [metrics["client_work"]["train"] for metrics in told]
leave(
    game,
    sumfold_models.final_loss(game, process, state, written),
    {"sumfold": sf.__version__, "jax": jax.__version__},
    gemm(sumfold_models.product) if game.workload.flops and device.platform == "cpu" else None,
    examples=[int(row["num_examples"]) for row in train],
    steps=[int(row["num_batches"]) for row in train],
    triad_gbs=None if game.workload.flops or device.platform != "cpu" else triad(game, sumfold_models.triad),
    device=device.device_kind if device.platform != "cpu" else "",
)
