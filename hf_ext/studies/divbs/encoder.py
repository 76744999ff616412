"""Texts of one task as token ids, and the small encoder that has read the texts of all: masked words were guessed."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

from hf_ext.data import load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_table, one_table, rows_by_split
from hf_ext.studies.training import Rows

TASK, TOKENS, WORDS = "subj", 48, 4000
UPDATES, TEXTS = 3000, 32  # of the training on masked words
NEEDS = f"text, task, label_name, split (train, test; or these splits), with rows of the task {TASK}"
_COLUMNS = ("text", "task", "label_name", "split")
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FILE = "encoder.pt"


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for a table without these columns, or without the task."""
    check_table(name, data, _COLUMNS)
    table = one_table(name, data, _COLUMNS)
    splits = {split for split, task in zip(table["split"][:], table["task"][:], strict=True) if task == TASK}
    if not {"train", "test"} <= splits:
        raise ValueError(
            f"--data: found the splits {sorted(splits)} of the task {TASK} in {name}, allowed are both train and test"
        )


# ------------------------------------------------------------------------------------------------ preparation
def prepare(ready: Preparation) -> None:
    """Leave the task's training, validation and test rows and an encoder that knows the training texts."""
    table = one_table(ready.name, load(ready.data), _COLUMNS)
    training = table.select(np.flatnonzero(np.asarray(table["split"][:]) == "train"))
    tokenizer = _tokenizer(training["text"][:])
    ids = _token_ids(tokenizer, training["text"][:])
    torch.manual_seed(ready.seed)
    model = BertForMaskedLM(_config(ready.quick))
    _guess_masked_words(model, ids, 5 if ready.quick else UPDATES)
    rows = table.select(np.flatnonzero(np.asarray(table["task"][:]) == TASK))
    classes = sorted(set(rows["label_name"][:]))
    parts = {
        name: _part(rows.select(chosen), classes, tokenizer)
        for name, chosen in rows_by_split(rows["split"][:], ready.seed).items()
    }
    left = {"quick": ready.quick, "encoder": model.bert.state_dict(), "parts": parts}
    torch.save(left, ready.folder / _FILE)


def open_parts(folder: Path) -> dict[str, dict[str, Tensor]]:
    """The rows that `prepare` has left, `train`, `validation` and `test`: `input_ids` and `attention_mask` `[N, T]`,
    `labels` `[N]`."""
    parts: dict[str, dict[str, Tensor]] = _left(folder)["parts"]
    return parts


def classifier(folder: Path, seed: int) -> BertForSequenceClassification:
    """The encoder that `prepare` has left, with a new head."""
    left = _left(folder)
    torch.manual_seed(seed)
    classes = int(left["parts"]["train"]["labels"].max()) + 1
    model = BertForSequenceClassification(_config(left["quick"], num_labels=classes))
    model.bert.load_state_dict(left["encoder"], strict=False)  # all but the pooler, which masked words do not need
    return model


def _left(folder: Path) -> dict[str, Any]:
    left: dict[str, Any] = torch.load(folder / _FILE, weights_only=True)
    return left


def _config(quick: bool, **labels: Any) -> BertConfig:
    width = 16 if quick else 96
    return BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        pad_token_id=_SPECIAL.index("[PAD]"),
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **labels,
    )


# ------------------------------------------------------------------------------------------------ texts
def _tokenizer(texts: list[str]) -> Tokenizer:
    """The most frequent words and signs, in small letters."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(vocab_size=WORDS, special_tokens=list(_SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(name, _SPECIAL.index(name)) for name in ("[SEP]", "[CLS]")]
    tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS, pad_id=_SPECIAL.index("[PAD]"), pad_token="[PAD]")
    return tokenizer


def _token_ids(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """`[N, T]`, padded on the right."""
    return torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(texts)])


def _part(rows: Dataset, classes: list[str], tokenizer: Tokenizer) -> dict[str, Tensor]:
    ids = _token_ids(tokenizer, rows["text"][:])
    labels = torch.tensor([classes.index(name) for name in rows["label_name"][:]])
    return {"input_ids": ids, "attention_mask": ids.ne(0).long(), "labels": labels}


def rows_of(part: Mapping[str, Tensor]) -> Rows:
    """A part as a data set, none of whose rows is marked."""
    return Rows.of(**part, marked=torch.zeros_like(part["labels"]))


# ------------------------------------------------------------------------------------------------ masked words
def _guess_masked_words(model: BertForMaskedLM, ids: Tensor, updates: int) -> None:
    """Train on batches of texts of nearly one length, a fifth of whose words is to be guessed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=updates, pct_start=0.05)
    batches = _batches(ids)
    for _ in range(updates):
        texts = next(batches)
        guessed = (torch.rand(texts.shape) < 0.2) & (texts >= len(_SPECIAL))
        hidden = texts.masked_fill(guessed & (torch.rand(texts.shape) < 0.9), _SPECIAL.index("[MASK]"))
        states = model.bert(input_ids=hidden, attention_mask=texts.ne(0).long()).last_hidden_state
        losses = nn.functional.cross_entropy(model.cls(states[guessed]), texts[guessed], reduction="sum")
        loss = losses / guessed.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _batches(ids: Tensor) -> Iterator[Tensor]:
    lengths = ids.ne(0).sum(dim=1)
    while True:
        for some in torch.randperm(len(ids)).split(20 * TEXTS):
            for rows in some[lengths[some].argsort()].split(TEXTS):
                yield ids[rows, : int(lengths[rows].max())]
