"""Train our SASRec by the plain Trainer on what `recbole_sasrec.py` trains on, and print the same lines of JSON."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from hf_ext._runs import quiet
from hf_ext.data.interactions import NextItems, NextItemsCollator, leave_one_out, load_interactions
from hf_ext.metrics import RankingMetrics, rank_targets
from hf_ext.models import SequentialRecommenderForNextItem


class _Turns(TrainerCallback):
    """Begins an epoch when a line is read, and says how long it took and what the model is worth then."""

    def __init__(self, model: Any, test: NextItems) -> None:
        self._model, self._test, self._metrics = model, test, RankingMetrics(test)
        self._began = self._cpu = 0.0

    def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
        sys.stdin.readline()
        self._began, self._cpu = time.perf_counter(), time.process_time()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        took = {"seconds": time.perf_counter() - self._began, "cpu_seconds": time.process_time() - self._cpu}
        found = self._metrics.of(rank_targets(self._model, self._test))
        _say({"epoch": round(state.epoch), **took, "new_items_ndcg@10": found["ndcg@10"]})


def _say(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def measure(given: dict[str, Any]) -> dict[str, Any]:
    """Train by settings as `recbole_sasrec.py` has them, and `targets` of `NextItems`."""
    torch.set_num_threads(given["threads"])
    (events,) = Path(given["folder"]).glob("*.inter")
    split = leave_one_out(load_interactions(events))
    train = NextItems(split, "train", max_length=given["max_length"], targets=given["targets"])
    test = NextItems(split, "test", max_length=given["max_length"])
    set_seed(given["seed"])
    model = SequentialRecommenderForNextItem.from_items(
        split.interactions.items,
        architecture="sasrec",
        hidden_size=given["hidden_size"],
        num_hidden_layers=given["layers"],
        num_attention_heads=given["heads"],
        intermediate_size=given["inner_size"],
        dropout=given["dropout"],
        max_length=given["max_length"],
    )
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder,
            num_train_epochs=given["epochs"],
            per_device_train_batch_size=given["batch_size"],
            learning_rate=given["learning_rate"],
            lr_scheduler_type="constant",
            max_grad_norm=0.0,  # not clipped
            seed=given["seed"],
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        own: dict[str, Any] = {"data_collator": NextItemsCollator(), "callbacks": [_Turns(model, test)]}
        trainer = quiet(Trainer(model=model, args=args, train_dataset=train, **own))
        _say({"ready": True})
        trainer.train()
    targets = int((split.train_ends - 1).clip(min=0).sum())
    return {
        "training_rows": len(train),
        "training_targets": targets,
        "test_rows": len(test),
        "items": split.num_items,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "updates": trainer.state.global_step // given["epochs"],
    }


if __name__ == "__main__":
    _say(measure(json.loads(sys.argv[1])))
