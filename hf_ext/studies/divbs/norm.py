"""DivBS on pictures with and without BatchNorm, whose statistics are those of the rows that were chosen."""

from hf_ext.studies.divbs.data import CLEAN, NEEDS, check, open_parts, prepare, training_rows
from hf_ext.studies.divbs.systems import STRATEGIES, accuracy, costs, make_trainer, small_model
from hf_ext.studies.study import Case, Comparison, Outcome, Run, Source, Study, System
from hf_ext.studies.training import with_group_norm

CANDIDATES, STEPS, SHARE = 320, 300, 0.1
BATCHES, GROUPS = "BatchNorm", "GroupNorm"


def run(run: Run) -> Outcome:
    """Train one system; the score is the accuracy on test rows."""
    parts = open_parts(run.folder)
    model, candidates = small_model(parts["train"], run.seed), 100 if run.quick else CANDIDATES
    trainer = make_trainer(
        with_group_norm(model) if run.case.options["norm"] == GROUPS else model,
        training_rows(parts["train"], CLEAN, run.seed),
        run.system.options,
        candidates=candidates,
        steps=5 if run.quick else STEPS,
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
    )
    trainer.train()
    validation, test = (accuracy(trainer, parts[name]) for name in ("validation", "test"))
    return Outcome(validation, test, costs(trainer, candidates))


PROTOCOL = f"""
- **Why.** In the study `divbs` the pictures' network has BatchNorms, and no way to choose beats drawing at random. A
  BatchNorm takes its statistics from the rows that are trained on. Those that DivBS, loss and grad norm choose are not
  like the rows that the network is tested on; those drawn at random are.
- **Models.** The ResNet of the study `divbs`, and the same with GroupNorms (four channels a group), which know nothing
  of other rows.
- **Budget.** {STEPS} updates, {CANDIDATES} candidates each, as in the paper, of which {SHARE:.0%} are kept; near ten
  passes over the rows. AdamW, gradients clipped at norm 1, cosine schedule.
- **Hyper-parameters**: the learning rate, of three, by the validation accuracy of a run with another seed, 1000.
- The question and the budget came from trials with seeds 1000 to 1002, which are not among those reported.
- Clean data, rows and seeds as in the study `divbs`.
""".strip()


def _named(strategy: str) -> str:
    return f"{strategy}, {SHARE:.0%}"


NORM = Study(
    name="divbs-norm",
    title="DivBS: what BatchNorm costs",
    question="With BatchNorm and without: is a tenth of every batch better chosen by DivBS or drawn at random?",
    metric="accuracy",
    data={
        "images": Source(
            "pictures, such as CIFAR-10",
            needs=NEEDS["images"],
            origin="CIFAR-10 (Krizhevsky, 2009); examples/README.md says how to make the table",
        )
    },
    cases=tuple(Case(norm, "images", {"norm": norm}) for norm in (BATCHES, GROUPS)),
    systems=tuple(
        System(
            _named(strategy),
            {"share": SHARE, **options},
            {"learning_rate": (1e-3, 3e-3, 1e-2)},
            is_method="DivBS" in strategy,
        )
        for strategy, options in STRATEGIES.items()
    ),
    comparisons=tuple(Comparison(_named("DivBS"), _named(baseline)) for baseline in STRATEGIES if baseline != "DivBS"),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
)
