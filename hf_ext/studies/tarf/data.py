"""Data of TARF's study, the models that are to forget, and those retrained without the concept."""

import json
from typing import Any

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, DatasetDict, Features, concatenate_datasets
from numpy.typing import NDArray
from transformers import ResNetForImageClassification, Trainer, TrainingArguments, set_seed

from hf_ext import _small_models
from hf_ext._runs import arguments, logits, quiet
from hf_ext.data import EMBEDDED, MismatchSplit, load, mismatch_split
from hf_ext.data.digits import with_looks
from hf_ext.data.mismatch import TASKS
from hf_ext.metrics import unlearning_metrics
from hf_ext.studies.study import Preparation
from hf_ext.studies.training import Rows

RETRAINING_EPOCHS = 60  # of the original models too
BATCH = 64
ROWS = 1200  # training rows that a seed draws at most
VALIDATION = 1 / 6
RETRAINED = "retrained.json"  # scores of the retrained models in a preparation's folder, by task
#: by data set: the class that is handed in, the side of the images in pixels
HANDED_IN = {"digits": "8", "fashion": "sneaker", "cifar": "automobile"}
SIDE = {"digits": 16, "fashion": 16, "cifar": 32}
_COLUMNS = ("image", "label", "coarse_label", "split")
_SPLITS = ("pretrain", "train", "test")


# ------------------------------------------------------------------------------------------------ data
def check(name: str, data: DatasetDict) -> None:
    """Raises ValueError for data that cannot be used under this name."""
    if name == "digits":
        if not set(_SPLITS) <= set(data):
            raise ValueError(
                f"--data: found the splits {', '.join(data)} in {name}, allowed are {', '.join(_SPLITS)} of digits"
            )
        return
    columns = data["train"].column_names if "train" in data else []
    if not set(_COLUMNS) <= set(columns):
        raise ValueError(
            f"--data: found the columns {', '.join(columns)} in {name}, allowed is a table with {', '.join(_COLUMNS)}"
        )
    for column in ("label", "coarse_label"):
        feature = data["train"].features[column]
        if not isinstance(feature, ClassLabel):
            raise ValueError(
                f"--data: found {feature} as the column {column} of {name}, allowed are class labels "
                f'(`class_encode_column("{column}")`)'
            )
    classes = data["train"].features["label"].names
    if HANDED_IN[name] not in classes:
        raise ValueError(
            f"--data: found the classes {', '.join(classes)} in {name}, allowed are classes with "
            f"{HANDED_IN[name]}, the one that is handed in"
        )


def build(ready: Preparation) -> DatasetDict:
    """Splits `train`, `validation` and `test` with `pixel_values`, `label` (fine) and `coarse_label`."""
    whole = _digits(ready) if ready.name == "digits" else _pictures(ready)
    rows = np.random.default_rng(ready.seed).permutation(len(whole["train"]))[: 240 if ready.quick else ROWS]
    validation, train = np.split(rows, [int(len(rows) * VALIDATION)])
    return DatasetDict(
        train=whole["train"].select(np.sort(train)),
        validation=whole["train"].select(np.sort(validation)),
        test=whole["test"].select(range(min(200, len(whole["test"])))) if ready.quick else whole["test"],
    )


def _digits(ready: Preparation) -> DatasetDict:
    splits = load("digits", size=SIDE["digits"]) if ready.data in EMBEDDED else load(ready.data)
    parts = {"train": ("pretrain", "train"), "test": ("test",)}
    return DatasetDict(
        {name: with_looks(concatenate_datasets([splits[part] for part in parts[name]])) for name in parts}
    )


def _pictures(ready: Preparation) -> DatasetDict:
    table = load(ready.data)["train"]
    side, mode = SIDE[ready.name], "L" if ready.name == "fashion" else "RGB"
    split = np.asarray(table["split"][:])
    data = {}
    for name in ("train", "test"):
        rows = table.select(np.flatnonzero(split == name))
        pixels = np.stack([np.asarray(image.convert(mode).resize((side, side))) for image in rows["image"][:]])
        pixels = pixels.reshape(len(pixels), side, side, -1).transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
        classes = ("label", "coarse_label")
        data[name] = Dataset.from_dict(
            {"pixel_values": pixels, **{column: rows[column][:] for column in classes}},
            features=Features(
                pixel_values=Array3D(shape=pixels.shape[1:], dtype="float32"),
                **{column: rows.features[column] for column in classes},
            ),
        ).with_format("torch")
    return DatasetDict(data)


def split_of(data: DatasetDict, name: str, task: Any) -> MismatchSplit:
    """One of the four tasks on the training rows."""
    return mismatch_split(data["train"], "label", "coarse_label", HANDED_IN[name], task=task)


def in_memory(data: Dataset) -> Rows:
    """What a model gets."""
    return Rows(data, ["pixel_values", "labels"])


# ------------------------------------------------------------------------------------------------ scores
def judge(trainer: Trainer, split: MismatchSplit, data: DatasetDict) -> dict[str, dict[str, float]]:
    """UA, RA, TA, MIA and the like of a trainer's model, with `validation` and with `test` rows as those outside the
    concept that were never trained on."""
    trained = [
        _predicted(trainer, split.forget, np.repeat("forget", len(split.forget))),
        _predicted(trainer, split.remaining, np.where(split.hidden, "hidden", "retain")),
    ]
    metrics = {}
    for name in ("validation", "test"):
        outside = split.labelled(data[name].select(np.flatnonzero(~split.in_concept(data[name]))))
        columns = zip(*trained, _predicted(trainer, outside, np.repeat("test", len(outside))), strict=True)
        predicted, labels, parts = (np.concatenate(column) for column in columns)
        metrics[name] = unlearning_metrics(predicted, labels, parts.tolist())
    return metrics


def _predicted(
    trainer: Trainer, data: Dataset, parts: NDArray[np.str_]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.str_]]:
    rows = in_memory(data)
    return logits(trainer, rows), rows.columns["labels"].numpy(), parts


# ------------------------------------------------------------------------------------------------ models
def prepare(ready: Preparation) -> None:
    """Leave the data, the original models (in folders named after their label column) and the retrained models' scores
    in the folder."""
    data = build(ready)
    data.save_to_disk(str(ready.folder / "data"))
    scores = {}
    for task in TASKS:
        split = split_of(data, ready.name, task)
        original = ready.folder / split.label_column
        if not original.exists():
            _trained(split.labelled(data["train"]), ready).save_model(str(original))
        scores[task] = judge(_trained(split.retain, ready), split, data)
    (ready.folder / RETRAINED).write_text(json.dumps(scores))


def _trained(data: Dataset, ready: Preparation) -> Trainer:
    set_seed(ready.seed)
    channels, classes = data.features["pixel_values"].shape[0], data.features["labels"].num_classes
    model = ResNetForImageClassification(_small_models.resnet(channels=channels, num_labels=classes))
    args = arguments(
        TrainingArguments,
        steps=-1,
        num_train_epochs=2 if ready.quick else RETRAINING_EPOCHS,
        learning_rate=0.05,
        seed=ready.seed,
        per_device_train_batch_size=BATCH,
        dataloader_drop_last=True,  # a last batch of one row would have no statistics
        optim="sgd",
        optim_args="momentum=0.9",
    )
    trainer = quiet(Trainer(model=model, args=args, train_dataset=in_memory(data)))
    trainer.train()
    return trainer
