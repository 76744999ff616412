"""`hf-ext train causald` and `hf-ext demo causald`."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from hf_ext._models import unwrapped
from hf_ext.commands.demo import DemoRun, Scored, run_demo
from hf_ext.commands.parsing import parse
from hf_ext.commands.rankings import SHOWN as METRICS
from hf_ext.commands.rankings import baselines, examples_of, loading_lines, metrics_of, table_of
from hf_ext.commands.recommenders import InteractionArguments, RecommenderArguments, loaded_for
from hf_ext.commands.teachers import TeacherArguments, Teachers
from hf_ext.commands.training import check_counts, leave, new_trainer, result_line, resumed_from, seed_all
from hf_ext.data.interactions import (
    NextItems,
    NextItemsCollator,
    SetEpoch,
    SplitInteractions,
    leave_one_out,
    simulate_shop,
)
from hf_ext.hub_cards.text import without_path
from hf_ext.models import SequentialRecommenderForNextItem
from hf_ext.trainers import CausalDConfig, CausalDTrainer
from hf_ext.trainers.checkpoints import newest_complete_checkpoint

TITLE = "CausalD"
STEPS = 1000
#: of TrainingArguments, since tables of items learn nothing by those for pretrained models
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 0.0,  # STEPS steps, whatever the size of the data
    "per_device_train_batch_size": 256,
    "per_device_eval_batch_size": 256,
}


def train(argv: Sequence[str]) -> None:
    """Train a recommender with its teachers, evaluate it beside baselines and leave a folder ready for the Hub.

    Raises:
        ValueError: options, data or teachers that cannot be used, before anything is trained.
    """
    interactions, recommender, chosen, args = parse(
        (InteractionArguments, RecommenderArguments, TeacherArguments, CausalDConfig),
        argv,
        prog="hf-ext train causald",
        description="Train a recommender with several teachers (CausalD, Zhang et al. 2024), or alone, and compare it "
        f"with what knows only what is popular, or what goes together. {STEPS} steps, unless max_steps or "
        "num_train_epochs say otherwise.",
        defaults=DEFAULTS,
    )
    check_counts(args)
    if args.max_steps <= 0 and not args.num_train_epochs:
        args.max_steps = STEPS
    chosen.check(args.causald_alpha)
    resumed = resumed_from(args)
    if resumed is True:  # found out now, not after the teachers' training
        newest_complete_checkpoint(str(args.output_dir), needs_state=not args.save_only_model)
    split = interactions.load()
    seed_all(args)
    loaded = loaded_for(recommender, split, args)
    teachers = Teachers(chosen, recommender, split, args, resumes=bool(resumed))
    rows: dict[str, Any] = {}
    if is_alone := not teachers.sources and args.causald_alpha == 0 and args.causald_debias == "none":
        rows["train_dataset"] = None  # CausalD would draw candidates, the same in every epoch
    trainer = new_trainer(CausalDTrainer, loaded.model, args, loaded, teachers=teachers.sources, **rows)
    if not teachers.sources:
        trainer.data_remark = f"No teacher has taught this model (causald_alpha=0). {loaded.remark}"
    if is_alone:
        trainer.train_dataset = recommender.rows(split, args)
        trainer.add_callback(SetEpoch())
    _train(trainer, teachers, resumed)
    compared = _compare(trainer, teachers, loaded.data["test"])
    trainer.eval_dataset = loaded.data["test"]
    name = TITLE if teachers.sources else recommender.architecture
    leave(trainer, interactions.dataset, told=lambda metrics: _told(trainer, metrics["eval"], compared, name))


def _train(trainer: Any, teachers: Teachers, resumed: str | bool | None) -> None:
    """The teachers, then the student, of which the result is the same whether its teachers were there already."""
    teachers.train(print if trainer.is_world_process_zero() else lambda text: None)
    seed_all(trainer.args)
    trainer.train(resume_from_checkpoint=resumed)


def _compare(trainer: Any, teachers: Teachers, rows: NextItems) -> dict[str, dict[str, float]]:
    """Metrics of the baselines and the teachers, which the card shows beside the model's."""
    compared = baselines(rows)
    for number, source in enumerate(teachers.sources):
        system = f"teacher {number + 1} ({without_path(teachers.places[number])})"
        compared[system] = metrics_of(source, rows, trainer.args.device)
    for system, metrics in compared.items():
        trainer.card.add_baseline(system, {f"eval_{name}": metrics[name] for name in METRICS})
    return compared


def _told(trainer: Any, model: Mapping[str, float], compared: dict[str, dict[str, float]], name: str) -> str:
    """What is printed at the end."""
    student, folder, rows = unwrapped(trainer.model), trainer.args.output_dir, trainer.eval_dataset
    own = {key.removeprefix("eval_"): value for key, value in model.items()}
    return "\n".join(
        [
            trainer.data_remark,
            table_of({**compared, name: own}, name),
            examples_of(student, rows),
            result_line(folder),
            loading_lines(folder, student),
        ]
    )


# ------------------------------------------------------------------------------------------------ demo
DATASET, LENGTH, BATCH = "shop", 20, 128
TEACHERS = {"deepfm": 32, "gru": 32, "sasrec": 32}
DIRECT_RANK = 8
PLAIN, ONE, SHOWN, BANK = "plain student", "taught by the best teacher", "CausalD, ensemble", "CausalD, bank"
#: by system, what is said to the Trainer
SYSTEMS: dict[str, dict[str, Any]] = {
    PLAIN: {"causald_alpha": 0.0},
    ONE: {},
    SHOWN: {},
    BANK: {"causald_front_door": "bank"},
}
#: values of the table, and their metrics
COLUMNS = {METRICS[name]: name for name in ("ndcg@10", "head_ndcg@10", "tail_ndcg@10", "gap_ndcg@10", "coverage@10")}


def demo(out: str, *, seeds: int = 3, steps: int = 250) -> None:
    """Train a small recommender on a simulated shop, alone and with one or several teachers.

    Raises:
        ValueError: fewer than one seed or step.
    """
    run_demo(
        "causald",
        out,
        seeds=seeds,
        steps=steps,
        text=f"[bold]{TITLE}[/] on a simulated {DATASET}, in which hidden groups of customers push what is bought: a "
        f"small DeepFM learns alone, or from larger teachers ({', '.join(TEACHERS)}). Compared is how well the next "
        "purchase of each customer is ranked among all items, for the fifth of the customers who buy most (head), all "
        f"others (tail), and the gap between them; {seeds} seeds.",
        found="What is compared is what customers bought next, which the hidden groups help to foretell: what takes "
        "them out of the scores, as the bank is meant to, loses here. `hf-ext reproduce causald` also compares what "
        "they would buy without them.",
        systems=_systems,
        trainings=len(TEACHERS) + len(SYSTEMS),
        shown=SHOWN,
        methods=(SHOWN, BANK),
        metrics=tuple(COLUMNS),
        title="the next purchase, mean over seeds",
        card={
            "dataset": f"{DATASET} (simulated)",
            "dataset_description": (
                "The last purchase of every customer of a simulated shop, ranked among all items but those that the "
                f"customer had before; another shop with every seed. After {steps} steps of AdamW on {BATCH} rows. "
                "NDCG@10 of all, of head users (the fifth that is most active), of tail users, and head minus tail; "
                "coverage@10 is the share of the items that anybody is recommended. Baselines: popularity and "
                "item-kNN, and the teacher that is the best in validation."
            ),
            "limitations": "A demonstration on simulated purchases, of which it says nothing how real ones are.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    split = leave_one_out(simulate_shop(seed=run.seed).interactions)
    test = NextItems(split, "test", max_length=LENGTH)
    for name, metrics in baselines(test).items():
        yield name, _values(metrics), None
    teachers = [_teacher(run, split, architecture) for architecture in TEACHERS]
    validation = NextItems(split, "validation", max_length=LENGTH)
    best = max(teachers, key=lambda teacher: metrics_of(teacher, validation, "cpu")["ndcg@10"])
    yield "the best teacher", _values(metrics_of(best, test, "cpu")), None
    student = _recommender(run, split, "deepfm", 16)
    for name, options in SYSTEMS.items():
        taught_by = {PLAIN: [], ONE: [best]}.get(name, teachers)
        with tempfile.TemporaryDirectory() as effects:
            trainer = CausalDTrainer(
                copy.deepcopy(student),
                run.arguments(CausalDConfig, causald_cache_dir=effects, **OPTIONS, **options),
                teachers=taught_by,
                train_dataset=NextItems(split, max_length=LENGTH),
                eval_dataset=test,
            )
            run.train(trainer, name)
        yield name, _values(metrics_of(trainer.model, test, trainer.args.device)), trainer


OPTIONS: dict[str, Any] = {
    "learning_rate": 1e-2,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": BATCH,
}


def _values(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: metrics[metric] for name, metric in COLUMNS.items()}


def _recommender(
    run: DemoRun, split: SplitInteractions, architecture: str, width: int, **options: Any
) -> SequentialRecommenderForNextItem:
    torch.manual_seed(run.seed)
    sizes = {"hidden_size": width, "max_length": LENGTH, **options}
    return SequentialRecommenderForNextItem.from_items(split.interactions.items, architecture=architecture, **sizes)


def _teacher(run: DemoRun, split: SplitInteractions, architecture: str) -> SequentialRecommenderForNextItem:
    model = _recommender(run, split, architecture, TEACHERS[architecture], direct_rank=DIRECT_RANK)
    trainer = Trainer(
        model,
        run.arguments(TrainingArguments, **OPTIONS),
        data_collator=NextItemsCollator(),
        train_dataset=NextItems(split, max_length=LENGTH, num_negatives=31, seed=run.seed),
        callbacks=[SetEpoch()],
    )
    run.train(trainer, f"the teacher {architecture}")
    return model
