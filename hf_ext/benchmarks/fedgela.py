"""FedGELA's update at a client next to the plain Trainer's, which is that of FedAvg with a linear classifier."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_ext.benchmarks.engine import Bar, Benchmark, Contender, Step
from hf_ext.benchmarks.training import images, update, vit
from hf_ext.models import replace_classifier
from hf_ext.trainers.federated import FedGELAConfig, FedGELATrainer

ROWS, CLASSES = 32, 10
PLAIN, ETF, GELA = "plain Trainer (FedAvg)", "plain Trainer, a fixed simplex", "FedGELA"


class _Local(FedGELATrainer):
    """With the head's vectors weighed as in training."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        self._show(self.class_weights)
        return super().create_optimizer(*args, **kwargs)


def _update(trainer: type[Trainer], *, simplex: bool) -> Callable[[torch.device, bool], Step]:
    local = issubclass(trainer, FedGELATrainer)

    def make(device: torch.device, quick: bool) -> Step:
        model = vit(quick, num_labels=CLASSES)
        model = replace_classifier(model) if simplex else model
        inputs = images(8 if quick else ROWS, classes=CLASSES)
        batch = {name: values.to(device) for name, values in inputs.items() if "ids" not in name}
        arguments = FedGELAConfig if local else TrainingArguments
        options = {"class_counts": torch.arange(1, CLASSES + 1)} if local else {}
        settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 1e-3, "trainer_options": options}
        return update(trainer, arguments, model, [batch], device, **settings)

    return make


STEP = Benchmark(
    name="fedgela-step",
    title="An update of one batch at a client",
    setting=f"a ViT of 5 million weights, {ROWS} images of 64 x 64 pixels, {CLASSES} classes, SGD, gradients clipped",
    contenders=(
        Contender(PLAIN, _update(Trainer, simplex=False)),
        Contender(ETF, _update(Trainer, simplex=True)),
        Contender(GELA, _update(_Local, simplex=True), is_method=True),
    ),
    reference=PLAIN,
    bars=(Bar(GELA, PLAIN, 1.05),),
)

BENCHMARKS = (STEP,)
