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


CATALOG["SF-CKPT-001"] = Entry("The file to load is missing or cannot be read.", "Check the path and the permissions.")
CATALOG["SF-CKPT-002"] = Entry(
    "A safetensors file of another program was given.",
    "Load files that sumfold.save, models.save or a checkpoint wrote.",
)
CATALOG["SF-CKPT-003"] = Entry(
    "A file was truncated or changed after it was written, or never was a Sumfold file.", "Use an older copy."
)
CATALOG["SF-CKPT-004"] = Entry(
    "A file could not be written: the disk is full, or the folder is missing or read-only.",
    "Make room or choose another folder; the older file is whole.",
)
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
    "The checkpoint belongs to another run: another algorithm, model, program, seed, federation or first state "
    "(initial weights, hyperparameters, state=).",
    "Call train as before to go on with it, or choose another folder; build a Keras model with a seed.",
)
CATALOG["SF-CKPT-016"] = Entry(
    "A checkpoint or its history is damaged.", "Nothing: an older one is used if there is one."
)

CATALOG["SF-CLI-001"] = Entry(
    "The folder for results cannot be made or written to.", "Name another folder with --out, or free its place."
)
CATALOG["SF-CLI-002"] = Entry("The job's file does not exist.", "Check the path before the colon.")
CATALOG["SF-CLI-003"] = Entry("A setting is not name=value.", "Write for example --set learning_rate=0.1.")
CATALOG["SF-CLI-004"] = Entry(
    "The job's function has no parameter of this name.", "Use one of the names that the message lists."
)
CATALOG["SF-CLI-005"] = Entry(
    "A parameter of the job's function has no default and no value.", "Give it one with --set name=value."
)
CATALOG["SF-CLI-006"] = Entry("The job is not a Python file.", "Give the file a name that ends in .py.")
CATALOG["SF-CLI-007"] = Entry(
    "The job's file has no function of this name.", "Define build(), or name the function as JOB.py:NAME."
)
CATALOG["SF-CLI-008"] = Entry(
    "The job's function returned something else than a job.",
    "Return (process, train) or (process, train, test).",
)

CATALOG["SF-COMP-001"] = Entry(
    "A number of a Batching is not a whole number of at least 1.", "Pass whole numbers; a full batch is size=None."
)
CATALOG["SF-COMP-002"] = Entry("The modulus of a sum is outside 2 … 2**32.", "Choose 2**32.")
CATALOG["SF-COMP-003"] = Entry(
    "A chain has no stage, or a stage needs a bound that those before it do not give.",
    "Pass one stage or more, the one that bounds (a clip) before the one that needs the bound.",
)
CATALOG["SF-COMP-004"] = Entry(
    "The parts that a client reports are not those that have a stage.",
    "Give `aggregate` one stage for every part of the report.",
)
CATALOG["SF-COMP-005"] = Entry(
    "A stage needs a sum that the runtime does not offer.",
    "Choose an aggregator that is such a sum, or another runtime.",
)
CATALOG["SF-COMP-010"] = Entry(
    "A metric is neither a function nor a Metric.",
    "Pass fn(outputs, y) -> value per example, or one of sumfold.metrics.",
)
CATALOG["SF-COMP-011"] = Entry("metrics is no dict.", 'Write metrics={"accuracy": sumfold.metrics.accuracy}.')
CATALOG["SF-COMP-012"] = Entry("A metric has the name of one of Sumfold's own counts.", "Rename the metric.")
CATALOG["SF-COMP-013"] = Entry("An AUC histogram has fewer than two bins.", "Ask for two or more; 2048 is the default.")
CATALOG["SF-COMP-014"] = Entry(
    "init, predict or loss of from_functions cannot be called.", "Pass functions, in the order init, predict, loss."
)
CATALOG["SF-COMP-020"] = Entry(
    "An optimizer is neither an optax transform nor a Keras optimizer, such as a class or a function that makes one.",
    "Pass the optimizer itself, such as optax.sgd(0.1); clients also take fn(round) -> optax transform.",
)
CATALOG["SF-COMP-021"] = Entry(
    "weighting is neither a known word nor a function.",
    'Pass "examples", "uniform" or a function of the client\'s metrics.',
)
CATALOG["SF-COMP-022"] = Entry(
    "set_hparams names a hyperparameter that cannot be set.",
    "Set those that get_hparams shows; optax optimizers need optax.inject_hyperparams.",
)
CATALOG["SF-COMP-023"] = Entry("batching is no Batching.", "Write sf.Batching(size=32, epochs=1).")
CATALOG["SF-COMP-024"] = Entry(
    "A layer such as batch normalisation would see batches of different sizes.",
    "Use sf.Batching(size=…, drop_remainder=True), or group or layer normalisation.",
)
CATALOG["SF-COMP-025"] = Entry(
    "set_hparams names a group that the algorithm does not have.", "Use the groups of get_hparams, such as client_work."
)
CATALOG["SF-COMP-026"] = Entry(
    "Weights were asked of an algorithm that trains no model.", "Read its result from the state or the metrics."
)
CATALOG["SF-COMP-027"] = Entry(
    "A schedule decides by Python's if, int or float on the round, which is traced.",
    "Write it as arithmetic: jnp.where(round < 10, 0.1, 0.01), or a schedule of optax.",
)
CATALOG["SF-COMP-028"] = Entry(
    "An algorithm was given something that is no model.",
    "Make a model with from_functions, from_keras, from_flax or from_equinox.",
)
CATALOG["SF-COMP-029"] = Entry(
    "The client's work calls back into Python, so it cannot be sent as an array program.",
    "Take jax.debug.print, pure_callback and io_callback out of the model, loss and metrics.",
)
CATALOG["SF-COMP-030"] = Entry(
    "moments was asked for fewer than one column.", "Pass the number of columns, x.shape[1]."
)
CATALOG["SF-COMP-031"] = Entry(
    "A function of a round or stage returns other shapes, dtypes or containers than it was given.",
    "Return the same structure; cast with astype.",
)

CATALOG["SF-COMP-032"] = Entry(
    "A process was put on something that is no runtime.",
    "Pass a runtime object, such as sf.Simulation() or sf.Loopback().",
)
CATALOG["SF-COMP-033"] = Entry("A seed is no whole number.", "Pass an integer, such as seed=0.")
CATALOG["SF-COMP-034"] = Entry(
    "An aggregator is no stage, or a function that makes one.",
    "Pass the stage: aggregator=sf.aggregators.mean(), with parentheses.",
)
CATALOG["SF-COMP-035"] = Entry(
    "A Keras optimizer scales the loss, which happens nowhere here.",
    "Pass the inner optimizer of a LossScaleOptimizer, and leave loss_scale_factor out.",
)
CATALOG["SF-COMP-036"] = Entry(
    "init of from_functions returns something else than a tree of numeric arrays.",
    "Return arrays and numbers; close over strings and other objects instead.",
)
CATALOG["SF-COMP-037"] = Entry(
    "predict of from_functions needs a key, and gets one only in training.", "Give the parameter a default: key=None."
)
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
CATALOG["SF-DATA-028"] = Entry(
    "Integers do not fit into the 32 bits that JAX keeps of them.",
    "Number the values anew from 0, or switch on jax_enable_x64.",
)
CATALOG["SF-DATA-050"] = Entry(
    "A client's weight is negative or not finite.", "Look at `weighting`; the state passed in is unchanged."
)
CATALOG["SF-DATA-051"] = Entry(
    "A client's entry is not features and labels.", "Give (x, y), (x, y, example_weight) or a dict with x and y."
)
CATALOG["SF-DATA-052"] = Entry("x and y of an evaluation have different lengths.", "Cut them to one row per example.")
CATALOG["SF-DATA-053"] = Entry(
    "A Batching was given with ready-made batches.", "Leave batching out, or give each client its examples as (x, y)."
)
CATALOG["SF-DATA-054"] = Entry(
    "Labels are outside the classes that the model's outputs have columns for.",
    "Number the classes from 0, or give the model more outputs.",
)
CATALOG["SF-DATA-055"] = Entry(
    "An example_weight is negative or not a number.", "Give each row a weight of at least 0."
)
CATALOG["SF-DATA-056"] = Entry("Example weights are not one number a row.", "Pass an array of shape [N] or [N, 1].")

CATALOG["SF-EXTRA-001"] = Entry("An optional dependency is not installed.", "Install the extra that the message names.")

CATALOG["SF-MODEL-001"] = Entry(
    "Keras runs on a backend other than JAX.", "Set KERAS_BACKEND=jax before the first import of keras."
)
CATALOG["SF-MODEL-002"] = Entry(
    "Something else than a Keras model was given.", "Pass a model, or a function that builds it."
)
CATALOG["SF-MODEL-003"] = Entry(
    "A Keras model has no weights yet.", "Begin it with keras.Input, or call it on a batch."
)
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
CATALOG["SF-MODEL-016"] = Entry("An Equinox module has state.", "Use GroupNorm or LayerNorm in place of BatchNorm.")

CATALOG["SF-STATE-001"] = Entry(
    "Something else than a state was passed where a state belongs.",
    "Pass what initialize or next returned; next takes (state, client_data).",
)
CATALOG["SF-STATE-002"] = Entry(
    "The state belongs to another algorithm or model.",
    "Begin anew with initialize, or move the weights with set_model_weights.",
)
CATALOG["SF-STATE-003"] = Entry(
    "Weights have other names, shapes or dtypes than the model.",
    "Pass what init, get_model_weights or models.load gave for this model.",
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
CATALOG["SF-TRAIN-013"] = Entry(
    "The model, its loss or a metric does not take the data to evaluate.",
    "Give evaluate the same columns and labels as the clients' data.",
)

CATALOG["SF-TYPE-001"] = Entry(
    "A loss or metric returns something else than one value per example.",
    "Return it before any mean or sum over the batch.",
)
CATALOG["SF-TYPE-002"] = Entry(
    "The model or its loss fails on examples of these shapes and dtypes.",
    "Compare the model's input with the data; the model's own error is attached.",
)
CATALOG["SF-TYPE-003"] = Entry(
    "A leaf to save is no array of numbers.", "Leave it out; store a key as jax.random.key_data(key)."
)

CATALOG["SF-TYPE-004"] = Entry(
    "moments met rows with another number of columns than it was made for.", "Pass the number of columns, x.shape[1]."
)
CATALOG["SF-WIRE-001"] = Entry("A message is larger than allowed.", "Send less, or raise Limits on both sides.")
CATALOG["SF-WIRE-002"] = Entry("The bytes are not a Sumfold message.", "Check that both peers speak this protocol.")
CATALOG["SF-WIRE-003"] = Entry("A message's header is too large or cut off.", "Send the message again, whole.")
CATALOG["SF-WIRE-004"] = Entry(
    "A message's header has other fields than its kind.", "Run the same version on both sides."
)
CATALOG["SF-WIRE-005"] = Entry("Arrays came where none were expected.", "Run the same plan on both sides.")
CATALOG["SF-WIRE-006"] = Entry("A message's arrays are damaged or cut off.", "Send the message again, whole.")
CATALOG["SF-WIRE-007"] = Entry(
    "A message holds more, fewer or other arrays than expected.", "Run the same plan on both sides."
)
CATALOG["SF-WIRE-008"] = Entry(
    "An array of a message has another shape or dtype than the plan says.", "Run the same plan on both sides."
)
CATALOG["SF-WIRE-009"] = Entry("A message's header is nested too deeply.", "Send it flat; no message of Sumfold's is.")
CATALOG["SF-WIRE-010"] = Entry(
    "An assignment names another plan or phase than the client has loaded.", "Fetch the plan that the assignment names."
)
CATALOG["SF-WIRE-011"] = Entry(
    "A plan's programs are not those that its manifest states.",
    "Do not run it; ask the server for a new one.",
)
CATALOG["SF-WIRE-012"] = Entry(
    "A plan was damaged: its programs or its batching do not load.", "Do not run it; ask the server for a new one."
)
CATALOG["SF-WIRE-013"] = Entry(
    "A report names another client, round or phase than its assignment.",
    "Send each report for the assignment that asked for it.",
)
