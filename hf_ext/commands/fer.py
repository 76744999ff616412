"""`hf-ext train fer` and `hf-ext demo fer`."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import concatenate_datasets
from sklearn.feature_extraction.text import HashingVectorizer
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageClassification, Trainer, TrainingArguments, ViTModel

from hf_ext._runs import accuracy_on
from hf_ext.commands.demo import DemoRun, Scored, classifier_example, run_demo
from hf_ext.commands.loading import ModelArguments, OwnDataArguments, accuracy
from hf_ext.commands.lora import PartLora
from hf_ext.commands.places import check_place, naming_the_processor
from hf_ext.commands.training import train_method
from hf_ext.data import load
from hf_ext.models import FERForImageClassification, FERProcessor
from hf_ext.models.fer.modeling_fer import TEMPLATE
from hf_ext.trainers import FERTrainer, FERTrainingConfig
from hf_ext.trainers.arguments import option

logger = logging.getLogger(__name__)


@dataclass
class FERModelArguments(ModelArguments):
    """Which matcher: a saved one (`model_name_or_path`), or one made of a vision and a text model."""

    model_name_or_path: str | None = option(
        None, "Saved matcher: a Hub id or a folder. Without it, vision_model and text_model make a new one."
    )
    vision_model: str | None = option(None, "Vision backbone of a new matcher: a Hub id or a folder.")
    text_model: str | None = option(None, "Text encoder of a new matcher: a Hub id or a folder.")
    template: str = option(TEMPLATE, "Text of a class in a new matcher, with {} for the class's name.")
    class_prompts: list[str] | None = option(
        None, "Texts of the classes in a new matcher, in the classes' order; by default the template's."
    )
    neutral: str | None = option(
        "neutral", "Name of the neutral class of a new matcher; without one, matching is its only loss."
    )
    image_side: int | None = option(
        None, "Pixels a side that a new matcher's images are scaled to; by default its backbone's."
    )

    def check(self) -> None:
        """Before anything is loaded.

        Raises:
            ValueError: neither or both kinds of model are named, a folder that does not exist, what a saved matcher
                has already, or texts instead of images asked for.
        """
        new = (self.vision_model, self.text_model)
        if bool(self.model_name_or_path) == any(new) or any(new) != all(new):
            raise ValueError(
                f"model_name_or_path, vision_model, text_model: found {self.model_name_or_path!r}, {new[0]!r} and "
                f"{new[1]!r}, allowed are the first or the other two"
            )
        if self.model_name_or_path:
            for name in ("class_prompts", "template", "neutral", "image_side"):
                value = getattr(self, name)
                if value != self.__dataclass_fields__[name].default:
                    raise ValueError(
                        f"{name}: found {value!r} with a saved matcher, which has its own, allowed is none; "
                        "vision_model and text_model make a new one, set_classes gives it other texts"
                    )
        for name in ("model_name_or_path", "vision_model", "text_model"):
            check_place(name, getattr(self, name))
        if self.task != "image-classification":
            raise ValueError(f"task: found {self.task!r}, allowed is 'image-classification'")

    def load(self, names: Sequence[str]) -> nn.Module:
        """The matcher, for classes of these names.

        Raises:
            ValueError: a saved one of other classes, or a model of texts for images or the other way round.
        """
        if self.model_name_or_path:
            model = AutoModelForImageClassification.from_pretrained(self.model_name_or_path)
            own = [model.config.id2label[label] for label in range(model.config.num_labels)]
            if {name.casefold() for name in own} != {name.casefold() for name in names}:  # the Trainer goes by name
                raise ValueError(
                    f"model_name_or_path: found a model of the classes {', '.join(own)} for data of "
                    f"{', '.join(names)}, allowed is one of the same; vision_model and text_model make one"
                )
        else:
            self._check_kinds()
            model = FERForImageClassification.from_backbones(
                self.vision_model,
                self.text_model,
                names,
                prompts=self.class_prompts,
                template=self.template,
                neutral=self.neutral,
            )
        if model.config.neutral_id is None and self.neutral is not None:
            logger.warning(
                "neutral: found no such class among %s, so two of the three losses are off",
                ", ".join(names),
            )
        return model

    def _check_kinds(self) -> None:
        for name, wanted, other in (("vision_model", "images", "texts"), ("text_model", "texts", "images")):
            config = AutoConfig.from_pretrained(getattr(self, name))
            reads = {
                "texts": hasattr(config, "vocab_size") or hasattr(config, "text_config"),
                "images": any(hasattr(config, key) for key in ("image_size", "num_channels", "vision_config")),
            }
            if reads[other] and not reads[wanted]:
                raise ValueError(
                    f"{name}: found {getattr(self, name)!r}, a model of {other} ({config.model_type}), allowed is one "
                    f"of {wanted}"
                )

    @property
    def image_arguments(self) -> str:
        """Those that say which images are read."""
        return super().image_arguments if self.model_name_or_path else "vision_model, image_side"

    def processor(self) -> Any:
        """What prepares its images.

        Raises:
            ValueError: nothing does.
        """
        if self.model_name_or_path:
            return super().processor()
        side = {"size": {"height": self.image_side, "width": self.image_side}} if self.image_side else {}
        with naming_the_processor("vision_model", str(self.vision_model)):
            return FERProcessor.from_backbone(str(self.vision_model), **side)


@dataclass
class _MatcherLora(PartLora):
    """A LoRA on the backbone of a saved matcher; the layers behind it are trained in full."""

    what = "matcher"

    lora_target_modules: list[str] | None = option(
        None, "Layers that the LoRA is added to; by default all linear ones of the vision backbone."
    )
    lora_modules_to_save: list[str] | None = option(
        None,
        "Layers trained in full in addition to the LoRA, or 'none'; by default the projection and the transformation.",
    )

    def defaults(self, model: Any) -> tuple[list[str], list[str]]:
        modules = model.fer.vision.named_modules(prefix="fer.vision")
        return [name for name, module in modules if isinstance(module, nn.Linear)], ["projection", "transformation"]


def train(argv: Sequence[str]) -> None:
    """Train a matcher, evaluate it and leave a folder ready for the Hub."""
    train_method(
        "fer",
        FERTrainer,
        FERTrainingConfig,
        argv,
        description="Match faces to text embeddings of their expressions (FER, Li et al. 2025).",
        model=FERModelArguments,
        rows=OwnDataArguments,
        adapter=_MatcherLora,
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET = "digits"
DIGITS = tuple("0123456789")
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
HEAD, SHOWN, ALL = "linear head", "texts, matching alone", "texts, all losses"
MATCHING = {"fer_lambda_t": 0.0, "fer_lambda_c": 0.0}
#: by system, how texts are embedded and what is said to the Trainer
SYSTEMS: dict[str, tuple[str, dict[str, float]]] = {
    HEAD: ("", {}),
    "random embeddings, matching alone": ("random", MATCHING),
    SHOWN: ("texts", MATCHING),
    ALL: ("texts", {}),
}


def embed_letters(texts: Sequence[str]) -> Tensor:
    """Embeddings of texts by the pieces of up to three letters in them, `[N, 64]`: no text encoder comes along."""
    pieces = HashingVectorizer(analyzer="char_wb", ngram_range=(1, 3), n_features=64)
    return torch.from_numpy(pieces.transform(list(texts)).toarray()).float()


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Train a small ViT on digits with a linear head, and matched to embeddings of the digits' names; zero is neutral.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "fer",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]FER matcher[/] on {DATASET}, which stand in for faces, with zero for neutral. Compared is a "
        "small ViT with a linear head to the same ViT matched to fixed embeddings, of the digits' names or random "
        f"ones; {seeds} seeds.",
        found="What the study found: no case in which the losses around the neutral state add to matching alone. "
        "What holds: matching to fixed embeddings is as good as a linear head, be they of texts or random; texts "
        "are a point better than either on faces with five labels a class (shown).",
        systems=_systems,
        trainings=len(SYSTEMS),
        shown=SHOWN,
        methods=(SHOWN, ALL),
        title="accuracy",
        card={
            "dataset": f"scikit-learn {DATASET}",
            "dataset_description": (
                f"Accuracy on test images after {steps} steps of AdamW. Digits stand in for faces, zero for the "
                "neutral one; texts are embedded by the letters in them."
            ),
            "example": classifier_example(DATASET),
            "limitations": "A demonstration on small images of digits.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    data = load(DATASET, seed=run.seed)
    rows = concatenate_datasets([data["pretrain"], data["train"]])
    for name, (texts, options) in SYSTEMS.items():
        trainer = _trainer(run, texts, options, train_dataset=rows, eval_dataset=data["test"])
        run.train(trainer, name)
        yield name, {"": accuracy_on(trainer, data["test"])}, trainer


def _trainer(run: DemoRun, texts: str, options: dict[str, float], **data: Any) -> Trainer:
    classifier = run.vit(DIGITS)
    if not texts:
        args = run.arguments(TrainingArguments, 1e-3)
        return Trainer(model=classifier, args=args, compute_metrics=accuracy, **data)

    def drawn(texts: Sequence[str]) -> Tensor:
        return torch.randn(len(texts), 64, generator=torch.Generator().manual_seed(run.seed))

    model = FERForImageClassification.from_backbones(
        ViTModel(classifier.config),
        embed_letters if texts == "texts" else drawn,
        DIGITS,
        prompts=WORDS,  # what all prompts had in common would make their embeddings alike
        neutral=DIGITS[0],
        logit_scale=20.0,
    )
    args = run.arguments(FERTrainingConfig, 1e-3, **options)
    return FERTrainer(model=model, args=args, compute_metrics=accuracy, **data)
