"""DivBS against other ways to choose a part of every batch, and against training on all of it."""

from collections.abc import Mapping

from hf_ext.studies.divbs.data import CONDITIONS, NEEDS, check, open_parts, prepare, training_rows
from hf_ext.studies.divbs.norm import NORM
from hf_ext.studies.divbs.systems import STRATEGIES, accuracy, costs, make_trainer, small_model
from hf_ext.studies.divbs.texts import TEXTS
from hf_ext.studies.divbs.time import TIME
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System

CANDIDATES, STEPS = 100, 150
BUDGETS = {"digits": (0.1, 0.2, 0.3), "images": (0.1,)}
RATES = {"digits": (1e-3, 3e-3, 1e-2, 3e-2), "images": (1e-3, 3e-3, 1e-2)}
FULL = "full batch"


def run(run: Run) -> Outcome:
    """Train one system; the score is the accuracy on test rows."""
    parts = open_parts(run.folder)
    trainer = make_trainer(
        small_model(parts["train"], run.seed),
        training_rows(parts["train"], run.case.options["condition"], run.seed),
        run.system.options,
        candidates=CANDIDATES,
        steps=5 if run.quick else STEPS,
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
    )
    trainer.train()
    details = {**costs(trainer, CANDIDATES), "share of marked rows": trainer.marked / trainer.trained}
    return Outcome(accuracy(trainer, parts["validation"]), accuracy(trainer, parts["test"]), details)


def named(strategy: str, budget: float) -> str:
    """A system's name: `"DivBS, 10 %"`."""
    return f"{strategy}, {round(100 * budget)} %"


def _rates(case: Case) -> Mapping[str, tuple[float, ...]]:
    return {"learning_rate": RATES[case.data]}


def _system(strategy: str, budget: float) -> System:
    left_out = {name: "one budget has to do there" for name, budgets in BUDGETS.items() if budget not in budgets}
    options = {"share": budget, **STRATEGIES[strategy]}
    return System(named(strategy, budget), options, _rates, is_method="DivBS" in strategy, excluded=left_out)


PROTOCOL = f"""
- **Systems.** Every update draws {CANDIDATES} candidates. *Full batch* trains on all of them; the others keep 10, 20
  or 30, the budget: at random (*uniform*), those with the largest losses (*loss*) or last-layer gradients (*grad
  norm*), or by DivBS, with the largest score at every pick (*DivBS*) or one drawn in proportion to the scores
  (*DivBS, drawn*, as the authors' code does). All are `DivBSTrainer` with other options.
- **Data.** *Clean*: as they are. *Label noise*: a fifth of the training labels are others, drawn evenly; validation
  and test labels are right. *Copies*: a tenth of the training images are there 21 times, so that two thirds of the
  rows are copies. No system knows which rows these are; the share of them among the rows trained on (*share of marked
  rows*: wrong labels, or images with copies) is told afterwards.
- **Equal numbers of updates**, {STEPS}, with the Trainer's AdamW (no weight decay, gradients clipped at norm 1) and a
  cosine schedule without warm-up: 15 passes over the clean digits, less than two over the images. **Work is not
  equal**: who scores passes all candidates forward, who draws at random does not. A pass backward is counted as two
  forward, so that at a budget of 10 % DivBS, loss and grad norm do 0.43 and uniform 0.10 of the work of the full
  batch; the selection itself is not counted. The study `divbs-time` compares times.
- **Models.** Digits: a perceptron, 64-128-64-10, on all 1197 images outside the test set. Images: a ResNet for 32 x 32
  pixels (3 blocks, 16 to 64 channels), not converged by far. Its BatchNorms see the rows that are trained on, and
  those alone: statistics of a few odd rows are a part of what a way to choose costs, as in the authors' code.
- **Hyper-parameters**: only the learning rate, of four values (images: three), for every system and budget alike, by
  the mean validation accuracy of runs with two other seeds, 1000 and 1001. Validation rows are a sixth of the
  training rows, drawn by the seed. Test rows are the same for all seeds, and neither trained on nor chosen by.
- A seed draws the model's weights, validation rows, wrong labels, images with copies and the order of candidates. It
  is shared by all systems, so that differences are taken within a seed.
- **Limits.** Small models and data, short trainings. DivBS against full batch is no claim to win: it says what is
  lost.
""".strip()

COMPARISON = Study(
    name="divbs",
    title="DivBS: training on a part of every batch",
    question=(
        "At a budget of 10, 20 or 30 % of the candidates, which way to choose them keeps most of the accuracy of "
        "training on all, on clean data, with wrong labels and with copies?"
    ),
    metric="accuracy",
    data={
        "digits": Source(
            "handwritten digits (scikit-learn)",
            embedded="digits",
            needs=NEEDS["digits"],
            origin="comes with scikit-learn",
        ),
        "images": Source(
            "pictures, such as CIFAR-10",
            needs=NEEDS["images"],
            origin="CIFAR-10 (Krizhevsky, 2009); examples/README.md says how to make the table",
        ),
    },
    cases=tuple(
        Case(f"{data}, {condition}", data, {"condition": condition}) for data in BUDGETS for condition in CONDITIONS
    ),
    systems=(
        System(FULL, {"share": 1.0}, _rates),
        *(_system(strategy, budget) for budget in BUDGETS["digits"] for strategy in STRATEGIES),
    ),
    comparisons=tuple(
        Comparison(named("DivBS", budget), baseline)
        for budget in BUDGETS["digits"]
        for baseline in (FULL, *(named(other, budget) for other in STRATEGIES if other != "DivBS"))
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    tuning_seeds=2,
)

STUDIES = (COMPARISON, NORM, TIME, TEXTS)
