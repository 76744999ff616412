"""`hf-ext train causald --push_to_hub`: from a table to a repository that recommends by title."""

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

words = "train causald --dataset purchases.csv --user_column customer --item_column product --time_column bought_at"
words += " --causald_num_candidates 4 --max_steps 2 --teachers gru --use_cpu true --report_to none --output_dir out"
words += " --hub_model_id me/shop --push_to_hub true --disable_tqdm true --save_steps 1"
result = main([*words.split(), "--title_column", "product name"])
"""
LOAD = """
import {imports}sys
from transformers import AutoModel

class Missing:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "hf_ext" and {without}:
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Missing())
model = AutoModel.from_pretrained("me/shop"{options})
found = model.recommend(["P 1", "P 2"], k=3)
result = [type(model).__module__.split(".")[0], found.ids, found.titles]
"""


def test_from_a_table_to_the_hub(hub: Hub, in_process: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with (tmp_path / "purchases.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["customer", "product", "bought_at", "product name"])
        for customer in range(10):
            for day, item in enumerate(rng.integers(0, 8, 6), start=1):
                rows.writerow([f"Ms {customer}", f"P {item}", f"2024-05-{day:02d}", f"Käse {item}"])
    assert in_process(TRAIN) == 0
    files = set(hub.repos["me/shop"].files())
    assert {"README.md", "config.json", "items.json", "model.safetensors", "modeling_recsys.py"} <= files
    assert not any("/" in name or name.endswith((".bin", ".npy", ".csv")) for name in files)  # nothing of the teachers
    kind, ids, titles = in_process(LOAD.format(imports="hf_ext, ", without=False, options=""))
    assert kind == "hf_ext" and titles == [[f"Käse {name.removeprefix('P ')}" for name in ids[0]]]
    remote = LOAD.format(imports="", without=True, options=", trust_remote_code=True")
    assert in_process(remote) == ["transformers_modules", ids, titles]
