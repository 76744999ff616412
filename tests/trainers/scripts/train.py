"""Train as the options file says and write what came out, in processes started by tests.

`options["method"]` names a sibling file whose `build(options)` gives the method's part of it. With `fsdp=True` among
the training's arguments several processes shard the weights.
"""

import importlib
import json
import os
import signal
import sys
import traceback
import warnings
from typing import Any

import numpy as np
import torch
from accelerate import ParallelismConfig, PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from graphs import Graphs
from safetensors.torch import save_file
from sharding import end, forget_sharding
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, ViTConfig, ViTForImageClassification

from hf_ext._garbage import spare
from hf_ext.trainers.finite import NonFiniteError


def vit(options: dict[str, Any]) -> ViTForImageClassification:
    """A tiny ViT, always the same; `options["dropout"]` is its dropout."""
    torch.manual_seed(0)
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=8,
            patch_size=2,
            num_channels=1,
            num_labels=10,
            hidden_dropout_prob=options.get("dropout", 0.0),
        )
    )


def dataset(bad_row: int | None = None) -> Dataset:
    """48 random images of ten classes, three tasks, three domains; one row may have a pixel that is no number."""
    rng = np.random.default_rng(0)
    columns = {
        "pixel_values": rng.normal(size=(48, 1, 8, 8)).astype("float32"),
        "labels": rng.integers(0, 10, 48),
        "task_ids": rng.integers(0, 3, 48),
    }
    columns["domain_ids"] = columns["task_ids"]
    if bad_row is not None:
        columns["pixel_values"][bad_row, 0, 0, 0] = np.nan
    return Dataset.from_dict(columns).with_format("torch")


class KillAtStep(TrainerCallback):
    def __init__(self, step: int, process: int) -> None:
        self.step, self.process = step, process

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step and args.process_index == self.process:
            os.kill(os.getpid(), signal.SIGKILL)


class KilledWhileSaving:
    """Dies in the middle of the second checkpoint: weights written, random state and trainer_state.json not yet."""

    def _save_rng_state(self, output_dir: str) -> None:
        if output_dir.endswith("checkpoint-4"):
            os.kill(os.getpid(), signal.SIGKILL)
        super()._save_rng_state(output_dir)


class OwnLoader:
    """Each process has data of its own, the first one twice as many as the second; streams to train on."""

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        rows = self.eval_dataset.select(range(16 // (1 + self.args.process_index)))
        size = self.args.per_device_eval_batch_size
        return DataLoader(self._remove_unused_columns(rows, "evaluation"), size, collate_fn=self.data_collator)

    def get_train_dataloader(self) -> DataLoader:
        rows = self.train_dataset.select(range(16 // (1 + self.args.process_index)))
        data = self._remove_unused_columns(rows, "training").to_iterable_dataset()
        return DataLoader(data, batch_size=self.args.per_device_train_batch_size, collate_fn=self.data_collator)


def make_trainer(options: dict[str, Any]) -> Trainer:
    method = importlib.import_module(options["method"])
    spare()
    torch.manual_seed(0)
    forget_sharding()
    trainer_class, config_class, parts = method.build(options)
    if options.get("kill_while_saving"):
        trainer_class = type("Killed", (KilledWhileSaving, trainer_class), {})
    if options.get("own_loader"):
        trainer_class = type("OwnLoaders", (OwnLoader, trainer_class), {})
    args = config_class(
        **{
            "output_dir": options["output_dir"],
            "max_steps": 6,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_drop_last": True,
            "seed": 1,
            **({"parallelism_config": ParallelismConfig(**sizes)} if (sizes := options.get("parallelism")) else {}),
            **options["training"],
        }
    )
    data = dataset(bad_row=options.get("bad_row"))
    rows = data.select(range(options.get("rows", len(data))))
    rows = rows.to_iterable_dataset() if options.get("stream") else rows
    parts = {"train_dataset": rows, "eval_dataset": data.select(range(20)), **parts}
    trainer: Trainer = trainer_class(args=args, **parts)
    if step := options.get("kill_at"):
        trainer.add_callback(KillAtStep(step, options.get("kill_process", 0)))
    return trainer


def save_weights(trainer: Trainer, file: str) -> None:
    """Called by all processes, each of which may have but a part of them."""
    if trainer.is_fsdp_enabled:
        weights = trainer.accelerator.get_state_dict(trainer.model)
    else:
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    if trainer.is_world_process_zero():
        save_file({name: value.clone() for name, value in weights.items()}, file)


def train(options: dict[str, Any]) -> dict[str, Any]:
    try:
        trainer = make_trainer(options)
        trainer.add_callback(graphs := Graphs(trainer.model))
        with warnings.catch_warnings(record=True) as caught:
            trainer.train(resume_from_checkpoint=options.get("resume", False))
    except Exception as error:  # what is not refused is shown by the test of that run, and the others go on
        if not options.get("refused"):
            raise
        said = str(error) if isinstance(error, ValueError) else traceback.format_exc()
        if isinstance(error, NonFiniteError):
            save_weights(trainer, options["weights"])
        return {"num_processes": PartialState().num_processes, "errors": gather_object([said])}
    compiled = graphs.counted()  # evaluation after training is not compiled
    metrics = trainer.evaluate()
    save_weights(trainer, options["weights"])
    with warnings.catch_warnings(record=True) as at_the_end:
        warnings.simplefilter("always")
        if folder := options.get("model"):
            trainer.save_model(folder)
    if folder := options.get("model_in_full"):
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(folder)
    caught += at_the_end
    said = [str(each.message) for each in caught]
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "num_processes": trainer.accelerator.num_processes,
        "history": history,
        "metrics": metrics,
        "warnings": said,
        "best": trainer.state.best_model_checkpoint,
        **compiled,
        "best_metric": trainer.state.best_metric,
    }


def signal_of(options: dict[str, Any]) -> dict[str, Any]:
    """Train in a copy of this process, which has imported all that takes time; what signal ended it."""
    importlib.import_module(options["method"])
    child = os.fork()
    if child == 0:
        train(options)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return {"num_processes": 1, "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None}


def main() -> None:
    with open(sys.argv[1]) as file:
        options = json.load(file)
    torch.set_num_threads(1)
    for method in {each["method"] for each in options["runs"]}:
        importlib.import_module(method)
    run = signal_of if options.get("killed") else train
    results = [run(each) for each in options["runs"]]
    if int(os.environ.get("RANK", "0")) == 0:
        with open(options["result"], "w") as file:
            json.dump({"num_processes": results[0]["num_processes"], "runs": results}, file)
    PartialState().destroy_process_group()


if __name__ == "__main__":
    sys.modules["train"] = sys.modules["__main__"]  # for the siblings that import from here
    main()
    end()
