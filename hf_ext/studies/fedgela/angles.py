"""The picture of the classes' angles: `python -m hf_ext.studies.fedgela.angles PICTURE`.

Trains FedAvg and FedGELA once, as in the study `fedgela`, and one client's model a round further from each.
"""

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hf_ext.hub_cards.plots import BASELINE, METHOD, new_figure, save_figure
from hf_ext.studies.fedgela.study import COMPARISON, FEDAVG, GELA, SETTINGS, angles_on_test
from hf_ext.studies.fedgela.systems import client_of, model_of, strategy_of
from hf_ext.studies.fedlesam.data import Federation, Problem, federation, open_problem, prepare
from hf_ext.studies.fedlesam.federating import Setting, train, train_client
from hf_ext.studies.study import Preparation

GLOBAL, LOCAL = "global model", "after a round at one client"
CLIENT, TEMPERATURE = 0, 0.2  # the latter as it is chosen there


def measured(
    problem: Problem, clients: Federation, settings: Mapping[str, Any], setting: Setting, seed: int
) -> dict[str, list[float]]:
    """Angles on the common test rows, the smallest first: of the global model, and after a round at a client."""
    client = client_of(settings, problem.classes)
    make_model = partial(model_of, problem, settings, seed)
    trained = train(clients, make_model, client, strategy_of(settings), setting, seed)
    assert trained is not None
    found = {GLOBAL: angles_on_test(trained.model, clients).tolist()}
    train_client(trained.model, CLIENT, clients, client, setting, seed)
    return {**found, LOCAL: angles_on_test(trained.model.eval(), clients).tolist()}


def plot_angles(found: Mapping[str, Mapping[str, Sequence[float]]], classes: int, path: str) -> None:
    """Angles of all pairs of classes, the smallest first: one colour a system, dashed what a client makes of them.

    Args:
        found: of two systems, angles in degrees of the global model and after a round at a client.
        classes: their number, of whose simplex the angle is drawn.
        path: of the picture.
    """
    figure, (axes,) = new_figure(7, 4)
    for (system, lines), colour in zip(found.items(), (BASELINE, METHOD), strict=True):
        for (name, values), style in zip(lines.items(), ("-", "--"), strict=True):
            axes.plot(values, style, color=colour, label=f"{system}, {name}")
    axes.axhline(math.degrees(math.acos(-1 / (classes - 1))), color="#444444", linewidth=0.8, label="simplex")
    axes.set_xlabel("pairs of classes")
    axes.set_ylabel("angle between mean features, degrees")
    axes.set_ylim(0, 180)
    axes.legend(frameon=False)
    save_figure(figure, path)


def main(path: str, seed: int = 0) -> None:
    """Train, and draw."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as made:
        prepare(Preparation("digits", seed, "digits", Path(made)))
        problem = open_problem(Path(made))
    clients = federation(problem, "classes", seed)
    options = {system.name: system.options for system in COMPARISON.systems}
    systems = {FEDAVG: options[FEDAVG], GELA: {**options[GELA], "temperature": TEMPERATURE}}
    found = {
        name: measured(problem, clients, settings, SETTINGS["digits"], seed) for name, settings in systems.items()
    }
    plot_angles(found, problem.classes, path)


if __name__ == "__main__":
    main(sys.argv[1])
