"""How soon an encoder learns to tell texts apart if the scores of DivBS's candidates are had for less."""

import torch
from torch import Tensor, nn

from hf_ext.studies.divbs.encoder import NEEDS, TASK, TOKENS, UPDATES, check, classifier, open_parts, prepare, rows_of
from hf_ext.studies.divbs.systems import STRATEGIES, make_trainer
from hf_ext.studies.divbs.time import DIVBS, FULL, UNIFORM, Stopwatch
from hf_ext.studies.study import Case, Comparison, Detail, Outcome, Run, Source, Study, System

CANDIDATES, TARGET = 160, 0.84
MOST, LOOKS = 40_000, 1_000  # passes forward at most, and between two looks at the accuracy
RATES = (5e-4, 1e-3, 2e-3, 4e-3)
WORK = "passes forward, thousands"
CHEAPER = "DivBS, 10 %, bfloat16 scores"


def run(run: Run) -> Outcome:
    """Train until the accuracy is reached; the score is the time it took."""
    parts, passes = open_parts(run.folder), passes_of(run.system)
    seen = {name: parts[name] for name in ("validation", "test")}

    def accuracies(model: nn.Module) -> dict[str, float]:
        return {name: _accuracy(model, part) for name, part in seen.items()}

    watch = Stopwatch(accuracies, TARGET, max(1, round(LOOKS / passes)))
    trainer = make_trainer(
        classifier(run.folder, run.seed),
        rows_of(parts["train"]),
        run.system.options,
        candidates=10 if run.quick else CANDIDATES,
        steps=2 if run.quick else round(MOST / passes),
        learning_rate=run.hyper_parameters["learning_rate"],
        seed=run.seed,
        callbacks=[watch],
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=10,
    )
    trainer.train()
    seconds = {name: watch.reached.get(name, (float("nan"), 0))[0] for name in seen}
    updates = watch.reached["test"][1] if "test" in watch.reached else None
    work = None if updates is None else updates * passes / 1000
    return Outcome(seconds["validation"], seconds["test"], {"updates": updates, WORK: work})


def passes_of(system: System) -> float:
    """Work of an update in passes of one text forward: a backward pass takes two, one in half precision a half."""
    options = system.options
    trained = 3 * options["share"] * CANDIDATES
    if system.name in (FULL, UNIFORM):
        return trained
    return trained + CANDIDATES * (0.5 if "divbs_scoring_dtype" in options else 1.0)


@torch.no_grad()
def _accuracy(model: nn.Module, part: dict[str, Tensor]) -> float:
    training = model.training
    logits = model.eval()(input_ids=part["input_ids"], attention_mask=part["attention_mask"]).logits
    model.train(training)
    return float((logits.argmax(-1) == part["labels"]).float().mean())


PERCENT = f"{round(100 * TARGET)} %"
PROTOCOL = f"""
- **Task.** Whether a sentence about a film tells of the story or judges it (SUBJ), clean: 4000 sentences, of which a
  sixth are held out for validation, and 1000 for the test; {TOKENS} tokens of each. The model is a small pretrained
  encoder: a BERT of two blocks, width 96, that has guessed masked words of the table's training texts, of all their
  tasks and without labels, in {UPDATES} updates before the clock starts. It is the same for all systems of a seed.
  What is measured is its fine-tuning.
- **Systems.** Every update draws {CANDIDATES} candidates; *full batch* trains on all of them, the others on
  {CANDIDATES // 10}: drawn at random (*uniform*), or by DivBS. *bfloat16 scores* are computed in that dtype
  (`divbs_scoring_dtype`), and the rows that they choose are trained on in full precision. All are `DivBSTrainer` with
  other options.
- **Clock.** As in the study `divbs-time`: wall clock on one thread of the CPU, which stands still while the accuracy
  is looked at; the time is that at which it was first {PERCENT} or more. Systems are looked at after equal amounts
  of work, {LOOKS} passes of one text forward. A run that does not get there in {MOST} has no time (tables say that
  it diverged).
- **Work.** Seconds depend on the machine and on what else it does. *{WORK.capitalize()}* do not: a pass backward is
  counted as two forward, one in bfloat16 as a half, which is what it takes on a CPU that computes in it. The
  comparisons are judged by both.
- **Hyper-parameters**: only the learning rate, of four values, by the time to the accuracy on validation rows of a
  run with another seed, 1000. The Trainer's AdamW (no weight decay, gradients clipped at norm 1), ten updates of
  warm-up, then a constant rate.
- A seed draws encoder, head, validation rows and the order of candidates.
- Task, accuracy and grid came from trials of a few runs each, with seeds 0 and 1, which are among those reported. In
  these the scores of the first twelve tokens alone did worse than those of whole texts, and one scoring for four
  updates no better than one for each; they are no systems here.
- **Limits.** One small encoder, one task, an accuracy that is reached before the training has converged.
""".strip()


def _system(name: str, options: dict[str, object]) -> System:
    return System(name, options, {"learning_rate": RATES}, is_method="DivBS" in name)


TEXTS = Study(
    name="divbs-texts",
    title="DivBS: time to an accuracy, with cheaper scores",
    question=(
        f"How long does an encoder take to {PERCENT} accuracy on clean sentences if a tenth of every batch is trained "
        "on, chosen by DivBS, by it with scores in half precision or at random, next to training on all of it?"
    ),
    metric=f"seconds to {PERCENT} accuracy",
    data={
        "texts": Source(
            "texts of several tasks, SUBJ among them",
            needs=NEEDS,
            origin="SUBJ (Pang and Lee, 2004) and others; examples/README.md says what is in the table",
        )
    },
    cases=(Case(TASK, "texts"),),
    systems=(
        _system(FULL, {"share": 1.0}),
        _system(UNIFORM, {"share": 0.1, **STRATEGIES["uniform"]}),
        _system(DIVBS, {"share": 0.1, **STRATEGIES["DivBS"]}),
        _system(
            CHEAPER,
            {"share": 0.1, **STRATEGIES["DivBS"], "divbs_scoring_dtype": "bfloat16"},
        ),
    ),
    comparisons=(
        Comparison(CHEAPER, FULL),
        Comparison(CHEAPER, DIVBS),
        Comparison(CHEAPER, UNIFORM),
        Comparison(UNIFORM, FULL),
    ),
    check=check,
    prepare=prepare,
    run=run,
    protocol=PROTOCOL,
    greater_is_better=False,
    seeds=8,
    details=(Detail(WORK, greater_is_better=False),),
)
