"""Model, data and collator for training from the command line."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
from hf_ext.data import load
from hf_ext.trainers.arguments import option

logger = logging.getLogger(__name__)


def check_place(argument: str, place: str | None) -> None:
    """Before a model is loaded from there, if anything is named.

    Raises:
        ValueError: what can only be a folder is none.
    """
    if place and (place.startswith((".", "/", "~")) or place.count("/") > 1) and not Path(place).is_dir():
        raise ValueError(f"{argument}: found {place!r}, which is no folder, allowed is a folder or a Hub id")


@contextmanager
def naming_the_processor(argument: str, place: str) -> Iterator[None]:
    """For errors of loading what prepares images, from a place that an argument names.

    Raises:
        ValueError: with both.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{argument}: found {place!r} without an image processor, allowed is a model with one "
            "(preprocessor_config.json), or data with a column pixel_values"
        ) from error


@contextmanager
def naming_the_images(argument: str, images: str) -> Iterator[None]:
    """For errors of a model that an argument names, or of its processor, with images as described.

    Raises:
        ValueError: with both, and what went wrong.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{argument}: found a model that fails with images of {images} ({reason}), allowed is one that takes them"
        ) from error


def shape_of(pixel_values: Tensor) -> str:
    """Of one image, to be read."""
    return f"shape {tuple(pixel_values.shape[1:])}"


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
    eval_split: str = option("test", "Split to evaluate on.")
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


@dataclass
class Loaded:
    """What a Trainer needs."""

    model: nn.Module
    data: DatasetDict
    collator: Callable[[list[dict[str, Any]]], dict[str, Any]]
    processor: Any
    keeps_columns: bool  # the collator reads columns that the model does not know


def load_model_and_data(model: ModelArguments, data: DataArguments) -> Loaded:
    """Load both; classes and their names come from the data.

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
    rows = load(data.dataset)
    for name in (data.train_split, data.eval_split):
        if name not in rows:
            raise ValueError(f"split: found {name!r}, allowed are {sorted(rows)} of {data.dataset!r}")
    splits = DatasetDict({"train": rows[data.train_split], "eval": rows[data.eval_split]})
    splits, names = _with_labels(splits, data.label_column)
    columns = splits["train"].column_names
    if model.task == "text-classification":
        if data.text_column not in columns:
            raise ValueError(f"text_column: found {data.text_column!r}, allowed are {columns}")
        tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
        splits = splits.map(
            lambda rows: tokenizer(rows[data.text_column], truncation=True, max_length=data.max_length),
            batched=True,
            remove_columns=[data.text_column],
            desc="Tokenizing",
        )
        return Loaded(model.load(names), splits, DataCollatorWithPadding(tokenizer), tokenizer, keeps_columns=False)

    network = model.load(names)
    if "pixel_values" in columns:
        loaded = Loaded(network, splits, default_data_collator, None, keeps_columns=False)
        pixels = torch.as_tensor(splits["train"][:1]["pixel_values"])
    else:
        if data.image_column not in columns:
            raise ValueError(f"image_column: found {data.image_column!r}, allowed are {columns}")
        processor = model.processor()
        mode = "L" if _is_grey(network) else "RGB"
        splits = splits.cast_column(data.image_column, Image(mode=mode))
        collator = ImageCollator(processor, data.image_column)
        loaded = Loaded(network, splits, collator, processor, keeps_columns=True)
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
    train, evaluated = splits["train"], splits["eval"]
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
    splits = DatasetDict(train=train, eval=evaluated)
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


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """Share of samples whose largest logit is the label's."""
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    return {"accuracy": float((np.asarray(logits).argmax(-1) == prediction.label_ids).mean())}
