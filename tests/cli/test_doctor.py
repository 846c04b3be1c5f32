"""``sumfold doctor``: every line, and the exit code."""

import json

import jax
import pytest

from sumfold.cli import doctor as doctor_module
from sumfold.cli.doctor import Check, checks


def named() -> dict[str, Check]:
    return {check.name: check for check in checks()}


def test_a_healthy_place(sumfold) -> None:
    result = sumfold("doctor")
    assert result.exit_code == 0
    assert "Sumfold can run here." in result.stdout
    for name in ("Python", "sumfold", "jax", "jaxlib", "devices", "backend", "writing here", "CPUs", "free disk"):
        assert name in result.stdout


def test_json_is_alone_on_stdout(sumfold) -> None:
    found = json.loads(sumfold("doctor", "--json").stdout)
    assert found["ok"] is True
    assert {"name", "value", "ok", "needed", "remedy"} == set(found["checks"][0])


def test_an_extra_that_is_not_installed(monkeypatch, sumfold) -> None:
    version = doctor_module._version
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "flax" else version(name))
    assert named()["flax"] == Check("flax", "not installed", False, False, "pip install 'sumfold[flax]'")
    result = sumfold("doctor")
    assert result.exit_code == 0
    assert "✗" in result.stdout
    assert "pip install 'sumfold[flax]'" in result.stdout


def test_a_package_that_is_needed(monkeypatch, sumfold) -> None:
    version = doctor_module._version
    monkeypatch.setattr(doctor_module, "_version", lambda name: None if name == "optax" else version(name))
    result = sumfold("doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["ok"] is False


def test_jax_without_devices(monkeypatch, sumfold) -> None:
    def broken() -> list:
        raise RuntimeError("Unable to initialize backend 'cuda'\nmore")

    monkeypatch.setattr(jax, "devices", broken)
    result = sumfold("doctor")
    assert result.exit_code == 1
    assert "Unable to initialize backend" in result.stdout
    assert "Sumfold cannot run here." in result.stdout


def test_keras_on_another_backend(monkeypatch, tmp_path) -> None:
    pytest.importorskip("keras")
    assert named()["keras"].ok  # the tests run with KERAS_BACKEND=jax
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert doctor_module._keras_backend() == "tensorflow"
    (tmp_path / "keras.json").write_text('{"backend": "torch"}')
    assert not named()["keras"].ok
    assert "backend torch" in named()["keras"].value
    assert "KERAS_BACKEND=jax" in named()["keras"].remedy


def test_a_folder_that_cannot_be_written(monkeypatch, sumfold) -> None:
    def full(**_) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(doctor_module.tempfile, "TemporaryFile", full)
    assert not named()["writing here"].ok
    assert sumfold("doctor").exit_code == 0
