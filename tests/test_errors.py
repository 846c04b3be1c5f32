"""The tree of errors, and where their tracebacks end."""

import pickle
import subprocess
import sys
import traceback

import pytest

from sumfold import errors

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SumfoldError)]


LIBRARY = """
@errors.user_facing
def library(raises, callback=None):
    return deeper(raises, callback)

def deeper(raises, callback):
    if callback is not None:
        return callback(raises)
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise raises from error

def failing(raises):
    raise raises
"""
inside: dict = {"errors": errors}
# As if it stood in a file of the library.
exec(compile(LIBRARY, errors.__file__.replace("errors.py", "sample.py"), "exec"), inside)
library, failing = inside["library"], inside["failing"]


def own(raises):
    failing(raises)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda c: c.__name__)
def test_message_parts_and_pickling(kind):
    error = kind("SF-DATA-001", "came", "needed", "do")
    assert (error.code, error.came, error.needed, error.do) == ("SF-DATA-001", "came", "needed", "do")
    assert str(error) == "came; needed: needed; do [SF-DATA-001]"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.code == error.code


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.TypeMismatchError, TypeError),
        (errors.PlacementError, TypeError),
        (errors.CompositionError, ValueError),
        (errors.DataError, ValueError),
        (errors.StateError, ValueError),
        (errors.WireError, ValueError),
        (errors.CheckpointError, RuntimeError),
        (errors.MissingExtraError, ImportError),
    ],
)
def test_each_is_also_the_builtin_that_people_catch(kind, builtin):
    with pytest.raises(builtin):
        raise kind("SF-DATA-001", "a", "b", "c")
    assert issubclass(kind, errors.SumfoldError)


def test_the_traceback_ends_at_the_callers_line(monkeypatch):
    monkeypatch.delenv("SUMFOLD_FULL_TRACEBACK", raising=False)
    with pytest.raises(errors.DataError) as caught:
        library(errors.DataError("SF-DATA-001", "a", "b", "c"))
    # the tests' own checks of annotations stand in a frame between
    frames = [f for f in traceback.extract_tb(caught.value.__traceback__) if "jaxtyping" not in f.filename]
    assert frames[-1].filename == __file__
    assert frames[-1].line.startswith("library(")
    assert isinstance(caught.value.__cause__, KeyError)


def test_the_traceback_keeps_the_users_functions_that_the_library_called(monkeypatch):
    monkeypatch.delenv("SUMFOLD_FULL_TRACEBACK", raising=False)
    with pytest.raises(errors.DataError) as caught:
        library(errors.DataError("SF-DATA-001", "a", "b", "c"), own)
    names = [f.name for f in traceback.extract_tb(caught.value.__traceback__) if "jaxtyping" not in f.filename]
    assert names[-2:] == ["test_the_traceback_keeps_the_users_functions_that_the_library_called", "own"]


def test_the_whole_traceback_on_demand(monkeypatch):
    monkeypatch.setenv("SUMFOLD_FULL_TRACEBACK", "1")
    with pytest.raises(errors.DataError) as caught:
        library(errors.DataError("SF-DATA-001", "a", "b", "c"))
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "deeper"


def test_errors_of_others_pass_whole():
    with pytest.raises(ZeroDivisionError) as caught:
        library(ZeroDivisionError())
    assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "deeper"


def test_user_facing_keeps_the_name_and_the_result():
    assert library.__name__ == "library"
    assert errors.user_facing(lambda x, y=2: x + y)(1, y=5) == 6


def test_a_missing_extra_says_how_to_install_it():
    error = errors.missing_extra("keras", "keras")
    assert isinstance(error, ImportError)
    assert "keras" in str(error)
    assert "sumfold[keras]" in str(error)
    assert error.code in errors.CATALOG


MISTAKES = """
import traceback
import numpy as np, optax, sumfold as sf

def attempt(line, **names):
    try:
        exec(compile(line, "<user>", "eval"), {"sf": sf, "np": np, "optax": optax, **names})
    except sf.SumfoldError as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        print(last.filename, type(error).__name__, error.code)

model = sf.models.from_functions(lambda key: np.zeros(2), lambda w, x: x @ w, lambda o, y: (o - y) ** 2)
process = sf.learning.fed_avg(model, optax.sgd(0.1))
state = process.initialize()
wrong = [(np.ones((3, 5), np.float32), np.ones(3, np.float32))]
attempt("sf.Batching(size=0)")
attempt("sf.core.modular(1)")
attempt("sf.chain()")
attempt("sf.load('/nowhere/at/all')")
attempt("sf.learning.fed_avg(model, None)", model=model)
attempt("sf.models.from_functions(1, 2, 3)")
attempt("p.next(s, 5)", p=process, s=state)
attempt("p.next(s, wrong)", p=process, s=state, wrong=wrong)
attempt("p.next([1], [])", p=process)
attempt("p.set_model_weights(s, np.zeros(3))", p=process, s=state)
attempt("p.on(sf.Loopback()).next(s, wrong)", p=process, s=state, wrong=wrong)
"""


def test_a_users_traceback_ends_at_their_line_without_the_tests_checks():
    done = subprocess.run([sys.executable, "-c", MISTAKES], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines() == [
        "<user> CompositionError SF-COMP-001",
        "<user> CompositionError SF-COMP-002",
        "<user> CompositionError SF-COMP-003",
        "<user> CheckpointError SF-CKPT-001",
        "<user> CompositionError SF-COMP-020",
        "<user> CompositionError SF-COMP-014",
        "<user> DataError SF-DATA-001",
        "<user> TypeMismatchError SF-TYPE-002",
        "<user> StateError SF-STATE-001",
        "<user> StateError SF-STATE-003",
        "<user> TypeMismatchError SF-TYPE-002",
    ]
