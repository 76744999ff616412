"""RD against the student alone and other ways to learn from a teacher, with few labels."""

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers import ResNetForImageClassification

from hf_ext.models import RDForImageClassification
from hf_ext.studies.rd_data import COLUMNS, TEACHER_STEPS, Part, check, few, open_parts, prepare, resnet
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System
from hf_ext.studies.training import arguments, logits, quiet
from hf_ext.trainers import RDTrainer, RDTrainingConfig

STEPS, BATCH = 300, 32
PROBE, ALONE, KD, RAW = "teacher, linear probe", "student alone", "KD from the probe", "CKA to raw features"
UNALIGNED, RD = "RD without alignment", "RD"
REGULARISATION = 0.02  # of the probe that KD takes its logits from


def run(run: Run) -> Outcome:
    """Train one system; the score is the accuracy."""
    parts = open_parts(run.folder)
    train = few(parts["train"], run.case.options["per_class"], run.seed)
    if run.system.name == PROBE:
        probe = _probe(train, run.hyper_parameters["C"])
        scores = [_accuracy(probe(parts[name].teacher_features), parts[name]) for name in ("validation", "test")]
        return Outcome(scores[0], scores[1])
    trainer = _trainer(run, train, classes=int(parts["train"].labels.max()) + 1)
    trainer.train()
    found = {
        name: _accuracy(torch.from_numpy(logits(trainer, parts[name].rows(with_features=False))), parts[name])
        for name in ("validation", "test")
    }
    return Outcome(found["validation"], found["test"])


def _trainer(run: Run, train: Part, *, classes: int) -> RDTrainer:
    torch.manual_seed(run.seed)
    student = ResNetForImageClassification(resnet(channels=train.pixel_values.shape[1], classes=classes))
    model = RDForImageClassification.from_student(
        student, teacher_width=train.teacher_features.shape[1], teacher_inputs="features"
    )
    args = arguments(
        RDTrainingConfig,
        steps=5 if run.quick else STEPS,
        seed=run.seed,
        per_device_train_batch_size=BATCH,
        **{**run.system.options, **run.hyper_parameters},
    )
    distils = run.system.options.get("rd_method") == "kd"
    trainer = RDTrainer(
        model=model,
        args=args,
        train_dataset=train.rows(with_features=True),
        teacher_classifier=_probe(train, REGULARISATION) if distils else None,
    )
    quiet(trainer)
    return trainer


def _probe(train: Part, c: float) -> nn.Linear:
    """A linear classifier of the teacher's features."""
    fitted = LogisticRegression(C=c, max_iter=1000).fit(train.teacher_features.numpy(), train.labels.numpy())
    weight, bias = torch.from_numpy(fitted.coef_).float(), torch.from_numpy(fitted.intercept_).float()
    if len(weight) == 1:  # of two classes, the second one's logit
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    probe = nn.Linear(weight.shape[1], weight.shape[0])
    probe.load_state_dict({"weight": weight, "bias": bias})
    return probe.requires_grad_(False)


def _accuracy(predicted: Tensor, part: Part) -> float:
    return float((predicted.argmax(-1) == part.labels).float().mean())


PROTOCOL = f"""
- **Teacher.** Its features of every image are computed once, and standardised; nothing is augmented. Of images: a
  network trained on ImageNet. Of digits: a ResNet of other images of digits, which tells forty classes apart, digits
  times quarter turns, and was trained for {TEACHER_STEPS} updates.
- **Student.** A ResNet of three blocks with up to 64 channels, from random weights, on images of 32 x 32 pixels
  (digits: 8 x 8).
- **Systems.** *{PROBE.capitalize()}*: a logistic regression of the teacher's features, to show what there is to gain;
  no student. *{KD}*: the student learns the logits of such a probe too (tau 4, weight 1), the probe with C =
  {REGULARISATION}. *{RAW}*: it is aligned with the teacher's features as they are. *{RD}*: alpha = gamma = 1,
  beta = 0; *{UNALIGNED}*: gamma = 0.
- **Budget.** {STEPS} updates of {BATCH} rows (of fewer, if there are no more), AdamW, gradients clipped at norm 1,
  cosine schedule. The last weights are judged.
- **Hyper-parameters**: the learning rate (of the probe C), of three, by validation accuracy in a run with another
  seed. The validation rows, a sixth of all training rows, are as many where the labels are few.
- A seed draws the rows, the validation rows, and the student; the test rows are the same for all.
""".strip()

_RATES = {"learning_rate": (3e-3, 1e-2, 3e-2)}

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
        System(ALONE, {"rd_method": "student"}, _RATES),
        System(KD, {"rd_method": "kd"}, _RATES),
        System(RAW, {"rd_method": "cka"}, _RATES),
        System(UNALIGNED, {"rd_gamma": 0.0}, _RATES),
        System(RD, {}, _RATES, is_method=True),
    ),
    comparisons=tuple(Comparison(RD, baseline) for baseline in (ALONE, KD, RAW, UNALIGNED)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    seeds=6,
)

STUDIES = (STUDY,)
