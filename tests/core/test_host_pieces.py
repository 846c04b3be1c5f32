"""Host work in pieces: one guarded call, generators put back, the identity of a function."""

import os
import random
import subprocess
import sys

import pytest

import sumfold as sf
from sumfold.core.host import Failure, _seeded, attempt, code_identity


def program(arguments, text="", **options):
    ran = subprocess.run(
        [sys.executable, *arguments], input=text, capture_output=True, text=True, timeout=240, check=False, **options
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.split()


def test_attempt_tells_where_the_users_code_failed():
    key = sf.keys.HostKey(0, 0, 0, 0)
    failure = attempt(lambda *given: 1 // 0, (), (), key, ())
    assert isinstance(failure, Failure)
    assert failure.reason == "ZeroDivisionError: integer division or modulo by zero"
    assert failure.detail.splitlines()[0].startswith("Traceback")
    assert "1 // 0" in failure.detail
    assert attempt(lambda *given: (_ for _ in ()).throw(ValueError()), (), (), key, ()).reason == "ValueError"
    with pytest.raises(KeyboardInterrupt):
        attempt(lambda *given: (_ for _ in ()).throw(KeyboardInterrupt()), (), (), key, ())


def test_the_callers_generators_are_put_back():
    random.seed(1)
    with _seeded(7):
        random.random()
    assert random.random() == random.Random(1).random()


IDENTITY = """
import functools, numpy as np
from sumfold.core.host import code_identity
RATE = 0.5
class Settings:
    def __init__(self, rate): self.rate, self.names = rate, {"b", "a", "c"}
def make(rate, array=np.arange(4.0)):
    table = {"z": 1, "a": {3, 1, 2}}
    def run(message, data, key, memory):
        return [x in {"u", "v", "w"} for x in (rate, RATE, table, array)]
    return run
for value in (make(0.1), make(0.2), make(0.1, np.arange(4.0) + 1), functools.partial(make, 1), Settings(0.1),
              Settings(0.2), lambda x: x + 1, lambda x: x + 2, Settings, np.sum):
    text = code_identity(value)
    assert "0x" not in text, text
    print(hash_of(text))
"""


def test_the_identity_of_code_is_the_same_in_every_process():
    text = "import hashlib\ndef hash_of(text): return hashlib.blake2b(text.encode()).hexdigest()[:12]\n" + IDENTITY
    seen = [program(["-"], text, env={**os.environ, "PYTHONHASHSEED": seed}) for seed in ("1", "2")]
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == len(seen[0]) == 10


def test_the_identity_of_code_that_refers_to_itself():
    def run():
        return run

    held = {}
    held["self"] = held
    assert code_identity(run) == code_identity(run)
    assert "…" in code_identity(held)
