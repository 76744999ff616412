"""DISAM against SAM and plain training, on a domain that was left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hf_ext._runs import arguments, quiet
from hf_ext.studies.disam.curves import WINDOW, Watched, steps_to, variance
from hf_ext.studies.disam.data import (
    BUILDERS,
    DOMAINS_NEED,
    HARD,
    NOISE,
    RARE,
    Array,
    Part,
    Problem,
    check,
    open_problem,
)
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Preparation, Run, Source, Study, System
from hf_ext.studies.training import Rows
from hf_ext.trainers import DISAMConfig

STEPS = {"domains": 250, "digits": 250, "features": 200}
#: of SAM and DISAM, that which is best for plain training; plain training has others to choose from
RATE = {"domains": 2e-2, "digits": 2e-2, "features": 2e-3}
BATCH = 64
ERM, SAM, DISAM = "ERM", "SAM", "DISAM"
UNSEEN, WORST = "unseen domain", "worst source"
SPEED, VARIANCE = "updates to the loss", "variance of domain losses"


def prepare(ready: Preparation) -> None:
    """Leave the data in the folder."""
    BUILDERS[ready.name](ready).save(ready.folder)


@dataclass(frozen=True)
class Setting:
    """What a training is, apart from the system.

    Args:
        network: makes what is trained, for a problem; its `main_input_name` names what it sees of a row.
        inputs: makes of rows as they are saved, `[N, ...]`, those that the network sees.
        steps, batch: updates, and rows in each.
        learning_rate: unless the system chooses one.
    """

    network: Callable[[Problem], nn.Module]
    inputs: Callable[[Array], Tensor]
    steps: int
    batch: int
    learning_rate: float


def run(run: Run) -> Outcome:
    """Train once for every domain that is left out; the score is the mean over them of the accuracy on it."""
    problem, data = open_problem(run.folder), run.case.data
    setting = Setting(
        network=lambda of: network(data, of.parts["train"].inputs.shape[1:], of.classes),
        inputs=lambda rows: torch.from_numpy(rows).float(),
        steps=STEPS[data],
        batch=BATCH,
        learning_rate=RATE[data],
    )
    return leave_out(run, problem, problem.left_out, setting)


def leave_out(run: Run, problem: Problem, domains: Sequence[int], setting: Setting) -> Outcome:
    """Train once without each of these domains; the score is the mean over them of the accuracy on it.

    Args:
        run: its option `regime` says what the sources are like, `loss` to which loss updates are counted; its
            hyper-parameters are `learning_rate`, `rho` and `lambda`.
        problem: all rows.
        domains: which are left out, one at a time.
        setting: the same for all systems.
    """
    trainings = [_leave_out(run, problem, held, setting) for held in domains]
    means = {name: float(np.mean([scores[name] for scores in trainings])) for name in trainings[0]}
    names = [f"unseen {problem.domains[held]}" for held in domains]
    unseen = dict(zip(names, (scores[UNSEEN] for scores in trainings), strict=True))
    return Outcome(
        means["validation"], means[UNSEEN], unseen | {name: means[name] for name in (WORST, SPEED, VARIANCE)}
    )


def run_speed(speed_run: Run) -> Outcome:
    """The same, with the number of updates to the loss as the score."""
    outcome = run(speed_run)
    details = {**outcome.details, UNSEEN: outcome.test}
    return Outcome(outcome.validation, float(details.pop(SPEED) or 0), details)


def _leave_out(run: Run, problem: Problem, held: int, setting: Setting) -> dict[str, float]:
    """Scores of one training without the domain `held`."""
    remaining = problem.without(held, run.case.options["regime"], run.seed)
    data = remaining.parts
    torch.manual_seed(run.seed)
    model = setting.network(remaining)
    settings = {**run.system.options, **run.hyper_parameters}
    steps = 10 if run.quick else setting.steps
    args = arguments(
        DISAMConfig,
        steps=steps,
        learning_rate=settings.get("learning_rate", setting.learning_rate),
        seed=run.seed,
        per_device_train_batch_size=setting.batch,
        dataloader_drop_last=True,
        max_grad_norm=0.0,
        remove_unused_columns=False,
        disam_rho=settings.get("rho", 0.0),
        disam_lambda=settings.get("lambda", 0.0),
        disam_every=settings.get("every", 1),
        disam_num_domains=len(problem.domains),
        label_names=["labels"],
    )
    train = data["train"]
    rows = Rows.of(
        **{str(model.main_input_name): setting.inputs(train.inputs)},
        labels=torch.from_numpy(train.labels),
        domain_ids=torch.from_numpy(train.domains),
    )
    trainer = Watched(model=model, args=args, train_dataset=rows)
    quiet(trainer).train()
    sums, counts = torch.stack(trainer.curve).cpu().double().unbind(1)
    right = {name: _right(model, data[name], setting) for name in ("validation", "test", "unseen")}
    by_source = [right["test"][data["test"].domains == domain].mean() for domain in np.unique(data["test"].domains)]
    return {
        "validation": float(right["validation"].mean()),
        UNSEEN: float(right["unseen"].mean()),
        WORST: float(min(by_source)),
        SPEED: steps_to(sums.sum(1) / counts.sum(1), run.case.options["loss"]),
        VARIANCE: variance(sums[steps // 2 :], counts[steps // 2 :]),
    }


# ------------------------------------------------------------------------------------------------ networks
class Classifier(nn.Module):
    """A body of layers, called and answering like the models of transformers."""

    main_input_name = "inputs"

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(inputs)
        return {"logits": logits} if labels is None else {"loss": cross_entropy(logits, labels), "logits": logits}


def network(data: str, shape: tuple[int, ...], classes: int) -> Classifier:
    """Two convolutions for pictures, a layer of 64 units for features; neither has statistics of batches."""
    if data == "features":
        normalise = nn.LayerNorm(shape[0], elementwise_affine=False)
        return Classifier(normalise, nn.Linear(shape[0], 64), nn.ReLU(), nn.Linear(64, classes))
    channels, side = 32, -(-shape[1] // 4)
    convolutions = (nn.Conv2d(shape[0], 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, channels, 3, 2, 1), nn.ReLU())
    return Classifier(*convolutions, nn.Flatten(), nn.Linear(channels * side**2, classes))


@torch.no_grad()
def _right(model: nn.Module, part: Part, setting: Setting) -> np.ndarray:
    """Whether each row is classified right, `[N]`."""
    model.eval()
    device = next(model.parameters()).device
    batches = np.split(part.inputs, range(256, len(part), 256))
    predicted = torch.cat([model(setting.inputs(rows).to(device))["logits"].argmax(-1).cpu() for rows in batches])
    return predicted.numpy() == part.labels


# ------------------------------------------------------------------------------------------------ studies
def _rates(case: Case) -> dict[str, tuple[float, ...]]:
    return {"learning_rate": tuple(RATE[case.data] * factor for factor in (0.25, 0.5, 1.0, 2.0))}


def _rhos(case: Case) -> tuple[float, ...]:
    """A layer on features of length d moves by rho sqrt(d): what is small for a convolution is large there."""
    return (0.002, 0.005, 0.01, 0.02) if case.data == "features" else (0.02, 0.05, 0.1, 0.2)


def _sam_grid(case: Case) -> dict[str, tuple[float, ...]]:
    return {"rho": _rhos(case)}


def _disam_grid(case: Case) -> dict[str, tuple[float, ...]]:
    return {"rho": _rhos(case)[1:3], "lambda": (1.0, 4.0)}


def _case(data: str, regime: str, loss: float) -> Case:
    return Case(f"{data}, {regime}", data, {"regime": regime, "loss": loss})


DATA = {
    "domains": Source(
        "handwritten digits (scikit-learn) in four artificial domains: plain, turned, inverted, noisy",
        embedded="digits-domains",
        needs=DOMAINS_NEED,
        origin="comes with scikit-learn",
    ),
    "digits": Source(
        "handwritten digits of four origins (MNIST, USPS, Semeion, optdigits), and MNIST digits on photographs",
        needs=f"image, label, domain (class labels, one of them {HARD}), split (train, test; or these splits)",
        origin="the collections' own sources; examples/README.md says how to make the table",
    ),
    "features": Source(
        "PACS, photos, paintings, cartoons and sketches of seven classes, as features of a pretrained network",
        needs="features (a list of one length), label, domain (class labels), split (train, test; or these splits)",
        origin="PACS (Li et al., 2017); examples/README.md says how to make the table with any network",
    ),
}

PROTOCOL = f"""
- **Leave one domain out.** A run trains once for every domain that is left out, on the training rows of the others
  (the sources). Its score is the mean accuracy on the domains that were left out, each on all of its rows; the
  embedded digits are the same images in every domain, so there on its test rows.
- **Regimes.** *even*: the sources as they are. *rare*: of one source {RARE:.0%} of the rows. *noisy*: in one source
  {NOISE:.0%} of the labels are wrong. The odd source is the one after the domain that is left out, so that each takes
  its turn; its validation rows are as rare or wrong, its test rows are not. *hard*: the digits on photographs are one
  source more; they are never left out, and no part of the other cases.
- **What systems know.** ERM (plain training) and SAM are not told the domains; DISAM is told the domain of every
  training row. None is told anything of the domain that is left out.
- **Systems.** One Trainer (`DISAMTrainer`) for all: rho 0 is ERM, lambda 0 is SAM. Batches of {BATCH} are drawn from
  the pool of sources, so that a rare source is rare in batches too.
- **Budget.** {STEPS["digits"]} updates (on features {STEPS["features"]}) for every system, with the Trainer's AdamW
  (no weight decay, no clipping) and a cosine schedule without warm-up. An update of SAM or DISAM costs two passes;
  ERM is not given twice the updates.
- **Networks**, untrained at first. For digits two convolutions (16 and 32 channels, stride 2) and a linear layer. On
  features, after a layer norm without weights, a layer of 64 units and a linear one. The paper fine-tunes whole
  pretrained networks: here the pretrained network is frozen, and only what is put on it is trained and perturbed.
- **Hyper-parameters**: four points each, by the mean validation accuracy of runs with two other seeds, 1000 and 1001.
  Validation rows are a sixth of the sources' training rows, pooled; the unseen domain chooses nothing. ERM has four
  learning rates, SAM four rhos, DISAM two of these rhos with two lambdas each. SAM and DISAM have the third of ERM's
  learning rates ({RATE["digits"]:g}, on features {RATE["features"]:g}), the one that ERM was best with before: of a
  smaller one, at which all learn too slowly, SAM and DISAM would bear the cost alone.
- **Details.** *{WORST}*: accuracy on the test rows of the source that is worst. *{SPEED}*: updates until
  the mean of the last {WINDOW} batches' losses, at the weights before they are perturbed, is under {{losses}};
  a run that never gets there counts with all its updates. *{VARIANCE}*: between the sources' mean
  losses in stretches of {WINDOW} updates, mean over the second half. All are means over the domains left out. They
  depend on rho and the learning rate, which may differ here; in the study `disam-lambda` they do not.
- A seed draws validation rows, the odd source's rows, initial weights and batches, of the embedded digits also which
  of those that are not in the test set are trained on. It is shared by all systems. Rows to be scored are the same
  for all seeds.
- **Left out**: fine-tuning of whole networks, BatchNorm, larger pictures, longer training, the paper's five
  benchmarks, adaptive perturbations, domain-balanced batches.
""".strip()

_CASES = (
    _case("domains", "even", 0.6),
    _case("digits", "even", 0.5),
    _case("digits", "rare", 0.5),
    _case("digits", "noisy", 0.8),
    _case("digits", "hard", 1.0),
    _case("features", "even", 0.9),
    _case("features", "noisy", 1.1),
)
_LOSSES = "; ".join(f"{case.options['loss']:g} ({case.name})" for case in _CASES)
_DETAILS = (Detail(WORST), Detail(SPEED, greater_is_better=False), Detail(VARIANCE, greater_is_better=False))

COMPARISON = Study(
    name="disam",
    title="DISAM: training for unseen domains",
    question=(
        "Does a model trained by DISAM do better on a domain it has not seen than one trained by SAM or plainly "
        "(ERM), where domains converge alike and where one is rare, noisy or hard?"
    ),
    metric="accuracy on the unseen domain, mean over the domains left out",
    data=DATA,
    cases=_CASES,
    systems=(
        System(ERM, grid=_rates),
        System(SAM, grid=_sam_grid),
        System(DISAM, grid=_disam_grid, is_method=True),
    ),
    comparisons=(Comparison(DISAM, SAM), Comparison(DISAM, ERM), Comparison(SAM, ERM)),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL.format(losses=_LOSSES),
    seeds=6,
    tuning_seeds=2,
    details=_DETAILS,
)

_SMALL, _LARGE = "DISAM, lambda 0.1", "DISAM, lambda 4"

LAMBDA = Study(
    name="disam-lambda",
    title="DISAM: what the variance does to the convergence",
    question=(
        "With the same rho and learning rate, does DISAM get to a training loss in fewer updates than SAM where "
        "domains converge unevenly?"
    ),
    metric="updates to a common training loss",
    greater_is_better=False,
    data={name: DATA[name] for name in ("domains", "digits")},
    cases=tuple(case for case in _CASES if case.name in ("domains, even", "digits, rare", "digits, hard")),
    systems=(
        System(SAM, {"rho": 0.1}),
        System(_SMALL, {"rho": 0.1, "lambda": 0.1}, is_method=True),
        System(_LARGE, {"rho": 0.1, "lambda": 4.0}, is_method=True),
    ),
    comparisons=(Comparison(_SMALL, SAM), Comparison(_LARGE, SAM)),
    check=check,
    prepare=prepare,
    run=run_speed,
    protocol=(
        "As in the study `disam`, but nothing is tuned: rho is 0.1 and the learning rate 0.02 for all. The score is "
        f"what is called *{SPEED}* there. Lambda 0.1 is the paper's, 4 the largest that the study `disam` tries."
    ),
    seeds=8,
    details=(Detail(UNSEEN), *(detail for detail in _DETAILS if detail.name != SPEED)),
)

_EVERY = {updates: f"DISAM, a first pass every {updates}" for updates in (2, 4, 8)}

EVERY = Study(
    name="disam-every",
    title="DISAM: a perturbation for several updates",
    question="Does DISAM lose anything when a perturbation is for two, four or eight updates in place of one?",
    metric="accuracy on the unseen domain, mean over the domains left out",
    data={name: DATA[name] for name in ("domains", "digits")},
    cases=tuple(case for case in _CASES if case.name in ("domains, even", "digits, noisy", "digits, hard")),
    systems=(
        System(ERM),
        System(SAM, {"rho": 0.1}),
        System(DISAM, {"rho": 0.1, "lambda": 4.0}),
        *(
            System(name, {"rho": 0.1, "lambda": 4.0, "every": updates}, is_method=True)
            for updates, name in _EVERY.items()
        ),
    ),
    comparisons=(
        *(Comparison(name, DISAM) for name in _EVERY.values()),
        *(Comparison(name, baseline) for baseline in (SAM, ERM) for name in (DISAM, *_EVERY.values())),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=(
        "As in the study `disam`, but nothing is tuned: rho is 0.1, lambda 4, with which the worst source gained "
        "there, and the learning rate 0.02 for all. All make as many updates: with a first pass for every update that "
        "takes 2 passes each (SAM too), for every second 1.5, every fourth 1.25, every eighth 1.125, and of ERM 1."
    ),
    seeds=20,
    details=(Detail(WORST),),
)

STUDIES = (COMPARISON, LAMBDA, EVERY)
