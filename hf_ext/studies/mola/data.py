"""Data and small base models of MoLA's study: one table of model inputs, labels and task ids per data set.

Every builder returns splits `train`, `validation` (held out of the training rows) and `test`, and a small base model
trained on other rows or on one task.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, List, Value
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    ModernBertConfig,
    ModernBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ResNetForImageClassification,
    Trainer,
    TrainingArguments,
    ViTForImageClassification,
)

from hf_ext import _small_models
from hf_ext._runs import arguments, quiet
from hf_ext.data import EMBEDDED, load
from hf_ext.studies.study import Preparation
from hf_ext.studies.tables import check_classes, check_table, hold_out, one_table, rows_by_split

TOKENS = 32  # texts are cut at this length


@dataclass(frozen=True)
class Problem:
    """A base model and the data it is adapted to."""

    base: PreTrainedModel
    data: DatasetDict


def digits(ready: Preparation) -> Problem:
    """Embedded digits as tasks or domains; the base model knows the first of them."""
    splits = load(ready.data, seed=ready.seed) if ready.data in EMBEDDED else load(ready.data)
    train = splits["train"]
    # the rows are the same images once per task: a validation image is one in all of them
    tasks = train.features["task_ids"].num_classes
    images = len(train) // tasks
    training, validation = hold_out(np.arange(images), ready.seed)
    rows = {"train": training, "validation": validation}
    data = DatasetDict(
        {name: train.select((ids[None] + images * np.arange(tasks)[:, None]).ravel()) for name, ids in rows.items()}
    )
    data["test"] = splits["test"]
    torch.manual_seed(ready.seed)
    model = ViTForImageClassification(_small_models.vit(num_labels=10))
    return Problem(_pretrained(model, splits["pretrain"], ready, steps=500, learning_rate=2e-3), data)


def images(ready: Preparation) -> Problem:
    """Pictures of the same classes in several styles (domains); the base model knows the first style.

    Columns: `image`, `label` and `domain` (class labels), `split` (train, test).
    """
    raw = one_table(ready.name, load(ready.data), _COLUMNS[ready.name])
    size = 32
    pixels = np.stack([np.asarray(image.convert("RGB").resize((size, size))) for image in raw["image"][:]])
    pixels = (pixels.transpose(0, 3, 1, 2) / 127.5 - 1).astype(np.float32)
    table = Dataset.from_dict(
        {"pixel_values": pixels, "labels": raw["label"][:], "task_ids": raw["domain"][:]},
        features=Features(
            pixel_values=Array3D(shape=(3, size, size), dtype="float32"),
            labels=raw.features["label"],
            task_ids=raw.features["domain"],
        ),
    )
    data = _by_split(table, raw["split"][:], ready.seed)
    config = _small_models.resnet(widths=(32, 64, 128), num_labels=raw.features["label"].num_classes)
    torch.manual_seed(ready.seed)
    model = ResNetForImageClassification(config)
    first = data["train"].select(np.flatnonzero(np.asarray(data["train"]["task_ids"][:]) == 0))
    return Problem(_pretrained(model, first, ready, steps=300, learning_rate=1e-3), data)


def text(ready: Preparation) -> Problem:
    """Several text classification tasks over one set of all their classes; the base model was trained on all of them,
    on a third of the training rows that is not used again.

    Columns: `text`, `task`, `label_name`, `split` (train, test); a `text_pair` column may be there.
    """
    raw = one_table(ready.name, load(ready.data), _COLUMNS[ready.name])
    tasks = list(dict.fromkeys(raw["task"][:]))
    names = [f"{task}: {label}" for task, label in zip(raw["task"][:], raw["label_name"][:], strict=True)]
    classes = sorted(set(names))
    tokenizer = _tokenizer(raw["text"][:])
    encoded = tokenizer(raw["text"][:], truncation=True, max_length=TOKENS, padding="max_length")
    table = Dataset.from_dict(
        {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": [classes.index(name) for name in names],
            "task_ids": [tasks.index(task) for task in raw["task"][:]],
        },
        features=Features(
            input_ids=List(Value("int64")),
            attention_mask=List(Value("int64")),
            labels=ClassLabel(names=classes),
            task_ids=ClassLabel(names=tasks),
        ),
    )
    data = _by_split(table, raw["split"][:], ready.seed)
    shuffled = np.random.default_rng(ready.seed + 1).permutation(len(data["train"]))
    seen, training = np.split(shuffled, [len(shuffled) // 3])
    pretrain, data["train"] = data["train"].select(seen), data["train"].select(np.sort(training))
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TOKENS,
        "global_attn_every_n_layers": 1,
        "classifier_pooling": "mean",
        "num_labels": len(classes),
    }
    sizes |= {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in _SPECIAL.items()}
    torch.manual_seed(ready.seed)
    model = ModernBertForSequenceClassification(ModernBertConfig(**sizes))
    return Problem(_pretrained(model, pretrain, ready, steps=400, learning_rate=3e-3), data)


#: what data in place of the embedded digits must have
DIGITS_NEED = (
    "pixel_values (1 x 8 x 8), labels (of ten classes), task_ids (class labels), in the splits pretrain, train (the "
    "same images in every task, task after task) and test"
)


def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that the builder of this name cannot use."""
    if BUILDERS[name] is not digits:
        check_table(name, data, _COLUMNS[name], ("label", "domain") if BUILDERS[name] is images else ())
        return
    for split in ("pretrain", "train", "test"):
        columns = data[split].column_names if split in data and len(data[split]) else []
        if not {"pixel_values", "labels", "task_ids"} <= set(columns):
            present = ", ".join(columns) or "no rows"
            raise ValueError(f"--data: found {present} in the split {split} of {name}, allowed are {DIGITS_NEED}")
    check_classes(name, data["train"], "task_ids")
    tasks = data["train"].features["task_ids"].num_classes
    ids = np.asarray(data["train"].with_format("numpy")["task_ids"][:])
    if not np.array_equal(ids, np.repeat(np.arange(tasks), len(ids) // tasks)):
        raise ValueError(f"--data: found other task_ids in the split train of {name}, allowed are {DIGITS_NEED}")


BUILDERS: dict[str, Callable[[Preparation], Problem]] = {
    "digits": digits,
    "digits8": digits,
    "domains": digits,
    "images": images,
    "text": text,
}


_SPECIAL = {"pad": "[PAD]", "cls": "[CLS]", "sep": "[SEP]", "bos": "[CLS]", "eos": "[SEP]"}


_COLUMNS = {"images": ("image", "label", "domain", "split"), "text": ("text", "task", "label_name", "split")}


def _by_split(table: Dataset, split: list[str], seed: int) -> DatasetDict:
    rows = rows_by_split(split, seed)
    return DatasetDict({name: table.select(chosen).with_format("torch") for name, chosen in rows.items()})


def _pretrained(
    model: PreTrainedModel, data: Dataset, ready: Preparation, *, steps: int, learning_rate: float
) -> PreTrainedModel:
    args = arguments(
        TrainingArguments, steps=20 if ready.quick else steps, learning_rate=learning_rate, seed=ready.seed
    )
    quiet(Trainer(model=model, args=args, train_dataset=data)).train()
    return model


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte pairs learned from the texts. WordPiece's trainer would number ties differently in every call."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
    special = ["[PAD]", "[CLS]", "[SEP]"]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=4000,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    ids = {name: tokenizer.token_to_id(name) or 0 for name in special}
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")
