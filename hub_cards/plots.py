"""Pictures for cards, as PNG files. Colours are such that colour-blind readers can tell them from each other."""

import math
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from hf_ext._files import replaced_file
from hf_ext.hub_cards.card import Result, loss_curves
from hf_ext.hub_cards.text import visible

METHOD, BASELINE, WARNING = "#0072B2", "#B8B8B8", "#D55E00"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DASHES = ("-", "--", ":", "-.")
_MOST_NUMBERS, _MOST_TICKS, _LONGEST = 400, 40, 16  # of a client x class picture: cells, names a side, inches


def plot_results(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Bars of every system's mean with its standard deviation.

    Raises:
        ValueError: no results, or results of several metrics.
    """
    metrics = sorted({row.metric for row in results})
    if len(metrics) != 1:
        raise ValueError(f"results: found the metrics {metrics}, allowed is one")
    figure, (axes,) = new_figure(7, 0.45 * len(results) + 1)
    for position, row in enumerate(results):
        # what is no number has no bar
        length, spread = (value if math.isfinite(value) else 0.0 for value in (row.mean, row.std or 0.0))
        axes.barh(
            position,
            length,
            xerr=spread or None,
            color=METHOD if row.is_method else BASELINE,
            error_kw={"ecolor": "#444444", "capsize": 3},
        )
        axes.annotate(
            f"{row.mean:.3f}",
            (max(length + spread, 0), position),
            (5, 0),
            textcoords="offset points",
            va="center",
            weight="bold" if row.is_method else "normal",
        )
    axes.set_yticks(range(len(results)), [visible(row.system) for row in results])
    _plain_text(axes.get_yticklabels())
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    axes.set_xlabel(textwrap.fill(visible(metrics[0]), 80), parse_math=False)
    save_figure(figure, path)


def plot_losses(
    log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], terms: Iterable[str] = ()
) -> None:
    """The training loss in a Trainer's `log_history`, and its terms, over steps.

    Args:
        log_history: of the Trainer's state.
        path: of the picture.
        terms: names of the loss's terms in it, such as "twd_loss"; those that were never logged have no line.

    Raises:
        ValueError: no training loss was logged.
    """
    curves = loss_curves(log_history, terms)
    if not curves:
        raise ValueError(f"log_history: found {len(log_history)} entries without 'loss', allowed are training logs")
    figure, (axes,) = new_figure(7, 3.5)
    for (name, points), (dash, colour) in zip(curves.items(), cycle(product(_DASHES, _LINES)), strict=False):
        axes.plot(
            *zip(*points, strict=True), dash, color=colour, label=visible(name), marker="." if len(points) == 1 else ""
        )
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    _plain_text(axes.legend(frameon=False).get_texts())
    save_figure(figure, path)


def plot_routing(table: ArrayLike, path: str | os.PathLike[str], tasks: Sequence[str] | None = None) -> None:
    """Mean routing weight, in [0, 1], of every expert (columns) for every task (rows); NaN where a task had no sample.

    Raises:
        ValueError: a table that is not two-dimensional, or names for another number of tasks.
    """
    weights = np.asarray(table, dtype=float)
    if weights.ndim != 2:
        raise ValueError(f"table: found the shape {weights.shape}, allowed is (tasks, experts)")
    if tasks is not None and len(tasks) != len(weights):
        raise ValueError(f"tasks: found {len(tasks)} names, allowed are {len(weights)}, one per row of the table")
    columns = [f"expert {expert}" for expert in range(weights.shape[1])]
    _heat_map(
        weights, tasks or [f"task {task}" for task in range(weights.shape[0])], columns, "mean routing weight", path
    )


def plot_similarities(texts: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """How alike the classes' texts are, by cosine.

    Args:
        texts: `classes`, names; `similarities`, a row of values for each.
        path: of the picture.
    """
    names = [str(name) for name in texts["classes"]]
    _heat_map(np.asarray(texts["similarities"], dtype=float), names, names, "cosine similarity", path)


def plot_partition(
    counts: ArrayLike,
    path: str | os.PathLike[str],
    clients: Sequence[str] | None = None,
    classes: Sequence[str] | None = None,
) -> None:
    """How many rows of each class (rows of the picture) each client of a federation (columns) holds.

    Numbers are written into the cells of small tables. What clients hold is shown to whoever sees the picture.

    Args:
        counts: `[clients, classes]`, as of `hf_ext.data.Partition.counts`.
        path: of the picture.
        clients, classes: names; numbers by default.

    Raises:
        ValueError: counts that are not two-dimensional, or names for another number of clients or classes.
    """
    table = np.asarray(counts)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"counts: found the shape {table.shape}, allowed is (clients, classes)")
    for name, given, number in (("clients", clients, table.shape[0]), ("classes", classes, table.shape[1])):
        if given is not None and len(given) != number:
            raise ValueError(f"{name}: found {len(given)} names, allowed are {number}, as the counts have")
    written = table.size <= _MOST_NUMBERS
    width, height = (0.5, 0.4) if written else (0.1, 0.2)
    figure, (axes,) = new_figure(
        min(2.5 + width * table.shape[0], _LONGEST), min(1.5 + height * table.shape[1], _LONGEST)
    )
    axes.spines[:].set_visible(False)
    picture = axes.imshow(table.T, cmap="Blues", vmin=0, vmax=max(1, table.max()), aspect="auto")
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    _name_some(axes.xaxis, clients or list(map(str, range(table.shape[0]))))
    _name_some(axes.yaxis, classes or list(map(str, range(table.shape[1]))))
    if clients:
        axes.tick_params(axis="x", rotation=90)
    axes.tick_params(length=0)
    for (client, kind), count in np.ndenumerate(table if written else table[:0]):
        if count:
            colour = "white" if count > table.max() / 2 else "black"
            axes.text(client, kind, str(count), ha="center", va="center", size=7, color=colour)
    bar = figure.colorbar(picture, ax=axes, label="rows", ticks=MaxNLocator(integer=True))
    bar.outline.set_visible(False)
    save_figure(figure, path)


def _name_some(axis: Axis, names: Sequence[str]) -> None:
    """Ticks at evenly spaced places, so many that their names do not overlap."""
    places = range(0, len(names), math.ceil(len(names) / _MOST_TICKS))
    axis.set_ticks(places, [visible(names[place]) for place in places])
    _plain_text(axis.get_ticklabels())


def _heat_map(
    values: NDArray[np.float64], rows: Sequence[str], columns: Sequence[str], label: str, path: str | os.PathLike[str]
) -> None:
    """A table of values in [0, 1] as colours, with the values written; NaN is a dash."""
    figure, (axes,) = new_figure(1.2 + 0.8 * values.shape[1], 1.2 + 0.5 * values.shape[0])
    axes.spines[:].set_visible(False)
    picture = axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(values.shape[1]), list(map(visible, columns)))
    axes.set_yticks(range(values.shape[0]), list(map(visible, rows)))
    _plain_text([*axes.get_xticklabels(), *axes.get_yticklabels()])
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        words = "-" if np.isnan(value) else f"{value:.2f}"
        axes.text(column, row, words, ha="center", va="center", color="white" if value > 0.5 else "black")
    bar = figure.colorbar(picture, ax=axes, label=label)
    bar.outline.set_visible(False)
    save_figure(figure, path)


def plot_gravity(identified: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Bars of the groups' mean gravity, the largest first, with those that were left out marked.

    Args:
        identified: `groups`, names; `gravity`, one value each; `dropped`, names.
        path: of the picture.
    """
    order = np.argsort(identified["gravity"])[::-1]
    figure, (axes,) = new_figure(7, 0.35 * len(order) + 1)
    for position, group in enumerate(order):
        dropped = identified["groups"][group] in identified["dropped"]
        axes.barh(position, identified["gravity"][group], color=WARNING if dropped else BASELINE)
    names = [identified["groups"][group] for group in order]
    axes.set_yticks(
        range(len(order)),
        [visible(name) + " (left out)" * (name in identified["dropped"]) for name in names],
    )
    _plain_text(axes.get_yticklabels())
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("mean gravity at identification")
    save_figure(figure, path)


def plot_groups(groups: Mapping[str, Mapping[str, float]], path: str | os.PathLike[str]) -> None:
    """Bars of every metric for groups of users, side by side; what is no number has no bar.

    Args:
        groups: by metric, such as "ndcg@10": the groups' values, such as "head" and "tail", in the same order.
        path: of the picture.

    Raises:
        ValueError: no metrics.
    """
    if not groups:
        raise ValueError("groups: found no metrics, allowed is one or more")
    names = list(dict.fromkeys(name for values in groups.values() for name in values))
    figure, panels = new_figure(5, 0.4 * len(names) * len(groups) + 0.8 * len(groups), rows=len(groups))
    for axes, (metric, values) in zip(panels, groups.items(), strict=True):
        for position, (name, colour) in enumerate(zip(names, cycle((BASELINE, METHOD, *_LINES[1:])), strict=False)):
            value = float(values.get(name, math.nan))  # a card that was read again has words for what is no number
            length = value if math.isfinite(value) else 0.0
            axes.barh(position, length, color=colour)
            words = f"{value:.3f}" if math.isfinite(value) else "-"
            axes.annotate(words, (max(length, 0), position), (5, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(names)), list(map(visible, names)))
        _plain_text(axes.get_yticklabels())
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.15)
        axes.set_xlabel(visible(metric), parse_math=False)
    save_figure(figure, path)


def plot_prior(epochs: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """An estimated prior over epochs, with its interval and the true one where they are known, above the homophily.

    Args:
        epochs: `epoch`, `prior` and `homophily`, lists of a number an epoch; what is no number there has no point.
            `interval`, two numbers, and `true_prior`, one, may be left out or None.
        path: of the picture.

    Raises:
        ValueError: no epochs, or lists of different lengths.
    """
    places, curves = epochs["epoch"], {name: epochs[name] for name in ("prior", "homophily")}
    if not places or any(len(curve) != len(places) for curve in curves.values()):
        lengths = {"epoch": len(places)} | {name: len(curve) for name, curve in curves.items()}
        raise ValueError(f"epochs: found {lengths}, allowed is one or more of each, as many")
    figure, panels = new_figure(7, 5, rows=2)
    labels = ("prior", "homophily of the guesses")
    for axes, (name, curve), label in zip(panels, curves.items(), labels, strict=True):
        marker = "." if len(places) == 1 else ""
        axes.plot(places, [_plain_number(value) for value in curve], color=METHOD, label=name, marker=marker)
        axes.set_ylim(0, 1)
        axes.set_ylabel(label)
    low_high, true_prior = epochs.get("interval"), _plain_number(epochs.get("true_prior"))
    if low_high is not None:
        low, high = map(_plain_number, low_high)
        panels[0].axhspan(low, high, color=METHOD, alpha=0.15, linewidth=0, label="interval of the last estimate")
    if math.isfinite(true_prior):
        panels[0].axhline(true_prior, color=WARNING, linestyle="--", label="true prior")
    panels[0].legend(frameon=False)
    panels[1].set_xlabel("epoch")
    save_figure(figure, path)


def plot_reliability(curve: Mapping[str, Sequence[float]], path: str | os.PathLike[str]) -> None:
    """Observed shares of positives over predicted probabilities, beside the line on which they are equal.

    Args:
        curve: `predicted` and `observed`, a number for every bin, as of `hf_ext.metrics.reliability_curve`.
        path: of the picture.

    Raises:
        ValueError: no bins, or lists of different lengths.
    """
    predicted, observed = curve["predicted"], curve["observed"]
    if not predicted or len(predicted) != len(observed):
        raise ValueError(f"curve: found {len(predicted)} and {len(observed)} bins, allowed is one or more, as many")
    figure, (axes,) = new_figure(4.5, 4)
    axes.plot([0, 1], [0, 1], color=BASELINE, linestyle="--")
    axes.plot(predicted, observed, color=METHOD, marker="o")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("predicted probability")
    axes.set_ylabel("share of positives")
    save_figure(figure, path)


def _plain_number(value: Any) -> float:
    """A card that was read again has None or words for what is no number."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def new_figure(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches that needs no display, with panels one below the other in the house style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure whole or not at all; as PNG, unless the name ends otherwise."""
    with replaced_file(path) as file:
        figure.savefig(file, dpi=dpi, format=Path(path).suffix[1:] or "png")


def _plain_text(names: Iterable[Text]) -> None:
    """Names are text, not formulas, even between dollar signs."""
    for name in names:
        name.set_parse_math(False)
