"""The FER matcher against a linear head, and against texts that say nothing."""

from typing import Any

import torch
from sklearn.metrics import balanced_accuracy_score
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hf_ext._runs import arguments, logits, quiet
from hf_ext.models import FERForImageClassification
from hf_ext.models.fer.vision import vision_backbone
from hf_ext.studies.backbones import LinearHead
from hf_ext.studies.fer.data import NEUTRAL, Part, check, open_parts, prepare, texts, training_part
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System
from hf_ext.trainers import FERTrainer, FERTrainingConfig

STEPS, BATCH, WIDTH, DROPOUT = 300, 64, 256, 0.3
HEAD, RANDOM, MATCHING = "linear head", "random targets, matching", "texts, matching"
RANDOM_ALL, SHUFFLED_ALL = "random targets, all losses", "shuffled texts, all losses"
ALL, PAIRED = "FER", "FER, paired contrast"


# ------------------------------------------------------------------------------------------------ models
class PerceptronConfig(PreTrainedConfig):
    """Of `Perceptron`: the number of inputs."""

    model_type = "hf_ext_perceptron"

    num_channels: int = 1
    image_size: list[int] | None = None
    inputs: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.image_size = [1, self.inputs]


class Perceptron(PreTrainedModel):
    """A hidden layer over features of a frozen network, in the place of a vision backbone."""

    config_class = PerceptronConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PerceptronConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Dropout(DROPOUT), nn.Linear(config.inputs, WIDTH), nn.GELU(), nn.Dropout(DROPOUT)
        )
        self.post_init()

    def forward(self, pixel_values: Tensor) -> BaseModelOutputWithPooling:
        features = self.layers(pixel_values.flatten(1))
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features)


AutoConfig.register(PerceptronConfig.model_type, PerceptronConfig, exist_ok=True)
AutoModel.register(PerceptronConfig, Perceptron, exist_ok=True)


# ------------------------------------------------------------------------------------------------ a run
def run(run: Run) -> Outcome:
    """Train one system; the score is the mean of the classes' accuracies."""
    parts, names = open_parts(run.folder)
    torch.manual_seed(run.seed)
    backbone = Perceptron(PerceptronConfig(inputs=parts["train"].features.shape[1]))
    return train_and_score(run, backbone, parts, names, texts_of=run.case.data)


def train_and_score(run: Run, backbone: Any, parts: dict[str, Part], names: list[str], *, texts_of: str) -> Outcome:
    """Train one system with this backbone; the score is the mean of the classes' accuracies.

    Args:
        run: its options `per_class` and `wrong` say which rows and labels there are; its hyper-parameter
            `backbone_rate` is the learning rate of the backbone, by default that of all.
        backbone: as `FERForImageClassification.from_backbones` takes it.
        parts: train, validation, test.
        names: of the classes.
        texts_of: the data set whose texts they are.
    """
    options = run.case.options
    train = training_part(parts["train"], run.seed, per_class=options["per_class"], wrong=options["wrong"])
    settings, own = dict(run.hyper_parameters), dict(run.system.options)
    scale, rate = settings.pop("logit_scale", None), settings.pop("backbone_rate", None)
    kind = own.pop("texts", None)
    model: Any
    if kind is None:
        model = LinearHead(vision_backbone(backbone), len(names))
    else:
        prompts, features = texts(texts_of, names, kind, run.seed)
        model = FERForImageClassification.from_backbones(
            backbone, lambda _: features, names, prompts=prompts, neutral=NEUTRAL[texts_of], logit_scale=scale
        )
    pretrained = model.backbone if kind is None else model.fer.vision
    classes = (Trainer, TrainingArguments) if kind is None else (FERTrainer, FERTrainingConfig)
    args = arguments(
        classes[1],
        steps=5 if run.quick else STEPS,
        seed=run.seed,
        per_device_train_batch_size=BATCH,
        **own,
        **settings,
    )
    optimizers = (None if rate is None else _two_rates(model, pretrained, args, rate), None)
    trainer = quiet(classes[0](model=model, args=args, train_dataset=train.rows(), optimizers=optimizers))
    trainer.train()
    return Outcome(_score(trainer, parts["validation"]), _score(trainer, parts["test"]))


def _two_rates(model: nn.Module, pretrained: nn.Module, args: TrainingArguments, rate: float) -> torch.optim.AdamW:
    """An optimizer with a rate of its own for what is pretrained."""
    tuned = list(pretrained.parameters())
    ids = set(map(id, tuned))
    groups: list[dict[str, Any]] = [
        {"params": tuned, "lr": rate},
        {"params": [parameter for parameter in model.parameters() if id(parameter) not in ids]},
    ]
    return torch.optim.AdamW(groups, lr=args.learning_rate, weight_decay=args.weight_decay)


def _score(trainer: Trainer, part: Part) -> float:
    return float(balanced_accuracy_score(part.labels.numpy(), logits(trainer, part.rows()).argmax(-1)))


PROTOCOL = f"""
- **Backbone.** Features of a frozen network (of faces), or the pixels (of digits), standardised, then a layer of
  {WIDTH} units with dropout {DROPOUT:g}, which is trained. A linear head, or a projection to the texts' width and the
  cosine with their embeddings.
- **Texts**: `a photo of a person making a(n) ... facial expression.` with the authors' nouns, embedded by
  all-MiniLM-L6-v2, a sentence encoder. It has never seen an image; the authors' is that of CLIP, which was not to be
  had. The embeddings come with the package.
- **Controls.** *{RANDOM_ALL}* and *{RANDOM}*: directions drawn at random in place of texts. *{SHUFFLED_ALL}*: every
  class has the text of another. What holds for these too is no knowledge from texts.
- **Matching** is the cross-entropy of the cosines alone, *all losses* and *{ALL}* the three of the paper with equal
  weights, the contrast over all pairs as in the authors' code; *{PAIRED}*: each face with its own text.
- **Budget.** {STEPS} updates of {BATCH} rows (of fewer, if there are no more), AdamW, gradients clipped at norm 1,
  cosine schedule. The last weights are judged.
- **Hyper-parameters**: six combinations for every system, by the validation score of a run with another seed: the
  learning rate, and the scale of the cosines or, with a linear head, the weight decay. The validation rows, a sixth of
  the training rows, are as many where the labels are few: more than somebody with so few labels has, for all alike.
- **Score**: the mean of the classes' accuracies, since expressions are far from equally frequent.
- **Digits** have no neutral state: zero plays it. They show that the machinery works, and need nothing to be brought.
""".strip()

_COSINE = {"learning_rate": (1e-3, 3e-3, 1e-2), "logit_scale": (20.0, 100.0)}
_LINEAR = {"learning_rate": (1e-3, 3e-3, 1e-2), "weight_decay": (0.0, 0.3)}
_ONLY_MATCHING = {"fer_lambda_t": 0.0, "fer_lambda_c": 0.0}

STUDY = Study(
    name="fer",
    title="FER: texts as classifiers of faces",
    question="Do embeddings of texts, and the losses around a neutral state, make a better classifier of expressions?",
    metric="mean class accuracy",
    data={
        "faces": Source(
            "FER2013 through a frozen face recognition network",
            needs="features, label, split (train, test); of the classes angry, disgust, fear, happy, sad, surprise, "
            "neutral",
            origin="FER2013 (Goodfellow et al., 2013); examples/README.md says how to make the table",
        ),
        "digits": Source("handwritten digits (scikit-learn)", embedded="digits", origin="comes with scikit-learn"),
    },
    cases=tuple(
        Case(f"{data}, {name}", data, {"per_class": per_class, "wrong": wrong})
        for data in ("faces", "digits")
        for name, per_class, wrong in (
            ("all rows", None, 0.0),
            ("20 a class", 20, 0.0),
            ("5 a class", 5, 0.0),
            ("40 % wrong labels", None, 0.4),
        )
    ),
    systems=(
        System(HEAD, {}, _LINEAR),
        System(RANDOM, {"texts": "random", **_ONLY_MATCHING}, _COSINE),
        System(RANDOM_ALL, {"texts": "random"}, _COSINE),
        System(SHUFFLED_ALL, {"texts": "shuffled"}, _COSINE),
        System(MATCHING, {"texts": "texts", **_ONLY_MATCHING}, _COSINE),
        System(ALL, {"texts": "texts"}, _COSINE, is_method=True),
        System(PAIRED, {"texts": "texts", "fer_contrast_pairs": "paired"}, _COSINE, is_method=True),
    ),
    comparisons=(
        *(Comparison(ALL, baseline) for baseline in (HEAD, MATCHING, RANDOM_ALL, SHUFFLED_ALL)),
        Comparison(MATCHING, HEAD),
        Comparison(MATCHING, RANDOM),
        Comparison(PAIRED, HEAD),
        Comparison(PAIRED, ALL),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    seeds=6,
)

STUDIES = (STUDY,)
