"""A picture of who holds which labels."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt

from sumfold.data.federation import Federation
from sumfold.errors import DataError, missing_extra, user_facing

Int64 = npt.NDArray[np.int64]

_SHOWN = 200
"""More clients than this are too thin to see."""
_SAMPLE = 100
_NAMED = 40
"""Clients that each get a line of text."""
_LISTED = 20
"""Classes that each get a colour of their own."""
_CLASSES = 1000


@user_facing
def plot_labels(federation: Federation | Any, *, share: bool = False) -> Any:
    """A matplotlib figure: a bar for each client, of as many rows as it has of each label.

    It needs no window: ``plot_labels(fed).savefig("labels.png")``; a notebook shows it. Of more than 200 clients a
    hundred are shown, evenly spaced from the largest to the smallest, and the title says so.

    Args:
        federation: with one class number per row.
        share: show each client's proportions, so that small clients are seen as well as large ones.

    Raises:
        DataError: no class numbers (SF-DATA-018, 108), or no rows (108).
        MissingExtraError: without matplotlib.

    Example:
        >>> fed = Federation.from_clients({"a": ([[1.0], [2.0]], [0, 1]), "b": ([[3.0]], [1])})
        >>> [text.get_text() for text in plot_labels(fed).axes[0].get_yticklabels()]
        ['a', 'b']
    """
    if not isinstance(federation, Federation):
        raise _unfit(f"a {type(federation).__name__}", "sf.data.Federation.from_clients makes one")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "plot") from error
    classes, counts = _counted(federation)
    clients, chosen = len(federation), _chosen(counts.sum(axis=1))
    counts, shown = counts[chosen], len(chosen)
    if share:
        counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    colours = mpl.colormaps["tab10" if len(classes) <= 10 else "tab20" if len(classes) <= _LISTED else "viridis"]
    place = np.arange(len(classes)) / max(len(classes) - 1, 1)

    figure = Figure(figsize=(8.0, 1.5 + min(0.32 * shown, 6.5)), layout="constrained")
    axes = figure.add_subplot()
    left = np.zeros(shown)
    for number, label in enumerate(classes.tolist()):
        colour = colours(number) if len(classes) <= _LISTED else colours(place[number])
        axes.barh(np.arange(shown), counts[:, number], 0.8, left, color=colour, label=f"{label:g}", linewidth=0)
        left += counts[:, number]
    step = 1 if shown <= _NAMED else -(-shown // 25)
    ticks = np.arange(0, shown, step)
    axes.set_yticks(ticks, [_short(federation.ids[int(chosen[tick])]) for tick in ticks], fontsize=9)
    axes.set_ylim(shown - 0.4, -0.6)
    axes.set_xlim(0, 1 if share else None)
    axes.set_xlabel("share of the client's examples" if share else "examples")
    axes.set_ylabel("client")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if shown < clients:
        axes.set_title(f"{shown} of {clients} clients, evenly spaced by size", fontsize=10)
    if len(classes) <= _LISTED:
        columns = 1 if len(classes) <= 10 else 2
        axes.legend(title="label", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), ncols=columns)
    else:
        norm = mpl.colors.Normalize(float(classes[0]), float(classes[-1]))
        figure.colorbar(mpl.cm.ScalarMappable(norm, colours), ax=axes, label="label", fraction=0.04)
    # Notebooks show pyplot's figures by themselves, and others by this.
    vars(figure)["_repr_png_"] = lambda: _png(figure)
    return figure


def _counted(federation: Federation) -> tuple[npt.NDArray[Any], Int64]:
    """The classes that occur, and how many rows of each every client has: int64[K, C]."""
    labels = np.asarray(federation.labels())
    rows = federation._all_rows()
    if not len(rows):
        raise _unfit("a federation without rows", "give clients examples first")
    classes, label = np.unique(labels[rows], return_inverse=True)
    whole = classes.dtype.kind in "iub" or bool(np.all(classes == np.round(classes)))
    if not whole or len(classes) > _CLASSES:
        raise _unfit(
            f"{len(classes)} different labels from {classes[0]:g} to {classes[-1]:g}",
            "draw ranges of a measured label, for example with np.digitize(y, bins)",
        )
    owner = np.repeat(np.arange(len(federation)), federation.counts)
    cells = np.bincount(owner * len(classes) + label, minlength=len(federation) * len(classes))
    return classes, cells.reshape(len(federation), len(classes)).astype(np.int64)


def _chosen(sizes: Int64) -> Int64:
    """The positions of the clients to show: all, or some from the largest to the smallest."""
    if len(sizes) <= _SHOWN:
        return np.arange(len(sizes), dtype=np.int64)
    by_size = np.argsort(-sizes, kind="stable")
    return by_size[np.linspace(0, len(sizes) - 1, _SAMPLE).round().astype(np.int64)]


def _short(client: Any) -> str:
    name = str(client)
    return name if len(name) <= 24 else f"{name[:23]}…"


def _unfit(came: str, do: str) -> DataError:
    return DataError("SF-DATA-108", came, f"a federation with class numbers as labels, {_CLASSES} classes at most", do)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
