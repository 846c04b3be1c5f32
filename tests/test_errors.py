"""The tree of errors, and where their tracebacks end."""

import pickle
import traceback

import pytest

from sumfold import errors

CLASSES = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SumfoldError)]


@errors.user_facing
def library(raises):
    return deeper(raises)


def deeper(raises):
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise raises from error


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
    last = traceback.extract_tb(caught.value.__traceback__)[-1]
    assert last.filename == __file__
    assert last.line.startswith("library(")
    assert isinstance(caught.value.__cause__, KeyError)


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
