"""`hf-ext train causald` and `hf-ext demo causald`."""

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
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
    ShopData,
    SplitInteractions,
    leave_one_out,
    simulate_shop,
)
from hf_ext.hub_cards.text import without_path
from hf_ext.metrics import RankingMetrics, popularity_ranks, rank_targets
from hf_ext.metrics.rankings import RankedTargets, expected_ndcg
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
#: a shop whose customers follow their newest items closely
SHOP: dict[str, Any] = {"num_users": 500, "num_items": 300, "mean_events": 40, "sharpness": 8.0}
TEACHERS = ("din", "deepfm", "sasrec")
#: a mediator of the newest items, and a direct path of all, learnt together by one loss
PATHS: dict[str, Any] = {"mediator_length": 5, "direct_rank": 8, "direct_loss_weight": 0.0}
PLAIN, ONE, ENSEMBLE, SHOWN = "student alone", "the best teacher", "the plain ensemble", "CausalD, bank"
#: by system, what is said to the Trainer
SYSTEMS: dict[str, dict[str, Any]] = {
    PLAIN: {"causald_alpha": 0.0},
    ONE: {},
    ENSEMBLE: {},
    SHOWN: {"causald_front_door": "bank"},
}
TAKEN, HEAD, TAIL, UNPUSHED = "NDCG@10, taken next", "head", "tail", "NDCG@10, if not pushed"
#: values of the table that are of what was really taken, and their metrics
METRIC_OF = {TAKEN: "ndcg@10", HEAD: "head_ndcg@10", TAIL: "tail_ndcg@10"}


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
        f"small DeepFM learns alone, or what larger teachers say ({', '.join(TEACHERS)}): the best of them, all, or "
        "all averaged over other customers' histories, which is meant to take the push out. Compared is how well two "
        f"things are ranked: what customers took next ({TAIL}: all but the fifth who buy most), and what they would "
        f"take if nothing hidden pushed them, which a simulation knows; {seeds} seeds.",
        found="where hidden groups push, the bank ranks best what customers would take without them (shown), and pays "
        "for it on what they do take, where a plain ensemble is best. Teachers that see nothing but the newest items "
        "do as well, unless the push is strong; against that, nothing here beats popularity.",
        systems=_systems,
        trainings=len(TEACHERS) + len(SYSTEMS),
        shown=SHOWN,
        methods=(SHOWN,),
        metrics=(TAKEN, HEAD, TAIL, UNPUSHED),
        title="mean over seeds",
        card={
            "dataset": f"{DATASET} (simulated)",
            "dataset_description": (
                "The last purchase of every customer of a simulated shop, ranked among all items but those that the "
                f"customer had before; another shop with every seed. After {steps} steps of AdamW on {BATCH} rows, "
                f"the teachers three times as many. {TAKEN}: what they took; {HEAD}: the fifth of them that is most "
                f"active, {TAIL}: all others. {UNPUSHED}: the expectation for an item drawn from the shop's "
                "P(Y | do(x)), which only a simulation knows. The best teacher is the best in validation."
            ),
            "limitations": "A demonstration on simulated purchases, of which it says nothing how real ones are.",
        },
    )


def _systems(run: DemoRun) -> Iterator[Scored]:
    shop = simulate_shop(seed=run.seed, **SHOP)
    split = leave_one_out(shop.interactions)
    test, validation = (NextItems(split, part, max_length=LENGTH) for part in ("test", "validation"))
    yield "popularity", _values(popularity_ranks(test), _popular(split, len(test)), test, shop), None
    teachers = [_teacher(run, split, architecture) for architecture in TEACHERS]
    best = max(teachers, key=lambda teacher: metrics_of(teacher, validation, "cpu")["ndcg@10"])
    student = _recommender(run, split, "deepfm", 16)
    for name, options in SYSTEMS.items():
        with tempfile.TemporaryDirectory() as effects:
            trainer = CausalDTrainer(
                copy.deepcopy(student),
                run.arguments(
                    CausalDConfig, causald_cache_dir=effects, **{**OPTIONS, "causald_alpha": 0.9, **options}
                ),
                teachers={PLAIN: [], ONE: [best]}.get(name, teachers),
                train_dataset=NextItems(split, max_length=LENGTH),
                eval_dataset=test,
            )
            run.train(trainer, name)
        ranks = rank_targets(trainer.model, test)
        yield name, _values(ranks, _logits(trainer.model, test), test, shop), trainer


OPTIONS: dict[str, Any] = {
    "learning_rate": 2e-2,
    "warmup_steps": 0.1,
    "per_device_train_batch_size": BATCH,
}


def _values(ranks: RankedTargets, scores: Any, rows: NextItems, shop: ShopData) -> dict[str, float]:
    metrics = RankingMetrics(rows).of(ranks)
    effect = shop.true_effect(_histories(rows).numpy())
    return {**{name: metrics[key] for name, key in METRIC_OF.items()}, UNPUSHED: expected_ndcg(scores, effect)}


def _histories(rows: NextItems) -> Tensor:
    return torch.stack([row["input_ids"] for row in rows.__getitems__(list(range(len(rows))))])


@torch.no_grad()
def _logits(model: SequentialRecommenderForNextItem, rows: NextItems) -> Any:
    model.eval()
    return torch.cat([model(input_ids=part).logits for part in _histories(rows).split(256)]).double().numpy()


def _popular(split: SplitInteractions, rows: int) -> Any:
    return np.tile(split.item_counts[1:].astype(float), (rows, 1))


def _recommender(
    run: DemoRun, split: SplitInteractions, architecture: str, width: int, **options: Any
) -> SequentialRecommenderForNextItem:
    torch.manual_seed(run.seed)
    sizes = {"hidden_size": width, "max_length": LENGTH, **options}
    return SequentialRecommenderForNextItem.from_items(split.interactions.items, architecture=architecture, **sizes)


def _teacher(run: DemoRun, split: SplitInteractions, architecture: str) -> SequentialRecommenderForNextItem:
    model = _recommender(run, split, architecture, 32, **PATHS)
    trainer = Trainer(
        model,
        run.arguments(TrainingArguments, steps=3 * run.steps, **{**OPTIONS, "learning_rate": 1e-2}),
        data_collator=NextItemsCollator(),
        train_dataset=NextItems(split, max_length=LENGTH, num_negatives=15, seed=run.seed),
        callbacks=[SetEpoch()],
    )
    run.train(trainer, f"the teacher {architecture}")
    return model
