"""`hf-ext train gpl --push_to_hub`: from two tables to a repository whose model ranks nodes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server import Hub

pytestmark = pytest.mark.slow

TRAIN = """
from hf_ext.commands.cli import main

words = "train gpl --nodes nodes.csv --edges edges.csv --id_column account --positive_column is_fraud"
words += " --max_steps 4 --gpl_warmup_epochs 2 --gpl_guide mlp --use_cpu true --report_to none --output_dir out"
words += " --hub_model_id me/fraud --push_to_hub true --disable_tqdm true"
result = main(words.split())
"""
LOAD = """
import {imports}sys
import torch
from transformers import AutoModel

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
model = AutoModel.from_pretrained("me/fraud"{options})
x = torch.arange(20.0).reshape(10, 2) / 10
found = model.predict(x, torch.tensor([[0, 1, 2], [1, 2, 0]]))
result = [type(model).__module__.split(".")[0], found.ranked(k=3).tolist(), model.config.class_prior]
"""


def test_from_tables_to_the_hub(hub: Hub, in_process: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "nodes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["account", "age", "amount", "is_fraud"])
        for node in range(40):
            rows.writerow([f"Ms {node}", rng.normal() + (node < 20), rng.normal() + (node < 20), int(node < 10)])
    with (tmp_path / "edges.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["source", "target"])
        for node in range(40):
            rows.writerow([f"Ms {node}", f"Ms {(node * 7 + 1) % 40}"])
    assert in_process(TRAIN) == 0
    assert "Ms 3" in (tmp_path / "nodes.csv").read_text() and "Ms 30" in (tmp_path / "out" / "ranked.csv").read_text()
    files = set(hub.repos["me/fraud"].files())
    sent = {"README.md", "config.json", "model.safetensors", "modeling_graph.py"}
    assert sent <= files
    kept = {"edge_weights.safetensors", "ranked.csv"}  # a user's edges, and nodes by their own ids
    assert kept <= {path.name for path in (tmp_path / "out").iterdir()} and not kept & files
    kind, ranked, prior = in_process(LOAD.format(imports="hf_ext, ", without=False, options=""))
    assert kind == "hf_ext" and len(ranked) == 3 and 0 < prior < 1
    remote = LOAD.format(imports="", without=True, options=", trust_remote_code=True")
    assert in_process(remote) == ["transformers_modules", ranked, prior]
