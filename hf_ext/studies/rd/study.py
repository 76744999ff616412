"""RD against the student alone and other ways to learn from a teacher, with few labels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ResNetForImageClassification, Trainer, TrainingArguments

from hf_ext import _small_models
from hf_ext._runs import Arguments, arguments, logits, quiet
from hf_ext.models import RDForImageClassification
from hf_ext.studies.rd.data import COLUMNS, TEACHER_STEPS, Part, check, few, open_parts, prepare
from hf_ext.studies.rd.hint import WEIGHT, Hinted
from hf_ext.studies.rd.teachers import RANK, SCALE, as_tuned, lora_trainer, probe
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System
from hf_ext.trainers import RDTrainer, RDTrainingConfig

STEPS, BATCH = 300, 32
PROBE, LORA = "teacher, linear probe", "teacher, LoRA"
ALONE, HINT, RAW = "student alone", "hint", "CKA to raw features"
KD, KD_LORA = "KD from the probe", "KD from LoRA"
UNALIGNED, RD, RD_KL = "RD without alignment", "RD", "RD with KL"
REGULARISATION, LORA_RATE = 0.02, 1e-3  # of the probe and of the tuned teacher that KD takes its logits from


def run(run: Run) -> Outcome:
    """Train one system; the score is the accuracy."""
    parts = open_parts(run.folder)
    classify = _trained(run, few(parts["train"], run.case.options["per_class"], run.seed))
    scores = {name: _accuracy(classify(parts[name]), parts[name]) for name in ("validation", "test")}
    return Outcome(scores["validation"], scores["test"])


def _trained(run: Run, train: Part) -> Callable[[Part], Tensor]:
    """Logits of the rows of a part, by the system that was trained."""
    if run.system.name == PROBE:
        linear = probe(train, run.hyper_parameters["C"])
        return lambda part: linear(part.teacher_features)
    trainer = {LORA: _lora, HINT: _hint}.get(run.system.name, _rd)(run, train, **run.hyper_parameters)
    trainer.train()
    return lambda part: torch.from_numpy(logits(trainer, part.rows(with_features=False)))


# ------------------------------------------------------------------------------------------------ systems
def _lora(run: Run, train: Part, learning_rate: float) -> Trainer:
    return lora_trainer(run.folder, train, _arguments(TrainingArguments, run, learning_rate, label_names=["labels"]))


def _hint(run: Run, train: Part, learning_rate: float) -> Trainer:
    model = Hinted(_student(run, train), train.teacher_features.shape[1])
    args = _arguments(TrainingArguments, run, learning_rate)
    return quiet(Trainer(model=model, args=args, train_dataset=train.rows(with_features=True)))


def _rd(run: Run, train: Part, learning_rate: float) -> Trainer:
    """RD and all that are settings of its Trainer."""
    classifier: nn.Module | None = None
    if run.system.name == KD:
        classifier = probe(train, REGULARISATION)
    elif run.system.name == KD_LORA:
        teaching = _lora(run, train, LORA_RATE)
        teaching.train()
        train, classifier = as_tuned(train, teaching.model)
    model = RDForImageClassification.from_student(
        _student(run, train), teacher_width=train.teacher_features.shape[1], teacher_inputs="features"
    )
    trainer = RDTrainer(
        model=model,
        args=_arguments(RDTrainingConfig, run, learning_rate, **run.system.options),
        train_dataset=train.rows(with_features=True),
        teacher_classifier=classifier,
    )
    return quiet(trainer)


def _student(run: Run, train: Part) -> ResNetForImageClassification:
    """The same for all systems."""
    torch.manual_seed(run.seed)
    config = _small_models.resnet(channels=train.pixel_values.shape[1], num_labels=train.classes)
    return ResNetForImageClassification(config)


def _arguments(kind: type[Arguments], run: Run, learning_rate: float, **options: Any) -> Arguments:
    steps = 5 if run.quick else STEPS
    return arguments(
        kind, steps=steps, learning_rate=learning_rate, seed=run.seed, per_device_train_batch_size=BATCH, **options
    )


# ------------------------------------------------------------------------------------------------ scores
def _accuracy(predicted: Tensor, part: Part) -> float:
    return float((predicted.argmax(-1) == part.labels).float().mean())


PROTOCOL = f"""
- **Teacher.** Its features of every image are computed once, and standardised; nothing is augmented. Of images: a
  network trained on ImageNet. Of digits: a ResNet of other images of digits, which tells forty classes apart, digits
  times quarter turns, and was trained for {TEACHER_STEPS} updates.
- **Student.** A ResNet of three blocks with up to 64 channels, from random weights, on images of 32 x 32 pixels
  (digits: 8 x 8).
- **Systems.** *Teacher, linear probe*: a logistic regression of the teacher's features, to show what there is to
  gain; no student. *Teacher, LoRA*: the teacher of digits itself, tuned on the same labelled rows; no student. Trained
  are adapters in all its convolutions (r = {RANK}, scaled by {SCALE}, without dropout) and a new linear head; all else
  is frozen, the running statistics of BatchNorms too. *Hint*: the loss of FitNets. Beside the cross-entropy, a linear
  regressor predicts the teacher's features from the student's; the squared error, a mean over features, has weight
  {WEIGHT:g}. It is of the last features, and all is trained in one stage. *{KD}*: beside the labels, the student
  learns the logits of a linear probe (tau 4, weight 1), the probe with C = {REGULARISATION}. *{KD_LORA}*: likewise
  those of the tuned teacher, tuned with a learning rate of {LORA_RATE}. *{RAW}*: the student is aligned with the
  teacher's features as they are. *{RD}*: alpha = gamma = 1, beta = 0; *{UNALIGNED}*: gamma = 0. *{RD_KL}*: beta = 1
  with tau 4, so that the student also learns the logits that the shared classifier makes of the reprogrammed features;
  chosen among ten settings by the validation scores of three other seeds.
- **Budget.** {STEPS} updates of {BATCH} rows (of fewer, if there are no more), AdamW, gradients clipped at norm 1,
  cosine schedule; the tuned teacher has as many of its own. The last weights are judged.
- **Hyper-parameters**: the learning rate (of the probe C), of three, by validation accuracy in a run with another
  seed. The validation rows, a sixth of all training rows, are as many where the labels are few.
- A seed draws the rows, the validation rows, and the student; the test rows are the same for all.
""".strip()

_RATES = {"learning_rate": (3e-3, 1e-2, 3e-2)}
_NO_NETWORK = {"images": "the table has features of the teacher, not the network that would be tuned"}

STUDY = Study(
    name="rd",
    title="RD: a small student beside a frozen teacher",
    question="With few labels, is a student better beside reprogrammed features of a frozen teacher?",
    metric="accuracy",
    data={
        "images": Source(
            "slices of brain MRI, four diagnoses, through a frozen Inception-v3 of ImageNet",
            needs=f"{', '.join(COLUMNS)} (train, test)",
            origin="examples/README.md says what this table was and how to make one",
        ),
        "digits": Source("handwritten digits (scikit-learn)", embedded="digits", origin="comes with scikit-learn"),
    },
    cases=tuple(
        Case(f"{data}, {count} a class", data, {"per_class": count})
        for data, counts in (("images", (5, 20, 100)), ("digits", (5, 20)))
        for count in counts
    ),
    systems=(
        System(PROBE, {}, {"C": (0.002, 0.02, 0.2)}),
        System(LORA, {}, {"learning_rate": (3e-4, 1e-3, 3e-3)}, excluded=_NO_NETWORK),
        System(ALONE, {"rd_method": "student"}, _RATES),
        System(HINT, {}, _RATES),
        System(KD, {"rd_method": "kd"}, _RATES),
        System(KD_LORA, {"rd_method": "kd"}, _RATES, excluded=_NO_NETWORK),
        System(RAW, {"rd_method": "cka"}, _RATES),
        System(UNALIGNED, {"rd_gamma": 0.0}, _RATES),
        System(RD, {}, _RATES, is_method=True),
        System(RD_KL, {"rd_beta": 1.0, "rd_temperature": 4.0}, _RATES, is_method=True),
    ),
    comparisons=(
        *(Comparison(RD, baseline) for baseline in (ALONE, HINT, KD, KD_LORA, RAW, UNALIGNED)),
        *(Comparison(RD_KL, baseline) for baseline in (ALONE, HINT, KD, KD_LORA, RD)),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    seeds=6,
)

STUDIES = (STUDY,)
