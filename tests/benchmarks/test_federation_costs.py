"""What a federation's messages weigh, counted from these."""

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")
sys.path.insert(0, str(Path(__file__).parents[1] / "trainers" / "federated"))

from federation import run_federation

from hf_ext.benchmarks.federation import SETTINGS, bytes_table


def test_bytes_of_all_methods_over_those_of_fedavg() -> None:
    def run(server: Any, client: Any, clients: int) -> None:
        run_federation(server, client, clients)
        assert server.ledger.left_out == []

    rows = [line.strip("|").split("|") for line in bytes_table(run, quick=True).splitlines()[2:]]
    ratios = {row[0].strip(): [float(cell.partition("(")[2].strip(") ")) for cell in row[1:3]] for row in rows}
    assert list(ratios) == list(SETTINGS)
    for name, expected in (
        ("FedAvg", [1, 1]),
        ("FedLESAM", [1, 1]),
        ("FedLESAM, the server sends the change", [2, 1]),
        ("FedLESAM-S", [2, 2]),
        ("FedLESAM-D", [1, 1]),
    ):
        assert ratios[name] == pytest.approx(expected)
    assert max(ratios["FedGELA"]) < 1 and max(ratios["FedAvg of LoRA"]) < 0.5
