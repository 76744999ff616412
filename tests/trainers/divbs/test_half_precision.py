"""DivBS's scores in half precision: the scoring pass alone is, and a resumed run goes on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from hf_ext.trainers import DivBSConfig, DivBSTrainer

_GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32, "vocab_size": 30, "pad_token_id": 0}


def _arguments(out: Path, **extra: Any) -> DivBSConfig:
    defaults: dict[str, Any] = {"max_steps": 3, "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1}
    quiet: dict[str, Any] = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    own: dict[str, Any] = {"per_device_train_batch_size": 4, "divbs_ratio": 0.25}
    return DivBSConfig(output_dir=str(out), **{**defaults, **quiet, **own, **extra})


def _texts(length: int = 12, rows: int = 32, *, words: int = 30) -> Dataset:
    """Token ids with padding on the right, one label each."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, words, rng.integers(3, length + 1)).tolist() for _ in range(rows)]
    columns = {
        "input_ids": [row + [0] * (length - len(row)) for row in ids],
        "attention_mask": [[1] * len(row) + [0] * (length - len(row)) for row in ids],
        "labels": [number % 3 for number in range(rows)],
    }
    return Dataset.from_dict(columns).with_format("torch")


def _bert(kind: type[Any] = BertForSequenceClassification, **config: Any) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    sizes["initializer_range"] = 0.5  # so that every token tells
    return kind(BertConfig(**{"vocab_size": 30, "num_labels": 3, "max_position_embeddings": 32, **sizes, **config}))


class _Recorder(DivBSTrainer):
    """Keeps what it was offered and what it trained on."""

    offered: Any = None
    trained: Any = None

    def _selected(self, batch: Any, sizes: list[int], micro_step: int) -> Any:
        self.offered, self.trained = batch, super()._selected(batch, sizes, micro_step)
        return self.trained


def test_scores_in_half_precision_and_updates_in_full(tmp_path: Path) -> None:
    dtypes: dict[bool, set[torch.dtype]] = {False: set(), True: set()}
    scores = []
    for dtype in (None, "bfloat16"):
        model = _bert()
        trainer = _Recorder(model, _arguments(tmp_path, divbs_scoring_dtype=dtype), train_dataset=_texts())
        batch = next(iter(trainer.get_train_dataloader()))
        scores.append(trainer._score(batch, 16, seed=0))

    def note(module: Any, args: Any, output: Tensor) -> None:
        dtypes[torch.is_grad_enabled()].add(output.dtype)

    model.bert.encoder.layer[0].intermediate.dense.register_forward_hook(note)
    trainer.train()
    assert dtypes == {False: {torch.bfloat16}, True: {torch.float32}}
    for one, other in zip(scores[0], scores[1], strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)
    assert not torch.equal(scores[0].features, scores[1].features)


def test_half_precision_other_than_the_training_s_is_refused(tmp_path: Path) -> None:
    arguments = _arguments(tmp_path, bf16=True, divbs_scoring_dtype="float16")
    message = "divbs_scoring_dtype: found 'float16' with a training in bfloat16, .* allowed are None and 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        DivBSTrainer(_bert(), arguments, train_dataset=_texts())
    arguments = _arguments(tmp_path, bf16=True, divbs_scoring_dtype="bfloat16", max_steps=1)
    DivBSTrainer(_bert(), arguments, train_dataset=_texts()).train()


def test_a_resumed_run_scores_as_before(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "divbs_scoring_dtype": "bfloat16",
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    whole, resumed = (_bert(hidden_dropout_prob=0.1) for _ in range(2))
    DivBSTrainer(whole, _arguments(tmp_path, **options), train_dataset=_texts(rows=96)).train()
    trainer = DivBSTrainer(resumed, _arguments(tmp_path, **options), train_dataset=_texts(rows=96))
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 3
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in resumed.state_dict().items())
