"""How long DivBS takes to an accuracy, next to training on all of every batch and on rows drawn at random."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
)

from hf_ext.studies.divbs.data import CLEAN, COPIES, NEEDS, Part, check, open_parts, prepare, training_rows
from hf_ext.studies.divbs.systems import STRATEGIES, costs, make_trainer
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System

CANDIDATES, TARGET = 160, 0.9
MOST, EVERY = 800, 4  # updates at most, and between two looks at the accuracy
RATES = (1e-3, 2e-3, 4e-3)
FULL, UNIFORM, DIVBS = "full batch", "uniform, 10 %", "DivBS, 10 %"


class Stopwatch(TrainerCallback):
    """Ends the training when every part has been classified with the accuracy; the looks at it are not timed.

    Args:
        accuracies: called between updates, gives the accuracy of every part.
        target: the accuracy.
        every: updates between two looks.
    """

    def __init__(self, accuracies: Callable[[nn.Module], Mapping[str, float]], target: float, every: int) -> None:
        self.accuracies, self.target, self.every = accuracies, target, every
        #: seconds and updates that it took, by part
        self.reached: dict[str, tuple[float, int]] = {}
        self._seconds, self._started = 0.0, 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._started = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.global_step % self.every:
            return
        self._seconds += time.perf_counter() - self._started
        by_part = self.accuracies(kwargs["model"])
        for part, accuracy in by_part.items():
            if accuracy >= self.target:
                self.reached.setdefault(part, (self._seconds, state.global_step))
        control.should_training_stop = set(self.reached) == set(by_part)
        self._started = time.perf_counter()


def run(run: Run) -> Outcome:
    """Train until the accuracy is reached; the score is the time it took."""
    parts = open_parts(run.folder)
    seen = {name: parts[name] for name in ("validation", "test")}
    watch = Stopwatch(lambda model: {name: _accuracy(model, part) for name, part in seen.items()}, TARGET, EVERY)
    trainer = make_trainer(
        _vit(run.seed, quick=run.quick),
        training_rows(parts["train"], run.case.options["condition"], run.seed),
        run.system.options,
        candidates=CANDIDATES,
        steps=EVERY if run.quick else MOST,
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
        callbacks=[watch],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
    )
    trainer.train()
    seconds = {name: watch.reached.get(name, (float("nan"), 0))[0] for name in seen}
    updates = float(watch.reached["test"][1]) if "test" in watch.reached else None
    return Outcome(seconds["validation"], seconds["test"], {"updates": updates, **costs(trainer, CANDIDATES)})


def _vit(seed: int, *, quick: bool) -> ViTForImageClassification:
    """A ViT of 0.45 million weights for digits, of which a batch takes much longer than all else in an update."""
    torch.manual_seed(seed)
    width, depth = (16, 1) if quick else (96, 4)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4, "num_channels": 1, "num_labels": 10}
    sizes |= {"hidden_size": width, "intermediate_size": 4 * width}
    sizes |= {"num_hidden_layers": depth, "num_attention_heads": 4}
    return ViTForImageClassification(ViTConfig(**sizes))


@torch.no_grad()
def _accuracy(model: nn.Module, part: Part) -> float:
    training = model.training
    logits = model.eval()(pixel_values=part.pixel_values).logits
    model.train(training)
    return float((logits.argmax(-1) == part.labels).float().mean())


PERCENT = f"{round(100 * TARGET)} %"
PROTOCOL = f"""
- **Clock.** Wall clock on one thread of the CPU, from the first update on: loading of rows, scoring, selection,
  forward and backward passes, the optimiser. Every {EVERY} updates the clock stands still while validation and test
  rows are classified; the time is that at which the accuracy was first {PERCENT} or more. A run that does not get
  there in {MOST} updates has no time (tables say that it diverged). Times depend on the machine and on what else it
  does (`--jobs 1` is best): differences are to be read next to the numbers of updates and rows, which do not.
- **Systems.** Every update draws {CANDIDATES} candidates; *full batch* trains on all of them, the others on
  {CANDIDATES // 10}. *Uniform* passes no candidate forward that it does not train on, so that its updates are far
  cheaper than DivBS's. All are `DivBSTrainer` with other options.
- **Model.** A ViT for the digits (4 blocks, width 96, 0.45 million weights) from random weights, large enough that the
  passes through it take most of the time of an update on all candidates.
- **Hyper-parameters**: only the learning rate, of three values, by the mean time to the accuracy on validation rows of
  runs with another seed, 1000. The Trainer's AdamW (no weight decay, gradients clipped at norm 1), ten updates of
  warm-up, then a constant rate.
- Data, conditions and seeds as in the study `divbs`.
""".strip()

TIME = Study(
    name="divbs-time",
    title="DivBS: time to an accuracy",
    question=(
        f"How long does training on a tenth of every batch take to {PERCENT} accuracy, next to training on all of it, "
        "on clean data and with copies?"
    ),
    metric=f"seconds to {PERCENT} accuracy",
    data={
        "digits": Source(
            "handwritten digits (scikit-learn)",
            embedded="digits",
            needs=NEEDS["digits"],
            origin="comes with scikit-learn",
        ),
    },
    cases=tuple(Case(condition, "digits", {"condition": condition}) for condition in (CLEAN, COPIES)),
    systems=(
        System(FULL, {"share": 1.0}, {"learning_rate": RATES}),
        System(UNIFORM, {"share": 0.1, **STRATEGIES["uniform"]}, {"learning_rate": RATES}),
        System(DIVBS, {"share": 0.1, **STRATEGIES["DivBS"]}, {"learning_rate": RATES}, is_method=True),
    ),
    comparisons=(Comparison(DIVBS, FULL), Comparison(DIVBS, UNIFORM)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    greater_is_better=False,
)
