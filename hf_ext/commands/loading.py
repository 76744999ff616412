"""Model, data and collator for training from the command line."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value
from torch import Tensor, nn
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    default_data_collator,
)

from hf_ext._models import any_read
from hf_ext._small_models import class_names
from hf_ext.commands.places import check_place, naming_the_images, naming_the_models, naming_the_processor, shape_of
from hf_ext.commands.splits import splits_of
from hf_ext.data import load
from hf_ext.data.loading import split_by_column
from hf_ext.trainers.arguments import option

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """Which model."""

    model_name_or_path: str | None = option(
        None, "Base model, required: a Hub id or a folder, such as ./hf_ext_demo_mola/base_model."
    )
    task: Literal["image-classification", "text-classification"] = option(
        "image-classification", "Task of the model: classes of images or of texts."
    )

    def check(self) -> None:
        """Before anything is loaded.

        Raises:
            ValueError: no model named, or a folder that does not exist.
        """
        if not self.model_name_or_path:
            raise ValueError("model_name_or_path: found nothing, allowed is a Hub id or the folder of a model")
        check_place("model_name_or_path", self.model_name_or_path)

    def load(self, names: Sequence[str]) -> nn.Module:
        """The model, with a head for classes of these names.

        Raises:
            ValueError: the checkpoint is of another kind of model, so that none of its weights were read.
        """
        kinds = {
            "text-classification": AutoModelForSequenceClassification,
            "image-classification": AutoModelForImageClassification,
        }
        model = kinds[self.task].from_pretrained(
            str(self.model_name_or_path),
            num_labels=len(names),
            ignore_mismatched_sizes=True,
            **class_names(names),
        )
        if not any_read(model):
            raise ValueError(
                f"model_name_or_path: found {self.model_name_or_path!r} with weights for another model than a "
                f"{type(model).__name__}, which reads none of them, allowed is a model of that kind"
            )
        return model

    @property
    def image_arguments(self) -> str:
        """Those that say which images are read."""
        return "model_name_or_path"

    def processor(self) -> Any:
        """What prepares images for it.

        Raises:
            ValueError: nothing does.
        """
        with naming_the_processor("model_name_or_path", str(self.model_name_or_path)):
            return AutoImageProcessor.from_pretrained(self.model_name_or_path)

    def try_out(self, model: Any, pixel_values: Tensor) -> None:
        """Give images to the loaded model, before it is trained.

        Raises:
            ValueError: it cannot take them.
        """
        with naming_the_images(self.image_arguments, shape_of(pixel_values)):
            model(pixel_values=pixel_values.to(model.dtype))


@dataclass
class DataArguments:
    """Which data."""

    dataset: str = option(
        "digits-rotated",
        "Data to train on: an embedded name (digits-rotated, ...), a Hub id, a folder (images, csv, "
        "parquet) or a file.",
    )
    train_split: str = option("train", "Split to train on.")
    eval_split: str | None = option(
        "auto",
        "Split to evaluate on; 'none' for no evaluation. 'auto': test, or else validation, or else eval_share of "
        "train_split.",
    )
    eval_share: float = option(
        0.2, "Share of every class that is kept from training to evaluate on, drawn by seed, where there is no split."
    )
    image_column: str = option("image", "Column of images; not read where the data have a column pixel_values.")
    text_column: str = option("text", "Column of texts, for the task text-classification.")
    label_column: str = option("labels", "Column of classes; without it, the column 'label'.")
    max_length: int = option(128, "Tokens that a text is truncated to.")


@dataclass
class OwnDataArguments(DataArguments):
    """Which data; a method that digits are of no use to has no default."""

    dataset: str = option(
        "",
        "Data to train on, required: a folder (images, csv, parquet), a Hub id, a file or an embedded name (digits).",
    )


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of samples whose largest logit is the label's."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.asarray(logits).argmax(-1) == prediction.label_ids).mean())}


@dataclass
class Loaded:
    """What a Trainer needs."""

    model: nn.Module
    data: Mapping[str, Any]  # `train` and, where there is something to evaluate on, `eval`
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    processor: Any
    keeps_columns: bool  # the collator reads columns that the model does not know
    remark: str = ""  # on the data, for output and card
    metrics: Callable[[EvalPrediction], dict[str, float]] | None = accuracy  # None: the Trainer's own


def load_model_and_data(model: ModelArguments, data: DataArguments, *, seed: int = 0) -> Loaded:
    """Load both; classes and their names come from the data. Without `data["eval"]` there is nothing to evaluate on.

    Args:
        model, data: which.
        seed: draws what is kept from training to evaluate on, where the data have no split for that.

    Raises:
        ValueError: no model or no data named, a split or column that the data does not have, or images
            that the model cannot take.
    """
    model.check()
    if not data.dataset:
        raise ValueError(
            "dataset: found nothing, allowed is a folder (of images with a folder for each class, of csv or parquet), "
            "a Hub id, a file or an embedded name (digits)"
        )
    splits, remark = splits_of(split_by_column(load(data.dataset)), data, seed)
    splits, names = _with_labels(splits, data.label_column)
    columns = splits["train"].column_names
    if model.task == "text-classification":
        if data.text_column not in columns:
            raise ValueError(f"text_column: found {data.text_column!r}, allowed are {columns}")
        with naming_the_models(model):
            tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
        splits = splits.map(
            lambda rows: tokenizer(rows[data.text_column], truncation=True, max_length=data.max_length),
            batched=True,
            remove_columns=[data.text_column],
            desc="Tokenizing",
        )
        padding = DataCollatorWithPadding(tokenizer)
        with naming_the_models(model):
            network = model.load(names)
        return Loaded(network, splits, padding, tokenizer, keeps_columns=False, remark=remark)

    with naming_the_models(model):
        network = model.load(names)
    if "pixel_values" in columns:
        loaded = Loaded(network, splits, default_data_collator, None, keeps_columns=False, remark=remark)
        pixels = torch.as_tensor(splits["train"][:1]["pixel_values"])
    else:
        if data.image_column not in columns:
            raise ValueError(f"image_column: found {data.image_column!r}, allowed are {columns}")
        with naming_the_models(model):
            processor = model.processor()
        mode = "L" if _is_grey(network) else "RGB"
        splits = splits.cast_column(data.image_column, Image(mode=mode))
        collator = ImageCollator(processor, data.image_column)
        loaded = Loaded(network, splits, collator, processor, keeps_columns=True, remark=remark)
        with naming_the_images(model.image_arguments, f"mode {mode}"):
            pixels = collator([splits["train"][0]])["pixel_values"]
    with torch.no_grad():
        model.try_out(network, pixels)
    return loaded


def _is_grey(network: nn.Module) -> bool:
    """Whether it reads images of one channel: its first convolution tells, of any library."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    return first is not None and first.in_channels == 1


@dataclass
class ImageCollator:
    """Images of a batch through the model's processor, and their labels."""

    processor: Any
    image_column: str

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        images = [example[self.image_column] for example in examples]
        pixels = self.processor(images, return_tensors="pt")["pixel_values"]
        if "labels" not in examples[0]:
            return {"pixel_values": pixels}
        return {"pixel_values": pixels, "labels": torch.tensor([int(example["labels"]) for example in examples])}


def _with_labels(splits: DatasetDict, column: str) -> tuple[DatasetDict, list[str]]:
    train, evaluated = splits["train"], splits.get("eval", splits["train"])
    if column not in train.column_names:
        if "label" not in train.column_names:
            raise ValueError(
                f"label_column: found no column {column!r}, allowed is a column of classes, of {train.column_names}; "
                "images in folders have one where there are two or more folders, one a class"
            )
        column = "label"
    numbered = isinstance(train.features[column], ClassLabel)
    if not numbered:
        # each split by itself would number the classes that occur in it
        train = train.class_encode_column(column)
    known = _classes(train, column)
    others = set(_classes(evaluated, column)) - set(known)
    if others:
        message = (
            f"{column}: found {', '.join(sorted(others))} in the split to evaluate on alone, allowed are "
            f"{', '.join(known)}, the classes of the other one"
        )
        # folders make a class of every name there is, in any split; elsewhere somebody has said that it is one
        if not numbered or train.info.builder_name == "imagefolder":
            raise ValueError(message)
        logger.warning(message)
    for part in (train, evaluated):
        values = np.asarray(part[column][:], dtype=object)
        numbers = range(len(part.features[column].names)) if isinstance(part.features[column], ClassLabel) else None
        lacking = sum(value is None or (numbers is not None and value not in numbers) for value in values)
        if lacking:
            raise ValueError(f"{column}: found no class in {lacking} of {len(part)} rows, allowed is one in each")
    if len(known) < 2:
        raise ValueError(f"{column}: found the classes {known}, allowed are two or more; a folder of images for each")
    classes = train.features[column]
    if not numbered:
        evaluated = evaluated.cast_column(column, Value("string")).cast_column(column, classes)
    if getattr(evaluated.features[column], "names", None) != classes.names:
        raise ValueError(
            f"{column}: found {evaluated.features[column]} in the split to evaluate on, allowed is {classes}, as in "
            "the other one"
        )
    splits = DatasetDict({"train": train, "eval": evaluated} if "eval" in splits else {"train": train})
    if column != "labels":
        splits = splits.rename_column(column, "labels")
    return splits, classes.names


def _classes(rows: Dataset, column: str) -> list[str]:
    """The classes that occur, sorted as their numbers are."""
    names = getattr(rows.features[column], "names", None)
    values = [value for value in rows.select_columns(column).unique(column) if value is not None]
    if names is None:
        return sorted(map(str, values))
    return [names[value] for value in sorted(values) if 0 <= value < len(names)]
