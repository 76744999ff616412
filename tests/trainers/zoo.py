"""Trainers as users write them. Each does what transformers' does, but for what it says, and notes being asked."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, SequentialSampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput


class Asked(Trainer):
    """Notes which of a user's methods were called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.asked: set[str] = set()
        super().__init__(*args, **kwargs)


class KeywordLoss(Asked):
    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        assert "num_items_in_batch" in kwargs or not model.training
        self.asked.add("compute_loss")
        return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)


class OtherLoss(Asked):
    """Makes the loss itself, from logits, and takes the labels out of the inputs."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        self.asked.add("compute_loss")
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        loss = torch.nn.functional.cross_entropy(outputs["logits"], labels)
        inputs["labels"] = labels
        return (loss, outputs) if return_outputs else loss


class StepAround(Asked):
    """Looks at the batch on its device, and hands it on."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.asked.add("training_step")
        inputs = self._prepare_inputs(inputs)
        assert len(inputs["labels"])
        return super().training_step(model, inputs, num_items_in_batch)


class OwnStep(Asked):
    """The whole of a step."""

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        self.asked.add("training_step")
        model.train()
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        self.accelerator.backward(loss)
        return loss.detach()


class OwnSampler(Asked):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        self.asked.add("_get_train_sampler")
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)


class OwnLoader(Asked):
    """Neither prepared nor with the columns that are not used removed."""

    def get_train_dataloader(self) -> DataLoader:
        self.asked.add("get_train_dataloader")
        rows: Any = self.train_dataset
        return DataLoader(rows, batch_size=self.args.train_batch_size, collate_fn=self.data_collator)


class OwnOptimizer(Asked):
    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.add("create_optimizer")
        assert isinstance(self.model, torch.nn.Module)
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.SGD(weights, lr=self.args.learning_rate)
        return self.optimizer


class OwnLog(Asked):
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        self.asked.add("log")
        super().log({**logs, "mine": 1.0}, start_time)


class PredictionAround(Asked):
    """As `StepAround`, in evaluation."""

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        self.asked.add("prediction_step")
        return super().prediction_step(model, self._prepare_inputs(inputs), prediction_loss_only, ignore_keys)


class OwnPrediction(Asked):
    """The whole of a prediction."""

    def prediction_step(self, model: Any, inputs: Any, prediction_loss_only: bool, **kwargs: Any) -> Any:
        self.asked.add("prediction_step")
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        return loss.detach(), outputs["logits"].detach(), inputs["labels"]


class OwnEvaluation(Asked):
    """A loop of its own, around `prediction_step`."""

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        self.asked.add("evaluation_loop")
        assert isinstance(self.model, torch.nn.Module)
        self.model.eval()
        steps = [self.prediction_step(self.model, batch, False, ignore_keys=ignore_keys) for batch in dataloader]
        losses, logits, labels = (
            torch.cat([torch.atleast_1d(part) for part in parts]) for parts in zip(*steps, strict=True)
        )
        right = float((logits.argmax(-1) == labels).double().mean())
        metrics = {f"{metric_key_prefix}_loss": float(losses.mean()), f"{metric_key_prefix}_accuracy": right}
        return EvalLoopOutput(logits.numpy(), labels.numpy(), metrics, len(labels))


class OwnEvaluate(Asked):
    """Runs the model itself, batch by batch."""

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        self.asked.add("evaluate")
        assert isinstance(self.model, torch.nn.Module)
        self.model.eval()
        right = [self._right(batch) for batch in self.get_eval_dataloader(eval_dataset)]
        metrics = {"eval_accuracy": float(np.mean(np.concatenate(right)))}
        self.log(metrics)
        return metrics

    @torch.no_grad()
    def _right(self, batch: Any) -> np.ndarray:
        inputs = self._prepare_inputs(batch)
        labels = inputs.pop("labels")
        found: np.ndarray = (self.model(**inputs)["logits"].argmax(-1) == labels).numpy()
        return found


class OwnBatches(Asked):
    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> Any:
        self.asked.add("get_batch_samples")
        return super().get_batch_samples(epoch_iterator, num_batches, device)


ZOO = (
    *(KeywordLoss, OtherLoss, StepAround, OwnStep, OwnSampler, OwnLoader, OwnOptimizer, OwnLog, OwnBatches),
    *(PredictionAround, OwnPrediction, OwnEvaluation, OwnEvaluate),
)
