"""Every error that Sumfold raises on purpose, as one tree.

    SumfoldError
    ├── TypeMismatchError (TypeError)     a value has another structure, shape or dtype than was needed
    ├── PlacementError    (TypeError)     a value lives at the wrong place (clients or server)
    ├── CompositionError  (ValueError)    parts that do not fit together: model, optimizer, stage, runtime
    ├── DataError         (ValueError)    client data that cannot be used
    ├── StateError        (ValueError)    a state that belongs to another algorithm or model
    ├── CheckpointError   (RuntimeError)  a checkpoint that is damaged, foreign or cannot be written
    ├── WireError         (ValueError)    bytes from a peer that break the protocol's rules
    └── MissingExtraError (ImportError)   an optional dependency is not installed

Each carries a stable ``code`` (``SF-DATA-003``), listed with cause and remedy in `CATALOG` and in the
reference documentation, and a message of three parts: what came, what was needed, what to do.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

__all__ = [
    "CATALOG",
    "CheckpointError",
    "CompositionError",
    "DataError",
    "MissingExtraError",
    "PlacementError",
    "StateError",
    "SumfoldError",
    "TypeMismatchError",
    "WireError",
]

_F = TypeVar("_F", bound=Callable[..., Any])


class Entry(NamedTuple):
    """One line of the catalogue: what causes the error, and what mends it."""

    cause: str
    remedy: str


CATALOG: dict[str, Entry] = {}
"""Every code with its cause and remedy; the reference page "Errors" is made from it."""


class SumfoldError(Exception):
    """What came, what was needed, what to do; under a stable code.

    Args:
        code: a key of `CATALOG`, for example ``"SF-DATA-003"``.
        came: what was given, with names, counts and dtypes.
        needed: what was expected.
        do: what the reader should do next.

    Example:
        >>> error = DataError("SF-DATA-001", "came: an int", "a list of clients", "pass a list")
        >>> error.code
        'SF-DATA-001'
        >>> print(error)
        came: an int; needed: a list of clients; pass a list [SF-DATA-001]
    """

    def __init__(self, code: str, came: str, needed: str, do: str) -> None:
        self.code, self.came, self.needed, self.do = code, came, needed, do
        super().__init__(code, came, needed, do)

    def __str__(self) -> str:
        return f"{self.came}; needed: {self.needed}; {self.do} [{self.code}]"


class TypeMismatchError(SumfoldError, TypeError):
    """A value has another structure, shape or dtype than was needed.

    Example:
        >>> issubclass(TypeMismatchError, TypeError)
        True
    """


class PlacementError(SumfoldError, TypeError):
    """A value lives at the wrong place: at the clients where the server's was needed, or the reverse.

    Example:
        >>> issubclass(PlacementError, TypeError)
        True
    """


class CompositionError(SumfoldError, ValueError):
    """Parts that do not fit together: a model, an optimizer, a stage, a runtime.

    Example:
        >>> issubclass(CompositionError, ValueError)
        True
    """


class DataError(SumfoldError, ValueError):
    """Client data that cannot be used.

    Example:
        >>> issubclass(DataError, ValueError)
        True
    """


class StateError(SumfoldError, ValueError):
    """A state that belongs to another algorithm or model.

    Example:
        >>> issubclass(StateError, ValueError)
        True
    """


class CheckpointError(SumfoldError, RuntimeError):
    """A checkpoint that is damaged, belongs to another run, or cannot be written.

    Example:
        >>> issubclass(CheckpointError, RuntimeError)
        True
    """


class WireError(SumfoldError, ValueError):
    """Bytes from a peer that break the protocol's rules.

    Example:
        >>> issubclass(WireError, ValueError)
        True
    """


class MissingExtraError(SumfoldError, ImportError):
    """An optional dependency is not installed; the message names the extra.

    Example:
        >>> issubclass(MissingExtraError, ImportError)
        True
    """


def user_facing(function: _F) -> _F:
    """Let a Sumfold error's traceback end at the caller's line instead of inside the library.

    A bare ``raise`` does not add its own frame, so dropping the traceback here leaves the caller's
    frame as the last one. ``SUMFOLD_FULL_TRACEBACK=1`` in the environment keeps everything.
    """

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except SumfoldError as error:
            if os.environ.get("SUMFOLD_FULL_TRACEBACK") != "1":
                error.__traceback__ = None
                error.__suppress_context__ = True
            raise

    return cast(_F, bounded)


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """The error for an optional `package` that is not installed, naming the `extra` that brings it."""
    return MissingExtraError(
        "SF-EXTRA-001",
        f"the package {package!r} is not installed",
        f"{package}, which the extra {extra!r} brings",
        f"run: pip install 'sumfold[{extra}]'",
    )


CATALOG["SF-EXTRA-001"] = Entry("An optional dependency is not installed.", "Install the extra that the message names.")

CATALOG["SF-DATA-001"] = Entry(
    "The client data is neither a sequence of clients, a mapping nor a federation.",
    "Pass [(x, y), …], {id: (x, y), …} or a Federation; one client's data is a list of one entry.",
)
CATALOG["SF-DATA-002"] = Entry(
    "A client's entry is neither arrays nor an iterable of batches.",
    "Give the client (x, y), a dict of arrays, or a list of batches.",
)
CATALOG["SF-DATA-003"] = Entry(
    "Arrays of one client have different numbers of rows.", "Cut x, y and weights to one row per example."
)
CATALOG["SF-DATA-004"] = Entry(
    "Clients have different sets of arrays.", "Give every client the same tuple or the same dict keys."
)
CATALOG["SF-DATA-005"] = Entry(
    "Clients have rows of different shapes.", "Give every client the same columns in the same order."
)
CATALOG["SF-DATA-006"] = Entry(
    "Clients have dtypes of different kinds.", "Convert the array to one dtype at every client."
)
CATALOG["SF-DATA-007"] = Entry(
    "An array holds strings or objects.", "Encode labels and categories as integers over all clients at once."
)
CATALOG["SF-DATA-008"] = Entry(
    "An array has no example axis.", "Give one row per example; batch a dataset of single examples first."
)
CATALOG["SF-DATA-009"] = Entry("Rows have different lengths.", "Pad or cut the rows to one length.")
CATALOG["SF-DATA-010"] = Entry("A client was asked for more than once.", "Ask for each client at most once.")
CATALOG["SF-DATA-011"] = Entry("No client has this id.", "Look at the federation's ids.")
CATALOG["SF-DATA-012"] = Entry(
    "A client id is neither a str nor an int, or no collection of ids was given.",
    "Name clients by str or int, and pass a list of ids.",
)
CATALOG["SF-DATA-013"] = Entry(
    "Some clients hold examples, others ready-made batches.",
    "Use one kind for all; one client's x and y belong in a tuple.",
)
CATALOG["SF-DATA-014"] = Entry(
    "A one-shot iterator was already empty when it was first read.",
    "Pass a list, or an iterable that starts anew each time.",
)
CATALOG["SF-DATA-015"] = Entry(
    "A dataset never ends, and ready-made batches are used in one pass.",
    "Leave out repeat(), or end the dataset with take(n).",
)
CATALOG["SF-DATA-016"] = Entry(
    "Ready-made batches cannot be split.", "Split the arrays before batching, or let Sumfold batch."
)
CATALOG["SF-DATA-017"] = Entry("The fraction of a split is not between 0 and 1.", "Pass a fraction such as 0.8.")
CATALOG["SF-DATA-018"] = Entry(
    "The examples have no label per row to stratify by.", "Pass labels as class numbers, or do not stratify."
)
CATALOG["SF-DATA-019"] = Entry(
    "from_arrays was not told whose rows are whose, was told twice, or got weights without labels.",
    "Pass exactly one of client_ids and offsets, and weight only with y.",
)
CATALOG["SF-DATA-020"] = Entry(
    "client_ids are not one str or int per row.",
    "Pass the column that says whose row each row is, without gaps.",
)
CATALOG["SF-DATA-021"] = Entry(
    "offsets do not rise from 0 to the number of rows.", "Use np.concatenate([[0], np.cumsum(sizes)])."
)
CATALOG["SF-DATA-022"] = Entry(
    "A data frame lacks a column, or is no data frame.",
    "Check the spelling of client=, label= and features=.",
)
CATALOG["SF-DATA-023"] = Entry(
    "A column of a data frame holds no numbers.", "Encode it as integers, convert it, or leave it out."
)
CATALOG["SF-DATA-024"] = Entry(
    "There are too few rows for so many clients.", "Ask for fewer clients, or fewer rows per client."
)
CATALOG["SF-DATA-025"] = Entry(
    "A parameter of a partition is out of range.", "Choose a value in the range that the message names."
)
CATALOG["SF-DATA-026"] = Entry("Labels of a partition are not one per row.", "Turn one-hot labels into class numbers.")
CATALOG["SF-DATA-027"] = Entry("A masked array hides values.", "Fill the hidden values first.")

CATALOG["SF-CKPT-010"] = Entry(
    "The checkpoint folder cannot be made, or is no folder.", "Choose a folder that can be written to."
)
CATALOG["SF-CKPT-011"] = Entry(
    "Another process trains in the checkpoint folder.", "Wait until it is done, or choose another folder."
)
CATALOG["SF-CKPT-012"] = Entry(
    "The history of a run could not be written, for example because the disk is full.",
    "Make room and run the same call again: it goes on after the last saved round.",
)
CATALOG["SF-CKPT-013"] = Entry(
    "The history file became shorter while the run trained.", "Leave the folder alone while a run trains."
)
CATALOG["SF-CKPT-014"] = Entry(
    "No checkpoint in the folder is whole.", "Restore a copy of the folder, or begin anew in another one."
)
CATALOG["SF-CKPT-015"] = Entry(
    "The checkpoint belongs to another run: another algorithm, model, program, seed or federation.",
    "Call train as before to go on with it, or choose another folder.",
)
CATALOG["SF-CKPT-016"] = Entry(
    "A checkpoint or its history is damaged.", "Nothing: an older one is used if there is one."
)
CATALOG["SF-TRAIN-001"] = Entry(
    "EarlyStopping with a patience, mode or min_delta that cannot be used.", "Use patience ≥ 1 and 'min' or 'max'."
)
CATALOG["SF-TRAIN-002"] = Entry(
    "EarlyStopping monitors a number that evaluations do not have.", "Monitor one of those that the message lists."
)
CATALOG["SF-TRAIN-003"] = Entry("Both clients_per_round and cohorts were given.", "Give one of them.")
CATALOG["SF-TRAIN-004"] = Entry(
    "clients_per_round is below 1 or larger than the federation.", "Ask for fewer clients, or leave it out."
)
CATALOG["SF-TRAIN-005"] = Entry("cohorts is no iterable of id lists.", "Pass one list of ids a round.")
CATALOG["SF-TRAIN-006"] = Entry("There are fewer cohorts than rounds.", "Pass more cohorts or ask for fewer rounds.")
CATALOG["SF-TRAIN-007"] = Entry(
    "Data to evaluate was given for an algorithm without a model.", "Leave evaluate out, or use a callback."
)
CATALOG["SF-TRAIN-008"] = Entry("An evaluation function returned no dict of numbers.", "Return {name: number}.")
CATALOG["SF-TRAIN-009"] = Entry("A callback cannot be called.", "Pass functions of one event.")
CATALOG["SF-TRAIN-010"] = Entry("EarlyStopping without evaluations to watch.", "Pass evaluate=.")
CATALOG["SF-TRAIN-011"] = Entry("A callback returned something else than None or 'stop'.", "Return one of these.")
CATALOG["SF-TRAIN-012"] = Entry(
    "rounds, evaluate_every or checkpoint_every is no whole number in its range.", "Pass a whole number."
)

CATALOG["SF-MODEL-001"] = Entry(
    "Keras runs on a backend other than JAX.", "Set KERAS_BACKEND=jax before the first import of keras."
)
CATALOG["SF-MODEL-002"] = Entry("Something else than a Keras model was given.", "Pass a model, or a function that builds it.")
CATALOG["SF-MODEL-003"] = Entry("A Keras model has no weights yet.", "Begin it with keras.Input, or call it on a batch.")
CATALOG["SF-MODEL-004"] = Entry("The loss is no function.", "Pass (outputs, y) -> loss of each example.")
CATALOG["SF-MODEL-005"] = Entry("A layer carries state from batch to batch.", "Leave stateful=True out.")
CATALOG["SF-MODEL-006"] = Entry("Two metrics have one name.", "Pass a dict name -> metric.")
CATALOG["SF-MODEL-007"] = Entry(
    "A Keras loss or metric was given for a model with several outputs.", "Write a function (outputs, y) per example."
)
CATALOG["SF-MODEL-008"] = Entry("Keras knows no metric of this name.", "Check the spelling; see keras.metrics.")
CATALOG["SF-MODEL-009"] = Entry(
    "The state of a Keras metric is not a sum over examples.", "Use a kind that the message lists, or a function."
)
CATALOG["SF-MODEL-010"] = Entry(
    "A Keras metric makes its variables when it sees outputs, and their shape is not known.",
    "Call its update_state on one batch, then reset_state.",
)
CATALOG["SF-MODEL-011"] = Entry("A module does not take its example.", "Compare the example with the module's input.")
CATALOG["SF-MODEL-012"] = Entry(
    "Weights were assigned to a Keras model of another architecture.", "Assign to the architecture that was trained."
)
CATALOG["SF-MODEL-013"] = Entry(
    "Something else than a Flax module was given.", "Pass a linen module, an nnx module, or rngs -> nnx module."
)
CATALOG["SF-MODEL-014"] = Entry(
    "A collection of a linen module has other shapes after training.", 'Sow into "intermediates", or not at all.'
)
CATALOG["SF-MODEL-015"] = Entry(
    "Something else than an Equinox module was given.", "Pass a function key -> module, or a module."
)
CATALOG["SF-MODEL-016"] = Entry(
    "An Equinox module has state.", "Use GroupNorm or LayerNorm in place of BatchNorm."
)
