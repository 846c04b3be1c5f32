"""Convolutions, pooling and a whole training step inside a loop: as written, in canonical form, in Winograd's form.

    taskset -c 1 python benchmarks/convolutions.py [--repeats 7] [--only KIND …] [--parts]

Prints one line a kind: milliseconds of processor time a step (least of the repeats) of the forward pass and both
gradients of one layer on a batch of 20, in each of the three forms, and how long each took to compile. The last kind
is a step of SGD of the EMNIST network of Reddi et al. 2021 (3×3×32, 3×3×64, max-pool 2, dense 128, dense 62; no
dropout), with its share of the GEMM peak of one core. `--parts` adds the longest operations of that step.

XLA's own threads are off, so that one core is measured, as a stream of clients uses it. The machine should be idle.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
os.environ["JAX_PLATFORMS"] = "cpu"

import argparse
import collections
import glob
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from sumfold.simulation.canonical import canonical

FORMS: dict[str, Callable[..., Any]] = {
    "plain": lambda step: step,
    "canonical": canonical,
    "winograd": partial(canonical, winograd=True),
}
BATCH = 20
STEPS = 10


def normal(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(sum(shape)), shape)


def layer(function: Callable[..., Any]) -> Callable[..., Any]:
    """A step that takes the gradient of one layer by both of its arguments, and goes a little along them."""

    def step(arrays: tuple[Any, ...], _: Any) -> tuple[Any, ...]:
        result, pulled = jax.vjp(function, *arrays)
        return tuple(a - 1e-9 * g for a, g in zip(arrays, pulled(result), strict=True))

    return step


def conv(
    size: int,
    into: int,
    out: int,
    k: int = 3,
    stride: int = 1,
    pad: str = "SAME",
    groups: int = 1,
    dilation: int = 1,
    space: str = "HW",
) -> tuple[Callable[..., Any], Any]:
    axes = len(space)
    function = partial(
        lax.conv_general_dilated,
        window_strides=(stride,) * axes,
        padding=pad,
        rhs_dilation=(dilation,) * axes,
        dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
        feature_group_count=groups,
    )
    images, filters = normal(BATCH, *(size,) * axes, into), normal(*(k,) * axes, into // groups, out)
    return layer(function), (images, filters / (k ** (axes / 2) * into**0.5))


def channels_first(size: int, into: int, out: int, k: int = 3) -> tuple[Callable[..., Any], Any]:
    function = partial(lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
    return layer(function), (normal(BATCH, into, size, size), normal(out, into, k, k) / (k * into**0.5))


def pool(size: int, channels: int, k: int, stride: int, pad: str, kind: str) -> tuple[Callable[..., Any], Any]:
    start, operation = (-jnp.inf, lax.max) if kind == "max" else (0.0, lax.add)

    def function(x: Any) -> Any:
        return lax.reduce_window(x, start, operation, (1, k, k, 1), (1, stride, stride, 1), pad)

    return layer(function), (normal(BATCH, size, size, channels),)


def emnist() -> tuple[Callable[..., Any], Any]:
    y = jax.random.randint(jax.random.key(1), (BATCH,), 0, 62)
    x = normal(BATCH, 28, 28, 1)
    shapes = {"1": (3, 3, 1, 32), "2": (3, 3, 32, 64), "3": (9216, 128), "4": (128, 62)}
    params = {name: (normal(*shape) * 0.02, jnp.zeros(shape[-1])) for name, shape in shapes.items()}

    def loss(params: Any, x: Any, y: Any) -> Any:
        for name in "12":
            x = lax.conv_general_dilated(
                x, params[name][0], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + params[name][1])
        x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID").reshape(len(x), -1)
        x = jax.nn.relu(x @ params["3"][0] + params["3"][1])
        x = x @ params["4"][0] + params["4"][1]
        return -jax.nn.log_softmax(x)[jnp.arange(len(y)), y].mean()

    def step(params: Any, data: Any) -> Any:
        return jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(loss)(params, *data))

    return step, (params, (x, y))


KINDS: dict[str, tuple[Callable[..., Any], Any]] = {
    "3x3 26 32>64 valid": conv(26, 32, 64, pad="VALID"),
    "3x3 28 1>32 valid": conv(28, 1, 32, pad="VALID"),
    "3x3 32 3>32": conv(32, 3, 32),
    "3x3 28 16>16": conv(28, 16, 16),
    "3x3 28 16>32": conv(28, 16, 32),
    "3x3 28 32>32": conv(28, 32, 32),
    "3x3 16 64>64": conv(16, 64, 64),
    "3x3 14 64>128": conv(14, 64, 128),
    "3x3 10 128>128": conv(10, 128, 128),
    "3x3 8 64>64": conv(8, 64, 64),
    "3x3 7 128>128": conv(7, 128, 128),
    "3x3 4 256>256": conv(4, 256, 256),
    "3x3/2 28 32>64": conv(28, 32, 64, stride=2),
    "3x3 dilated 28 32>32": conv(28, 32, 32, dilation=2),
    "5x5 28 1>32": conv(28, 1, 32, 5),
    "5x5 14 32>64": conv(14, 32, 64, 5),
    "1x1 28 64>64": conv(28, 64, 64, 1),
    "1x1/2 28 32>64": conv(28, 32, 64, 1, 2),
    "7x7/2 32 3>32": conv(32, 3, 32, 7, 2),
    "11x11 28 8>8": conv(28, 8, 8, 11),
    "5x5 28 1>32 valid": conv(28, 1, 32, 5, pad="VALID"),
    "5x5 12 32>64 valid": conv(12, 32, 64, 5, pad="VALID"),
    "3x3/2 27 32>64 valid": conv(27, 32, 64, stride=2, pad="VALID"),
    "3x3 6 128>128 valid": conv(6, 128, 128, pad="VALID"),
    "3x3 32 3>32 valid": conv(32, 3, 32, pad="VALID"),
    "3x3 15 16>16 valid": conv(15, 16, 16, pad="VALID"),
    "5x5 32 3>6 valid": conv(32, 3, 6, 5, pad="VALID"),
    "5x5 14 6>16 valid": conv(14, 6, 16, 5, pad="VALID"),
    "5x5 28 1>6": conv(28, 1, 6, 5),
    "3x3 32 3>16": conv(32, 3, 16),
    "3x3 28 8>8": conv(28, 8, 8),
    "5 of 512, 1>16": conv(512, 1, 16, 5, space="W"),
    "3x3x3 16 1>16": conv(16, 1, 16, space="DHW"),
    "3x3x3 14 16>32 valid": conv(14, 16, 32, pad="VALID", space="DHW"),
    "3x3x3/2 16 8>16": conv(16, 8, 16, stride=2, space="DHW"),
    "grouped 2, 3x3 28 32>32": conv(28, 32, 32, groups=2),
    "grouped 8, 3x3 28 32>32": conv(28, 32, 32, groups=8),
    "depthwise 3x3 28 32": conv(28, 32, 32, groups=32),
    "grouped 32, 3x3 14 128>128": conv(14, 128, 128, groups=32),
    "depthwise 3x3/2 28 32>64": conv(28, 32, 64, stride=2, groups=32),
    "depthwise 7x7 14 64": conv(14, 64, 64, 7, groups=64),
    "channels first 3x3 26 32>64": channels_first(26, 32, 64),
    "channels first 5x5 14 8>16": channels_first(14, 8, 16, 5),
    "max 2/2": pool(24, 64, 2, 2, "VALID", "max"),
    "max 2/2 of 25": pool(25, 64, 2, 2, "VALID", "max"),
    "max 3/2": pool(24, 64, 3, 2, "SAME", "max"),
    "max 3/1": pool(24, 32, 3, 1, "SAME", "max"),
    "max 5/2": pool(24, 32, 5, 2, "SAME", "max"),
    "max 4/4": pool(24, 64, 4, 4, "VALID", "max"),
    "sum 2/2": pool(24, 64, 2, 2, "VALID", "sum"),
    "sum 3/2": pool(24, 64, 3, 2, "SAME", "sum"),
    "sum 5/1": pool(24, 32, 5, 1, "SAME", "sum"),
    "EMNIST step": emnist(),
}


def compiled(step: Callable[..., Any], carry: Any, data: Any) -> tuple[Any, float]:
    """A loop of steps, and how long it took to compile, in seconds."""

    def loop(carry: Any, data: Any, times: Any) -> Any:
        return lax.fori_loop(0, times, lambda i, carry: step(carry, data), carry)

    begin = time.perf_counter()
    program = jax.jit(loop).lower(carry, data, jnp.int32(1)).compile()
    return program, time.perf_counter() - begin


def milliseconds(run: Callable[[], Any], times: int, repeats: int) -> float:
    """The least processor time of one of `times` steps; what others do on the machine counts little."""
    taken = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        jax.block_until_ready(run())
        taken.append((time.process_time() - begin) / times * 1e3)
    return min(taken)


def longest(program: Any, arguments: Any, number: int = 16) -> list[tuple[float, str]]:
    """The longest operations of one run, in milliseconds, by XLA's own account."""
    with tempfile.TemporaryDirectory() as folder:
        options = jax.profiler.ProfileOptions()
        options.host_tracer_level, options.python_tracer_level = 3, 0
        jax.profiler.start_trace(folder, profiler_options=options)
        jax.block_until_ready(program(*arguments))
        jax.profiler.stop_trace()
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        data = jax.profiler.ProfileData.from_file(path)
        total: collections.Counter[str] = collections.Counter()
        for event in (event for plane in data.planes for line in plane.lines for event in line.events):
            total[event.name] += int(event.duration_ns)
    lines = {
        line.split(" = ")[0].strip().removeprefix("ROOT ").lstrip("%"): line for line in program.as_text().split("\n")
    }
    return [(t / 1e6, lines[name].strip()[:110]) for name, t in total.most_common() if name in lines][:number]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=[], metavar="KIND", help="kinds whose names contain one of these")
    parser.add_argument("--forms", nargs="*", default=list(FORMS), choices=list(FORMS))
    parser.add_argument("--parts", action="store_true")
    chosen = parser.parse_args()
    square = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(square))
    peak = 2 * 2048**3 / milliseconds(partial(product, square), 1, 5) / 1e6
    print(json.dumps({"gemm_gflops": round(peak), "jax": jax.__version__}))
    print(
        f"{'kind':30s}" + "".join(f"{name:>12s}" for name in chosen.forms) + "   ms a step" + 8 * " " + "s to compile"
    )
    for kind, (step, arguments) in KINDS.items():
        if chosen.only and not any(word in kind for word in chosen.only):
            continue
        carry, data = arguments if kind == "EMNIST step" else (arguments, ())
        cells, times = [], []
        for form in map(FORMS.__getitem__, chosen.forms):
            program, seconds = compiled(form(step), carry, data)
            cells.append(milliseconds(partial(program, carry, data, jnp.int32(STEPS)), STEPS, chosen.repeats))
            times.append(seconds)
            if kind == "EMNIST step" and chosen.parts:
                for length, line in longest(program, (carry, data, jnp.int32(STEPS))):
                    print(f"    {length / STEPS:7.3f} ms  {line}")
        print(
            f"{kind:30s}" + "".join(f"{c:12.3f}" for c in cells) + " " * 10 + " ".join(f"{t:.1f}" for t in times),
            flush=True,
        )
        if kind == "EMNIST step":
            work = 71.6e6 * BATCH
            print(f"{'share of the GEMM peak':30s}" + "".join(f"{work / c / 1e6 / peak:12.0%}" for c in cells))


if __name__ == "__main__":
    main()
