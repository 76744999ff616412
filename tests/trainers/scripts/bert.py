"""No method, on a tiny BERT, whose loss is a mean whatever it is told."""

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from hf_ext.trainers import MethodMixin


class PlainTrainer(MethodMixin, Trainer):
    pass


def build(options: dict[str, Any]) -> tuple[type[PlainTrainer], type[TrainingArguments], dict[str, Any]]:
    """Classes of the trainer and its arguments, and the trainer's keywords."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    model = BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes, **rates))
    rng = np.random.default_rng(0)
    rows = Dataset.from_dict({"input_ids": rng.integers(0, 40, (48, 6)), "labels": rng.integers(0, 3, 48)})
    return PlainTrainer, TrainingArguments, {"model": model, "train_dataset": rows, "eval_dataset": rows}
