"""Pictures for cards, as PNG files. Colours stay apart for colour-blind readers."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from hf_ext.hub_cards.card import Result

_METHOD, _BASELINE = "#0072B2", "#B8B8B8"
_LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def plot_results(results: Sequence[Result], path: str | os.PathLike[str]) -> None:
    """Bars of every system's mean with its standard deviation."""
    figure, axes = _figure(7, 0.45 * len(results) + 1)
    rows = list(reversed(results))
    axes.barh(
        [row.system for row in rows],
        [row.mean for row in rows],
        xerr=[row.std or 0.0 for row in rows],
        color=[_METHOD if row.is_method else _BASELINE for row in rows],
        error_kw={"ecolor": "#444444", "capsize": 3},
    )
    for position, row in enumerate(rows):
        axes.annotate(f"{row.mean:.3f}", (0, position), (4, 0), textcoords="offset points", va="center", color="black")
    axes.set_xlabel(results[0].metric)
    figure.savefig(path, dpi=150)


def plot_losses(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> None:
    """Every loss in a Trainer's `log_history` over the steps."""
    figure, axes = _figure(7, 3.5)
    entries = [entry for entry in log_history if "loss" in entry]
    names = [name for name in dict.fromkeys(key for entry in entries for key in entry) if name.endswith("loss")]
    for name, colour in zip(names, _LINES * len(names), strict=False):
        points = [(entry["step"], entry[name]) for entry in entries if name in entry]
        axes.plot(*zip(*points, strict=True), color=colour, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def plot_routing(table: ArrayLike, path: str | os.PathLike[str], tasks: Sequence[str] | None = None) -> None:
    """Mean routing weight of every expert (columns) for every task (rows)."""
    weights = np.asarray(table, dtype=float)
    figure, axes = _figure(1.2 + 0.8 * weights.shape[1], 1.2 + 0.5 * weights.shape[0])
    picture = axes.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(weights.shape[1]), [f"expert {expert}" for expert in range(weights.shape[1])])
    axes.set_yticks(range(weights.shape[0]), tasks or [f"task {task}" for task in range(weights.shape[0])])
    for (task, expert), weight in np.ndenumerate(weights):
        axes.text(expert, task, f"{weight:.2f}", ha="center", va="center", color="white" if weight > 0.5 else "black")
    figure.colorbar(picture, ax=axes, label="mean routing weight")
    figure.savefig(path, dpi=150)
