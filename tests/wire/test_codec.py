"""The wire encoding: exact round trips, and nothing but a WireError for anything else."""

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_tensors

import sumfold as sf
from sumfold.tree import Spec
from sumfold.wire import codec
from sumfold.wire.messages import Assignment, PlanManifest, Report

REPORT = Report(round=3, phase=0, client=2**32 - 1, finite=True, weights_valid=False)
DTYPES = [bool, np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64]
DTYPES += [np.float16, jnp.bfloat16, np.float32, np.float64, np.complex64]


def spec(array):
    return Spec("a", array.shape, str(array.dtype))


def read(data, kind=Report, specs=(), limits=codec.DEFAULT):
    return codec.decode(data, kind, lambda _: specs, limits)


def message(header: bytes, body: bytes = b"") -> bytes:
    return b"SUM1" + len(header).to_bytes(4, "little") + header + body


@pytest.mark.tiny
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: np.dtype(d).name)
def test_every_dtype_and_shape(dtype):
    arrays = [np.arange(6).reshape(2, 3).astype(dtype), np.ones((), dtype), np.zeros((0, 4), dtype)]
    arrays.append(arrays[0].T)
    header, back = read(codec.encode(REPORT, arrays), specs=[spec(a) for a in arrays])
    assert header == REPORT
    for a, b in zip(arrays, back, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        np.testing.assert_array_equal(a, b)


@given(
    st.integers(0, 2**31),
    st.integers(0, 9),
    st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
    st.text(max_size=20),
)
def test_every_assignment(round, phase, seed, client, plan):
    given_ = Assignment(plan, round, phase, seed, client)
    assert read(codec.encode(given_), Assignment) == (given_, [])


def test_more_than_ten_arrays_keep_their_order():
    arrays = [np.full(2, i, np.float32) for i in range(25)]
    _, back = read(codec.encode(REPORT, arrays), specs=[spec(a) for a in arrays])
    assert [int(a[0]) for a in back] == list(range(25))


def test_bits_survive():
    odd = np.array([0x7FC00001, 0x80000000, 0x00000001, 0xFF800000], np.uint32).view(np.float32)
    _, [back] = read(codec.encode(REPORT, [odd]), specs=[spec(odd)])
    np.testing.assert_array_equal(back.view(np.uint32), odd.view(np.uint32))


# ---------------------------------------------------------------------------------------- refusals

ONE = np.arange(3, dtype=np.float32)
GOOD = codec.encode(REPORT, [ONE])


@pytest.mark.parametrize(
    ("code", "data", "specs"),
    [
        ("SF-WIRE-002", b"", []),
        ("SF-WIRE-002", b"SUM1\0\0\0", []),
        ("SF-WIRE-002", b"PK\3\4" + GOOD[4:], [spec(ONE)]),
        ("SF-WIRE-003", b"SUM1\xff\xff\xff\xff", []),
        ("SF-WIRE-003", message(b"x" * 10)[:-1], []),
        ("SF-WIRE-004", message(b""), []),
        ("SF-WIRE-004", message(msgspec.msgpack.encode({"type": "report"})), []),
        ("SF-WIRE-004", message(msgspec.msgpack.encode({**msgspec.to_builtins(REPORT), "type": "assignment"})), []),
        ("SF-WIRE-004", message(msgspec.msgpack.encode({**msgspec.to_builtins(REPORT), "round": "3"})), []),
        ("SF-WIRE-004", message(msgspec.msgpack.encode(REPORT) + b"\0"), []),
        ("SF-WIRE-005", GOOD, []),
        ("SF-WIRE-006", codec.encode(REPORT), [spec(ONE)]),
        ("SF-WIRE-006", GOOD[:-1], [spec(ONE)]),
        ("SF-WIRE-006", GOOD + b"\0", [spec(ONE)]),
        ("SF-WIRE-007", GOOD, [spec(ONE)] * 2),
        ("SF-WIRE-007", codec.encode(REPORT, [ONE, ONE]), [spec(ONE)]),
        ("SF-WIRE-007", message(msgspec.msgpack.encode(REPORT), save_tensors({"w": ONE})), [spec(ONE)]),
        ("SF-WIRE-008", GOOD, [Spec("w", (4,), "float32")]),
        ("SF-WIRE-008", GOOD, [Spec("w", (3, 1), "float32")]),
        ("SF-WIRE-008", GOOD, [Spec("w", (3,), "int32")]),
    ],
)
def test_what_is_not_exactly_a_message(code, data, specs):
    with pytest.raises(sf.WireError, match=code) as caught:
        read(data, specs=specs)
    assert caught.value.code == code
    assert "the message is refused" in str(caught.value)


def test_a_wrong_array_is_named():
    with pytest.raises(sf.WireError, match=r"w as float32\[3\]; needed: float32\[4\]"):
        read(GOOD, specs=[Spec("w", (4,), "float32")])


def test_caps():
    small = codec.Limits(header_bytes=10, body_bytes=len(GOOD))
    with pytest.raises(sf.WireError, match=r"SF-WIRE-003"):
        read(GOOD, specs=[spec(ONE)], limits=small)
    with pytest.raises(sf.WireError, match=r"a message of .* bytes.*SF-WIRE-001"):
        read(GOOD, specs=[spec(ONE)], limits=codec.Limits(body_bytes=len(GOOD) - 1))
    assert read(GOOD, specs=[spec(ONE)], limits=codec.Limits(body_bytes=len(GOOD)))[0] == REPORT


@pytest.mark.parametrize(
    "opening", [b"\x91", b"\x81\xa1a", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01", b"\xde\x00\x01\xa1a"]
)
def test_depth_is_capped_before_the_decoder_recurses(opening):
    with pytest.raises(sf.WireError, match=r"nested deeper than 16.*SF-WIRE-009"):
        read(message(opening * 100_000 + b"\xc0"))
    with pytest.raises(sf.WireError, match=r"SF-WIRE-009"):
        read(message(opening * 17 + b"\xc0"))
    with pytest.raises(sf.WireError, match=r"SF-WIRE-004"):
        read(message(opening * 16 + b"\xc0"))


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(max_size=5), inner)),
        max_leaves=30,
    )
)
def test_depth_is_counted_as_the_format_nests(value):
    def depth(node):
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        return (isinstance(node, dict | list) and len(node) > 0) + max(map(depth, children), default=0)

    packed = msgspec.msgpack.encode(value)
    codec._check_depth(packed, depth(value))
    if depth(value):
        with pytest.raises(sf.WireError, match=r"SF-WIRE-009"):
            codec._check_depth(packed, depth(value) - 1)


MANIFEST = PlanManifest(
    "fed_avg",
    0,
    (Spec("w", (2,), "float32"),),
    (),
    (),
    (),
    (),
    (),
    (),
    {"update": "add"},
    (32, 1, True, None, False),
    {"init": b"\0\1"},
)
KINDS = {
    Report: codec.encode(REPORT, [ONE]),
    PlanManifest: codec.encode(MANIFEST),
    Assignment: codec.encode(Assignment("p", 1, 0, (0, 7), 3)),
}


def only_wire_errors(data, kind):
    try:
        header, _ = read(data, kind, [spec(ONE)] if kind is Report else [])
    except sf.WireError:
        return
    assert isinstance(header, kind)


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.__name__)
@given(st.data())
@settings(max_examples=150, deadline=None)
def test_fuzz(kind, data):
    whole = KINDS[kind]
    how = data.draw(st.sampled_from(["random", "framed", "cut", "flip", "splice"]))
    noise = data.draw(st.binary(max_size=120))
    if how == "random":
        only_wire_errors(noise, kind)
    elif how == "framed":
        only_wire_errors(message(noise), kind)
        only_wire_errors(message(msgspec.msgpack.encode(REPORT), noise), Report)
    elif how == "cut":
        only_wire_errors(whole[: data.draw(st.integers(0, len(whole) - 1))], kind)
    elif how == "flip":
        damaged = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        only_wire_errors(bytes(damaged), kind)
    else:
        at = data.draw(st.integers(0, len(whole)))
        only_wire_errors(whole[:at] + noise + whole[at:], kind)


def test_no_pickle_and_no_code_on_the_wire():
    import ast
    import inspect
    import pkgutil
    from importlib import import_module

    import sumfold

    for module in pkgutil.walk_packages(sumfold.__path__, "sumfold."):
        if module.name.split(".")[1] in {"wire", "client", "server", "core"} and not module.ispkg:
            names = {
                alias.name.split(".")[0]
                for node in ast.walk(ast.parse(inspect.getsource(import_module(module.name))))
                if isinstance(node, ast.Import | ast.ImportFrom)
                for alias in [
                    *node.names,
                    *([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else []),
                ]
            }
            assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, module.name
