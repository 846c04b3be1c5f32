"""The set that gates a commit: under ten seconds in all."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sumfold as sf
from sumfold.testing import assert_runtimes_agree
from sumfold.tree import Spec
from sumfold.wire import codec
from sumfold.wire.messages import Report

pytestmark = pytest.mark.tiny


def test_import_is_light_and_every_name_resolves():
    code = "import sys, sumfold; assert not {'jax', 'keras', 'numpy', 'msgspec'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    for name in sf.__all__:
        assert getattr(sf, name) is not None
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'"):
        getattr(sf, "nothing")  # noqa: B009


def test_one_round_on_both_runtimes():
    model = sf.models.from_functions(lambda key: jnp.float32(0), lambda w, x: w * x, lambda o, y: (o - y) ** 2)
    process = sf.learning.fed_avg(model, optax.sgd(0.1), batching=sf.Batching(size=None))
    clients = [(np.ones(1), 2 * np.ones(1)), (2 * np.ones(3), 4 * np.ones(3))]
    state, metrics = process.next(process.initialize(), clients)
    assert float(process.get_model_weights(state)) == pytest.approx(1.3, rel=1e-6)
    assert metrics["client_work"]["train"]["loss"] == pytest.approx(13.0)
    assert assert_runtimes_agree(process, clients, sf.Simulation(), sf.Loopback(), rounds=1).weights < 1e-6


def test_a_message_comes_back():
    header, array = Report(1, 0, 2, True, True), np.arange(3, dtype=np.float32)
    back, [same] = codec.decode(codec.encode(header, [array]), Report, lambda _: [Spec("a", (3,), "float32")])
    assert back == header
    np.testing.assert_array_equal(same, array)
    with pytest.raises(sf.WireError):
        codec.decode(codec.encode(header, [array])[:-1], Report, lambda _: [Spec("a", (3,), "float32")])


def test_a_file_comes_back(tmp_path):
    sf.save(tmp_path / "t", {"w": np.ones(2), "n": [None, np.int32(3)]})
    assert sf.load(tmp_path / "t")["n"][1] == 3
