"""A whole run of TARF next to training the model anew, and next to fine-tuning on the same remaining data."""

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_ext._runs import quiet
from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, vit
from hf_ext.studies.tarf.data import BATCH, RETRAINING_EPOCHS
from hf_ext.studies.tarf.study import EPOCHS, FORGET_BATCH
from hf_ext.trainers import TARFConfig, TARFTrainer

# The study's own setting is timed: its epochs and its batches, of fewer rows. Both change together.
CLASSES, ROWS = 8, 64  # remaining rows; the classes 0 to 6 remain, of which one is hidden, and 7 is handed in
SMALLER = 4  # times fewer rows an update than in the study, which would be a batch of all of them here
RETRAINING, FINE_TUNING = "retraining", "fine-tuning"
CONSTANT, TARF = "constant ascent + descent", "TARF"


def _whole_run(epochs: int, **options: Any) -> Callable[[torch.device, bool], Step]:
    """A run from the first to the last update; options of TARF, or none for the plain Trainer."""
    trainer, arguments = (TARFTrainer, TARFConfig) if options else (Trainer, TrainingArguments)

    def make(device: torch.device, quick: bool) -> Step:
        model = vit(quick) if quick else vit(quick, hidden_size=128, num_hidden_layers=2, intermediate_size=256)
        model.classifier = torch.nn.Linear(model.config.hidden_size, CLASSES)
        model.config.num_labels = CLASSES
        columns = images(ROWS, classes=CLASSES - 1)
        remaining = [{name: columns[name][row] for name in ("pixel_values", "labels")} for row in range(ROWS)]
        own: dict[str, Any] = {}
        if options:
            own["forget_dataset"] = [{**row, "labels": torch.tensor(CLASSES - 1)} for row in remaining[: ROWS // 8]]
        args = arguments(
            output_dir=tempfile.gettempdir(),
            use_cpu=device.type == "cpu",
            num_train_epochs=epochs // 4 if quick else epochs,
            per_device_train_batch_size=BATCH // SMALLER,
            optim="sgd",
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **options,
        )

        def step() -> None:
            quiet(trainer(model=copy.deepcopy(model), args=args, train_dataset=remaining, **own)).train()

        return step

    return make


_ASCENT: dict[str, Any] = {"tarf_forget_batch_size": FORGET_BATCH // SMALLER, "tarf_k": 1e-3}
_HIDDEN: dict[str, Any] = {"tarf_selection": "groups", "tarf_n_hidden_groups": 1, "tarf_t1": 0.2}

RUN = Benchmark(
    name="tarf-run",
    title="A whole run",
    setting=(
        f"a ViT of 0.3 million weights, {ROWS} remaining images of 64 x 64 pixels, {BATCH // SMALLER} an update and "
        f"{FORGET_BATCH // SMALLER} to forget; {RETRAINING_EPOCHS} epochs of retraining, {EPOCHS} of all others, the "
        "identification included"
    ),
    contenders=(
        Contender(RETRAINING, _whole_run(RETRAINING_EPOCHS)),
        Contender(FINE_TUNING, _whole_run(EPOCHS)),
        Contender(CONSTANT, _whole_run(EPOCHS, tarf_method="ga_ft", **_ASCENT)),
        Contender(TARF, _whole_run(EPOCHS, **_ASCENT, **_HIDDEN), is_method=True),
    ),
    reference=FINE_TUNING,
    bars=(Bar(TARF, RETRAINING, 0.15), Bar(TARF, FINE_TUNING, 1.15)),
)

BENCHMARKS = (RUN,)
