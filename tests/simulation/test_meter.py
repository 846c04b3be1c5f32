"""The meter, on a clock that the tests move."""

import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sumfold.simulation import meter as metering
from sumfold.simulation.flops import flops, gemm_peak
from sumfold.simulation.meter import Meter

COMPILED, TRACED = "/jax/core/compile/backend_compile_duration", "/jax/core/compile/jaxpr_trace_duration"


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(metering, "perf_counter", clock)
    return clock


def test_the_innermost_span_has_the_time(clock):
    meter = Meter()
    clock.now += 7
    with meter.span("outer"):
        clock.now += 1
        with meter.span("inner"):
            clock.now += 2
        clock.now += 4
        with meter.span("outer"):
            clock.now += 8
        assert meter.snapshot()["seconds"] == {"outer": 13, "inner": 2}, "what is open counts too"
    clock.now += 16
    assert meter.snapshot()["seconds"] == {"outer": 13, "inner": 2}


def test_a_span_ends_with_an_error(clock):
    meter = Meter()

    def fails():
        with meter.span("plan"):
            clock.now += 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    clock.now += 1
    assert meter.snapshot()["seconds"] == {"plan": 1}


def test_threads_share_wall_time(clock):
    meter = Meter()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        clients, plan = meter.span("clients"), meter.span("plan")
        one.submit(clients.__enter__).result()
        clock.now += 1
        other.submit(plan.__enter__).result()
        clock.now += 2  # one for each
        one.submit(clients.__exit__, None, None, None).result()
        clock.now += 4
        other.submit(plan.__exit__, None, None, None).result()
    assert meter.snapshot()["seconds"] == {"clients": 2, "plan": 5}


def test_threads_of_one_name_add_up_to_wall_time(clock):
    meter = Meter()
    barrier = threading.Barrier(5, action=lambda: setattr(clock, "now", clock.now + 3))

    def stream():
        with meter.span("clients"):
            meter.count("steps", 2)
            barrier.wait()
            barrier.wait()

    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(stream) for _ in range(4)]
        barrier.wait()
        barrier.wait()
        for each in streams:
            each.result()
    measured = meter.snapshot()
    assert measured["seconds"]["clients"] == pytest.approx(6)
    assert measured["counts"] == {"steps": 8}


def test_compilation_is_moved_out_of_its_span_and_counted_once(clock):
    meter, other = Meter(), Meter()
    with other.span("elsewhere"), meter.span("clients"):
        clock.now += 10
        jax.monitoring.record_event_time_span(TRACED, 1.0, 2.0)  # within the next
        jax.monitoring.record_event_time_span(TRACED, 0.5, 3.0)
        jax.monitoring.record_event_time_span(COMPILED, 3.0, 7.0)
        jax.monitoring.record_event_time_span("/another/event", 0.0, 9.0)
    assert meter.snapshot() == {"seconds": {"clients": 3.5, "compile": 6.5}, "counts": {"executables": 1}}
    assert other.snapshot() == {"seconds": {"elsewhere": 10}, "counts": {}}
    jax.monitoring.record_event_time_span(COMPILED, 7.0, 9.0)
    assert meter.snapshot()["seconds"]["compile"] == 6.5, "outside of every span it is nobody's"


def test_a_program_from_the_cache_is_not_compiled(clock):
    meter = Meter()
    with meter.span("clients"):
        clock.now += 2
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        jax.monitoring.record_event_time_span(COMPILED, 0.0, 1.0)
    assert meter.snapshot() == {"seconds": {"clients": 1, "compile": 1}, "counts": {"executables": 0, "cached": 1}}


def test_what_jax_compiles_is_heard():
    meter = Meter()
    add = jax.jit(lambda a: a * 3 - 1)
    with meter.span("clients"):
        add(np.ones(7, np.float32))
    counts = meter.snapshot()["counts"]
    assert counts["executables"] + counts.get("cached", 0) == 1
    with meter.span("clients"):
        add(np.ones(7, np.float32))
    assert meter.snapshot()["counts"] == counts, "the second call compiles nothing"


# -- operations


def conv(**options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, w: lax.conv_general_dilated(x, w, dimension_numbers=numbers, **options)


def test_operations_of_products_loops_and_branches():
    a, b = jnp.ones((4, 3)), jnp.ones((3, 3))
    assert flops(lambda a, b: a @ b, a, b) == 2 * 4 * 3 * 3
    assert flops(lambda a, b: lax.scan(lambda c, _: (c @ b, None), a, None, length=5)[0], a, b) == 5 * 72
    assert flops(lambda a, b: lax.cond(a.sum() > 0, lambda: a @ b @ b, lambda: a @ b), a, b) == 2 * 72
    assert flops(jax.vmap(jax.jit(lambda a: jax.checkpoint(jnp.dot)(a, a.T))), jnp.ones((6, 4, 3))) == 6 * 2 * 4 * 4 * 3


@pytest.mark.parametrize(
    ("options", "channels"),
    [
        ({"window_strides": (1, 1), "padding": "VALID"}, 4),
        ({"window_strides": (2, 1), "padding": "SAME", "rhs_dilation": (1, 2)}, 4),
        ({"window_strides": (1, 1), "padding": "VALID", "feature_group_count": 2}, 2),
        ({"window_strides": (1, 2), "padding": ((2, 1), (0, 3)), "lhs_dilation": (3, 1)}, 4),
    ],
    ids=["plain", "strides and dilation", "groups", "transposed"],
)
def test_operations_of_convolutions_are_those_of_a_loop(options, channels):
    x, w = np.ones((2, 6, 7, 4), np.float32), np.ones((3, 2, channels, 6), np.float32)
    # A convolution of ones counts its own multiplications.
    assert flops(conv(**options), x, w) == 2 * int(conv(**options)(x, w).sum())


def test_the_peak_is_measured_once():
    assert gemm_peak() == gemm_peak() > 1e8
