"""`hf-ext train causald` and `hf-ext demo causald`."""

from collections.abc import Sequence
from typing import Any

from hf_ext._models import unwrapped
from hf_ext.commands.parsing import parse
from hf_ext.commands.rankings import baselines, examples_of, loading_lines, metrics_of, table_of
from hf_ext.commands.recommenders import InteractionArguments, RecommenderArguments, loaded_for
from hf_ext.commands.teachers import TeacherArguments, Teachers
from hf_ext.commands.training import check_counts, leave, new_trainer, result_line, resumed_from, seed_all
from hf_ext.data.interactions import NextItems, SetEpoch
from hf_ext.trainers import CausalDConfig, CausalDTrainer
from hf_ext.trainers.checkpoints import newest_complete_checkpoint

SHOWN = "CausalD"
#: of TrainingArguments, since tables of items learn nothing by those for pretrained models
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "num_train_epochs": 10.0,
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
        description="Train a recommender with several teachers (CausalD, Zhang et al. 2024), or alone.",
        defaults=DEFAULTS,
    )
    check_counts(args)
    chosen.check(args.causald_alpha)
    resumed = resumed_from(args)
    if resumed is True:  # found out now, not after the teachers' training
        newest_complete_checkpoint(str(args.output_dir), needs_state=not args.save_only_model)
    split = interactions.load()
    seed_all(args)
    loaded = loaded_for(recommender, split, args)
    teachers = Teachers(chosen, recommender, split, args)
    rows: dict[str, Any] = {}
    if is_alone := not teachers.sources and args.causald_alpha == 0 and args.causald_debias == "none":
        rows["train_dataset"] = None  # CausalD would draw candidates, the same in every epoch
    trainer = new_trainer(CausalDTrainer, loaded.model, args, loaded, teachers=teachers.sources, **rows)
    if is_alone:
        trainer.train_dataset = recommender.rows(split, args)
        trainer.add_callback(SetEpoch())
    _train(trainer, teachers, resumed)
    compared = _compare(trainer, teachers, loaded.data["test"])
    trainer.eval_dataset = loaded.data["test"]
    name = SHOWN if teachers.sources else recommender.architecture
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
        system = f"teacher {number + 1} ({teachers.places[number]})"
        compared[system] = metrics_of(source, rows, trainer.args.device)
    for system, metrics in compared.items():
        trainer.card.add_baseline(system, {f"eval_{name}": value for name, value in metrics.items()})
    return compared


def _told(trainer: Any, model: dict[str, float], compared: dict[str, dict[str, float]], name: str) -> str:
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
